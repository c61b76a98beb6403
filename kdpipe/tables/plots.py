"""Plots: a figure that is given as data (`kdpipe.core.plot`), as SVG and PNG with the same data as CSV.

A figure is at most as wide as the text of a printed page, so that it is printed at its own size and no
letter of it is smaller than `SMALL` points.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from kdpipe.core.errors import PluginError
from kdpipe.core.plot import Kind, Line, Panel, Plot, Role
from kdpipe.tables.figures import COLUMNS, GREY, INK, LINES, MARKERS, Look, house_style, palette, save

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = NDArray[np.float64]
Limits = tuple[float, float]

SMALL, NORMAL = 7.0, 8.0  # letters, in points
FEW = 12  # points of a line that each get a marker
_WIDTHS = {1: 4.3, 2: 6.6, 3: 6.6, 4: 6.6}  # inches, by columns; the text of a page is 6.7 (17 cm) wide
_HEIGHTS = {1: 2.5, 2: 1.8, 3: 1.6, 4: 1.45}  # inches of the axes, by columns
_SHADES = (0.0, 0.78)  # the part of viridis that is dark enough to print on white
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
_STROKES = {"truth": 0.9, "main": 1.2, "limit": 1.1, "data": 0.9}  # line widths in points
_LAYERS = {"truth": 2.0, "main": 2.5, "limit": 3.0, "data": 3.5}
_ROLES: dict[str, tuple[str, tuple[Any, ...], str]] = {  # colour, lines and markers of each role but `main`
    "limit": (INK, ((0, (4, 1.6)), (0, (1, 1.2)), (0, (6, 1.4, 1, 1.4))), "Ds^"),
    "data": (INK, ("none",), "x+12"),
    "truth": (GREY, ("-", (0, (5, 2)), (0, (2, 1.5))), ".os"),
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLE: dict[Any, Any] = {
    "axes.labelpad": 2.5,
    "axes.labelsize": NORMAL,
    "axes.linewidth": 0.6,
    "axes.titlesize": NORMAL,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.05,
    "font.size": NORMAL,
    "hatch.linewidth": 0.6,
    "legend.fontsize": NORMAL,
    "legend.handlelength": 2.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 300,
    "xtick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.labelsize": SMALL,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
}


def draw_plot(plot: Plot, stem: Path) -> list[Path]:
    """Draw a plot in the house style.

    Args:
        plot: the plot; at most four of its panels stand beside each other.
        stem: the files' path without suffix.

    Returns:
        The files written: an SVG, a PNG and a CSV with the columns of `tidy`.

    Raises:
        PluginError: the plot contradicts itself.
    """
    with plot_style():
        return save(figure_of(plot), tidy(plot), stem)


def tidy(plot: Plot) -> pd.DataFrame:
    """A plot's own data, one row per point.

    Returns:
        Columns panel (its title; with its number where titles repeat), line (its label), kind, role, x, y,
        low and high (NaN where there is no band), in the units of the axes.
    """
    import pandas as pd

    titles = [panel.title for panel in plot.panels]
    names = [
        title if titles.count(title) == 1 else f"{title} ({number})".lstrip()
        for number, title in enumerate(titles, 1)
    ]
    columns = ["panel", "line", "kind", "role", "x", "y", "low", "high"]
    rows = [
        (name, line.label, line.kind, line.role, *point)
        for name, panel in zip(names, plot.panels, strict=True)
        for line in panel.lines
        for point in zip(line.x, line.y, *_band(line), strict=True)
    ]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[4:], "float64"))


def looks_of(plot: Plot) -> dict[str, Look]:
    """The look of each label, in order of first appearance.

    Lines of an ordered family go from dark to light in the order of their steps; those that share a step
    differ in their dashes.
    """
    first: dict[str, Line] = {}
    for line in _lines(plot):
        first.setdefault(line.label, line)
    steps = sorted({x.step for x in first.values() if _in_family(x) and x.step is not None})
    free, found = palette(), {}
    used: dict[str | int | None, int] = {}
    for label, line in first.items():
        key = line.role if line.role != "main" else line.step
        nth = used.get(key, 0)
        used[key] = nth + 1
        if line.role != "main":
            colour, dashes, markers = _ROLES[line.role]
            found[label] = Look(colour, dashes[nth % len(dashes)], markers[nth % len(markers)])
        elif line.step is None:
            found[label] = next(free)
        else:
            rank = steps.index(line.step)
            marker = MARKERS[(rank + 4 * nth) % len(MARKERS)]
            found[label] = Look(_shade(rank, len(steps)), LINES[nth % len(LINES)], marker)
    return found


@contextmanager
def plot_style() -> Iterator[None]:
    """The house style, with letters and strokes for a figure that is printed at its own size."""
    import matplotlib

    with house_style():
        matplotlib.rcParams.update(_STYLE)
        yield


def figure_of(plot: Plot) -> Figure:
    """The figure of a plot, to be called within `plot_style`.

    Raises:
        PluginError: the plot contradicts itself.
    """
    from matplotlib.figure import Figure

    _check(plot)
    page = _Page.of(plot)
    views = _same_scale([_View.of(x) for x in plot.panels], plot.shared)
    figure = Figure(figsize=(page.width, page.width), layout="constrained")
    grid = figure.add_gridspec(page.rows, page.columns)
    axes = [figure.add_subplot(grid[divmod(index, page.columns)]) for index in range(len(views))]
    for index, (axis, view) in enumerate(zip(axes, views, strict=True)):
        _draw(axis, view, page)
        axis.tick_params(labelleft=not (page.ylabel and index % page.columns))
    heights = [page.axes_height + _around(axis) for axis in axes]
    body = sum(max(heights[i : i + page.columns]) for i in range(0, len(heights), page.columns))
    below = _legend(figure, plot, page)
    height = round(body + below, 2)
    figure.set_size_inches(page.width, height)
    if page.ylabel:
        middle = (below + body / 2 + 0.08) / height
        figure.supylabel(_wrap(page.ylabel, NORMAL, 72 * body), y=middle, fontsize=NORMAL)
    return figure


def _check(plot: Plot) -> None:
    """Refuse what cannot be drawn, in words for the author of the bench."""

    def wrong(what: str) -> PluginError:
        return PluginError(f"plot '{plot.name}': {what}")

    if not plot.panels:
        raise wrong("it has no panels; give it at least one")
    if plot.columns < 1:
        raise wrong(f"columns is {plot.columns}; give at least 1")
    if plot.shared and len({panel.yscale for panel in plot.panels}) > 1:
        raise wrong("its panels share a vertical scale, but some are linear and some log; choose one")
    for panel in plot.panels:
        limits = panel.ylimits
        if limits and not (np.isfinite(limits).all() and limits[0] < limits[1]):
            raise wrong(f"panel '{panel.title}': ylimits {limits} must be finite and ascend")
        if limits and panel.yscale == "log" and limits[0] <= 0:
            raise wrong(f"panel '{panel.title}': ylimits {limits} must be positive on a log axis")
        for line in panel.lines:
            place = f"panel '{panel.title}', line '{line.label}'"
            for value, known in ((line.kind, get_args(Kind)), (line.role, get_args(Role))):
                if value not in known:
                    raise wrong(f"{place}: '{value}' is none of {', '.join(known)}")
            if (line.low is None) != (line.high is None):
                raise wrong(f"{place}: a band needs low and high; give both or none")
            if len({len(part) for part in (line.x, line.y, *_band(line))}) > 1:
                raise wrong(f"{place}: x, y, low and high differ in length; make it by Line.of")


def _lines(plot: Plot) -> list[Line]:
    return [line for panel in plot.panels for line in panel.lines]


def _in_family(line: Line) -> bool:
    return line.role == "main" and line.step is not None


def _band(line: Line) -> tuple[Numbers, Numbers]:
    none = np.full(len(line.x), np.nan)
    return none if line.low is None else line.low, none if line.high is None else line.high


def _shade(rank: int, count: int) -> str:
    """A colour of the family's scale, from dark (rank 0) to light."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = _SHADES
    return to_hex(colormaps["viridis"](low + (high - low) * rank / max(count - 1, 1)))


# What a panel shows


@dataclass(frozen=True)
class _Shown:
    """The points of a line that its axes can show, and the edges of its bars."""

    line: Line
    x: Numbers
    y: Numbers
    low: Numbers
    high: Numbers
    edges: tuple[Numbers, ...] = ()  # left and right

    @classmethod
    def of(cls, line: Line, panel: Panel) -> _Shown:
        """Leave out what a log axis has no place for; without its y a point is a gap."""
        seen = np.isfinite(line.y) & ((line.y > 0) | (panel.yscale == "linear"))
        keep = np.isfinite(line.x) & ((line.x > 0) | (panel.xscale == "linear"))
        if line.kind == "bars":
            keep &= seen
        y, low, high = (np.where(seen & np.isfinite(part), part, np.nan) for part in (line.y, *_band(line)))
        return cls(line, line.x[keep], y[keep], low[keep], high[keep])

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which points are no gaps."""
        return ~np.isnan(self.y)

    @property
    def alone(self) -> NDArray[np.bool_]:
        """Points between two gaps, where a line has no stroke to be seen by."""
        padded = np.pad(self.known, 1)
        return self.known & ~padded[:-2] & ~padded[2:]


@dataclass(frozen=True)
class _View:
    """What is seen of a panel: its points and the limits of its axes."""

    panel: Panel
    lines: tuple[_Shown, ...]
    xlimits: Limits
    ylimits: Limits

    @classmethod
    def of(cls, panel: Panel) -> _View:
        log = panel.xscale == "log", panel.yscale == "log"
        lines = _dodge([x for x in (_Shown.of(x, panel) for x in panel.lines) if x.known.any()], log[0])
        across = [part for s in lines for part in (s.x[s.known], *s.edges)]
        up = [part for s in lines for part in (s.y, s.low, s.high)]
        bars = any(shown.edges for shown in lines)
        if bars and not log[1]:
            up.append(np.zeros(1))
        ylimits = panel.ylimits or _limits(up, log[1], 0.06, foot=bars)
        return cls(panel, tuple(lines), _limits(across, log[0], 0.03), ylimits)


def _dodge(lines: Sequence[_Shown], log: bool) -> list[_Shown]:
    """Give the bars of a panel their edges: side by side, in the width that the spacing of x allows."""
    bars = [shown for shown in lines if shown.line.kind == "bars"]
    if not bars:
        return list(lines)
    labels = list(dict.fromkeys(shown.line.label for shown in bars))
    centres = np.unique(np.concatenate([np.log10(shown.x) if log else shown.x for shown in bars]))
    gaps = np.diff(centres)
    gaps = gaps[gaps > 1e-9 * np.abs(centres).max()]  # bins computed twice differ in their last bits
    room = 0.86 * float(gaps.min(initial=np.inf) if len(gaps) else 1.0)

    def edges(shown: _Shown) -> tuple[Numbers, ...]:
        middle = np.log10(shown.x) if log else shown.x
        left = middle - room / 2 + room / len(labels) * labels.index(shown.line.label)
        return tuple(10.0**edge if log else edge for edge in (left, left + room / len(labels)))

    return [replace(s, edges=edges(s)) if s.line.kind == "bars" else s for s in lines]


def _limits(parts: Sequence[Numbers], log: bool, margin: float, foot: bool = False) -> Limits:
    """The range of some values with a margin, but none beyond the zero on which bars stand."""
    values = np.concatenate([*parts, np.empty(0)])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(values):
        return (1.0, 10.0) if log else (0.0, 1.0)
    values = np.log10(values) if log else values
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) or (0.3 if log else 0.1 * abs(high) or 1.0)
    if log:
        return 10 ** (low - room), 10 ** (high + room)
    if foot and low == 0:
        return 0.0, high + room
    return low - room, 0.0 if foot and high == 0 else high + room


def _same_scale(views: list[_View], shared: bool) -> list[_View]:
    """One vertical scale if shared: of the limits that panels ask for, else of all that is shown."""
    if not shared:
        return views
    asked = [view.panel.ylimits for view in views if view.panel.ylimits]
    seen = asked or [view.ylimits for view in views if view.lines] or [views[0].ylimits]
    limits = min(low for low, _ in seen), max(high for _, high in seen)
    return [replace(view, ylimits=limits) for view in views]


# The page


@dataclass(frozen=True)
class _Page:
    """Sizes in inches, and how each label is drawn."""

    columns: int
    rows: int
    width: float
    axes_height: float
    looks: dict[str, Look]
    bars: tuple[str, ...]  # labels of bars
    marked: bool  # whether the lines of families have markers
    shared: bool  # whether all panels have one vertical scale
    ylabel: str  # what stands once for all panels

    @classmethod
    def of(cls, plot: Plot) -> _Page:
        columns = min(plot.columns, len(plot.panels), COLUMNS)
        ylabels = {panel.ylabel for panel in plot.panels}
        lines = _lines(plot)
        return cls(
            columns=columns,
            rows=math.ceil(len(plot.panels) / columns),
            width=_WIDTHS[columns],
            axes_height=_HEIGHTS[columns],
            looks=looks_of(plot),
            bars=tuple(dict.fromkeys(x.label for x in lines if x.kind == "bars")),
            marked=all(len(x.x) <= FEW for x in lines if _in_family(x) and x.kind == "line"),
            shared=plot.shared,
            ylabel=ylabels.pop() if plot.shared and len(ylabels) == 1 else "",
        )

    @property
    def panel_width(self) -> float:
        """In points."""
        return 72 * self.width / self.columns

    def order(self, label: str) -> int:
        return list(self.looks).index(label)

    def options(self, line: Line) -> dict[str, Any]:
        """How a line or points are drawn, as arguments of matplotlib's `plot`."""
        options = self.looks[line.label].options() | {"linewidth": _STROKES[line.role]}
        if line.kind == "points" or line.role == "data":
            return options | {"linestyle": "none", "markersize": 3.5, "markeredgewidth": 0.9}
        if line.role != "main" or (line.step is not None and not self.marked):
            return options | {"marker": "none"}
        return options | {"markeredgecolor": "white", "markeredgewidth": 0.4}

    def bar_options(self, line: Line) -> dict[str, Any]:
        """How bars are drawn: filled, or light with a hatch, so that they differ in grey print too."""
        from matplotlib.colors import to_rgb

        colour, nth = self.looks[line.label].colour, self.bars.index(line.label)
        if nth == 0 or _in_family(line):
            return {"facecolor": colour, "edgecolor": colour, "linewidth": 0.6}
        light = tuple(0.35 * part + 0.65 for part in to_rgb(colour))
        hatch = _HATCHES[nth % len(_HATCHES)]
        return {"facecolor": light, "edgecolor": colour, "linewidth": 0.6, "hatch": hatch}


def _draw(axis: Axes, view: _View, page: _Page) -> None:
    """Draw a panel."""
    panel = view.panel
    axis.set_xscale(panel.xscale)
    axis.set_yscale(panel.yscale)
    axis.set_axisbelow(True)
    for shown in view.lines:
        if panel.yscale == "log":  # a band that reaches down to zero leaves the axes at their foot
            shown = replace(shown, low=np.maximum(shown.low, view.ylimits[0] / 10))
        if shown.edges:
            _draw_bars(axis, shown, view, page)
        else:
            _draw_line(axis, shown, view, page)
    if not view.lines:
        axis.text(0.5, 0.5, "no results yet", ha="center", va="center", transform=axis.transAxes, color=GREY)
    axis.set_xlim(*view.xlimits)
    axis.set_ylim(*view.ylimits)
    if not page.ylabel:
        axis.set_ylabel(_wrap(panel.ylabel, NORMAL, 72 * page.axes_height + 16))
    left = _set_ticks(axis, view, page)
    room = page.panel_width - left
    axis.set_title(_wrap(panel.title, NORMAL, room))
    axis.set_xlabel(_wrap(panel.xlabel, NORMAL, room))


def _draw_line(axis: Axes, shown: _Shown, view: _View, page: _Page) -> None:
    """A line with a band, or points with error bars."""
    line, log = shown.line, view.panel.xscale == "log"
    options = page.options(line) | {"zorder": _LAYERS[line.role], "label": line.label}
    if options["linestyle"] == "none":
        _whiskers(axis, shown, options["color"])
        axis.plot(shown.x, shown.y, **options)
        return
    if line.low is not None:
        fill = {"color": options["color"], "linewidth": 0, "zorder": 1.5}
        many = sum(other.line.low is not None for other in view.lines) > 4
        axis.fill_between(shown.x, shown.low, shown.high, alpha=0.1 if many else 0.18, **fill)
    if options["marker"] != "none":
        options["markevery"] = _marked(shown, log, page.order(line.label))
    axis.plot(shown.x, shown.y, **options)
    if options["marker"] == "none" and shown.alone.any():
        dots = {"color": options["color"], "zorder": options["zorder"], "linestyle": "none", "marker": "."}
        axis.plot(shown.x[shown.alone], shown.y[shown.alone], **dots)


def _marked(shown: _Shown, log: bool, order: int) -> list[int]:
    """Which points get a marker: all of few, else some evenly along x that keep off those of other lines."""
    (places,) = np.nonzero(shown.known)
    if len(places) > FEW:
        along = np.log10(shown.x[places]) if log else shown.x[places]
        shift = 0.1 + 0.8 * (0.382 * order % 1)  # by the golden ratio, which spreads any number of lines
        targets = along.min() + np.ptp(along) * (np.arange(6) + shift) / 6
        nearest = places[np.abs(along[:, None] - targets).argmin(0)]
        places = np.union1d(nearest, np.nonzero(shown.alone)[0])
    return [int(place) for place in places]


def _draw_bars(axis: Axes, shown: _Shown, view: _View, page: _Page) -> None:
    left, right = shown.edges
    foot = view.ylimits[0] / 10 if view.panel.yscale == "log" else 0.0
    options = page.bar_options(shown.line) | {"align": "edge", "bottom": foot, "label": shown.line.label}
    axis.bar(left, shown.y - foot, right - left, **options)
    middle = np.sqrt(left * right) if view.panel.xscale == "log" else (left + right) / 2
    _whiskers(axis, replace(shown, x=middle), INK, capsize=0.9)


def _whiskers(axis: Axes, shown: _Shown, colour: str, capsize: float = 1.8) -> None:
    if shown.line.low is not None:
        reach = np.maximum([shown.y - shown.low, shown.high - shown.y], 0)  # a mean may round beyond its runs
        axis.errorbar(shown.x, shown.y, reach, fmt="none", ecolor=colour, elinewidth=0.7, capsize=capsize)


def _legend(figure: Figure, plot: Plot, page: _Page) -> float:
    """One legend below all panels, of as many columns as fit; returns its height in inches."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    first: dict[str, Line] = {}
    for panel in plot.panels:
        for line in panel.lines:
            if line.label and _Shown.of(line, panel).known.any():
                first.setdefault(line.label, line)
    if not first:
        return 0.0
    handles = [
        Patch(**page.bar_options(x)) if x.kind == "bars" else Line2D([], [], **page.options(x))
        for x in first.values()
    ]
    labels = [_wrap(label, NORMAL, 72 * page.width - 50) for label in first]
    columns = min(len(labels), 4 if page.columns == 1 else 8)
    while True:
        columns = math.ceil(len(labels) / math.ceil(len(labels) / columns))  # none almost empty
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        if columns == 1 or box.width <= 0.98 * figure.bbox.width:
            return float(box.height / figure.dpi) + 0.06
        legend.remove()
        columns -= 1


def _wrap(text: str, size: float, room: float) -> str:
    """Break text into lines that are at most `room` points wide."""
    lines = text.split("\n")
    widest = max(_width(line, size) / max(len(line), 1) for line in lines)
    letters = max(8, int(0.96 * room / widest)) if widest else 8
    return "\n".join(textwrap.fill(line, letters) for line in lines)


def _width(text: str, size: float) -> float:
    """Width of a line of text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)[0])


def _around(axis: Axes) -> float:
    """Height in inches of what stands above and below the axes of a panel."""
    lines = [text.count("\n") + 1 for text in (axis.get_title(), axis.get_xlabel()) if text]
    return 0.145 * sum(lines) + 0.4


# Ticks


def _set_ticks(axis: Axes, view: _View, page: _Page) -> float:
    """As many ticks as their labels leave room for; returns the width of all left of the axes in points."""
    panel, left = view.panel, 0.0
    for side in ("y", "x"):
        across = side == "x"
        limits, log = (
            (view.xlimits, panel.xscale == "log") if across else (view.ylimits, panel.yscale == "log")
        )
        values = np.concatenate([np.empty(0), *((s.x if across else s.y)[s.known] for s in view.lines)])
        room = page.panel_width - left if across else 72 * page.axes_height
        ticks = np.empty(0)
        if view.lines or (page.shared and not across):
            ticks = _fitting(_choices(values, limits, log, across), limits, log, room, across)
        labels = number_labels(ticks, log)
        between = _between(limits, ticks) if log else np.empty(0)
        ruler = axis.xaxis if across else axis.yaxis
        ruler.set_ticks(list(ticks), labels=labels)
        ruler.set_ticks(list(between), labels=[""] * len(between), minor=True)
        if not across:
            label = NORMAL * 1.3 * (axis.get_ylabel().count("\n") + 1) if axis.get_ylabel() else 0.0
            left = max((_width(x, SMALL) for x in labels), default=0.0) + label + 18
    return left


def _choices(values: Numbers, limits: Limits, log: bool, across: bool) -> list[Numbers]:
    """Sets of ticks, the most wanted first: at few whole x themselves, else at round numbers."""
    whole = bool(len(values)) and bool((values == np.round(values)).all())
    own, found = np.unique(values), []
    if across and whole and len(own) <= FEW:
        steps = np.diff(np.log10(own) if log else own)
        even = len(steps) > 0 and np.allclose(steps, steps[0], rtol=0.1)  # such as widths 16, 32, 64
        found = [own[::stride] for stride in range(1, 4 if even else 2) if len(own[::stride]) <= 8]
    if log:
        return found + _log_ticks(limits)
    return found + (_linear_ticks(limits, whole=True) if whole else []) + _linear_ticks(limits)


def _fitting(choices: Sequence[Numbers], limits: Limits, log: bool, room: float, across: bool) -> Numbers:
    """The first choice of at least two ticks whose labels do not touch each other."""
    fewest = np.empty(0)
    for ticks in choices:
        place = np.log10(np.r_[limits, ticks]) if log else np.r_[limits, ticks]
        at = room * (place[2:] - place[0]) / (place[1] - place[0])
        sizes = np.array([_width(x, SMALL) if across else SMALL for x in number_labels(ticks, log)])
        clear = np.diff(at) >= (sizes[1:] + sizes[:-1]) / 2 + (5 if across else 4)
        if len(ticks) > 1 and clear.all():
            return ticks
        if len(ticks) and (not len(fewest) or len(ticks) < len(fewest)):
            fewest = ticks
    return fewest[:1]


def _linear_ticks(limits: Limits, whole: bool = False, most: int = 6) -> list[Numbers]:
    """Round numbers, of fewer and fewer."""
    from matplotlib.ticker import MaxNLocator

    options: dict[str, Any] = {"integer": whole, "steps": [1, 2, 2.5, 5, 10], "min_n_ticks": 1}
    counts = range(most, 0, -1)
    return [_within(np.asarray(MaxNLocator(n, **options).tick_values(*limits)), limits) for n in counts]


def _log_ticks(limits: Limits) -> list[Numbers]:
    """Decades, with some of their multiples where the axis spans few."""
    low, high = np.log10(limits)
    decades = np.arange(math.floor(low), math.ceil(high) + 1)
    inside = decades[(decades >= low) & (decades <= high)]
    found = []
    if len(inside) <= 2:
        multiples = (_within(np.outer(10.0**decades, m).ravel(), limits) for m in ((1, 2, 5), (1, 3)))
        found = [ticks for ticks in multiples if len(ticks) > 2]
    if len(inside) <= 1:
        return found + _linear_ticks(limits, most=4)
    strides = range(math.ceil(len(inside) / 7), len(inside))
    return found + [10.0 ** inside[inside % stride == 0] for stride in strides]


def _within(ticks: Numbers, limits: Limits) -> Numbers:
    slack = 1e-9 * (limits[1] - limits[0])
    return ticks[(ticks >= limits[0] - slack) & (ticks <= limits[1] + slack)]


def _between(limits: Limits, ticks: Numbers) -> Numbers:
    """The multiples of decades, as marks without numbers, if the ticks are decades or such multiples."""
    low, high = np.log10(limits)
    first = ticks / 10.0 ** np.floor(np.log10(ticks) + 1e-9)
    if high - low > 6 or not np.isin(np.round(first, 6), (1, 2, 3, 5)).all():
        return np.empty(0)
    decades = 10.0 ** np.arange(math.floor(low), math.ceil(high))
    return _within(np.outer(decades, np.arange(2, 10)).ravel(), limits)


def number_labels(ticks: Numbers, log: bool = False) -> list[str]:
    """Labels of ascending ticks: plain numbers, or with a power of ten where plain ones would be long.

    matplotlib's own labels of a log axis are formulas, which the house style does not read.
    """
    ticks = np.asarray(ticks) + 0.0  # no minus before a zero
    sizes = np.abs(ticks[ticks != 0])
    if not len(sizes):
        return ["0"] * len(ticks)
    step = float(np.diff(ticks).min()) if len(ticks) > 1 else float(sizes[0])
    each = log and sizes.max() / sizes.min() >= 10
    if sizes.max() < 1e6 and (sizes.min() if log else sizes.max()) >= 1e-3:
        return _plain(ticks, step, each)
    if each:
        texts = (_power(ticks[i : i + 1], float(tick))[0] for i, tick in enumerate(ticks))
        return [text.removeprefix("1×") for text in texts]
    return _power(ticks, step)


def _plain(ticks: Numbers, step: float, each: bool = False) -> list[str]:
    """With as many decimals as are needed: the same for all, or for each its own."""

    def decimals(part: Numbers) -> int:
        exact = (d for d in range(16) if np.allclose(np.round(part, d), part, rtol=0, atol=1e-6 * step))
        return next(exact, 16)

    common = decimals(ticks)
    texts = (f"{tick:.{decimals(ticks[i : i + 1]) if each else common}f}" for i, tick in enumerate(ticks))
    return [text.replace("-", "−") for text in texts]


def _power(ticks: Numbers, step: float) -> list[str]:
    """With the power of ten of the greatest."""
    exponent = math.floor(np.log10(np.abs(ticks).max()) + 1e-9)
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    numbers = _plain(ticks / 10.0**exponent, step / 10.0**exponent)
    return ["0" if t == 0 else f"{number}×{power}" for t, number in zip(ticks, numbers, strict=True)]
