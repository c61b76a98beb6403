"""What an objective is given at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
"""Tap name -> shape of one sample (without the batch), `logits` included."""


Norms = dict[str, tuple[Tensor, Tensor]]
"""Tap name -> weight and bias (one number per channel) of the batch norm in front of that tap."""


@dataclass(frozen=True)
class Wish:
    """Which taps an objective wants to read, beside the logits.

    A name is a tap (`stage2`, `stage2.pre`, `embed`) or a group: `stages` and `stages.pre` stand for
    every stage of the network.

    Attributes:
        student, teacher: names of taps of each network.
        batch_statistics: the teacher's batch norms use the statistics of the batch, on a copy of it.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    batch_statistics: bool = False


@dataclass(frozen=True)
class Outputs:
    """What a network gave for a batch.

    Attributes:
        logits: B x C.
        taps: the wished-for taps by name, in the order of the network.
        more: the outputs for further inputs (`Method.inputs`), or of further peers (`Method.peers`).
    """

    logits: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    more: tuple[Outputs, ...] = ()

    def __getitem__(self, tap: str) -> Tensor:
        return self.taps[tap]


@dataclass(frozen=True)
class Batch:
    """A training batch on the run's device.

    Attributes:
        images: B x C x H x W float, augmented and normalised.
        labels: B, int64.
        index: B, int64: positions within the run's training subset, the same in every epoch.
        views: the same samples augmented again, independently, once for each of `Objective.views`.
        targets: B x C, what is learnt instead of the labels where a recipe has mixed them, else None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    views: tuple[Tensor, ...] = ()
    targets: Tensor | None = None


Gradients = list[Tensor | None]
"""One gradient per parameter; None where the loss does not reach it."""


def _as_they_are(gradients: Gradients) -> Gradients:
    return gradients


HeldOut = Callable[[], tuple[Tensor, Tensor]]
"""Measures logits (N x C, float32) and gives labels (N) of the validation images, on the CPU."""


@dataclass(frozen=True)
class Progress:
    """Where the training stands.

    Attributes:
        epoch: epochs finished, from 0; below 0 in a first stage (`Method.first_stage`).
        epochs: epochs in all, a first stage not counted.
        step: steps finished in this epoch, from 0.
        steps: steps in an epoch.
    """

    epoch: int
    epochs: int
    step: int = 0
    steps: int = 1

    @property
    def first_stage(self) -> bool:
        """Whether the method's first stage is on."""
        return self.epoch < 0


@dataclass(frozen=True)
class DataInfo:
    """What an objective may know of the training data.

    Attributes:
        num_classes: number of labels.
        labels: N, int64, on the CPU: the label of each training sample by index.
    """

    num_classes: int
    labels: Tensor

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.labels)


@dataclass(frozen=True)
class Trainable:
    """The parameters that the optimiser steps, by role.

    Attributes:
        backbone: the student without its classifier.
        classifier: the student's last linear layer.
        extra: the objective's own (adapters, auxiliary heads).
        mean: what makes gradients of the whole batch of those that one of several processes has. The engine
            does it to every `.grad`; an objective that compares gradients before has to do it to them.
    """

    backbone: Sequence[nn.Parameter]
    classifier: Sequence[nn.Parameter]
    extra: Sequence[nn.Parameter]
    mean: Callable[[Gradients], Gradients] = _as_they_are

    @property
    def all(self) -> list[nn.Parameter]:
        """All of them, in a fixed order."""
        return [*self.backbone, *self.classifier, *self.extra]
