"""The two-layer network of the kernel regime: trained hidden weights, frozen output weights.

    f_c(x) = sum_k a_ck / sqrt(m) ReLU(w_k . x)        w_k ~ N(0, 0.01^2 I),  a_ck uniform on {-1, 1}

`two_layer_<m>` has m hidden units (100 for the paper's teacher, 20 for its student) and reads all pixels
of a 32-pixel image as one vector x. The tap `embed` holds the hidden features ReLU(w_k . x), which the
paper's student learns from its teacher's. The signs a are a buffer: saved with the weights, never trained.

The paper has one output and the labels +1 (first class) and -1. For two classes the second logit is the
negative of the first, so that sum_c (y_c - f_c)^2 with y = (1, -1) is twice the paper's loss and the
predicted class is the sign of f. For more classes the signs of each are drawn independently.

Deviations from Rahbar et al.: ReLU, because the paper does not state its activation (it is that of the
works whose setting it takes over: Du et al. 2019, Arora et al. 2019).
"""

from __future__ import annotations

import math
import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap

PAPER = Paper(
    title="On the unreasonable effectiveness of knowledge distillation: analysis in the kernel regime",
    authors="Rahbar, Panahi, Bhattacharyya, Dubhashi, Haghir Chehreghani",
    venue="arXiv",
    year=2020,
    url="https://arxiv.org/abs/2003.13438",
)
SIDE = 32
SPREAD = 1e-2  # Eq. 16 and section 4


class Signs(nn.Module):
    """A frozen output layer: x to A x / sqrt(m), with random signs A (C x m)."""

    signs: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        signs = 2.0 * torch.randint(2, (outputs, inputs)) - 1
        if outputs == 2:
            signs[1] = -signs[0]
        self.register_buffer("signs", signs)

    def forward(self, hidden: Tensor) -> Tensor:
        """B x m to B x C."""
        return F.linear(hidden, self.signs) / math.sqrt(self.in_features)


class TwoLayer(nn.Module):
    """A hidden layer without bias, and frozen output weights.

    Args:
        hidden: number m of hidden units.
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, hidden: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels * SIDE**2, hidden, bias=False)
        self.relu = nn.ReLU()
        self.output = Signs(hidden, num_classes)
        nn.init.normal_(self.hidden.weight, 0, SPREAD)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x 32 x 32)."""
        logits: Tensor = self.output(self.relu(self.hidden(images.flatten(1))))
        return logits


def _spec(hidden: int) -> ModelSpec:
    return ModelSpec(
        f"two_layer_{hidden}",
        partial(TwoLayer, hidden),
        {"embed": Tap("output", hidden, 0, "vector", side="input")},
        "output",
        3 * SIDE**2 * hidden,
        PAPER,
        side=SIDE,
        fixed=True,
        per_class=0,
    )


MODELS = (_spec(100), _spec(20))


def family(name: str) -> ModelSpec | None:
    """The network called `two_layer_<hidden units>`, or None when there is none of that name."""
    found = re.fullmatch(r"two_layer_([1-9]\d*)", name)
    return _spec(int(found[1])) if found else None
