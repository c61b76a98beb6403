"""Tables as rows and columns of text: what one consists of, and how its numbers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kdpipe.core.errors import UnknownNameError
from kdpipe.core.measures import METRICS, Measure
from kdpipe.tables.statistics import Comparison, Mark, Summary

Kind = Literal["teacher", "scratch", "method", "epoch", "step"]
WIDE = 8  # columns that a page can hold


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

    @property
    def pair(self) -> str:
        """Its networks, after its data set if that is known."""
        return pair_title(self.teacher, self.student, self.dataset)


@dataclass(frozen=True)
class Beside:
    """What a paper prints for a cell.

    Attributes:
        text: as printed: `73.73 ± 0.13`, `N.A.(8)`, `–`; a `?` follows where the reading is doubtful.
        value, std: the same as numbers, in the measure's unit.
        note: what there is to say of it.
        difference: measured mean minus printed value, in the measure's unit; None where they cannot be
            compared.
        in_std: the difference in standard deviations: sqrt(measured² + printed²), or the one that is known.
    """

    text: str
    value: float | None
    std: float | None
    note: str
    difference: float | None = None
    in_std: float | None = None


@dataclass(frozen=True)
class Entry:
    """One shown cell.

    Attributes:
        place: what it is about.
        summary: its numbers.
        text: the number as shown, e.g. `98.21 ± 0.15 (n=2)`.
        mark: `best` or `second` of its column, if either.
        note: number of the footnote that explains it, if any.
        remark: that footnote.
        rank: within its column, 1 for the best.
        comparison: with the baseline of its column.
        printed: what the paper prints for it.
    """

    place: Place
    summary: Summary
    text: str
    mark: Mark | None = None
    note: int | None = None
    remark: str = ""
    rank: float | None = None
    comparison: Comparison | None = None
    printed: Beside | None = None


Filter = dict[str, str]
"""Pair, recipe and method that some cells have in common, each where they do."""


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
        notes: how to read it, where that holds for this table alone.
        beside: tables of the same cells that stand below it: intervals, differences, printed numbers.
        detail: whether it is left out where there is little room, on terminals.
        pale: whether its numbers are of something else than was measured here, and are shown as such.
    """

    title: str
    corner: str
    metric: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    beside: tuple[Block, ...] = ()
    detail: bool = False
    pale: bool = False

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

    @property
    def filters(self) -> tuple[list[Filter], list[Filter]]:
        """What the cells of each column have in common, and those of each row."""
        columns = zip(*(line.entries for line in self.lines), strict=True)
        return [_shared(column) for column in columns], [_shared(line.entries) for line in self.lines]

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


def _shared(entries: Sequence[Entry]) -> Filter:
    named = {
        "pair": {e.place.pair for e in entries},
        "recipe": {e.place.recipe for e in entries},
        "method": {e.place.row for e in entries},
    }
    return {key: values.pop() for key, values in named.items() if len(values) == 1}


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


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; nought has none."""
    shown = number(value, decimals)
    return f"+{shown}" if float(shown) > 0 else shown


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


def block_title(name: str) -> str:
    """A measure's heading: title, unit, direction."""
    shown = measure(name)
    details = [shown.unit, f"{shown.better} is better" if shown.better else ""]
    details += ["picked on the test set"] * (name == "best_test_top1")
    inside = ", ".join(filter(None, details))
    return f"{shown.title} ({inside})" if inside else shown.title
