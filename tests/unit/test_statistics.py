"""Mean, spread, intervals, tests and marks, against SciPy, by hand and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from kdpipe.tables.blocks import entry_text, number
from kdpipe.tables.collect import Measurement
from kdpipe.tables.statistics import Comparison, Summary, compare, holm, rank, ranks, resample, summarise

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


# Intervals


@given(st.lists(accuracies, min_size=2, max_size=8))
def test_the_interval_is_students(values):
    low, high = summarise(measured(v, seed) for seed, v in enumerate(values)).interval
    spread = np.std(values, ddof=1) / len(values) ** 0.5
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread) if spread else [values[0]] * 2
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-6)


def test_one_seed_and_none_have_no_interval():
    assert summarise([measured(98.2)]).interval is None
    assert summarise([measured(None, 0, "missing")]).interval is None


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_the_mean_as_often_as_they_say(n):
    draws = np.random.default_rng(n).normal(70.0, 0.3, size=(4000, n))
    covered = 0
    for row in draws:
        low, high = summarise(measured(v, seed) for seed, v in enumerate(row)).interval
        covered += low <= 70.0 <= high
    assert covered / len(draws) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


# Resampled test images


def test_resampling_counts_agrees_with_resampling_images():
    rng = np.random.default_rng(3)
    right = rng.random((3, 400)) < rng.random(400)  # images differ in how hard they are
    picks = rng.integers(0, 400, size=(20_000, 400))
    means = 100 * right.mean(axis=0)[picks].mean(axis=1)
    assert resample(list(right), 20_000) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.15)


def test_resampling_a_single_network_is_binomial():
    right = np.arange(1000) < 800
    low, high = resample([right], 20_000)
    expected = stats.binom.ppf((0.025, 0.975), 1000, 0.8) / 10
    assert (low, high) == pytest.approx(tuple(expected), abs=0.15)


def test_resampling_images_that_are_all_right_knows_no_other_mean():
    assert resample([np.ones(50, bool)] * 2, 100) == (100.0, 100.0)
    assert resample([np.zeros(50, bool)], 100) == (0.0, 0.0)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.randoms())
def test_the_order_of_images_does_not_matter_and_the_mean_is_within(right, random):
    other = list(right)
    random.shuffle(other)
    low, high = resample([np.array(right)], 50)
    assert (low, high) == resample([np.array(other)], 50)
    assert 0 <= low <= high <= 100


# Differences from a baseline

pairs = st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=9)


@given(pairs)
def test_the_paired_test_is_scipys(values):
    own, base = (dict(enumerate(v)) for v in zip(*values, strict=True))
    found = compare(own, base)
    differences = np.subtract(list(own.values()), list(base.values()))
    assert found.mean == pytest.approx(differences.mean(), abs=1e-9)
    assume(np.std(differences) > 1e-3)
    assert found.std == pytest.approx(np.std(differences, ddof=1))
    assert found.effect == pytest.approx(differences.mean() / np.std(differences, ddof=1), abs=1e-9)
    expected = stats.ttest_rel(list(own.values()), list(base.values()))
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-6)


@given(pairs, st.floats(-50, 50))
def test_a_comparison_turned_round_is_its_mirror_and_a_shift_of_both_changes_nothing(values, shift):
    own, base = (dict(enumerate(v)) for v in zip(*values, strict=True))
    assume(np.std(np.subtract(list(own.values()), list(base.values()))) > 1e-3)
    found, back = compare(own, base), compare(base, own)
    assert back.mean == pytest.approx(-found.mean, abs=1e-9)
    assert (back.p, back.p_exact) == pytest.approx((found.p, found.p_exact), abs=1e-9)
    moved = compare(*({s: v + shift for s, v in values.items()} for values in (own, base)))
    assert moved.p == pytest.approx(found.p, abs=1e-4)


@pytest.mark.parametrize(
    "differences",
    [[1, 2, 3, 4, 5, 6], [1, -2, 3, 4, 5, 6, 7], [1, 1, 2, -1, 3, 2], [0.5, 0, -1, 2, 3, 4, 5]],
)
def test_the_exact_test_is_that_of_all_signs(differences):
    found = compare(dict(enumerate(map(float, differences))), dict.fromkeys(range(9), 0.0)).p_exact
    kept = np.array([d for d in differences if d])
    order = stats.rankdata(np.abs(kept))
    sums = np.array([np.dot(signs, order) for signs in itertools.product((0, 1), repeat=len(kept))])
    here = order[kept > 0].sum()
    assert found == pytest.approx(min(1.0, 2 * min(np.mean(sums <= here), np.mean(sums >= here))))


def test_too_few_pairs_have_no_test():
    assert compare({0: 1.0}, {1: 1.0}) == Comparison(0)
    one = compare({0: 1.5, 1: 9.0}, {0: 1.0})
    assert (one.n, one.mean, one.interval, one.effect, one.p) == (1, 0.5, None, None, None)
    two = compare({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0})
    assert (two.n, two.mean, two.p) == (2, 1.5, None)
    assert two.interval == pytest.approx((1.5 - 12.7062 * 0.5, 1.5 + 12.7062 * 0.5), abs=1e-3)
    assert compare(dict(enumerate([1.0, 2.0, 4.0, 3.0, 5.0])), dict.fromkeys(range(5), 0.0)).p_exact is None


def test_differences_that_do_not_vary_have_no_test():
    base = {seed: 70 + seed / 7 for seed in range(8)}
    same = compare({seed: value + 0.1 for seed, value in base.items()}, base)
    assert (same.std, same.effect, same.p, same.p_exact) == (0.0, None, None, None)
    assert same.mean == pytest.approx(0.1)
    assert compare(base, base).interval == (0.0, 0.0)


def test_the_paired_test_is_as_often_wrong_as_it_says():
    rng = np.random.default_rng(0)
    wrong = 0
    for own, base in rng.normal(70, 0.3, size=(2000, 2, 4)):
        wrong += compare(dict(enumerate(own)), dict(enumerate(base))).p < 0.05
    assert wrong / 2000 == pytest.approx(0.05, abs=0.017)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0}
    assert holm({"a": 0.02}) == {"a": 0.02}
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferronis(values):
    found = holm(dict(enumerate(values)))
    for i, p in enumerate(values):
        assert p <= found[i] <= min(1.0, len(values) * p) + 1e-12
        assert all(found[i] <= found[j] for j, q in enumerate(values) if p < q)


# Ranks


@given(st.lists(accuracies, min_size=1, max_size=8), st.sampled_from(["higher", "lower"]))
def test_ranks_are_scipys_at_the_shown_precision(values, better):
    sign = -1 if better == "higher" else 1
    expected = stats.rankdata([sign * round(v, 1) for v in values])
    assert list(ranks(dict(enumerate(map(complete, values))), better, 1).values()) == list(expected)


def test_only_complete_cells_are_ranked():
    column = {"a": complete(1.0), "half": Summary(9.0, None, 1, 2), "b": complete(2.0)}
    assert ranks(column, "higher", 2) == {"a": 2.0, "b": 1.0}
    assert ranks(column, None, 2) == {}
