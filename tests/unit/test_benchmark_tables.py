"""The benchmark of tables and report: a small study through all of it."""

from __future__ import annotations

from benchmarks import tables


def test_every_part_is_timed():
    runs = len(tables.SEEDS) * (len(tables.RECIPES) * len(tables.METHODS) + 1)
    found = {
        figure.name.removesuffix(f", {runs} runs"): figure
        for figure in tables.figures(10)
        if figure.unit != "MiB"
    }
    for part in ("read the plan", "table files", "report", "all"):
        assert found[part].value > 0
        assert found[part].ratio > 0
