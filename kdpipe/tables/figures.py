"""Figures: learning curves and checkpoint-sampling curves, as SVG and PNG with their data as CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.core.errors import ResultsError
from kdpipe.core.files import atomic
from kdpipe.core.paths import Results, RunPaths
from kdpipe.evaluation.evaluate import check_history
from kdpipe.plan.plan import TEACHER, Cell, PlannedStudy
from kdpipe.plan.study import Pair
from kdpipe.tables.blocks import block_title
from kdpipe.tables.layout import Layout, heading, site

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Quantity = Literal["top1", "loss"]

# Okabe and Ito's palette, which readers with any colour vision can tell apart, less its faint yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK, GREY = "#000000", "#767676"
_HEADED: ContextVar[str] = ContextVar("_HEADED", default="")  # what stands above the figures drawn now
LETTER, HANDLE, LINE = 0.075, 0.6, 0.19  # inches of a legend's letter, of what stands before it, of a row
COLUMNS = 4  # panels beside each other, at most
_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "kdpipe",
    "text.parse_math": False,  # labels are the user's words, not formulas
}


@dataclass(frozen=True)
class Look:
    """How one row's line is drawn."""

    colour: str
    line: Any
    marker: str

    def options(self) -> dict[str, Any]:
        """The same as arguments of matplotlib's `plot`."""
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker}


def draw_learning_curves(
    study: PlannedStudy, results: Results, stem: Path, quantity: Quantity = "top1"
) -> list[Path]:
    """Draw accuracy or loss after each epoch, with a panel per pair and recipe.

    Returns:
        The files written: an SVG, a PNG and a CSV.
    """
    with house_style():
        data = learning_data(study, results, quantity)
        return save(_learning_figure(study, data, quantity), data, stem)


def draw_sampling(study: PlannedStudy, layout: Layout, stem: Path) -> list[Path]:
    """Draw a study's checkpoint-sampling curves.

    Returns:
        The files written: an SVG, a PNG and a CSV.
    """
    with house_style():
        data = sampling_data(layout)
        return save(_sampling_figure(study, layout, data), data, stem)


def learning_data(study: PlannedStudy, results: Results, quantity: Quantity = "top1") -> pd.DataFrame:
    """Accuracy or loss after each epoch: mean, least and greatest over the seeds.

    Returns:
        Columns row, recipe, dataset, teacher, student, epoch, mean, min, max (accuracy in %, loss in nats)
        and n (seeds). They are of the validation set where the study holds one out, else of the test set.
        Runs whose history lacks the quantity are left out.

    Raises:
        ResultsError: a history cannot be read.
    """
    import pandas as pd

    keys = ["row", "recipe", "dataset", "teacher", "student", "epoch"]
    score = f"{split(study)}_{quantity}"

    @cache
    def history(run: str) -> pd.DataFrame | None:
        paths = results.run(run)
        found = read_history(paths)
        if found is None or (score not in found and quantity == "loss"):  # older ones have no loss
            return None
        if score not in found:
            raise ResultsError(
                f"a history lacks '{score}'", where=str(paths.history), fix="make the run again"
            )
        return found[["epoch", score]]

    tables = []
    for cell in study.cells:
        known = history(cell.run) if cell.run and cell.part == "table" else None
        if known is not None:
            tables.append(known.assign(**_keys(cell)))
    if not tables:
        return pd.DataFrame(columns=[*keys, "mean", "min", "max", "n"])
    joined = pd.concat(tables, ignore_index=True)
    grouped = joined.groupby(keys, sort=False)[score]
    return grouped.agg(["mean", "min", "max", "count"]).rename(columns={"count": "n"}).reset_index()


def sampling_data(layout: Layout) -> pd.DataFrame:
    """The checkpoint-sampling curves: accuracy of teacher and student against the teacher's epoch.

    Returns:
        Columns curve, row, recipe, dataset, teacher, student, epoch, rule (that picks the epoch), mean, std
        (in the measure's unit) and n (seeds).
    """
    import pandas as pd

    rows = [
        {
            "curve": block.columns[1].label,
            "row": e.place.row,
            "recipe": e.place.recipe,
            "dataset": e.place.dataset,
            "teacher": e.place.teacher,
            "student": e.place.student,
            "epoch": e.place.epoch,
            "rule": e.place.rule or "",
            "mean": e.summary.mean,
            "std": e.summary.std,
            "n": e.summary.n,
        }
        for block in layout.blocks
        for line in block.lines
        for e in line.entries
        if e.place.part == "curve"
    ]
    keys = ["curve", "row", "recipe", "dataset", "teacher", "student", "epoch", "rule"]
    columns = [*keys, "mean", "std", "n"]
    types = {"epoch": "Int64", "mean": "float64", "std": "float64"}
    return pd.DataFrame(rows, columns=columns).astype(types)


def split(study: PlannedStudy) -> str:
    """The split that is watched during training: `val` where one is held out, else `test`."""
    return "val" if study.study.split == "train-val" else "test"


def looks(study: PlannedStudy) -> dict[str, Look]:
    """A look for each row: the teacher black, students without a teacher grey, methods in colour."""
    alone = {c.row for c in study.cells if c.row != TEACHER and c.recipe is None}
    labels = [entry.label for entry in study.study.methods]
    found = {TEACHER: Look(INK, (0, (5, 1.5)), "*")}
    found |= {label: Look(GREY, (0, (1, 1)), ".") for label in labels if label in alone}
    return found | dict(zip([x for x in labels if x not in alone], palette(), strict=False))


def palette() -> Iterator[Look]:
    """Looks without end: colour and marker change each time, the line style once the colours are used up."""
    index = 0
    while True:
        turn = index // len(COLOURS)
        yield Look(COLOURS[index % len(COLOURS)], LINES[turn % len(LINES)], MARKERS[index % len(MARKERS)])
        index += 1


def _keys(cell: Cell) -> dict[str, str]:
    return {
        "row": cell.row,
        "recipe": cell.recipe or "",
        "dataset": cell.dataset,
        "teacher": cell.teacher or "",
        "student": cell.student or "",
    }


def read_history(paths: RunPaths) -> pd.DataFrame | None:
    """A run's history, a row per epoch; None when there is none (yet), or no epoch was finished.

    Raises:
        ResultsError: it cannot be read.
    """
    import pandas as pd

    if not paths.history.is_file():
        return None
    try:
        check_history(paths)
        table = pd.read_csv(paths.history)
        table["epoch"]
    except (ValueError, KeyError, OSError) as error:
        raise ResultsError(
            f"a history cannot be read: {error}", where=str(paths.history), fix="make the run again"
        ) from error
    return table if len(table) else None


def _learning_figure(study: PlannedStudy, data: pd.DataFrame, quantity: Quantity) -> Figure:
    """A panel per pair and recipe; the panels of a pair share their scale."""
    recipes = [recipe.label for recipe in study.study.recipes]
    panels = [(pair, recipe) for pair in study.study.pairs for recipe in recipes]
    figure, axes = panelled(len(panels), len(recipes))
    styles = looks(study)
    for axis, (pair, recipe) in zip(axes, panels, strict=True):
        axis.set_title(f"{heading(study.study, pair)}\n{recipe} teacher")
        here = data[data["dataset"] == site(study.study, pair)]
        lines = {row: _line_of(here, row, recipe, pair) for row in styles}
        for index, (row, line) in enumerate(lines.items()):
            if not line.empty:
                _band(axis, line, row, styles[row], index)
        finish_axis(axis, "epoch", empty=not axis.lines)
    for start in range(0, len(axes), len(recipes)):
        _zoom(axes[start : start + len(recipes)], falling=quantity == "loss")
    name = {"val": "validation", "test": "test"}[split(study)]
    figure.supylabel(f"{name} {'loss (nats)' if quantity == 'loss' else 'top-1 (%)'}", fontsize=9)
    shared_legend(figure, axes)
    return figure


def _zoom(axes: Sequence[Axes], *, falling: bool) -> None:
    """One vertical scale for some panels, from (if they fall: up to) what the means are after a third.

    The first epochs climb or fall so far that on their scale the lines of all methods would lie on each
    other.
    """
    import numpy as np

    means = [np.asarray(line.get_ydata(), dtype=float) for axis in axes for line in axis.lines]
    late = [mean[len(mean) // 3 :] for mean in means]
    finite = np.concatenate([*late, []])
    finite = finite[np.isfinite(finite)]
    if len(finite):
        every = np.concatenate(means)
        every = every[np.isfinite(every)]
        low, high = (every.min(), finite.max()) if falling else (finite.min(), every.max())
        margin = 0.05 * (high - low) or 1.0
        for axis in axes:
            axis.set_ylim(low - margin, high + margin)


def _line_of(data: pd.DataFrame, row: str, recipe: str, pair: Pair) -> pd.DataFrame:
    """The line of a row in a panel; a student without a teacher is in every panel of its network."""
    mine = data[data["row"] == row]
    if row == TEACHER:
        return mine[(mine["recipe"] == recipe) & (mine["teacher"] == pair.teacher)]
    mine = mine[mine["student"] == pair.student]
    taught = (mine["recipe"] == recipe) & (mine["teacher"] == pair.teacher)
    return mine[taught | (mine["recipe"] == "")]


def _band(axis: Axes, line: pd.DataFrame, label: str, look: Look, index: int) -> None:
    """A mean with markers that keep off the other lines', and a band over the range of the seeds."""
    every = max(1, math.ceil(len(line) / 8))
    options = look.options() | {"markevery": (index % every, every), "label": label}
    axis.plot(line["epoch"], line["mean"], **options)
    if (line["n"] > 1).any():
        axis.fill_between(line["epoch"], line["min"], line["max"], color=look.colour, alpha=0.15, linewidth=0)


def _sampling_figure(study: PlannedStudy, layout: Layout, data: pd.DataFrame) -> Figure:
    """A row of two panels per curve and pair: the teacher's accuracy, and the student's."""
    curves = [(curve.method, pair) for curve in study.study.curves for pair in study.study.pairs]
    figure, axes = panelled(2 * len(curves), 2)
    recipes = dict(zip([r.label for r in study.study.recipes], palette(), strict=False))
    for index, (method, pair) in enumerate(curves):
        own = data[
            (data["curve"] == method)
            & (data["dataset"] == site(study.study, pair))
            & (data["teacher"] == pair.teacher)
            & (data["student"] == pair.student)
        ].dropna(subset=["epoch"])
        for axis, row in zip(axes[2 * index : 2 * index + 2], (TEACHER, method), strict=True):
            for nth, (recipe, look) in enumerate(recipes.items()):
                points = own[(own["recipe"] == recipe) & (own["row"] == row)].dropna(subset=["mean"])
                if not points.empty:
                    draw_points(axis, points, "epoch", recipe, look, beside=nth - (len(recipes) - 1) / 2)
            who = f"teacher {pair.teacher}" if row == TEACHER else f"student {pair.student}, {method}"
            several = len(study.study.datasets) > 1
            axis.set_title(f"{site(study.study, pair)}: {who}" if several else who)
            axis.set_ylabel(block_title(study.study.metrics[0]).replace(", higher is better", ""))
            finish_axis(axis, "teacher epoch", empty=not axis.lines, ticks=sorted(set(own["epoch"])))
    shared_legend(figure, axes, title="teacher's recipe")
    return figure


def draw_points(axis: Axes, points: pd.DataFrame, x: str, label: str, look: Look, beside: float = 0) -> None:
    """Means with bars of one standard deviation, `beside` hundredths of the range off their place.

    Drawn at their very place, the bars of several recipes would cover each other.
    """
    places, spread = points[x].astype(float), points["std"].fillna(0.0)
    shifted = places + beside * (places.max() - places.min()) / 100
    axis.errorbar(shifted, points["mean"], spread, capsize=2.5, label=label, **look.options())


def panelled(count: int, per_row: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` panels, at most `COLUMNS` beside each other."""
    from matplotlib.figure import Figure

    columns = min(count, per_row, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.7 * rows + 0.7), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def finish_axis(axis: Axes, xlabel: str, *, empty: bool, ticks: Sequence[int] = ()) -> None:
    """Label the horizontal axis, which counts in whole numbers, and say where there is nothing to show."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(xlabel)
    if not ticks or len(ticks) > 8:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    else:
        axis.set_xticks(ticks)
    if empty:
        axis.text(0.5, 0.5, "no results yet", ha="center", va="center", transform=axis.transAxes, color=GREY)


def shared_legend(figure: Figure, axes: Sequence[Axes], title: str | None = None) -> None:
    """One legend below all panels, so that it covers no data."""
    shown: dict[str, Any] = {}
    for axis in axes:
        shown |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if shown:
        longest = max(len(label) for label in shown) * LETTER + HANDLE
        columns = max(1, min(len(shown), 8, int(figure.get_figwidth() / longest)))
        figure.set_figheight(figure.get_figheight() + (math.ceil(len(shown) / columns) - 1) * LINE)
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, title=title)


def save(figure: Figure, data: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a figure and its data; no date, so that the same data give the same bytes."""
    _head(figure)
    _settle(figure)
    paths = [stem.with_suffix(suffix) for suffix in (".svg", ".png", ".csv")]
    with atomic(paths[0]) as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "kdpipe"})
    with atomic(paths[1]) as file:
        figure.savefig(file, format="png", metadata={"Software": "kdpipe"})
    with atomic(paths[2]) as file:
        data.to_csv(file, index=False, lineterminator="\n")
    return paths


@contextmanager
def headed(text: str) -> Iterator[None]:
    """Every figure that is saved meanwhile says `text` at its top, in small letters."""
    token = _HEADED.set(text)
    try:
        yield
    finally:
        _HEADED.reset(token)


def _head(figure: Figure) -> None:
    text, size = _HEADED.get(), 6.5
    if text:
        width, height = figure.get_size_inches()
        lines = textwrap.wrap(text, int(width / (0.56 * size / 72)))
        if own := figure.get_suptitle():
            lines.append(own)
        figure.set_size_inches(width, height + 0.04 + len(lines) * 1.3 * size / 72)
        figure.suptitle("\n".join(lines), fontsize=size, color=GREY)


def _settle(figure: Figure) -> None:
    """Lay the figure out, then round the places: the last bits of the layout's solver vary."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        left, bottom, width, height = (round(x, 5) for x in axis.get_position(original=True).bounds)
        axis.set_position((left, bottom, width, height))


@contextmanager
def house_style() -> Iterator[None]:
    """The house style, whatever the user's own matplotlib settings."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
