"""Printed numbers: what the papers' tables say, read from `config/reference` and checked."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from kdpipe.core.errors import ConfigError, DataError, UnknownNameError
from kdpipe.core.measures import METRICS
from kdpipe.plan.plan import TEACHER, Printed

COLUMNS = (
    "paper",
    "table",
    "dataset",
    "teacher",
    "student",
    "teacher_recipe",
    "method",
    "variant",
    "metric",
    "value",
    "std",
    "unit",
    "note",
)
UNITS = {"%": "%", "ms": "ms", "nats": "nats", "MiB": "MiB", "count": "", "fraction": ""}
"""How a table says its unit -> the measures' own name for it."""
_KEY = ("dataset", "teacher", "student", "teacher_recipe", "method", "variant", "metric")


def read_printed(name: str, folder: Path, known: Mapping[str, Collection[str]], where: str) -> list[Printed]:
    """The printed numbers of one table.

    A row is found in a study by its labels: the recipe's label is `teacher_recipe`, the method's is
    `method`, or `method, variant` where there is a variant.

    Args:
        name: of the file in `<folder>/reference`, without its ending.
        folder: the config folder.
        known: names that may stand in the columns `dataset`, `model`, `recipe` and `method`.
        where: who asks, for messages.

    Raises:
        UnknownNameError: there is no such file, or a name in it is in no registry.
        ConfigError: the file is not what it should be; the message names the line.
    """
    path = folder / "reference" / f"{name}.csv"
    if not path.is_file():
        raise UnknownNameError.of(
            "table of printed numbers", name, (f.stem for f in path.parent.glob("*.csv")), where=where
        )
    return list(_rows(path, known))


def _rows(path: Path, known: Mapping[str, Collection[str]]) -> Iterator[Printed]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the printed numbers cannot be read: {error}", where=str(path)) from None
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        yield from _checked(reader, path, known)
    except csv.Error as error:
        raise ConfigError(f"not valid CSV: {error}", where=f"{path}, after line {reader.line_num}") from None


def _checked(
    reader: csv.DictReader[str], path: Path, known: Mapping[str, Collection[str]]
) -> Iterator[Printed]:
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(
            "the first line must name the columns", where=str(path), fix=f"make it {','.join(COLUMNS)}"
        )
    seen: dict[tuple[str, ...], int] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise ConfigError(f"a line has {len(COLUMNS)} values", where=where)
        key = tuple(row[column] for column in _KEY)
        if key in seen:
            raise ConfigError(f"the same number is printed in line {seen[key]}", where=where)
        seen[key] = reader.line_num
        if f"{row['paper']}_{row['table']}" != path.stem:
            raise ConfigError(
                f"the line is of {row['paper']}, {row['table']}",
                where=where,
                fix="move it to that table's file",
            )
        yield _printed(row, known, where)


def _printed(row: Mapping[str, str], known: Mapping[str, Collection[str]], where: str) -> Printed:
    own = row["method"] == TEACHER
    for column in ("dataset", "method"):
        if not row[column]:
            raise ConfigError("a value is missing", where=f"{where}, column '{column}'")
    for column, kind, name in (
        ("dataset", "dataset", row["dataset"]),
        ("teacher", "model", row["teacher"]),
        ("student", "model", row["student"]),
        ("teacher_recipe", "recipe", row["teacher_recipe"].partition(", ")[0]),
        ("method", "method", "" if own else row["method"]),
    ):
        if name and name not in known[kind]:
            raise UnknownNameError.of(kind, name, known[kind], where=f"{where}, column '{column}'")
    if row["metric"] not in METRICS:
        raise UnknownNameError.of("measure", row["metric"], METRICS, where=f"{where}, column 'metric'")
    measure = METRICS[row["metric"]]
    if UNITS.get(row["unit"]) != measure.unit:
        fitting = " or ".join(name for name, unit in UNITS.items() if unit == measure.unit)
        raise ConfigError(
            f"'{row['unit']}' is not the unit of {row['metric']}",
            where=f"{where}, column 'unit'",
            fix=f"convert the value, and write {fitting}",
        )
    if not (row["value"] or row["note"]):
        raise ConfigError(
            "no number and no reason", where=f"{where}, column 'note'", fix="say why the table prints none"
        )
    label = row["method"] if own or not row["variant"] else f"{row['method']}, {row['variant']}"
    return Printed(
        row=label,
        recipe=row["teacher_recipe"] or None,
        teacher=row["teacher"] or None,
        student=row["student"] or None,
        dataset=row["dataset"],
        metric=row["metric"],
        value=_number(row["value"], where),
        std=_number(row["std"], where),
        note=row["note"],
    )


def _number(text: str, where: str) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise ConfigError(f"'{text}' is not a number", where=where)
    return number
