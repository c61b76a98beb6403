"""The tables of a study as rows and columns of text, before any file format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from kdpipe.core.errors import UnknownNameError
from kdpipe.core.files import read_json
from kdpipe.core.measures import METRICS, Measure
from kdpipe.core.paths import Results
from kdpipe.core.plot import Verdict
from kdpipe.plan.chains import alpha_label
from kdpipe.plan.load import study_digest
from kdpipe.plan.plan import TEACHER, Plan, PlannedStudy
from kdpipe.plan.study import Chain, Curve, Pair, Study
from kdpipe.tables.collect import Measurement, collect, read_provenance
from kdpipe.tables.statistics import Mark, Summary, rank, summarise

Kind = Literal["teacher", "scratch", "method", "epoch", "step"]
WIDE = 8  # columns that a page can hold
VERSIONS = ("kdpipe", "torch", "numpy", "python")


@dataclass(frozen=True)
class Place:
    """What one shown number is about; the fields are those of `Cell`."""

    part: str
    row: str
    recipe: str
    teacher: str
    student: str
    epoch: int | None = None
    rule: str | None = None
    dataset: str = ""


@dataclass(frozen=True)
class Entry:
    """One shown cell.

    Attributes:
        place: what it is about.
        summary: its numbers.
        text: the number as shown, e.g. `98.21 ± 0.15 (n=2)`.
        mark: `best` or `second` of its column, if either.
        note: number of the footnote that explains it, if any.
    """

    place: Place
    summary: Summary
    text: str
    mark: Mark | None = None
    note: int | None = None


@dataclass(frozen=True)
class Column:
    """One column under a heading that it may share with its neighbours."""

    group: str
    label: str


@dataclass(frozen=True)
class Line:
    """One row."""

    label: str
    kind: Kind
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """One table: one measure of the study, or one checkpoint-sampling curve.

    Attributes:
        title: its heading, with unit and direction.
        corner: heading of the row labels.
        metric: name of the measure.
        columns: its columns.
        lines: its rows; each has one entry per column.
    """

    title: str
    corner: str
    metric: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def series(self) -> bool:
        """Whether its rows follow each other in time: epochs of a teacher, steps of a chain."""
        return bool(self.lines) and self.lines[0].kind in ("epoch", "step")

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns with one heading: (heading, number of columns)."""
        runs: list[tuple[str, int]] = []
        for column in self.columns:
            if runs and runs[-1][0] == column.group:
                runs[-1] = (column.group, runs[-1][1] + 1)
            else:
                runs.append((column.group, 1))
        return runs

    def printed(self) -> Block:
        """The table as paper and terminals show it: on its side when it has many more columns than rows."""
        if len(self.columns) <= max(WIDE, len(self.lines)):
            return self
        pairs = {column.group for column in self.columns}
        return replace(
            self,
            corner=", ".join(["pair", "recipe"] if len(pairs) > 1 else ["recipe"]),
            columns=tuple(
                Column("" if len(pairs) > 1 else self.columns[0].group, x.label) for x in self.lines
            ),
            lines=tuple(
                Line(
                    f"{column.group}, {column.label}" if len(pairs) > 1 else column.label,
                    "method",
                    tuple(line.entries[index] for line in self.lines),
                )
                for index, column in enumerate(self.columns)
            ),
        )


@dataclass(frozen=True)
class Told:
    """What is told of a bench's figure, beside its image."""

    name: str
    title: str
    caption: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Layout:
    """Everything that is shown of a study.

    Attributes:
        title: one line.
        blocks: the measures' tables, then the curves.
        footnotes: reasons, numbered from 1.
        notes: how to read the numbers and where they come from.
        measurements: what the tables summarise.
        missing: planned runs without a result.
        collapsed: runs that diverged.
        total: planned runs.
        told: of each figure of its benches that is drawn: its name, title, caption and verdicts.
    """

    title: str
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    missing: int
    collapsed: int
    total: int
    told: tuple[Told, ...] = ()

    @cached_property
    def entries(self) -> list[tuple[str, Entry]]:
        """Every (measure, entry) of every block, in order."""
        return [(b.metric, e) for b in self.blocks for line in b.lines for e in line.entries]


def lay_out(study: PlannedStudy, plan: Plan, results: Results) -> Layout:
    """Collect a study's results and arrange them as tables.

    A student without a teacher has one number, which is shown in every recipe's column of its pair;
    likewise a teacher's number in every pair that has that teacher.

    Raises:
        ResultsError: a result cannot be read.
    """
    measurements = collect(study, plan, results)
    known = _summaries(measurements)
    blocks = [_table(study, metric, known) for metric in study.study.metrics if study.study.pairs]
    blocks += [*_curves(study, known), *_kept(study, known), *_chains(study, known)]
    blocks, footnotes = _number_notes(blocks)
    states = {m.run: m.status for m in measurements if m.run and m.status in ("missing", "collapsed")}
    collapsed = sum(status == "collapsed" for status in states.values())
    missing = len(states) - collapsed + len(_missing_benches(study, results))
    return Layout(
        title=study.study.title,
        blocks=tuple(blocks),
        footnotes=footnotes,
        notes=(*_choices(measurements), *_notes(study, results, missing, collapsed)),
        measurements=tuple(measurements),
        missing=missing,
        collapsed=collapsed,
        total=len(study.runs()) + len({cell.run for cell in study.benches}),
        told=tuple(_told(study, results)),
    )


def _missing_benches(study: PlannedStudy, results: Results) -> set[str]:
    return {cell.run for cell in study.benches if not results.run(cell.run).status.is_file()}


def _told(study: PlannedStudy, results: Results) -> Iterable[Told]:
    """What is told of the figures of its benches, of those that are drawn."""
    for name in study.plots:
        path = results.plot(study.name, name)
        if path.is_file():
            record = read_json(path)
            verdicts = tuple(Verdict(**verdict) for verdict in record["verdicts"])
            yield Told(name, record["title"], record["caption"], verdicts)


def measure(name: str) -> Measure:
    """How the measure called `name` is shown.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in METRICS:
        raise UnknownNameError.of("measure", name, METRICS)
    return METRICS[name]


def number(value: float, decimals: int) -> str:
    """A number with fixed decimals and never a negative zero."""
    return f"{value:z.{decimals}f}"


def entry_text(summary: Summary, decimals: int) -> str:
    """A cell as text: `mean ± std (n=2)`, `N.A.(epoch)` if diverged, `…` if missing, `–` if there is none.

    What some seeds lack is said beside the mean of the others: `97.10 (n=1, N.A.(8))`.
    """
    failed = f"N.A.({', '.join(map(str, dict.fromkeys(summary.collapsed)))})" if summary.collapsed else ""
    waiting = "…" if summary.missing else ""
    if summary.mean is None:
        return " ".join(filter(None, [failed, waiting])) or "–"
    spread = "" if summary.std is None else f" ± {number(summary.std, decimals)}"
    inside = ", ".join(filter(None, [f"n={summary.n}", failed, waiting]))
    return f"{number(summary.mean, decimals)}{spread} ({inside})"


def pair_title(teacher: str | None, student: str | None, dataset: str = "") -> str:
    """`teacher → student`, or the only one there is; after the data set where a study has several."""
    networks = " → ".join(filter(None, [teacher, student]))
    return f"{dataset}: {networks}" if dataset else networks


def heading(study: Study, pair: Pair) -> str:
    """A pair's heading in the tables of a study."""
    return pair_title(pair.teacher, pair.student, site(study, pair) if len(study.datasets) > 1 else "")


def site(study: Study, pair: Pair) -> str:
    """The data set of a pair, as cells name it."""
    return pair.dataset or study.dataset


def block_title(name: str) -> str:
    """A measure's heading: title, unit, direction."""
    shown = measure(name)
    details = [shown.unit, f"{shown.better} is better" if shown.better else ""]
    inside = ", ".join(filter(None, details))
    return f"{shown.title} ({inside})" if inside else shown.title


_Key = tuple[str, str, str | None, str | None, str | None, int | str | None, str, str]
"""Part, row, recipe, teacher, student, the teacher's epoch (or the rule that picks it), data set, measure."""


def _summaries(measurements: Iterable[Measurement]) -> dict[_Key, Summary]:
    seeds: dict[_Key, list[Measurement]] = {}
    for m in measurements:
        at = m.rule or m.epoch
        key = (m.part, m.row, m.recipe, m.teacher, m.student, at, m.dataset, m.metric)
        seeds.setdefault(key, []).append(m)
    return {key: summarise(group) for key, group in seeds.items()}


def _entry(known: Mapping[_Key, Summary], place: Place, metric: str) -> Entry:
    """The entry of a place, by its own key, else as a teacher's number, else as that of a student alone."""
    p, at = place, place.rule or place.epoch
    keys: list[_Key] = [
        (p.part, p.row, p.recipe, p.teacher, p.student, at, p.dataset, metric),
        (p.part, p.row, p.recipe, p.teacher, None, at, p.dataset, metric),
        (p.part, p.row, None, None, p.student, at, p.dataset, metric),
    ]
    found = next((known[key] for key in keys if key in known), None)
    summary = found or Summary(None, None, 0, 0, reason="not part of the study")
    return Entry(place, summary, entry_text(summary, measure(metric).decimals))


def _table(study: PlannedStudy, metric: str, known: Mapping[_Key, Summary]) -> Block:
    """The table of one measure: rows are methods, columns are recipes within pairs."""
    heads = [(pair, recipe.label) for pair in study.study.pairs for recipe in study.study.recipes]
    lines = [
        Line(
            row,
            kind,
            tuple(
                _entry(
                    known,
                    Place("table", row, r, p.teacher, p.student, dataset=site(study.study, p)),
                    metric,
                )
                for p, r in heads
            ),
        )
        for row, kind in _rows(study)
    ]
    return Block(
        title=block_title(metric),
        corner="method",
        metric=metric,
        columns=tuple(Column(heading(study.study, p), r) for p, r in heads),
        lines=tuple(_marked(lines, metric)),
    )


def _rows(study: PlannedStudy) -> list[tuple[str, Kind]]:
    """Row labels: the teacher, then students without a teacher, then the methods."""
    alone = {c.row for c in study.cells if c.row != TEACHER and c.recipe is None}
    labels = [entry.label for entry in study.study.methods]
    rows: list[tuple[str, Kind]] = [(TEACHER, "teacher")]
    rows += [(label, "scratch") for label in labels if label in alone]
    return rows + [(label, "method") for label in labels if label not in alone]


def _marked(lines: Sequence[Line], metric: str) -> list[Line]:
    """The lines with the best and second best student of each column marked."""
    shown = measure(metric)
    marks: dict[tuple[int, int], Mark] = {}
    for column in range(len(lines[0].entries)):
        students = {
            (row, column): line.entries[column].summary
            for row, line in enumerate(lines)
            if line.kind != "teacher"
        }
        marks |= rank(students, shown.better, shown.decimals)
    return [
        replace(
            line,
            entries=tuple(
                replace(entry, mark=marks.get((row, column))) for column, entry in enumerate(line.entries)
            ),
        )
        for row, line in enumerate(lines)
    ]


def _curves(study: PlannedStudy, known: Mapping[_Key, Summary]) -> list[Block]:
    """One table per checkpoint-sampling curve and pair: rows are the teacher's epochs, then the rules."""
    metric = study.study.metrics[0]
    return [
        _curve(study, pair, curve, metric, known)
        for curve in study.study.curves
        for pair in study.study.pairs
    ]


def _curve(
    study: PlannedStudy, pair: Pair, curve: Curve, metric: str, known: Mapping[_Key, Summary]
) -> Block:
    method = curve.method
    heads = [(recipe.label, row) for recipe in study.study.recipes for row in (TEACHER, method)]
    own = site(study.study, pair)
    points = [(epoch, None) for epoch in curve_epochs(known, pair, method, own)]
    lines = [
        Line(
            rule or str(epoch),
            "epoch",
            tuple(
                _entry(
                    known,
                    Place("curve", row, recipe, pair.teacher, pair.student, epoch, rule, own),
                    metric,
                )
                for recipe, row in heads
            ),
        )
        for epoch, rule in [*points, *((None, rule) for rule in curve.rules)]
    ]
    about = f"{method} from sampled checkpoints, {heading(study.study, pair)}"
    return Block(
        title=f"{block_title(metric)}: {about}",
        corner="teacher epoch",
        metric=metric,
        columns=tuple(Column(recipe, row) for recipe, row in heads),
        lines=tuple(lines),
    )


def _kept(study: PlannedStudy, known: Mapping[_Key, Summary]) -> list[Block]:
    """One table of the teachers' own numbers at the epochs that the study keeps, if it keeps any."""
    metric = study.study.metrics[0]
    epochs = sorted({key[5] for key in known if key[0] == "kept" and isinstance(key[5], int)})
    teachers = dict.fromkeys((site(study.study, pair), pair.teacher) for pair in study.study.pairs)
    heads = [(*teacher, recipe.label) for teacher in teachers for recipe in study.study.recipes]
    several = len(study.study.datasets) > 1
    lines = [
        Line(
            str(epoch),
            "epoch",
            tuple(
                _entry(known, Place("kept", TEACHER, r, t, "", epoch, dataset=d), metric) for d, t, r in heads
            ),
        )
        for epoch in epochs
    ]
    return [
        Block(
            title=f"{block_title(metric)}: teachers at kept epochs",
            corner="teacher epoch",
            metric=metric,
            columns=tuple(Column(pair_title(t, None, d if several else ""), r) for d, t, r in heads),
            lines=tuple(lines),
        )
    ] * bool(epochs)


def _chains(study: PlannedStudy, known: Mapping[_Key, Summary]) -> list[Block]:
    """One table per chain and measure: rows are steps, columns are the weights of the labels."""
    return [
        Block(
            title=f"{block_title(metric)}: self-distillation of {chain.label}",
            corner="step",
            metric=metric,
            columns=tuple(Column(chain.label, alpha_label(alpha)) for alpha in chain.alphas),
            lines=tuple(
                Line(
                    str(step),
                    "step",
                    tuple(
                        _entry(known, _chain_place(study, chain, step, alpha), metric)
                        for alpha in chain.alphas
                    ),
                )
                for step in range(1, chain.steps + 1)
            ),
        )
        for chain in study.study.chains
        for metric in study.study.metrics
    ]


def _chain_place(study: PlannedStudy, chain: Chain, step: int, alpha: float) -> Place:
    rule = None if chain.pass_on == "last" else chain.pass_on
    return Place("chain", str(step), alpha_label(alpha), chain.label, "", None, rule, study.study.dataset)


def curve_epochs(known: Iterable[_Key], pair: Pair, method: str, dataset: str) -> list[int]:
    """The teacher's epochs on a curve, ascending."""
    return sorted(
        {
            epoch
            for part, row, _, teacher, student, epoch, own, _ in known
            if part == "curve"
            and isinstance(epoch, int)
            and (row, teacher, student, own) == (method, pair.teacher, pair.student, dataset)
        }
    )


def _number_notes(blocks: Iterable[Block]) -> tuple[list[Block], tuple[str, ...]]:
    """The blocks with each reason replaced by its number, and the reasons in order of number."""
    numbers: dict[str, int] = {}

    def numbered(entry: Entry) -> Entry:
        reason = entry.summary.reason
        return replace(entry, note=numbers.setdefault(reason, len(numbers) + 1)) if reason else entry

    done = [
        replace(
            block,
            lines=tuple(
                replace(line, entries=tuple(numbered(e) for e in line.entries)) for line in block.lines
            ),
        )
        for block in blocks
    ]
    return done, tuple(numbers)


def _choices(measurements: Iterable[Measurement]) -> Iterable[str]:
    """Which epochs the rules picked, by recipe and teacher."""
    chosen: dict[str, dict[tuple[str, str], dict[int, int]]] = {}
    for m in measurements:
        if m.rule and m.chosen is not None and m.row == TEACHER:
            who = (m.recipe or "", m.teacher or "")
            chosen.setdefault(m.rule, {}).setdefault(who, {})[m.seed] = m.chosen
    for rule, picked in chosen.items():
        told = [
            f"{recipe} {teacher} {', '.join(map(str, seeds.values()))}"
            for (recipe, teacher), seeds in picked.items()
        ]
        yield f"{rule} picked, seed by seed, the epochs {'; '.join(told)} (by validation images)."


def _notes(study: PlannedStudy, results: Results, missing: int, collapsed: int) -> Iterable[str]:
    total = len(study.runs()) + len({cell.run for cell in study.benches})
    if missing:
        yield f"{missing} of {total} runs missing (…): this table is not complete."
    if collapsed:
        count = "1 run" if collapsed == 1 else f"{collapsed} runs"
        yield f"{count} diverged: N.A.(e) says after which epoch."
    yield scale_note(study)
    if study.benches:
        yield "Verdicts on a paper's statements are computed from the tables that the benches left."
    if study.study.chains:
        yield "Step 1 of a chain learns from the labels alone; all weights of the labels share it."
    if study.cells:
        yield from _training_notes(study)
    yield f"Plan {study_digest(study)}. {versions(study, results)}".strip()


def _training_notes(study: PlannedStudy) -> Iterable[str]:
    yield "Mean ± sample standard deviation over n seeds; one seed has no deviation."
    about = study.study
    if about.pairs:
        yield (
            "Best student of each pair and recipe in bold, second underlined, "
            "among those with every seed finished."
        )
    if any(cell.precision == "float16" for cell in study.cells):
        yield "Teachers' checkpoints before the last epoch are kept in float16: weights rounded to 11 bits."
    yield f"Selection: last epoch. Data: {about.dataset}, {about.split}. Measured on the test set."


def scale_note(study: PlannedStudy) -> str:
    """At which scale the study was run, and what that means for its numbers."""
    if study.scale == "full":
        return "Scale: full."
    return f"Scale: {study.scale}, a reduction: not to be compared with numbers at full scale."


def versions(study: PlannedStudy, results: Results) -> str:
    """The software that made the runs; several versions of one are listed together."""
    runs = [*study.runs(), *(cell.run for cell in study.benches)]
    records = [r for r in (read_provenance(results, run) for run in runs) if r]
    parts = []
    for name in VERSIONS:
        seen = sorted({str(r[name]) for r in records if r.get(name)})
        parts += [f"{name} {', '.join(seen)}"] if seen else []
    return f"Made with {'; '.join(parts)}." if parts else ""
