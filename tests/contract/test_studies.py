"""Every study plans at every scale, and what its paper prints and what it asks for are the same cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kdpipe.core import registry
from kdpipe.plan.config import Config, names, read_protocol, read_study
from kdpipe.plan.datasets import all_datasets
from kdpipe.plan.plan import TEACHER, Cell, Plan, PlannedStudy, Printed
from kdpipe.plan.reference import read_printed
from kdpipe.plan.resolve import resolve
from kdpipe.plan.study import Cells, Claim

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
LOADED = {name: read_study(name, CONFIG) for name in names("studies", CONFIG)}
STUDIES = list(LOADED)
PRINTED = [name for name, one in LOADED.items() if one.printed]
TABLES = sorted(file.stem for file in (CONFIG / "reference").glob("*.csv"))
OF_FIGURES = {  # figures that show results; the papers' others are drawings
    "dhkd": (2, 5, 6),
    "soteacher": (1, 2),
    "selfdistill": (2, 3, 4, 5, 6, 7, 8),
    "kernelregime": (1, 2, 3, 4, 5, 6),
}
# Ends the names of files with numbers in running text: of no pair of networks, or of a head that is dropped.
WITHOUT_CELLS = "_text"


@cache
def planned(name: str, scale: str) -> Plan:
    return resolve(Config(study=name, scale=scale, folder=str(CONFIG)))


def study(name: str, scale: str = "full") -> PlannedStudy:
    return planned(name, scale).studies[name]


def key(of: Cell | Printed) -> tuple[str | None, ...]:
    return (of.row, of.recipe, of.teacher, of.student, of.dataset)


def table(name: str, scale: str = "full") -> list[Cell]:
    """The cells of a study's table for its first seed."""
    at = study(name, scale)
    first = min(cell.seed for cell in at.cells)
    return [cell for cell in at.cells if cell.part == "table" and cell.seed == first]


# plans


@pytest.mark.parametrize("scale", ["full", "short", "smoke"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_for_a_cell_and_every_blank_has_a_reason(name: str, scale: str) -> None:
    plan, at = planned(name, scale), study(name, scale)
    assert at.cells or at.benches
    wanted: set[str] = set()
    waiting = at.runs()
    while waiting:
        run = waiting.pop()
        if run not in wanted:
            wanted.add(run)
            waiting += filter(None, (plan.runs[run].teacher, plan.runs[run].part))
    assert wanted == plan.runs.keys()
    assert {bench.run for bench in at.benches} == plan.benches.keys()
    assert not [cell for cell in at.cells if not (cell.run or cell.skipped)]


@pytest.mark.parametrize("name", STUDIES)
def test_smoke_has_the_whole_grid_and_needs_no_data(name: str) -> None:
    plan, smoke, full = planned(name, "smoke"), study(name, "smoke"), study(name)
    for part in ("table", "chain"):
        assert {key(c): c.skipped for c in smoke.cells if c.part == part} == {
            key(c): c.skipped for c in full.cells if c.part == part
        }
    assert {(b.bench, b.label) for b in smoke.benches} == {(b.bench, b.label) for b in full.benches}
    assert len({c.seed for c in smoke.cells} | {b.seed for b in smoke.benches}) == 1
    for run in (p.run for p in plan.runs.values()):
        assert (run.spec.data.dataset, run.spec.start, run.imported) == ("digits", None, None)
        assert run.spec.protocol.epochs <= 2 or run.kind == "part"
    assert {p.run.spec.data.name for p in plan.benches.values() if p.run.spec.data} <= {"digits"}


def test_smoke_keeps_the_published_settings() -> None:
    plan, at = planned("dhkd_table2", "smoke"), study("dhkd_table2", "smoke")
    heads = {plan.runs[c.run].run.spec.method.settings["head"] for c in at.cells if c.row == "dhkd"}
    assert heads == {"mlp"}


@pytest.mark.parametrize(
    ("name", "alpha"), [("dhkd_table1", 0), ("dhkd_table2", 0), ("micc_table1", 0), ("soteacher_table6", 1)]
)
def test_only_soteacher_adds_kd_to_the_methods_of_others(name: str, alpha: int) -> None:
    """Its settings are published for pairs that the other papers' tables have too."""
    plan = planned(name, "full")
    found = {
        plan.runs[c.run].run.spec.method.settings["alpha"]
        for c in study(name).cells
        if c.run and c.row in ("fitnet", "rkd", "crd", "vid")
    }
    assert found == {alpha}


def test_chains_start_from_imported_weights_but_at_smoke() -> None:
    full, smoke = planned("selfdistill_figure6", "full"), planned("selfdistill_figure6", "smoke")
    assert all(p.run.spec.start for p in full.runs.values())
    assert not any(p.run.spec.start for p in smoke.runs.values())


# printed numbers


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_read_and_has_its_study(name: str) -> None:
    known = {
        "dataset": all_datasets(CONFIG),
        "model": registry.models.names(),
        "recipe": registry.recipes.names(),
        "method": registry.methods.names(),
    }
    assert read_printed(name, CONFIG, known, "this test")
    asks = [one for one in PRINTED if LOADED[one].printed == name]
    assert asks == ([] if name.endswith(WITHOUT_CELLS) else [name])


@pytest.mark.parametrize(
    "name", [f"{paper}_figure{number}" for paper, found in OF_FIGURES.items() for number in found]
)
def test_every_figure_of_results_has_its_study(name: str) -> None:
    found = study(name)
    assert found.study.paper == name.partition("_")[0]
    assert found.figures or found.plots


@pytest.mark.parametrize("name", PRINTED)
def test_printed_numbers_and_cells_are_the_same(name: str) -> None:
    """Each number is of one cell. Each cell has its numbers, but those of rows that the table does not print.

    A row that it does not print at all is one of teachers, or of the students where it prints teachers only;
    and a method is not printed for teachers of a recipe that the study does not ask it for.
    """
    found, printed = study(name), study(name).printed
    cells = Counter(key(cell) for cell in table(name))
    assert set(cells.values()) == {1}
    assert {key(number) for number in printed} <= cells.keys()
    measures = dict.fromkeys(number.metric for number in printed)
    assert measures.keys() <= set(found.study.metrics)
    assert Counter((key(n), n.metric) for n in printed) == Counter(
        (place, metric) for place in {key(n) for n in printed} for metric in measures
    )
    rows = {(number.row, number.recipe) for number in printed}
    for cell in table(name):
        if key(cell) in {key(number) for number in printed} or cell.skipped:
            continue
        assert (cell.row, cell.recipe) not in rows
        assert cell.row == TEACHER or {row for row, _ in rows} == {TEACHER}


# claims


def about(cell: Cell, cells: Cells, last: int) -> bool:
    """Whether a cell is one of those that a claim names."""
    epoch = last if cells.epoch == "last" else cells.epoch
    own = {"row": cell.row, "recipe": cell.recipe, "teacher": cell.teacher, "student": cell.student}
    asked = {name: getattr(cells, name) for name in own if getattr(cells, name)}
    if cells.epoch is not None and (cell.part != "curve" or (cell.epoch or last) != epoch):
        return False
    if cells.epoch is None and cell.part not in ("table", "chain"):
        return False
    return all(own[name] == value for name, value in asked.items())


def asked(claim: Claim) -> Iterator[Cells]:
    """Every set of cells that a claim speaks of, one for each label of its order."""
    if claim.order:
        yield from (claim.cells.model_copy(update={claim.along: label}) for label in claim.order)
    else:
        yield claim.cells
        if claim.than:
            yield claim.than


@pytest.mark.parametrize("name", [name for name, one in LOADED.items() if one.claims])
def test_claims_are_about_cells_that_are_there(name: str) -> None:
    found = study(name)
    last = read_protocol(found.study.protocol.teacher, CONFIG).settings.epochs
    for claim in found.study.claims:
        assert (claim.metric or found.study.metrics[0]) in found.study.metrics, claim.says
        assert set(claim.among) <= set(claim.order), claim.says
        for cells in asked(claim):
            there = [c for c in found.cells if about(c, cells, last) and c.run]
            assert there, f"{claim.says} {cells}"
        if claim.kind == "near":
            assert [n for n in found.printed if n.row == claim.cells.row and n.value is not None], claim.says


# make theory


def test_theory_runs_every_bench_and_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "cifar10_two_class").mkdir()  # with its images at hand, no study stands in for another

    def runs(name: str) -> set[str]:
        return set(resolve(Config(study=name, folder=str(CONFIG), data=str(tmp_path))).benches)

    (listed,) = re.findall(r"^THEORY := (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    theory = [runs(name) for name in listed.split(",")]
    together = set().union(*theory)
    assert sum(map(len, theory)) == len(together)
    assert together == set().union(*(runs(n) for n, one in LOADED.items() if one.benches))
