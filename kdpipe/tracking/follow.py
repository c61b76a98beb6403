"""Keep MLflow up to date while trainings run: one process for all of them, beside them, in nobody's way."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.core.errors import UserError
from kdpipe.core.paths import Results
from kdpipe.tracking.client import first_line
from kdpipe.tracking.sync import Memory, SyncReport, sync

if TYPE_CHECKING:
    from kdpipe.plan.plan import Plan

EVERY = 30.0  # seconds between two rounds
SHARE = 0.1  # of the time, at most, that rounds take: a large study or a slow store makes them rarer


def follow(
    results: Results,
    plan: Plan,
    uri: str | None,
    ended: Callable[[float], bool],
    *,
    more: Sequence[str] = (),
    every: float = EVERY,
    say: Callable[[str], None] | None = None,
) -> None:
    """Sync in rounds until the end, and once more then; whatever goes wrong, the next round makes up for.

    Args:
        results: the results folder.
        plan: whose runs.
        uri: a tracking URI; None is the embedded store in the results folder.
        ended: waits for so many seconds at most; whether the end has come.
        more: as for `sync`.
        every: seconds between two rounds, at least.
        say: told once what went wrong, and once that all is well again.
    """
    say, memory, told, last = say or _say, Memory(), "", False
    while True:
        begun = time.monotonic()
        try:
            news = _trouble(sync(results, plan, uri, more=more, quiet=True, memory=memory))
        except Exception as error:  # whatever a store, or MLflow itself, comes up with
            news = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            )
        if news != told:
            say(news or "MLflow is up to date again")
            told = news
        if last:
            return
        took = time.monotonic() - begun
        last = ended(max(every, took / SHARE - took))


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Whether no other process follows the same plan; held until the block ends.

    Args:
        file: the plan's file, which is locked.
    """
    with open(file, "r+") as handle:  # not to write: some file systems lock no other
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def input_ended(seconds: float) -> bool:
    """Wait for the end of standard input, where that is a pipe; elsewhere there is no end.

    Whoever starts a follower with a pipe need not stop it: the pipe closes when the starter ends, even by
    a kill.

    Args:
        seconds: to wait at most.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([0], [], [], left)[0] and not os.read(0, 4096):
            return True
    return False


def _trouble(report: SyncReport) -> str:
    """What a round could not do; empty where it did all."""
    return "\n".join([*(f"warning: {name}: {why}" for name, why in report.failed.items()), *report.notes])


def _say(text: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", file=sys.stderr, flush=True)
