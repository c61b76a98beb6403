"""The report: a small site with every study's tables, figures, runs and where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdpipe.core.measures import METRICS
from kdpipe.core.paths import Results
from kdpipe.plan.plan import TEACHER, Plan, PlannedStudy
from kdpipe.tables.beside import beside_text
from kdpipe.tables.blocks import Block, Entry, block_title, measure, number, pair_title
from kdpipe.tables.collect import Measurement
from kdpipe.tables.layout import CLAIMS, Layout, Told, lay_out, scale_note
from kdpipe.tables.pages import FOLDER, Site, page, script
from kdpipe.tables.report_plugins import write_plugins
from kdpipe.tables.report_runs import RunPages

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
FOLDERS = ("studies", "runs", "methods", "recipes", "data", "figures", "parts")
PARTS = ("style.css", "site.js", "study.js", "run.js")
_VERDICTS = ("holds", "fails", "undecided")


@dataclass(frozen=True)
class Figure:
    """A figure as the template needs it: its name, caption, files by ending, and verdicts if any."""

    name: str
    caption: str
    files: tuple[tuple[str, str], ...]
    told: Told | None


@dataclass(frozen=True)
class Section:
    """A study as the page's template needs it."""

    study: PlannedStudy
    layout: Layout
    scale: str
    best: str
    figures: tuple[Figure, ...]
    downloads: tuple[tuple[str, str], ...]

    @property
    def link(self) -> str:
        """Its page within the report."""
        return f"studies/{quote(self.study.name)}.html"

    @property
    def finished(self) -> int:
        """Runs with a result that did not diverge."""
        return self.layout.total - self.layout.missing - self.layout.collapsed

    @property
    def claims(self) -> Told | None:
        """The verdicts on the claims that its file lists."""
        return next((told for told in self.layout.told if told.name == CLAIMS), None)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many statements of the paper hold, fail and are undecided."""
        said: Counter[str] = Counter(v.verdict for told in self.layout.told for v in told.verdicts)
        return {word: said[word] for word in _VERDICTS}

    @property
    def result(self) -> str:
        """Which student is best, in words."""
        alone = len(self.study.study.methods) < 2
        return self.best or ("–" if alone or self.study.benches else "not known yet")


def report(plan: Plan, results: Results, uri: str | None = None) -> Path:
    """Write the report of all studies of a plan from whatever results are there.

    The figures are those that `kdpipe figure` has drawn.

    Args:
        plan: the plan.
        results: the results folder.
        uri: MLflow's address, for links to its pages of the runs.

    Returns:
        The first page, `results/report/index.html`. The report needs no network, and no other file of the
        results folder but for what it links to there.

    Raises:
        ResultsError: a result cannot be read, or the pages cannot be written.
    """
    sections = [_section(study, plan, results) for study in plan.studies.values()]
    with Site(results.report.parent, results.report.name, FOLDERS) as site:
        for part in PARTS:
            site.copy(FOLDER / part, f"parts/{part}")
        runs = RunPages(site, plan, results, _measurements(sections), uri)
        runs.write()
        for section in sections:
            _write_study(site, section, results)
        plugins = write_plugins(site, plan, {s.study.name: s.layout for s in sections})
        measures = {m: METRICS[m] for s in sections for m in s.study.study.metrics}
        environments = runs.environments.listed(plan)
        site.write("data/made.js", script("made", [names for _, names, _ in environments]))
        shared = {"environments": environments, "sections": sections, "plugins": plugins}
        for name in ("how-to-read", "provenance", "index"):
            text = page(f"report_{name}.html", measures=measures, block_title=block_title, **shared)
            site.write(f"{name}.html", text)
    return results.report


def best_rows(block: Block) -> str:
    """Which row is best most often, in words; empty while no column has a best."""
    wins = Counter(line.label for line in block.lines for e in line.entries if e.mark == "best")
    if not wins:
        return ""
    most = max(wins.values())
    names = " and ".join(label for label, count in wins.items() if count == most)
    return f"{names} (best in {most} of {len(block.columns)} columns)"


def _measurements(sections: Iterable[Section]) -> Iterable[Measurement]:
    return (m for section in sections for m in section.layout.measurements)


def _section(study: PlannedStudy, plan: Plan, results: Results) -> Section:
    layout = lay_out(study, plan, results)
    folder = results.study(study.name)
    return Section(
        study=study,
        layout=layout,
        scale=scale_note(study),
        best=best_rows(layout.blocks[0]) if study.study.pairs else "",
        figures=tuple(_figures(study, layout, folder)),
        downloads=tuple(
            (name, f"../../studies/{quote(study.name)}/{name}")
            for name in DOWNLOADS
            if (folder / name).is_file()
        ),
    )


def _figures(study: PlannedStudy, layout: Layout, folder: Path) -> Iterable[Figure]:
    """The figures that are drawn."""
    told = {t.name: t for t in layout.told}
    words = FIGURES | {t.name: f"{t.title}. {t.caption}".strip() for t in layout.told}
    for name in (*study.figures, *told):
        if (folder / f"{name}.svg").is_file():
            files = tuple(
                (end, f"../../studies/{quote(study.name)}/{quote(name)}.{end.lower()}")
                for end in ("SVG", "PNG", "CSV")
                if (folder / f"{name}.{end.lower()}").is_file()
            )
            yield Figure(name, words.get(name, name.replace("_", " ")), files, told.get(name))


def _write_study(site: Site, section: Section, results: Results) -> None:
    """A study's page, its figures, and the data that the page loads."""
    name = section.study.name
    folder = results.study(name)
    for figure in section.figures:
        site.copy(folder / f"{figure.name}.svg", f"figures/{name}/{figure.name}.svg")
    places = _places(section, results)
    index = {run: i for i, run in enumerate(places)}
    blocks = [b for main in section.layout.blocks if not main.series for b in (main, *main.beside)]
    series = [b for b in section.layout.blocks if b.series]
    tables = {
        "runs": list(index),
        "measures": [_block_data(b, index, b in section.layout.blocks) for b in blocks],
        "series": [_block_data(b, index) for b in series],
    }
    site.write(f"data/{name}.tables.js", script("tables", tables))
    site.write(f"data/{name}.runs.js", script("runs", list(places.values())))
    text = page(
        "report_study.html",
        s=section,
        about=section.study.study,
        buttons=_buttons(blocks),
        series=series,
        pairs=list(dict.fromkeys(c.group for b in blocks for c in b.columns)),
        recipes=list(dict.fromkeys(c.label for b in blocks for c in b.columns)),
        printed=any(e.printed for _, e in section.layout.entries),
        main=block_title(section.study.study.metrics[0]),
    )
    site.write(f"studies/{name}.html", text)


def _buttons(blocks: list[Block]) -> list[tuple[str, str]]:
    """What the button of each table says, and what the measure is."""
    shown = []
    for block in blocks:
        own, what = measure(block.metric), block.title.removeprefix(block_title(block.metric))
        shown.append((f"{own.title}{what}", " ".join(block.notes) if what else own.about))
    return shown


def _block_data(block: Block, index: Mapping[str, int], main: bool = True) -> dict[str, Any]:
    """A table for the page's script; one that stands below another (not `main`) says no printed numbers."""
    return {
        "title": block.title,
        "corner": block.corner,
        "better": measure(block.metric).better,
        "columns": [[c.group, c.label] for c in block.columns],
        "rows": [
            [line.label, line.kind, [_cell_data(block, main, e, index) for e in line.entries]]
            for line in block.lines
        ],
        "notes": list(block.notes),
        "pale": block.pale,
    }


def _cell_data(block: Block, main: bool, entry: Entry, index: Mapping[str, int]) -> list[Any]:
    """Text, value, runs, mark, footnote, and what stands beside, without what is empty at the end."""
    runs = [index[run] for run in entry.summary.runs if run in index]
    said = f"printed {beside_text(entry, measure(block.metric))}" if entry.printed and main else None
    cell = [entry.text, entry.summary.mean, runs, entry.mark, entry.note, said]
    while cell and cell[-1] in (None, []):
        cell.pop()
    return cell


def _places(section: Section, results: Results) -> dict[str, list[Any]]:
    """The study's runs, each once, at its first place: row, recipe, networks, seed, status, number."""
    metric = section.study.study.metrics[0]
    several = len(section.study.study.datasets) > 1
    found: dict[str, list[Any]] = {}
    for m in section.layout.measurements:
        sampled = m.part in ("curve", "kept") and m.row == TEACHER
        if m.run and m.metric == metric and not sampled and m.run not in found:
            at = (m.chosen if m.rule else m.epoch) if m.part == "curve" else None
            row = m.row if at is None else f"{m.row} from teacher epoch {at}"
            status = m.status if m.collapsed_epoch is None else f"collapsed ({m.collapsed_epoch})"
            found[m.run] = [
                f"{row} ({m.rule})" if m.rule else row,
                m.recipe or "",
                pair_title(m.teacher, m.student, m.dataset if several else ""),
                m.seed,
                status,
                None if m.value is None else number(m.value, measure(metric).decimals),
            ]
    for cell in section.study.benches:
        status = "finished" if results.run(cell.run).status.is_file() else "missing"
        found[cell.run] = [cell.label, "", "", cell.seed, status, None]
    return found
