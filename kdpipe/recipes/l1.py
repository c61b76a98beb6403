"""The teacher under a penalty on its weights' absolute values."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.nn.logits import cross_entropy, full
from kdpipe.nn.penalties import Penalised, penalised


def l1_penalty(weights: Iterable[Tensor]) -> Tensor:
    """Sum of absolute values: `sum_j |w_j|`.

    Args:
        weights: tensors of any shape, one or more.

    Returns:
        A scalar >= 0; where a weight is 0, its gradient is 0 too.

    Source: Tibshirani 1996, there as a bound.
    """
    return torch.stack([full(w).abs().sum() for w in weights]).sum()


class L1(Recipe):
    """A penalty on the absolute values of the weights, beside the protocol's weight decay.

    Loss: `CE(z, y) + weight sum_j |w_j|`, as the terms `ce` and `l1`. By default w holds every trained
    parameter, biases and batch norms included; with `on: weights` convolutions and linear layers only.

    Taps: none.

    Deviations: Dong et al. print the weight alone. What it falls on is an assumption, by analogy with
    their weight decay, and so is that this decay stays.

    Reference: Dong et al. 2024 (SoTeacher), Appendix F and Table 7; Tibshirani 1996.
    """

    name = "l1"
    unsettled = "the papers do not say which parameters are penalised"
    paper = Paper(
        "Regression shrinkage and selection via the lasso",
        "R. Tibshirani",
        "Journal of the Royal Statistical Society B",
        1996,
        "https://doi.org/10.1111/j.2517-6161.1996.tb02080.x",
    )

    class Config(Settings):
        """Weight and reach of the penalty."""

        weight: float = hp(1e-5, ge=0, doc="weight of the penalty", source="Dong et al. 2024, Table 7")
        on: Penalised = hp(
            "all",
            doc="every trained parameter, or convolutions and linear layers without their biases",
            source="assumption: as the weight decay of shwinshaker/SoTeacher",
        )

    config: Config

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels, and the penalty."""
        c = self.config
        return {
            "ce": cross_entropy(s.logits, batch.labels),
            "l1": c.weight * l1_penalty(penalised(model, c.on)),
        }
