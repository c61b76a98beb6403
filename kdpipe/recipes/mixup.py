"""The teacher trained on mixtures of two images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Recipe, Settings, Shapes, hp
from kdpipe.nn.logits import soft_cross_entropy
from kdpipe.nn.mixing import draw_mix, mixed_targets, mixup


class Mixup(Recipe):
    """Each image and its label mixed with those of another image of the batch.

    Loss: `ce = CE(f(lam x + (1 - lam) x'), lam y + (1 - lam) y')`, lam ~ Beta(alpha, alpha), one for each
    batch; x' and y' are the batch in another order, y one-hot.

    Taps: none.

    Deviations: none. The training accuracy is told of y alone.

    Reference: Zhang et al. 2018, Algorithm 1; Dong et al. 2024 (SoTeacher), Appendix F and Table 7.
    """

    name = "mixup"
    paper = Paper(
        "mixup: beyond empirical risk minimization",
        "H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz",
        "ICLR",
        2018,
        "https://arxiv.org/abs/1710.09412",
    )

    class Config(Settings):
        """How strongly images are mixed."""

        alpha: float = hp(
            0.2,
            gt=0,
            doc="of Beta(alpha, alpha), the shares' distribution",
            source="Dong et al. 2024, Table 7",
        )

    config: Config

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Note the number of classes."""
        self.num_classes = data.num_classes

    def transform(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch."""
        mix = draw_mix(len(batch.labels), self.config.alpha, torch.default_generator)
        return replace(
            batch,
            images=mixup(batch.images, mix),
            targets=mixed_targets(batch.labels, mix, self.num_classes),
        )

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the mixed targets."""
        assert batch.targets is not None
        return {"ce": soft_cross_entropy(s.logits, batch.targets)}
