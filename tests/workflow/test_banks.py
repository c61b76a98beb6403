"""Students of one teacher read its bank, in jobs of their own and in packs, and learn the same bits."""

from __future__ import annotations

import json
import shutil

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BANK = "bank={use: always}"


def students(project, *methods):
    """The folders of students of the last epoch's teacher."""
    planned = json.loads(project.kdpipe("plan", "--json").stdout)["runs"]
    labels = [f"student_digits_resnet14_resnet8_{method}_standard_s0" for method in methods]
    return [next(run for run in planned if run.startswith(f"{label}-")) for label in labels]


def train(project, names, *config):
    """Have the workflow make some students, and tell what it said."""
    files = [f"results/runs/{name}/status.json" for name in names]
    done = project.snakemake(*files, config=[BANK, *config])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def banks_of(project, name):
    """The banks that a finished student was trained from."""
    record = project.root / "results" / "runs" / name / "provenance.json"
    return json.loads(record.read_text())["banks"]


def test_students_read_one_bank(finished, project):
    """What is made stays as banks go and come; new students get a new one, also in a pack."""
    shutil.copytree(finished.root / "results" / "data", project.root / "results" / "data")
    kd, dkd = students(project, "kd", "dkd")
    told = train(project, (kd, dkd))
    assert told.count("bank bank_digits_resnet14_standard_s0") == 1
    (bank,) = banks_of(project, kd)
    assert banks_of(project, dkd) == [bank]
    for name in (kd, dkd):
        ours, theirs = (p.root / "results" / "runs" / name for p in (project, finished))
        assert banks_of(finished, name) == []  # so small a bank would save less than its job costs
        for file in ("model.safetensors", "predictions.npz"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes()

    told = project.kdpipe("banks", "--remove").stdout
    assert f"   0 to read it  {bank}\n" in told
    assert not (project.root / "results" / "banks" / bank).exists()
    files = [f"results/runs/{name}/status.json" for name in (kd, dkd)]
    for setting in (BANK, "bank={use: never}", "pack=2"):
        assert project.planned(*files, config=[setting]) == []

    project.study(methods=["kd", "dkd", "ttm", "mse"])
    ttm, mse = students(project, "ttm", "mse")
    files = [f"results/runs/{name}/status.json" for name in (ttm, mse)]
    wide = {"pack=1": 1, "pack=2": 2, "pack=2 gpus=1": 1}  # as the pack that waits for it, but for a GPU's
    for settings, cpus in wide.items():
        told = project.snakemake(*files, "-n", "-p", config=[BANK, *settings.split()]).stdout
        assert f"--threads 1 --cpus {cpus} --marker" in told
    told = train(project, (ttm, mse), "pack=2")
    assert told.count("bank bank_digits_resnet14_standard_s0") == 1
    assert f"distil {kd}" not in told
    assert banks_of(project, ttm) == banks_of(project, mse) == [bank]
    assert (project.root / "results" / "banks" / f"{bank}.2.done").is_file()
