"""Whatever is wrong with a store is one message, soon, that says what to change."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kdpipe.core.errors import TrackingError
from kdpipe.tracking import client as client_module
from kdpipe.tracking.client import connected


@pytest.fixture
def answering():
    """Makes a server that answers every call with a status and a text, or not before the test is over."""
    servers, over = [], threading.Event()

    def make(status, text, silent=False):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                if silent:
                    over.wait()
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield make
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def message(uri):
    with pytest.raises(TrackingError) as caught, connected(uri):
        pass
    text = str(caught.value)
    assert text.count("fix:") == 1
    return text


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts 127.0.0.1:"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_USERNAME"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "ask whoever runs it"),
        (404, "<html>a shop</html>", "not an MLflow server"),
        (501, "<html>a folder</html>", "not an MLflow server"),
    ],
)
def test_an_answer_that_is_no_yes(answering, status, text, told):
    said = message(answering(status, text))
    assert told in said
    assert "nothing is lost" in said


def test_a_server_that_is_slow(answering, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "does not answer in time" in message(answering(200, "{}", silent=True))


@pytest.fixture
def pauses(monkeypatch):
    """What is waited between attempts, in seconds; nobody waits."""
    asked = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def test_nobody_at_home(pauses):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = message(f"http://me:secret@127.0.0.1:{port}")
    assert "no MLflow server answers there" in said
    assert "make mlflow-server" in said
    assert "secret" not in said
    assert sum(pauses) < 5  # MLflow itself would try for minutes


def test_no_such_host(pauses):
    assert "no host of that name" in message("http://nohost.invalid:5000")
    assert sum(pauses) < 5


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "mlruns", "ftp://x", "http:"])
def test_what_is_no_address(uri):
    said = message(uri)
    assert "address" in said or "cannot be brought up to date" in said


def test_postgresql_without_its_library(monkeypatch):
    monkeypatch.setattr(client_module, "find_spec", lambda _: None)
    monkeypatch.setattr(client_module, "load", lambda: pytest.fail("importing MLflow takes seconds"))
    assert "pip install psycopg2-binary" in message("postgresql://me:secret@127.0.0.1/x")
