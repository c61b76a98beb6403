"""The loss of MICC."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdpipe.nn.relations import unit
from kdpipe.recipes.micc import intra_class_losses
from tests.golden import numpy_micc
from tests.golden.inputs import Array
from tests.golden.row import Row

CLASSES = [0, 1, 0, 1, 0, 2, 0, 1]


def contrast(x: Tensor, positives: Tensor) -> Tensor:
    return intra_class_losses(x, positives.detach(), torch.tensor(CLASSES), torch.arange(8)).mean()


def numpy_contrast(x: Array, positives: Array) -> float:
    return float(np.mean(numpy_micc.contrasts(x, positives, CLASSES)))


ROWS = [
    Row("micc-raw", ("micc",), contrast, numpy_contrast, 17.24433312, matches=False),
    Row(
        "micc-unit",
        ("micc",),
        lambda s, t: contrast(unit(s), unit(t)),
        lambda s, t: numpy_contrast(numpy_micc.unit(s), numpy_micc.unit(t)),
        1.076119516,
        matches=False,
    ),
]
