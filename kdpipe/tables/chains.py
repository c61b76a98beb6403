"""Chains of self-distillation as tables and figures: accuracy by step and by the weight of the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kdpipe.core.plot import Line, Panel, Plot
from kdpipe.plan.chains import alpha_label
from kdpipe.plan.plan import PlannedStudy
from kdpipe.plan.study import Chain
from kdpipe.tables.collect import Measurement
from kdpipe.tables.layout import Layout

if TYPE_CHECKING:
    import pandas as pd

SHOWN = {"train_top1": "training accuracy (%)", "top1": "test accuracy (%)"}


def chain_frame(layout: Layout) -> pd.DataFrame:
    """Every finished step of every chain.

    Returns:
        Columns model (the chain's label), alpha, step, seed, train_top1 and top1 (%), empty where the study
        does not show the measure.
    """
    import pandas as pd

    rows: dict[tuple[str, float, int, int], dict[str, float]] = {}
    for m in layout.measurements:
        if m.part == "chain" and m.value is not None and m.metric in SHOWN:
            rows.setdefault((m.teacher or "", _alpha(m), int(m.row), m.seed), {})[m.metric] = m.value
    keys = ["model", "alpha", "step", "seed"]
    return pd.DataFrame(
        [dict(zip(keys, place, strict=True)) | values for place, values in rows.items()],
        columns=[*keys, *SHOWN],
    )


def by_alpha(study: PlannedStudy, layout: Layout) -> Plot:
    """Accuracy against alpha, a line for each step: Borup and Andersen's Figure 5."""

    def lines(chain: Chain, values: Values) -> list[Line]:
        return [
            _line(f"step {step}", [(a, values.get((a, step), [])) for a in sorted(chain.alphas)], step - 1)
            for step in range(1, chain.steps + 1)
        ]

    return _plot("chains_by_alpha", "α, weight of the labels", study, layout, lines)


def by_step(study: PlannedStudy, layout: Layout) -> Plot:
    """Accuracy against the step, a line for each alpha: Borup and Andersen's Figure 7."""

    def lines(chain: Chain, values: Values) -> list[Line]:
        steps = range(1, chain.steps + 1)
        return [
            _line(alpha_label(a), [(float(step), values.get((a, step), [])) for step in steps], number)
            for number, a in enumerate(sorted(chain.alphas))
        ]

    return _plot("chains_by_step", "step; 1 is ordinary training", study, layout, lines)


CHAIN_PLOTS: dict[str, Callable[[PlannedStudy, Layout], Plot]] = {
    "chains_by_alpha": by_alpha,
    "chains_by_step": by_step,
}
Values = Mapping[tuple[float, int], list[float]]
"""Of one chain and measure: (alpha, step) -> values of the seeds."""


def _plot(
    name: str,
    xlabel: str,
    study: PlannedStudy,
    layout: Layout,
    lines: Callable[[Chain, Values], list[Line]],
) -> Plot:
    data = chain_frame(layout)
    panels = []
    for chain in study.study.chains:
        own = data[data["model"] == chain.label]
        for metric in (m for m in SHOWN if m in study.study.metrics):
            values: dict[tuple[float, int], list[float]] = {}
            known = own.dropna(subset=[metric])
            for alpha, step, value in zip(known["alpha"], known["step"], known[metric], strict=True):
                values.setdefault((float(alpha), int(step)), []).append(float(value))
            drawn = tuple(line for line in lines(chain, values) if len(line.x))
            panels.append(Panel(f"{chain.label} on {study.study.dataset}", xlabel, SHOWN[metric], drawn))
    seeds = data["seed"].nunique()
    return Plot(
        name,
        "Accuracy of the networks of a chain of self-distillation",
        tuple(panels),
        caption=f"Mean over {seeds} seeds, with a band from the least to the greatest. Step 1 learns from "
        "the labels alone and is shared by every α.",
    )


def _line(label: str, points: list[tuple[float, list[float]]], order: int) -> Line:
    there = [(x, values) for x, values in points if values]
    means = [sum(values) / len(values) for _, values in there]
    band = any(len(values) > 1 for _, values in there)
    low, high = ([min(v) for _, v in there], [max(v) for _, v in there]) if band else (None, None)
    return Line.of(label, [x for x, _ in there], means, low, high, step=order)


def _alpha(m: Measurement) -> float:
    return float((m.recipe or "").removeprefix("α = "))
