"""What is wanted, what is there, and what it costs."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdpipe.core.files import read_json
from kdpipe.core.paths import Results, RunPaths
from kdpipe.plan.banks import Banks
from kdpipe.plan.cost import (
    NO_BANKS,
    Bill,
    Estimate,
    Rates,
    bill,
    estimate,
    longest_path,
    making,
    prepared,
    read_rates,
    room,
)
from kdpipe.plan.imported import missing_imports
from kdpipe.plan.plan import Plan, PlannedStudy

WIDTH = 110
KINDS = {  # one, and several
    "teacher": ("teacher", "teachers"),
    "part": ("part of a teacher", "parts of teachers"),
    "student": ("student", "students"),
    "bench": ("bench", "benches"),
}
MADE = ("cached", "collapsed")


def overview(
    plan: Plan,
    results: Path,
    folder: Path = Path("config"),
    *,
    as_json: bool = False,
    runs: bool = False,
    device: str = "",
    banks: Banks = NO_BANKS,
) -> str:
    """What a plan holds: of each study its runs and skipped cells, and of all what they cost.

    Args:
        plan: the plan.
        results: the results folder.
        folder: the config folder.
        as_json: everything, every run included, as JSON.
        runs: list every run with its state.
        device: part of the name of the device that is planned for; see `kdpipe.plan.cost.read_rates`.
        banks: the banks that students read.

    Raises:
        UnknownNameError: no device has that name.
    """
    states = {name: state(Results(results).run(name)) for name in plan.runs}
    states |= {name: bench_state(Results(results).run(name)) for name in plan.benches}
    rates = read_rates(plan, Results(results), folder, device)
    if as_json:
        return json.dumps(_as_json(plan, states, rates, banks, Results(results)), indent=1)
    lines: list[str] = []
    for study in plan.studies.values():
        lines += [*_about(study, plan, states, rates, runs, banks), ""]
    lines += _in_all(plan, states, rates, Results(results), banks)
    return "\n".join(lines)


def _about(
    study: PlannedStudy,
    plan: Plan,
    states: Mapping[str, str],
    rates: Rates | None,
    listed: bool,
    banks: Banks,
) -> Iterator[str]:
    """A study: its runs, those that it shares, and what it skips."""
    scale = study.scale + (f", on {study.ran_on}" if study.ran_on else "")
    yield f"{study.name}: {study.study.title} (scale {scale})"
    names = _runs(study, plan)
    if listed:
        yield from (f"  {states[name]:<10}{name}" for name in names)
    yield f"  {_counted(names, plan)}: {_tally(states[name] for name in names)}"
    for other, count in _shared(study, plan, names).items():
        yield f"  shared with {other}: {_number(count, 'run')}"
    skipped = Counter((c.row, c.recipe, c.teacher, c.student, c.skipped) for c in study.cells if c.skipped)
    reasons: dict[str, list[str]] = {}
    for row, recipe, teacher, student, why in skipped:
        reasons.setdefault(why or "", []).append(f"{row}: {teacher} ({recipe}) -> {student}")
    if skipped:
        yield f"  {_number(sum(skipped.values()), 'cell')} skipped:"
    for why, cells in reasons.items():
        yield f"    {why}"
        yield from textwrap.wrap("; ".join(cells), WIDTH, initial_indent="      ", subsequent_indent="      ")
    if rates and names:
        cost = _bill(plan, names, rates, states, banks)
        if cost.unknown < len(names):
            yield f"  about {_hours(cost.hours)} and {_size(cost.disk)}"


def _in_all(
    plan: Plan, states: Mapping[str, str], rates: Rates | None, results: Results, banks: Banks
) -> Iterator[str]:
    """All studies together: their runs, hours, room on disk, and the longest path."""
    names = [*plan.runs, *plan.benches]
    yield f"{_counted(names, plan)} in all: {_tally(states[name] for name in names)}"
    absent = dict.fromkeys(error.fix for error in missing_imports(plan, results) if error.fix)
    yield from (f"first:   {command}" for command in absent)
    yield from _told("banks", _banked(plan, banks, rates, results)) if banks.of else ()
    if rates is None:
        yield "hours: nothing is known of any device: no finished run, and no throughput.yaml"
        return
    cost = _bill(plan, names, rates, states, banks)
    yield from _told(
        "hours", f"{_hours(cost.hours)} of one {rates.device}, {_hours(cost.left)} of them still to run"
    )
    yield from _told("", _basis(cost, rates))
    data = prepared(plan)
    yield from _told("disk", f"{_size(cost.disk + data)}, {_size(data)} of them prepared data")
    yield from _told("kept", kept) if (kept := _kept(plan)) else ()
    if path := longest_path(plan, rates, banks):
        total = sum(seconds for _, seconds in path)
        yield from _told(
            "longest",
            f"{_hours(total / 3600)}, however many machines there are: data {plan.runs[path[0][0]].data}",
        )
        yield from (f"         -> {name} ({_hours(seconds / 3600)})" for name, seconds in path)


def _basis(cost: Bill, rates: Rates) -> str:
    """What the hours rest on."""
    parts = []
    if cost.measured:
        parts.append(f"{_number(cost.measured, 'run')} by the measured speed of runs like them")
    if cost.computed:
        parts.append(
            f"{_number(cost.computed, 'run')} by multiply-adds at {rates.rate:.2g} a second ({rates.source})"
        )
    if cost.unknown:
        parts.append(f"{_number(cost.unknown, 'run')} not estimated")
    return "; ".join(parts)


def _told(title: str, text: str) -> list[str]:
    first = f"{title + ':' if title else '':<9}"
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * 9, break_on_hyphens=False)


def _runs(study: PlannedStudy, plan: Plan) -> list[str]:
    """Names of a study's runs, those that only teach others included."""
    own = [name for name, planned in plan.runs.items() if study.name in planned.studies]
    return [*own, *dict.fromkeys(cell.run for cell in study.benches)]


def _counted(names: Sequence[str], plan: Plan) -> str:
    kinds = Counter("bench" if name in plan.benches else plan.runs[name].run.kind for name in names)
    inside = ", ".join(f"{kinds[k]} {words[kinds[k] > 1]}" for k, words in KINDS.items() if kinds[k])
    return f"{_number(len(names), 'run')} ({inside})" if inside else "no runs"


def _shared(study: PlannedStudy, plan: Plan, names: Iterable[str]) -> dict[str, int]:
    """How many of a study's runs each other study wants too."""
    wanted = (plan.benches[n].studies if n in plan.benches else plan.runs[n].studies for n in names)
    counts = Counter(other for studies in wanted for other in dict.fromkeys(studies) if other != study.name)
    return dict(sorted(counts.items()))


def _bill(plan: Plan, names: Iterable[str], rates: Rates, states: Mapping[str, str], banks: Banks) -> Bill:
    return bill(plan, names, rates, {name: own in MADE for name, own in states.items()}, banks)


def _banked(plan: Plan, banks: Banks, rates: Rates | None, results: Results) -> str:
    """The banks that students read: how many, their room, and the hours that they take and save."""
    new = [bank for bank in banks.markers if not results.bank(bank).record.is_file()]
    size = sum(plan.banks[bank].bytes for bank in banks.markers)
    there = f", {len(banks.markers) - len(new)} of them there" if len(new) < len(banks.markers) else ""
    text = (
        f"{_number(len(banks.markers), 'bank')} for {_number(len(banks.of), 'student')}, {_size(size)}{there}"
    )
    if rates is None or not rates.rate:
        return text
    make = sum(making(plan.banks[bank], rates) or 0.0 for bank in new) / 3600
    return f"{text}; {_hours(make)} to make and {_hours(_saved(plan, banks, rates))} less for the students"


def _saved(plan: Plan, banks: Banks, rates: Rates) -> float:
    """Hours that banks save the students that read them."""
    both = [(estimate(plan.runs[n], rates), estimate(plan.runs[n], rates, banked=True)) for n in banks.of]
    return sum(alone.seconds - read.seconds for alone, read in both if alone and read) / 3600


def state(paths: RunPaths) -> str:
    """`cached`, `collapsed`, `started` (a saved state waits) or `missing`."""
    if paths.status.is_file() and paths.model.is_file():
        return "collapsed" if read_json(paths.status)["status"] == "collapsed" else "cached"
    return "started" if paths.state.is_dir() else "missing"


def bench_state(paths: RunPaths) -> str:
    """The same of a bench's run."""
    return "cached" if paths.status.is_file() else "started" if paths.state.is_dir() else "missing"


def _tally(states: Iterable[str]) -> str:
    return ", ".join(f"{count} {own}" for own, count in Counter(states).items()) or "none"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _hours(hours: float) -> str:
    """A time in hours, or in minutes or seconds where that reads better."""
    if 60 * hours < 1:
        return f"{3600 * hours:.2g} s"
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:,.3g} h" if hours < 1000 else f"{hours:,.0f} h"


def _kept(plan: Plan) -> str:
    """How much room the teachers' kept checkpoints take, in words; nothing where none are kept."""
    kept = [p for p in plan.runs.values() if p.checkpoints]
    if not kept:
        return ""
    count, unknown = sum(p.checkpoints for p in kept), sum(not p.parameters for p in kept)
    without = f", not counting {unknown} teachers whose classes are counted later" if unknown else ""
    return (
        f"{count} checkpoints of {len(kept)} teachers are kept: about {_size(sum(p.bytes for p in kept))}"
        f"{without}"
    )


def _size(size: float) -> str:
    """A number of bytes in the largest unit that leaves at least one."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _as_json(
    plan: Plan, states: Mapping[str, str], rates: Rates | None, banks: Banks, results: Results
) -> dict[str, Any]:
    def seconds(known: Estimate | None) -> dict[str, Any]:
        return {"seconds": known.seconds, "measured": known.measured} if known else {}

    trained = {
        name: {
            "state": states[name],
            "kind": p.run.kind,
            "studies": p.studies,
            "teacher": p.teacher,
            "checkpoints": p.checkpoints,
            "checkpoint_bytes": p.bytes,
            "bytes": room(p),
            "banks": banks.of.get(name, ()),
            **(seconds(estimate(p, rates, name in banks.of)) if rates else {}),
        }
        for name, p in plan.runs.items()
    }
    benches = {
        name: {"state": states[name], "kind": "bench", "studies": b.studies}
        for name, b in plan.benches.items()
    }
    return {
        "runs": trained | benches,
        "banks": {
            bank: {
                "state": "cached" if results.bank(bank).record.is_file() else "missing",
                "teacher": plan.banks[bank].teacher,
                "view": plan.banks[bank].bank.spec.view,
                "storage": plan.banks[bank].bank.spec.storage,
                "bytes": plan.banks[bank].bytes,
                "students": banks.readers[bank],
                **({"seconds": making(plan.banks[bank], rates)} if rates else {}),
            }
            for bank in banks.markers
        },
        "studies": {
            name: {
                "title": study.study.title,
                "scale": study.scale,
                "runs": _runs(study, plan),
                "shared": _shared(study, plan, _runs(study, plan)),
            }
            for name, study in plan.studies.items()
        },
        "skipped": [
            {
                "study": name,
                "method": c.row,
                "recipe": c.recipe,
                "dataset": c.dataset,
                "teacher": c.teacher,
                "student": c.student,
                "seed": c.seed,
                "why": c.skipped,
            }
            for name, study in plan.studies.items()
            for c in study.cells
            if c.skipped
        ],
        "device": rates and rates.device,
        "rate": rates and {"multiply_adds_per_second": rates.rate, "source": rates.source},
        "cost": rates and asdict(_bill(plan, states, rates, states, banks)),
        "data_bytes": prepared(plan),
        "longest_path": [
            {"run": name, "seconds": own} for name, own in (longest_path(plan, rates, banks) if rates else [])
        ],
    }
