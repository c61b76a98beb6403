"""Self-distillation with weighted ground truth: each network learns from labels and from the one before."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.nn.logits import cross_entropy, full, kl


def probability_mse(student: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of probabilities over classes and batch: `mean_ic (softmax(z)_ic - q_ic)^2`.

    Args:
        student: logits z, B x C.
        targets: probabilities q, B x C, without gradient.

    Returns:
        A scalar from 0 to 2 / C.

    Source: Borup and Andersen 2021, section 5.1 and footnote 12.
    """
    return F.mse_loss(full(student).softmax(1), full(targets).detach())


class SelfDistillation(Recipe):
    """A step of a chain: a network learns from the labels and from what the step before predicts.

    Loss: `alpha MSE(p, onehot(y)) + (1 - alpha) MSE(p, p_before)` with `p = softmax(z)`, as the terms
    `labels` and `before`; MSE is the mean over classes and batch. With `loss: kl` it is
    `alpha CE(z, y) + (1 - alpha) KL(p_before || p)`. Up to a constant this is the distance to the weighted
    target `alpha onehot(y) + (1 - alpha) p_before` (footnote 8, whose constant lacks a factor 1/2).

    The first step learns from labels alone (alpha = 1), so that chains of every alpha share it. Each step is
    a run of its own. `kdpipe` counts the distillations after the first step: step tau of the paper has
    `generations: tau - 1`.

    Taps: the logits of both networks (B x C each).

    Deviations: the step before predicts the augmented images of the batch at hand, since the paper does not
    say which images its targets belong to. The paper draws initial weights at random at each step, equal for
    all alpha of an experiment; `weights: same` gives all steps one draw instead.

    Reference: Borup and Andersen 2021, Eqs. 1 and 3, section 5.
    """

    name = "self_distillation"
    paper = Paper(
        "Even your teacher needs guidance: ground-truth targets dampen regularization imposed by "
        "self-distillation",
        "K. Borup, L. N. Andersen",
        "NeurIPS",
        2021,
        "https://arxiv.org/abs/2102.13088",
    )

    class Config(Settings):
        """How much the labels weigh, and how many distillations there were."""

        alpha: float = hp(0.6, ge=0, le=1, doc="weight of the labels", source="Section 5.2: 0.5 to 0.7 suit")
        generations: int = hp(
            1,
            ge=0,
            doc="distillations so far; 0 is ordinary training",
            source="assumption: the shortest chain",
        )
        loss: Literal["mse", "kl"] = hp(
            "mse", doc="distance of probabilities, or divergence", source="Section 5.1"
        )
        weights: Literal["new", "same"] = hp(
            "new", doc="initial weights of the steps: a new draw for each, or one", source="Section 5.1"
        )

    config: Config

    def generations(self) -> int:
        return self.config.generations

    def first(self) -> tuple[str, dict[str, Any]]:
        return self.name, {"alpha": 1.0, "generations": 0, "loss": self.config.loss, "weights": "new"}

    def draw(self) -> int:
        return self.config.generations if self.config.weights == "new" else 0

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Distances to the labels and to the step before."""
        alpha, distance = self.config.alpha, self.config.loss
        terms = {}
        if alpha:
            certain = torch.zeros_like(s.logits).scatter_(1, batch.labels[:, None], 1.0)
            labels = (
                probability_mse(s.logits, certain)
                if distance == "mse"
                else cross_entropy(s.logits, batch.labels)
            )
            terms["labels"] = alpha * labels
        if alpha < 1:
            before = (
                probability_mse(s.logits, full(t.logits).softmax(1))
                if distance == "mse"
                else kl(s.logits, t.logits, 1.0)
            )
            terms["before"] = (1 - alpha) * before
        return terms
