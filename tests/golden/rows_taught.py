"""Losses of the recipes crl, cross_fitting, born_again and self_distillation."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kdpipe.api import Batch, Outputs, Progress
from kdpipe.nn.logits import full
from kdpipe.recipes.born_again import BornAgain
from kdpipe.recipes.crl import largest, lead, negative_entropy, ranking_loss
from kdpipe.recipes.cross_fitting import outside_loss
from kdpipe.recipes.self_distillation import SelfDistillation
from tests.golden import numpy_taught
from tests.golden.row import Row, Y


def crl(s: Tensor, t: Tensor, confidence) -> Tensor:
    return ranking_loss(confidence(s), full(t).softmax(1).amax(1))


def outside(s: Tensor, t: Tensor) -> Tensor:
    return outside_loss(s, Y[: len(s)], torch.arange(len(s)) % 3 == 0)


def born_again(s: Tensor, t: Tensor) -> Tensor:
    """The sum of the recipe's terms."""
    recipe = BornAgain(BornAgain.Config(gamma=0.5, alpha=2))
    batch = Batch(torch.zeros(len(s), 1), Y[: len(s)], torch.arange(len(s)))
    return sum(recipe.loss(None, Outputs(s), Outputs(t), batch, Progress(0, 1)).values())


def self_distillation(s: Tensor, t: Tensor, alpha: float, loss: Literal["mse", "kl"]) -> Tensor:
    """The sum of the recipe's terms."""
    recipe = SelfDistillation(SelfDistillation.Config(alpha=alpha, loss=loss))
    batch = Batch(torch.zeros(len(s), 1), Y[: len(s)], torch.arange(len(s)))
    return sum(recipe.loss(None, Outputs(s), Outputs(t), batch, Progress(0, 1)).values())


ROWS = [
    Row(
        "crl-softmax",
        ("crl",),
        partial(crl, confidence=largest),
        numpy_taught.crl_softmax,
        0.0826947258,
        matches=False,
    ),
    Row(
        "crl-margin",
        ("crl",),
        partial(crl, confidence=lead),
        numpy_taught.crl_margin,
        0.0859962743,
        matches=False,
    ),
    Row(
        "crl-entropy",
        ("crl",),
        partial(crl, confidence=negative_entropy),
        numpy_taught.crl_entropy,
        0.0896574014,
        matches=False,
    ),
    Row("outside", ("cross_fitting",), outside, numpy_taught.outside, 3.44945809, matches=False),
    Row(
        "born-again",
        ("born_again",),
        born_again,
        partial(numpy_taught.born_again, gamma=0.5, alpha=2),
        6.7333506,
        matches=False,
    ),
    Row(
        "self-distillation-mse",
        ("self_distillation",),
        partial(self_distillation, alpha=0.35, loss="mse"),
        partial(numpy_taught.self_distillation, alpha=0.35, loss="mse"),
        0.0707352992,
        matches=False,
    ),
    Row(
        "self-distillation-kl",
        ("self_distillation",),
        partial(self_distillation, alpha=0.35, loss="kl"),
        partial(numpy_taught.self_distillation, alpha=0.35, loss="kl"),
        2.90531007,
        matches=False,
    ),
    Row(
        "self-distillation-before",
        ("self_distillation",),
        partial(self_distillation, alpha=0.0, loss="mse"),
        partial(numpy_taught.self_distillation, alpha=0.0, loss="mse"),
        0.04781983,
    ),
]
