"""Mean, deviation and marks, against NumPy and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.tables.collect import Measurement
from kdpipe.tables.layout import entry_text, number
from kdpipe.tables.statistics import Summary, rank, summarise

accuracies = st.floats(0, 100)


def measured(value: float | None, seed: int = 0, status: str = "finished", **more) -> Measurement:
    base = {
        "study": "s",
        "part": "table",
        "row": "kd",
        "recipe": "standard",
        "teacher": "a",
        "student": "b",
        "epoch": None,
        "run": f"run-{seed}",
        "run_id": f"id-{seed}",
        "collapsed_epoch": None,
        "reason": None,
        "metric": "top1",
    }
    return Measurement(**{**base, "seed": seed, "status": status, "value": value, **more})


def complete(mean: float) -> Summary:
    return Summary(mean, None, 1, 1)


@given(st.lists(accuracies, min_size=2, max_size=6))
def test_mean_and_sample_deviation(values):
    summary = summarise(measured(v, seed) for seed, v in enumerate(values))
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert (summary.n, summary.planned, summary.complete) == (len(values), len(values), True)


def test_one_seed_has_no_deviation():
    summary = summarise([measured(98.2)])
    assert (summary.mean, summary.std, summary.n) == (98.2, None, 1)


def test_what_is_not_finished_is_counted_and_not_averaged():
    summary = summarise(
        [
            measured(97.0, 0),
            measured(None, 2, "missing"),
            measured(None, 1, "collapsed", collapsed_epoch=8),
        ]
    )
    assert (summary.mean, summary.n, summary.planned) == (97.0, 1, 3)
    assert (summary.collapsed, summary.missing, summary.complete) == ((8,), 1, False)
    assert summary.runs == ("run-0", "run-1", "run-2")


@pytest.mark.parametrize(
    ("status", "reason", "shown"),
    [("skipped", "no such tap", "no such tap"), ("unmeasured", None, "the measure does not apply")],
)
def test_a_cell_without_a_number_has_a_reason(status, reason, shown):
    summary = summarise([measured(None, 0, status, reason=reason)])
    assert summary.reason == shown
    assert entry_text(summary, 2) == "–"


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (Summary(98.205, 0.149, 2, 2), "98.20 ± 0.15 (n=2)"),  # 98.205 lies below the half in binary
        (Summary(98.2, None, 1, 1), "98.20 (n=1)"),
        (Summary(None, None, 0, 1, collapsed=(8,)), "N.A.(8)"),
        (Summary(None, None, 0, 3, collapsed=(8, 8, 12)), "N.A.(8, 12)"),
        (Summary(97.1, None, 1, 2, collapsed=(8,)), "97.10 (n=1, N.A.(8))"),
        (Summary(97.1, None, 1, 2, missing=1), "97.10 (n=1, …)"),
        (Summary(None, None, 0, 2, missing=2), "…"),
        (Summary(None, None, 0, 2, collapsed=(3,), missing=1), "N.A.(3) …"),
        (Summary(-0.001, 0.0, 2, 2), "0.00 ± 0.00 (n=2)"),
    ],
)
def test_how_a_cell_reads(summary, text):
    assert entry_text(summary, 2) == text


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_a_shown_number_is_the_rounded_number(value, decimals):
    shown = number(value, decimals)
    assert float(shown) == round(value, decimals)
    assert not (shown.startswith("-") and float(shown) == 0)


@given(accuracies, accuracies, st.integers(1, 9))
def test_a_shown_cell_can_be_read_back(mean, std, n):
    text = entry_text(Summary(mean, std if n > 1 else None, n, n), 2)
    head, tail = text.rsplit(" (n=", 1)
    parts = [float(part) for part in head.split(" ± ")]
    assert parts == [round(mean, 2), round(std, 2)][: len(parts)]
    assert len(parts) == (2 if n > 1 else 1)
    assert int(tail.rstrip(")")) == n


def test_best_and_second_by_the_measures_direction():
    column = {"a": complete(1.0), "b": complete(3.0), "c": complete(2.0)}
    assert rank(column, "higher", 2) == {"b": "best", "c": "second"}
    assert rank(column, "lower", 2) == {"a": "best", "c": "second"}
    assert rank(column, None, 2) == {}


def test_equal_text_is_equally_marked():
    column = {"a": complete(97.001), "b": complete(97.004), "c": complete(96.0), "d": complete(96.001)}
    assert rank(column, "higher", 2) == {"a": "best", "b": "best"}
    del column["b"]
    assert rank(column, "higher", 2) == {"a": "best", "c": "second", "d": "second"}


def test_only_complete_cells_compete_and_one_is_no_contest():
    column = {"a": complete(1.0), "half": Summary(9.0, None, 1, 2), "none": Summary(None, None, 0, 1)}
    assert rank(column, "higher", 2) == {}
    column["b"] = complete(0.5)
    assert rank(column, "higher", 2) == {"a": "best", "b": "second"}


@given(st.lists(accuracies, min_size=2, max_size=8), st.sampled_from(["higher", "lower"]))
def test_marks_agree_with_the_order(values, better):
    column = dict(enumerate(map(complete, values)))
    marks = rank(column, better, 1)
    sign = 1 if better == "higher" else -1
    shown = [sign * round(v, 1) for v in values]
    assert {k for k, m in marks.items() if m == "best"} == {k for k, v in enumerate(shown) if v == max(shown)}
    assert all(shown[k] < max(shown) for k, m in marks.items() if m == "second")
