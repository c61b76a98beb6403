"""A study whose runs train in packs: the same tables, and a member that fails stops nobody else."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

KD, DKD, EARLY = "resnet8_kd_standard_s0", "resnet8_dkd_standard_s0", "resnet8_kd_standard_e1_s0"
PACK = "pack=3"


def run_called(project, name):
    """The folder of a run, by its label."""
    planned = json.loads(project.kdpipe("plan", "--json").stdout)["runs"]
    (folder,) = (run for run in planned if run.rpartition("-")[0].endswith(name))
    return project.root / "results" / "runs" / folder


def test_packs_give_the_tables_of_single_jobs(finished, project):
    """Two members fail, in a way that is repeated and one that is not; the others and the next call go on."""
    broken, hopeless = run_called(project, KD), run_called(project, DKD)
    (broken / "train.log").mkdir(parents=True)
    hopeless.mkdir(parents=True)
    (hopeless / "state").write_text("in the way")
    done = project.snakemake("--retries", "1", config=[PACK])
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert (
        told.count("Trying to restart job") == 1
    )  # the pack for `broken`; nothing is repeated for `hopeless`
    assert "its pack did not finish it" in told
    assert "cannot write" in told  # the end of the log of `hopeless`
    for folder, there in ((run_called(project, EARLY), True), (broken, False), (hopeless, False)):
        assert (folder / "metrics.json").is_file() == there
        assert (folder / "status.json").is_file() == there

    (broken / "train.log").rmdir()
    (hopeless / "state").unlink()
    planned = project.planned(config=[PACK])
    assert [job for job in planned if job.startswith("distil")] == [
        f"distil student_digits_resnet14_{name}" for name in (DKD, KD)
    ]
    assert len([job for job in planned if job.startswith("train")]) == 1
    done = project.snakemake(config=[PACK])
    assert done.returncode == 0, done.stdout + done.stderr
    for file in ("table.csv", "seeds.csv", "table.md", "table.tex", "learning_curves.csv", "sampling.csv"):
        ours, theirs = (p.root / "results" / "studies" / "tiny" / file for p in (project, finished))
        assert ours.read_bytes() == theirs.read_bytes(), file
    for pack in (PACK, "pack=1", "pack=5"):  # finished runs stay, whatever the packs
        assert project.planned(config=[pack]) == []
    project.study(seeds=[0, 1])
    added = project.planned(config=[PACK])
    assert all(job.endswith("_s1") for job in added if job.startswith(("distil", "train teacher")))
