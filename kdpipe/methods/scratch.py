"""A student without a teacher."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress
from kdpipe.nn.logits import cross_entropy


class Scratch(Method):
    """The student trained on the labels alone: the baseline that a distilled student has to beat.

    Loss: `ce = CE(z_s, y)`.

    Taps: none.

    Deviations: none.

    Reference: Hinton et al. 2015.
    """

    name = "scratch"
    teacher: ClassVar[bool] = False
    paper = Paper(
        "Distilling the knowledge in a neural network",
        "G. Hinton, O. Vinyals, J. Dean",
        "arXiv",
        2015,
        "https://arxiv.org/abs/1503.02531",
    )

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels."""
        return {"ce": cross_entropy(s.logits, batch.labels)}
