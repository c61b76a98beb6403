"""What the workflow tells an MLflow store while it runs, and after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from tests.workflow.conftest import ROOT, eventually

pytestmark = pytest.mark.slow


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
        (journal,) = eventually(trained)
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

    (run,) = eventually(told)
    assert run.info.run_name == journal.parent.name
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(1, journal.read_text().count('"loss"') + 1))
    assert (project.root / "results" / "logs" / "sync.log").is_file()
