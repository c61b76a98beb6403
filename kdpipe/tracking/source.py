"""What the tracking store shall say of a run, read from the run's folder."""

from __future__ import annotations

import fcntl
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdpipe.core.errors import UnknownNameError
from kdpipe.core.files import read_json
from kdpipe.core.ids import digest, id_in
from kdpipe.core.paths import Results, RunPaths
from kdpipe.core.specs import Run, identity
from kdpipe.tracking.journal import CURVES, Entry, read

if TYPE_CHECKING:
    from kdpipe.plan.plan import Plan

MAX_ARTIFACT = 5_000_000  # bytes; larger files stay in the results folder alone

MORE: dict[str, Callable[[RunPaths], Path]] = {
    "model": lambda paths: paths.model,
    "predictions": lambda paths: paths.predictions,
}
IN_TRAINING = "in training"

Stamp = list[int]
"""Size in bytes and time of change in ns: what tells a file from its earlier self."""


class Point(NamedTuple):
    """One value of a curve; `time` is in milliseconds since 1970."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Source:
    """A run's folder, and who wants it.

    Attributes:
        name: name of the run's folder.
        paths: its files.
        teacher: name of its teacher's folder, or None.
        studies: studies that want it.
        dataset: name of its data set.
        find: the run of an id, or None where there is none; for its teacher's settings.
        planned: the run as planned; None to read it from the folder.
        more: which files are handed over whatever their size, of `MORE`.
    """

    name: str
    paths: RunPaths
    teacher: str | None
    studies: tuple[str, ...]
    dataset: str
    find: Callable[[str], Run | None]
    planned: Run | None = None
    more: tuple[str, ...] = ()

    def stamps(self) -> dict[str, Stamp]:
        """The stamp of every file that the store's content is made from, by path within the folder.

        Nothing for a run that has not begun. One stamp is no file's: whether the run is in training.
        """
        begun = [f for f in (self.paths.journal, self.paths.status) if f.exists()]
        if not begun:
            return {}
        sampled = sorted((self.paths.root / "sampled").glob("*/metrics.json"))
        files = (*begun, *self.artifacts(), *sampled)
        stamps = {str(f.relative_to(self.paths.root)): s for f in files if (s := stamp(f))}
        return {**stamps, IN_TRAINING: [int(self.in_training())]}

    def artifacts(self) -> tuple[Path, ...]:
        """The files that every run hands over, and those that are asked for."""
        p = self.paths
        return p.spec, p.metrics, p.history, p.provenance, p.log, *self.wanted()

    def wanted(self) -> tuple[Path, ...]:
        """The files that are handed over whatever their size."""
        return tuple(MORE[name](self.paths) for name in self.more)

    def in_training(self) -> bool:
        """Whether a process trains the run now: then it holds the run's lock."""
        try:
            with open(self.paths.lock) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:  # held, or on a file system that cannot tell
            return True
        return False

    def read(self) -> Content:
        """Read the folder as it is now."""
        in_training = self.in_training()  # first: a run that ends meanwhile says so in its journal
        return Content(self, read(self.paths.journal), in_training)


@dataclass(frozen=True)
class Content:
    """A run's folder at one moment.

    Args:
        source: the run.
        entries: its journal.
        in_training: whether a process trained it then.
    """

    source: Source
    entries: list[Entry]
    in_training: bool

    @cached_property
    def run(self) -> Run:
        """The run's settings."""
        return self.source.planned or _stored_run(read_json(self.source.paths.spec))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the run recorded of its making; empty while it trains."""
        path = self.source.paths.provenance
        return dict(read_json(path)) if path.exists() else {}

    def epochs(self) -> list[Point]:
        """The finite points of the journal's curves."""
        return [p for p in _points(self.entries) if math.isfinite(p.value)]

    def measures(self) -> list[Point]:
        """The measures of the finished run and of its sampled checkpoints; step = epoch."""
        paths = self.source.paths
        files: list[tuple[str, int | None, Path]] = [("final", None, paths.metrics)]
        for folder in sorted((paths.root / "sampled").glob("epoch-*")):
            _, epoch, *precision = folder.name.split("-")
            files.append(("_".join(["sampled", *precision]), int(epoch), RunPaths(folder).metrics))
        return [
            Point(f"{prefix}.{name}", float(value), int(found["time"]), step or int(found["epoch"]))
            for prefix, step, file in files
            if file.exists()
            for found in [read_json(file)]
            for name, value in found["values"].items()
        ]

    def params(self) -> dict[str, str]:
        """Every setting by a readable name, and what the journal adds."""
        spec = self.run.spec
        kind = spec.kind
        settings: dict[str, Any] = {
            "model": spec.model.name,
            kind: spec.objective.name,
            "seed": spec.seed,
            **_flat("data", spec.data.model_dump(mode="json")),
            **_flat("model", spec.model.settings),
            **({} if self.run.imported else _flat("protocol", spec.protocol.model_dump(mode="json"))),
            **_flat(kind, spec.objective.settings),
        }
        if spec.teacher:
            settings |= _flat("teacher", spec.teacher.model_dump(mode="json"))
        return {_key(k): _text(v) for k, v in (settings | self._said("params")).items()}

    def tags(self) -> dict[str, str]:
        """What runs are found and grouped by; each name starts with `kdpipe.`."""
        run, spec = self.run, self.run.spec
        git = self.provenance.get("git") or {}
        teacher, student = run.pair if run.kind == "student" else (run.pair[0], None)
        odd = sorted({p.key for p in _points(self.entries) if not math.isfinite(p.value)})
        tags: dict[str, Any] = {
            "run": self.source.name,
            "id": run.id,
            "group": self.group(),
            "kind": run.kind,
            "pair": "/".join(name for name in (teacher, student) if name),
            "teacher": teacher,
            "student": student,
            "recipe": run.recipe or (spec.recipe.name if spec.recipe else None),
            "method": spec.method.name if spec.method else None,
            "seed": spec.seed,
            "protocol": run.protocol,
            "scale": run.scale,
            "dataset": spec.data.dataset,
            "status": self.status()[0],
            "git": f"{git['commit']}{' (changed)' if git.get('changed') else ''}" if git else None,
            **{key: self.provenance.get(key) for key in ("slurm_job", "device", "code")},
            "not_finite": ", ".join(odd) or None,
            **{f"study.{name}": 1 for name in self.source.studies},
            **self._said("tags"),
        }
        return {f"kdpipe.{_key(k)}": _text(v) for k, v in tags.items() if v is not None}

    def group(self) -> str:
        """Name of the runs that differ from this one in nothing but the seed."""
        run = self.run
        method = run.spec.objective.name if run.kind != "teacher" else None
        said = "/".join(part for part in (*run.pair, run.recipe, method) if part)
        return f"{said}-{_but_for_the_seed(run, self.source.find)}"

    def status(self) -> tuple[str, int | None]:
        """How the run stands, and when it ended (ms), if it did.

        The status file is the last thing a run writes, so where it is there, it rules. A run that says
        it is running, and that no process trains, was killed after its last word.
        """
        said = [(e.data["status"], e.time) for e in self.entries if e.kind == "status"]
        file = self.source.paths.status
        if not file.exists():
            status, moment = said[-1] if said else ("running", 0)
            if status == "running" and not self.in_training:
                return "killed", self.entries[-1].time if self.entries else 0
            return status, None if status == "running" else moment
        status = read_json(file)["status"]
        if said and said[-1][0] == status:
            return said[-1]
        return status, file.stat().st_mtime_ns // 1_000_000

    def started(self) -> int:
        """When the run began (ms)."""
        if self.entries:
            return self.entries[0].time
        return self.source.paths.status.stat().st_mtime_ns // 1_000_000

    def artifacts(self) -> list[Path]:
        """The files to hand over: the usual ones, and those that the journal names.

        None while the run trains: its log grows with every epoch, and would be sent with each.
        """
        if self.status()[1] is None:
            return []
        root = self.source.paths.root.resolve()
        named = [(root / e.data["path"]).resolve() for e in self.entries if e.kind == "artifact"]
        inside = [path for path in named if path.is_relative_to(root)]
        files = dict.fromkeys([*(f.resolve() for f in self.source.artifacts()), *inside])
        asked = {f.resolve() for f in self.source.wanted()}
        return [f for f in files if f.is_file() and (f in asked or f.stat().st_size <= MAX_ARTIFACT)]

    def _said(self, kind: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for entry in self.entries:
            if entry.kind == kind:
                values |= entry.data["values"]
        return values


def sources(
    results: Results, plan: Plan | None, names: Iterable[str] | None, more: Sequence[str] = ()
) -> list[Source]:
    """The runs to bring up to date, each after its teacher.

    Args:
        results: the results folder.
        plan: whose trainings; None for every training in the folder. Benches have no curves to track.
        names: only these, with their teachers.
        more: which files of a run are handed over too, of `MORE`.

    Raises:
        UnknownNameError: one of `names` or `more` is not there.
    """
    for file in more:
        if file not in MORE:
            raise UnknownNameError.of("file to send", file, MORE)
    known = _planned(results, plan, tuple(more)) if plan else _found(results, tuple(more))
    ordered: dict[str, Source] = {}

    def add(name: str) -> None:
        source = known[name]
        if name not in ordered:
            if source.teacher in known:
                add(source.teacher)
            ordered[name] = source

    for name in known if names is None else names:
        if name not in known:
            raise UnknownNameError.of("run", name, known)
        add(name)
    return list(ordered.values())


def stamp(path: Path) -> Stamp | None:
    """A file's stamp, or None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _planned(results: Results, plan: Plan, more: tuple[str, ...]) -> dict[str, Source]:
    by_id = {p.run.id: p.run for p in plan.runs.values()}
    return {
        name: Source(
            name, results.run(name), p.teacher, p.studies, p.run.spec.data.dataset, by_id.get, p.run, more
        )
        for name, p in plan.runs.items()
    }


def _found(results: Results, more: tuple[str, ...]) -> dict[str, Source]:
    files = sorted(results.root.glob("runs/*/spec.json"))
    stored = {f.parent.name: data for f in files if "bench" not in (data := read_json(f))["spec"]}
    by_id = {id_in(name): name for name in stored}

    def find(run_id: str) -> Run | None:
        return _stored_run(stored[by_id[run_id]]) if run_id in by_id else None

    return {
        name: Source(
            name,
            results.run(name),
            by_id.get(spec["teacher"]["run"]) if spec["teacher"] else None,
            (),
            spec["data"]["dataset"],
            find,
            more=more,
        )
        for name, spec in ((name, data["spec"]) for name, data in stored.items())
    }


def _but_for_the_seed(run: Run, find: Callable[[str], Run | None]) -> str:
    """Hash of what a run shares with those that differ from it, and from its teacher, in the seed alone."""
    spec = identity(run.spec)
    del spec["seed"]
    teacher = spec.get("teacher") or {}
    for key in ("run", "part"):
        if other := find(teacher.get(key) or ""):
            teacher[key] = _but_for_the_seed(other, find)
    return digest(spec, 8)


def _stored_run(data: dict[str, Any]) -> Run:
    return Run.model_validate({k: v for k, v in data.items() if k in Run.model_fields})


def _points(entries: Iterable[Entry]) -> Iterator[Point]:
    for entry in entries:
        if entry.kind in CURVES:
            for name, value in entry.data["values"].items():
                yield Point(_key(name), value, entry.time, int(entry.data["step"]))


def _flat(prefix: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in settings.items()}


def _key(name: str) -> str:
    """`name` with what MLflow does not take in a key replaced."""
    return re.sub(r"[^\w.\-/ ]", "_", name)[:250]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
