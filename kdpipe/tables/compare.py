"""Two runs beside each other: settings and where they come from, learning curves, measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.core.errors import ResultsError, UnknownNameError
from kdpipe.core.files import read_json
from kdpipe.core.measures import METRICS
from kdpipe.core.paths import RunPaths
from kdpipe.core.plot import Line, Panel, Plot
from kdpipe.tables.figures import read_history
from kdpipe.tables.plots import draw_plot

if TYPE_CHECKING:
    import pandas as pd

CURVES = {  # column of a history -> what it is, and its unit
    "train_top1": ("training top-1", "%"),
    "val_top1": ("validation top-1", "%"),
    "test_top1": ("test top-1", "%"),
    "loss": ("training loss", ""),
    "val_loss": ("validation loss", "nats"),
    "test_loss": ("test loss", "nats"),
}
EPOCHS = 8  # rows of a curve's table, at most
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # characters of a curve


def compare_runs(a: str, b: str, results: Path) -> str:
    """How two runs differ, as text.

    Args:
        a: name of a run's folder, or a part that only one name has.
        b: another.
        results: the results folder.

    Raises:
        UnknownNameError: no run, or more than one, has that name.
        ResultsError: there are no runs, or one cannot be read.
    """
    folders = [find_run(name, results) for name in (a, b)]
    lines = [f"A: {folders[0].root.name}", f"B: {folders[1].root.name}", "", "settings that differ:"]
    first, second = (_settings(folder) for folder in folders)
    rows = [
        (key, *first.get(key, ("", "")), *second.get(key, ("", "")))
        for key in dict.fromkeys([*first, *second])
        if first.get(key, ("", ""))[0] != second.get(key, ("", ""))[0]
    ]
    if rows:
        told = [(key, _sourced(x, from_x), _sourced(y, from_y)) for key, x, from_x, y, from_y in rows]
        lines += _columns([("", "A", "B"), *told], align="<")
    else:
        lines.append("  none")
    lines += ["", *_curves(folders)]
    values = [read_json(f.metrics)["values"] if f.metrics.is_file() else {} for f in folders]
    measures = [
        _measure(key, *(v.get(key) for v in values)) for key in dict.fromkeys([*values[0], *values[1]])
    ]
    lines += ["measures:", *_columns([("", "A", "B", "B - A", "unit"), *measures])] if measures else []
    return "\n".join(lines)


def draw_comparison(a: str, b: str, results: Path, folder: Path) -> list[Path]:
    """Draw the learning curves of two runs, a panel per quantity that either has.

    Args:
        a: name of a run's folder, or a part that only one name has.
        b: another.
        results: the results folder.
        folder: for `compare.svg`, `compare.png` and `compare.csv`.

    Returns:
        The files written.

    Raises:
        UnknownNameError: no run, or more than one, has that name.
        ResultsError: neither run has a history.
    """
    places = [find_run(name, results) for name in (a, b)]
    histories = {name: _history(place) for name, place in zip("AB", places, strict=True)}
    panels = []
    for column, (title, unit) in CURVES.items():
        known = {name: h[["epoch", column]].dropna() for name, h in histories.items() if column in h}
        lines = [Line.of(name, h["epoch"], h[column]) for name, h in known.items() if len(h)]
        if lines:
            panels.append(Panel(title, "epoch", f"{title} ({unit})" if unit else title, tuple(lines)))
    if not panels:
        raise ResultsError("neither run has a history", where=str(results), fix="train them first")
    folder.mkdir(parents=True, exist_ok=True)
    names = "; ".join(f"{name}: {place.root.name}" for name, place in zip("AB", places, strict=True))
    return draw_plot(Plot("compare", names, tuple(panels)), folder / "compare")


def find_run(part: str, results: Path) -> RunPaths:
    """The folder of the run whose name is `part`, or holds it.

    Raises:
        UnknownNameError: no run, or more than one, has that name.
        ResultsError: there are no runs.
    """
    folder = results / "runs"
    if not folder.is_dir():
        raise ResultsError(
            "there are no runs", where=str(folder), fix="name the results folder with --results"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    found = [n for n in names if n == part] or [n for n in names if part in n]
    if not found:
        raise UnknownNameError.of("run", part, names)
    if len(found) > 1:
        raise UnknownNameError(
            f"'{part}' is part of {len(found)} runs: {', '.join(found[:4])}", fix="write more of it"
        )
    return RunPaths(folder / found[0])


def _settings(paths: RunPaths) -> dict[str, tuple[str, str]]:
    """Every setting of a run as text, and where it comes from."""
    run = read_json(paths.spec)
    if not isinstance(run, dict) or not isinstance(run.get("spec"), dict):
        raise ResultsError("a run's record has no settings", where=str(paths.spec), fix="make the run again")
    spec, sources = run["spec"], run.get("sources", {})
    kind = next((k for k in ("recipe", "method", "part", "bench") if spec.get(k)), "")
    protocol = f"protocol {run.get('protocol', '')}"
    scale = "" if run.get("scale", "full") == "full" else f", scale {run['scale']}"
    found = {}
    for key, value in _flat(spec):
        head, _, rest = key.partition(".")
        source = protocol + scale if head == "protocol" else ""
        if head == kind and rest.startswith("settings."):
            source = sources.get(rest.removeprefix("settings.").partition(".")[0], "")
        found[key] = (str(value), source)
    return found


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    elif value is not None:
        yield prefix, value


def _sourced(value: str, source: str) -> str:
    return f"{value or '-'} [{source}]" if source else value or "-"


def _curves(folders: list[RunPaths]) -> Iterator[str]:
    """The curves that either run has: a few epochs, the last and the best, and the way between as bars."""
    histories = [_history(folder) for folder in folders]
    for column, (title, unit) in CURVES.items():
        known = [_curve(history, column) for history in histories]
        if not any(known):
            continue
        yield f"{title} ({unit}):" if unit else f"{title}:"
        epochs = sorted(set().union(*known))
        shown = epochs[:: max(1, -(-len(epochs) // EPOCHS))]
        shown += [epochs[-1]] if epochs[-1] not in shown else []
        yield from _columns(
            [
                ("epoch", *map(str, shown), "last", "best"),
                *(
                    (name, *(_number(k.get(e)) for e in shown), *map(_number, _ends(k, column)))
                    for name, k in zip("AB", known, strict=True)
                ),
            ]
        )
        values = [v for k in known for v in k.values()]
        for name, k in zip("AB", known, strict=True):
            yield f"  {name} {_bars(k, epochs, min(values), max(values))}"
        yield ""


def _history(paths: RunPaths) -> pd.DataFrame:
    """A run's history; empty where there is none."""
    import pandas as pd

    found = read_history(paths)
    return pd.DataFrame({"epoch": []}) if found is None else found


def _curve(history: pd.DataFrame, column: str) -> dict[int, float]:
    if column not in history:
        return {}
    own = history[["epoch", column]].replace([float("inf"), float("-inf")], float("nan")).dropna()
    return dict(zip(own["epoch"].astype(int), own[column].astype(float), strict=True))


def _ends(curve: Mapping[int, float], column: str) -> tuple[float | None, float | None]:
    """The last and the best value."""
    if not curve:
        return None, None
    best = min if "loss" in column else max
    return curve[max(curve)], best(curve.values())


def _bars(curve: Mapping[int, float], epochs: list[int], low: float, high: float) -> str:
    """A curve as a line of blocks, from the least to the greatest value of both runs."""
    step = max(1, -(-len(epochs) // WIDTH))
    levels = [
        " " if e not in curve else BARS[round((curve[e] - low) / ((high - low) or 1.0) * (len(BARS) - 1))]
        for e in epochs[::step]
    ]
    return "".join(levels)


def _measure(name: str, x: float | None, y: float | None) -> tuple[str, ...]:
    known = METRICS.get(name)
    decimals = known.decimals if known else 4
    change = f"{y - x:+.{decimals}f}" if x is not None and y is not None else ""
    return (name, _number(x, decimals), _number(y, decimals), change, known.unit if known else "")


def _number(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _columns(rows: list[tuple[str, ...]], align: str = ">") -> list[str]:
    """Rows as aligned text: the first column to the left, the others as told."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            f"{text:{'<' if not i else align}{width}}"
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
