"""Matching the logits themselves."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdpipe.api import Paper, hp
from kdpipe.nn.logit_method import LogitMethod, LogitSettings
from kdpipe.nn.logits import full


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits over classes and batch: `mean_ic (z_s - z_t)^2`.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.

    Returns:
        A scalar >= 0. A shift of all logits changes it.

    Source: Kim et al. 2021 (their L_MSE). Deviation: the mean over classes where the paper has the squared
    norm, C times as large.
    """
    return F.mse_loss(full(student), full(teacher).detach())


class MSE(LogitMethod):
    """The student matches the teacher's logits, without a softmax.

    Loss: `[gamma CE(z_s, y)] + alpha mean_ic (z_s - z_t)^2`, as the terms `mse` and, with gamma > 0, `ce`.
    Without labels by default, as in both papers.

    Taps: none but the logits (B x C).

    Deviations: the mean over classes and batch; Ba and Caruana have half the sum over samples, Kim et
    al. the squared norm. alpha = C gives Kim's scale. Ba and Caruana's student is a shallow network with
    a linear bottleneck, which is no part of the loss. Neither paper gives weights for single pairs.

    Reference: Ba and Caruana 2014 (regression on logits); Kim et al. 2021 (L_MSE) for today's form.
    """

    name = "mse"
    paper = Paper(
        "Comparing Kullback-Leibler divergence and mean squared error loss in knowledge distillation",
        "T. Kim, J. Oh, N. Kim, S. Cho, S.-Y. Yun",
        "IJCAI",
        2021,
        "https://arxiv.org/abs/2105.08919",
    )

    class Config(LogitSettings):
        """Weights."""

        gamma: float = hp(
            0.0,
            ge=0,
            doc="weight of the labels' cross entropy",
            source="Kim et al. 2021, section 1 (no labels)",
        )
        alpha: float = hp(
            1.0, ge=0, doc="weight of the squared difference", source="Kim et al. 2021 (its only term)"
        )

    config: Config

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The squared difference."""
        return {"mse": self.config.alpha * logit_mse(student, teacher)}
