"""Ranks over columns: Friedman's test and the critical difference against Demšar's tables and SciPy."""

from __future__ import annotations

import random

import pandas as pd
import pytest
from scipy import stats

from kdpipe.tables.layout import lay_out
from kdpipe.tables.ranks import Ranks, critical_difference, mean_ranks
from tests.unit.synthetic import Made, draw

PAIRS = [(f"t{i}", f"s{i}") for i in range(3)]


def noisy(row: str, recipe: str, seed: int) -> float:
    return random.Random(f"{row} {recipe} {seed}").gauss(70, 1)


def made_of(tmp_path, values=noisy, recipes=("standard", "soteacher", "micc"), **more) -> Made:
    methods = ("scratch", "kd", "dkd", "fitnet")
    return Made(tmp_path, methods=methods, recipes=recipes, curve=(), values=values, **more)


def ranks_of(made: Made) -> Ranks | None:
    return mean_ranks(lay_out(made.study, made.plan, made.results).blocks[0])


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_demsars(k, q):  # his Table 5(a)
    assert critical_difference(k, 14) == pytest.approx(q * (k * (k + 1) / (6 * 14)) ** 0.5, rel=4e-4)


def test_demsars_example():  # sec. 3.2.2: four classifiers on 14 data sets
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_mean_ranks_and_friedmans_test(tmp_path):
    made = made_of(tmp_path).finish()
    found = ranks_of(made)
    recipes = {m: r for m in made.methods for r in [made.recipes]}
    means = {
        method: [
            sum(noisy(method, "" if method == "scratch" else r, s) for s in (0, 1)) / 2
            for r in recipes[method]
        ]
        for method in made.methods
    }
    columns = [stats.rankdata([-round(means[m][c], 2) for m in made.methods]) for c in range(3)]
    expected = {m: sum(column[i] for column in columns) / 3 for i, m in enumerate(made.methods)}
    assert found.mean == pytest.approx(expected)
    assert list(found.mean.values()) == sorted(expected.values())
    assert found.p == pytest.approx(stats.friedmanchisquare(*means.values()).pvalue)
    assert (found.columns, found.left_out) == (3, ())


def test_a_method_that_lacks_a_cell_is_left_out_and_the_rest_are_ranked_anew(tmp_path):
    made = made_of(
        tmp_path, values=lambda row, recipe, seed: {"kd": 75.0, "dkd": 74.0}.get(row, 73.0)
    ).finish()
    made.lose(made.run("kd", "micc", 1))
    found = ranks_of(made)
    assert found.left_out == ("kd",)
    assert found.mean == {"dkd": 1.0, "scratch": 2.5, "fitnet": 2.5}


def test_a_column_without_results_is_not_waited_for(tmp_path):
    made = made_of(tmp_path, recipes=("a", "b", "c", "d"))
    made.methods = ("kd", "dkd", "fitnet")
    for cell in made.study.cells:
        if cell.place and cell.recipe != "d" and cell.row != "scratch":
            made.write(cell)
    found = ranks_of(made)
    assert (found.columns, found.left_out) == (3, ("scratch",))


def test_equal_methods_share_their_rank_and_have_no_test(tmp_path):
    found = ranks_of(made_of(tmp_path, values=lambda *_: 70.0).finish())
    assert set(found.mean.values()) == {2.5}
    assert found.p is None
    assert found.groups == [("scratch", "kd", "dkd", "fitnet")]


@pytest.mark.parametrize("recipes", [("a",), ("a", "b")])
def test_too_few_columns_have_no_ranks(tmp_path, recipes):
    assert ranks_of(made_of(tmp_path, recipes=recipes).finish()) is None


def test_groups_are_the_largest_sets_within_the_critical_difference():
    found = Ranks({"a": 1.0, "b": 1.4, "c": 2.2, "d": 4.0}, 10, 0.01, 1.0)
    assert found.groups == [("a", "b"), ("b", "c")]
    assert Ranks({"a": 1.0, "b": 3.0}, 10, 0.01, 1.0).groups == []
    assert Ranks({"a": 1.0, "b": 1.1, "c": 1.2}, 10, 0.5, 1.0).groups == [("a", "b", "c")]


@pytest.mark.parametrize("whole", [True, False])
def test_the_diagram_is_drawn_with_its_data(tmp_path, whole):
    made = made_of(tmp_path)
    if whole:
        made.finish()
    assert "ranks" in made.study.figures
    files = {p.name for p in draw(made)}
    assert {"ranks.svg", "ranks.png", "ranks.csv"} <= files
    data = pd.read_csv(made.results.study("demo") / "ranks.csv")
    assert set(data["method"]) == (set(made.methods) if whole else set())
    if whole:
        assert list(data["mean_rank"]) == sorted(data["mean_rank"])
        assert data["critical_difference"].iloc[0] == pytest.approx(critical_difference(4, 3))


def test_small_studies_have_no_such_figure(tmp_path):
    assert "ranks" not in Made(tmp_path).study.figures
