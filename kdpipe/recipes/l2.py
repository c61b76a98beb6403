"""The teacher under a penalty on its squared weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, Outputs, Paper, Progress, Recipe, Settings, hp
from kdpipe.nn.logits import cross_entropy, full
from kdpipe.nn.penalties import Penalised, penalised


def l2_penalty(weights: Iterable[Tensor]) -> Tensor:
    """Half the sum of squares: `1/2 sum_j w_j^2`.

    Args:
        weights: tensors of any shape, one or more.

    Returns:
        A scalar >= 0; its gradient is the weights themselves.

    Source: Krogh and Hertz 1991.
    """
    return torch.stack([full(w).square().sum() for w in weights]).sum() / 2


class L2(Recipe):
    """A penalty on the squares of the weights, beside the protocol's weight decay.

    Loss: `CE(z, y) + weight/2 sum_j w_j^2`, as the terms `ce` and `l2`. By default w holds every trained
    parameter, biases and batch norms included; with `on: weights` convolutions and linear layers only.

    Taps: none.

    Deviations: under SGD the penalty is weight decay, and it adds to the protocol's. The row of Dong et
    al. is their standard training, number for number, whose decay already is 5e-4: it is had from the
    recipe `standard`, or from this one in a protocol without decay. Here the two together are 1e-3.

    Reference: Dong et al. 2024 (SoTeacher), Appendix F and Table 7; Krogh and Hertz 1991.
    """

    name = "l2"
    paper = Paper(
        "A simple weight decay can improve generalization",
        "A. Krogh, J. Hertz",
        "NeurIPS",
        1991,
        "https://proceedings.neurips.cc/paper/1991/hash/8eefcfdf5990e441f0fb6f3fad709e21-Abstract.html",
    )

    class Config(Settings):
        """Weight and reach of the penalty."""

        weight: float = hp(5e-4, ge=0, doc="weight of the penalty", source="Dong et al. 2024, Table 7")
        on: Penalised = hp(
            "all",
            doc="every trained parameter, or convolutions and linear layers without their biases",
            source="shwinshaker/SoTeacher, whose weight decay it is",
        )

    config: Config

    def loss(self, model: nn.Module, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the labels, and the penalty."""
        c = self.config
        return {
            "ce": cross_entropy(s.logits, batch.labels),
            "l2": c.weight * l2_penalty(penalised(model, c.on)),
        }
