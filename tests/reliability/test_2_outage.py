"""An MLflow server killed for the middle third of parallel trainings, or never there, costs them nothing."""

from __future__ import annotations

import os
import signal

import pytest

from kdpipe.core.errors import TrackingError
from kdpipe.plan.load import read_plan
from kdpipe.tracking.sync import sync
from tests.tracking.lab import Lab, Server, following, free_port, slower

pytestmark = pytest.mark.slow

LONG = os.environ.get("KDPIPE_DRILLS") == "long"
RUNS, EPOCHS = (8, 30) if LONG else (3, 6)
SLOWER = 1.05  # at most, than beside the same training without a journal


class Outage:
    """Kills a server when a third of the work is done, and starts it again after two thirds."""

    def __init__(self, server: Server) -> None:
        self.server, self.states = server, []

    def __call__(self, done: float) -> None:
        if not self.states and done >= 1 / 3:
            self.server.stop(signal.SIGKILL)
            self.states.append("killed")
        if self.states == ["killed"] and done >= 2 / 3:
            self.server.start()
            self.states.append("started")


@pytest.mark.timeout(3600 if LONG else 900)
def test_no_training_fails_or_is_slower_and_every_value_arrives_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    lab, server = Lab(tmp_path, RUNS, EPOCHS), Server(tmp_path / "server")
    server.start()
    nobody = f"http://127.0.0.1:{free_port()}"
    ratios = {}
    try:
        for name in ("undisturbed", "outage", "never"):
            results, plan = lab.world(name)
            uri, outage = (nobody if name == "never" else server.uri), Outage(server)
            with following(results, plan, uri):
                costs = lab.train(results, outage if name == "outage" else lambda _: None)
            ratios[name] = {kind: slower(costs, kind) for kind in ("processor", "own")}
            print(name, ratios[name], costs)
            if name == "outage":
                assert outage.states == ["killed", "started"]
            if name == "never":
                assert "no MLflow server answers there" in (results.root / "sync.log").read_text()
                with pytest.raises(TrackingError, match="no MLflow server answers"):
                    sync(results, read_plan(plan), uri, quiet=True)
            # runs of the same names would be the same, so each world ends with a store of its own
            own = f"sqlite:///{results.root}/own.db" if name == "never" else server.uri
            sync(results, read_plan(plan), own, quiet=True)
            assert lab.stored(results, own) == []
            clear(server.uri)
    finally:
        server.stop()
    if LONG:  # the short form is over before a ratio says anything
        assert all(ratio["processor"] < SLOWER for ratio in ratios.values()), ratios


def clear(uri):
    """Delete the runs of the last world."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    for experiment in client.search_experiments(filter_string="name LIKE 'kdpipe/%'"):
        for run in client.search_runs([experiment.experiment_id]):
            client.delete_run(run.info.run_id)
