"""What the workflow tells an MLflow store while it runs, and after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from tests.workflow.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def eventually(check, what, seconds=240):
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return found


def test_a_killed_workflow_has_its_last_news_sent(project):
    project.study(methods=["kd"], curves=[], scale="own", scales={"own": {"epochs": 200}})
    uri = f"sqlite:///{project.root}/elsewhere.db"
    client = MlflowClient(uri)
    client.search_experiments()  # makes the store's tables, as two at once must not
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "--directory", project.root]
    command += ["--workflow-profile", ROOT / "workflow/profiles/local", "--cores", "1"]
    with open(project.root / "snakemake.log", "w") as log:
        workflow = subprocess.Popen(
            [*command, "--config", f"tracking={uri}"],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    runs = project.root / "results" / "runs"

    def trained():
        assert workflow.poll() is None, (project.root / "snakemake.log").read_text()
        return [file for file in runs.glob("*/journal.jsonl") if '"metrics"' in file.read_text()]

    try:
        (journal,) = eventually(trained, "no training has told anything")
    finally:
        os.killpg(workflow.pid, signal.SIGKILL)  # Snakemake and its jobs; who follows them lives apart
        workflow.wait()

    def told():
        experiments = [
            e.experiment_id for e in client.search_experiments(filter_string="name LIKE 'kdpipe%'")
        ]
        return (
            [run for run in client.search_runs(experiments) if run.info.status == "KILLED"]
            if experiments
            else []
        )

    (run,) = eventually(told, "the last news was not sent")
    assert run.info.run_name == journal.parent.name
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(1, journal.read_text().count('"loss"') + 1))
    assert (project.root / "results" / "logs" / "sync.log").is_file()
