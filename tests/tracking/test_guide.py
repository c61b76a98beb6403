"""Every search string of docs/mlflow.md finds the runs that it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kdpipe.tracking.sync import sync
from tests.tracking.study import PAIR, RECIPES, SEEDS, Study

GUIDE = Path(__file__).parents[2] / "docs" / "mlflow.md"
SEARCHES = re.findall(r"^```\n([^\n]+)\n```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = Study(tmp_path_factory.mktemp("study") / "results")
    made.finish()
    with made.in_training():
        sync(made.results, made.plan, quiet=True)
    return made


def promised(study):
    """What each search of the guide finds, in the guide's order."""
    s, t, odd = study.students, study.teachers, study.odd
    return [
        [s[m, "standard", seed] for m in ("kd", "dkd") for seed in SEEDS] + study.of_checkpoints,
        [s["kd", recipe, seed] for recipe in RECIPES for seed in SEEDS],
        list(t.values()),
        [s["kd", "standard", seed] for seed in SEEDS],
        [t["standard", seed] for seed in SEEDS],
        study.of_checkpoints,
        [odd[status] for status in ("failed", "collapsed", "interrupted", "killed")],
        [odd["collapsed"]],
        [odd["interrupted"], odd["killed"]],
        [run for run in study.measured if run.kind == "student" and study.top1[run.name] > 80],
        [odd["running"]],
    ]


def test_each_search_has_its_promise(study):
    assert len(SEARCHES) == len(promised(study))
    assert all(promised(study))


@pytest.mark.parametrize("number", range(len(SEARCHES)), ids=SEARCHES)
def test_a_search_finds_what_it_promises(study, number):
    client = MlflowClient(f"sqlite:///{study.results.mlflow}")
    experiment = client.get_experiment_by_name("kdpipe/cifar100")
    found = client.search_runs([experiment.experiment_id], SEARCHES[number])
    assert sorted(r.info.run_name for r in found) == sorted(run.name for run in promised(study)[number])


def test_every_tag_and_metric_of_the_guide_is_there(study):
    text = GUIDE.read_text(encoding="utf-8")
    client = MlflowClient(f"sqlite:///{study.results.mlflow}")
    experiment = client.get_experiment_by_name("kdpipe/cifar100")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == len(study.plan.runs)
    tags = {tag for run in runs for tag in run.data.tags}
    told = set(re.findall(r"kdpipe\.[a-z_.]+[a-z]", text)) - {"kdpipe.study"}
    only_elsewhere = {"kdpipe.device", "kdpipe.slurm_job", "kdpipe.not_finite"}
    assert told - tags == only_elsewhere
    metrics = {metric for run in runs for metric in run.data.metrics}
    assert {"final.top1", "sampled.top1", "test_top1", "system/memory_megabytes"} <= metrics
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId")]
    assert len(below) == len(study.plan.runs) - len(study.teachers)
    assert PAIR[0] in text
