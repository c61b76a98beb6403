"""The report: one page with every study's tables, figures, runs and where they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdpipe.core.files import write_text
from kdpipe.core.ids import canonical
from kdpipe.core.measures import METRICS
from kdpipe.core.paths import Results
from kdpipe.core.specs import BenchRun, Frozen, Run
from kdpipe.plan.plan import TEACHER, Plan, PlannedStudy
from kdpipe.tables.collect import Measurement, read_provenance
from kdpipe.tables.layout import (
    Block,
    Layout,
    Told,
    block_title,
    lay_out,
    measure,
    number,
    pair_title,
    scale_note,
)
from kdpipe.tables.pages import embedded_json, embedded_svg, page

FIGURES = {
    "learning_curves": (
        "Accuracy after each epoch: mean over the seeds, with a band from the least to the greatest. "
        "The first epochs may lie below the axis."
    ),
    "loss_curves": "Loss after each epoch: mean over the seeds, with a band from the least to the greatest.",
    "sensitivity": (
        "Accuracy against the setting in which entries of one recipe or method differ, all others being "
        "equal; mean over the seeds ± sample standard deviation. The vertical line marks the default."
    ),
    "cost": (
        "Accuracy of the students against the time of a training step and the parameters that are trained "
        "beside the student's own; mean over the seeds ± sample standard deviation."
    ),
    "sampling": (
        "Checkpoint sampling: accuracy of the teacher, and of the student taught by it, against the "
        "teacher's epoch; mean over the seeds ± sample standard deviation. Recipes are drawn side by side."
    ),
    "ranks": (
        "Mean rank of each method over the columns (pair and recipe) by the study's first measure, 1 for the "
        "best. A bar joins methods whose ranks differ by less than Nemenyi's critical difference at 5 %. "
        "Columns that share networks are not independent, as the test would have them."
    ),
    "chains_by_alpha": (
        "Accuracy of the networks of a chain against the weight of the labels, for each step; mean over the "
        "seeds, with a band from the least to the greatest."
    ),
    "chains_by_step": (
        "The same against the step, for each weight of the labels. Step 1 is ordinary training."
    ),
    "reliability": (
        "Reliability: accuracy of the test images in each bin of confidence; the gap to the diagonal is the "
        "calibration error. First pair and seed, 12 networks at most."
    ),
    "tsne": (
        "t-SNE of the test images' features, at most ten classes. First pair and seed, 12 networks at most."
    ),
    "correlation": (
        "Correlation of the logits of two classes over the test images: teacher minus student. First pair "
        "and seed, 12 networks at most."
    ),
    "gradients": (
        "Cosine between the gradients of two loss terms on the first batch of an epoch: below 0 they work "
        "against each other. First pair and seed, 12 networks at most."
    ),
}
DOWNLOADS = ("table.csv", "seeds.csv", "table.md", "table.tex", "table.html", "verdicts.csv")
_ENVIRONMENT = ("kdpipe", "python", "torch", "numpy", "device", "threads")


@dataclass(frozen=True)
class Section:
    """A study as the page's template needs it."""

    study: PlannedStudy
    layout: Layout
    scale: str
    best: str
    curves: tuple[Block, ...]
    figures: tuple[tuple[str, str, str, Told | None], ...]
    downloads: tuple[tuple[str, str], ...]

    @property
    def finished(self) -> int:
        """Runs with a result that did not diverge."""
        return self.layout.total - self.layout.missing - self.layout.collapsed

    @property
    def result(self) -> str:
        """Which student is best, or how many statements of the paper hold, in words."""
        said = Counter(v.verdict for told in self.layout.told for v in told.verdicts)
        told = ", ".join(f"{said[word]} {word}" for word in ("holds", "fails", "undecided") if said[word])
        return "; ".join(filter(None, [self.best, told])) or ("–" if self.alone else "not known yet")

    @property
    def alone(self) -> bool:
        """Whether there is nothing to be best among: one student, or none."""
        return len(self.study.study.methods) < 2 and not self.study.benches


def report(plan: Plan, results: Results) -> Path:
    """Write the report of all studies of a plan from whatever results are there.

    The figures are those that `kdpipe.tables.render.render` has drawn.

    Args:
        plan: the plan.
        results: the results folder.

    Returns:
        The page, `results/report/index.html`: one file that needs no network.

    Raises:
        ResultsError: a result cannot be read, or the page cannot be written.
    """
    sections = [_section(study, plan, results) for study in plan.studies.values()]
    runs = _Runs(plan, results)
    data = {
        "studies": {s.study.name: _study_data(s, runs) for s in sections},
        "runs": runs.rows,
        "shared": runs.shared,
    }
    text = page(
        "report.html",
        sections=sections,
        environments=runs.environments(),
        measures={m: METRICS[m] for s in sections for m in s.study.study.metrics},
        block_title=block_title,
        data=embedded_json(data),
    )
    write_text(results.report, text)
    return results.report


def best_rows(block: Block) -> str:
    """Which row is best most often, in words; empty while no column has a best."""
    wins = Counter(line.label for line in block.lines for e in line.entries if e.mark == "best")
    if not wins:
        return ""
    most = max(wins.values())
    names = " and ".join(label for label, count in wins.items() if count == most)
    return f"{names} (best in {most} of {len(block.columns)} columns)"


class _Runs:
    """The runs' own data: a row for each, with what many share held once and referred to by number."""

    def __init__(self, plan: Plan, results: Results) -> None:
        self.shared: list[list[list[str]]] = []
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self.rows = {name: self._row(p.run, results) for name, p in plan.runs.items()}
        self.rows |= {name: self._bench(p.run, results) for name, p in plan.benches.items()}
        self.index = {name: i for i, name in enumerate(self.rows)}

    def environments(self) -> list[tuple[dict[str, str], int]]:
        """Each distinct environment with the number of runs it made."""
        return [(json.loads(text), count) for text, count in sorted(self._counts.items())]

    def _row(self, run: Run, results: Results) -> dict[str, Any]:
        spec = run.spec
        row: dict[str, Any] = {
            "id": run.id,
            "kind": run.kind,
            "objective": spec.objective.name,
            "settings": [[k, _text(v), run.sources.get(k, "")] for k, v in spec.objective.settings.items()],
            "protocol": [run.protocol, self._number([]) if run.imported else self._share(spec.protocol)],
            "data": [spec.data.dataset, self._share(spec.data)],
        }
        return row | self._made(run.name, results)

    def _bench(self, run: BenchRun, results: Results) -> dict[str, Any]:
        spec = run.spec
        row: dict[str, Any] = {
            "id": run.id,
            "kind": "bench",
            "objective": spec.bench.name,
            "settings": [[k, _text(v), run.sources.get(k, "")] for k, v in spec.bench.settings.items()],
            "protocol": ["", self._number([])],
            "data": [spec.data.name if spec.data else "", self._number([])],
        }
        return row | self._made(run.name, results)

    def _made(self, name: str, results: Results) -> dict[str, Any]:
        """Where a run lies, and what made it in which time."""
        record = read_provenance(results, name)
        row: dict[str, Any] = {"link": f"../runs/{quote(name)}/" if results.run(name).root.is_dir() else None}
        if record:
            environment = _environment(record)
            self._counts[canonical(environment)] += 1
            row["environment"] = self._number([[k, v] for k, v in environment.items()])
            row["seconds"] = record.get("seconds")
        return row

    def _share(self, settings: Frozen) -> int:
        return self._number([[k, _text(v)] for k, v in settings.model_dump(mode="json").items()])

    def _number(self, pairs: list[list[str]]) -> int:
        key = canonical(pairs)
        if key not in self._numbers:
            self._numbers[key] = len(self.shared)
            self.shared.append(pairs)
        return self._numbers[key]


def _section(study: PlannedStudy, plan: Plan, results: Results) -> Section:
    layout = lay_out(study, plan, results)
    folder = results.study(study.name)
    told = {t.name: t for t in layout.told}
    words = FIGURES | {t.name: f"{t.title}. {t.caption}".strip() for t in layout.told}
    figures = [(n, words[n], folder / f"{n}.svg") for n in (*study.figures, *told)]
    return Section(
        study=study,
        layout=layout,
        scale=scale_note(study),
        best=best_rows(layout.blocks[0]) if study.study.pairs else "",
        curves=tuple(b for b in layout.blocks if b.series),
        figures=tuple(
            (n, text, embedded_svg(path), told.get(n)) for n, text, path in figures if path.is_file()
        ),
        downloads=tuple(
            (name, f"../studies/{quote(study.name)}/{name}")
            for name in DOWNLOADS
            if (folder / name).is_file()
        ),
    )


def _study_data(section: Section, runs: _Runs) -> dict[str, Any]:
    """What the page's script needs of a study: its measures' tables and its runs."""
    study = section.study.study
    heads = [(pair_title(p.teacher, p.student), r.label) for p in study.pairs for r in study.recipes]
    blocks = [b for b in section.layout.blocks if b not in section.curves]
    return {
        "columns": [{"pair": pair, "recipe": recipe} for pair, recipe in heads],
        "tables": {block.metric: _block_data(block, runs.index) for block in blocks},
        "runs": [*_run_list(section, runs.index), *_bench_list(section, runs)],
    }


def _block_data(block: Block, index: Mapping[str, int]) -> dict[str, Any]:
    return {
        "title": block.title,
        "better": measure(block.metric).better,
        "rows": [
            {
                "label": line.label,
                "kind": line.kind,
                "cells": [
                    {
                        "text": e.text,
                        "value": e.summary.mean,
                        "mark": e.mark,
                        "note": e.note,
                        "runs": [index[run] for run in e.summary.runs],
                    }
                    for e in line.entries
                ],
            }
            for line in block.lines
        ],
    }


def _run_list(section: Section, index: Mapping[str, int]) -> list[dict[str, Any]]:
    """The study's runs, each once, at its first place in the study, with its main measure."""
    metric = section.study.study.metrics[0]
    places: dict[str, Measurement] = {}
    for m in section.layout.measurements:
        sampled = m.part in ("curve", "kept") and m.row == TEACHER
        if m.run and m.metric == metric and not sampled:
            places.setdefault(m.run, m)
    return [
        {
            "run": index[name],
            "row": m.row,
            "pair": pair_title(m.teacher, m.student),
            "recipe": m.recipe or "",
            "seed": m.seed,
            "epoch": (m.chosen if m.rule else m.epoch) if m.part == "curve" else None,
            "rule": m.rule,
            "status": m.status if m.collapsed_epoch is None else f"collapsed ({m.collapsed_epoch})",
            "value": None if m.value is None else number(m.value, measure(metric).decimals),
        }
        for name, m in places.items()
    ]


def _bench_list(section: Section, runs: _Runs) -> list[dict[str, Any]]:
    """The runs of the study's benches."""
    return [
        {
            "run": runs.index[cell.run],
            "row": cell.label,
            "pair": "",
            "recipe": "",
            "seed": cell.seed,
            "epoch": None,
            "rule": None,
            "status": "finished" if "environment" in runs.rows[cell.run] else "missing",
            "value": None,
        }
        for cell in section.study.benches
    ]


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    """Versions, hardware and code of a run, as words."""
    found = {name: str(record[name]) for name in _ENVIRONMENT if record.get(name) is not None}
    git = record.get("git") or {}
    if git.get("commit"):
        found["code"] = git["commit"][:12] + (", changed since" if git.get("changed") else "")
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
