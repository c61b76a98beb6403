"""Reading and writing files so that a crash never leaves half of one, and damage never goes unseen."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdpipe.core.errors import ResultsError

SEALED = r',\n "[^"]{6}": "[^"]{16}"\n}\n'  # what a checksummed JSON file ends with, its key damaged or not


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well.

    Written data are flushed to disk before the rename, so after a crash `path` holds the old content
    or the new, never a part.

    Raises:
        ResultsError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        with beside(path) as temporary:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new temporary file (or folder) beside `path`, gone when the block ends.

    It is locked while it is in use. So what a killed process left here, which nothing locks any more, is
    told from what another process is writing, and removed first.

    Args:
        path: what is going to be made.
        folder: whether the temporary is a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    temporary, handle = _locked(path, tempfile.mkdtemp if folder else tempfile.mkstemp)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove what killed processes left beside `path`, which nothing locks any more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_unless_locked(left)


def _locked(path: Path, make: Callable[..., Any]) -> tuple[Path, int]:
    """A new temporary for `path`, and the open handle that holds its lock."""
    while True:
        made = make(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        handle, name = made if isinstance(made, tuple) else (os.open(made, os.O_RDONLY), made)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        if os.path.exists(name):  # else another process took it for a left one before it was locked
            return Path(name), handle
        os.close(handle)


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks what is writable
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> ResultsError:
    """The one clear message for a file that could not be written."""
    reasons = {
        errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
        errno.EACCES: ("writing is not permitted", "choose a results folder that you may write to"),
        errno.EPERM: ("writing is not permitted", "choose a results folder that you may write to"),
        errno.EROFS: ("the file system is read-only", "choose a results folder that you may write to"),
        errno.EFBIG: (
            "it is larger than files may be here",
            "raise the limit, as with `ulimit -f unlimited`",
        ),
        None: ("the disk took only a part of it", "free some space, then run the same command again"),
    }  # None: NumPy says only how much was written
    what, fix = reasons.get(error.errno, (str(error), "check the results folder"))
    return ResultsError(f"cannot write: {what}", where=str(path), fix=fix)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Write `value` as JSON to `path` atomically; a mapping ends with a checksum of itself.

    Args:
        path: the file.
        value: plain data.
        compact: without indentation, for large files: written four times as fast.
    """
    text = json.dumps(value, indent=None if compact else 1, sort_keys=True, allow_nan=False)
    body = text.removesuffix("}").removesuffix("\n")
    write_text(path, body + _seal(body) if isinstance(value, dict) and value else text + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, its checksum compared where it has one.

    Raises:
        ResultsError: the file is missing, is not JSON, or has changed since it was written.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        body, end = text[:-34], text[-34:]
        if not re.fullmatch(SEALED, end):
            value = json.loads(text)
            if isinstance(value, dict) and "sealed" in value:
                raise ValueError("its end has changed since it was written")
            return value
        if end != _seal(body):
            raise ValueError("it has changed since it was written")
        return json.loads(f"{body}\n}}")
    except FileNotFoundError:
        raise ResultsError("a result is missing", where=str(path), fix="make it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(
            f"a result cannot be read: {error}", where=str(path), fix="delete it; it will be made again"
        ) from error


def _seal(body: str) -> str:
    """The end of a JSON file: the checksum of what stands before it."""
    return f',\n "sealed": "{hashlib.sha256(body.encode()).hexdigest()[:16]}"\n}}\n'


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
