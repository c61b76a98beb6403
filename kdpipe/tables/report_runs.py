"""The report's pages of runs, and which machines and versions made them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdpipe.core.files import read_json
from kdpipe.core.ids import canonical
from kdpipe.core.measures import METRICS
from kdpipe.core.paths import Results, RunPaths
from kdpipe.core.specs import Frozen, Part
from kdpipe.evaluation.evaluate import check_history
from kdpipe.plan.plan import TEACHER, Plan, PlannedBench, PlannedRun
from kdpipe.tables.blocks import measure, number, pair_title
from kdpipe.tables.collect import Measurement, read_metrics, read_provenance
from kdpipe.tables.pages import Site, embedded_json, macro, page
from kdpipe.tables.report_plugins import plugin_page

Rows = list[tuple[str, str, str]]
"""Name, value, and where the value comes from."""

_ENVIRONMENT = ("kdpipe", "python", "torch", "numpy", "device", "threads")
_TOO_FINE = re.compile(r"(?<=\.\d{6})\d+")  # digits of a curve's numbers that a drawing cannot show
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # made once: there are many settings
_TIMES = ("started", "finished")


@dataclass
class Environments:
    """The versions, hardware and code that made runs, each with its runs by study."""

    runs: dict[str, list[str]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any], run: str) -> None:
        """Note which environment made a run."""
        self.runs.setdefault(canonical(environment(record)), []).append(run)

    def listed(self, plan: Plan) -> list[tuple[dict[str, str], list[str], list[tuple[str, int]]]]:
        """Each environment as words, its runs, and how many of them each study wants."""
        found = []
        for text, names in sorted(self.runs.items()):
            wanted = Counter(s for n in names for s in (plan.runs.get(n) or plan.benches[n]).studies)
            found.append((json.loads(text), names, sorted(wanted.items())))
        return found


class RunPages:
    """Writes a page for each run of a plan.

    Args:
        site: where to.
        plan: the plan.
        results: the results folder.
        measurements: of all studies; they tell what was measured of a teacher's checkpoints.
        uri: MLflow's address, for links to its pages; only one that a browser can open is linked.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        results: Results,
        measurements: Iterable[Measurement],
        uri: str | None = None,
    ) -> None:
        self.site, self.plan, self.results = site, plan, results
        self.uri = _address(uri) if uri and re.match(r"https?://", uri) else None
        self.environments = Environments()
        self.checkpoints = _checkpoints(measurements)
        self._tables: dict[Any, str] = {}

    def write(self) -> None:
        """Write them all."""
        for name, planned in self.plan.runs.items():
            self._page(name, planned, self._training(name, planned))
        for name, bench in self.plan.benches.items():
            self._page(name, bench, self._bench(bench))

    def _page(self, name: str, planned: PlannedRun | PlannedBench, about: dict[str, Any]) -> None:
        paths = self.results.run(name)
        record = read_provenance(self.results, name)
        if record:
            self.environments.add(record, name)
        metrics = read_metrics(paths)
        files = _files(paths.root)
        text = page(
            "report_run.html",
            name=name,
            studies=planned.studies,
            status=_status(paths, metrics),
            measures=list(_measures(metrics)),
            provenance=list(_flat(record or {})),
            files=[(file, f"../../runs/{quote(name)}/{quote(file)}") for file in files],
            tracked=self._tracked(paths) if self.uri else None,
            history=_history(paths) if "history.csv" in files else None,
            **about,
        )
        self.site.write(f"runs/{name}.html", text)

    def _training(self, name: str, planned: PlannedRun) -> dict[str, Any]:
        run, spec = planned.run, planned.run.spec
        ref = spec.teacher
        protocol = f"protocol {run.protocol}" + ("" if run.scale == "full" else f" at scale {run.scale}")
        study = "study" + ("" if run.scale == "full" else f" at scale {run.scale}")
        changed = self._changed.get((spec.kind, spec.objective.name), {})
        tables = [
            _table(f"{spec.kind} {spec.objective.name}", _settings(spec.objective, run.sources)),
            ""
            if run.imported
            else self._shared(f"protocol {run.protocol}", spec.protocol, protocol, changed),
            _table("network", _settings(spec.model, {}, study)),
            self._shared("data", spec.data, study),
        ]
        return {
            "kind": spec.kind,
            "title": f"{spec.objective.name}: {pair_title(*run.pair) or spec.model.name}",
            "objective": spec.objective.name,
            "plugin": plugin_page(spec.kind, spec.objective.name),
            "dataset": spec.data.dataset,
            "seed": spec.seed,
            "recipe": run.recipe,
            "teacher": planned.teacher,
            "checkpoints": ", ".join(filter(None, ref.checkpoints)) if ref else "",
            "students": self._students.get(name, []),
            "tables": list(filter(None, tables)),
            "sampled": self.checkpoints.get(name, []),
        }

    def _bench(self, planned: PlannedBench) -> dict[str, Any]:
        run, spec = planned.run, planned.run.spec
        return {
            "kind": "bench",
            "title": f"bench {spec.bench.name}",
            "objective": spec.bench.name,
            "plugin": None,
            "dataset": spec.data.name if spec.data else "",
            "seed": spec.seed,
            "recipe": None,
            "teacher": None,
            "checkpoints": "",
            "students": [],
            "tables": [_table(f"bench {spec.bench.name}", _settings(spec.bench, run.sources))],
            "sampled": [],
        }

    def _shared(
        self, title: str, settings: Frozen, source: str, changed: Mapping[tuple[str, str], str] | None = None
    ) -> str:
        """The table of settings that many runs have in common, made once."""
        changed = changed or {}
        key = (title, settings.model_dump_json(), source, tuple(changed.items()))
        if key not in self._tables:
            pairs = settings.model_dump(mode="json").items()
            rows = [(k, _text(v), changed.get((k, canonical(v)), source)) for k, v in pairs]
            self._tables[key] = _table(title, rows)
        return self._tables[key]

    @cached_property
    def _students(self) -> dict[str, list[str]]:
        """The runs that each run teaches."""
        found: dict[str, list[str]] = {}
        for name, planned in self.plan.runs.items():
            for teacher in dict.fromkeys((planned.teacher, planned.part)):
                if teacher:
                    found.setdefault(teacher, []).append(name)
        return found

    @cached_property
    def _changed(self) -> dict[tuple[str, str], dict[tuple[str, str], str]]:
        """The protocols' settings that studies change for a recipe or method: which, and which study."""
        found: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
        for name, planned in self.plan.studies.items():
            about = planned.study
            for kind, entries in (("recipe", about.recipes), ("method", about.methods)):
                for entry in entries:
                    for key, value in entry.protocol.items():
                        found.setdefault((kind, entry.name), {})[key, canonical(value)] = f"study {name}"
        return found

    def _tracked(self, paths: RunPaths) -> str | None:
        """MLflow's page of the run, where a sync has noted it."""
        file = paths.root / ".synced.json"
        if not (self.uri and file.is_file()):
            return None
        for key, cursor in read_json(file).items():
            if _address(cursor.get("uri", "")) == self.uri:
                experiment = key.partition("@")[0]
                return f"{self.uri}/#/experiments/{experiment}/runs/{cursor['run_id']}"
        return None


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """Versions, hardware and code of a run, as words."""
    found = {name: str(record[name]) for name in _ENVIRONMENT if record.get(name) is not None}
    git = record.get("git") or {}
    if git.get("commit"):
        found["code"] = git["commit"][:12] + (", changed since" if git.get("changed") else "")
    return found


def _address(uri: str) -> str:
    """A server's address without password and closing slash."""
    return re.sub(r"//[^/@\s]+@", "//", uri).rstrip("/")


def _checkpoints(measurements: Iterable[Measurement]) -> dict[str, list[tuple[str, str, str]]]:
    """Of each teacher: its checkpoint, the measure and its value, where a study measures one."""
    found: dict[str, dict[tuple[str, str], str]] = {}
    for m in measurements:
        if m.part in ("curve", "kept") and m.row == TEACHER and m.run and m.value is not None:
            at = f"{m.chosen} ({m.rule})" if m.rule else str(m.epoch)
            shown = measure(m.metric)
            found.setdefault(m.run, {})[at, shown.title] = _valued(m.value, m.metric)
    return {run: [(at, title, text) for (at, title), text in own.items()] for run, own in found.items()}


def _status(paths: RunPaths, metrics: Mapping[str, Any] | None) -> tuple[str, str]:
    """How a run stands, in a word, and what there is to say of it."""
    found = read_json(paths.status) if paths.status.is_file() else metrics
    if not found:
        return ("not finished" if paths.root.is_dir() else "missing"), ""
    after = f"after epoch {found['epoch']}" if found.get("epoch") else ""
    return str(found["status"]), ", ".join(filter(None, [after, str(found.get("reason") or "")]))


def _measures(metrics: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    for name, value in (metrics or {"values": {}})["values"].items():
        known = METRICS.get(name)
        if value is not None:
            yield known.title if known else name, _valued(value, name), known.about if known else ""


def _valued(value: float, metric: str) -> str:
    known = METRICS.get(metric)
    if not known:
        return str(value)
    return f"{number(value, known.decimals)} {known.unit}".strip()


def _settings(part: Part, sources: Mapping[str, str], otherwise: str = "") -> Rows:
    return [(k, _text(v), sources.get(k, otherwise)) for k, v in part.settings.items()]


def _table(title: str, rows: Rows) -> str:
    """Settings as a table; nothing where there are none."""
    return macro("_rows.html", "rows", title, ("setting", "value", "from"), rows) if rows else ""


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Everything that a provenance file says, as (key, value) without levels."""
    for key, value in sorted(record.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key in _TIMES and isinstance(value, int | float) and not prefix:
            yield key, datetime.fromtimestamp(value, UTC).isoformat(" ", "seconds")
        elif key == "seconds" and not prefix:
            yield key, f"{value:.1f}"
        elif value is not None:
            yield f"{prefix}{key}", _text(value)


def _files(root: Path) -> list[str]:
    """The files of a run that a reader may want, by path within its folder."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return []
    names = []
    for entry in entries:
        if entry.name == "tables" and entry.is_dir():
            names += [f"tables/{name}" for name in sorted(os.listdir(entry.path))]
        elif not entry.name.startswith(".") and entry.is_file():
            names.append(entry.name)
    return names


def _history(paths: RunPaths) -> str | None:
    """The run's history as JSON of CSV text, its numbers cut after six decimals."""
    check_history(paths)
    try:
        return embedded_json(_TOO_FINE.sub("", paths.history.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _ENCODE(value)
