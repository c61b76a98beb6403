"""The whole chain on real images, through Snakemake: results, tracking, and what a second call does."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from kdpipe.core.paths import Results
from kdpipe.plan.config import read_config
from kdpipe.plan.load import load_plan

pytestmark = pytest.mark.slow


def plan_of(project, monkeypatch):
    monkeypatch.chdir(project.root)
    return load_plan(read_config(project.root / "config" / "config.yaml"))[0]


def test_every_result_is_there(finished, monkeypatch):
    plan = plan_of(finished, monkeypatch)
    assert len(plan.runs) == 5  # teacher, scratch, kd, dkd, and kd of the teacher's first epoch
    for name, planned in plan.runs.items():
        paths = Results(finished.root / "results").run(name)
        assert json.loads(paths.status.read_text())["status"] == "finished"
        assert json.loads(paths.spec.read_text())["id"] == planned.run.id
        values = json.loads(paths.metrics.read_text())["values"]
        assert 0 < values["top1"] <= 100
        assert ("agreement" in values) == (planned.teacher is not None)
        assert (paths.root / "train.log").read_text().count("epoch") >= 2
    study = finished.root / "results" / "studies" / "tiny"
    for file in (
        "table.csv",
        "table.md",
        "table.tex",
        "table.html",
        "learning_curves.svg",
        "learning_curves.png",
    ):
        assert (study / file).stat().st_size > 0, file
    assert (finished.root / "results" / "report" / "index.html").stat().st_size > 0


def test_the_table_holds_the_measured_numbers(finished, monkeypatch):
    plan = plan_of(finished, monkeypatch)
    table = pd.read_csv(finished.root / "results" / "studies" / "tiny" / "table.csv")
    cell = next(c for c in plan.studies["tiny"].cells if c.row == "dkd")
    stored = json.loads((finished.root / "results" / "runs" / cell.run / "metrics.json").read_text())
    row = table[(table.row == "dkd") & (table.metric == "top1")]
    assert row["mean"].item() == pytest.approx(stored["values"]["top1"])


def test_the_table_is_printed_at_the_end(finished):
    assert "Tiny" in finished.done.stdout
    assert "dkd" in finished.done.stdout


def test_mlflow_holds_each_run_once(finished, monkeypatch):
    from mlflow import MlflowClient

    plan = plan_of(finished, monkeypatch)
    client = MlflowClient(f"sqlite:///{finished.root / 'results' / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments(filter_string="name LIKE 'kdpipe/%'")]
    runs = client.search_runs(experiments)
    assert sorted(r.data.tags["kdpipe.run"] for r in runs) == sorted(plan.runs)
    by_name = {r.data.tags["kdpipe.run"]: r for r in runs}
    for name, planned in plan.runs.items():
        history = client.get_metric_history(by_name[name].info.run_id, "train_top1")
        assert [m.step for m in history] == [1, 2]
        if planned.teacher:
            assert by_name[name].data.tags["mlflow.parentRunId"] == by_name[planned.teacher].info.run_id


def test_a_second_call_does_nothing(finished):
    done = finished.snakemake()
    assert "Nothing to be done" in done.stdout + done.stderr


def test_one_changed_setting_moves_exactly_its_students(finished):
    assert finished.planned() == []
    finished.study(settings={"dkd": {"beta": 3.0}})
    try:
        listed = finished.planned()
    finally:
        finished.study()
    dkd = "student_digits_resnet14_resnet8_dkd_standard_s0"
    drawn = [f"draw {figure} of tiny" for figure in ("learning_curves", "sampling")]
    rendered = ["render the report", "render tiny"]
    assert listed == [f"distil {dkd}", *drawn, "evaluate tiny", *rendered]
    assert finished.planned() == []  # changed back: everything is found again


def test_a_new_seed_trains_only_its_own(finished):
    finished.study(seeds=[0, 1])
    try:
        listed = finished.planned()
    finally:
        finished.study()
    trained = [job for job in listed if job.startswith(("train", "distil"))]
    assert len(trained) == 5
    assert all(job.endswith("_s1") for job in trained)
    assert not [job for job in listed if job.startswith("prepare")]


def test_touched_files_and_reordered_keys_move_nothing(finished):
    for file in (finished.root / "config").rglob("*.yaml"):
        file.touch()
    study = finished.root / "config" / "studies" / "tiny.yaml"
    lines = study.read_text()
    import yaml

    study.write_text(yaml.safe_dump(dict(reversed(yaml.safe_load(lines).items())), sort_keys=False))
    try:
        assert finished.planned() == []
    finally:
        finished.study()


def test_a_results_folder_can_be_moved(finished, tmp_path):
    shutil.copytree(finished.root, tmp_path / "moved")
    moved = type(finished)(tmp_path / "moved")
    assert not [job for job in moved.planned() if job.startswith(("train", "distil"))]
