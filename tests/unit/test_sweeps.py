"""Figures of settings and costs, and curves over several data sets, from made-up results of real plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from kdpipe.core.paths import Results
from kdpipe.plan.plan import Plan, PlannedStudy
from kdpipe.plan.resolve import resolve
from kdpipe.tables.figures import learning_data
from kdpipe.tables.gallery import draw_figure
from kdpipe.tables.sweeps import cost_data, sensitivity_data, sweeps

RATES = [0.0, 1e-6, 1e-5, 1e-4]
SOTEACHER = [
    {"name": "soteacher", "label": f"so {rate:g}", "settings": {"lambda_lr": rate}}
    for rate in (0, 1e-6, 1e-4)
]
SWEPT = {
    "seeds": [0, 1],
    "pairs": [{"teacher": "resnet56", "student": "resnet20"}],
    "recipes": [
        "standard",
        "soteacher",
        *SOTEACHER,
        {"name": "soteacher", "label": "so cosine", "settings": {"schedule": "cosine"}},
    ],
    "methods": ["scratch", "kd"],
}
TWO_SETS = {
    "seeds": [0],
    "pairs": [
        {"teacher": "resnet56", "student": "resnet20"},
        {"teacher": "resnet56", "student": "resnet20", "dataset": "cifar10"},
    ],
    "recipes": ["standard"],
    "methods": ["scratch", "kd", "dkd"],
    "curves": [{"method": "kd", "epochs": [120, 240]}],
    "keep": {"every": 120},
    "figures": ["loss_curves", "sensitivity", "cost"],
}
Made = tuple[PlannedStudy, Plan, Results]


def finished(plan: Plan, root: Path) -> Made:
    """Results of every run: accuracy by kind, seed and data set, loss, time and parameters."""
    results = Results(root / "results")
    (study,) = plan.studies.values()
    for cell in study.cells:
        if not cell.place:
            continue
        run = plan.runs[cell.run or ""].run
        folder = results.root / cell.place
        folder.mkdir(parents=True, exist_ok=True)
        settings = run.spec.objective.settings
        top1 = 70.0 + run.spec.seed - 5 * (run.kind == "student") - 10 * (run.recipe is None)
        top1 += settings.get("lambda_lr", 0) * 1e4 + 20 * (run.spec.data.dataset == "cifar10")
        values = {"top1": top1, "nll": 1.0, "ms_step": 10.0 + len(cell.row), "extra_parameters": 0.0}
        record = {"status": "finished", "epoch": 240, "split": "test", "values": values}
        (folder / "metrics.json").write_text(json.dumps(record))
        epochs = range(1, 11)
        rows = [f"{e},{1 / e},{top1 - 20 / e},{3 / e + top1 / 100}" for e in epochs]
        (folder / "history.csv").write_text("\n".join(["epoch,loss,test_top1,test_loss", *rows]) + "\n")
        (folder / "provenance.json").write_text(json.dumps({"device": "A processor", "threads": 1}))
    return study, plan, results


@pytest.fixture
def swept(config: Callable[..., object], tmp_path: Path) -> Made:
    return finished(resolve(config(a=SWEPT)), tmp_path)  # type: ignore[arg-type]


@pytest.fixture
def two_sets(config: Callable[..., object], tmp_path: Path) -> Made:
    return finished(resolve(config(a=TWO_SETS)), tmp_path)  # type: ignore[arg-type]


def test_settings_that_vary_alone_are_found(swept: Made) -> None:
    study, plan, _ = swept
    by_setting = {sweep.setting: sweep for sweep in sweeps(study, plan)}
    assert by_setting.keys() == {"lambda_lr", "schedule"}
    rates = by_setting["lambda_lr"]
    assert (rates.kind, rates.name, rates.default) == ("recipe", "soteacher", "soteacher")
    assert sorted(rates.values.values()) == RATES
    assert rates.scale == "names"  # zero has no place on a logarithmic axis
    assert [rates.places[label] for label in ("so 0", "so 1e-06", "soteacher", "so 0.0001")] == [0, 1, 2, 3]
    assert set(by_setting["schedule"].values) == {"soteacher", "so cosine"}


def test_a_setting_of_the_protocol_varies_too(config: Callable[..., object]) -> None:
    methods = ["kd", {"name": "kd", "label": "slow", "protocol": {"lr": 0.01}}]
    plan = resolve(config(a={**SWEPT, "recipes": ["standard"], "methods": methods}))  # type: ignore[arg-type]
    (sweep,) = sweeps(plan.studies["a"], plan)
    assert (sweep.setting, dict(sweep.values)) == ("protocol.lr", {"kd": 0.05, "slow": 0.01})
    assert (sweep.default, sweep.scale) == ("kd", "linear")


def test_entries_that_differ_in_two_settings_are_no_sweep(config: Callable[..., object]) -> None:
    other = {"name": "kd", "label": "other", "settings": {"temperature": 2.0, "alpha": 0.5}}
    plan = resolve(config(a={**SWEPT, "recipes": ["standard"], "methods": ["kd", other]}))  # type: ignore[arg-type]
    assert sweeps(plan.studies["a"], plan) == []


def test_a_sweep_shows_means_beside_the_standard_recipe(swept: Made) -> None:
    study, plan, results = swept
    data = sensitivity_data(study, plan, results, sweeps(study, plan))
    rates = data[data["setting"] == "lambda_lr"]
    teacher = rates[rates["row"] == "teacher"].set_index("entry")
    assert teacher.loc["so 0.0001", "mean"] == pytest.approx(71.5)
    assert teacher.loc["so 0.0001", "n"] == 2
    beside = rates[rates["x"].isna()]
    assert {(r.row, r.recipe) for r in beside.itertuples()} == {("teacher", "standard"), ("kd", "standard")}
    assert list(rates[rates["default"]]["entry"].unique()) == ["soteacher"]


def test_costs_are_those_of_the_students(swept: Made) -> None:
    study, plan, results = swept
    data = cost_data(study, plan, results).set_index(["row", "recipe"])
    assert data.loc[("kd", "standard"), "ms_step"] == 12
    assert data.loc[("scratch", ""), "mean"] == pytest.approx(55.5)
    assert "teacher" not in data.index
    assert set(data["devices"]) == {"A processor"}


def test_data_sets_stay_apart(two_sets: Made) -> None:
    study, _, results = two_sets
    for quantity in ("top1", "loss"):
        data = learning_data(study, results, quantity)
        last = data[(data["row"] == "kd") & (data["epoch"] == 10)].set_index("dataset")["mean"]
        wanted = (63, 83) if quantity == "top1" else (0.95, 1.15)
        assert (last["cifar100"], last["cifar10"]) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["learning_curves", "loss_curves", "sampling", "sensitivity", "cost"])
def test_every_figure_is_drawn_and_drawn_alike_again(two_sets: Made, swept: Made, name: str) -> None:
    for study, plan, results in (two_sets, swept):
        if name == "sampling" and not study.study.curves:
            continue
        files = draw_figure(name, study, plan, results)
        assert [f.suffix for f in files] == [".svg", ".png", ".csv"]
        with Image.open(files[1]) as image:
            assert min(image.size) > 100
        before = [f.read_bytes() for f in files]
        assert [f.read_bytes() for f in draw_figure(name, study, plan, results)] == before


def test_both_data_sets_have_their_panel(two_sets: Made) -> None:
    study, plan, results = two_sets
    *_, file = draw_figure("sampling", study, plan, results)
    assert set(pd.read_csv(file)["dataset"]) == {"cifar100", "cifar10"}


def test_old_histories_have_no_loss_and_are_drawn_all_the_same(two_sets: Made) -> None:
    study, plan, results = two_sets
    for history in results.root.glob("runs/*/history.csv"):
        history.write_text("epoch,loss,test_top1\n1,2.0,50\n2,1.0,60\n")
    assert learning_data(study, results, "loss").empty
    assert draw_figure("loss_curves", study, plan, results)[0].is_file()
