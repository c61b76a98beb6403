"""An MLflow server of one's own, for as long as its process lives: on PostgreSQL where that is installed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

from kdpipe.core.errors import TrackingError, UserError
from kdpipe.core.files import write_error
from kdpipe.core.paths import Results

Database = Literal["auto", "postgresql", "sqlite"]

DEBIAN = Path("/usr/lib/postgresql")
ROLE, ACCOUNT = "kdpipe", "postgres"  # PostgreSQL's user; the account that it runs under where we are root
LOOPBACK = ("127.0.0.1", "localhost", "::1")
AUTH = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class Server:
    """How to serve.

    Args:
        results: the results folder. SQLite is its embedded store; files go into its `mlartifacts`.
        database: `postgresql`, `sqlite`, or `auto`: the first where it is installed.
        folder: where PostgreSQL keeps its data; None is `postgresql` in the results folder.
        host: the address to listen at.
        port: the port there.
        allowed: more names, with ports, by which clients may call the server.
        auth: ask for a user and a password.
    """

    results: Results
    database: Database = "auto"
    folder: Path | None = None
    host: str = "127.0.0.1"
    port: int = 5000
    allowed: tuple[str, ...] = ()
    auth: bool = False

    def serve(self) -> None:
        """Serve until a signal says to stop.

        Raises:
            TrackingError: the server cannot be started, or ends by itself.
        """
        with ExitStack() as held:
            held.enter_context(_alone(self.results.root))
            self._check_port()
            environment = {**os.environ, **self._users()}
            store = held.enter_context(self._store())
            log = self.results.root / "logs" / "mlflow-server.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            stop = held.enter_context(_signals())
            with open(log, "a") as out:
                process = subprocess.Popen(
                    self._command(store), env=environment, stdout=out, stderr=out, start_new_session=True
                )
            held.callback(_end, process)
            self._await(process, log, stop)
            self._tell(store)
            while not stop and process.poll() is None:
                time.sleep(0.2)
            if not stop:
                raise TrackingError(
                    "the MLflow server has ended by itself", where=str(log), fix="see its log"
                )

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def _command(self, store: str) -> list[str]:
        artifacts = (self.results.root / "mlartifacts").resolve()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
        command += ["--artifacts-destination", str(artifacts), "--host", self.host, "--port", str(self.port)]
        command += ["--workers", "1" if store.startswith("sqlite") else "2"]
        if names := self._names():
            command += ["--allowed-hosts", ",".join(["localhost:*", "127.0.0.1:*", "[[]::1]:*", *names])]
            command += ["--cors-allowed-origins", ",".join(f"http://{name}" for name in names)]
        return [*command, "--app-name", "basic-auth"] if self.auth else command

    def _names(self) -> list[str]:
        """The names by which it may be called, beside the loopback's."""
        if self.host in LOOPBACK:
            return list(self.allowed)
        own = [socket.gethostname(), socket.getfqdn(), self.host]
        return list(dict.fromkeys([*(f"{name}:{self.port}" for name in own), *self.allowed]))

    def _check_port(self) -> None:
        try:
            with socket.create_server((self.host, self.port)):
                pass
        except OSError as error:
            raise TrackingError(
                f"MLflow cannot listen at {self.host}:{self.port}: {error.strerror or error}",
                fix="choose another port (`make mlflow-server PORT=5001`) or --host",
            ) from None

    def _users(self) -> dict[str, str]:
        """What MLflow finds in its environment: no side jobs, and with `auth` where its users are."""
        plain = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if not self.auth:
            return plain
        if not find_spec("flask_wtf"):
            raise TrackingError(
                "MLflow asks for passwords with Flask-WTF, which is not installed",
                fix="pip install 'mlflow[auth]', or leave out --auth",
            )
        folder = (self.results.root / "mlflow-users").resolve()
        new = not (folder / "users.db").exists()
        if new and not os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
            raise TrackingError(
                "the user 'admin' has no password yet",
                fix="set MLFLOW_AUTH_ADMIN_PASSWORD for the first start",
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "settings.ini").write_text(AUTH.format(folder=folder), encoding="utf-8")
        key = folder / "key"
        if not key.exists():
            key.write_text(secrets.token_hex(32))
        return {
            **plain,
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "settings.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        }

    @contextmanager
    def _store(self) -> Iterator[str]:
        """The address of the database, which runs within the block."""
        missing = "" if self.database == "sqlite" else _lacks_postgresql()
        if self.database == "postgresql" and missing:
            raise TrackingError(missing, fix="install it, or choose --database sqlite")
        if self.database == "sqlite" or missing:
            if missing:
                print(f"note: {missing}; SQLite serves instead, well enough for one user", file=sys.stderr)
            yield f"sqlite:///{self.results.mlflow.resolve()}"
            return
        with Postgres((self.folder or self.results.root / "postgresql").resolve()).running() as address:
            yield address

    def _await(self, process: subprocess.Popen[bytes], log: Path, stop: list[int]) -> None:
        """Wait until it answers, which takes a while at first: it makes its tables."""
        while process.poll() is None and not stop:
            with contextlib.suppress(OSError), urlopen(f"{self._here}/health", timeout=2):
                return
            time.sleep(0.2)
        if not stop:
            raise TrackingError("the MLflow server does not start", where=str(log), fix="see its log")

    @property
    def _here(self) -> str:
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _tell(self, store: str) -> None:
        kind = "SQLite" if store.startswith("sqlite") else "PostgreSQL"
        print(f"MLflow serves {self.results.root} at {self._here} ({kind}); Ctrl-C stops it.")
        print(f"Runs go there with `tracking: {self._here}` in config/config.yaml, and `kdpipe sync`.")
        if self.host not in LOOPBACK and not self.auth:
            print(f"Whoever reaches {self.host}:{self.port} may read and write; --auth asks for passwords.")
        sys.stdout.flush()


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL cluster in a folder of its own; reached by a socket that only its owner can open.

    Args:
        folder: where its data lie.
    """

    folder: Path

    @contextmanager
    def running(self) -> Iterator[str]:
        """The address of its database; it runs within the block.

        Raises:
            TrackingError: it cannot be made or started.
        """
        self._make_folder()
        with tempfile.TemporaryDirectory(prefix="kdpipe-", ignore_cleanup_errors=True) as name:
            if os.geteuid() == 0:
                shutil.chown(name, ACCOUNT)
            data, log = self.folder / "data", self.folder / "log"
            if not (data / "PG_VERSION").exists():
                # `trust`: who may open the socket at all is the owner
                self._run("initdb", "-D", data, "-U", ROLE, "-A", "trust", "-E", "UTF8", "--no-locale")
            if self._call("pg_ctl", "-D", data, "status").returncode == 0:  # its last server was killed
                self._run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
            options = f"-c listen_addresses='' -c unix_socket_directories={name}"
            self._run("pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
            try:
                made = self._call("createdb", "-h", name, "-U", ROLE, "mlflow")
                if made.returncode and "already exists" not in made.stderr:
                    raise self._error("createdb", made)
                yield f"postgresql://{ROLE}@/mlflow?host={name}"
            finally:
                self._call("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:  # PostgreSQL refuses to run as root
                shutil.chown(self.folder, ACCOUNT, ACCOUNT)
        except OSError as error:
            raise write_error(self.folder, error) from error
        if os.geteuid() == 0 and subprocess.run(["test", "-w", self.folder], user=ACCOUNT).returncode:
            raise TrackingError(
                f"PostgreSQL runs as the user '{ACCOUNT}', who cannot enter this folder",
                where=str(self.folder),
                fix="name another with --folder, do not serve as root, or choose --database sqlite",
            )

    def _run(self, program: str, *arguments: Any) -> None:
        done = self._call(program, *arguments)
        if done.returncode:
            raise self._error(program, done)

    def _call(self, program: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        version = self.folder / "data" / "PG_VERSION"
        programs = _programs(version.read_text().strip() if version.exists() else None)
        if programs is None:
            raise TrackingError(
                "this folder is of a PostgreSQL that is not installed",
                where=str(self.folder),
                fix=f"install version {version.read_text().strip()}, or name another folder with --folder",
            )
        account: dict[str, Any] = {"user": ACCOUNT, "group": ACCOUNT} if os.geteuid() == 0 else {}
        return subprocess.run(
            [str(programs / program), *map(str, arguments)],
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if program != "pg_ctl" else None,  # or the server would hold the pipe
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
            **account,
        )

    def _error(self, program: str, done: subprocess.CompletedProcess[str]) -> TrackingError:
        said = (done.stderr or "").strip().splitlines()
        return TrackingError(
            f"PostgreSQL: {program} failed{': ' + said[-1] if said else ''}",
            where=str(self.folder),
            fix="see `log` there, or choose --database sqlite",
        )


def _programs(version: str | None = None) -> Path | None:
    """The folder of PostgreSQL's programs: of that version, else of the newest; None where there is none."""
    found = sorted(
        (f for f in DEBIAN.glob("*/bin") if (f / "initdb").exists()), key=lambda f: float(f.parent.name)
    )
    if version:
        return next((f for f in found if f.parent.name == version), None) or _on_path(version)
    return found[-1] if found else _on_path()


def _on_path(version: str | None = None) -> Path | None:
    program = shutil.which("initdb")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    mine = said.split()[-1].split(".")[0] if version is None else version
    return Path(program).resolve().parent if f" {mine}" in said else None


def _lacks_postgresql() -> str:
    """What PostgreSQL lacks here to be used; empty where it is whole."""
    if _programs() is None:
        return "PostgreSQL is not installed (Debian's package is 'postgresql')"
    if not find_spec("psycopg2"):
        return "PostgreSQL is there, but not psycopg2 ('pip install psycopg2-binary')"
    return ""


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep a second server of the same results out."""
    path = root / ".server.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("these results are served already", where=str(root), fix="stop that") from None
        yield


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked to stop; within the block they do nothing else."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: asked.append(got))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
