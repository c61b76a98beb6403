"""The teacher trained on smoothed labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.nn.logits import full


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Cross entropy of smoothed labels: `(1 - eps) CE(z, y) + eps mean_c CE(z, c)`.

    Args:
        logits: B x C.
        labels: B, int64 in [0, C).
        epsilon: share of the uniform distribution, in [0, 1].

    Returns:
        A scalar, in nats.

    Source: Szegedy et al. 2016, section 7.
    """
    return F.cross_entropy(full(logits), labels, label_smoothing=epsilon)


class LabelSmoothing(Recipe):
    """The labels mixed with the uniform distribution over all classes.

    Loss: `ce = CE(z, (1 - epsilon) onehot(y) + epsilon / C)`, C the number of classes.

    Taps: none.

    Deviations: none.

    Reference: Szegedy et al. 2016, section 7; Müller et al. 2019, who find that teachers so trained teach
    worse; named, without numbers, by Dong et al. 2024 (SoTeacher), Appendix F.
    """

    name = "label_smoothing"
    paper = Paper(
        "Rethinking the inception architecture for computer vision",
        "C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna",
        "CVPR",
        2016,
        "https://arxiv.org/abs/1512.00567",
    )

    class Config(Settings):
        """How far the labels are smoothed."""

        epsilon: float = hp(
            0.1, ge=0, le=1, doc="share of the uniform distribution", source="Szegedy et al. 2016, section 7"
        )

    config: Config

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the smoothed labels."""
        return {"ce": smoothed_cross_entropy(s.logits, batch.labels, self.config.epsilon)}
