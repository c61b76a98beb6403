"""A client of MLflow that gives up soon, and whose failures are one message that says what to change."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kdpipe.core.errors import TrackingError
from kdpipe.core.garbage import no_search

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {  # unless set: MLflow tries a dead server for minutes, and tells two lines of every run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
KEPT = "nothing is lost: `kdpipe sync` sends what is missing"


@contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """A client that works, and keeps quiet.

    Args:
        uri: the store's address.

    Raises:
        TrackingError: the store cannot be reached or used, now or within the block.
    """
    _check(uri)
    load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from sqlalchemy.exc import SQLAlchemyError

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            _open_sqlite(uri)
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
            yield client
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            what, fix = _explained(error, uri)
            raise TrackingError(what, where=public(uri), fix=f"{fix}; {KEPT}") from error


def load() -> None:
    """Import MLflow, which takes seconds, with settings under which it gives up soon."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(), no_search():
        warnings.simplefilter("ignore")
        import mlflow.tracking  # noqa: F401


def http_status(error: MlflowException) -> int:
    """The status that a server answered with, or would have."""
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def root_of(error: BaseException) -> BaseException:
    """What first went wrong."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def first_line(error: BaseException) -> str:
    """An error in a line, without passwords."""
    return public(str(error).strip().split("\n", 1)[0][:300]) or type(error).__name__


def public(text: str) -> str:
    """`text` without the passwords in its addresses."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _check(uri: str) -> None:
    """Refuse what can never work, and what MLflow would try for half a minute."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise TrackingError(
            f"'{public(uri)}' is no address of an MLflow store",
            fix="write http://HOST:PORT of a server, or leave `tracking` out for the embedded store",
        )
    if uri.startswith(("postgresql://", "postgresql+psycopg2://")) and not find_spec("psycopg2"):
        raise TrackingError(
            "PostgreSQL is reached with psycopg2, which is not installed",
            where=public(uri),
            fix="pip install psycopg2-binary",
        )


def _open_sqlite(uri: str) -> None:
    """Open a SQLite store once by ourselves: MLflow would try a hopeless one for minutes."""
    if uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///").partition("?")[0]
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")


def _explained(error: Exception, uri: str) -> tuple[str, str]:
    """What is wrong with a store, and what to do about it."""
    address = "correct the address (`tracking` in config/config.yaml)"
    root, text = root_of(error), str(error)
    if isinstance(root, ConnectionRefusedError):
        return "no MLflow server answers there", f"start it (`make mlflow-server`), or {address}"
    if isinstance(root, socket.gaierror):
        return "there is no host of that name", address
    if isinstance(root, TimeoutError) or "timed out" in text:
        return "the MLflow server does not answer in time", "try again when it has less to do, or restart it"
    if "Invalid Host header" in text:
        host = urlsplit(uri).netloc.rpartition("@")[2]
        return (
            f"the MLflow server does not allow to be called {host}",
            f"start it with --allowed-hosts {host} (`make mlflow-server ARGS='--allowed-hosts {host}'`)",
        )
    said = re.search(r"failed with error code (\d+)", text)
    status = int(said[1]) if said else getattr(error, "get_http_status_code", lambda: 0)()
    if status == 401:
        return (
            "the MLflow server asks for a user and a password, or does not know those given",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    if status == 403:
        return "the MLflow server does not let this user write", "ask whoever runs it for the permission"
    if status in (404, 405, 501):
        return "what answers there is not an MLflow server", address
    return (
        f"MLflow cannot be brought up to date: {first_line(root)}",
        "check the address and that the server runs",
    )
