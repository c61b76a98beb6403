"""Cross-fitting: a teacher that consists of several networks, none of which teaches what it learnt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Recipe, Settings, Shapes, hp
from kdpipe.nn.folds import folds
from kdpipe.nn.logits import full


def outside_loss(logits: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """Cross entropy of the samples outside a fold: `mean_{i outside} (LSE(z_i) - z_i[y_i])`.

    Args:
        logits: B x C.
        labels: B, int64 in [0, C).
        inside: B, whether the sample lies in the fold.

    Returns:
        A scalar, in nats; 0 for a batch that lies in the fold altogether.

    Source: Dao et al. 2021, cross-fitting.
    """
    outside = (~inside).to(full(logits).dtype)
    each = F.cross_entropy(full(logits), labels, reduction="none")
    return (outside * each).sum() / outside.sum().clamp_min(1)


class CrossFitting(Recipe):
    """Networks that leave out a fold of the data each: every sample is taught by one that never learnt it.

    Loss: `sum_k mean_{i outside fold k} CE(z_ik, y_i)` for K networks, as the terms `ce` (of the run's own
    network, which leaves out the first fold) and `peer<k>_ce`. No network learns through another's
    term. The folds hold equal shares of each class. A student learns sample i from the network that left
    its fold out; the teacher's own numbers, and likeness to it, are those of the first network.

    Taps: the logits of all networks (B x C each).

    Deviations: all networks train in one run on the same batches, so each makes as many steps as an ordinary
    teacher, on (K - 1) / K of each batch; the authors train them one by one. The batch norms of a
    network also see the images of its own fold, never their labels.

    Reference: Dao et al. 2021, cross-fitting, and the experiments (10 folds);
    microsoft/semiparametric-distillation.
    """

    name = "cross_fitting"
    unsettled = "its defaults could not be checked against the paper"
    paper = Paper(
        "Knowledge distillation as semiparametric inference",
        "T. Dao, G. M. Kamath, V. Syrgkanis, L. Mackey",
        "ICLR",
        2021,
        "https://arxiv.org/abs/2104.09732",
    )

    class Config(Settings):
        """How the data are divided."""

        folds: int = hp(
            10, ge=2, doc="folds, and networks, K", source="experiments; authors' scripts (split_size=10)"
        )

    config: Config
    fold: Tensor

    def folds(self) -> int:
        return self.config.folds

    def peers(self) -> int:
        return self.config.folds - 1

    def build(self, model: nn.Module, shapes: Shapes, data: DataInfo) -> None:
        """Divide the training set; the folds follow from its labels, so no state needs to hold them."""
        self.register_buffer("fold", folds(data.labels, self.config.folds), persistent=False)

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Every network's cross entropy on the samples outside its fold."""
        own = self.fold[batch.index]
        return {
            f"peer{number}_ce" if number else "ce": outside_loss(out.logits, batch.labels, own == number)
            for number, out in enumerate((s, t, *t.more))
        }
