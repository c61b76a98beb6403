"""Losses of CRD, ReviewKD and OFD."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kdpipe.methods.crd import nce_loss, similarities
from kdpipe.methods.ofd import partial_distance
from kdpipe.methods.reviewkd import context_loss
from kdpipe.nn.logits import full
from tests.golden import numpy_review
from tests.golden.inputs import Array, wave
from tests.golden.row import MAPS, Row

LARGE_MAPS = (wave((8, 6, 8, 8), 0.11, 0.2, 1), wave((8, 6, 8, 8), 0.23, 0.7, 1))
MARGINS = np.linspace(-0.1, -0.6, 6)
RATIOS = (wave((8, 17), 0.5, 0.3, 1),) * 2
BANK = wave((20, 4), 0.29, 0.6, 0.5)
INDEX = (np.arange(8)[:, None] * 3 + np.arange(7) * 2) % 20
VECTORS = (wave((8, 4), 0.31, 0.1, 0.5), wave((8, 4), 0.17, 0.4, 0.5))
TAU, Z = 0.5, 30.0


def partial(s: Tensor, t: Tensor) -> Tensor:
    return partial_distance(s, t, torch.tensor(MARGINS[: s.shape[1]]))


def nce(s: Tensor, t: Tensor) -> Tensor:
    return nce_loss((full(s).abs() / 50).log(), 50)


def contrast(s: Tensor, t: Tensor) -> Tensor:
    scores = similarities(s, torch.tensor(BANK), torch.tensor(INDEX)) / TAU
    return nce_loss(scores - math.log(Z), len(BANK))


def numpy_nce(s: Array, t: Array) -> float:
    return numpy_review.nce(np.abs(s) / 50, 50)


ROWS = [
    Row("hcl-4", ("reviewkd",), context_loss, numpy_review.context, 0.903315166, inputs=MAPS),
    Row("hcl-8", ("reviewkd",), context_loss, numpy_review.context, 0.71789966, inputs=LARGE_MAPS),
    Row(
        "ofd-partial",
        ("ofd",),
        partial,
        lambda s, t: numpy_review.partial_distance(s, t, MARGINS),
        72.3690456,
        inputs=MAPS,
    ),
    Row("crd-nce", ("crd",), nce, numpy_nce, 4.19153565, inputs=RATIOS, matches=False),
    Row(
        "crd-direction",
        ("crd",),
        contrast,
        lambda s, t: numpy_review.contrast(s, BANK, INDEX, TAU, Z),
        3.14302066,
        inputs=VECTORS,
        matches=False,
    ),
]
