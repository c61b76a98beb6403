"""What is wanted, what is there, and how two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdpipe.core.errors import ResultsError, UnknownNameError
from kdpipe.core.files import read_json
from kdpipe.core.paths import Results, RunPaths
from kdpipe.plan.plan import Plan


def overview(plan: Plan, results: Path, *, as_json: bool = False) -> str:
    """The plan's runs by study with their states, and what is skipped and why."""
    states = {name: state(Results(results).run(name)) for name in plan.runs}
    states |= {name: bench_state(Results(results).run(name)) for name in plan.benches}
    if as_json:
        return json.dumps(_as_json(plan, states), indent=1)
    lines: list[str] = []
    for name, study in plan.studies.items():
        runs = [*study.runs(), *dict.fromkeys(cell.run for cell in study.benches)]
        lines += [f"{name}: {study.study.title} (scale {study.scale})", ""]
        for run in runs:
            lines.append(f"  {states[run]:<10}{run}")
        skipped = dict.fromkeys(
            (f"{c.row}: {c.teacher} -> {c.student}", c.skipped) for c in study.cells if c.skipped
        )
        lines += [f"  {'skipped':<10}{what}: {why}" for what, why in skipped]
        lines += ["", f"  {len(runs)} runs: {_counts([states[r] for r in runs])}", ""]
    lines.append(f"{len(states)} runs in all: {_counts(list(states.values()))}")
    lines += _kept(plan)
    return "\n".join(lines)


def state(paths: RunPaths) -> str:
    """`cached`, `collapsed`, `started` (a saved state waits) or `missing`."""
    if paths.status.is_file() and paths.model.is_file():
        return "collapsed" if read_json(paths.status)["status"] == "collapsed" else "cached"
    return "started" if paths.state.is_dir() else "missing"


def bench_state(paths: RunPaths) -> str:
    """The same of a bench's run."""
    return "cached" if paths.status.is_file() else "started" if paths.state.is_dir() else "missing"


def compare_runs(a: str, b: str, results: Path) -> str:
    """Settings and measures in which two runs differ.

    Args:
        a: name of a run's folder, or a part that only one name has.
        b: another.
        results: the results folder.

    Raises:
        UnknownNameError: no run, or more than one, has that name.
    """
    folders = [_find(name, results) for name in (a, b)]
    lines = [f"A: {folders[0].root.name}", f"B: {folders[1].root.name}", ""]
    specs = [dict(_flat(read_json(f.spec)["spec"])) for f in folders]
    lines += ["settings that differ:", *_differences(specs[0], specs[1])]
    values = [read_json(f.metrics)["values"] if f.metrics.is_file() else {} for f in folders]
    lines += ["", "measures:"]
    for key in dict.fromkeys([*values[0], *values[1]]):
        x, y = values[0].get(key), values[1].get(key)
        change = f"{y - x:+.4f}" if x is not None and y is not None else ""
        lines.append(f"  {key:<16}{_number(x):>12}{_number(y):>12}{change:>12}")
    return "\n".join(lines)


def _find(part: str, results: Path) -> RunPaths:
    folder = results / "runs"
    if not folder.is_dir():
        raise ResultsError(
            "there are no runs", where=str(folder), fix="name the results folder with --results"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    found = [n for n in names if n == part] or [n for n in names if part in n]
    if not found:
        raise UnknownNameError.of("run", part, names)
    if len(found) > 1:
        raise UnknownNameError(
            f"'{part}' is part of {len(found)} runs: {', '.join(found[:4])}", fix="write more of it"
        )
    return RunPaths(folder / found[0])


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    yield from (f"  {key:<40}{a.get(key)!s:>20}{b.get(key)!s:>20}" for key in keys)
    if not keys:
        yield "  none"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _counts(states: list[str]) -> str:
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "none"


def _kept(plan: Plan) -> list[str]:
    """How much room the teachers' kept checkpoints take, in words; nothing where none are kept."""
    kept = [p for p in plan.runs.values() if p.checkpoints]
    if not kept:
        return []
    count, unknown = sum(p.checkpoints for p in kept), sum(not p.parameters for p in kept)
    without = f", not counting {unknown} teachers whose classes are counted later" if unknown else ""
    room = _size(sum(p.bytes for p in kept))
    return [f"{count} checkpoints of {len(kept)} teachers are kept: about {room}{without}"]


def _size(size: float) -> str:
    """A number of bytes in the largest unit that leaves at least one."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _as_json(plan: Plan, states: Mapping[str, str]) -> dict[str, Any]:
    return {
        "runs": {
            name: {
                "state": states[name],
                "studies": p.studies,
                "teacher": p.teacher,
                "checkpoints": p.checkpoints,
                "checkpoint_bytes": p.bytes,
            }
            for name, p in plan.runs.items()
        }
        | {name: {"state": states[name], "studies": b.studies} for name, b in plan.benches.items()},
        "skipped": [
            {"study": name, "method": c.row, "teacher": c.teacher, "student": c.student, "why": c.skipped}
            for name, study in plan.studies.items()
            for c in study.cells
            if c.skipped
        ],
    }
