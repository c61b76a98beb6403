"""Weighted transformed teacher matching."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdpipe.api import Paper, hp
from kdpipe.nn.logit_method import LogitMethod, LogitSettings
from kdpipe.nn.logits import full


def power_sum(teacher: Tensor, temperature: float) -> Tensor:
    """How smooth the teacher is about each sample: `U_i = sum_c p_t(c)^(1/T)`, p_t at temperature 1.

    Args:
        teacher: logits, B x C.
        temperature: T >= 1.

    Returns:
        B numbers in [1, C^(1 - 1/T)], the largest for equal logits.

    Source: Zheng and Yang 2024, section 4; in logarithms, so that no power underflows.
    """
    return (F.log_softmax(full(teacher).detach(), 1) / temperature).logsumexp(1).exp()


def wttm_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Weighted divergence from the power transform: `mean_i U_i KL(softmax(z_t / T) || softmax(z_s))`.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T >= 1 of the teacher; 1 / T is the power.

    Returns:
        A scalar >= 0, without the factor T^2.

    Source: Zheng and Yang 2024, section 4.
    """
    log_s = F.log_softmax(full(student), 1)
    log_t = F.log_softmax(full(teacher).detach() / temperature, 1)
    each = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
    return (power_sum(teacher, temperature) * each).mean()


class WTTM(LogitMethod):
    """TTM with each sample weighted by how smooth the teacher is about it.

    Loss: `gamma CE(z_s, y) + beta mean_i U_i KL(softmax(z_t / T) || softmax(z_s))`, with
    `U_i = sum_c p_t(c)^(1/T)`, as the terms `ce` and `wttm`.

    Taps: none but the logits (B x C).

    Deviations: none in the loss. The paper calls 1 / T gamma; here gamma weighs the labels, as
    everywhere. It chooses beta and T for each pair, in an appendix that is not at hand. The authors'
    page shows WTTM only beside CRD (T = 5, beta = 4, vgg13 to vgg8), which are the defaults: a small sweep
    over beta and T is needed before numbers are compared with the printed ones.

    Reference: Zheng and Yang 2024, section 4.
    """

    name = "wttm"
    unsettled = "its per-pair weights are not available"
    paper = Paper(
        "Knowledge distillation based on transformed teacher matching",
        "K. Zheng, E.-H. Yang",
        "ICLR",
        2024,
        "https://arxiv.org/abs/2402.11148",
    )

    class Config(LogitSettings):
        """Weights and the teacher's temperature."""

        gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="authors' code, -r 1")
        beta: float = hp(
            4.0, ge=0, doc="weight of the divergence", source="authors' code, README: -a 4 (beside CRD)"
        )
        temperature: float = hp(
            5.0,
            ge=1,
            doc="T of the teacher's softmax, one over the power",
            source="authors' code, README: --ttm_l 0.2 (beside CRD)",
        )

    config: Config

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The weighted divergence."""
        c = self.config
        return {"wttm": c.beta * wttm_loss(student, teacher, c.temperature)}
