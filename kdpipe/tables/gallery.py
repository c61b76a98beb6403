"""The figures of a study: curves of its trainings, diagrams of its first networks, plots of its benches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.core.errors import UnknownNameError
from kdpipe.core.paths import Results, RunPaths
from kdpipe.plan.plan import TEACHER, Cell, Plan, PlannedStudy
from kdpipe.tables.benches import draw_bench
from kdpipe.tables.beside import comparable
from kdpipe.tables.chains import CHAIN_PLOTS
from kdpipe.tables.collect import read_metrics
from kdpipe.tables.figures import (
    Quantity,
    draw_learning_curves,
    draw_sampling,
    headed,
    house_style,
    read_history,
    save,
)
from kdpipe.tables.layout import lay_out, scale_note, site
from kdpipe.tables.plots import draw_plot
from kdpipe.tables.ranks import draw_ranks
from kdpipe.tables.sweeps import draw_cost, draw_sensitivity

if TYPE_CHECKING:
    import pandas as pd

PANELS = 12  # at most; further networks are left out


def draw_figure(name: str, study: PlannedStudy, plan: Plan, results: Results) -> list[Path]:
    """Draw one figure of a study.

    `sensitivity` and `cost` are of the study's tabled cells. `reliability`, `tsne`, `correlation` and
    `gradients` show the networks of the study's first pair and first seed, teachers first; those that
    collapsed or are not made yet are left out. A figure of a reduced study says so at its top.

    Returns:
        The `.svg`, `.png` and `.csv` in the study's folder; of a bench's figure also the `.json` with what is
        told of it.

    Raises:
        UnknownNameError: the study has no such figure, and networks have none of that name.
    """
    stem = results.study(study.name) / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    with headed("" if comparable(study) else scale_note(study)):
        return _draw(name, study, plan, results, stem)


def _draw(name: str, study: PlannedStudy, plan: Plan, results: Results, stem: Path) -> list[Path]:
    if name in study.plots:
        return draw_bench(name, study, plan, results)
    if name in CURVES:
        return draw_learning_curves(study, results, stem, CURVES[name])
    if name == "sampling":
        return draw_sampling(study, lay_out(study, plan, results), stem)
    if name == "ranks" and study.study.pairs:
        return draw_ranks(lay_out(study, plan, results), stem)
    if name in CHAIN_PLOTS:
        return draw_plot(CHAIN_PLOTS[name](study, lay_out(study, plan, results)), stem)
    if name in SWEEPS and study.study.pairs:
        return SWEEPS[name](study, plan, results, stem)
    if name not in DRAWN or not study.study.pairs:
        raise UnknownNameError.of("figure", name, [*study.figures, *study.plots, *CURVES, *SWEEPS, *DRAWN])
    return DRAWN[name](list(_networks(study, plan, results))[:PANELS], stem)


Network = tuple[str, RunPaths, RunPaths | None]
"""Title, folder, and folder of the teacher that it is compared with."""


def _networks(study: PlannedStudy, plan: Plan, results: Results) -> Iterator[Network]:
    """The first pair's networks of the first seed; a student alone is compared with the first teacher."""
    pair, seed = study.study.pairs[0], min(c.seed for c in study.cells if c.part == "table")
    shown = [
        c
        for c in study.cells
        if c.part == "table" and c.seed == seed and c.run and c.student in (None, pair.student)
        if c.teacher in (None, pair.teacher) and c.dataset == site(study.study, pair)
    ]
    first = None
    for cell in sorted(shown, key=lambda c: c.row != TEACHER):
        run = results.run(cell.run or "")
        found = read_metrics(run)
        if found and found["status"] == "finished":
            place = plan.teacher_place(cell.run or "")
            teacher = RunPaths(results.root / place) if place else None
            if cell.row == TEACHER:
                first = first or run
            yield _title(cell), run, teacher if cell.recipe else first


def _title(cell: Cell) -> str:
    return f"{cell.row} ({cell.recipe})" if cell.recipe else cell.row


def _reliability(networks: list[Network], stem: Path) -> list[Path]:
    from kdpipe.evaluation.calibration import reliability
    from kdpipe.evaluation.evaluate import load_predictions
    from kdpipe.tables.diagrams import draw_reliability

    found = {}
    for title, run, _ in networks:
        test = load_predictions(run.predictions)
        found[title] = reliability(test.logits, test.labels)
    return draw_reliability(found, stem) if found else _nothing(stem)


def _tsne(networks: list[Network], stem: Path) -> list[Path]:
    from kdpipe.evaluation.evaluate import load_features
    from kdpipe.evaluation.geometry import tsne
    from kdpipe.tables.diagrams import draw_tsne

    found = {}
    for title, run, _ in networks:
        if run.features.is_file():
            test, features = load_features(run.features, "test")
            found[title] = tsne(features, test.labels)
    return draw_tsne(found, stem) if found else _nothing(stem)


def _correlation(networks: list[Network], stem: Path) -> list[Path]:
    from kdpipe.evaluation.evaluate import load_auxiliary, load_predictions
    from kdpipe.evaluation.geometry import correlation_difference
    from kdpipe.tables.diagrams import draw_correlation

    found = {}
    for title, run, teacher in networks:
        if teacher is None:
            continue
        theirs = load_predictions(teacher.predictions)
        found[title] = correlation_difference(load_predictions(run.predictions).logits, theirs.logits)
        second = load_auxiliary(run.predictions)
        if second is not None:
            found[f"{title}, auxiliary head"] = correlation_difference(second.logits, theirs.logits)
    return draw_correlation(found, stem) if found else _nothing(stem)


def _gradients(networks: list[Network], stem: Path) -> list[Path]:
    """Cosine between the gradients of two loss terms, per epoch, on backbone and classifier."""
    import pandas as pd

    rows = []
    for title, run, _ in networks:
        if (history := read_history(run)) is None:
            continue
        for column in history.columns:
            if column.startswith("cosine_"):
                terms, part = column.removeprefix("cosine_").rsplit("_", 1)
                own = history[["epoch", column]].dropna()
                rows += [(title, terms, part, int(e), float(v)) for e, v in own.itertuples(index=False)]
    data = pd.DataFrame(rows, columns=["network", "terms", "part", "epoch", "cosine"])
    return _draw_gradients(data, stem) if rows else _nothing(stem)


def _draw_gradients(data: pd.DataFrame, stem: Path) -> list[Path]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from kdpipe.tables.figures import COLOURS, GREY, MARKERS

    parts = [part for part in ("backbone", "classifier") if part in set(data["part"])]
    with house_style():
        figure = Figure(figsize=(3.6 * len(parts) + 1.8, 3.2), layout="constrained")
        axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        lines = list(dict.fromkeys(zip(data["network"], data["terms"], strict=True)))
        for axis, part in zip(axes, parts, strict=True):
            axis.axhline(0, color=GREY, linewidth=0.8)
            for index, (network, terms) in enumerate(lines):
                own = data[(data["network"] == network) & (data["terms"] == terms) & (data["part"] == part)]
                axis.plot(
                    own["epoch"],
                    own["cosine"],
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    label=f"{network}: {terms.replace('_', ' and ')}",
                )
            axis.set(title=part, xlabel="epoch", ylim=(-1.05, 1.05))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("cosine of the gradients")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        return save(figure, data, stem)


def _nothing(stem: Path) -> list[Path]:
    """A figure that says that there is nothing to show."""
    import pandas as pd
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "no finished network has what this figure shows", ha="center", va="center")
        return save(figure, pd.DataFrame({"network": []}), stem)


DRAWN: dict[str, Callable[[list[Network], Path], list[Path]]] = {
    "reliability": _reliability,
    "tsne": _tsne,
    "correlation": _correlation,
    "gradients": _gradients,
}
CURVES: dict[str, Quantity] = {"learning_curves": "top1", "loss_curves": "loss"}
SWEEPS = {"sensitivity": draw_sensitivity, "cost": draw_cost}
