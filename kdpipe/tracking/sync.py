"""Bring MLflow up to date with what the runs wrote; safe to repeat, to interrupt and to lose track of.

One process at a time does this, after or beside the trainings, which never touch MLflow themselves. A run
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
import logging
import os
import re
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.core.errors import ResultsError, TrackingError, UserError
from kdpipe.core.files import read_json, write_error, write_json
from kdpipe.core.paths import Results
from kdpipe.tracking.source import Content, Point, Source, Stamp, sources, stamp

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from kdpipe.plan.plan import Plan

STATES = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "collapsed": "FINISHED",  # a result like any other; the tag kdpipe.status tells
    "failed": "FAILED",
    "interrupted": "KILLED",
}
LOCK_WAIT = 60.0  # seconds to wait for another sync
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in one call
ENVIRONMENT = {  # unless set: MLflow tries a dead server for minutes, and tells two lines of every run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


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
    quiet: bool = False,
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
        quiet: show no progress on the terminal.

    Returns:
        What was done. A run whose files are damaged, or that MLflow refuses, is listed in it.

    Raises:
        TrackingError: the store cannot be reached or used.
        ResultsError: the results folder cannot be written, or another sync does not end.
        UnknownNameError: one of `names` is not there.
    """
    found = sources(results, plan, names)
    address = uri or f"sqlite:///{results.mlflow.resolve()}"
    report = SyncReport(_public(address))
    with _lock(results.root, quiet), _mlflow(address) as client:
        artifacts = None if uri else (results.root / "mlartifacts").resolve()
        store = _Store(client, artifacts, report)
        for source in _progress(found, quiet):
            store.bring(source)
    return report


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
    """

    def __init__(self, client: MlflowClient, artifacts: Path | None, report: SyncReport) -> None:
        self.client, self.artifacts, self.report = client, artifacts, report
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
        if not {"journal.jsonl", "status.json"} & stamps.keys():
            return
        shelf = self.shelf(source.dataset)
        try:
            self._bring(source, shelf, stamps)
            self.report.runs += 1
        except MlflowException as error:
            if _http_status(error) >= 500:
                raise
            self.report.failed[source.name] = f"MLflow refuses it: {_first_line(error)}"
        except (UserError, ValueError, KeyError, TypeError, OSError) as error:
            self.report.failed[source.name] = f"its files cannot be read: {_first_line(error)}"

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
        cursors[shelf.key] = self._send(
            content, _Target(self.client, run, held is None), before, shelf, stamps
        )
        write_json(file, {key: asdict(cursor) for key, cursor in cursors.items()})
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
                self.report.notes.append(f"warning: files were not sent: {_first_line(_root(error))}")
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
        self.client = client
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
            if _http_status(error) != 404:
                raise
            return None

    def find(self, name: str) -> Run | None:
        """The run of that name (the oldest, should there be several), or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Run]:
        from mlflow.entities import ViewType

        runs = sorted(self._search(ViewType.ACTIVE_ONLY), key=lambda r: (r.info.start_time, r.info.run_id))
        return {run.data.tags.get("kdpipe.run", ""): run for run in reversed(runs)}

    def _search(self, view: int) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs([self.id], run_view_type=view, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _open(self, name: str, artifacts: Path | None) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = str(artifacts / name.replace("/", "-")) if artifacts else None
            return self.client.get_experiment(self.client.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found


class _Target:
    """One MLflow run that is being brought up to date; what it holds already is not sent again.

    Args:
        client: reaches the store.
        run: the run as the store has it.
        created: whether it is new, and so has no history.
    """

    def __init__(self, client: MlflowClient, run: Run, created: bool) -> None:
        self.client, self.run, self.created = client, run, created
        self.id: str = run.info.run_id
        self.history = cache(self._history)

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

        for part in _parts([Metric(*point) for point in points], BATCH["metrics"]):
            self.client.log_batch(self.id, metrics=part)

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

    def _history(self, key: str) -> dict[int, float]:
        """The latest value that the store holds of `key` at each step."""
        if self.created:
            return {}
        held = sorted(self.client.get_metric_history(self.id, key), key=lambda m: m.timestamp)
        return {m.step: m.value for m in held}


@contextmanager
def _mlflow(uri: str) -> Iterator[MlflowClient]:
    """A client that works, and keeps quiet; a failure of the store becomes one message."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from sqlalchemy.exc import SQLAlchemyError

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            _check_sqlite(uri)
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
            yield client
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            raise TrackingError(
                f"MLflow cannot be brought up to date: {_first_line(_root(error))}",
                where=_public(uri),
                fix="check the address and that the server runs, then `kdpipe sync`; nothing is lost",
            ) from error


def _check_sqlite(uri: str) -> None:
    """Open a SQLite store once by ourselves: MLflow would try a hopeless one for minutes."""
    if uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///").partition("?")[0]
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")


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


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _http_status(error: MlflowException) -> int:
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def _root(error: BaseException) -> BaseException:
    """What first went wrong."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _first_line(error: BaseException) -> str:
    return _public(str(error).strip().split("\n", 1)[0][:300]) or type(error).__name__


def _public(text: str) -> str:
    """`text` without the passwords in its addresses."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
