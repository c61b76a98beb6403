"""Verdicts on a paper's statements, from made-up measurements that hold, fail or cannot tell."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.core.plot import Verdict
from kdpipe.plan.plan import Printed
from kdpipe.tables.layout import CLAIMS, lay_out
from kdpipe.tables.render import html, latex, markdown, render
from tests.unit.synthetic import EPOCHS, Made

WOBBLE = (0.0, 0.04, -0.02)  # by seed; and by row another time, so that differences vary


def steady(**means: float):
    """Values with these means by row (or `row_recipe`), which vary little from seed to seed."""

    def value(row: str, recipe: str, seed: int) -> float:
        base = means.get(f"{row}_{recipe}", means.get(row, 70.0))
        return base + WOBBLE[(seed + len(row)) % 3]

    return value


def verdict_of(tmp_path, claim: dict[str, Any], values, seeds=(0, 1, 2), touch=None, **more) -> Verdict:
    known = {"methods": ("scratch", "kd", "dkd"), "metrics": ("top1", "nll"), "curve": (), **more}
    made = Made(
        tmp_path,
        seeds=seeds,
        values=values,
        more={"claims": [{"says": "so", "source": "Table 1", **claim}]},
        **known,
    )
    made.finish()
    if touch:
        touch(made)
    [told] = lay_out(made.study, made.plan, made.results).told
    assert told.name == CLAIMS
    return told.verdicts[0]


def ordered(kind: str = "above", own: str = "kd", other: str = "scratch", **more) -> dict[str, Any]:
    return {"kind": kind, "cells": {"row": own}, "than": {"row": other}, **more}


# Above and below


@pytest.mark.parametrize(
    ("mean", "margin", "verdict"),
    [
        (71.0, 0.0, "holds"),
        (71.0, 0.5, "holds"),
        (70.0, 0.0, "undecided"),
        (69.0, 0.0, "fails"),
        (71.0, 1.5, "fails"),
    ],
)
def test_above(tmp_path, mean, margin, verdict):
    found = verdict_of(tmp_path, ordered(margin=margin), steady(kd=mean, scratch=70.0))
    assert found.verdict == verdict
    assert (found.claim, found.source, found.setting) == ("so", "Table 1", "")
    counts = {
        "holds": "2 of 2 columns",
        "undecided": "0 of 2 columns",
        "fails": "0 of 2 columns, against it 2",
    }
    assert found.numbers.startswith(counts[verdict])
    assert "points (n=3)" in found.numbers


@pytest.mark.parametrize(("mean", "verdict"), [(71.0, "fails"), (69.0, "holds")])
def test_below_is_above_turned_round(tmp_path, mean, verdict):
    assert verdict_of(tmp_path, ordered("below"), steady(kd=mean, scratch=70.0)).verdict == verdict


def test_every_column_has_to_agree(tmp_path):
    values = steady(kd_standard=71.0, kd_soteacher=70.0, scratch=70.0)
    found = verdict_of(tmp_path, ordered(), values)
    assert found.verdict == "undecided"
    assert "1 of 2 columns" in found.numbers
    values = steady(kd_standard=71.0, kd_soteacher=69.0, scratch=70.0)
    assert verdict_of(tmp_path / "b", ordered(), values).verdict == "fails"


def test_recipes_are_compared_within_a_pair(tmp_path):
    claim = {
        "kind": "above",
        "cells": {"row": "kd", "recipe": "soteacher"},
        "than": {"row": "kd", "recipe": "standard"},
    }
    pairs = (("a", "b"), ("a", "c"))
    found = verdict_of(
        tmp_path, claim, lambda row, r, seed: 70 + (r == "soteacher") + 0.1 * seed * len(r), pairs=pairs
    )
    assert found.verdict == "holds"
    assert found.numbers.startswith("2 of 2 columns; a → b")


def test_a_teachers_own_number_is_compared_once_however_many_students_it_has(tmp_path):
    claim = {
        "kind": "below",
        "cells": {"row": "teacher", "recipe": "soteacher"},
        "than": {"row": "teacher", "recipe": "standard"},
    }
    values = lambda row, recipe, seed: 71.0 + 0.02 * seed * len(recipe) - (recipe == "soteacher")  # noqa: E731
    found = verdict_of(tmp_path, claim, values, pairs=(("a", "b"), ("a", "c")))
    assert found.verdict == "holds"
    assert found.numbers.startswith("1 of 1 columns")
    assert found.numbers.count("points") == 1


def test_a_claim_about_one_recipe_looks_at_its_columns_alone(tmp_path):
    claim = {"kind": "above", "cells": {"row": "kd", "recipe": "soteacher"}, "than": {"row": "dkd"}}
    values = steady(kd_soteacher=72.0, dkd_soteacher=71.0, dkd_standard=99.0)
    found = verdict_of(tmp_path, claim, values)
    assert (found.verdict, found.numbers[:14]) == ("holds", "1 of 1 columns")


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_few_seeds_cannot_tell(tmp_path, seeds):
    values = lambda row, recipe, seed: {"kd": 70.3}.get(row, 70.0) + 0.2 * seed * (row == "kd")  # noqa: E731
    assert verdict_of(tmp_path, ordered(), values, seeds).verdict == "undecided"


def test_a_missing_run_leaves_it_undecided_and_is_counted(tmp_path):
    def lose(made):
        made.lose(made.run("kd", "standard", 0))
        made.lose(made.run("dkd", "standard", 0))  # of no concern

    found = verdict_of(tmp_path, ordered(), steady(kd=75.0), touch=lose)
    assert found.verdict == "undecided"
    assert found.numbers.startswith("1 run missing; 2 of 2 columns")


def test_only_missing_runs_of_its_columns_are_waited_for(tmp_path):
    claim = {"kind": "above", "cells": {"row": "kd", "recipe": "soteacher"}, "than": {"row": "dkd"}}
    touch = lambda made: made.lose(made.run("dkd", "standard", 0))  # noqa: E731
    assert verdict_of(tmp_path, claim, steady(kd=75.0), touch=touch).verdict == "holds"


def test_before_any_run_nothing_is_decided(tmp_path):
    along = {"cells": {}, "order": ["kd", "scratch"]}
    claims = [
        ordered(),
        {"kind": "collapses", "cells": {"row": "kd"}},
        {"kind": "best", "among": ["kd"], **along},
        {"kind": "rising", **along},
    ]
    claims = [{"says": "so", "source": "Table 1", **claim} for claim in claims]
    made = Made(tmp_path, methods=("scratch", "kd"), curve=(), more={"claims": claims})
    [told] = lay_out(made.study, made.plan, made.results).told
    assert {v.verdict for v in told.verdicts} == {"undecided"}
    # 2 recipes x 2 seeds of KD, and 2 seeds of the student alone
    assert [v.numbers.split(" missing")[0] for v in told.verdicts] == ["6 runs", "4 runs", "6 runs", "6 runs"]


def test_a_collapsed_run_is_told(tmp_path):
    touch = lambda made: made.collapse(made.run("kd", "standard", 0), 8)  # noqa: E731
    found = verdict_of(tmp_path, ordered(), steady(kd=75.0), touch=touch)
    assert found.numbers.endswith("1 diverged")
    assert "(n=2)" in found.numbers


def test_cells_that_cannot_be_made_are_no_columns(tmp_path):
    found = verdict_of(tmp_path, ordered(), steady(kd=75.0), skip=["kd"])
    assert (found.verdict, found.numbers) == ("undecided", "no columns of this study have what it is about")


def test_another_measure(tmp_path):
    found = verdict_of(tmp_path, ordered("below", metric="nll"), steady(kd=75.0, scratch=70.0))
    assert found.verdict == "holds"
    assert "nats (n=3)" in found.numbers


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (ordered(own="kdd"), "no row 'kdd': did you mean 'kd'"),
        (ordered(metric="top5"), "no metric 'top5': did you mean 'top1'"),
        ({"kind": "collapses", "cells": {"student": "vgg"}}, "no student 'vgg': known: resnet8"),
        ({"kind": "rising", "cells": {}, "order": ["kd", "dkd2"]}, "no row 'dkd2'"),
        ({"kind": "best", "cells": {}, "along": "recipe", "order": ["standard", "soteach"]}, "'among'"),
        (
            {"kind": "best", "cells": {}, "along": "recipe", "order": ["standard", "x"], "among": ["y"]},
            "no recipe 'x'",
        ),
    ],
)
def test_a_claim_about_what_is_not_there_is_refused(tmp_path, claim, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        verdict_of(tmp_path, claim, steady())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.floats(0, 1))
def test_no_numbers_are_above_and_below_at_once(tmp_path_factory, gaps, margin):
    values = lambda row, recipe, seed: 70.0 + (gaps[seed] if row == "kd" else 0.0)  # noqa: E731
    root = tmp_path_factory.mktemp("claims")
    above, below = (
        verdict_of(root / kind, ordered(kind, margin=margin), values, recipes=("standard",)).verdict
        for kind in ("above", "below")
    )
    assert (above, below).count("holds") < 2
    assert above != "holds" or below == "fails"


# Near


def near(tmp_path, value: float, scale="full", tolerance=0.5) -> Verdict:
    known = [Printed("kd", "standard", "resnet8x4", "resnet8", "digits", "top1", value, None, "")]
    known += [Printed("dkd", "standard", "resnet8x4", "resnet8", "digits", "top1", 1.0, None, "")]
    claim = {"kind": "near", "cells": {"row": "kd"}, "tolerance": tolerance}
    return verdict_of(tmp_path, claim, steady(kd=70.0), printed=known, scale=scale)


@pytest.mark.parametrize(
    ("value", "verdict"), [(70.1, "holds"), (70.48, "undecided"), (71.0, "fails"), (69.0, "fails")]
)
def test_near(tmp_path, value, verdict):
    found = near(tmp_path, value)
    assert found.verdict == verdict
    assert found.numbers.startswith("1 of 1 cells" if verdict == "holds" else "0 of 1 cells")


def test_near_is_not_asked_of_a_reduced_run(tmp_path):
    found = near(tmp_path, 70.0, scale="smoke")
    assert (found.verdict, found.setting) == ("undecided", "scale smoke")
    assert "not compared" in found.numbers


# Rising, falling, best, collapses


@pytest.mark.parametrize(
    ("means", "rising", "falling"),
    [
        ((68, 69, 70), "holds", "fails"),
        ((70, 69, 68), "fails", "holds"),
        ((68, 70, 69), "fails", "fails"),
        ((69, 69, 69), "undecided", "undecided"),
    ],
)
def test_trends(tmp_path, means, rising, falling):
    values = steady(**dict(zip(("scratch", "kd", "dkd"), means, strict=True)))
    for kind, verdict in (("rising", rising), ("falling", falling)):
        claim = {"kind": kind, "cells": {}, "order": ["scratch", "kd", "dkd"]}
        assert verdict_of(tmp_path / kind, claim, values).verdict == verdict


def test_a_trend_along_recipes(tmp_path):
    claim = {"kind": "rising", "cells": {"row": "kd"}, "order": ["a", "b", "c"], "along": "recipe"}
    values = lambda row, recipe, seed: 68.0 + "abc".index(recipe) * (1 + 0.03 * seed)  # noqa: E731
    found = verdict_of(tmp_path, claim, values, recipes=("a", "b", "c"))
    assert found.verdict == "holds"
    assert found.numbers.startswith("1 of 1 columns; last minus first of a, b, c")


@pytest.mark.parametrize("order", [["60", "120", "last"], ["60", "120", "240"]])
def test_a_trend_along_epochs_counts_them_at_full_scale(tmp_path, order):
    claim = {"kind": "rising", "cells": {"row": "kd"}, "order": order, "along": "epoch"}
    found = verdict_of(tmp_path, claim, steady(), curve=(5, 10, EPOCHS), scale="short")
    assert (found.verdict, found.setting) == ("holds", "scale short")
    assert found.numbers.startswith("2 of 2 columns")


@pytest.mark.parametrize(
    ("dkd", "among", "verdict"),
    [
        (72.0, ["dkd"], "holds"),
        (72.0, ["kd"], "fails"),
        (71.0, ["dkd"], "undecided"),
        (72.0, ["dkd", "kd"], "holds"),
    ],
)
def test_best(tmp_path, dkd, among, verdict):
    claim = {"kind": "best", "cells": {}, "order": ["scratch", "kd", "dkd"], "among": among}
    found = verdict_of(tmp_path, claim, steady(scratch=70.0, kd=71.0, dkd=dkd))
    assert found.verdict == verdict
    assert "best by mean" in found.numbers


def test_best_goes_by_the_measures_direction(tmp_path):
    claim = {"kind": "best", "cells": {}, "order": ["kd", "dkd"], "among": ["dkd"], "metric": "nll"}
    assert verdict_of(tmp_path, claim, steady(kd=71.0, dkd=73.0)).verdict == "holds"  # nll falls with top-1


@pytest.mark.parametrize(("lost", "verdict"), [(6, "holds"), (2, "fails"), (0, "fails")])
def test_collapses(tmp_path, lost, verdict):
    def touch(made):
        for recipe, seed in [(r, s) for r in made.recipes for s in made.seeds][:lost]:
            made.collapse(made.run("kd", recipe, seed), 8)

    found = verdict_of(tmp_path, {"kind": "collapses", "cells": {"row": "kd"}}, steady(), touch=touch)
    assert (found.verdict, found.numbers) == (verdict, f"{lost} of 6 runs diverged")


def test_that_a_short_training_does_not_diverge_says_nothing(tmp_path):
    claim = {"kind": "collapses", "cells": {"row": "kd"}}
    assert verdict_of(tmp_path, claim, steady(), scale="smoke").verdict == "undecided"


# Files


def test_verdicts_are_in_every_file(tmp_path):
    claims = [{"says": "KD is better", "source": "Table 9", **ordered()}]
    more = {"claims": claims, "paper": "some2020"}
    made = Made(
        tmp_path, methods=("scratch", "kd"), curve=(), scale="smoke", ran_on="mnist", more=more
    ).finish()
    assert made.results.study("demo") / "verdicts.csv" in render(made.study, made.plan, made.results)
    row = pd.read_csv(made.results.study("demo") / "verdicts.csv").iloc[0]
    assert (row["figure"], row["claim"], row["setting"]) == (
        "claims",
        "KD is better",
        "scale smoke, on mnist",
    )
    layout = lay_out(made.study, made.plan, made.results)
    for text in (markdown(layout), latex(layout, "demo"), html(layout)):
        assert "Statements of some2020" in text
        assert "KD is better" in text
        assert "scale smoke, on mnist" in text
