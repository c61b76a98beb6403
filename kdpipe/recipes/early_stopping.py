"""The teacher of its best validation epoch."""

from __future__ import annotations

import math
from typing import Literal

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

Measure = Literal["nll", "accuracy"]


def quality(logits: Tensor, labels: Tensor, measure: Measure) -> float:
    """How good predictions are, more being better: minus the mean NLL (nats), or the accuracy (0 to 1).

    Args:
        logits: N x C.
        labels: N, int64.
        measure: which of the two.

    Returns:
        A float32's value; minus infinity where a logit is not finite.
    """
    if not logits.isfinite().all():
        return -math.inf
    if measure == "nll":
        return -float(cross_entropy(logits, labels))
    return float((logits.argmax(1) == labels).float().mean())


class EarlyStopping(Recipe):
    """Training that ends when validation images get no better, and goes back to its best epoch.

    Loss: `ce = CE(z, y)`. After each epoch the validation images are measured. Training ends once
    `patience` epochs have passed since the best; the network then gets the weights of that epoch back, also
    where training ran to its end. Of equally good epochs the first counts.

    State: weights and batch-norm statistics of the best epoch, its measure, and the epochs since.

    Taps: none.

    Deviations: any epoch without a new best counts, where Prechelt's criterion UP counts strips of five
    epochs in which the error rose. The protocol's schedule is not shortened: Cho and Hariharan, who find
    that such teachers teach better, train with fewer epochs instead, and a study may take any teacher
    as it was at an epoch.

    Reference: Prechelt 1998; Cho and Hariharan 2019, for distillation; named, without numbers,
    by Dong et al. 2024 (SoTeacher), section 6.
    """

    name = "early_stopping"
    unsettled = "the patience is kdpipe's choice"
    paper = Paper(
        "Early stopping - but when?",
        "L. Prechelt",
        "Neural Networks: Tricks of the Trade",
        1998,
        "https://doi.org/10.1007/3-540-49430-8_3",
    )
    needs_validation = True
    best: Tensor
    waited: Tensor

    class Config(Settings):
        """When to stop."""

        patience: int = hp(
            40,
            ge=1,
            epochs=True,
            doc="epochs without a new best after which training ends",
            source="assumption: the length of Prechelt's most patient criterion, eight strips of five epochs",
        )
        measure: Measure = hp(
            "nll",
            doc="what is measured on the validation images: negative log-likelihood or accuracy",
            source="Prechelt 1998: the error that is trained on",
        )

    config: Config

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Make room for the weights of the best epoch."""
        self.register_buffer("best", torch.tensor(-math.inf))
        self.register_buffer("waited", torch.tensor(0))
        for number, value in enumerate(model.state_dict().values()):
            self.register_buffer(f"kept{number}", value.detach().clone())

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels."""
        return {"ce": cross_entropy(s.logits, batch.labels)}

    def after_epoch(self, model: nn.Module, held_out: HeldOut | None, at: Progress) -> bool:
        """Keep the weights if they are the best so far; stop when the patience is over."""
        assert held_out is not None
        found = quality(*held_out(), self.config.measure)
        if found > self.best.item():
            self.best.fill_(found)
            self.waited.zero_()
            for kept, value in self._pairs(model):
                kept.copy_(value)
        else:
            self.waited += 1
        return int(self.waited) >= self.config.patience

    def finish(self, model: nn.Module, classifier: nn.Module, held_out: HeldOut | None) -> None:
        """Put the best epoch's weights back; a training without a finite epoch keeps what it has."""
        if self.best.isfinite():
            for kept, value in self._pairs(model):
                value.copy_(kept)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """What is kept and what the network has, tensor by tensor."""
        own = model.state_dict().values()
        return [(self.get_buffer(f"kept{number}"), value) for number, value in enumerate(own)]
