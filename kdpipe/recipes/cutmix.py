"""The teacher trained on images with a box of another image pasted in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Recipe, Settings, Shapes, hp
from kdpipe.nn.logits import soft_cross_entropy
from kdpipe.nn.mixing import Mix, cutmix, draw_mix, mixed_targets


class CutMix(Recipe):
    """A box of another image of the batch pasted into each image, and the labels mixed by area.

    Loss: `ce = CE(f(x with a box of x'), lam y + (1 - lam) y')`, lam the share of pixels that is left of x.
    The box has the share 1 - lam of the area, lam ~ Beta(alpha, alpha), at a uniform place, and is clipped
    at the borders; it is one for each batch. x' and y' are the batch in another order, y one-hot.

    Taps: none.

    Deviations: none. The training accuracy is told of y alone.

    Reference: Yun et al. 2019, section 3 and Algorithm A1; Dong et al. 2024 (SoTeacher), Appendix F and
    Table 7.
    """

    name = "cutmix"
    paper = Paper(
        "CutMix: regularization strategy to train strong classifiers with localizable features",
        "S. Yun, D. Han, S. J. Oh, S. Chun, J. Choe, Y. Yoo",
        "ICCV",
        2019,
        "https://arxiv.org/abs/1905.04899",
    )

    class Config(Settings):
        """How strongly and how often images are mixed."""

        alpha: float = hp(
            0.2,
            gt=0,
            doc="of Beta(alpha, alpha), the shares' distribution",
            source="Dong et al. 2024, Table 7",
        )
        probability: float = hp(
            1.0,
            ge=0,
            le=1,
            doc="share of the batches that are mixed",
            source="Yun et al. 2019, Algorithm A1; their code on CIFAR: 0.5",
        )

    config: Config

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Note the number of classes."""
        self.num_classes = data.num_classes

    def transform(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch; one that is left alone is a mix with nothing."""
        mix = draw_mix(len(batch.labels), self.config.alpha, torch.default_generator)
        row, column, coin = torch.rand(3).tolist()
        if coin >= self.config.probability:
            mix = Mix(mix.partner, 1.0)
        images, mix = cutmix(batch.images, mix, (row, column))
        return replace(batch, images=images, targets=mixed_targets(batch.labels, mix, self.num_classes))

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the mixed targets."""
        assert batch.targets is not None
        return {"ce": soft_cross_entropy(s.logits, batch.targets)}
