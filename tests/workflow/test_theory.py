"""Benches and chains through Snakemake: to figures and verdicts, and only what is new is run again."""

from __future__ import annotations

import json

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

BENCH = {"name": "kernel_ridge_sine", "label": "γ = 80", "settings": {"gamma": 80, "draws": 20}}
CHAIN = {"models": "resnet8", "alphas": [0.0, 0.5], "steps": 2}
STUDY = {
    "pairs": [],
    "recipes": [],
    "methods": [],
    "settings": {},
    "curves": [],
    "chains": [CHAIN],
    "benches": [BENCH],
    "plots": ["figure2"],
    "metrics": ["top1"],
}


def test_a_chain_and_a_bench_to_the_report(project):
    project.study(**STUDY)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project.root / "results" / "studies" / "tiny"
    for name in ("figure2.svg", "figure2.csv", "chains_by_alpha.png", "chains_by_step.csv", "verdicts.csv"):
        assert (folder / name).stat().st_size
    told = json.loads((folder / "figure2.json").read_text())
    assert {v["verdict"] for v in told["verdicts"]} <= {"holds", "fails", "undecided"}
    table = pd.read_csv(folder / "table.csv")
    first = table[(table.part == "chain") & (table.row == 1)]
    assert len(set(first["runs"])) == 1
    assert "figure2" in (project.root / "results" / "report" / "studies" / "tiny.html").read_text()
    assert project.planned() == []

    project.study(**{**STUDY, "chains": [{**CHAIN, "alphas": [0.0, 0.25, 0.5]}]})
    planned = project.planned()
    assert len([job for job in planned if job.startswith("train teacher_")]) == 1
    assert not [job for job in planned if job.startswith("run bench_")]
