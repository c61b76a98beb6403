"""The teacher averaged over the last part of its training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    HeldOut,
    Outputs,
    Paper,
    Progress,
    Recipe,
    Settings,
    Shapes,
    hp,
)
from kdpipe.nn.logits import cross_entropy


class SWA(Recipe):
    """Stochastic weight averaging: the mean of the weights after each of the last epochs.

    Loss: `ce = CE(z, y)`. Of E epochs, those from number `start E` on (rounded) are averaged, all equally,
    and those after that one train at a constant rate. The batch norms' statistics are then measured anew on
    the training images.

    State: the average so far (as large as the network), and how many epochs are in it.

    Taps: none.

    Deviations: before `start` the rate is the protocol's, where the authors' code falls linearly to the
    constant rate. The constant rate is a share of the protocol's first, so that it suits networks with
    another. A teacher that a study takes at an earlier epoch is not averaged.

    Reference: Izmailov et al. 2018, section 3.2 and Algorithm 1; an option of shwinshaker/SoTeacher, there
    with the protocol's own rates (`rate: null`).
    """

    name = "swa"
    paper = Paper(
        "Averaging weights leads to wider optima and better generalization",
        "P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson",
        "UAI",
        2018,
        "https://arxiv.org/abs/1803.05407",
    )
    recalibrate = True
    averaged: Tensor

    class Config(Settings):
        """What is averaged, and how it is trained meanwhile."""

        start: float = hp(
            0.625,
            ge=0,
            le=1,
            doc="share of the epochs after which the first weights are taken",
            source="shwinshaker/SoTeacher: 150 of 240 (timgaripov/swa: 126 of 225, 161 of 300)",
        )
        rate: float | None = hp(
            0.5,
            gt=0,
            doc="constant rate from there on, as a share of the protocol's first; null: its schedule",
            source="timgaripov/swa, residual networks on CIFAR-100: 0.05 after 0.1 (VGG: 0.01 after 0.05)",
        )

    config: Config

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Make room for the average."""
        self.register_buffer("averaged", torch.tensor(0))
        for number, parameter in enumerate(model.parameters()):
            self.register_buffer(f"mean{number}", torch.zeros_like(parameter.detach()))

    def rate(self, at: Progress, planned: Callable[[int], float]) -> float:
        """The constant rate after the first epoch that is averaged."""
        if self.config.rate is None or at.epoch < self._first(at):
            return planned(at.epoch)
        return self.config.rate * planned(0)

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels."""
        return {"ce": cross_entropy(s.logits, batch.labels)}

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, held_out: HeldOut | None, at: Progress) -> bool:
        """Take the weights into the average."""
        if at.epoch + 1 >= self._first(at):
            self.averaged += 1
            for mean, parameter in self._pairs(model):
                mean.lerp_(parameter, 1 / int(self.averaged))
        return False

    @torch.no_grad()
    def finish(self, model: nn.Module, classifier: nn.Module, held_out: HeldOut | None) -> None:
        """Put the average into the network; one that collapsed before it began keeps what it has."""
        if self.averaged:
            for mean, parameter in self._pairs(model):
                parameter.copy_(mean)

    def _first(self, at: Progress) -> int:
        """The first epoch that is averaged, counted from 1."""
        return round(self.config.start * at.epochs)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The average and the network's own, tensor by tensor."""
        return [(self.get_buffer(f"mean{number}"), p) for number, p in enumerate(model.parameters())]
