"""The teacher as it is usually trained."""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe
from kdpipe.nn.logits import cross_entropy


class Standard(Recipe):
    """The teacher trained on the labels alone, for its own accuracy.

    Loss: `ce = CE(z, y)`.

    Taps: none.

    Deviations: none.

    Reference: Dong et al. 2024 (SoTeacher), Eq. 1, whose baseline it is.
    """

    name = "standard"
    paper = Paper(
        "Toward student-oriented teacher network training for knowledge distillation",
        "C. Dong, L. Liu, J. Shang",
        "ICLR",
        2024,
        "https://arxiv.org/abs/2206.06661",
    )

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels."""
        return {"ce": cross_entropy(s.logits, batch.labels)}
