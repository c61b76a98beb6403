"""One process follows many trainings: news arrives, a dead store is told once, the pipe's end is the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kdpipe.core.errors import TrackingError
from kdpipe.core.files import write_json, write_text
from kdpipe.tracking import follow as follow_module
from kdpipe.tracking.follow import alone, follow
from kdpipe.tracking.journal import Journal
from kdpipe.tracking.sync import SyncReport, sync
from tests.tracking.study import EPOCHS, Study
from tests.workflow.conftest import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "results")


def rounds(number):
    """An end that comes after so many rounds; what it was asked to wait."""
    waited = []

    def ended(seconds):
        waited.append(seconds)
        return len(waited) >= number

    return ended, waited


@pytest.fixture
def synced(monkeypatch):
    """Replaces the sync by what the test gives for each round: an error, or None."""
    outcomes, memories = [], []

    def fake(*_, memory, **__):
        memories.append(memory)
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return SyncReport("here")

    monkeypatch.setattr(follow_module, "sync", fake)
    return outcomes, memories


def test_a_store_that_comes_and_goes_is_told_once_each(study, synced):
    outcomes, memories = synced
    down = TrackingError("nobody answers", fix="start it")
    outcomes += [None, down, down, ValueError("odd"), None, None]
    said = []
    ended, waited = rounds(5)
    follow(study.results, study.plan, "http://x", ended, every=7, say=said.append)
    assert said == [str(down), "ValueError: odd", "MLflow is up to date again"]
    assert waited == [7] * 5
    assert len({id(memory) for memory in memories}) == 1


def test_the_last_round_comes_after_the_end(study, synced):
    outcomes, _ = synced
    outcomes += [None, None]
    ended, waited = rounds(1)
    follow(study.results, study.plan, None, ended, say=[].append)
    assert outcomes == []
    assert len(waited) == 1


def test_rounds_that_take_long_are_rare(study, synced, monkeypatch):
    outcomes, _ = synced
    outcomes += [None, None]
    clock = iter([0.0, 60.0, 700.0, 701.0])
    monkeypatch.setattr(follow_module.time, "monotonic", lambda: next(clock))
    ended, waited = rounds(1)
    follow(study.results, study.plan, None, ended, every=30, say=[].append)
    assert waited == [pytest.approx(540)]


def test_one_process_follows_a_plan(tmp_path):
    file = tmp_path / "plan.json"
    write_text(file, "{}")
    with alone(file) as first, alone(file) as second:
        assert (first, second) == (True, False)
    with alone(file) as again:
        assert again


@pytest.mark.slow
def test_news_arrives_while_a_run_trains_and_the_end_of_the_pipe_ends_all(study):
    run = next(iter(study.teachers.values()))
    study.train(run, "running")
    sync(study.results, study.plan, quiet=True)  # makes the store's tables, as two at once must not
    plan = study.results.plans / "plan.json"
    plan.parent.mkdir()
    write_json(plan, study.plan.to_json())
    command = [sys.executable, "-m", "kdpipe", "sync", "--plan", plan, "--results", study.results.root]
    with open(study.results.root / "sync.log", "w") as log:
        process = subprocess.Popen(
            [*command, "--follow", "--every", "0.2", "--lenient"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    client = MlflowClient(f"sqlite:///{study.results.mlflow}")

    def losses():
        experiment = client.get_experiment_by_name("kdpipe/cifar100")
        (found,) = client.search_runs([experiment.experiment_id])
        return [m.step for m in client.get_metric_history(found.info.run_id, "loss")]

    def arrived(steps):
        assert process.poll() is None, (study.results.root / "sync.log").read_text()
        return losses() == steps

    try:
        book = Journal(study.paths(run).journal)
        book.append("metrics", step=EPOCHS + 1, values={"loss": 0.1})
        eventually(lambda: arrived([1, 2, 3, 4]))
        book.append("metrics", step=EPOCHS + 2, values={"loss": 0.1})
        process.stdin.close()
        assert process.wait() == 0
        assert losses() == [1, 2, 3, 4, 5]
    finally:
        process.kill()
        process.wait()
    assert (study.results.root / "sync.log").read_text() == ""
