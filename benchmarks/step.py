"""Images per second of a distillation step: kdpipe's engine beside the field's usual loop.

Both train the same student under the same frozen teacher with ordinary KD on the same images; their
slices are interleaved, so that whatever else the machine does hits both alike. The figures that matter
are the ratios.

    python -m benchmarks.step --data data/cifar100
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reference import ReferenceLoop
from kdpipe.api import Batch, Progress
from kdpipe.core import registry
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec, TeacherRef
from kdpipe.engine.device import pick_device
from kdpipe.engine.prepare import Prepared, load, prepare, select
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import save_weights
from kdpipe.plan.config import read_protocol

PAIRS = ("resnet32x4:resnet8x4", "wrn_40_2:wrn_16_2")


class EngineLoop:
    """kdpipe's training, taken a few steps at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
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


def wait(device: torch.device) -> None:
    """Wait for the device to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loops(
    pair: str, prepared: Prepared, protocol: Protocol, samples: int, device: torch.device, workers: int
) -> dict[str, Any]:
    """The two loops for a pair, with equal starting weights."""
    teacher_name, student_name = pair.split(":")
    data = DataSpec(dataset="cifar100", revision=1, train_samples=samples, test_samples=100)
    method = registry.methods.get("kd")
    spec = RunSpec(
        data=data,
        model=Part(name=student_name, revision=1),
        protocol=protocol,
        method=Part(name="kd", revision=1, settings=method.Config().model_dump(mode="json")),
        teacher=TeacherRef(run="benchmark"),
        seed=0,
    )
    run = Run(spec=spec, label=pair, protocol="crd240", pair=(teacher_name, student_name))
    teacher = registry.models.get(teacher_name).build(prepared.num_classes, 3)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "teacher.safetensors"
        save_weights(teacher, weights)
        trainer = Trainer(run, RunPaths(Path(folder)), prepared, [weights], device)
    student = registry.models.get(student_name).build(prepared.num_classes, 3)
    student.load_state_dict(trainer.model.state_dict())
    train = select(prepared, data)["train"]
    images = np.asarray(train.images)
    reference = ReferenceLoop(
        student, teacher, images.transpose(0, 3, 1, 2), train.labels, mean=prepared.mean, std=prepared.std,
        batch_size=protocol.batch_size, workers=workers, lr=protocol.lr, device=device,
    )  # fmt: skip
    return {"reference": reference, "kdpipe": EngineLoop(trainer)}


def measure(racers: dict[str, Any], slices: int, steps: int, batch: int) -> dict[str, list[float]]:
    """Images per second of each racer in each of `slices` interleaved slices, after a warm-up slice."""
    rates: dict[str, list[float]] = {name: [] for name in racers}
    for turn in range(slices + 1):
        for name, racer in racers.items():
            seconds = racer.run(steps)
            if turn:
                rates[name].append(steps * batch / seconds)
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds CIFAR-100")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT")
    parser.add_argument("--slices", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="steps in a slice")
    parser.add_argument("--samples", type=int, default=5000, help="training images")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2, help="data workers of the usual loop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    protocol = read_protocol("crd240", Path("config")).settings.model_copy(
        update={"precision": asked.precision}
    )
    spec = registry.datasets.get("cifar100")
    with tempfile.TemporaryDirectory() as folder:
        prepare(spec, asked.data, Path(folder) / "cifar100")
        prepared = load(Path(folder) / "cifar100")
        figures = {}
        for pair in asked.pairs:
            racers = loops(pair, prepared, protocol, asked.samples, device, asked.workers)
            figures[pair] = measure(racers, asked.slices, asked.steps, protocol.batch_size)

    print(
        f"{asked.precision}, batch {protocol.batch_size}, {asked.threads} threads, {asked.slices} slices of"
    )
    print(f"{asked.steps} steps; torch {torch.__version__}, {platform.processor() or platform.machine()}")
    print(f"{'pair':<24}{'reference img/s':>18}{'kdpipe img/s':>16}{'ratio':>8}")
    for pair, rates in figures.items():
        ratios = [k / r for k, r in zip(rates["kdpipe"], rates["reference"], strict=True)]
        medians = [statistics.median(rates[name]) for name in ("reference", "kdpipe")]
        print(f"{pair:<24}{medians[0]:>18.1f}{medians[1]:>16.1f}{statistics.median(ratios):>8.2f}")
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: str(v) for k, v in vars(asked).items() if k not in ("data", "out")}
        asked.out.write_text(
            json.dumps({"torch": torch.__version__, "settings": settings, "images_per_second": figures})
        )


if __name__ == "__main__":
    main()
