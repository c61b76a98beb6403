"""The MLflow server that kdpipe starts: its databases, who may call it, how it ends."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kdpipe.core.errors import TrackingError, UserError
from kdpipe.core.paths import Results
from kdpipe.tracking import server as server_module
from kdpipe.tracking.server import Postgres, _alone, _lacks_postgresql
from kdpipe.tracking.server import Server as Serving
from kdpipe.tracking.sync import sync
from tests.tracking.lab import ENVIRONMENT, Server
from tests.tracking.study import Study

slow = pytest.mark.slow


def needs(what_lacks: str) -> None:
    """Skip where something lacks; in continuous integration, fail."""
    if what_lacks:
        if os.environ.get("CI") == "true":
            pytest.fail(what_lacks)
        pytest.skip(what_lacks)


def status(uri: str, host: str | None = None, user: str | None = None, data: bytes | None = None) -> int:
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/experiments/search", data)
    request.add_header("Content-Type", "application/json")
    if host:
        request.add_header("Host", host)
        request.add_header("Origin", f"http://{host}")
    if user:
        request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    try:
        return urllib.request.urlopen(request, timeout=300).status
    except urllib.error.HTTPError as error:
        return error.code


def processes(folder: Path) -> list[str]:
    """The processes whose command names a folder."""
    found = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if str(folder) in line]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that PostgreSQL's account can enter, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name) / "postgresql"


SEARCH = b'{"max_results": 1}'


@slow
def test_postgresql_keeps_the_runs_and_survives_a_kill(tmp_path, reachable):
    needs(_lacks_postgresql())
    study = Study(tmp_path / "results")
    study.finish()
    server = Server(tmp_path / "results", "postgresql", "--folder", str(reachable)).start()
    try:
        report = sync(study.results, study.plan, server.uri, quiet=True)
        assert (report.created, report.failed) == (len(study.plan.runs), {})
        server.stop(signal.SIGKILL)
        assert processes(reachable)  # PostgreSQL still runs
        server.start()
        report = sync(study.results, study.plan, server.uri, quiet=True)
        assert (report.created, report.updated) == (0, 0)
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("kdpipe/cifar100")
        found = client.search_runs([experiment.experiment_id])
        assert sorted(r.info.run_name for r in found) == sorted(study.plan.runs)
    finally:
        assert server.stop() == 0
    assert not processes(reachable)
    assert not processes(tmp_path)


@slow
def test_only_names_that_are_allowed(tmp_path):
    server = Server(tmp_path, "sqlite", "--allowed-hosts", "login01:5000, login01.cluster:5000").start()
    try:
        assert status(server.uri, data=SEARCH) == 200
        assert status(server.uri, "login01.cluster:5000", data=SEARCH) == 200
        assert status(server.uri, "evil.example", data=SEARCH) == 403
        with pytest.raises(UserError, match="served already"), _alone(tmp_path):
            pass
    finally:
        assert server.stop() == 0
    with _alone(tmp_path):
        pass


@slow
def test_users_and_passwords(tmp_path):
    needs("" if server_module.find_spec("flask_wtf") else "Flask-WTF is not installed")
    word = "correct-horse-battery"
    server = Server(tmp_path, "sqlite", "--auth", MLFLOW_AUTH_ADMIN_PASSWORD=word).start()
    try:
        assert status(server.uri, data=SEARCH) == 401
        assert status(server.uri, user="admin:wrong", data=SEARCH) == 401
        assert status(server.uri, user=f"admin:{word}", data=SEARCH) == 200
    finally:
        server.stop()
    assert (tmp_path / "mlflow-users").stat().st_mode & 0o077 == 0


def message(*options: str, root: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "kdpipe", "serve", "--results", str(root), *options]
    done = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    return done.stderr


def test_a_port_that_is_taken_and_a_database_that_is_not_known(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = message("--port", str(taken.getsockname()[1]), root=tmp_path)
    assert "cannot listen" in said
    assert "PORT=" in said
    assert "did you mean 'sqlite'" in message("--database", "sqlit", root=tmp_path)


def test_passwords_need_a_library_and_a_first_password(tmp_path, monkeypatch):
    server = Serving(Results(tmp_path), auth=True)
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    monkeypatch.setattr(server_module, "find_spec", lambda _: None)
    with pytest.raises(TrackingError, match=r"mlflow\[auth\]"):
        server._users()
    monkeypatch.setattr(server_module, "find_spec", lambda _: True)
    with pytest.raises(TrackingError, match="MLFLOW_AUTH_ADMIN_PASSWORD"):
        server._users()


def test_without_postgresql_sqlite_serves_unless_postgresql_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(server_module, "_lacks_postgresql", lambda: "PostgreSQL is not installed")
    with Serving(Results(tmp_path))._store() as store:
        assert store == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert "SQLite serves instead" in capsys.readouterr().err
    with (
        pytest.raises(TrackingError, match="not installed"),
        Serving(Results(tmp_path), database="postgresql")._store(),
    ):
        pass


def test_a_cluster_of_a_version_that_is_not_there(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("3\n")
    with pytest.raises(TrackingError, match="PostgreSQL that is not installed"):
        Postgres(tmp_path)._run("pg_ctl", "status")


def test_beyond_the_loopback_the_machines_own_names_are_allowed(tmp_path):
    server = Serving(Results(tmp_path), host="0.0.0.0", port=7, allowed=("login01:7",))
    command = " ".join(server._command("sqlite:///x"))
    assert f"{socket.gethostname()}:7" in command
    assert "login01:7" in command
    assert "--allowed-hosts" not in " ".join(Serving(Results(tmp_path))._command("sqlite:///x"))
