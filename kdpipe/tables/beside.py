"""What stands beside a table's numbers: ranks, intervals, differences from a baseline, printed numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from kdpipe.core.measures import Measure
from kdpipe.plan.plan import PlannedStudy, Printed
from kdpipe.tables.blocks import Beside, Block, Entry, measure, number, signed
from kdpipe.tables.statistics import EXACT, FEWEST, Comparison, Interval, compare, holm, rank, ranks

UNITS = {"%": "points"}  # a difference of percentages


def comparable(study: PlannedStudy) -> bool:
    """Whether a study's numbers may be compared with printed ones: at full scale, on the data it names."""
    return study.scale == "full" and not study.ran_on


def completed(block: Block, study: PlannedStudy) -> Block:
    """A measure's table with ranks and marks, and with the tables that stand below it."""
    block = _ranked(block)
    block = _compared(block, study.study.baseline)
    block = _printed(block, study)
    below = (_intervals(block), _differences(block, study.study.baseline), _of_the_paper(block, study))
    return replace(block, beside=tuple(table for table in below if table))


def _each(block: Block, change: Callable[[int, int, Entry], Entry]) -> Block:
    """The table with every entry changed, given its row and column."""
    return replace(
        block,
        lines=tuple(
            replace(line, entries=tuple(change(row, column, e) for column, e in enumerate(line.entries)))
            for row, line in enumerate(block.lines)
        ),
    )


def _students(block: Block, column: int) -> dict[int, Entry]:
    """The entries of a column that compete: row -> entry."""
    return {row: x.entries[column] for row, x in enumerate(block.lines) if x.kind != "teacher"}


def _ranked(block: Block) -> Block:
    """The table with the students of each column ranked, and the best and second best marked."""
    shown = measure(block.metric)
    marks, places = [], []
    for column in range(len(block.columns)):
        students = {row: entry.summary for row, entry in _students(block, column).items()}
        marks.append(rank(students, shown.better, shown.decimals))
        places.append(ranks(students, shown.better, shown.decimals))
    return _each(
        block, lambda row, column, e: replace(e, mark=marks[column].get(row), rank=places[column].get(row))
    )


def _compared(block: Block, baseline: str) -> Block:
    """The table with every student compared with the baseline of its column."""
    base = next((line for line in block.lines if line.label == baseline), None)
    if base is None:
        return block
    found: list[dict[int, Comparison]] = []
    for column, entry in enumerate(base.entries):
        against = dict(entry.summary.values)
        rows = _students(block, column)
        own = {
            row: compare(dict(e.summary.values), against)
            for row, e in rows.items()
            if e.place.row != baseline
        }
        corrected = holm({row: c.p for row, c in own.items() if c.p is not None})
        found.append({row: replace(c, p_holm=corrected.get(row)) for row, c in own.items()})
    return _each(block, lambda row, column, e: replace(e, comparison=found[column].get(row)))


def _printed(block: Block, study: PlannedStudy) -> Block:
    """The table with every cell's printed number, if the paper has one for it."""
    known = {
        (p.row, p.recipe or None, p.teacher or None, p.student or None, p.dataset): p
        for p in study.printed
        if p.metric == block.metric
    }
    if not known:
        return block
    decimals = min(measure(block.metric).decimals, max(map(_decimals, known.values())))

    def beside(entry: Entry) -> Beside | None:
        p = entry.place
        keys = [
            (p.row, p.recipe, p.teacher, p.student, p.dataset),
            (p.row, p.recipe, p.teacher, None, p.dataset),
            (p.row, None, None, p.student, p.dataset),
        ]
        own = next((known[key] for key in keys if key in known), None)
        if own is None:
            return None
        made = Beside(printed_text(own, decimals), own.value, own.std, own.note)
        return _difference(made, entry) if comparable(study) else made

    return _each(block, lambda _row, _column, e: replace(e, printed=beside(e)))


def _difference(beside: Beside, entry: Entry) -> Beside:
    mean = entry.summary.mean
    if beside.value is None or mean is None:
        return beside
    difference = mean - beside.value
    spread = math.hypot(entry.summary.std or 0.0, beside.std or 0.0)
    return replace(beside, difference=difference, in_std=difference / spread if spread else None)


def printed_text(printed: Printed, decimals: int) -> str:
    """A printed number as text; `N.A.(8)` where the paper reports that the run collapsed, `–` for none."""
    doubt = " ?" if printed.doubtful else ""
    if printed.value is None:
        collapsed = re.search(r"collapsed(?: at epoch (\d+))?", printed.note)
        if not collapsed:
            return f"–{doubt}"
        return (f"N.A.({collapsed[1]})" if collapsed[1] else "N.A.") + doubt
    spread = "" if printed.std is None else f" ± {number(printed.std, decimals)}"
    return f"{number(printed.value, decimals)}{spread}{doubt}"


def _decimals(printed: Printed) -> int:
    """Digits after the point that a printed number needs."""
    return max(len(str(value).partition(".")[2]) for value in (printed.value or 0, printed.std or 0))


def _below(
    block: Block,
    title: str,
    text: Callable[[Entry], str],
    notes: Iterable[str],
    remark: Callable[[Entry], str] = lambda _: "",
    detail: bool = False,
    pale: bool = False,
) -> Block | None:
    """A table of the same cells with other text, without the rows and columns that have none."""
    words = [[text(entry) for entry in line.entries] for line in block.lines]
    shown = [column for column in range(len(block.columns)) if any(row[column] for row in words)]
    lines = tuple(
        replace(
            line,
            entries=tuple(
                replace(line.entries[c], text=row[c] or "–", remark=remark(line.entries[c]), mark=None)
                for c in shown
            ),
        )
        for line, row in zip(block.lines, words, strict=True)
        if any(row)
    )
    return (
        replace(
            block,
            title=f"{block.title}: {title}",
            columns=tuple(block.columns[c] for c in shown),
            lines=lines,
            notes=tuple(notes),
            detail=detail,
            pale=pale,
        )
        if lines
        else None
    )


def _intervals(block: Block) -> Block | None:
    shown = measure(block.metric)
    resampled = any(e.summary.resampled for line in block.lines for e in line.entries)

    def text(entry: Entry) -> str:
        summary = entry.summary
        over_seeds = _bounds(summary.interval, shown) if summary.interval else ""
        over_images = f"images {_bounds(summary.resampled, shown)}" if summary.resampled else ""
        return "; ".join(filter(None, [over_seeds, over_images]))

    notes = ["Student's t over seeds: where the mean of ever more seeds would lie; one seed has none."]
    notes += [
        "After 'images': percentile bootstrap over test images, the same ones for all seeds: how much the "
        "mean of these very networks would move with another test set."
    ] * resampled
    return _below(block, "95 % intervals", text, notes, detail=True)


def _bounds(interval: Interval, shown: Measure, form: Callable[[float, int], str] = number) -> str:
    return f"[{', '.join(form(bound, shown.decimals) for bound in interval)}]"


def _differences(block: Block, baseline: str) -> Block | None:
    shown = measure(block.metric)
    most = max((e.comparison.n for x in block.lines for e in x.entries if e.comparison), default=0)

    def text(entry: Entry) -> str:
        return comparison_text(entry.comparison, shown) if entry.comparison else ""

    unit = UNITS.get(shown.unit, shown.unit)
    notes = [
        f"Row minus {baseline}, seed by seed within a column{f', in {unit}' if unit else ''}: mean and 95 % "
        "t-interval; d, Cohen's d_z (mean over standard deviation of the differences); p, paired t test, "
        "after Holm's correction over the rows of the column; W, exact Wilcoxon test, not corrected, from "
        f"{EXACT} pairs on."
    ]
    if most < 2:
        notes = ["One seed: too few for an interval or a test; a difference of one pair says nothing sure."]
    elif most < FEWEST:
        notes.append(f"{most} pairs of seeds: too few for a test, which takes {FEWEST}.")
    return _below(block, f"difference from {baseline}", text, notes)


def comparison_text(comparison: Comparison, shown: Measure) -> str:
    """A comparison as text: `+0.53 [+0.21, +0.85], d 1.9, p 0.036`; of few pairs, their number."""
    if comparison.mean is None:
        return ""
    words = signed(comparison.mean, shown.decimals)
    if not comparison.interval:
        return f"{words} (1 pair)"
    if not comparison.std:
        return f"{words} (in all {comparison.n} pairs)"
    words += f" {_bounds(comparison.interval, shown, signed)}"
    if comparison.p is None:
        return f"{words} ({comparison.n} pairs)"
    corrected = comparison.p if comparison.p_holm is None else comparison.p_holm
    words += f", d {number(comparison.effect or 0.0, 1)}, p {p_text(corrected)}"
    return words if comparison.p_exact is None else f"{words}, W {p_text(comparison.p_exact)}"


def p_text(p: float) -> str:
    """A p-value with three decimals."""
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def beside_text(entry: Entry, shown: Measure) -> str:
    """What a paper prints for a cell and how far the mean is from it: `73.73 ± 0.13; -0.12 (-0.6 s)`."""
    beside = entry.printed
    if beside is None or beside.difference is None:
        return beside.text if beside else ""
    in_std = f" ({signed(beside.in_std, 1)} s)" if beside.in_std is not None else ""
    return f"{beside.text}; {signed(beside.difference, shown.decimals)}{in_std}"


def _of_the_paper(block: Block, study: PlannedStudy) -> Block | None:
    shown = measure(block.metric)
    unit = UNITS.get(shown.unit, shown.unit)
    compares = comparable(study)

    notes = [
        f"Printed; then measured minus printed{f' in {unit}' if unit else ''} and, in brackets, in standard "
        "deviations s: of the measured seeds and the printed one together (added in squares), or the one "
        "that is known. ? marks a doubtful reading."
        if compares
        else "Printed at full scale and shown for orientation: the runs of this study are not at full scale, "
        "so no difference is given. ? marks a doubtful reading."
    ]
    title = f"printed in {study.study.paper or 'the paper'}"
    return _below(
        block,
        title if compares else f"{title}, at full scale",
        lambda entry: beside_text(entry, shown),
        notes,
        lambda entry: entry.printed.note if entry.printed else "",
        pale=not compares,
    )
