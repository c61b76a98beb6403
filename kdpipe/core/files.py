"""Reading and writing files so that a crash never leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdpipe.core.errors import ResultsError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well.

    Written data are flushed to disk before the rename, so after a crash `path` holds the old content
    or the new, never a part.

    Raises:
        ResultsError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> ResultsError:
    """The one clear message for a file that could not be written."""
    reasons = {
        errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
        errno.EACCES: ("writing is not permitted", "choose a results folder that you may write to"),
        errno.EPERM: ("writing is not permitted", "choose a results folder that you may write to"),
        errno.EROFS: ("the file system is read-only", "choose a results folder that you may write to"),
    }
    what, fix = reasons.get(error.errno or 0, (str(error), "check the results folder"))
    return ResultsError(f"cannot write: {what}", where=str(path), fix=fix)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ResultsError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError("a result is missing", where=str(path), fix="make it again") from None
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"a result cannot be read: {error}", where=str(path), fix="delete it; it will be made again"
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
