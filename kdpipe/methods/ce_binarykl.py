"""Labels and a Bernoulli divergence on one head, which do not go together."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdpipe.api import Paper, hp
from kdpipe.nn.logit_method import LogitMethod, LogitSettings
from kdpipe.nn.logits import binary_kl, binary_kl_norm

LOSSES = {"binarykl": binary_kl, "binarykl_norm": binary_kl_norm}


class CEBinaryKL(LogitMethod):
    """One classifier learns the labels and the teacher's logits at once: the collapse that DHKD explains.

    Loss: `CE(z_s, y) + alpha BinaryKL(z_s, z_t)`, as the terms `ce` and `kd`.

    The paper's students collapse unless alpha < 0.1, and then stay below KD: low accuracy is what this
    baseline is there to show.

    Taps: none but the logits (B x C).

    Deviations: the divergence is a mean over the batch, of log-sigmoids (see `kdpipe.nn.logits`): the
    authors' clamped form turns into NaN at |z| = 34 at T = 2, so a part of their collapses may be
    numerical; this form shows what remains. Tables 6 and 7 state no alpha; the default is that of the
    authors' code for DHKD.

    Reference: Yang et al. 2024, Eq. 2, Appendix A and Tables 5 to 7.
    """

    name = "ce_binarykl"
    unsettled = "the paper states no weight for Tables 6 and 7"
    paper = Paper(
        "Dual-head knowledge distillation: Enhancing logits utilization with an auxiliary head",
        "P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An",
        "arXiv",
        2024,
        "https://arxiv.org/abs/2411.08937",
    )

    class Config(LogitSettings):
        """Weights, temperature and the form of the divergence."""

        gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="Appendix F")
        alpha: float = hp(1.0, ge=0, doc="weight of the divergence", source="authors' code, -a 1 (for DHKD)")
        temperature: float = hp(2.0, gt=0, doc="T of the divergence", source="Appendix F")
        loss: Literal["binarykl", "binarykl_norm"] = hp(
            "binarykl", doc="the divergence: Eq. 1, or Eq. 5 as in Table 5", source="Eq. 2, Table 6"
        )

    config: Config

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The divergence."""
        c = self.config
        return {"kd": c.alpha * LOSSES[c.loss](student, teacher, c.temperature)}
