"""What a training writes into its journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from kdpipe.tracking.journal import Journal, Status


class JournalObserver:
    """Records a training's epochs and status; made to be watched by `kdpipe.engine`.

    Args:
        path: the journal.
        machine: asked at the end of each epoch what the training uses of its machine.
    """

    def __init__(self, path: Path, machine: Callable[[], Mapping[str, float]] = dict) -> None:
        self.journal = Journal(path)
        self.machine = machine

    def started(self, epoch: int) -> None:
        """Forget epochs that will be trained again; note the job."""
        self.journal.truncate_after(epoch)
        self.journal.append("status", status="running")
        job = os.environ.get("SLURM_JOB_ID")
        if job:
            self.journal.append("tags", values={"slurm_job": job})

    def epoch_done(self, row: Mapping[str, float]) -> None:
        """Record the epoch's measures, and what it used of the machine."""
        values = {name: value for name, value in row.items() if name != "epoch"}
        self.journal.append("metrics", step=int(row["epoch"]), values=values)
        if used := self.machine():
            self.journal.append("system", step=int(row["epoch"]), values=used)

    def ended(self, status: Status) -> None:
        """Record how it ended."""
        self.journal.append("status", status=status)
