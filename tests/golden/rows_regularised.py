"""Losses of the regularised teachers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdpipe.nn.logits import cross_entropy, soft_cross_entropy
from kdpipe.nn.mixing import Mix, mixed_targets
from kdpipe.recipes.augmix import jensen_shannon
from kdpipe.recipes.l1 import l1_penalty
from kdpipe.recipes.l2 import l2_penalty
from kdpipe.recipes.label_smoothing import smoothed_cross_entropy
from tests.golden import numpy_regularised
from tests.golden.row import MAPS, Row, Y


def mixed(s: Tensor, t: Tensor) -> Tensor:
    """Each sample mixed with the next, which keeps a share that float32 holds exactly."""
    targets = mixed_targets(Y, Mix(torch.arange(len(Y)).roll(-1), 0.75), s.shape[1])
    return soft_cross_entropy(s, targets)


ROWS = [
    Row(
        "l1",
        ("l1",),
        lambda s, t: l1_penalty([s]),
        numpy_regularised.absolute,
        490.648144,
        inputs=MAPS,
        matches=False,
    ),
    Row(
        "l2",
        ("l2",),
        lambda s, t: l2_penalty([s]),
        numpy_regularised.squares,
        192.764821,
        inputs=MAPS,
        matches=False,
    ),
    Row(
        "smoothed-0.1",
        ("label_smoothing",),
        lambda s, t: smoothed_cross_entropy(s, Y, 0.1),
        partial(numpy_regularised.smoothed, epsilon=0.1),
        3.78700527,
        matches=False,
    ),
    Row(
        "mixed-0.75",
        ("mixup", "cutmix"),
        mixed,
        partial(numpy_regularised.mixed, lam=0.75),
        3.70091981,
        matches=False,
    ),
    Row(
        "js-2",
        ("augmix",),
        lambda s, t: jensen_shannon([s, t.detach()]),
        numpy_regularised.two_views,
        0.419722943,
    ),
    Row(
        "js-3",
        ("augmix",),
        lambda s, t: jensen_shannon([s, s.flip(1) / 2, t.detach()]),
        numpy_regularised.three_views,
        0.503974041,
        matches=False,
    ),
    Row(
        "scaled-T2",
        ("temperature_scaling",),
        lambda s, t: cross_entropy(s / 2, Y),
        partial(numpy_regularised.scaled, temperature=2),
        2.83039395,
        matches=False,
    ),
    Row(
        "held-out-nll",
        ("early_stopping", "swa"),
        lambda s, t: cross_entropy(s, Y),
        partial(numpy_regularised.scaled, temperature=1),
        3.82384602,
        matches=False,
    ),
]
