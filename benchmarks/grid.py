"""Seconds of an epoch of many logit students of one teacher: the usual loop, the teacher beside each, a bank.

Three ways to train the same grid on the same images: separate runs of the field's usual loop (`reference.py`,
ordinary KD whatever the method), kdpipe with a teacher beside each student, and kdpipe with a bank, whose
making counts. The ways take turns at every student, so that whatever else the machine does hits all alike.
Evaluation is left out everywhere. The figures that matter are the ratios.

    python -m benchmarks.grid --data data/cifar100 --samples 1280 --threads 2
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.reference import ReferenceLoop
from benchmarks.step import wait
from kdpipe.api import Progress
from kdpipe.core import registry
from kdpipe.core.paths import BankPaths, RunPaths
from kdpipe.core.specs import Bank, BankSpec, DataSpec, Part, Protocol, Run, RunSpec, TeacherRef
from kdpipe.engine.bank import make_bank
from kdpipe.engine.device import pick_device
from kdpipe.engine.prepare import Prepared, load, prepare, select
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import save_weights
from kdpipe.nn.banked import banks_for
from kdpipe.plan.config import read_protocol

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
METHODS = ("kd", "dkd", "dist", "ttm", "wttm", "binarykl_norm", "mse", "dhkd")


class Grid:
    """Students of one teacher, and its bank.

    Args:
        pair: TEACHER:STUDENT.
        prepared: CIFAR-100.
        protocol: of the students.
        samples: training images.
        folder: where weights and banks go.
        device: where everything runs.
        clock: tells the time, in seconds.
    """

    def __init__(
        self,
        pair: str,
        prepared: Prepared,
        protocol: Protocol,
        samples: int,
        folder: Path,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.teacher, self.student = pair.split(":")
        self.prepared, self.protocol, self.folder, self.device = prepared, protocol, folder, device
        self.data = DataSpec(dataset="cifar100", revision=1, train_samples=samples, test_samples=100)
        self.weights = folder / "teacher.safetensors"
        save_weights(registry.models.get(self.teacher).build(prepared.num_classes, 3), self.weights)

    def run(self, method: str) -> Run:
        """A student."""
        plugin = registry.methods.get(method)
        spec = RunSpec(
            data=self.data,
            model=Part(name=self.student, revision=1),
            protocol=self.protocol,
            method=Part(name=method, revision=1, settings=plugin.Config().model_dump(mode="json")),
            teacher=TeacherRef(run="benchmark"),
            seed=0,
        )
        return Run(spec=spec, label=method, protocol="crd240", pair=(self.teacher, self.student))

    def wanted(self, method: str) -> tuple[BankSpec, ...]:
        """The banks that a method's student reads."""
        plugin = registry.methods.get(method)
        return banks_for(self.run(method).spec, plugin(plugin.Config()))

    def make(self, spec: BankSpec) -> float:
        """Make a bank, whether it is there or not; returns the seconds."""
        paths, bank = self._paths(spec), Bank(spec=spec, label="bank", model=self.teacher)
        shutil.rmtree(paths.root, ignore_errors=True)
        start = self.clock()
        make_bank(bank, paths, self.prepared, [self.weights], self.device)
        return self.clock() - start

    def epoch(self, method: str, banked: bool) -> float:
        """Train a student for an epoch, all of its images, and return the seconds."""
        banks = [self._paths(spec).root for spec in self.wanted(method)] if banked else []
        trainer = Trainer(
            self.run(method), RunPaths(self.folder), self.prepared, [self.weights], self.device, banks=banks
        )
        trainer.model.train()
        wait(self.device)
        start = self.clock()
        assert trainer.teacher is not None
        trainer.teacher.begin(0)
        for step, batch in enumerate(trainer.batches.epoch(0)):
            trainer.step(batch, Progress(0, self.protocol.epochs, step, trainer.batches.steps))
        wait(self.device)
        return self.clock() - start

    def usual(self, workers: int) -> ReferenceLoop:
        """The usual loop for the pair."""
        train = select(self.prepared, self.data)["train"]
        student, teacher = (registry.models.get(n).build(100, 3) for n in (self.student, self.teacher))
        return ReferenceLoop(
            student, teacher, np.asarray(train.images).transpose(0, 3, 1, 2), train.labels,
            mean=self.prepared.mean, std=self.prepared.std, batch_size=self.protocol.batch_size,
            workers=workers, lr=self.protocol.lr, device=self.device,
        )  # fmt: skip

    def _paths(self, spec: BankSpec) -> BankPaths:
        return BankPaths(self.folder / spec.id)


def measure(grid: Grid, methods: Sequence[str], turns: int, workers: int) -> dict[str, list[float]]:
    """Seconds of an epoch of the whole grid in each turn, by way; those of its banks are `bank`."""
    usual = grid.usual(workers)
    steps = (grid.data.train_samples or 0) // grid.protocol.batch_size
    usual.run(1)  # its workers start
    banks = {spec.id: spec for method in methods for spec in grid.wanted(method)}
    seconds: dict[str, list[float]] = {"reference": [], "beside": [], "bank": [], "banked": []}
    for _ in range(turns):
        seconds["bank"].append(sum(map(grid.make, banks.values())))
        parts = []
        for method in methods:
            start = grid.clock()
            usual.run(steps)
            parts.append((grid.clock() - start, grid.epoch(method, False), grid.epoch(method, True)))
        for way, own in zip(("reference", "beside", "banked"), zip(*parts, strict=True), strict=True):
            seconds[way].append(sum(own))
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds CIFAR-100")
    parser.add_argument("--pair", default="resnet32x4:resnet8x4", metavar="TEACHER:STUDENT")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1280, help="training images; 50000 is a whole epoch")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="data workers of the usual loop")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of this process, where the machine is busy"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    protocol = read_protocol("crd240", Path("config")).settings.model_copy(
        update={"precision": asked.precision, "epochs": 1, "milestones": ()}
    )
    with tempfile.TemporaryDirectory() as place:
        prepare(registry.datasets.get("cifar100"), asked.data, Path(place) / "cifar100")
        prepared = load(Path(place) / "cifar100")
        device, clock = pick_device(asked.device), CLOCKS[asked.clock]
        grid = Grid(asked.pair, prepared, protocol, asked.samples, Path(place), device, clock)
        seconds = measure(grid, asked.methods, asked.turns, asked.workers)
    report(asked, seconds)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: str(v) for k, v in vars(asked).items() if k not in ("data", "out")}
        asked.out.write_text(
            json.dumps({"torch": torch.__version__, "settings": settings, "seconds": seconds})
        )


def report(asked: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Print medians, and the ratios of each turn."""
    whole = [bank + banked for bank, banked in zip(seconds["bank"], seconds["banked"], strict=True)]
    print(
        f"{len(asked.methods)} students of {asked.pair}, {asked.precision}, {asked.samples} images an epoch,"
    )
    print(f"{asked.threads} threads, {asked.turns} turns; torch {torch.__version__}")
    ways = {
        "usual loop": seconds["reference"],
        "kdpipe, teacher beside each": seconds["beside"],
        "kdpipe, bank and students": whole,
        "  of which the bank": seconds["bank"],
    }
    for way, own in ways.items():
        ratios = [usual / each for usual, each in zip(seconds["reference"], own, strict=True)]
        print(f"{way:<30}{statistics.median(own):>10.2f} s{statistics.median(ratios):>8.2f} x")


if __name__ == "__main__":
    main()
