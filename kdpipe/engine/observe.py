"""Who watches a training: the terminal, the log, the journal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any, Literal, Protocol, TextIO

from kdpipe.core.specs import Run

Row = dict[str, float]
"""One epoch: epoch, lr, seconds, loss, loss_<term>, train_top1, accuracy and loss on what is monitored."""

Status = Literal["finished", "collapsed", "interrupted", "failed"]


class Observer(Protocol):
    """Something that is told how a training goes."""

    def started(self, epoch: int) -> None:
        """Training starts, or goes on after `epoch` finished epochs."""

    def epoch_done(self, row: Row) -> None:
        """An epoch ended."""

    def ended(self, status: Status) -> None:
        """Training ended."""


class Lines:
    """Plain lines: every epoch into a log, and now and then onto a terminal shared with other jobs.

    Args:
        run: whose training it is.
        stream: where lines go.
        every: least seconds between two lines (the first and last epochs are always told).
    """

    def __init__(self, run: Run, stream: TextIO = sys.stderr, every: float = 10.0) -> None:
        self.label, self.epochs = run.label, run.spec.protocol.epochs
        self.stream, self.every = stream, every
        self._last = 0.0
        self._begin: tuple[float, int] = (time.monotonic(), 0)

    def started(self, epoch: int) -> None:
        """Say so, and where it goes on."""
        self._begin = (time.monotonic(), epoch)
        first = f" after a first stage of {-epoch}" if epoch < 0 else ""
        self._say(f"goes on after epoch {epoch}" if epoch > 0 else f"starts, {self.epochs} epochs{first}")

    def epoch_done(self, row: Row) -> None:
        """Say the epoch's loss and accuracy, when it is time."""
        now, epoch = time.monotonic(), int(row["epoch"])
        if epoch not in (1, self.epochs) and now - self._last < self.every:
            return
        self._last = now
        begun, first = self._begin
        left = (now - begun) / max(epoch - first, 1) * (self.epochs - epoch)
        self._say(f"epoch {epoch}/{self.epochs}  {summary(row)}  {left:.0f} s left")

    def ended(self, status: Status) -> None:
        """Say how it ended."""
        self._say(status)

    def _say(self, text: str) -> None:
        with suppress(OSError):  # a closed terminal or a full disk stops no training
            print(f"{self.label}: {text}", file=self.stream, flush=True)


class Bar:
    """A progress bar for a training that has the terminal to itself."""

    def __init__(self, run: Run) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs = run.spec.protocol.epochs
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(run.label, total=self.epochs, summary="")

    def started(self, epoch: int) -> None:
        """Show the bar."""
        self._bar.start()
        self._bar.update(self._task, completed=max(epoch, 0))

    def epoch_done(self, row: Row) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=max(row["epoch"], 0), summary=summary(row))

    def ended(self, status: Status) -> None:
        """Close the bar."""
        self._bar.update(self._task, summary=status)
        self._bar.stop()


class Count:
    """How far a job of many epochs is: a bar on a terminal, else now and then a line.

    Args:
        label: whose epochs they are.
        epochs: how many there are.
        every: least seconds between two lines.
    """

    def __init__(self, label: str, epochs: int, every: float = 10.0) -> None:
        self.label, self.epochs, self.every = label, epochs, every
        self._last = 0.0
        self._bar: Any = None

    def __enter__(self) -> Count:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._task = self._bar.add_task(self.label, total=self.epochs)
            self._bar.start()
        return self

    def __call__(self, epoch: int, seconds: float) -> None:
        """Tell that so many epochs are done, the last of them in so many seconds."""
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=epoch)
        elif epoch in (0, self.epochs) or now - self._last >= self.every:
            self._last = now
            with suppress(OSError):  # a closed terminal or a full disk stops nothing
                print(
                    f"{self.label}: epoch {epoch}/{self.epochs}, {seconds:.1f} s each",
                    file=sys.stderr,
                    flush=True,
                )

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()


def summary(row: Row) -> str:
    """An epoch in a few words."""
    scores = [
        f"{split} {row[key]:.2f} %" for split in ("train", "val", "test") if (key := f"{split}_top1") in row
    ]
    return "  ".join([f"loss {row['loss']:.4f}", *scores])
