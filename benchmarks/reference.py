"""The field's usual distillation loop, written anew as the yardstick for `benchmarks/step.py`.

It does what public KD code commonly does: each image becomes a PIL image that workers crop, flip, turn into a
tensor and normalise; the loop steps eagerly in float32, runs the teacher under `no_grad` for every batch, and
reads the loss and the accuracy back for its meters after every step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdpipe.api import Split
from kdpipe.core import registry
from kdpipe.core.specs import DataSpec
from kdpipe.engine.prepare import load, select

TEMPERATURE = 4.0
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9


class PilImages(Dataset[tuple[Tensor, int, int]]):
    """Images that are augmented one by one, through PIL.

    Args:
        images: N x C x H x W, uint8, with three channels.
        labels: N, int64.
        mean, std: per-channel normalisation of images in [0, 1].
        train: whether they are cropped and flipped.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        train: bool = True,
    ) -> None:
        self.images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.labels = labels
        augment = [
            transforms.RandomCrop(images.shape[-1], padding=4),
            transforms.RandomHorizontalFlip(),
        ]
        self.transform = transforms.Compose(
            [*(augment if train else ()), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index]), index


class ReferenceLoop:
    """Ordinary KD, step after step; it keeps its place, so that it can be timed in slices.

    Args:
        student, teacher: networks that return logits.
        images: N x C x H x W, uint8, with three channels.
        labels: N, int64.
        mean, std: per-channel normalisation of images in [0, 1].
        batch_size: images in a step.
        workers: processes that load data; 0 loads in this one.
        keep_workers: whether they outlive an epoch, so that no slice pays for their start.
        lr: rate of SGD with momentum 0.9 and weight decay 5e-4.
        device: where the networks are.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 64,
        workers: int = 2,
        keep_workers: bool = True,
        lr: float = 0.05,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.mean, self.std = mean, std
        self.student = student.to(self.device).train()
        self.teacher = teacher.to(self.device).eval()
        self.optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        self.loader = DataLoader(
            PilImages(images, labels, mean, std),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=keep_workers and workers > 0,
        )
        if len(self.loader) == 0:
            raise ValueError(f"{len(images)} images are less than one batch of {batch_size}")
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self._batches = self._endless()

    def run(self, steps: int) -> float:
        """Take `steps` steps and return the seconds they took, data loading included."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self._step(*next(self._batches))
        self._wait()
        return time.perf_counter() - start

    def epoch(self) -> None:
        """Take the steps of an epoch."""
        for batch in self.loader:
            self._step(*batch)

    @torch.no_grad()
    def test(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """The student's accuracy on other images of the same form; workers load them, too."""
        shown = PilImages(images, labels, self.mean, self.std, train=False)
        loader = DataLoader(shown, batch_size=self.loader.batch_size, num_workers=self.loader.num_workers)
        self.student.eval()
        right = 0.0
        for images, labels, _index in loader:
            logits = self.student(images.to(self.device))
            right += (logits.argmax(1) == labels.to(self.device)).float().sum().item()
        self.student.train()
        return right / len(shown)

    def _step(self, images: Tensor, labels: Tensor, _index: Tensor) -> None:
        images, labels = images.to(self.device), labels.to(self.device)
        logits = self.student(images)
        with torch.no_grad():
            taught = self.teacher(images)
        loss = CE_WEIGHT * F.cross_entropy(logits, labels) + KD_WEIGHT * kd_loss(logits, taught)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.accuracies.append((logits.argmax(1) == labels).float().mean().item())

    def _endless(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def kd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits are B x C."""
    log_p = F.log_softmax(student / TEMPERATURE, dim=1)
    q = F.softmax(teacher / TEMPERATURE, dim=1)
    return F.kl_div(log_p, q, reduction="batchmean") * TEMPERATURE**2


def main() -> None:
    """Train a student for an epoch, measure it and write it: what a script of the field is called for."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="prepared images")
    parser.add_argument("--pair", required=True, metavar="TEACHER:STUDENT")
    parser.add_argument("--samples", type=int, help="training images")
    parser.add_argument("--tests", type=int, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that load data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="where the student goes")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    prepared = load(asked.data)
    data = DataSpec(dataset=prepared.name, revision=1, train_samples=asked.samples, test_samples=asked.tests)
    splits = {name: (as_planes(part), part.labels) for name, part in select(prepared, data).items()}
    teacher, student = (
        registry.models.get(name).build(prepared.num_classes, prepared.shape[0])
        for name in asked.pair.split(":")
    )
    loop = ReferenceLoop(
        student, teacher, *splits["train"], mean=prepared.mean, std=prepared.std,
        workers=asked.workers, keep_workers=False, device=asked.device,
    )  # fmt: skip
    loop.epoch()
    print(f"{100 * loop.test(*splits['test']):.2f} % of the test images")
    torch.save(student.state_dict(), asked.out)


def as_planes(split: Split) -> NDArray[np.uint8]:
    """A split's images, N x C x H x W."""
    return np.asarray(split.images).transpose(0, 3, 1, 2)


if __name__ == "__main__":
    main()
