"""Chains of self-distillation: which runs a chain consists of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdpipe.plan.study import Chain, Entry, Study

RECIPE = "self_distillation"


def alpha_label(alpha: float) -> str:
    """How tables call the chain of an alpha."""
    return f"α = {alpha:g}"


def step_entry(chain: Chain, alpha: float, step: int) -> Entry:
    """The recipe of one step, counted from 1; the first is the same for every alpha."""
    first = step == 1
    settings: dict[str, Any] = {
        "alpha": 1.0 if first else alpha,
        "generations": step - 1,
        "loss": chain.loss,
        "weights": "new" if first else chain.weights,
    }
    return Entry(name=RECIPE, label=alpha_label(alpha), settings=settings)


def models_of(study: Study) -> Iterator[str]:
    """The networks of a study's chains."""
    for chain in study.chains:
        yield from chain.models
