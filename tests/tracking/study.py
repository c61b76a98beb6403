"""A small finished study: real settings, made-up measurements, so that every search has its right answer."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.core.files import write_json
from kdpipe.core.paths import Results, RunPaths
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec, TeacherRef
from kdpipe.plan.plan import Plan, PlannedRun
from kdpipe.tracking.journal import Journal

PAIR = ("resnet32x4", "resnet8x4")
RECIPES = ("standard", "soteacher")
METHODS = ("kd", "dkd")
SEEDS = (0, 1)
EPOCHS = 3
SAMPLED = (1, 2)


def _spec(model: str, seed: int, **objective) -> RunSpec:
    return RunSpec(
        data=DataSpec(dataset="cifar100", revision=1),
        model=Part(name=model, revision=1),
        protocol=Protocol(lr=0.1, epochs=EPOCHS, batch_size=64),
        seed=seed,
        **objective,
    )


def teacher(recipe: str, seed: int) -> Run:
    """A teacher's run."""
    spec = _spec(PAIR[0], seed, recipe=Part(name=recipe, revision=1))
    label = f"teacher_cifar100_{PAIR[0]}_{recipe}_s{seed}"
    return Run(spec=spec, label=label, protocol="quick", pair=(PAIR[0], None), recipe=recipe)


def student(method: str, by: Run, student_model: str = PAIR[1], epoch: int | None = None) -> Run:
    """A student's run."""
    reference = TeacherRef(run=by.id, epoch=epoch)
    spec = _spec(student_model, by.spec.seed, method=Part(name=method, revision=1), teacher=reference)
    label = f"student_cifar100_{PAIR[0]}_{student_model}_{method}_{by.recipe}_s{by.spec.seed}"
    pair = (PAIR[0], student_model)
    return Run(spec=spec, label=label, protocol="quick", pair=pair, recipe=by.recipe)


class Study:
    """Teachers of two recipes, students of two methods, two seeds; and four runs that did not end well.

    Args:
        root: where its results go.
    """

    def __init__(self, root: Path) -> None:
        self.results = Results(root)
        self.teachers = {(r, s): teacher(r, s) for r in RECIPES for s in SEEDS}
        self.students = {
            (m, r, s): student(m, self.teachers[r, s]) for m in METHODS for r in RECIPES for s in SEEDS
        }
        by = self.teachers["standard", 0]
        self.other_pair = student("kd", by, "resnet8")
        self.odd = {
            status: student(method, by)
            for status, method in (
                ("failed", "fitnet"),
                ("collapsed", "at"),
                ("interrupted", "crd"),
                ("killed", "rkd"),
                ("running", "vid"),
            )
        }
        self.of_checkpoints = [student("kd", by, epoch=epoch) for epoch in SAMPLED]
        self.measured = [
            *self.teachers.values(),
            *self.students.values(),
            self.other_pair,
            *self.of_checkpoints,
        ]
        self.top1 = {run.name: 70.0 + number for number, run in enumerate(self.measured)}
        everyone = [*self.students.values(), self.other_pair, *self.of_checkpoints, *self.odd.values()]
        self.plan = Plan(
            {
                **{t.name: PlannedRun(t, None, "d", studies=("demo",)) for t in self.teachers.values()},
                **{
                    run.name: PlannedRun(
                        run,
                        next(t.name for t in self.teachers.values() if t.id == run.spec.teacher.run),
                        "d",
                        studies=("demo",),
                    )
                    for run in everyone
                },
            }
        )

    def paths(self, run: Run) -> RunPaths:
        return self.results.run(run.name)

    def finish(self) -> None:
        """Leave in the folder what the trainings would have left."""
        for run in self.measured:
            self.train(run, "finished")
            self.measure(self.paths(run), EPOCHS, top1=self.top1[run.name])
        for run in self.teachers.values():
            for epoch in SAMPLED:
                self.measure(self.paths(run).sampled(epoch), epoch, top1=50 + 10 * epoch)
        for status, run in self.odd.items():
            self.train(run, status)

    def train(self, run: Run, status: str) -> None:
        paths = self.paths(run)
        write_json(paths.spec, {**run.model_dump(mode="json"), "id": run.id, "name": run.name})
        book = Journal(paths.journal)
        book.append("status", status="running")
        for epoch in range(1, EPOCHS + 1):
            book.append("metrics", step=epoch, values={"loss": 1 / epoch, "test_top1": 20.0 * epoch})
            book.append("system", step=epoch, values={"system/memory_megabytes": 500.0})
        if status in ("killed", "running"):
            return
        book.append("status", status=status)
        if status in ("finished", "collapsed"):
            write_json(paths.status, {"status": status, "epoch": EPOCHS, "reason": ""})
            write_json(paths.provenance, {"git": {"commit": "abc", "changed": False}, "code": "c0de"})

    def measure(self, paths: RunPaths, epoch: int, **values: float) -> None:
        now = time.time_ns() // 1_000_000
        write_json(paths.metrics, {"status": "finished", "epoch": epoch, "time": now, "values": values})

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Hold the lock of the run that still trains."""
        with open(self.paths(self.odd["running"]).lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
