"""A bounded pull towards each of the teacher's logits, alone."""

from __future__ import annotations

from torch import Tensor

from kdpipe.api import Paper, hp
from kdpipe.nn.logit_method import LogitMethod, LogitSettings
from kdpipe.nn.logits import binary_kl_norm


class BinaryKLNorm(LogitMethod):
    """The student matches every logit of the teacher by DHKD's own loss, on one head without labels.

    Loss: `alpha T^2 mean_i sum_c KL(1/2 || sigma((z_s - z_t) / T)) [+ gamma CE(z_s, y)]`, as the terms
    `kd` and, with gamma > 0, `ce`. No labels by default; with them it is `ce_binarykl` with that loss.

    Taps: none but the logits (B x C).

    Deviations: the mean over the batch where the equation prints a sum, and log-sigmoids instead of
    clamped probabilities (see `kdpipe.nn.logits.binary_kl_norm`). The row of Table 5 that shows this
    setting has no temperature or weight of its own.

    Reference: Yang et al. 2024, Eq. 5 and Table 5.
    """

    name = "binarykl_norm"
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
            0.0, ge=0, doc="weight of the labels' cross entropy", source="Table 5 (BinaryKL-Norm alone)"
        )
        alpha: float = hp(1.0, ge=0, doc="weight of the divergence", source="Table 5 (its only term)")
        temperature: float = hp(2.0, gt=0, doc="T of the sigmoid", source="Appendix F")

    config: Config

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The divergence."""
        c = self.config
        return {"kd": c.alpha * binary_kl_norm(student, teacher, c.temperature)}
