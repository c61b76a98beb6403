"""Drill 5: two calls at once, a run that two studies want, a clock that jumps, locks of the dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kdpipe.core.paths import Results, RunPaths
from kdpipe.plan.config import Config
from kdpipe.plan.resolve import resolve
from tests.reliability.conftest import ROOT, STUDY, cases, same, write_yaml
from tests.workflow.conftest import eventually, make_project

pytestmark = pytest.mark.slow
YEAR = 365 * 24 * 3600


def test_two_trainings_of_one_run(lab, outcome, tmp_path):
    """The second waits, sees that the first has finished, and changes nothing."""
    for number in range(cases(3, 30)):
        name = list(lab.kinds.values())[number % len(lab.kinds)]
        paths = RunPaths(tmp_path / "run")
        shutil.rmtree(paths.root, ignore_errors=True)
        argv = lab.train(name, paths.root)
        with outcome.case(name):
            first = lab.driver.start(argv, lab.root)
            time.sleep(outcome.rng.uniform(0, 0.5))
            second = lab.driver.start(argv, lab.root)
            done = [lab.driver.wait(pid) for pid in (first, second)]
            assert [d.code for d in done] == [0, 0], [d.text for d in done]
            same(paths, lab.results.run(name))
            log = (paths.root / "train.log").read_text()
            assert log.count("starts, ") == log.count(": finished") == 1, log


def test_a_training_takes_over_from_one_that_dies(lab, outcome, tmp_path):
    """The first is killed while the second waits for its lock."""
    for kind in list(lab.kinds)[: cases(2, 5)]:
        name = lab.kinds[kind]
        paths = RunPaths(tmp_path / kind)
        with outcome.case(kind):
            first = lab.paused(lab.train(name, paths.root))
            second = lab.driver.start(lab.train(name, paths.root), lab.root)
            time.sleep(0.2)
            os.kill(first, signal.SIGKILL)
            assert lab.driver.wait(first).code == -9
            done = lab.driver.wait(second)
            assert done.code == 0, done.text
            same(paths, lab.results.run(name))


def test_a_run_that_two_studies_want_is_one_run(lab, outcome, tmp_path):
    folder = tmp_path / "config"
    shutil.copytree(lab.root / "config", folder)
    study = (folder / "studies/tiny.yaml").read_text()
    (folder / "studies/other.yaml").write_text(study.replace("title: Tiny", "title: Other"))
    with outcome.case("planned once"):
        plan = resolve(Config(studies=("tiny", "other"), folder=str(folder)))
        assert plan.runs.keys() == lab.plan.runs.keys()
        assert all(set(planned.studies) == {"tiny", "other"} for planned in plan.runs.values())


def test_a_clock_that_jumps(lab, outcome, tmp_path):
    """Stopped today, continued ten years ago or hence; then evaluated and shown."""
    for number in range(cases(2, 20)):
        name = list(lab.kinds.values())[number % len(lab.kinds)]
        shift = outcome.rng.choice((-1, 1)) * outcome.rng.uniform(0, 10 * YEAR)
        paths = RunPaths(tmp_path / f"{number}")
        with outcome.case(f"{name}, by {shift:.0f} s"):
            lab.killed(lab.train(name, paths.root))
            scatter(paths.root, outcome.rng)
            lab.made(lab.train(name, paths.root), clock=shift)
            same(paths, lab.results.run(name))
            if lab.plan.runs[name].run.kind != "part":  # which is measured by the student it serves
                lab.made(["evaluate", "--run", paths.root], clock=-shift)


def scatter(folder, rng) -> None:
    """Give every file a time of its own within ten years of now."""
    for file in folder.rglob("*"):
        if file.is_file():
            at = time.time() + rng.uniform(-10, 10) * YEAR
            os.utime(file, (at, at))


def test_snakemake(lab, outcome, tmp_path):
    """Two calls on one folder; a lock that a killed call left; file times from another clock."""
    project = make_project(tmp_path)
    study = {"dataset": "digits", "protocol": "tiny", "seeds": [0], "title": "Tiny", "methods": ["kd"]}
    study |= {"recipes": ["standard"], "scale": "own", "scales": STUDY["scales"]}
    study["pairs"] = [{"teacher": "resnet8x4", "student": "resnet8"}]
    write_yaml(project.root / "config/studies/tiny.yaml", study)
    until = ("--until", "distil_student")
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--directory", project.root]
    command += ["--workflow-profile", ROOT / "workflow/profiles/local", "--cores", "1", *until]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    quiet["env"] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    results = Results(project.root / "results")
    with subprocess.Popen(command, **quiet) as first:
        try:
            eventually(lambda: any(project.root.glob("results/runs/teacher_*/state/*.state")))
            os.killpg(first.pid, signal.SIGSTOP)  # or it might end before the second call has begun
            with outcome.case("a second call is turned away"):
                second = project.snakemake(*until)
                assert second.returncode != 0
                text = second.stdout + second.stderr
                assert "cannot be locked" in text
                assert "--unlock" in text
                assert "Traceback" not in text
            with outcome.case("a dry run is not"):
                assert project.snakemake("-n", *until).returncode == 0
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    with outcome.case("the lock of the dead is named"):
        assert "--unlock" in project.snakemake(*until).stderr
    with outcome.case("unlocked, it goes on where it was"):
        assert project.snakemake("--unlock").returncode == 0
        done = project.snakemake(*until)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "goes on after epoch" in done.stderr
    with outcome.case("the same bits"):
        other = lab.at(project.root)
        other.plan = resolve(Config(studies=("tiny",), folder=str(project.root / "config")))
        for name in other.plan.runs:
            other.made(other.train(name, tmp_path / "again" / name))
            same(results.run(name), RunPaths(tmp_path / "again" / name))
    with outcome.case("times from other clocks retrain nothing"):
        (model,) = project.root.glob("results/runs/teacher_*/model.safetensors")
        assert model.stat().st_size > 1_000_000  # above which Snakemake compares times unless told otherwise
        scatter(project.root / "results", outcome.rng)
        assert not [job for job in project.planned(*until) if job.startswith(("train", "distil", "prepare"))]
