"""Bring MLflow up to date with what the runs wrote; safe to repeat, to interrupt and to lose track of.

One process at a time does this, once or for as long as the trainings go on; they never touch MLflow. A run
is found again by its tag `kdpipe.run`, so it is logged once however often this happens; a point is sent
once because points that MLflow already holds at that key and step are left out. A small file in each
run's folder, `.synced.json`, remembers what each store has seen, so that a run without news costs a look
at its files' dates; deleting it only makes the next sync compare again.

A training that is resumed repeats epochs. Where MLflow had them already, it keeps the first values:
bit-identical on a CPU but for the seconds.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kdpipe.core.errors import ResultsError, UserError
from kdpipe.core.files import read_json, write_error, write_json
from kdpipe.core.paths import Results
from kdpipe.tracking.client import connected, first_line, http_status, load, public, root_of
from kdpipe.tracking.source import Content, Point, Source, Stamp, sources, stamp

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

    from kdpipe.plan.plan import Plan

T = TypeVar("T")

STATES = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "collapsed": "FINISHED",  # a result like any other; the tag kdpipe.status tells
    "failed": "FAILED",
    "interrupted": "KILLED",
    "killed": "KILLED",
}
KIND = {"mlflow.experimentKind": "custom_model_development"}  # or MLflow's pages open with chats and judges
FEW = 20  # runs that are looked for one by one; for more, all of them are listed once
LOCK_WAIT = 60.0  # seconds to wait for another sync
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in one call


@dataclass
class SyncReport:
    """What a sync did.

    Attributes:
        uri: the store, without password.
        runs: how many runs are in the store now.
        created: how many of them are new there.
        updated: how many others had news.
        metrics: how many points were sent.
        failed: why runs could not be brought up to date, by name.
        notes: what else a reader should know.
    """

    uri: str
    runs: int = 0
    created: int = 0
    updated: int = 0
    metrics: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"MLflow at {self.uri}: {self.runs} runs, {self.created} new, {self.updated} updated, "
            f"{self.metrics} points sent"
        ]
        lines += [f"warning: {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines + self.notes)


def sync(
    results: Results,
    plan: Plan | None = None,
    uri: str | None = None,
    *,
    names: Iterable[str] | None = None,
    more: Sequence[str] = (),
    quiet: bool = False,
    memory: Memory | None = None,
) -> SyncReport:
    """Bring a tracking store up to date with the runs in the results folder.

    Each run becomes one MLflow run in the experiment `kdpipe/<dataset>`, below its teacher's; its
    curves come from its journal with the journal's own times, its final measures (`final.<name>`) and
    those of its sampled checkpoints (`sampled.<name>` at the checkpoint's epoch) from their files.

    Args:
        results: the results folder.
        plan: whose runs, which also tells the studies; None for every run in the folder.
        uri: a tracking URI; None is the embedded store in the results folder.
        names: only these runs, with their teachers.
        more: what a run hands over whatever its size: `model`, `predictions`.
        quiet: show no progress on the terminal.
        memory: what earlier calls of this process learnt of the store, for one that calls again and again.

    Returns:
        What was done. A run whose files are damaged, or that MLflow refuses, is listed in it.

    Raises:
        TrackingError: the store cannot be reached or used.
        ResultsError: the results folder cannot be written, or another sync does not end.
        UnknownNameError: one of `names` or `more` is not there.
    """
    found = sources(results, plan, names, more)
    address = uri or f"sqlite:///{results.mlflow.resolve()}"
    report = SyncReport(public(address))
    load()  # before others are kept waiting
    with _lock(results.root, quiet), connected(address) as client:
        artifacts = None if uri else (results.root / "mlartifacts").resolve()
        store = _Store(client, artifacts, report, {} if memory is None else memory)
        for source in _progress(found, quiet):
            store.bring(source)
    return report


Curves = dict[str, dict[int, float]]
"""What a store holds of a run: the latest value by metric and step."""

Memory = dict[str, tuple[Stamp | None, Curves]]
"""By MLflow's id of a run in training: the stamp of its cursor file, and what the store held by then."""


@dataclass(frozen=True)
class _Cursor:
    """What one store has of one run; without it the two are compared anew.

    Attributes:
        run_id: MLflow's id of the run.
        parent: MLflow's id of its teacher's run.
        studies: studies it is tagged with.
        stamps: the run's files as they were when the store got their content.
        files: the files that were handed over, as they were.
        uri: the store's address, without password.
    """

    run_id: str
    parent: str | None
    studies: list[str]
    stamps: dict[str, Stamp]
    files: dict[str, Stamp]
    uri: str = ""

    def covers(self, source: Source, stamps: dict[str, Stamp], parent: str | None) -> bool:
        """Whether there is nothing new since."""
        return (
            stamps.items() <= self.stamps.items()
            and parent in (None, self.parent)
            and set(source.studies) <= set(self.studies)
        )


class _Store:
    """A tracking store.

    Args:
        client: reaches it.
        artifacts: where new experiments keep their files; None leaves it to the server.
        report: told what is done.
        memory: what earlier syncs of this process learnt.
    """

    def __init__(
        self, client: MlflowClient, artifacts: Path | None, report: SyncReport, memory: Memory
    ) -> None:
        self.client, self.artifacts, self.report, self.memory = client, artifacts, report, memory
        self.run_ids: dict[str, str] = {}
        self.shelves: dict[str, _Shelf] = {}
        self.takes_files = True

    def shelf(self, dataset: str) -> _Shelf:
        """The experiment of a data set."""
        if dataset not in self.shelves:
            self.shelves[dataset] = _Shelf(self.client, f"kdpipe/{dataset}", self.artifacts)
            if self.shelves[dataset].moved:
                self.report.notes.append(
                    f"note: files are not copied to MLflow's kdpipe/{dataset}, which was made for another "
                    "results folder; they are in the runs' folders"
                )
        return self.shelves[dataset]

    def bring(self, source: Source) -> None:
        """Bring one run up to date; what is wrong with it alone is reported, not raised."""
        from mlflow.exceptions import MlflowException

        stamps = source.stamps()
        if not stamps:
            return
        shelf = self.shelf(source.dataset)
        try:
            self._bring(source, shelf, stamps)
            self.report.runs += 1
        except MlflowException as error:
            if http_status(error) >= 500:
                raise
            self.report.failed[source.name] = f"MLflow refuses it: {first_line(error)}"
        except (UserError, ValueError, KeyError, TypeError, OSError) as error:
            self.report.failed[source.name] = f"its files cannot be read: {first_line(error)}"

    def _bring(self, source: Source, shelf: _Shelf, stamps: dict[str, Stamp]) -> None:
        file = source.paths.root / ".synced.json"
        cursors = _read_cursors(file)
        before = cursors.get(shelf.key)
        if before and before.run_id in shelf.deleted:
            before = None
        parent = self.run_ids.get(source.teacher or "")
        if before and before.covers(source, stamps, parent):
            self.run_ids[source.name] = before.run_id
            return
        held = shelf.get(before.run_id) if before else None
        if held is None:
            before, held = None, shelf.find(source.name)
        content = source.read()
        run = held or self.client.create_run(
            shelf.id, content.started(), tags={"kdpipe.run": source.name}, run_name=source.name
        )
        self.run_ids[source.name] = run.info.run_id
        # a sync that fails, or another's in between, leaves no memory of this run
        known, curves = self.memory.pop(run.info.run_id, (None, {}))
        target = _Target(self.client, run, held is None, curves if before and known == stamp(file) else {})
        cursors[shelf.key] = self._send(content, target, before, shelf, stamps)
        write_json(file, {key: asdict(cursor) for key, cursor in cursors.items()})
        if content.status()[1] is None:
            self.memory[run.info.run_id] = stamp(file), target.curves
        self.report.created += held is None
        self.report.updated += held is not None

    def _send(
        self,
        content: Content,
        target: _Target,
        before: _Cursor | None,
        shelf: _Shelf,
        stamps: dict[str, Stamp],
    ) -> _Cursor:
        """Send everything new, and say what the store has then."""
        source = content.source
        parent = self.run_ids.get(source.teacher or "")
        target.params(content.params())
        target.tags(content.tags() | ({"mlflow.parentRunId": parent} if parent else {}))
        points = [p for p in content.epochs() if p.step not in target.history(p.key)]
        points += [p for p in content.measures() if target.history(p.key).get(p.step) != p.value]
        target.points(points)
        self.report.metrics += len(points)
        target.status(*content.status())
        files = self._send_files(content, target, before.files if before else {}, shelf)
        return _Cursor(
            run_id=target.id,
            parent=parent or (before.parent if before else None),
            studies=sorted({*source.studies, *(before.studies if before else ())}),
            stamps=stamps if self.takes_files else {},  # or the files would never be tried again
            files=files,
            uri=self.report.uri,
        )

    def _send_files(
        self, content: Content, target: _Target, sent: dict[str, Stamp], shelf: _Shelf
    ) -> dict[str, Stamp]:
        """Hand over new and changed files, until one fails; the stamps of all that were handed over."""
        from mlflow.exceptions import MlflowException

        root = content.source.paths.root.resolve()
        files = dict(sent)
        for path in content.artifacts() if self.takes_files and not shelf.moved else ():
            name, now = path.relative_to(root), stamp(path)
            if now is None or sent.get(str(name)) == now:
                continue
            try:
                target.file(path, str(name.parent) if name.parent.name else "")
            except (MlflowException, OSError) as error:
                self.takes_files = False
                self.report.notes.append(f"warning: files were not sent: {first_line(root_of(error))}")
                break
            files[str(name)] = now
        return files


class _Shelf:
    """An experiment: the MLflow runs of one data set.

    Args:
        client: reaches the store.
        name: the experiment's name.
        artifacts: the folder of its files if it is new; None leaves that to the server.
    """

    def __init__(self, client: MlflowClient, name: str, artifacts: Path | None) -> None:
        self.client, self.searches = client, 0
        experiment = self._open(name, artifacts)
        self.id = str(experiment.experiment_id)
        self.key = f"{self.id}@{experiment.creation_time}"  # a store that was made anew has another
        place = Path(experiment.artifact_location)
        self.moved = artifacts is not None and not place.is_relative_to(artifacts)

    @cached_property
    def deleted(self) -> set[str]:
        """Ids of the runs that were deleted here."""
        from mlflow.entities import ViewType

        return {run.info.run_id for run in self._search(ViewType.DELETED_ONLY)}

    def get(self, run_id: str) -> Run | None:
        """The run of that id, or None where it is gone."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if http_status(error) != 404:
                raise
            return None

    def find(self, name: str) -> Run | None:
        """The run of that name (the oldest, should there be several), or None."""
        from mlflow.entities import ViewType

        self.searches += 1
        if self.searches > FEW:
            return self._by_name.get(name)
        asked = f"tags.`kdpipe.run` = '{name}'"
        return min(self._search(ViewType.ACTIVE_ONLY, asked), key=_age, default=None)

    @cached_property
    def _by_name(self) -> dict[str, Run]:
        from mlflow.entities import ViewType

        runs = sorted(self._search(ViewType.ACTIVE_ONLY), key=_age)
        return {run.data.tags.get("kdpipe.run", ""): run for run in reversed(runs)}

    def _search(self, view: int, asked: str = "") -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs([self.id], asked, view, max_results=200, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _open(self, name: str, artifacts: Path | None) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = str(artifacts / name.replace("/", "-")) if artifacts else None
            made = self.client.create_experiment(name, artifact_location=place, tags=KIND)
            return self.client.get_experiment(made)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found


class _Target:
    """One MLflow run that is being brought up to date; what it holds already is not sent again.

    Args:
        client: reaches the store.
        run: the run as the store has it.
        created: whether it is new, and so has no history.
        curves: what of its history is known; the rest is asked for.
    """

    def __init__(self, client: MlflowClient, run: Run, created: bool, curves: Curves) -> None:
        self.client, self.run, self.created, self.curves = client, run, created, curves
        self.id: str = run.info.run_id

    def params(self, wanted: dict[str, str]) -> None:
        """Send new params. MLflow never changes one, so a changed value is told by a tag."""
        from mlflow.entities import Param

        held = self.run.data.params
        for part in _parts([Param(k, v) for k, v in wanted.items() if k not in held], BATCH["params"]):
            self.client.log_batch(self.id, params=part)
        changed = {k: v for k, v in wanted.items() if k in held and held[k] != v}
        if changed:
            self.tags({"kdpipe.changed_params": json.dumps(changed, sort_keys=True)})

    def tags(self, wanted: dict[str, str]) -> None:
        """Send new and changed tags."""
        from mlflow.entities import RunTag

        held = self.run.data.tags
        news = [RunTag(k, v) for k, v in wanted.items() if held.get(k) != v]
        for part in _parts(news, BATCH["tags"]):
            self.client.log_batch(self.id, tags=part)

    def points(self, points: Sequence[Point]) -> None:
        """Send points."""
        from mlflow.entities import Metric

        for part in _parts(points, BATCH["metrics"]):
            self.client.log_batch(self.id, metrics=[Metric(*point) for point in part])
            for point in part:
                self.history(point.key)[point.step] = point.value

    def status(self, status: str, ended: int | None) -> None:
        """Set the state and the time of the end, if they differ."""
        state, info = STATES[status], self.run.info
        if ended is None and info.status != state:
            self.client.update_run(self.id, status=state)
        if ended is not None and (info.status, info.end_time) != (state, ended):
            self.client.set_terminated(self.id, state, ended)

    def file(self, path: Path, folder: str) -> None:
        """Hand over a file into a folder among the run's artifacts."""
        self.client.log_artifact(self.id, str(path), folder or None)

    def history(self, key: str) -> dict[int, float]:
        """The latest value that the store holds of `key` at each step."""
        if key not in self.curves:
            asked = [] if self.created else self.client.get_metric_history(self.id, key)
            held = sorted(asked, key=lambda m: m.timestamp)
            self.curves[key] = {m.step: m.value for m in held}
        return self.curves[key]


@contextmanager
def _lock(root: Path, quiet: bool) -> Iterator[None]:
    """Keep other syncs of this results folder out."""
    path = root / ".sync.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 (closed below, whatever happens)
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        deadline, told = time.monotonic() + LOCK_WAIT, quiet
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise ResultsError(
                    "another sync of these results is still at work",
                    where=str(path),
                    fix="wait for it to end, then run `kdpipe sync` again",
                )
            if not told:
                print("another sync of these results is at work; waiting for it", file=sys.stderr)
                told = True
            time.sleep(0.2)
        yield


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _progress(found: Sequence[Source], quiet: bool) -> Iterable[Source]:
    """The sources, with a progress bar on a terminal."""
    if quiet or not sys.stderr.isatty():
        return found
    from rich.console import Console
    from rich.progress import track

    return track(found, "MLflow", console=Console(stderr=True), transient=True)


def _read_cursors(file: Path) -> dict[str, _Cursor]:
    """The cursors of a run by store; none where the file is missing or not sound."""
    try:
        return {key: _Cursor(**fields) for key, fields in read_json(file).items()}
    except (ResultsError, TypeError, AttributeError):
        return {}


def _age(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
