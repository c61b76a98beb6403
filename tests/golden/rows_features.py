"""Losses of the methods that compare features, or relations among features."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdpipe.methods.at import attention_loss
from kdpipe.methods.cc import embedding_loss, kernel_loss
from kdpipe.methods.nst import selectivity_loss
from kdpipe.methods.pkt import neighbour_loss
from kdpipe.methods.rkd import angle_loss, distance_loss
from kdpipe.methods.sp import similarity_loss
from kdpipe.methods.vid import gaussian_loss
from kdpipe.nn.logits import full
from tests.golden import numpy_features
from tests.golden.inputs import STUDENT_MAPS, Array, wave
from tests.golden.row import MAPS, Row

WIDE_MAPS = (STUDENT_MAPS, wave((8, 12, 4, 4), 0.23, 0.7, 1))
LARGE_MAPS = (STUDENT_MAPS, wave((8, 6, 8, 8), 0.23, 0.7, 1))
SMALL_MAPS = (wave((8, 6, 2, 2), 0.11, 0.2, 1), wave((8, 12, 2, 2), 0.23, 0.7, 1))
VECTORS = (wave((8, 16), 0.31, 0.1, 1), wave((8, 24), 0.17, 0.4, 1))
EQUAL_VECTORS = (VECTORS[0], wave((8, 16), 0.17, 0.4, 1))
VARIANCES = np.linspace(0.3, 2, 6)


def pooled_attention(s: Tensor, t: Tensor) -> Tensor:
    """As RepDistiller has it for maps of two sizes."""
    return attention_loss(s, F.adaptive_avg_pool2d(t, s.shape[2:]))


def numpy_pooled_attention(s: Array, t: Array) -> float:
    step = t.shape[2] // s.shape[2]
    corners = [t[:, :, i::step, j::step] for i in range(step) for j in range(step)]
    return numpy_features.attention(s, sum(corners) / step**2)


def relations(s: Tensor, t: Tensor) -> Tensor:
    return 25 * distance_loss(s, t) + 50 * angle_loss(s, t)


def gaussian(s: Tensor, t: Tensor, variance: Array) -> Tensor:
    return gaussian_loss(s, t, torch.tensor(variance, dtype=full(s).dtype)[: s.shape[1]])


ROWS = [
    Row("attention", ("at",), attention_loss, numpy_features.attention, 0.000555816792, inputs=MAPS),
    Row("similarity", ("sp",), similarity_loss, numpy_features.similarity, 0.245756499, inputs=WIDE_MAPS),
    Row(
        "correlation",
        ("cc",),
        lambda s, t: embedding_loss(s, t.detach()),
        numpy_features.correlation,
        9.53888564,
        inputs=EQUAL_VECTORS,
    ),
    Row(
        "kernel-correlation",
        ("cc",),
        partial(kernel_loss, gamma=0.4, order=2),
        partial(numpy_features.kernel_correlation, gamma=0.4, order=2),
        0.139140179821711,
        inputs=VECTORS,
    ),
    Row(
        "gaussian-v5",
        ("vid",),
        partial(gaussian, variance=np.full(6, 5.0)),
        partial(numpy_features.gaussian, variance=np.full(6, 5.0)),
        0.905920752,
        inputs=MAPS,
        matches=False,
    ),
    Row(
        "gaussian",
        ("vid",),
        partial(gaussian, variance=VARIANCES),
        partial(numpy_features.gaussian, variance=VARIANCES),
        0.632067772976932,
        inputs=MAPS,
        matches=False,
    ),
    Row("distance", ("rkd",), distance_loss, numpy_features.distances, 0.187415843, inputs=VECTORS),
    Row("angle", ("rkd",), angle_loss, numpy_features.angles, 0.19805288, inputs=VECTORS),
    Row("distance-25-angle-50", ("rkd",), relations, numpy_features.relations, 14.5880401, inputs=VECTORS),
    Row(
        "neighbours",
        ("pkt",),
        neighbour_loss,
        numpy_features.neighbours,
        0.0849027732,  # the reference code adds 1e-7 to the norms: 0.0849027549
        inputs=VECTORS,
        matches=False,  # 1e-7 in the logarithm leaves a slope of that order
    ),
    Row("selectivity", ("nst",), selectivity_loss, numpy_features.selectivity, 0.243667385, inputs=WIDE_MAPS),
    Row(
        "selectivity-of-many-channels",
        ("nst",),
        selectivity_loss,
        numpy_features.selectivity,
        0.0292270389613934,
        inputs=SMALL_MAPS,
    ),
]
