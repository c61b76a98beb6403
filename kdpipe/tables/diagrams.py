"""Diagrams of what networks know: reliability, t-SNE of features, difference of logit correlations.

Each function draws one figure with a panel per network and writes `<stem>.svg`, `.png` and `.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.tables.figures import COLOURS, COLUMNS, GREY, INK, MARKERS, house_style, save

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from kdpipe.evaluation.calibration import Reliability
    from kdpipe.evaluation.geometry import Embedding

# Tol's "muted" palette and black: ten colours that readers with any colour vision can tell apart.
CLASS_COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#DDCC77",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    INK,
)
CLASS_MARKERS = (*MARKERS, "*")


def draw_reliability(networks: Mapping[str, Reliability], stem: Path) -> list[Path]:
    """Reliability diagrams: accuracy of each bin of confidence as a bar, with its gap to the confidence.

    Below each diagram stands the share of images in each bin.

    Args:
        networks: `kdpipe.evaluation.calibration.reliability` by title of the panel.
        stem: the files' path without suffix.

    Returns:
        The files written; the CSV has columns network, bin, lower, upper, confidence, accuracy (fractions)
        and count.
    """
    import pandas as pd

    tables = [
        pd.DataFrame(
            {
                "network": title,
                "bin": range(1, len(found.count) + 1),
                "lower": found.lower,
                "upper": found.upper,
                "confidence": found.confidence,
                "accuracy": found.accuracy,
                "count": found.count.astype(int),
            }
        )
        for title, found in networks.items()
    ]
    data = pd.concat(tables, ignore_index=True)
    with house_style():
        figure, cells = _grid(len(networks), height=3.5)
        for cell, (title, found) in zip(cells, networks.items(), strict=True):
            _reliability_panel(figure, cell, title, found)
        _shared_legend(figure)
        return save(figure, data, stem)


def draw_tsne(
    networks: Mapping[str, Embedding], stem: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Scatter of t-SNE points, a colour and a marker per class, at most ten.

    The axes have no ticks: distances and directions of a t-SNE have no unit.

    Args:
        networks: `kdpipe.evaluation.geometry.tsne` by title of the panel, all of the same classes.
        stem: the files' path without suffix.
        names: the classes' names; their numbers if not given.

    Returns:
        The files written; the CSV has columns network, position, label, x and y.

    Raises:
        ValueError: there are more than ten classes.
    """
    import pandas as pd

    tables = [
        pd.DataFrame(
            {
                "network": title,
                "position": found.positions,
                "label": found.labels,
                "x": found.points[:, 0],
                "y": found.points[:, 1],
            }
        )
        for title, found in networks.items()
    ]
    data = pd.concat(tables, ignore_index=True)
    classes = sorted(set(data["label"].tolist()))
    if len(classes) > len(CLASS_COLOURS):
        raise ValueError(f"{len(classes)} classes cannot be told apart; draw at most {len(CLASS_COLOURS)}")
    with house_style():
        figure, cells = _grid(len(networks), height=2.9)
        for cell, title in zip(cells, networks, strict=True):
            axis = figure.add_subplot(cell)
            axis.set(title=title, xticks=[], yticks=[])
            axis.set_aspect("equal", adjustable="datalim")
            _scatter(axis, data[data["network"] == title], classes, names)
        _shared_legend(figure)
        return save(figure, data, stem)


def draw_correlation(
    networks: Mapping[str, NDArray[Any]], stem: Path, label: str = "correlation, teacher − student"
) -> list[Path]:
    """Heat maps of the difference of two logit correlation matrices, all on one scale around zero.

    Args:
        networks: `kdpipe.evaluation.geometry.correlation_difference` (C x C) by title of the panel, such as
            one per method.
        stem: the files' path without suffix.
        label: what the colours mean.

    Returns:
        The files written; the CSV has columns network, row, column (classes) and difference.
    """
    import numpy as np
    import pandas as pd
    from matplotlib.ticker import MaxNLocator

    tables = []
    for title, difference in networks.items():
        row, column = np.indices(difference.shape)
        fields = {"row": row.ravel(), "column": column.ravel(), "difference": difference.ravel()}
        tables.append(pd.DataFrame({"network": title, **fields}))
    data = pd.concat(tables, ignore_index=True)
    reach = float(data["difference"].abs().max()) or 1.0
    with house_style():
        figure, cells = _grid(len(networks), height=2.5)
        axes = []
        for cell, (title, difference) in zip(cells, networks.items(), strict=True):
            axis = figure.add_subplot(cell)
            shown = axis.imshow(difference, cmap="PuOr", vmin=-reach, vmax=reach, interpolation="nearest")
            axis.set_title(f"{title}\nmean |difference| {np.abs(difference).mean():.4f}")
            axis.set(xlabel="class", ylabel="class")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axis.grid(visible=False)
            axes.append(axis)
        figure.colorbar(shown, ax=axes, label=label)
        return save(figure, data, stem)


def _grid(count: int, height: float) -> tuple[Figure, list[Any]]:
    """A figure and the places of `count` panels, at most `COLUMNS` beside each other."""
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.0 * columns + 0.6, height * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [grid[index // columns, index % columns] for index in range(count)]


def _reliability_panel(figure: Figure, cell: Any, title: str, found: Reliability) -> None:
    import numpy as np

    parts = cell.subgridspec(2, 1, height_ratios=(4, 1), hspace=0.08)
    axis = figure.add_subplot(parts[0])
    below = figure.add_subplot(parts[1], sharex=axis)
    used = found.count > 0
    place: dict[str, Any] = {
        "x": found.lower[used],
        "width": np.maximum(found.upper - found.lower, 0.004)[used],
        "align": "edge",
    }
    accuracy, confidence = found.accuracy[used], found.confidence[used]
    axis.bar(height=accuracy, color=COLOURS[0], edgecolor="white", linewidth=0.5, label="accuracy", **place)
    axis.bar(
        height=confidence - accuracy,
        bottom=accuracy,
        color="none",
        edgecolor=COLOURS[1],
        hatch="////",
        linewidth=0.8,
        label="gap to confidence",
        **place,
    )
    axis.plot([0, 1], [0, 1], linestyle="--", color=INK, linewidth=0.8)
    axis.set_title(f"{title}\nECE {found.error:.4f}")
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axis.tick_params(labelbottom=False)
    axis.set_axisbelow(True)
    below.bar(height=100 * found.count[used] / found.count.sum(), color=GREY, **place)
    below.set(xlabel="confidence", ylabel="images (%)", ylim=(0, None))


def _scatter(axis: Axes, points: pd.DataFrame, classes: Sequence[int], names: Sequence[str] | None) -> None:
    for index, number in enumerate(classes):
        own = points[points["label"] == number]
        axis.scatter(
            own["x"],
            own["y"],
            s=9,
            color=CLASS_COLOURS[index],
            marker=CLASS_MARKERS[index],
            linewidths=0,
            alpha=0.75,
            label=names[number] if names else str(number),
        )


def _shared_legend(figure: Figure) -> None:
    """One legend of the first panel's entries, below all."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), 5 * len(figure.axes))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, markerscale=2, handletextpad=0.1
    )
