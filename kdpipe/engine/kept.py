"""Finished results, kept where Snakemake does not look, and put back instead of training a run again.

Snakemake deletes a job's declared outputs before the job starts and after it, or a job of its group, fails.
So a training that ends leaves hard links to its results in its folder's `.finished`, with their hashes and
those of what they were made from. Nothing here imports torch.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.core.errors import ResultsError, UserError
from kdpipe.core.files import atomic, read_json, sha256, write_error, write_json
from kdpipe.core.fingerprint import ROOT, code_of, fingerprint
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Run
from kdpipe.engine.observe import Row, Status

LOG_LINES = 15  # of a failed training's log, shown with the error


@dataclass(frozen=True)
class Kept:
    """The kept results of one run; as an observer of its training, it keeps them when the training ends.

    `spec.json` is not kept: `kdpipe train` writes it from the plan. Kept checkpoints, the peers' weights and
    the log are no declared outputs, so nobody deletes them.

    Args:
        run: the run.
        paths: its folder.
        inputs: the files that it is made from: the prepared data's `meta.json`, and weights.
    """

    run: Run
    paths: RunPaths
    inputs: Sequence[Path]

    @property
    def results(self) -> list[Path]:
        """What is kept; the status, which says that the rest is whole, comes last."""
        p = self.paths
        files = [p.model, p.predictions, p.history, p.provenance, p.status]
        return [file for file in files if file != p.predictions or self.run.kind != "part"]

    def started(self, epoch: int) -> None:
        """Nothing to do: what is kept is replaced when the training ends."""

    def epoch_done(self, row: Row) -> None:
        """Nothing to do."""

    def ended(self, status: Status) -> None:
        """Keep the results of a training that is done; where that fails, say so and go on."""
        if status not in ("finished", "collapsed"):
            return
        try:
            self._keep()
        except (OSError, UserError) as error:
            reason = str(error).splitlines()[0]
            print(
                f"warning: {self.run.label}: its results are there, but no second links to them ({reason}); "
                "if they are deleted, it is trained again",
                file=sys.stderr,
            )

    def usable(self) -> bool:
        """Whether the kept results are whole and those of this run, its inputs and the code at hand.

        Where there are some that are not, a line says why.
        """
        if not self._record.is_file():
            return False
        why = self._refusal()
        if why:
            print(f"{self.run.label}: its kept results are not used: {why}", file=sys.stderr)
        return not why

    def restored(self) -> bool:
        """Put the kept results back if they are usable; whether they were."""
        if usable := self.usable():
            self.put_back()
        return usable

    def put_back(self) -> None:
        """Put the kept results in their places, as new: Snakemake compares the times of files.

        The state that a kill at the very end left behind goes: nothing needs it any more.
        """
        shutil.rmtree(self.paths.state, ignore_errors=True)
        for file in self.results:
            _link(self.paths.finished / file.name, file)
            os.utime(file)
        print(f"{self.run.label}: finished before; its results are put back", file=sys.stderr)

    def withdraw(self) -> None:
        """Take the results away but for the kept ones, for the job that will put them in place."""
        for file in (*self.results, self.paths.spec):
            file.unlink(missing_ok=True)

    def unfinished(self) -> UserError:
        """What to tell of a run that should have been trained by now: how its log ends."""
        log = self.paths.log
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        told = "\n".join(f"  | {line}" for line in lines[-LOG_LINES:])
        return ResultsError(
            f"{self.run.label} is not trained: its pack did not finish it"
            + (f"; its log ends so:\n{told}" if told else ""),
            where=str(log),
            fix="mend what the log says, if anything, and run Snakemake again: finished runs stay as they "
            "are, and this one goes on from its saved state",
        )

    @property
    def _record(self) -> Path:
        return self.paths.finished / "record.json"

    def _keep(self) -> None:
        folder = self.paths.finished
        self._record.unlink(missing_ok=True)  # without it, what lies there counts for nothing
        hashes = {}
        for file in self.results:
            hashes[file.name] = sha256(file)
            _link(file, folder / file.name)
        sources = code_of(self.run)
        record: dict[str, Any] = {
            "run": self.run.id,
            "code": fingerprint(sources),
            "sources": [_relative(file) for file in sources],
            "inputs": self._input_hashes(),
            "files": hashes,
        }
        write_json(self._record, record)

    def _input_hashes(self) -> list[str]:
        return [sha256(file) for file in self.inputs]

    def _refusal(self) -> str:
        """Why the kept results cannot be used; empty if they can."""
        try:
            record = read_json(self._record)
            if record["run"] != self.run.id:
                return "they are of another run"
            sources = [ROOT.parent / file for file in record["sources"]]
            if not all(file.is_file() for file in sources) or fingerprint(sources) != record["code"]:
                return "they were made by other code"
            if self._input_hashes() != record["inputs"]:
                return "its data or its teacher have changed"
            for file in self.results:
                kept = self.paths.finished / file.name
                if sha256(kept) != record["files"][file.name]:
                    return f"{kept} is damaged"
        except (UserError, OSError, KeyError, TypeError) as error:
            return f"they cannot be read: {error}"
        return ""


def _relative(file: Path) -> str:
    """A source file as the record names it: plug-ins of one's own by their whole path."""
    package = ROOT.parent
    return str(file.relative_to(package) if file.is_relative_to(package) else file)


def _link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no hard links."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            with atomic(target) as temporary:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise write_error(target, error) from error
