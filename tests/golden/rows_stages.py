"""Losses of the methods with a first stage, or with a part of their own on the teacher."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from kdpipe.methods.ab import boundaries_loss
from kdpipe.methods.ft import factor_loss
from kdpipe.methods.sskd import contrastive_loss, own_image, selected_kl, similarities
from tests.golden import numpy_stages
from tests.golden.inputs import LABELS, STUDENT_MAPS, wave
from tests.golden.row import MAPS, Row, Y

WIDE_MAPS = wave((8, 12, 4, 4), 0.23, 0.7, 1)
LARGE_MAPS = wave((8, 6, 8, 8), 0.23, 0.7, 1)
VIEWS = (wave((16, 12), 0.31, 0.1, 1), wave((16, 20), 0.17, 0.4, 1))  # four images, four turns each


def three_stages(s: Tensor, t: Tensor) -> Tensor:
    return boundaries_loss([s, s, s], [t, t, t], margin=1)


def selected_similarities(s: Tensor, t: Tensor) -> Tensor:
    mine, its = similarities(s), similarities(t)
    return selected_kl(mine, its, own_image(its), ratio=0.75, temperature=0.5)


ROWS = [
    Row(
        "ab-three-stages",
        ("ab",),
        three_stages,
        numpy_stages.three_stages,
        0.76063985,
        inputs=MAPS,
        matches=False,
    ),
    Row(
        "ft-field",
        ("ft",),
        partial(factor_loss, form="field"),
        numpy_stages.fields,
        0.0198265594,
        inputs=(STUDENT_MAPS, WIDE_MAPS),
    ),
    Row(
        "ft-field-larger",
        ("ft",),
        partial(factor_loss, form="field"),
        numpy_stages.fields,
        0.0207490622,
        inputs=(STUDENT_MAPS, LARGE_MAPS),
    ),
    Row(
        "ft-paper",
        ("ft",),
        partial(factor_loss, form="paper"),
        numpy_stages.factors,
        0.117678146,
        inputs=MAPS,
    ),
    Row(
        "sskd-contrast",
        ("sskd",),
        lambda s, t: contrastive_loss(s),
        lambda s, t: numpy_stages.contrast(s),
        1.60182452,
        inputs=VIEWS,
        matches=False,
    ),
    Row(
        "sskd-selected-logits",
        ("sskd",),
        lambda s, t: selected_kl(s, t, Y, ratio=0.75, temperature=4),
        lambda s, t: numpy_stages.selected(s, t, LABELS, 0.75, 4),
        5.21101447,
    ),
    Row(
        "sskd-selected-similarities",
        ("sskd",),
        selected_similarities,
        lambda s, t: numpy_stages.selected_similarities(s, t, 0.75, 0.5),
        0.421473161,
        inputs=VIEWS,
    ),
]
