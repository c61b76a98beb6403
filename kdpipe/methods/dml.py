"""Deep mutual learning: students that teach each other."""

from __future__ import annotations

import torch
from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress, Settings, hp
from kdpipe.nn.logits import cross_entropy, kl


class DML(Method):
    """Networks of one architecture train together, each towards the labels and the others' predictions.

    Loss: `sum_i CE(z_i, y) + alpha / (K - 1) sum_{j != i} T^2 KL(p_j || p_i)` for K networks, each p_j a
    constant to the others; the student's terms are `ce` and `kd`, those of its n-th peer `peer<n>_ce` and
    `peer<n>_kd`. No network learns through another's term, so each is trained by its own two alone.

    Which network is reported is settled before training: the first, which starts from the same weights as
    the student of any other method with that seed. The peers' last weights are kept beside it.

    Taps: the logits of all networks (B x C each).

    Deviations: all networks step together, from predictions of the same moment (the paper's Algorithm 1
    updates one after the other, recomputing predictions in between). The peers have the student's
    architecture; the paper's tables also mix architectures.

    Reference: Zhang et al. 2018, Eqs. 4 to 8 and 10.
    """

    name = "dml"
    paper = Paper(
        "Deep mutual learning",
        "Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu",
        "CVPR",
        2018,
        "https://arxiv.org/abs/1706.00384",
    )
    teacher = False

    class Config(Settings):
        """The cohort, and the weight of its opinion."""

        networks: int = hp(2, ge=2, le=16, doc="networks in all, K", source="Zhang et al. 2018, Section 3.3")
        alpha: float = hp(1.0, ge=0, doc="weight of the divergence", source="Zhang et al. 2018, Eq. 5")
        temperature: float = hp(1.0, gt=0, doc="T of the divergence", source="Zhang et al. 2018, Eq. 4")

    config: Config

    def peers(self) -> int:
        """All networks but the student."""
        return self.config.networks - 1

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Every network's cross entropy, and its mean divergence from the others."""
        c = self.config
        logits = [s.logits, t.logits, *(other.logits for other in t.more)]
        terms = {}
        for i, own in enumerate(logits):
            others = [kl(own, other, c.temperature) for j, other in enumerate(logits) if j != i]
            name = f"peer{i}_" if i else ""
            terms[f"{name}ce"] = cross_entropy(own, batch.labels)
            terms[f"{name}kd"] = c.alpha * torch.stack(others).mean()
        return terms
