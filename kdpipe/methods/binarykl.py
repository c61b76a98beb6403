"""A Bernoulli divergence for each class, alone."""

from __future__ import annotations

from torch import Tensor

from kdpipe.api import Paper, hp
from kdpipe.nn.logit_method import LogitMethod, LogitSettings
from kdpipe.nn.logits import binary_kl


class BinaryKL(LogitMethod):
    """The student matches the teacher's sigmoid of every class, without labels: DHKD's second setting.

    Loss: `alpha T^2 mean_i sum_c KL(sigma(z_t / T) || sigma(z_s / T)) [+ gamma CE(z_s, y)]`, as the terms
    `kd` and, with gamma > 0, `ce`. No labels by default; with them it is `ce_binarykl`, which collapses.

    Taps: none but the logits (B x C).

    Deviations: the mean over the batch where the equation prints a sum, and log-sigmoids instead of
    clamped probabilities (see `kdpipe.nn.logits.binary_kl`).

    Reference: Yang et al. 2024, Eq. 1 and Figs. 1 and 2 (curves for resnet56 to resnet20; no table).
    """

    name = "binarykl"
    paper = Paper(
        "Dual-head knowledge distillation: Enhancing logits utilization with an auxiliary head",
        "P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An",
        "arXiv",
        2024,
        "https://arxiv.org/abs/2411.08937",
    )

    class Config(LogitSettings):
        """Weights and temperature."""

        gamma: float = hp(
            0.0, ge=0, doc="weight of the labels' cross entropy", source="Section 3.1 (BinaryKL alone)"
        )
        alpha: float = hp(1.0, ge=0, doc="weight of the divergence", source="Section 3.1 (its only term)")
        temperature: float = hp(2.0, gt=0, doc="T of both sigmoids", source="Appendix F")

    config: Config

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The divergence."""
        c = self.config
        return {"kd": c.alpha * binary_kl(student, teacher, c.temperature)}
