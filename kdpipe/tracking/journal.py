"""A run's journal: what the tracking store shall know, one checked line of JSON at a time.

Training writes its journal and nothing else; `kdpipe.tracking.sync` carries it to MLflow later. So a
tracking store that is slow, locked or down costs training nothing.

A line is a JSON object whose last key is the CRC-32 of all that stands before it:

    {"time":1700000000000,"kind":"metrics","step":3,"values":{"loss":0.5},"crc":"9f1c2ab4"}

A line that a crash tore, or that anything else damaged, fails its check and is passed over.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from kdpipe.core.errors import ResultsError
from kdpipe.core.files import atomic

Status = Literal["running", "finished", "collapsed", "failed", "interrupted"]

CURVES = ("metrics", "system")  # kinds that carry values of an epoch


@dataclass(frozen=True)
class Entry:
    """One line of a journal.

    Attributes:
        time: when it was written, in milliseconds since 1970.
        kind: `params`, `tags`, `metrics`, `system`, `artifact` or `status`.
        data: the rest, as given to `Journal.append`.
    """

    time: int
    kind: str
    data: dict[str, Any]


class Journal:
    """Appends to a journal; the first failed write ends it with a warning, never with an exception.

    Args:
        path: the file, made at the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open = True
        self._started = False

    @overload
    def append(self, kind: Literal["params", "tags"], *, values: Mapping[str, Any]) -> None: ...
    @overload
    def append(
        self, kind: Literal["metrics", "system"], *, step: int, values: Mapping[str, float]
    ) -> None: ...
    @overload
    def append(self, kind: Literal["artifact"], *, path: str) -> None: ...
    @overload
    def append(self, kind: Literal["status"], *, status: Status) -> None: ...
    def append(self, kind: str, **data: Any) -> None:
        """Append one entry; it is whole on disk (or absent) when this returns.

        Args:
            kind: `params` and `tags` carry `values`, `metrics` a `step` (the epoch, from 1) and finite or
                non-finite `values`, `system` the same of the machine, `artifact` the `path` of a file
                relative to the run's folder, and `status` a `status`.
            **data: what the kind carries.
        """
        if not self._open:
            return
        line = encode(Entry(time.time_ns() // 1_000_000, kind, data))
        with self._lenient():
            self._write(line)

    def truncate_after(self, epoch: int) -> None:
        """Drop the values of epochs after `epoch`, which a resumed training is about to repeat.

        Args:
            epoch: the last epoch that the resume state contains; 0 drops all.
        """
        with self._lenient():
            text = self.path.read_bytes() if self._open and self.path.exists() else b""
            lines = text.splitlines(keepends=True)
            kept = [line for line in lines if _survives(line, epoch)]
            if len(kept) < len(lines):
                with atomic(self.path) as temporary:
                    temporary.write_bytes(b"".join(kept))

    @contextmanager
    def _lenient(self) -> Iterator[None]:
        """Turn a failed write into one warning and a closed journal."""
        try:
            yield
        except (OSError, ResultsError) as error:
            self._open = False
            reason = str(error).splitlines()[0]
            print(
                f"warning: {self.path} cannot be written ({reason}); the training goes on, but MLflow will "
                "not show the rest of it",
                file=sys.stderr,
            )

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if not self._started and _is_torn(handle):
                line = b"\n" + line  # or this line would be lost along with the torn one
            if os.write(handle, line) < len(line):
                raise OSError("the disk took only part of a line")
            self._started = True
        finally:
            os.close(handle)


def read(path: Path) -> list[Entry]:
    """The sound entries of a journal in order; none where there is no file."""
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [entry for line in lines if (entry := decode(line))]


def encode(entry: Entry) -> bytes:
    """The line that stands for `entry`, with its check and newline."""
    fields = {"time": entry.time, "kind": entry.kind, **_plain(entry.data)}
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False)[:-1].encode()
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> Entry | None:
    """The entry of one line, or None where the line fails its check."""
    body, separator, check = line.rstrip(b"\n").rpartition(b',"crc":"')
    if not separator or check != b'%08x"}' % zlib.crc32(body):
        return None
    fields = json.loads(body + b"}")
    entry = Entry(fields.pop("time"), fields.pop("kind"), fields)
    if entry.kind in CURVES:
        fields["values"] = {name: float(value) for name, value in fields["values"].items()}
    return entry


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it; numbers outside JSON become text that `float` reads back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(number)


def _survives(line: bytes, epoch: int) -> bool:
    entry = decode(line)
    return entry is not None and not (entry.kind in CURVES and entry.data["step"] > epoch)


def _is_torn(handle: int) -> bool:
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"
