"""KD on an auxiliary head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    Method,
    Outputs,
    Paper,
    Progress,
    Published,
    Settings,
    Shapes,
    Wish,
    hp,
)
from kdpipe.nn.heads import HEADS, MLP_PAIRS
from kdpipe.nn.logits import cross_entropy, kl


class DualHeadKD(Method):
    """Hinton's KD on a second head, the labels on the first: what DHKD would be without its loss.

    Loss: `gamma CE(h1(f), y) + alpha T^2 KL(softmax(z_t / T) || softmax(h2(f) / T))`, as the terms `ce` and
    `kd`; h1 is the student's own classifier and alone makes its predictions, h2 is dropped afterwards.

    Taps: `embed` of the student (B x D), and the logits of both (B x C).

    Deviations: the paper says only that vanilla KD's loss goes to the second head. Here its head is
    DHKD's, T is that of KD in the authors' code, both weights are 1 as for DHKD there, and the gradients
    are added without alignment; their code offers KD on the first head alone.

    Reference: Yang et al. 2024, Appendix K and Table 12.
    """

    name = "dual_head_kd"
    unsettled = "the paper does not state Table 12's settings"
    paper = Paper(
        "Dual-head knowledge distillation: Enhancing logits utilization with an auxiliary head",
        "P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An",
        "arXiv",
        2024,
        "https://arxiv.org/abs/2411.08937",
    )
    published = tuple(
        Published({"head": "mlp"}, "Appendix F", "cifar100", teacher, student)
        for teacher, student in MLP_PAIRS
    )

    class Config(Settings):
        """Weights, temperature and the auxiliary head."""

        gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="Appendix F")
        alpha: float = hp(
            1.0,
            ge=0,
            doc="weight of the auxiliary head's divergence",
            source="authors' code, -a 1 (for DHKD)",
        )
        temperature: float = hp(
            4.0, gt=0, doc="softening T of both softmaxes", source="authors' code, --kd_T 4"
        )
        head: Literal["linear", "mlp"] = hp(
            "linear",
            doc="auxiliary head: linear for networks of one family, mlp (200 hidden) for two",
            source="Appendix F",
        )

    config: Config

    def taps(self) -> Wish:
        """The student's features."""
        return Wish(student=("embed",))

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The auxiliary head."""
        self.head: nn.Module = HEADS[self.config.head](student["embed"][0], data.num_classes)

    def auxiliary(self) -> nn.Module:
        """The auxiliary head."""
        return self.head

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the classifier, and the auxiliary head's divergence from the teacher."""
        c = self.config
        return {
            "ce": c.gamma * cross_entropy(s.logits, batch.labels),
            "kd": c.alpha * kl(self.head(s["embed"]), t.logits, c.temperature),
        }
