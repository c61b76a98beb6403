"""Figures as data: what a bench or a chain wants shown; the house draws it, with the same data as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["line", "points", "bars"]
Role = Literal["main", "limit", "data", "truth"]


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).reshape(-1)


@dataclass(frozen=True)
class Line:
    """One line, one set of points or one set of bars.

    Attributes:
        label: what the legend calls it; lines of one label look alike in every panel of a plot.
        x, y: the points, of equal length. Of bars, x is their centre.
        low, high: a band around y (or error bars around points), of the same length; none when left out.
        kind: how it is drawn.
        role: `main`; `limit` is dashed and black, `data` are crosses, `truth` is thin and grey.
        step: place in an ordered family of lines (steps of a chain, widths), from 0; these are shades of one
            colour scale. None for lines without an order.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    kind: Kind = "line"
    role: Role = "main"
    step: int | None = None

    @classmethod
    def of(
        cls,
        label: str,
        x: ArrayLike,
        y: ArrayLike,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        kind: Kind = "line",
        role: Role = "main",
        step: int | None = None,
    ) -> Line:
        """A line from anything that NumPy reads.

        Raises:
            ValueError: the lengths differ.
        """
        below, above = (None if band is None else _numbers(band) for band in (low, high))
        xs, ys = _numbers(x), _numbers(y)
        if len({len(part) for part in (xs, ys, below, above) if part is not None}) != 1:
            raise ValueError(f"line '{label}': x, y and band have different lengths")
        return cls(label, xs, ys, below, above, kind, role, step)

    @classmethod
    def over_seeds(
        cls, label: str, x: ArrayLike, runs: Sequence[ArrayLike], kind: Kind = "line", step: int | None = None
    ) -> Line:
        """The mean over runs (each as long as x), with a band from the least to the greatest of them."""
        stacked = np.stack([_numbers(run) for run in runs])
        several = len(stacked) > 1
        low, high = (stacked.min(0), stacked.max(0)) if several else (None, None)
        return cls.of(label, x, stacked.mean(0), low, high, kind=kind, step=step)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        xlabel, ylabel: quantity and unit.
        lines: what it shows.
        xscale, yscale: of the axes.
        ylimits: least and greatest value shown; chosen from the data when left out.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: tuple[Line, ...]
    xscale: Literal["linear", "log"] = "linear"
    yscale: Literal["linear", "log"] = "linear"
    ylimits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: of its files.
        title: what it shows, in one line; stands beside the figure, not in it.
        panels: in reading order.
        columns: panels beside each other.
        caption: what bands and marks are, how many runs, and which assumptions were made.
        shared: whether all panels have one vertical scale.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    columns: int = 2
    caption: str = ""
    shared: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the measured numbers say about one statement of a paper.

    Attributes:
        claim: the statement, in our words.
        source: paper's section, theorem or figure.
        verdict: whether it holds; `undecided` when the numbers cannot tell.
        numbers: the numbers that decide, with units and how many runs.
        setting: under which settings, where a study has several.
    """

    claim: str
    source: str
    verdict: Literal["holds", "fails", "undecided"]
    numbers: str
    setting: str = field(default="")
