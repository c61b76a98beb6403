"""Images per second of a distillation step: kdpipe's engine beside the field's usual loop.

All train the same student under the same frozen teacher on the same images, each in a process of its own;
their slices take turns, so that whatever else the machine does hits all alike. The figures that matter are
the ratios to the usual loop.

    python -m benchmarks step --data data/cifar100
"""

from __future__ import annotations

import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.figures import Figure
from benchmarks.racing import Lap, Loop, race
from benchmarks.reference import ReferenceLoop, as_planes
from kdpipe.api import Batch, Outputs, Progress
from kdpipe.core import registry
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Compile, DataSpec, Part, Run, RunSpec, TeacherRef
from kdpipe.engine import batches, teacher
from kdpipe.engine.allocator import keep_freed_memory
from kdpipe.engine.prepare import Prepared, load, select
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import save_weights
from kdpipe.nn.cost import cost
from kdpipe.plan.config import read_protocol

PAIRS = ("resnet32x4:resnet8x4", "wrn_40_2:wrn_16_2")
METHODS = ("scratch", "dkd", "fitnet", "rkd", "pkt", "nst", "crd", "reviewkd")
LEVERS = {  # row -> the settings of `Entrant` that make it
    "kdpipe": {},
    "kdpipe, freed memory given back": {"without": "memory"},
    "kdpipe, not channels-last": {"without": "channels_last"},
    "kdpipe, batch norms not folded": {"without": "fold"},
    "kdpipe, teacher in bfloat16": {"teacher_precision": "bfloat16"},
    "kdpipe, stored logits": {"stored": True},
    "kdpipe, bfloat16": {"precision": "bfloat16"},
    "kdpipe, bfloat16, stored logits": {"precision": "bfloat16", "stored": True},
    "kdpipe, compiled": {"compile": True},
    "kdpipe, CUDA graphs": {"compile": "graphs"},
    "kdpipe, CUDA graphs, bfloat16": {"compile": "graphs", "precision": "bfloat16"},
    "kdpipe, CUDA graphs, bfloat16, stored logits": {
        "compile": "graphs",
        "precision": "bfloat16",
        "stored": True,
    },
}
SLOW_TO_START = {name for name, settings in LEVERS.items() if "compile" in settings}
REFERENCE, CEILING, COPIES = "reference", "ceiling", "copies"


class EngineLoop:
    """kdpipe's training, taken a few steps at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.opaque = trainer.run.spec.protocol.compile is True
        trainer.model.train()
        self._batches = self._endless()

    def run(self, steps: int) -> float:
        """Take `steps` steps and return the seconds they took."""
        wait(self.trainer.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.trainer.step(*next(self._batches))
        wait(self.trainer.device)
        return time.perf_counter() - start

    def _endless(self) -> Iterator[tuple[Batch, Progress]]:
        epoch = 0
        while True:
            for batch in self.trainer.batches.epoch(epoch):
                if len(batch.labels) == self.trainer.batches.size:
                    yield batch, Progress(epoch, 240)
            epoch += 1


class Yardstick(ABC):
    """What the hardware can do: one operation, again and again.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def once(self) -> None:
        """The operation."""

    @torch.no_grad()
    def run(self, steps: int) -> float:
        """Take `steps` steps and return the seconds they took."""
        wait(self.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.once()
        wait(self.device)
        return time.perf_counter() - start


class Convolutions(Yardstick):
    """3 x 3 convolutions such as these networks consist of, channels-last."""

    def __init__(self, device: torch.device, batch: int = 64) -> None:
        super().__init__(device)
        like = {"device": device, "memory_format": torch.channels_last}
        self.images = torch.randn(batch, 128, 16, 16).to(**like)  # type: ignore[call-overload]
        self.weight = torch.randn(128, 128, 3, 3).to(**like)  # type: ignore[call-overload]

    @property
    def flops(self) -> float:
        """Floating-point operations of one step."""
        return 2.0 * self.images.numel() * self.weight[0].numel()

    def once(self) -> None:
        """One convolution."""
        F.conv2d(self.images, self.weight, padding=1)


class Copies(Yardstick):
    """Copies that no cache holds."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.numbers, self.place = torch.ones(2, 2**26, device=device)  # 256 MiB each

    def once(self) -> None:
        """One copy."""
        self.place.copy_(self.numbers)


class Stored:
    """Logits of every sample in place of a teacher: what a run from a bank costs.

    Args:
        logits: N x C, on the device.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.models, self.finite = logits, nn.ModuleList(), True

    def __call__(self, inputs: Sequence[Tensor], index: Tensor) -> Outputs:
        """The samples' logits."""
        return Outputs(self.logits[index])


def wait(device: torch.device) -> None:
    """Wait for the device to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Entrant:
    """What is timed; calling it makes the loop, in the process that runs it.

    Attributes:
        data: the prepared data set.
        pair: teacher and student, `TEACHER:STUDENT`.
        kind: kdpipe's loop, the usual one, or a yardstick of the hardware.
        method: how it distils.
        precision, teacher_precision, compile: as in a protocol.
        stored: whether stored logits stand in for the teacher.
        without: a lever that is taken away: `memory`, `channels_last` or `fold`.
        samples: training images.
        threads: of the processor.
        device: where it trains.
    """

    data: Path
    pair: str = PAIRS[0]
    kind: str = "kdpipe"
    method: str = "kd"
    precision: str = "float32"
    teacher_precision: str | None = None
    compile: Compile = False
    stored: bool = False
    without: str = ""
    samples: int = 5000
    threads: int = 1
    device: str = "cpu"

    def __call__(self) -> Loop:
        """The loop."""
        torch.set_num_threads(self.threads)
        prepared, device = load(self.data), torch.device(self.device)
        if self.kind == REFERENCE:
            return self._reference(prepared, device)
        if self.without != "memory":
            keep_freed_memory()
        if self.kind == CEILING:
            return Convolutions(device)
        if self.kind == COPIES:
            return Copies(device)
        if self.without == "fold":
            teacher.fold_batch_norm = nn.Module.eval
        if self.without == "channels_last":
            usual = batches.Normalise.__call__
            torch.channels_last = torch.contiguous_format
            batches.Normalise.__call__ = lambda *given: usual(*given).contiguous()
        return EngineLoop(self._trainer(prepared, device))

    def flops(self, prepared: Prepared) -> float:
        """Operations of one step: the student forward and backward (twice that), the teacher forward."""
        mine, theirs = (
            cost(self._network(prepared, n), prepared.shape).multiply_adds for n in self._names[::-1]
        )
        taught = 0 if self.stored or self.method == "scratch" else theirs
        return 2.0 * 64 * (3 * mine + taught)

    @property
    def _names(self) -> list[str]:
        return self.pair.split(":")

    def _network(self, prepared: Prepared, name: str) -> nn.Module:
        network: nn.Module = registry.models.get(name).build(prepared.num_classes, prepared.shape[0])
        return network

    def _trainer(self, prepared: Prepared, device: torch.device) -> Trainer:
        method = registry.methods.get(self.method)
        teacher_name, student_name = self._names
        levers = {name: getattr(self, name) for name in ("precision", "teacher_precision", "compile")}
        protocol = read_protocol("crd240", Path("config")).settings.model_copy(update=levers)
        spec = RunSpec(
            data=DataSpec(dataset=prepared.name, revision=1, train_samples=self.samples, test_samples=100),
            model=Part(name=student_name, revision=1),
            protocol=protocol,
            method=Part(name=self.method, revision=1, settings=method.Config().model_dump(mode="json")),
            teacher=TeacherRef(run="benchmark") if method.teacher else None,
            seed=0,
        )
        pair = (teacher_name if method.teacher else None, student_name)
        run = Run(spec=spec, label=self.pair, protocol="crd240", pair=pair)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "teacher.safetensors"
            save_weights(self._network(prepared, teacher_name), weights)
            trainer = Trainer(
                run, RunPaths(Path(folder)), prepared, [weights] if method.teacher else [], device
            )
        if self.stored:
            logits = torch.randn(trainer.batches.samples, prepared.num_classes, device=device)
            trainer.teacher = Stored(logits)  # type: ignore[assignment]
        return trainer

    def _reference(self, prepared: Prepared, device: torch.device) -> ReferenceLoop:
        networks = (self._network(prepared, name) for name in self._names[::-1])
        data = DataSpec(dataset=prepared.name, revision=1, train_samples=self.samples, test_samples=100)
        train = select(prepared, data)["train"]
        return ReferenceLoop(
            *networks,
            as_planes(train),
            train.labels,
            mean=prepared.mean,
            std=prepared.std,
            device=device,
        )


def measure(racers: dict[str, Any], slices: int, steps: int, batch: int) -> dict[str, list[float]]:
    """Images per second of loops of this process in interleaved slices, after a warm-up slice."""
    rates: dict[str, list[float]] = {name: [] for name in racers}
    for turn in range(slices + 1):
        for name, racer in racers.items():
            seconds = racer.run(steps)
            if turn:
                rates[name].append(steps * batch / seconds)
    return rates


def levers(
    plain: Entrant, slices: int, steps: int, chosen: Sequence[str], pairs: Sequence[str] = PAIRS
) -> Iterator[Figure]:
    """KD by lever, for each pair: images per second, and how many times those of the usual loop."""
    prepared = load(plain.data)
    for pair in pairs:
        of_pair = replace(plain, pair=pair)
        rows = {name: replace(of_pair, **LEVERS[name]) for name in chosen}
        yield from _rows("step", pair.replace(":", " to "), of_pair, rows, prepared, slices, steps)


def methods(
    plain: Entrant, slices: int, steps: int, chosen: Sequence[str], pairs: Sequence[str] = PAIRS[1:]
) -> Iterator[Figure]:
    """Other methods, as they are by default, beside the usual loop's KD."""
    prepared = load(plain.data)
    for pair in pairs:
        of_pair = replace(plain, pair=pair)
        rows = {name: replace(of_pair, method=name) for name in chosen}
        yield from _rows("methods", pair.replace(":", " to "), of_pair, rows, prepared, slices, steps)


def packing(
    plain: Entrant,
    slices: int,
    steps: int,
    counts: Sequence[int],
    pairs: Sequence[str] = PAIRS,
    chosen: Sequence[str] = ("kdpipe",),
) -> Iterator[Figure]:
    """Runs that train at once, in a process each, on the same device or with their share of the threads.

    Images per second of all of them together, and how many times those of the usual loop, alone.
    """
    for pair in pairs:
        of_pair, about = replace(plain, pair=pair), pair.replace(":", " to ")
        rows, copies = {}, {}
        for name, n in product(chosen, counts):
            row = f"{n} at once" + name.removeprefix("kdpipe")
            rows[row] = replace(of_pair, threads=max(1, plain.threads // n), **LEVERS[name])
            copies[row] = n
        laps = race({REFERENCE: replace(of_pair, kind=REFERENCE), **rows}, slices, steps, copies)
        usual = laps[REFERENCE]
        for name, n in copies.items():
            own = [n * u / k for u, k in zip(usual.seconds, laps[name].seconds, strict=True)]
            all_rate = n * _rate(laps[name], steps)
            yield Figure("packing", f"{about}, {name}", all_rate, "images/s", statistics.median(own), "more")


def _rows(
    part: str,
    about: str,
    plain: Entrant,
    rows: dict[str, Entrant],
    prepared: Prepared,
    slices: int,
    steps: int,
) -> Iterator[Figure]:
    yardsticks = {kind: replace(plain, kind=kind) for kind in (REFERENCE, CEILING, COPIES)}
    laps = race({**yardsticks, **rows}, slices, steps)
    usual, ceiling, copies = laps[REFERENCE], laps[CEILING], laps[COPIES]
    most = Convolutions(torch.device("cpu")).flops * steps / statistics.median(ceiling.seconds)
    rate = partial(_rate, steps=steps)
    yield Figure(part, f"{about}, the usual loop's KD", rate(usual), "images/s")
    for name, entrant in rows.items():
        lap = laps[name]
        ratio = statistics.median(u / k for u, k in zip(usual.seconds, lap.seconds, strict=True))
        yield Figure(part, f"{about}, {name}", rate(lap), "images/s", ratio, "more")
        used = entrant.flops(prepared) * steps / statistics.median(lap.seconds)
        yield Figure("roofline", f"{about}, {name}", 100 * used / most, "% of convolutions' speed")
        if lap.moved and copies.moved:
            share = lap.moved / statistics.median(lap.seconds)
            share /= copies.moved / statistics.median(copies.seconds)
            yield Figure("bandwidth", f"{about}, {name}", 100 * share, "% of copying's speed")
        yield Figure("memory", f"{about}, {name}", lap.peak_mib, "MiB", lap.peak_mib / usual.peak_mib)
        if lap.launches is not None and usual.launches:
            fewer = lap.launches / usual.launches
            yield Figure("launches", f"{about}, {name}", lap.launches, "launches of a GPU, a step", fewer)


def _rate(lap: Lap, steps: int) -> float:
    return 64 * steps / statistics.median(lap.seconds)
