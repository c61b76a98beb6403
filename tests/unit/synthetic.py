"""A plan and its results, made up: numbers that a test can predict, no plug-ins, no training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdpipe.core.paths import Results, RunPaths
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec, TeacherRef
from kdpipe.plan.plan import TEACHER, Cell, Plan, PlannedRun, PlannedStudy
from kdpipe.plan.study import Study
from kdpipe.tables.gallery import draw_figure

EPOCHS = 20
SKIPPED = "'fitnet' needs taps that <net> & co_lack"
Values = Callable[[str, str, int], float]  # row, recipe, seed -> top-1


def default_values(row: str, recipe: str, seed: int) -> float:
    """Top-1 by row: spread over the seeds by exactly 0.1, so that two seeds have std 0.1 / sqrt(2)."""
    base = {TEACHER: 98.0, "scratch": 95.0, "kd": 96.0, "dkd": 97.0, "fitnet": 96.5}.get(row, 90.0)
    return base + (0.5 if recipe == "soteacher" else 0.0) + 0.1 * seed


@dataclass
class Made:
    """A synthetic study with its results on disk.

    Args:
        root: an empty folder.
        methods: method labels; `scratch` has no teacher, `fitnet` is skipped when `skip` says so.
        metrics: the study's measures.
        skip: methods that no pair can use.
        curve: teacher epochs of a curve of `kd`; the last one is `EPOCHS`.
    """

    root: Path
    name: str = "demo"
    title: str = "A made-up study"
    methods: Sequence[str] = ("scratch", "kd", "dkd", "fitnet")
    recipes: Sequence[str] = ("standard", "soteacher")
    pairs: Sequence[tuple[str, str]] = (("resnet8x4", "resnet8"),)
    seeds: Sequence[int] = (0, 1)
    metrics: Sequence[str] = ("top1", "nll", "agreement")
    skip: Sequence[str] = ()
    curve: Sequence[int] = (5, 10, EPOCHS)
    scale: str = "full"
    split: str = "full-train"
    values: Values = default_values
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.results = Results(self.root / "results")
        for teacher, student in self.pairs:
            for recipe in self.recipes:
                for seed in self.seeds:
                    self._column(teacher, student, recipe, seed)
        study = Study.model_validate(
            {
                "title": self.title,
                "about": "Is it?",
                "dataset": "digits",
                "protocol": "quick",
                "split": self.split,
                "seeds": list(self.seeds),
                "pairs": [{"teacher": t, "student": s} for t, s in self.pairs],
                "recipes": list(self.recipes),
                "methods": list(self.methods),
                "metrics": list(self.metrics),
                "curves": [{"method": "kd", "epochs": list(self.curve)}] if self.curve else [],
            }
        )
        self.study = PlannedStudy(self.name, study, self.scale, tuple(dict.fromkeys(self.cells)))
        self.plan = Plan(self.runs, {self.name: self.study})

    def run(self, row: str, recipe: str | None, seed: int) -> str:
        """The run of a table's cell of the first pair."""
        return next(
            c.run
            for c in self.cells
            if (c.part, c.row, c.recipe, c.seed) == ("table", row, recipe, seed) and c.run
        )

    def finish(self) -> Made:
        """Write the results of every run."""
        for cell in self.study.cells:
            if cell.place:
                self.write(cell)
        return self

    def write(self, cell: Cell) -> None:
        """Write one cell's results."""
        top1 = self.values(cell.row, cell.recipe or "", cell.seed)
        if cell.epoch:
            top1 -= (EPOCHS - cell.epoch) / 10
        values = {"top1": top1, "nll": (100 - top1) / 50, "top5": 100.0}
        if cell.row not in (TEACHER, "scratch"):
            values["agreement"] = 90.0
        paths = RunPaths(self.results.root / cell.place)
        put(
            paths.metrics,
            {"status": "finished", "epoch": EPOCHS, "time": 1, "split": "test", "values": values},
        )
        if not (cell.row == TEACHER and cell.epoch):
            self._training(paths, top1)

    def collapse(self, run: str, epoch: int) -> None:
        """Let a run have diverged."""
        put(
            self.results.run(run).metrics,
            {"status": "collapsed", "epoch": epoch, "split": "test", "values": {}},
        )

    def lose(self, run: str) -> None:
        """Let a run not be made yet."""
        for file in ("metrics", "history", "provenance"):
            getattr(self.results.run(run), file).unlink(missing_ok=True)

    def _training(self, paths: RunPaths, top1: float) -> None:
        monitored = "val" if self.split == "train-val" else "test"
        lines = [f"epoch,lr,loss,loss_ce,train_top1,{monitored}_top1,seconds"]
        for epoch in range(1, EPOCHS + 1):
            score = 10 + (top1 - 10) * (1 - math.exp(-epoch / 3))
            lines.append(
                f"{epoch},0.1,{1 / epoch},{1 / epoch},{score},{score if epoch < EPOCHS else top1},1.0"
            )
        paths.history.write_text("\n".join(lines) + "\n")
        put(
            paths.provenance,
            {
                "run": paths.root.name,
                "kdpipe": "0.1.0",
                "python": "3.11.2",
                "torch": "2.11.0",
                "numpy": "2.0.0",
                "device": "A <fast> processor",
                "threads": 1,
                "git": {"commit": "0123456789abcdef", "changed": True},
                "started": 1.0,
                "finished": 61.0,
                "seconds": 60.0,
            },
        )

    def _column(self, teacher: str, student: str, recipe: str, seed: int) -> None:
        own = self._add(teacher, recipe, seed, recipe=recipe)
        self.cells.append(Cell("table", TEACHER, recipe, teacher, None, seed, None, own, dataset="digits"))
        for method in self.methods:
            if method == "scratch":
                run = self._add(student, None, seed, method=method)
                self.cells.append(
                    Cell("table", method, None, None, student, seed, None, run, dataset="digits")
                )
            elif method in self.skip:
                self.cells.append(
                    Cell(
                        "table", method, recipe, teacher, student, seed, None, None, SKIPPED, dataset="digits"
                    )
                )
            else:
                run = self._add(student, recipe, seed, method=method, teacher=own)
                self.cells.append(
                    Cell("table", method, recipe, teacher, student, seed, None, run, dataset="digits")
                )
        for epoch in self.curve:
            at = None if epoch == EPOCHS else epoch
            run = self._add(student, recipe, seed, method="kd", teacher=own, epoch=at)
            self.cells.append(Cell("curve", "kd", recipe, teacher, student, seed, at, run, dataset="digits"))
            self.cells.append(Cell("curve", TEACHER, recipe, teacher, None, seed, at, own, dataset="digits"))

    def _add(
        self,
        model: str,
        recipe_name: str | None,
        seed: int,
        *,
        recipe: str | None = None,
        method: str | None = None,
        teacher: str | None = None,
        epoch: int | None = None,
    ) -> str:
        settings = {"beta": 2.0, "warmup": 20}
        ref = TeacherRef(run=self.runs[teacher].run.id, epoch=epoch) if teacher else None
        spec = RunSpec(
            data=DataSpec(dataset="digits", revision=1),
            model=Part(name=model, revision=1),
            protocol=Protocol(lr=0.1, epochs=EPOCHS, batch_size=64),
            recipe=Part(name=recipe, revision=1, settings=settings) if recipe else None,
            method=Part(name=method, revision=1, settings=settings) if method else None,
            teacher=ref,
            seed=seed,
        )
        pair = (model, None) if recipe else (self.runs[teacher].run.pair[0] if teacher else None, model)
        kind = TEACHER if recipe else "student"
        run = Run(
            spec=spec,
            label=f"{kind}_{model}_{method or recipe}_{recipe_name}_s{seed}",
            protocol="quick",
            scale=self.scale,
            sources={"beta": "study demo", "warmup": "default"},
            pair=pair,
            recipe=recipe_name,
        )
        self.runs[run.name] = PlannedRun(run, teacher, "digits-0", studies=(self.name,))
        return run.name


def draw(made: Made) -> list[Path]:
    """Draw every figure of a synthetic study."""
    figures = made.study.figures
    return [f for name in figures for f in draw_figure(name, made.study, made.plan, made.results)]


def put(path: Path, value: object) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
