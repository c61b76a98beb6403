"""The tables of a study as rows and columns of text, before any file format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from kdpipe.core.files import read_json
from kdpipe.core.paths import Results
from kdpipe.core.plot import Verdict
from kdpipe.plan.chains import alpha_label
from kdpipe.plan.load import study_digest
from kdpipe.plan.plan import TEACHER, Plan, PlannedStudy
from kdpipe.plan.study import Chain, Curve, Pair, Study
from kdpipe.tables.beside import completed
from kdpipe.tables.blocks import (
    Block,
    Column,
    Entry,
    Kind,
    Line,
    Place,
    block_title,
    entry_text,
    measure,
    pair_title,
)
from kdpipe.tables.claims import METHOD, judge
from kdpipe.tables.collect import Measurement, collect, read_provenance
from kdpipe.tables.resampled import Resampled, over_images
from kdpipe.tables.statistics import FEWEST, Summary, summarise

VERSIONS = ("kdpipe", "torch", "numpy", "python")
CLAIMS = "claims"  # name of what is told of the study's own claims


@dataclass(frozen=True)
class Told:
    """Verdicts that stand together: those of a bench's figure, told beside its image, or the study's own."""

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
        told: the verdicts on the study's claims, if it makes any (named `CLAIMS`), and what is told of each
            figure of its benches that is drawn.
        scale: at which scale it was run, in words.
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
    scale: str = ""

    @property
    def tables(self) -> Iterator[Block]:
        """Every table that is shown: each block, and below it those that stand beside it."""
        for block in self.blocks:
            yield block
            yield from block.beside

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
    known = _summaries(measurements, over_images(study.study.bootstrap, plan, results))
    tables = study.study.metrics if study.study.pairs else ()
    blocks = [completed(_table(study, metric, known), study) for metric in tables]
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
        scale=scale_note(study),
        told=(*_claimed(study, plan, measurements), *_told(study, results)),
    )


def _claimed(study: PlannedStudy, plan: Plan, measurements: Sequence[Measurement]) -> Iterator[Told]:
    """The verdicts on the study's own claims, if it makes any."""
    if study.study.claims:
        title = f"Statements of {study.study.paper or 'the paper'}"
        yield Told(CLAIMS, title, METHOD, tuple(judge(study, plan, measurements)))


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


def heading(study: Study, pair: Pair) -> str:
    """A pair's heading in the tables of a study."""
    return pair_title(pair.teacher, pair.student, site(study, pair) if len(study.datasets) > 1 else "")


def site(study: Study, pair: Pair) -> str:
    """The data set of a pair, as cells name it."""
    return pair.dataset or study.dataset


_Key = tuple[str, str, str | None, str | None, str | None, int | str | None, str, str]
"""Part, row, recipe, teacher, student, the teacher's epoch (or the rule that picks it), data set, measure."""


def _summaries(measurements: Iterable[Measurement], resampled: Resampled) -> dict[_Key, Summary]:
    seeds: dict[_Key, list[Measurement]] = {}
    for m in measurements:
        at = m.rule or m.epoch
        key = (m.part, m.row, m.recipe, m.teacher, m.student, at, m.dataset, m.metric)
        seeds.setdefault(key, []).append(m)
    return {key: _summary(group, resampled) for key, group in seeds.items()}


def _summary(seeds: Sequence[Measurement], resampled: Resampled) -> Summary:
    own = [m for m in seeds if m.part == "table"]
    finished = [m.run for m in own if m.run and m.value is not None]
    return summarise(seeds, resampled(own[0].metric, finished) if finished else None)


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
    text = entry_text(summary, measure(metric).decimals)
    return Entry(place, summary, text, remark=summary.reason or "")


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
        lines=tuple(lines),
    )


def _rows(study: PlannedStudy) -> list[tuple[str, Kind]]:
    """Row labels: the teacher, then students without a teacher, then the methods."""
    alone = {c.row for c in study.cells if c.row != TEACHER and c.recipe is None}
    labels = [entry.label for entry in study.study.methods]
    rows: list[tuple[str, Kind]] = [(TEACHER, "teacher")]
    rows += [(label, "scratch") for label in labels if label in alone]
    return rows + [(label, "method") for label in labels if label not in alone]


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
    """The blocks with the number of each remark beside it, and the remarks in order of number."""
    numbers: dict[str, int] = {}

    def of_entry(entry: Entry) -> Entry:
        if not entry.remark:
            return entry
        return replace(entry, note=numbers.setdefault(entry.remark, len(numbers) + 1))

    def of_block(block: Block) -> Block:
        lines = tuple(replace(line, entries=tuple(map(of_entry, line.entries))) for line in block.lines)
        return replace(block, lines=lines, beside=tuple(map(of_block, block.beside)))

    return [of_block(block) for block in blocks], tuple(numbers)


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
    yield from (f"Assumption: {assumption}" for assumption in study.study.assumptions)
    yield f"Plan {study_digest(study)}. {versions(study, results)}".strip()


def _training_notes(study: PlannedStudy) -> Iterable[str]:
    about = study.study
    yield _seeds_note(len({cell.seed for cell in study.cells}))
    if about.pairs:
        yield (
            "Best student of each pair and recipe in bold, second underlined, "
            "among those with every seed finished."
        )
    if any(cell.precision == "float16" for cell in study.cells):
        yield "Teachers' checkpoints before the last epoch are kept in float16: weights rounded to 11 bits."
    data = ", ".join(about.datasets)
    yield f"Selection: last epoch. Data: {data}, {about.split}. Measured on the test set."
    if "best_test_top1" in about.metrics:
        yield "Best on test is of the epoch that the test set itself picks: more than new images would show."


def _seeds_note(seeds: int) -> str:
    """What a number of seeds allows to say."""
    if seeds < 2:
        return "One seed: nothing can be said of the spread; there is no deviation, no interval and no test."
    read = "Mean ± sample standard deviation over n seeds."
    if seeds < FEWEST:
        return f"{read} {seeds} seeds are too few for a test, and their intervals are wide."
    return read


def scale_note(study: PlannedStudy) -> str:
    """At which scale the study was run, on which data, and what that means for its numbers."""
    if study.scale == "full" and not study.ran_on:
        return "Scale: full."
    said = "full" if study.scale == "full" else f"{study.scale}, a reduction"
    if study.ran_on:
        said += f", and run on {study.ran_on} instead of {', '.join(study.study.datasets)}"
    return f"Scale: {said}: not to be compared with numbers at full scale."


def versions(study: PlannedStudy, results: Results) -> str:
    """The software that made the runs; several versions of one are listed together."""
    runs = [*study.runs(), *(cell.run for cell in study.benches)]
    records = [r for r in (read_provenance(results, run) for run in runs) if r]
    parts = []
    for name in VERSIONS:
        seen = sorted({str(r[name]) for r in records if r.get(name)})
        parts += [f"{name} {', '.join(seen)}"] if seen else []
    return f"Made with {'; '.join(parts)}." if parts else ""
