"""Ranks of the methods over a study's columns, with Friedman's test and Nemenyi's critical difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from kdpipe.tables.blocks import Block
from kdpipe.tables.figures import GREY, INK, house_style, save
from kdpipe.tables.layout import Layout

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FEWEST_COLUMNS = 3
FEWEST_METHODS = 3


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods, 1 for the best (Demšar 2006, sec. 3.2).

    Attributes:
        mean: method -> mean of its ranks over the columns, best first.
        columns: how many columns they are means over.
        p: Friedman's test that all methods are alike; None when all tie in every column.
        critical: mean ranks that differ by less are not told apart at the 5 % level (Nemenyi 1963):
            q sqrt(k (k + 1) / (6 N)) for k methods, N columns and q from the studentised range, over sqrt(2).
        left_out: methods without a complete cell in one of the columns.
    """

    mean: dict[str, float]
    columns: int
    p: float | None
    critical: float
    left_out: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The largest sets of neighbouring methods that are not told apart."""
        names = list(self.mean)
        found: list[tuple[str, ...]] = []
        for start, first in enumerate(names):
            group = tuple(n for n in names[start:] if self.mean[n] - self.mean[first] < self.critical)
            if len(group) > 1 and not (found and set(group) <= set(found[-1])):
                found.append(group)
        return found


def mean_ranks(block: Block) -> Ranks | None:
    """The mean ranks of a table's students; None with fewer than 3 of them, or of columns.

    A column without any complete cell is not waited for; a method that lacks a complete cell in one of the
    others is left out, and the rest are ranked among themselves.
    """
    from scipy import stats

    lines = [line for line in block.lines if line.kind != "teacher"]
    columns = [c for c in range(len(block.columns)) if any(x.entries[c].rank is not None for x in lines)]
    # The ranks of a table are among all that are whole in a column; left out some, they are ranked anew.
    places = {x.label: [x.entries[c].rank for c in columns] for x in lines}
    whole = {label: [r for r in own if r is not None] for label, own in places.items() if None not in own}
    if len(columns) < FEWEST_COLUMNS or len(whole) < FEWEST_METHODS:
        return None
    again = stats.rankdata(list(whole.values()), axis=0)
    mean = {label: float(fmean(own)) for label, own in zip(whole, again, strict=True)}
    varies = len(set(mean.values())) > 1 or any(len(set(column)) > 1 for column in again.T)
    p = float(stats.friedmanchisquare(*again).pvalue) if varies else None
    return Ranks(
        mean=dict(sorted(mean.items(), key=lambda item: item[1])),
        columns=len(columns),
        p=p,
        critical=critical_difference(len(whole), len(columns)),
        left_out=tuple(label for label in places if label not in whole),
    )


def critical_difference(methods: int, columns: int) -> float:
    """Nemenyi's critical difference of mean ranks at the 5 % level (Demšar 2006, sec. 3.2.2)."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(0.95, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * columns))


def rank_data(found: Ranks | None) -> pd.DataFrame:
    """The same as a table: columns method, mean_rank, columns, friedman_p, critical_difference, group.

    `group` has the numbers of the sets of methods that are not told apart which a method is in.
    """
    import pandas as pd

    names = ["method", "mean_rank", "columns", "friedman_p", "critical_difference", "groups"]
    rows = []
    for method, mean in found.mean.items() if found else ():
        assert found is not None
        groups = " ".join(str(i) for i, group in enumerate(found.groups, 1) if method in group)
        rows.append((method, mean, found.columns, found.p, found.critical, groups))
    return pd.DataFrame(rows, columns=names)


def draw_ranks(layout: Layout, stem: Path) -> list[Path]:
    """Draw the critical-difference diagram of a study's first measure (Demšar 2006, Figure 1).

    Returns:
        The files written: an SVG, a PNG and a CSV.
    """
    from matplotlib.figure import Figure

    found = mean_ranks(layout.blocks[0])
    with house_style():
        if found is None:
            figure = Figure(figsize=(5.4, 0.8))
            text = f"ranks take {FEWEST_METHODS} methods with all seeds finished in {FEWEST_COLUMNS} columns"
            figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
        else:
            half = math.ceil(len(found.mean) / 2)
            height = 0.9 + 0.24 * half + 0.1 * len(found.groups)
            figure = Figure(figsize=(7.4, height), layout="constrained")
            _diagram(figure.add_subplot(), found)
        return save(figure, rank_data(found), stem)


def _diagram(axis: Axes, found: Ranks) -> None:
    """An axis of mean ranks, best on the left; methods hang from it, bars join those not told apart."""
    names, count = list(found.mean), len(found.mean)
    half = math.ceil(count / 2)
    depth = 0.35 * len(found.groups) + 0.4
    axis.set(xlim=(1 - 0.45 * count, count + 0.45 * count), ylim=(-(depth + half), 1.6))
    axis.axis("off")
    axis.plot([1, count], [0, 0], color=INK, linewidth=1)
    for tick in range(1, count + 1):
        axis.plot([tick, tick], [0, 0.15], color=INK, linewidth=1)
        axis.text(tick, 0.25, str(tick), ha="center", va="bottom")
    for index, name in enumerate(names):
        left = index < half
        y = -(depth + (index if left else count - 1 - index))
        x, edge = found.mean[name], 0.8 if left else count + 0.2
        axis.plot([x, x, edge], [0, y, y], color=GREY, linewidth=0.8)
        label = f"{name} {x:.2f}" if left else f"{x:.2f} {name}"
        axis.text(edge, y, f"{label} " if left else f" {label}", ha="right" if left else "left", va="center")
    for index, group in enumerate(found.groups):
        ends = [found.mean[group[0]] - 0.05, found.mean[group[-1]] + 0.05]
        axis.plot(ends, [-(0.3 + 0.35 * index)] * 2, color=INK, linewidth=3, solid_capstyle="butt")
    shown = min(found.critical, count - 1)
    axis.plot([1, 1 + shown], [1.1, 1.1], color=INK, linewidth=1.4)
    wide = " (wider than the axis)" if found.critical > shown else ""
    said = "" if found.p is None else f"; Friedman p {found.p:.3g}"
    axis.text(1, 1.2, f"critical difference {found.critical:.2f}{wide}{said}", ha="left", va="bottom")
    if found.left_out:
        out = f"left out, not every column has all seeds: {', '.join(found.left_out)}"
        axis.text((1 + count) / 2, -(depth + half), out, ha="center", va="bottom", color=GREY, wrap=True)
