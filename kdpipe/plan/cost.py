"""What a plan costs: hours by measured speed or by multiply-adds, room on disk, and the longest path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pydantic import Field

from kdpipe.core.errors import UnknownNameError, UserError
from kdpipe.core.files import read_json
from kdpipe.core.paths import Results, RunPaths
from kdpipe.core.specs import Frozen, Passes, RunSpec
from kdpipe.plan.banks import Banks
from kdpipe.plan.config import parse, read_yaml
from kdpipe.plan.plan import Plan, PlannedBank, PlannedRun

NO_BANKS = Banks()
FLOAT = 4  # bytes
INDEX = 16  # bytes of an image's label and place

Key = tuple[str, str | None, str | None, str, int, str, bool]
"""What a speed depends on, on one device: data set, networks, objective, batch size, precision, banks."""


Stored = tuple[str, Key | str, float]
"""Of a finished run: its device, what its speed depends on, and that; see `_stored`."""


class Device(Frozen):
    """A machine as `throughput.yaml` states it."""

    device: str
    rate: float = Field(gt=0, description="multiply-adds per second, over whole training steps")
    least_ms: float = Field(0.0, ge=0, description="milliseconds of a training step, however small")
    source: str


class Speed(Frozen):
    """A measured speed of training, as `throughput.yaml` states it."""

    device: str
    dataset: str
    teacher: str | None = None
    student: str | None = None
    objective: str = Field(description="name of the recipe or method")
    batch_size: int = Field(ge=2)
    precision: Passes = "float32"
    images_per_second: float = Field(gt=0)
    source: str


class ThroughputFile(Frozen):
    """`config/throughput.yaml`."""

    devices: tuple[Device, ...] = ()
    measured: tuple[Speed, ...] = ()


@dataclass(frozen=True)
class Rates:
    """How fast one device trains.

    Attributes:
        device: its name.
        rate: multiply-adds per second where a run's own speed is not known; 0 where neither is.
        least: seconds of a training step, however small, at that rate.
        source: where both come from.
        measured: training images per second.
        benches: seconds of a bench's run, by bench.
    """

    device: str
    rate: float
    source: str
    least: float = 0.0
    measured: Mapping[Key, float] = field(default_factory=dict)
    benches: Mapping[str, float] = field(default_factory=dict)


class Estimate(NamedTuple):
    """Seconds of a run, and whether they follow from the measured speed of runs like it."""

    seconds: float
    measured: bool


def estimate(planned: PlannedRun, rates: Rates, banked: bool = False) -> Estimate | None:
    """How long a run takes on a device; None where its images are not counted yet, or no speed is known.

        seconds = epochs (N / B max(B step / rate, least) + M forward / rate)

    for N training images an epoch in batches of B, M images predicted after it, and the multiply-adds of
    both. Where the images per second of such a run are measured, they make the rate, and nothing is least.
    GPUs that share a run are taken to share its work evenly, at no cost. A student that reads banks does
    without its teacher's passes; where only the speed of such students is measured, or only that of others,
    the other one follows from it.

    Args:
        planned: the run.
        rates: of the device.
        banked: whether it reads banks.
    """
    work = planned.work
    if work is None:
        return None
    each, speed = work.step - (work.taught if banked else 0), None
    for alike in (banked, not banked):
        speed = rates.measured.get(speed_key(planned.run.spec, planned.run.pair, alike))
        if speed:
            speed *= (work.step - (work.taught if alike else 0)) / each if each else 1
            break
    if not (speed or rates.rate):
        return None
    if not work.epochs:  # an imported network is only measured
        return Estimate(work.stored * work.forward / rates.rate, measured=False) if rates.rate else None
    rate = speed * each if speed else rates.rate
    batch = planned.run.spec.protocol.batch_size
    step = batch * each / rate if speed else max(batch * each / rate, rates.least)
    epoch = work.images / batch * step + work.watched * work.forward / rate
    return Estimate(work.epochs * epoch / planned.run.gpus, speed is not None)


def making(planned: PlannedBank, rates: Rates) -> float | None:
    """Seconds that it takes to make a bank; None where that is not known."""
    return planned.passes / rates.rate if planned.passes and rates.rate else None


def seconds_of(plan: Plan, rates: Rates, banks: Banks) -> dict[str, float]:
    """Seconds of every run, and of every bank that students read, as far as they are known."""
    runs = {name: estimate(run, rates, name in banks.of) for name, run in plan.runs.items()}
    made = {bank: making(plan.banks[bank], rates) for bank in banks.markers}
    return {name: known.seconds for name, known in runs.items() if known} | {
        bank: seconds for bank, seconds in made.items() if seconds is not None
    }


def speed_key(spec: RunSpec, pair: tuple[str | None, str | None], banked: bool = False) -> Key:
    """What a run's speed depends on."""
    protocol = spec.protocol
    taught = "" if banked or protocol.taught_in == protocol.precision else f", taught in {protocol.taught_in}"
    precision = f"{protocol.precision}{taught}"
    return (spec.data.dataset, *pair, spec.objective.name, protocol.batch_size, precision, banked)


def room(planned: PlannedRun) -> int:
    """Bytes that a run leaves: weights, kept checkpoints, predictions of each, features; 0 is not known.

    Without the histories, which are small, and the resume state, which is removed at the end.
    """
    work = planned.work
    if work is None:
        return 0
    weights = FLOAT * planned.parameters * work.networks
    predictions = work.stored * (FLOAT * work.classes + INDEX) * (1 + planned.checkpoints)
    seen = work.images + work.stored if planned.features else 0
    features = seen * (FLOAT * (work.classes + work.width) + INDEX) * (1 + planned.checkpoints)
    return weights + planned.bytes + predictions + features


def prepared(plan: Plan) -> int:
    """Bytes of the prepared data sets, where their sizes are known."""
    return sum({p.data: p.work.data for p in plan.runs.values() if p.work}.values())


def longest_path(plan: Plan, rates: Rates, banks: Banks = NO_BANKS) -> list[tuple[str, float]]:
    """The runs and banks that follow each other for the longest time, in order, each with its seconds.

    No number of machines finishes the plan sooner. Runs without an estimate take no time here.
    """
    seconds = seconds_of(plan, rates, banks)
    needs = {name: [*plan.needs(name), *banks.of.get(name, ())] for name in plan.runs}
    needs |= {bank: [plan.banks[bank].teacher] for bank in banks.markers}
    ends: dict[str, float] = {}
    for name in TopologicalSorter(needs).static_order():
        ends[name] = max((ends[b] for b in needs[name]), default=0.0) + seconds.get(name, 0.0)
    path: list[tuple[str, float]] = []
    last = max(ends, key=lambda run: ends[run], default=None)
    while last:
        before = max(needs[last], key=lambda run: ends[run], default=None)
        path.append((last, ends[last] - (ends[before] if before else 0.0)))
        last = before
    return path[::-1]


def read_rates(plan: Plan, results: Results, folder: Path, device: str = "") -> Rates | None:
    """How fast a device trains, from the runs that the results folder holds, then from `throughput.yaml`.

    Args:
        plan: its runs' multiply-adds turn measured speeds into a rate.
        results: the results folder.
        folder: the config folder.
        device: part of the device's name; by default the GPU that most of the stored runs were made on, if
            runs of the plan are among their kinds, then the first of `throughput.yaml`, then processors that
            stored runs were made on.

    Returns:
        None where neither knows any device.

    Raises:
        UnknownNameError: no device has that name.
        ConfigError: `throughput.yaml` is wrong.
    """
    path = folder / "throughput.yaml"
    file = parse(ThroughputFile, read_yaml(path) if path.is_file() else {}, str(path))
    stored = list(_stored(results))
    made_on = Counter(own for own, *_ in stored)
    found = [name for name, _ in made_on.most_common()]
    stated = [*(entry.device for entry in file.devices), *(speed.device for speed in file.measured)]
    names = list(dict.fromkeys([*filter(_is_gpu, found), *stated, *found]))
    if device:
        chosen = next((name for name in names if device.casefold() in name.casefold()), None)
        if chosen is None:
            raise UnknownNameError.of("device", device, names, where="--device")
        return _rates(plan, chosen, stored, file)
    known = [_rates(plan, name, stored, file) for name in names]
    trains = next((rates for rates in known if rates.rate), None) if plan.runs else None
    return trains or next((rates for rates in known if rates.benches), None)


def _is_gpu(device: str) -> bool:
    return "nvidia" in device.casefold()


def _rates(plan: Plan, device: str, stored: Sequence[Stored], file: ThroughputFile) -> Rates:
    """How fast one device trains."""
    speeds: dict[Key, list[float]] = {}
    benches: dict[str, list[float]] = {}
    for own, key, value in stored:
        if own != device:
            continue
        if isinstance(key, str):
            benches.setdefault(key, []).append(value)
        else:
            speeds.setdefault(key, []).append(value)
    measured: dict[Key, float] = {
        (s.dataset, s.teacher, s.student, s.objective, s.batch_size, s.precision, False): s.images_per_second
        for s in file.measured
        if s.device == device
    }
    measured |= {key: median(values) for key, values in speeds.items()}
    rate, least, source = _rate(plan, device, measured, file)
    return Rates(device, rate, source, least, measured, {name: median(v) for name, v in benches.items()})


def _rate(
    plan: Plan, device: str, measured: Mapping[Key, float], file: ThroughputFile
) -> tuple[float, float, str]:
    """Multiply-adds per second of a device, seconds of its smallest step, and where both come from."""
    stated = next((entry for entry in file.devices if entry.device == device), None)
    if stated:
        return stated.rate, stated.least_ms / 1000, stated.source
    reached = {}
    for planned in plan.runs.values():
        for banked in (False, True):
            key = speed_key(planned.run.spec, planned.run.pair, banked)
            if planned.work and planned.work.step and key in measured:
                step = planned.work.step - (planned.work.taught if banked else 0)
                reached[key] = measured[key] * step
    if not reached:
        return 0.0, 0.0, ""
    count = len(reached)
    return median(reached.values()), 0.0, f"the median of {count} measured kind{'s' * (count > 1)} of runs"


def _stored(results: Results) -> Iterator[Stored]:
    """Of every finished run: its device, what its speed depends on, and training images per second of one.

    Of a bench's run: its device, the bench, and seconds. What cannot be read is left out: it is the
    business of `kdpipe verify`.
    """
    folder = results.root / "runs"
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        paths = RunPaths(place)
        if not paths.provenance.is_file():
            continue
        try:
            record, run = read_json(paths.provenance), read_json(paths.spec)
            threads = f", {record['threads']} thread{'s' * (record['threads'] > 1)}"
            device = record["device"] + ("" if _is_gpu(record["device"]) else threads)
            if "bench" in run["spec"]:
                yield device, run["spec"]["bench"]["name"], float(record["seconds"])
                continue
            steps = [value for name, value in record["cost"].items() if name.startswith("ms_")]
            if steps:
                spec, (teacher, student) = RunSpec.model_validate(run["spec"]), run["pair"]
                speed = 1000 * spec.protocol.batch_size / sum(steps) / record.get("processes", 1)
                yield device, speed_key(spec, (teacher, student), bool(record.get("banks"))), speed
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            continue


@dataclass(frozen=True)
class Bill:
    """What some runs cost together.

    Attributes:
        hours: of one device; those of a run that several share count for each.
        left: hours of those that are not made yet.
        measured, computed, unknown: how many runs are estimated by measured speed, by multiply-adds, or
            not at all.
        disk: bytes.
    """

    hours: float
    left: float
    measured: int
    computed: int
    unknown: int
    disk: int


def bill(
    plan: Plan, names: Iterable[str], rates: Rates, made: Mapping[str, bool], banks: Banks = NO_BANKS
) -> Bill:
    """What the runs called `names` cost, without the banks that some of them read.

    Args:
        plan: holds them.
        names: of runs, those of benches included.
        rates: of the device.
        made: whether each run's results are there.
        banks: the banks that are read.
    """
    hours = left = 0.0
    counts: Counter[str] = Counter()
    disk = 0
    for name in names:
        if name in plan.benches:
            seconds = rates.benches.get(plan.benches[name].run.spec.bench.name)
            known = None if seconds is None else Estimate(seconds, measured=True)
        else:
            known = estimate(plan.runs[name], rates, name in banks.of)
            disk += room(plan.runs[name])
        kind = "unknown" if known is None else "measured" if known.measured else "computed"
        counts[kind] += 1
        devices = 1 if name in plan.benches else plan.runs[name].run.gpus
        own = devices * known.seconds / 3600 if known else 0.0
        hours += own
        left += 0.0 if made[name] else own
    return Bill(hours, left, counts["measured"], counts["computed"], counts["unknown"], disk)
