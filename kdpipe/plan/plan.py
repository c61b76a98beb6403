"""The plan: every run that some studies need, and which cell of which table it fills.

A plan is data: it is resolved once (`kdpipe.plan.resolve`, which asks the plug-ins and so imports
torch), kept as JSON under `results/plans/`, and read by the Snakefile and the tables without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from kdpipe.core.specs import (
    Bank,
    BenchRun,
    Choice,
    DataSpec,
    Frozen,
    Part,
    Precision,
    Protocol,
    Run,
    RunSpec,
    Start,
    TeacherRef,
    point,
)
from kdpipe.plan.study import Study

TEACHER = "teacher"  # the row of the teachers' own numbers


@dataclass(frozen=True)
class Cell:
    """One number's place in a study: which run gives it.

    Attributes:
        part: `table`; `curve` for a checkpoint-sampling curve; `kept` for a teacher's kept checkpoint;
            `chain` for a step of a chain.
        row: label of the method, or `teacher`; of a chain, the step.
        recipe: label of the teacher's recipe, of a chain its alpha; None for a student without a teacher.
        teacher: network of the teacher, of a chain its label; None for a student without a teacher.
        student: network of the student; None for a teacher's own cell.
        seed: seed of the run (and of its teacher).
        epoch: the teacher's epoch, when it is not the last one.
        run: name of the run's folder; None when the cell is skipped.
        skipped: why the method cannot distil this pair.
        choice: name of the teacher's checkpoint, when a rule picks it.
        precision: how the weights of that epoch are kept.
        dataset: as the study's file names it; at a scale with a data set of its own, runs see that one.
        full: of a sampled checkpoint: epochs of the teacher at full scale.
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
    choice: str | None = None
    precision: Precision = "float32"
    dataset: str = ""
    full: int | None = None

    @property
    def rule(self) -> str | None:
        """The rule that picks the teacher's checkpoint."""
        return self.choice.rpartition("-")[0] if self.choice else None

    @property
    def place(self) -> str | None:
        """Where its results lie within the results folder: a run, or a teacher's sampled checkpoint."""
        if self.run is None:
            return None
        if self.row != TEACHER and self.part != "chain":
            return place(self.run)
        return place(self.run, self.choice or (point(self.epoch, self.precision) if self.epoch else None))


@dataclass(frozen=True)
class Printed:
    """A number that a paper prints, with the labels of the cell that it stands beside.

    Attributes:
        row, recipe, teacher, student, dataset: as in `Cell`.
        metric: name of the measure.
        value: as printed, in the measure's unit; None where the paper prints none.
        std: its printed standard deviation, if any.
        note: what there is to say of it; `doubtful: ...` where the reading is.
    """

    row: str
    recipe: str | None
    teacher: str | None
    student: str | None
    dataset: str
    metric: str
    value: float | None
    std: float | None
    note: str

    @property
    def doubtful(self) -> bool:
        """Whether the number may have been read wrongly, or is at odds with others."""
        return self.note.startswith("doubtful")


def place(run: str, checkpoint: str | None = None) -> str:
    """The folder of a run, or of one of its sampled checkpoints, within the results folder."""
    return f"runs/{run}/sampled/{checkpoint}" if checkpoint else f"runs/{run}"


def weights(folder: str, checkpoint: str | None = None) -> str:
    """The last weights in a folder, or those of a checkpoint of it, within the results folder."""
    return f"{folder}/{f'checkpoints/{checkpoint}' if checkpoint else 'model'}.safetensors"


@dataclass(frozen=True)
class Work:
    """What a run has to compute and to store, as the shapes of networks and images tell.

    Attributes:
        epochs: of the training, those of a first stage included; 0 for an imported network.
        images: training images of an epoch.
        step: multiply-adds of a training step for one of them: three forward passes of whatever learns (a
            backward pass counts as two) and one of its teacher.
        taught: those of them that are its teacher's.
        watched: images that are predicted after each epoch.
        forward: multiply-adds of the network's forward pass for one image.
        stored: images whose predictions are stored.
        classes: their logits.
        width: length of the network's last features.
        networks: how many networks' weights are stored.
        data: bytes of the prepared data set.
    """

    epochs: int
    images: int
    step: int
    watched: int
    forward: int
    stored: int
    classes: int
    width: int
    networks: int
    data: int
    taught: int = 0


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
        keep_half: epochs whose weights are kept in float16.
        choices: names of the rules that pick one of its checkpoints -> what they choose among.
        parameters: of its network; 0 is not known.
        features: whether a study wants measures of its features.
        gradients: every how many epochs a study wants the loss terms' gradients compared; 0 is never.
        work: what it takes; None where images or classes are counted when the data are prepared.
        banks: names of the banks that could take its teacher's place, in the order of its passes.
    """

    run: Run
    teacher: str | None
    data: str
    keep: tuple[int, ...] = ()
    studies: tuple[str, ...] = ()
    part: str | None = None
    keep_half: tuple[int, ...] = ()
    choices: dict[str, Choice] = field(default_factory=dict)
    parameters: int = 0
    features: bool = False
    gradients: int = 0
    work: Work | None = None
    banks: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> int:
        """How many checkpoints of it are kept, the weights that rules pick included."""
        return len(self.keep) + len(self.keep_half) + len(self.choices)

    @property
    def bytes(self) -> int:
        """About how much room they take: 4 bytes a parameter, 2 in float16."""
        half = len(self.keep_half) + sum(c.precision == "float16" for c in self.choices.values())
        return self.parameters * (4 * self.checkpoints - 2 * half)


@dataclass(frozen=True)
class PlannedBank:
    """A bank that could be made: a teacher's logits, for every student that wants the same.

    Attributes:
        bank: the bank.
        teacher: name of the teacher's folder.
        data: name of the prepared data's folder.
        images: training images of an epoch; 0 is not known yet, as below.
        classes: logits of each.
        forward: multiply-adds of the teacher for one image.
    """

    bank: Bank
    teacher: str
    data: str
    images: int = 0
    classes: int = 0
    forward: int = 0

    @property
    def passes(self) -> int:
        """Multiply-adds that it takes to make, and that it saves each student; 0 is not known yet."""
        return self.bank.spec.epochs * self.images * self.forward

    @property
    def bytes(self) -> int:
        """The room it takes; 0 is not known yet."""
        size = 4 if self.bank.spec.storage == "float32" else 2
        return self.bank.spec.epochs * self.images * self.classes * size


@dataclass(frozen=True)
class PlannedBench:
    """A bench's run, the folder of the data that it sees (None without), and the studies that want it."""

    run: BenchRun
    data: str | None
    studies: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchCell:
    """One run of a bench within a study: which bench, which variant, which seed, and the run's folder."""

    bench: str
    label: str
    seed: int
    run: str


@dataclass(frozen=True)
class PlannedStudy:
    """A study with its cells, in the order of its rows and columns.

    Attributes:
        name: of its file.
        study: its content.
        scale: at which it is run.
        cells: its trainings.
        benches: its benches' runs.
        plots: its benches' figures -> the bench that draws each.
        printed: what its paper prints.
        ran_on: data set that all its runs see instead of those that it names, if its scale says so.
    """

    name: str
    study: Study
    scale: str
    cells: tuple[Cell, ...]
    benches: tuple[BenchCell, ...] = ()
    plots: dict[str, str] = field(default_factory=dict)
    printed: tuple[Printed, ...] = ()
    ran_on: str = ""

    @property
    def figures(self) -> tuple[str, ...]:
        """The figures of its trainings; those of its benches are `plots`."""
        about = self.study
        sampled = any(curve.epochs or curve.fractions for curve in about.curves)
        own = ["learning_curves"] * bool(about.pairs) + ["sampling"] * sampled
        own += ["ranks"] * (len(about.pairs) * len(about.recipes) >= 3 and len(about.methods) >= 3)
        own += ["chains_by_alpha", "chains_by_step"] * bool(about.chains)
        return (*own, *about.figures)

    def runs(self) -> list[str]:
        """Names of the runs that fill its cells, without repeats."""
        return list(dict.fromkeys(c.run for c in self.cells if c.run))


@dataclass(frozen=True)
class Plan:
    """Everything to be made."""

    runs: dict[str, PlannedRun] = field(default_factory=dict)
    studies: dict[str, PlannedStudy] = field(default_factory=dict)
    benches: dict[str, PlannedBench] = field(default_factory=dict)
    banks: dict[str, PlannedBank] = field(default_factory=dict)

    def place(self, run: str, checkpoint: str | None = None) -> str:
        """The folder of a run, or of one of its sampled checkpoints, within the results folder."""
        return place(run, checkpoint)

    def needs(self, run: str) -> list[str]:
        """The runs that a run waits for itself."""
        return [name for name in (self.runs[run].teacher, self.runs[run].part) if name]

    def in_order(self) -> Iterable[str]:
        """Every run, those that others wait for before them."""
        return TopologicalSorter({name: self.needs(name) for name in self.runs}).static_order()

    def teacher_place(self, student: str) -> str | None:
        """Where the results of a student's teacher lie: its run, or its sampled checkpoint."""
        planned = self.runs[student]
        ref = planned.run.spec.teacher
        return place(planned.teacher, ref.checkpoint) if planned.teacher and ref else None

    def _taught(self, name: str) -> tuple[str, TeacherRef] | None:
        """The run that teaches a run or fills a bank, and what of it does."""
        if name in self.banks:
            return self.banks[name].teacher, self.banks[name].bank.spec.teacher
        teacher, ref = self.runs[name].teacher, self.runs[name].run.spec.teacher
        return (teacher, ref) if teacher is not None and ref is not None else None

    def teacher_weights(self, name: str) -> list[str]:
        """The weights that a run learns from, within the results folder: one, or one per anchor or fold.

        Of a bank: those that it is made from.
        """
        taught = self._taught(name)
        if taught is None:
            return []
        (teacher, ref), run = taught, place(taught[0])
        if ref.folds:
            return [weights(run), *(f"{run}/peer-{number}.safetensors" for number in range(1, ref.folds))]
        if ref.choice:
            return [weights(place(teacher, ref.checkpoint))]
        return [weights(run, checkpoint) for checkpoint in ref.checkpoints]

    def teacher_stamps(self, name: str) -> list[str]:
        """The files that say that those weights are whole; a part's weights too."""
        taught = self._taught(name)
        if taught is None:
            return []
        teacher, ref = taught
        stamps = [
            f"{place(teacher, c)}/checkpoint.json" if c else weights(place(teacher)) for c in ref.checkpoints
        ]
        part = None if name in self.banks else self.runs[name].part
        return [*stamps, *([weights(place(part))] if part else [])]

    def to_measure(self, study: str) -> dict[str, str | None]:
        """The places of a study's results -> that of the teacher which each is compared with, if any."""
        found: dict[str, str | None] = {}
        for cell in self.studies[study].cells:
            if cell.run and cell.place:
                own = cell.place == place(cell.run)
                found[cell.place] = self.teacher_place(cell.run) if own else None
        return found

    @property
    def data(self) -> list[str]:
        """The folders of the prepared data sets."""
        seen = [*(p.data for p in self.runs.values()), *(p.data for p in self.benches.values())]
        return sorted({folder for folder in seen if folder})

    def dataset_of(self, folder: str) -> str:
        """Name of the data set that is prepared in `folder`."""
        trained = {p.data: p.run.spec.data.dataset for p in self.runs.values()}
        seen = {p.data: p.run.spec.data.name for p in self.benches.values() if p.run.spec.data}
        return (trained | seen)[folder]

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`; what runs have in common is told once, under `shared`."""
        shared = _Shared()
        return {
            "runs": {
                name: {
                    "run": _run_to_json(p.run, shared),
                    "teacher": p.teacher,
                    "data": p.data,
                    "keep": list(p.keep),
                    "studies": list(p.studies),
                    "part": p.part,
                    "keep_half": list(p.keep_half),
                    "choices": {name: c.model_dump(mode="json") for name, c in p.choices.items()},
                    "parameters": p.parameters,
                    "features": p.features,
                    "gradients": p.gradients,
                    "work": shared.place(p.work) if p.work else None,
                    "banks": list(p.banks),
                }
                for name, p in self.runs.items()
            },
            "studies": {
                name: {
                    "study": s.study.model_dump(mode="json"),
                    "scale": s.scale,
                    "cells": [vars(c) for c in s.cells],
                    "benches": [asdict(b) for b in s.benches],
                    "plots": s.plots,
                    "printed": [asdict(p) for p in s.printed],
                    "ran_on": s.ran_on,
                }
                for name, s in self.studies.items()
            },
            "benches": {
                name: {"run": b.run.model_dump(mode="json"), "data": b.data, "studies": list(b.studies)}
                for name, b in self.benches.items()
            },
            "banks": {
                name: {**vars(b), "bank": b.bank.model_dump(mode="json")} for name, b in self.banks.items()
            },
            "shared": shared.parts,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        shared = _Shared(data["shared"])
        runs = {
            name: PlannedRun(
                run=_run_from_json(p["run"], shared),
                teacher=p["teacher"],
                data=p["data"],
                keep=tuple(p["keep"]),
                studies=tuple(p["studies"]),
                part=p["part"],
                keep_half=tuple(p["keep_half"]),
                choices={key: Choice.model_validate(c) for key, c in p["choices"].items()},
                parameters=p["parameters"],
                features=p["features"],
                gradients=p["gradients"],
                work=shared.get(Work, p["work"]),
                banks=tuple(p["banks"]),
            )
            for name, p in data["runs"].items()
        }
        studies = {
            name: PlannedStudy(
                name=name,
                study=Study.model_validate(s["study"]),
                scale=s["scale"],
                cells=tuple(Cell(**c) for c in s["cells"]),
                benches=tuple(BenchCell(**b) for b in s["benches"]),
                plots=s["plots"],
                printed=tuple(Printed(**p) for p in s["printed"]),
                ran_on=s["ran_on"],
            )
            for name, s in data["studies"].items()
        }
        benches = {
            name: PlannedBench(BenchRun.model_validate(b["run"]), b["data"], tuple(b["studies"]))
            for name, b in data["benches"].items()
        }
        banks = {
            name: PlannedBank(**{**b, "bank": Bank.model_validate(b["bank"])})
            for name, b in data["banks"].items()
        }
        return cls(runs, studies, benches, banks)


PARTS: dict[str, type[Frozen]] = {  # of a run's spec
    "data": DataSpec,
    "model": Part,
    "protocol": Protocol,
    "recipe": Part,
    "method": Part,
    "part": Part,
    "teacher": TeacherRef,
    "start": Start,
}


class _Shared:
    """What many runs have in common, as protocols and settings, each told once and named by its place.

    A plan of 10,000 runs takes a third of the memory so.

    Args:
        parts: plain data; none of a plan that is still to be told.
    """

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        self.parts = list(parts)
        self._seen: dict[int, tuple[int, Any]] = {}  # by `id`, which a part that is kept keeps
        self._places: dict[str, int] = {}
        self._made: dict[tuple[Any, int], Any] = {}

    def place(self, part: Frozen | Work | dict[str, Any]) -> int:
        """Where a part is told."""
        if id(part) not in self._seen:
            plain = part.model_dump(mode="json") if isinstance(part, Frozen) else _plain(part)
            place = self._places.setdefault(json.dumps(plain, sort_keys=True), len(self.parts))
            if place == len(self.parts):
                self.parts.append(plain)
            self._seen[id(part)] = place, part
        return self._seen[id(part)][0]

    def get(self, kind: Any, place: int | None) -> Any:
        """The part of that place, the same one each time; None where there is none."""
        if place is None:
            return None
        key = kind, place
        if key not in self._made:
            plain = self.parts[place]
            self._made[key] = kind.model_validate(plain) if issubclass(kind, Frozen) else kind(**plain)
        return self._made[key]


def _plain(part: Work | dict[str, Any]) -> dict[str, Any]:
    return part if isinstance(part, dict) else vars(part)


def _run_to_json(run: Run, shared: _Shared) -> dict[str, Any]:
    spec = {key: shared.place(value) if isinstance(value, Frozen) else value for key, value in run.spec}
    common = {key: shared.place(getattr(run, key)) for key in ("sources", "later")}
    return {**dict(run), "spec": spec, **common}


def _run_from_json(data: dict[str, Any], shared: _Shared) -> Run:
    """A run as it was told: it was checked when the plan was made, and the file has a checksum."""
    told = data["spec"]
    spec = RunSpec.model_construct(**told | {key: shared.get(kind, told[key]) for key, kind in PARTS.items()})
    common = {key: shared.get(dict, data[key]) for key in ("sources", "later")}
    return Run.model_construct(**{**data, "spec": spec, "pair": tuple(data["pair"]), **common})
