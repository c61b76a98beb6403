"""The diagrams that a study names, from results made up for the purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdpipe.plan.study import Study
from kdpipe.tables import figures
from kdpipe.tables.gallery import CURVES, DRAWN, PANELS, SWEEPS, draw_figure
from tests.unit.synthetic import Made

SAMPLES, CLASSES = 40, 4


def stored(made: Made, seed: int = 0) -> None:
    """Predictions, features and compared gradients of every run."""
    rng = np.random.default_rng(seed)
    labels, index = np.arange(SAMPLES) % CLASSES, np.arange(SAMPLES)
    for name in made.plan.runs:
        paths = made.results.run(name)
        arrays: dict[str, Any] = {
            "test_logits": rng.normal(size=(SAMPLES, CLASSES)) + 2 * np.eye(CLASSES)[labels],
            "test_labels": labels,
            "test_index": index,
        }
        aux = {"test_auxiliary": -arrays["test_logits"]} if "_dkd_" in name else {}
        np.savez(paths.predictions, **arrays, **aux)
        np.savez(paths.features, test_features=rng.normal(size=(SAMPLES, 5)), **arrays)
        history = pd.read_csv(paths.history)
        history["cosine_ce_kd_backbone"] = np.where(history["epoch"] % 5 == 0, -0.5, np.nan)
        history.to_csv(paths.history, index=False)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path).finish()
    stored(made)
    return made


def test_every_figure_that_a_study_may_name_can_be_drawn() -> None:
    allowed = Study.model_fields["figures"].annotation
    drawn = [name for name in (*CURVES, *SWEEPS, *DRAWN) if name != "learning_curves"]  # always drawn
    assert all(f"'{name}'" in str(allowed) for name in drawn)
    assert str(allowed).count("'") == 2 * len(drawn)


@pytest.mark.parametrize("name", DRAWN)
def test_it_is_drawn_with_its_data_and_drawn_alike_again(made: Made, name: str) -> None:
    files = draw_figure(name, made.study, made.plan, made.results)
    assert [f.suffix for f in files] == [".svg", ".png", ".csv"]
    assert all(f.parent == made.results.study("demo") for f in files)
    with Image.open(files[1]) as image:
        assert min(image.size) > 100
    before = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in draw_figure(name, made.study, made.plan, made.results)] == before


def test_the_first_seed_of_each_network_is_shown_teachers_first(made: Made) -> None:
    *_, file = draw_figure("reliability", made.study, made.plan, made.results)
    titles = list(dict.fromkeys(pd.read_csv(file).iloc[:, 0]))
    assert titles[:2] == ["teacher (standard)", "teacher (soteacher)"]
    assert {"scratch", "kd (standard)", "dkd (soteacher)"} <= set(titles)
    assert len(titles) == 9 <= PANELS


def test_what_collapsed_is_left_out(made: Made) -> None:
    made.collapse(made.run("kd", "standard", 0), 3)
    *_, file = draw_figure("correlation", made.study, made.plan, made.results)
    titles = set(pd.read_csv(file).iloc[:, 0])
    assert "kd (standard)" not in titles
    assert "kd (soteacher)" in titles
    assert "scratch" in titles  # beside the first teacher


def test_the_cosines_are_those_of_the_history(made: Made) -> None:
    *_, file = draw_figure("gradients", made.study, made.plan, made.results)
    data = pd.read_csv(file)
    assert set(data["epoch"]) == {5, 10, 15, 20}
    assert set(data["cosine"]) == {-0.5}
    assert set(data["terms"]) == {"ce_kd"}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_to_show_is_said(made: Made, name: str) -> None:
    for run in made.plan.runs:
        made.collapse(run, 1)
    svg, *_ = draw_figure(name, made.study, made.plan, made.results)
    assert svg.stat().st_size > 500


def test_a_head_that_was_dropped_has_a_panel_of_its_own(made: Made) -> None:
    *_, file = draw_figure("correlation", made.study, made.plan, made.results)
    data = pd.read_csv(file).set_index("network")["difference"]
    assert "dkd (standard), auxiliary head" in data.index
    assert "kd (standard), auxiliary head" not in data.index
    own, second = (data[f"dkd (standard){head}"].to_numpy() for head in ("", ", auxiliary head"))
    np.testing.assert_allclose(own, second, atol=1e-6)  # correlations of logits and of their negatives


@pytest.mark.parametrize("name", [*CURVES, *SWEEPS, "reliability"])
@pytest.mark.parametrize(("scale", "said"), [("full", ""), ("smoke", "not to be compared")])
def test_a_figure_of_a_reduced_study_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scale: str, said: str
) -> None:
    made = Made(tmp_path, scale=scale).finish()
    stored(made)
    titles: list[str] = []
    monkeypatch.setattr(figures, "_settle", lambda figure: titles.append(figure.get_suptitle()))
    draw_figure(name, made.study, made.plan, made.results)
    assert said in titles[0].replace("\n", " ")
    assert ("Scale" in titles[0]) == bool(said)
