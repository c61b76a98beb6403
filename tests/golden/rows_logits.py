"""Losses of the methods that match logits."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from kdpipe.methods.dist import inter_loss, intra_loss
from kdpipe.methods.logit_std_kd import standardise
from kdpipe.methods.mlld import batch_loss, class_loss
from kdpipe.methods.mse import logit_mse
from kdpipe.methods.ttm import ttm_loss
from kdpipe.methods.wttm import wttm_loss
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy, kl
from tests.golden import numpy_logits, numpy_losses
from tests.golden.row import Row, Y


def dist(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return inter_loss(s, t, temperature) + intra_loss(s, t, temperature)


def ce_binary_kl(s: Tensor, t: Tensor) -> Tensor:
    return cross_entropy(s, Y) + binary_kl(s, t, 2)


def logit_std_kd(s: Tensor, t: Tensor) -> Tensor:
    return kl(standardise(s), standardise(t), 2)


ROWS = [
    Row("mse", ("mse",), logit_mse, numpy_logits.mse, 12.713301),
    Row(
        "binarykl-T1",
        ("binarykl",),
        partial(binary_kl, temperature=1),
        partial(numpy_losses.binary_kl, temperature=1),
        8.64814057,
    ),
    Row(
        "binarykl-norm-T1",
        ("binarykl_norm",),
        partial(binary_kl_norm, temperature=1),
        partial(numpy_losses.binary_kl_norm, temperature=1),
        9.43405585,
    ),
    Row(
        "ce-binarykl-T2",
        ("ce_binarykl",),
        ce_binary_kl,
        partial(numpy_logits.ce_binary_kl, temperature=2),
        16.5728603,
        matches=False,
    ),
    Row(
        "dual-head-kd-T4",
        ("dual_head_kd",),
        partial(kl, temperature=4),
        partial(numpy_losses.kd, temperature=4),
        5.21036271,
    ),
    Row(  # the constant beside the norms leaves a trace where the two agree
        "dist-T1",
        ("dist",),
        partial(dist, temperature=1),
        partial(numpy_logits.dist, temperature=1),
        2.27922411,
        matches=False,
    ),
    Row(
        "dist-T4",
        ("dist",),
        partial(dist, temperature=4),
        partial(numpy_logits.dist, temperature=4),
        36.8238967,
        matches=False,
    ),
    Row(
        "ttm-T4",
        ("ttm",),
        partial(ttm_loss, temperature=4),
        partial(numpy_logits.ttm, power=0.25),
        1.49132201,
        matches=False,
    ),
    Row("ttm-T1", ("ttm",), partial(ttm_loss, temperature=1), partial(numpy_logits.ttm, power=1), 2.4107138),
    Row(
        "wttm-T4",
        ("wttm",),
        partial(wttm_loss, temperature=4),
        partial(numpy_logits.wttm, power=0.25),
        5.83275917,
        matches=False,
    ),
    Row(
        "mlld-class-T4",
        ("mlld",),
        partial(class_loss, temperature=4),
        partial(numpy_logits.class_level, temperature=4),
        0.00575416827,
    ),
    Row(
        "mlld-batch-T4",
        ("mlld",),
        partial(batch_loss, temperature=4),
        partial(numpy_logits.batch_level, temperature=4),
        0.00359458123,
    ),
    Row(
        "logit-std-kd-T2",
        ("logit_std_kd",),
        logit_std_kd,
        partial(numpy_logits.logit_std_kd, temperature=2),
        1.00414015,
    ),
]
