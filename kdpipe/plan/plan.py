"""The plan: every run that some studies need, and which cell of which table it fills.

A plan is data: it is resolved once (`kdpipe.plan.resolve`, which asks the plug-ins and so imports
torch), kept as JSON under `results/plans/`, and read by the Snakefile and the tables without torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from kdpipe.core.specs import Run
from kdpipe.plan.study import Study

TEACHER = "teacher"  # the row of the teachers' own numbers


@dataclass(frozen=True)
class Cell:
    """One number's place in a study: which run gives it.

    Attributes:
        part: `table`, or `curve` for a checkpoint-sampling curve.
        row: label of the method, or `teacher`.
        recipe: label of the teacher's recipe; None for a student without a teacher.
        teacher: network of the teacher; None for a student without a teacher.
        student: network of the student; None for a teacher's own cell.
        seed: seed of the run (and of its teacher).
        epoch: the teacher's epoch, when it is not the last one.
        run: name of the run's folder; None when the cell is skipped.
        skipped: why the method cannot distil this pair.
    """

    part: str
    row: str
    recipe: str | None
    teacher: str | None
    student: str | None
    seed: int
    epoch: int | None = None
    run: str | None = None
    skipped: str | None = None

    @property
    def place(self) -> str | None:
        """Where its results lie within the results folder: a run, or a teacher's sampled checkpoint."""
        if self.run is None:
            return None
        return place(self.run, self.epoch if self.row == TEACHER else None)


def place(run: str, epoch: int | None = None) -> str:
    """The folder of a run, or of its checkpoint sampled at `epoch`, within the results folder."""
    return f"runs/{run}/sampled/epoch-{epoch:04d}" if epoch is not None else f"runs/{run}"


def weights(run: str, epoch: int | None = None) -> str:
    """The weights of a run, or of one of its epochs, within the results folder."""
    return f"runs/{run}/{f'checkpoints/epoch-{epoch:04d}' if epoch else 'model'}.safetensors"


@dataclass(frozen=True)
class PlannedRun:
    """A run, what it stands on, and who wants it.

    Attributes:
        run: the run.
        teacher: name of the teacher's folder, or None.
        data: name of the prepared data's folder.
        keep: epochs whose weights are kept for sampling.
        studies: studies that want it.
        part: name of the folder of what was trained on top of its teacher, or None.
        features: whether a study wants measures of its features.
        gradients: every how many epochs a study wants the loss terms' gradients compared; 0 is never.
    """

    run: Run
    teacher: str | None
    data: str
    keep: tuple[int, ...] = ()
    studies: tuple[str, ...] = ()
    part: str | None = None
    features: bool = False
    gradients: int = 0


@dataclass(frozen=True)
class PlannedStudy:
    """A study with its cells, in the order of its rows and columns."""

    name: str
    study: Study
    scale: str
    cells: tuple[Cell, ...]

    def runs(self) -> list[str]:
        """Names of the runs that fill its cells, without repeats."""
        return list(dict.fromkeys(c.run for c in self.cells if c.run))

    def places(self) -> list[str]:
        """Where the results of its cells lie within the results folder, without repeats."""
        return list(dict.fromkeys(c.place for c in self.cells if c.place))


@dataclass(frozen=True)
class Plan:
    """Everything to be made."""

    runs: dict[str, PlannedRun] = field(default_factory=dict)
    studies: dict[str, PlannedStudy] = field(default_factory=dict)

    def place(self, run: str, epoch: int | None = None) -> str:
        """The folder of a run, or of its checkpoint sampled at `epoch`, within the results folder."""
        return place(run, epoch)

    def teacher_place(self, student: str) -> str | None:
        """Where the results of a student's teacher lie: its run, or its sampled checkpoint."""
        planned = self.runs[student]
        ref = planned.run.spec.teacher
        return place(planned.teacher, ref.epoch) if planned.teacher and ref else None

    def teacher_weights(self, name: str) -> list[str]:
        """The weights that a run learns from, within the results folder: one, or one per anchor or fold."""
        planned = self.runs[name]
        ref = planned.run.spec.teacher
        if planned.teacher is None or ref is None:
            return []
        if ref.folds:
            peers = [f"runs/{planned.teacher}/peer-{number}.safetensors" for number in range(1, ref.folds)]
            return [weights(planned.teacher), *peers]
        return [weights(planned.teacher, epoch) for epoch in (ref.anchors or (ref.epoch,))]

    def teacher_stamps(self, name: str) -> list[str]:
        """The files that say that those weights are whole; a part's weights too."""
        planned = self.runs[name]
        ref = planned.run.spec.teacher
        if planned.teacher is None or ref is None:
            return []
        epochs = ref.anchors or (ref.epoch,)
        stamps = [
            weights(planned.teacher) if e is None else f"{place(planned.teacher, e)}/checkpoint.json"
            for e in epochs
        ]
        return [*stamps, *([weights(planned.part)] if planned.part else [])]

    def dataset_of(self, folder: str) -> str:
        """Name of the data set that is prepared in `folder`."""
        return next(p.run.spec.data.dataset for p in self.runs.values() if p.data == folder)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {
            "runs": {
                name: {
                    "run": p.run.model_dump(mode="json"),
                    "teacher": p.teacher,
                    "data": p.data,
                    "keep": list(p.keep),
                    "studies": list(p.studies),
                    "part": p.part,
                    "features": p.features,
                    "gradients": p.gradients,
                }
                for name, p in self.runs.items()
            },
            "studies": {
                name: {
                    "study": s.study.model_dump(mode="json"),
                    "scale": s.scale,
                    "cells": [asdict(c) for c in s.cells],
                }
                for name, s in self.studies.items()
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        runs = {
            name: PlannedRun(
                run=Run.model_validate(p["run"]),
                teacher=p["teacher"],
                data=p["data"],
                keep=tuple(p["keep"]),
                studies=tuple(p["studies"]),
                part=p["part"],
                features=p["features"],
                gradients=p["gradients"],
            )
            for name, p in data["runs"].items()
        }
        studies = {
            name: PlannedStudy(
                name=name,
                study=Study.model_validate(s["study"]),
                scale=s["scale"],
                cells=tuple(Cell(**c) for c in s["cells"]),
            )
            for name, s in data["studies"].items()
        }
        return cls(runs, studies)
