"""Whether the measurements bear out what a paper states: a verdict on each claim of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Literal, NamedTuple

from kdpipe.core.measures import Measure
from kdpipe.core.plot import Verdict
from kdpipe.plan.chains import alpha_label
from kdpipe.plan.config import scale_epoch
from kdpipe.plan.plan import Plan, PlannedStudy
from kdpipe.plan.study import Cells, Claim
from kdpipe.tables.beside import UNITS, comparable
from kdpipe.tables.blocks import measure, pair_title, signed
from kdpipe.tables.collect import Lasts, Measurement, last_epochs
from kdpipe.tables.statistics import Comparison, Interval, compare

Judgement = Literal["holds", "fails", "undecided"]
METHOD = (
    "Computed from the measurements of this study. Differences are taken seed by seed within a column (data "
    "set, pair of networks, recipe), with 95 % t-intervals that are not corrected for how many there are. "
    "Above, below: holds when the interval lies beyond the margin in every column, fails when it lies short "
    "of it in any. Near: holds when every cell's interval lies within the tolerance of the printed number, "
    "fails when any lies outside. Rising, falling: holds when all means of a column follow the order and "
    "the interval of last minus first excludes nought, fails when the interval of a step, or of last minus "
    "first, points the other way. Best: the best label that is named against the best one that is not. "
    "Collapses: holds when every run diverged, fails at full scale when one did not: a shorter training may "
    "end before it diverges. Anything else, a missing run or a single seed is undecided."
)


class Where(NamedTuple):
    """What a cell is about; None where that does not apply to it."""

    dataset: str
    teacher: str | None
    student: str | None
    recipe: str | None
    row: str
    epoch: str | None


@dataclass
class Seeds:
    """The runs of one cell, for one measure."""

    values: dict[int, float] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    collapsed: set[str] = field(default_factory=set)


Found = Mapping[Where, Seeds]
Rows = Mapping[tuple[str, str], Sequence[tuple[Measurement, int | None]]]
"""By measure and row: the measurements, each with the epochs of its teacher at full scale."""


def judge(study: PlannedStudy, plan: Plan, measurements: Sequence[Measurement]) -> list[Verdict]:
    """A verdict on each claim of a study, in their order.

    Args:
        study: the study.
        plan: the plan that the study is part of.
        measurements: all of them, as `kdpipe.tables.collect.collect` orders them.
    """
    last = last_epochs(study, plan)
    rows: dict[tuple[str, str], list[tuple[Measurement, int | None]]] = {}
    cells = (cell for cell in study.cells for _ in study.study.metrics)
    for m, cell in zip(measurements, cells, strict=True):
        rows.setdefault((m.metric, m.row), []).append((m, cell.full))
    return [_Judge(study, last, rows, claim).verdict() for claim in study.study.claims]


@dataclass(frozen=True)
class _Said:
    judgement: Judgement
    numbers: str


class _Judge:
    """One claim and the measurements."""

    def __init__(self, study: PlannedStudy, last: Lasts, rows: Rows, claim: Claim) -> None:
        self.study, self.last, self.rows, self.claim = study, last, rows, claim
        self.metric = claim.metric or study.study.metrics[0]

    @property
    def shown(self) -> Measure:
        return measure(self.metric)

    @property
    def unit(self) -> str:
        return UNITS.get(self.shown.unit, self.shown.unit)

    def verdict(self) -> Verdict:
        claim, study = self.claim, self.study
        setting = "" if study.scale == "full" else f"scale {study.scale}"
        if study.ran_on:
            setting = f"{setting}, on {study.ran_on}".removeprefix(", ")
        decide = {
            "above": self._ordered,
            "below": self._ordered,
            "near": self._near,
            "rising": self._monotone,
            "falling": self._monotone,
            "best": self._best,
            "collapses": self._collapses,
        }
        said = decide[claim.kind]()
        return Verdict(claim.says, claim.source, said.judgement, said.numbers, setting)

    # Finding the cells

    def _select(self, cells: Cells) -> Found:
        """The cells that are meant, but for those that cannot be made."""
        found: dict[Where, Seeds] = {}
        rows = [cells.row] if cells.row else [row for metric, row in self.rows if metric == self.metric]
        for m, full in (own for row in rows for own in self.rows.get((self.metric, row), [])):
            if m.status in ("skipped", "unmeasured") or not self._meant(cells, m, full):
                continue
            epoch = None if cells.epoch is None else str(cells.epoch)
            where = Where(m.dataset, m.teacher, m.student, m.recipe, m.row, epoch)
            seeds = found.setdefault(where, Seeds())
            if m.value is not None:
                seeds.values[m.seed] = m.value
            elif m.run:
                (seeds.missing if m.status == "missing" else seeds.collapsed).add(m.run)
        return found

    def _meant(self, cells: Cells, m: Measurement, full: int | None) -> bool:
        named = (
            (cells.recipe, m.recipe),
            (cells.teacher, m.teacher),
            (cells.student, m.student),
            (cells.dataset, m.dataset),
        )
        return all(not asked or asked == own for asked, own in named) and self._at(cells, m, full)

    def _at(self, cells: Cells, m: Measurement, full: int | None) -> bool:
        if cells.epoch is None:
            return m.part in ("table", "chain")
        if m.part not in ("curve", "kept") or m.rule or full is None:
            return False
        last = self.last[m.dataset, m.recipe, m.teacher]
        return m.epoch == (last if cells.epoch == "last" else scale_epoch(cells.epoch, full, last))

    def _columns(self, found: Sequence[Found], free: set[str]) -> list[tuple[Where, list[Seeds]]]:
        """The study's columns (and rows, where the claim names none) that have a cell of each of `found`.

        A field that is `free`, because the cells differ in it, tells no columns apart; one that does not
        apply to a cell (the teacher of a student that has none) agrees with any.
        """
        rows = [""] if "row" in free else list(dict.fromkeys(where.row for cells in found for where in cells))
        columns: dict[tuple[Where, ...], list[Seeds]] = {}
        for head in self._heads():
            for row in rows:
                asked = {"row": row, **head}
                own = [_fitting(cells, {k: v for k, v in asked.items() if k not in free}) for cells in found]
                there = [where for where in own if where]
                if len(there) == len(found):
                    columns.setdefault(tuple(there), [c[w] for c, w in zip(found, there, strict=True)])
        return [(_most_told(wheres), seeds) for wheres, seeds in columns.items()]

    def _heads(self) -> Iterator[dict[str, str]]:
        """The columns of the study's tables."""
        about = self.study.study
        for pair in about.pairs:
            for recipe in about.recipes:
                yield {
                    "dataset": pair.dataset or about.dataset,
                    "teacher": pair.teacher,
                    "student": pair.student,
                    "recipe": recipe.label,
                }
        for chain in about.chains:
            for alpha in chain.alphas:
                yield {"dataset": about.dataset, "teacher": chain.label, "recipe": alpha_label(alpha)}

    def _name(self, where: Where) -> str:
        several = len(self.study.study.datasets) > 1
        pair = pair_title(where.teacher, where.student, where.dataset if several else "")
        return ", ".join(filter(None, [pair, where.recipe]))

    # Deciding

    def _ordered(self) -> _Said:
        """Above or below: `cells` minus `than` (or the reverse), seed by seed in every column."""
        claim = self.claim
        assert claim.than is not None
        own, other = self._select(claim.cells), self._select(claim.than)
        given = [c.model_dump(exclude_defaults=True) for c in (claim.cells, claim.than)]
        columns = self._columns([own, other], set(given[0]) & set(given[1]))
        sign = 1 if claim.kind == "above" else -1
        compared = [(self._name(where), compare(a.values, b.values)) for where, (a, b) in columns]
        lean = [_beyond(c.mean, c.interval, sign, claim.margin) for _, c in compared]
        return self._of_columns(lean, compared, [s for _, pair in columns for s in pair])

    def _near(self) -> _Said:
        """Measured minus printed, in every cell that has a printed number."""
        if not comparable(self.study):
            return _Said("undecided", "not at full scale: not compared with printed numbers")
        printed = {
            (p.row, p.recipe, p.teacher, p.student, p.dataset): p.value
            for p in self.study.printed
            if p.metric == self.metric and p.value is not None
        }
        lean, compared, seeds = [], [], []
        for where, own in self._select(self.claim.cells).items():
            value = printed.get((where.row, where.recipe, where.teacher, where.student, where.dataset))
            if value is not None:
                off = compare(own.values, dict.fromkeys(own.values, value))
                lean.append(_within(off.interval, self.claim.tolerance))
                compared.append((", ".join(filter(None, [where.row, self._name(where)])), off))
                seeds.append(own)
        return self._of_columns(lean, compared, seeds, "cells")

    def _monotone(self) -> _Said:
        """Rising or falling: `cells` along `order`, in every column."""
        sign = 1 if self.claim.kind == "rising" else -1
        lean, compared, seeds = [], [], []
        for where, own in self._along():
            steps = [compare(b.values, a.values) for a, b in pairwise(own)]
            whole = compare(own[-1].values, own[0].values)
            follows = all(step.mean is not None and sign * step.mean > 0 for step in steps)
            says = [_beyond(c.mean, c.interval, sign) for c in (whole, *steps)]
            lean.append(_side(follows and says[0] == "holds", "fails" in says))
            compared.append((self._name(where), whole))
            seeds += own
        order = f"last minus first of {', '.join(self.claim.order)}"
        return self._of_columns(lean, compared, seeds, about=order)

    def _best(self) -> _Said:
        """Which label is best lies in `among`: the best of these against the best of the others."""
        claim, higher = self.claim, self.shown.better != "lower"
        lean, compared, seeds = [], [], []
        winners: dict[str, int] = {}
        for where, own in self._along():
            means = {
                label: fmean(each.values.values())
                for label, each in zip(claim.order, own, strict=True)
                if each.values
            }
            order = sorted(means, key=lambda label: means[label], reverse=higher)
            seeds += own
            named = [label for label in order if label in claim.among]
            others = [label for label in order if label not in claim.among]
            if order:
                winners[order[0]] = winners.get(order[0], 0) + 1
            if not (named and others):
                lean.append(_side(bool(named) and len(order) == len(own), False))
                continue
            at = dict(zip(claim.order, own, strict=True))
            c = compare(at[named[0]].values, at[others[0]].values)
            lean.append(_beyond(c.mean, c.interval, 1 if higher else -1))
            compared.append((f"{self._name(where)}: {named[0]} minus {others[0]}", c))
        told = ", ".join(f"{label} in {count}" for label, count in winners.items())
        return self._of_columns(lean, compared, seeds, about=f"best by mean: {told}" if told else "")

    def _collapses(self) -> _Said:
        """All runs of `cells` diverge."""
        found = list(self._select(self.claim.cells).values())
        collapsed = len({run for seeds in found for run in seeds.collapsed})
        finished = sum(len(seeds.values) for seeds in found)
        numbers = f"{collapsed} of {collapsed + finished} runs diverged"
        fails = finished > 0 and comparable(self.study)  # a shorter training may end before it diverges
        return _waiting(_Said(_side(collapsed > 0 and not finished, fails), numbers), found)

    def _along(self) -> list[tuple[Where, list[Seeds]]]:
        """The columns with their cells in the order of the claim's labels."""
        along = self.claim.along
        found = []
        for label in self.claim.order:
            value = int(label) if along == "epoch" and label.isdecimal() else label
            found.append(self._select(self.claim.cells.model_copy(update={along: value})))
        return self._columns(found, {along})

    def _of_columns(
        self,
        lean: Sequence[Judgement],
        compared: Sequence[tuple[str, Comparison]],
        seeds: Sequence[Seeds],
        what: str = "columns",
        about: str = "",
    ) -> _Said:
        """The verdict over all columns, and the numbers that decide it."""
        if not lean:
            return _Said("undecided", f"no {what} of this study have what it is about")
        said = _side(set(lean) == {"holds"}, "fails" in lean)
        parts = [f"{lean.count('holds')} of {len(lean)} {what}"]
        if fails := lean.count("fails"):
            parts[0] += f", against it {fails}"
        parts += [about] if about else []
        parts += list(self._told(compared))
        if collapsed := {run for each in seeds for run in each.collapsed}:
            parts.append(f"{len(collapsed)} diverged")
        return _waiting(_Said(said, "; ".join(parts)), seeds)

    def _told(self, compared: Sequence[tuple[str, Comparison]], most: int = 4) -> Iterator[str]:
        """Each difference, or of many only the least and the greatest."""
        ordered = sorted((c.mean, name, c) for name, c in compared if c.mean is not None)
        if len(ordered) > most:
            yield f"means from {self._signed(ordered[0][0])} to {self._signed(ordered[-1][0])}"
            ordered = [ordered[0], ordered[-1]]
        for mean, name, c in ordered:
            bounds = f" [{', '.join(map(self._signed, c.interval))}]" if c.interval else ""
            yield f"{name}: {self._signed(mean)}{bounds} {self.unit}".rstrip() + f" (n={c.n})"

    def _signed(self, value: float) -> str:
        return signed(value, self.shown.decimals)


def _waiting(said: _Said, seeds: Iterable[Seeds]) -> _Said:
    """The verdict, but undecided while runs that it is about are missing."""
    missing = {run for each in seeds for run in each.missing}
    if not missing:
        return said
    return _Said("undecided", f"{len(missing)} run{'s' * (len(missing) > 1)} missing; {said.numbers}")


def _fitting(cells: Found, asked: Mapping[str, str]) -> Where | None:
    """The first cell that agrees with what is asked, wherever that applies to it."""
    for where in cells:
        if all(getattr(where, name) in (None, value) for name, value in asked.items()):
            return where
    return None


def _most_told(wheres: Sequence[Where]) -> Where:
    """The cell that says most of its column."""
    return max(wheres, key=lambda where: sum(part is not None for part in where))


def _side(holds: bool, fails: bool) -> Judgement:
    return "holds" if holds else "fails" if fails else "undecided"


def _beyond(mean: float | None, interval: Interval | None, sign: int, margin: float = 0.0) -> Judgement:
    """Whether a difference with that sign exceeds a margin; undecided without an interval."""
    if mean is None or interval is None:
        return "undecided"
    low, high = sorted(sign * bound for bound in interval)
    return _side(low > margin, high < margin)


def _within(interval: Interval | None, tolerance: float) -> Judgement:
    """Whether an interval lies within a tolerance of nought."""
    if interval is None:
        return "undecided"
    low, high = interval
    return _side(-tolerance <= low and high <= tolerance, high < -tolerance or low > tolerance)
