"""From result files to one measurement per cell, seed and measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.core.errors import ResultsError
from kdpipe.core.files import read_json
from kdpipe.core.ids import id_in
from kdpipe.core.paths import Results, RunPaths
from kdpipe.plan.plan import TEACHER, Cell, Plan, PlannedStudy

if TYPE_CHECKING:
    import pandas as pd

Lasts = Mapping[tuple[str, str | None, str | None], int]
Status = Literal["finished", "collapsed", "missing", "skipped", "unmeasured"]


@dataclass(frozen=True)
class Measurement:
    """One measure of one cell for one seed; the tidy form of all results.

    Attributes:
        study: name of the study.
        part, row, recipe, teacher, student, seed, run, dataset: as in `Cell`.
        epoch: the teacher's epoch on a checkpoint-sampling curve (also the last); None in the table, of a
            chain's step, and where a rule picks it.
        rule: the rule that picks the teacher's epoch.
        chosen: the epoch that it picked.
        run_id: hash of the run; None when the cell is skipped.
        status: `finished`, `collapsed` (diverged), `missing` (not made yet), `skipped` (cannot be
            made) or `unmeasured` (finished, but this measure does not apply to it).
        collapsed_epoch: the epoch at which the run diverged.
        reason: why a cell is skipped.
        metric: name of the measure.
        value: its value in the measure's unit; None unless finished.
    """

    study: str
    part: str
    row: str
    recipe: str | None
    teacher: str | None
    student: str | None
    seed: int
    epoch: int | None
    run: str | None
    run_id: str | None
    status: Status
    collapsed_epoch: int | None
    reason: str | None
    metric: str
    value: float | None
    rule: str | None = None
    chosen: int | None = None
    dataset: str = ""


def collect(study: PlannedStudy, plan: Plan, results: Results) -> list[Measurement]:
    """Every measurement of a study, in the order of its cells; what is missing is said, not dropped.

    Args:
        study: the study.
        plan: the plan that the study is part of.
        results: the results folder.

    Returns:
        One measurement per cell and measure of the study.

    Raises:
        ResultsError: a metrics file is there but cannot be read.
    """

    @cache
    def metrics(place: str) -> dict[str, Any] | None:
        return read_metrics(RunPaths(results.root / place))

    last = last_epochs(study, plan)
    found: list[Measurement] = []
    for cell in study.cells:
        known = metrics(cell.place) if cell.place else None
        run_id = id_in(cell.run) if cell.run else None
        for metric in study.study.metrics:
            status, value = _status(cell, known, metric)
            found.append(
                Measurement(
                    study=study.name,
                    part=cell.part,
                    row=cell.row,
                    recipe=cell.recipe,
                    teacher=cell.teacher,
                    student=cell.student,
                    seed=cell.seed,
                    epoch=_epoch(cell, last),
                    rule=cell.rule,
                    chosen=_chosen(cell, known),
                    run=cell.run,
                    run_id=run_id,
                    status=status,
                    collapsed_epoch=int(known["epoch"]) if known and status == "collapsed" else None,
                    reason=cell.skipped,
                    metric=metric,
                    value=value,
                    dataset=cell.dataset,
                )
            )
    return found


def last_epochs(study: PlannedStudy, plan: Plan) -> Lasts:
    """The last epoch of every teacher of a study, by data set, recipe and network."""
    return {
        (c.dataset, c.recipe, c.teacher): plan.runs[c.run].run.spec.protocol.epochs
        for c in study.cells
        if c.row == TEACHER and c.run
    }


def frame(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Measurements as a tidy pandas frame: one row each, one column per attribute."""
    import pandas as pd

    names = [f.name for f in fields(Measurement)]
    table = pd.DataFrame(map(attrgetter(*names), measurements), columns=names)
    whole = dict.fromkeys(("epoch", "chosen", "collapsed_epoch"), "Int64")
    return table.astype({**whole, "value": "float64"})


def read_metrics(paths: RunPaths) -> dict[str, Any] | None:
    """A run's `metrics.json`, or None when it is not made yet.

    Raises:
        ResultsError: the file is there but is not what an evaluation writes.
    """
    if not paths.metrics.is_file():
        return None
    found = read_json(paths.metrics)
    if not isinstance(found, dict) or found.get("status") not in ("finished", "collapsed"):
        raise ResultsError(
            "a metrics file has no status 'finished' or 'collapsed'",
            where=str(paths.metrics),
            fix="delete it; it will be made again",
        )
    return found


def read_provenance(results: Results, run: str) -> dict[str, Any] | None:
    """A run's `provenance.json`, or None when it is not made yet.

    Raises:
        ResultsError: the file is there but is not what a training writes.
    """
    path = results.run(run).provenance
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict):
        raise ResultsError("a provenance file holds no record", where=str(path), fix="make the run again")
    return record


def _epoch(cell: Cell, last: Lasts) -> int | None:
    if cell.part in ("table", "chain") or cell.rule:
        return None
    return cell.epoch or last[cell.dataset, cell.recipe, cell.teacher]


def _chosen(cell: Cell, known: dict[str, Any] | None) -> int | None:
    """The epoch that a rule picked: a sampled checkpoint's own, or that of a student's teacher."""
    own = cell.row == TEACHER or cell.part == "chain"
    found = (known or {}).get("epoch" if own else "teacher_epoch")
    return int(found) if cell.rule and found is not None else None


def _status(cell: Cell, known: dict[str, Any] | None, metric: str) -> tuple[Status, float | None]:
    if cell.run is None:
        return "skipped", None
    if known is None:
        return "missing", None
    if known["status"] == "collapsed":
        return "collapsed", None
    value = known["values"].get(metric)
    return ("unmeasured", None) if value is None else ("finished", float(value))
