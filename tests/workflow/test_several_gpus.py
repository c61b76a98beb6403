"""Runs that several GPUs share, made by the rules: here, by processes of the processor."""

from __future__ import annotations

import csv

import pytest
import yaml

from kdpipe.core.files import read_json
from tests.workflow.conftest import PROTOCOL

pytestmark = pytest.mark.slow


def test_the_rules_train_them_and_another_number_makes_nothing_again(project):
    alone, packed = (["device=cpu", f"pack={size}"] for size in (1, 3))
    protocol = project.root / "config" / "protocols" / "tiny.yaml"
    project.study(recipes=["standard"], methods=["kd"], curves=[{"method": "kd", "epochs": [1]}])
    protocol.write_text(yaml.safe_dump({**PROTOCOL, "gpus": 2}))
    commands = project.snakemake("-n", "--printshellcmds", config=alone)
    assert commands.stdout.count(" --threads 2 ") == 4  # three trainings, a sampled checkpoint
    done = project.snakemake("--benchmark-extended", config=packed)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [read_json(file) for file in project.root.glob("results/runs/*/provenance.json")]
    assert [record["processes"] for record in records] == [2] * 3
    for file in project.root.glob("results/benchmarks/pack-*"):
        with open(file) as rows:
            (job,) = csv.DictReader(rows, delimiter="\t")
        assert job["threads"] == "2"
    assert "Traceback" not in done.stderr
    assert not project.planned(config=alone)
    protocol.write_text(yaml.safe_dump(PROTOCOL))
    assert not project.planned(config=packed)
