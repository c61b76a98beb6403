"""From the numbers of several seeds to a verdict: intervals, and which way they point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    import pandas as pd

    from kdpipe.api import Finding

Judgement = Literal["holds", "fails", "undecided"]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval over seeds; unbounded for a single seed."""
    middle = float(np.mean(values))
    if len(values) < 2:
        return middle, -np.inf, np.inf
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return middle, middle - half, middle + half


def side(holds: bool, fails: bool) -> Judgement:
    """The verdict that is called for; undecided where neither is."""
    return "holds" if holds else "fails" if fails else "undecided"


def together(says: Sequence[Judgement]) -> Judgement:
    """Holds when every part does, fails when any part does."""
    return side(set(says) == {"holds"}, "fails" in says)


def variants(found: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """Each variant's label and findings by seed, in the study's order."""
    for label in dict.fromkeys(each.label for each in found):
        yield label, sorted((each for each in found if each.label == label), key=lambda each: each.seed)


def rows_at(table: pd.DataFrame, **values: float) -> pd.DataFrame:
    """The rows that hold these values."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def given(found: Sequence[Finding], setting: str) -> str:
    """A setting, with every value that the variants give it."""
    values = dict.fromkeys(getattr(each.bench.config, setting) for each in found)
    return " or ".join(f"{value:g}" for value in values)
