"""Teachers that are taught, teachers of several networks, and checkpoints that a rule picks, to the table."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kdpipe.core.paths import Results
from kdpipe.engine.weights import read_weights
from kdpipe.plan.config import read_config
from kdpipe.plan.load import load_plan

pytestmark = pytest.mark.slow

CHANGES = {
    "pairs": [{"teacher": "resnet8", "student": "resnet8"}],
    "recipes": ["born_again", {"name": "cross_fitting", "settings": {"folds": 2}}],
    "methods": ["kd"],
    "settings": {},
    "split": "train-val",
    "keep": {"every": 1},
    "checkpoint_precision": "float16",
    "curves": [{"method": "kd", "checkpoints": [{"rule": "lowest_nll"}]}],
}


def test_from_the_first_teacher_to_the_table(project, monkeypatch):
    project.study(**CHANGES)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(project.root)
    plan = load_plan(read_config(project.root / "config" / "config.yaml"))[0]
    results = Results(project.root / "results")
    for name, planned in plan.runs.items():
        record = json.loads(results.run(name).provenance.read_text())
        assert len(record["teacher"]) == len(plan.teacher_weights(name))
        for epoch in planned.keep_half:
            read_weights(results.run(name).checkpoint(epoch, "float16"))
    table = pd.read_csv(project.root / "results" / "studies" / "tiny" / "table.csv")
    shown = table[(table.part == "table") & (table.metric == "top1")]
    assert shown.set_index(["row", "recipe"])["n"].to_dict() == {
        (row, recipe): 1 for row in ("teacher", "kd") for recipe in ("born_again", "cross_fitting")
    }
    (rule,) = table[(table.rule == "lowest_nll") & (table.row == "kd") & (table.n == 1)].to_dict("records")
    assert rule["recipe"] == "born_again"
    student = results.run(rule["runs"])
    choice = json.loads(student.provenance.read_text())["choice"]
    assert choice["epoch"] == int(min(choice["scores"], key=choice["scores"].get))
    assert json.loads(student.metrics.read_text())["teacher_epoch"] == choice["epoch"]
    assert project.planned() == []
