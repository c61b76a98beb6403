"""Losses of the first methods and recipes."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from kdpipe.methods.dkd import others_loss, target_loss
from kdpipe.methods.fitnet import hint_loss
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy, full, kl
from kdpipe.recipes.soteacher import consistency_loss
from tests.golden import numpy_losses
from tests.golden.row import MAPS, Row, Y


def dkd(s: Tensor, t: Tensor) -> Tensor:
    return target_loss(s, t, Y, 4) + 8 * others_loss(s, t, Y, 4)


def consistency(s: Tensor, t: Tensor) -> Tensor:
    return consistency_loss(full(s).softmax(1), full(t).softmax(1))


ROWS = [
    Row(
        "ce",
        ("scratch", "standard"),
        lambda s, t: cross_entropy(s, Y),
        numpy_losses.cross_entropy,
        3.82384602,
        matches=False,
    ),
    Row(
        "kd-T4",
        ("kd", "rco"),
        partial(kl, temperature=4),
        partial(numpy_losses.kd, temperature=4),
        5.21036271,
    ),
    Row(
        "kd-T1", ("kd", "dml"), partial(kl, temperature=1), partial(numpy_losses.kd, temperature=1), 2.4107138
    ),
    Row(
        "tckd-T4",
        ("dkd",),
        lambda s, t: target_loss(s, t, Y, 4),
        partial(numpy_losses.tckd, temperature=4),
        0.289710587,
    ),
    Row(
        "nckd-T4",
        ("dkd",),
        lambda s, t: others_loss(s, t, Y, 4),
        partial(numpy_losses.nckd, temperature=4),
        5.46572427,
    ),
    Row("dkd-a1-b8-T4", ("dkd",), dkd, partial(numpy_losses.dkd, temperature=4, alpha=1, beta=8), 44.0155048),
    Row(
        "binarykl-T2",
        ("dhkd",),
        partial(binary_kl, temperature=2),
        partial(numpy_losses.binary_kl, temperature=2),
        12.7490143,
    ),
    Row(
        "binarykl-norm-T2",
        ("dhkd",),
        partial(binary_kl_norm, temperature=2),
        partial(numpy_losses.binary_kl_norm, temperature=2),
        12.8890443,
    ),
    Row("hint", ("fitnet",), hint_loss, numpy_losses.hint, 1.0120178, inputs=MAPS),
    Row("consistency", ("soteacher",), consistency, numpy_losses.consistency, 0.478198300),
]
