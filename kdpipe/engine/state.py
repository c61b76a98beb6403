"""The resume state: everything needed to go on after a kill as if nothing had happened.

Two slots are written in turn, each a SHA-256 followed by the payload, so a damaged file is noticed and
the one before it is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from kdpipe.core.errors import ResultsError
from kdpipe.core.files import atomic, write_error
from kdpipe.core.paths import RunPaths

State = dict[str, Any]


@contextmanager
def locked(path: Path, does: str, wait: float = 60.0) -> Iterator[None]:
    """Hold a lock file against a second process.

    Args:
        path: the file.
        does: what the process that holds it does, in words.
        wait: seconds that a dying predecessor gets.

    Raises:
        ResultsError: another process still holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab+", buffering=0)  # noqa: SIM115 (the lock lives as long as the file)
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    file.seek(0)
                    raise ResultsError(
                        f"another process {does}: {file.read().decode() or 'unknown'}",
                        where=str(path),
                        fix="wait for it, or stop it",
                    ) from None
                time.sleep(0.2)
        with suppress(OSError):  # only a second process would ask who holds it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


class StateStore:
    """The state files of one run.

    Args:
        folder: where they lie; made when first needed.
        run_id: whose state this is; a state of another run is ignored.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id
        self._next = 0

    def save(self, state: State) -> None:
        """Write the state into the older slot."""
        buffer = io.BytesIO()
        torch.save({"run": self.run_id, **state}, buffer)
        payload = buffer.getvalue()
        with atomic(self._slots[self._next]) as temporary, open(temporary, "wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
        self._next = 1 - self._next

    def load(self) -> State | None:
        """The newest state that is whole, or None when there is none."""
        found = [
            (state["epoch"], state["step"], slot, state) for slot in (0, 1) if (state := self._read(slot))
        ]
        if not found:
            return None
        *_, slot, state = max(found, key=lambda f: f[:2])
        self._next = 1 - slot
        return state

    def remove(self) -> None:
        """Delete the state: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def lock(self, wait: float = 60.0) -> Iterator[None]:
        """Hold the run against a second process (a dying predecessor gets `wait` seconds).

        Raises:
            ResultsError: another process is still training this run.
        """
        with locked(RunPaths(self.folder.parent).lock, "is training this run", wait):
            yield

    @property
    def _slots(self) -> tuple[Path, Path]:
        return self.folder / "a.state", self.folder / "b.state"

    def _read(self, slot: int) -> State | None:
        path = self._slots[slot]
        try:
            content = path.read_bytes()
        except OSError:
            return None
        head, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() != head:
            print(f"warning: {path} is damaged and not used; an older state is, or none", file=sys.stderr)
            return None
        state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state if state["run"] == self.run_id else None
