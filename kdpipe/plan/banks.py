"""Banks: which teachers' logits are stored, and which students read them instead of running their teacher.

Decided anew in each call, for the students that are still to be trained, and without any effect on their
numbers. A marker says that a bank was made; it stays when the bank is deleted, so that no finished student is
disturbed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path

from kdpipe.core.files import read_json, write_json
from kdpipe.core.paths import Results
from kdpipe.plan.config import BankSettings
from kdpipe.plan.packs import to_train
from kdpipe.plan.plan import Plan

LEAST = (
    1e12  # multiply-adds that a new bank must save: some seconds of a processor, as a job of its own costs
)


@dataclass(frozen=True)
class Banks:
    """The banks of one call of Snakemake.

    Attributes:
        of: each student that reads banks -> their names, in the order of its passes.
        markers: name of each of these banks -> that of its marker.
    """

    of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    markers: dict[str, str] = field(default_factory=dict)

    @cached_property
    def marked(self) -> dict[str, str]:
        """Name of each marker -> its bank's."""
        return {marker: bank for bank, marker in self.markers.items()}

    @cached_property
    def readers(self) -> Counter[str]:
        """How many students read each bank."""
        return Counter(chain.from_iterable(self.of.values()))

    def write(self, results: Results) -> None:
        """Say in the results folder what the banks are, for jobs that run elsewhere."""
        if self.of or _file(results).is_file():
            write_json(_file(results), {"of": self.of, "markers": self.markers})


def make_banks(plan: Plan, results: Results, settings: BankSettings) -> Banks:
    """The banks that the students of a plan which are still to be trained read.

    A student whose passes see several views reads a bank for each, or none. Under `auto` a new bank must have
    two readers at least, save more than its job costs, and fit; those come first that save the most work for
    their room. One that is there already costs nothing more.

    Args:
        plan: the plan.
        results: its results folder.
        settings: what the user wants.
    """
    if settings.use == "never":
        return Banks()
    todo = to_train(plan, results)
    of = {name: planned.banks for name, planned in plan.runs.items() if planned.banks and name in todo}
    if settings.use == "auto":
        of = _worth_it(plan, results, of, settings.most_gb)
    wanted = dict.fromkeys(chain.from_iterable(of.values()))
    return Banks(of, {bank: _marker_of(bank, results) for bank in wanted})


def read_banks(results: Results) -> Banks:
    """The banks of the call of Snakemake that this job belongs to."""
    if not _file(results).is_file():
        return Banks()
    stored = read_json(_file(results))
    return Banks({run: tuple(banks) for run, banks in stored["of"].items()}, stored["markers"])


def bank_marker(results: str, name: str) -> str:
    """The file that says that a bank was made; with `{bank}` for its name, the pattern of all."""
    return f"{results}/banks/{name}.done"


@dataclass(frozen=True)
class StoredBank:
    """A bank in the results folder.

    Attributes:
        name: of its folder.
        bytes: the room it takes.
        whole: whether it is finished.
        unread: unfinished students of the plan, or of the last call of Snakemake, that could read it.
    """

    name: str
    bytes: int
    whole: bool
    unread: int


def stored_banks(plan: Plan, results: Results) -> list[StoredBank]:
    """The banks that lie in the results folder, those that the plan does not know included."""
    waiting = _waiting(plan, results)
    return [
        StoredBank(place.name, _size(place), results.bank(place.name).record.is_file(), waiting[place.name])
        for place in _folders(results)
    ]


def _waiting(plan: Plan, results: Results) -> Counter[str]:
    """How many unfinished students could read each bank; another study's may be running."""
    could = {name: plan.runs[name].banks for name in to_train(plan, results)}
    for name, banks in read_banks(results).of.items():
        if not results.run(name).status.is_file():
            could.setdefault(name, banks)
    return Counter(chain.from_iterable(could.values()))


def remove(banks: Iterable[StoredBank], results: Results) -> None:
    """Delete banks; their markers stay."""
    for bank in banks:
        paths = results.bank(bank.name)
        paths.record.unlink(missing_ok=True)  # first: without it the rest counts for nothing
        shutil.rmtree(paths.root)


def _file(results: Results) -> Path:
    return results.banks / "banks.json"


def _folders(results: Results) -> list[Path]:
    return sorted(place for place in results.banks.glob("*") if place.is_dir())


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _worth_it(
    plan: Plan, results: Results, of: Mapping[str, tuple[str, ...]], most_gb: float
) -> dict[str, tuple[str, ...]]:
    """The students for whom banks pay, and theirs: fewer and fewer until all of them do."""
    there = {bank for bank in plan.banks if results.bank(bank).record.is_file()}
    stored = {place.name: _size(place) for place in _folders(results)}
    while True:
        readers = Counter(chain.from_iterable(of.values()))
        saved = {bank: (count - 1) * plan.banks[bank].passes for bank, count in readers.items()}
        made = _that_fit(plan, saved, there, stored, most_gb * 1e9)
        left = {name: banks for name, banks in of.items() if made.issuperset(banks)}
        if len(left) == len(of):
            return left
        of = left


def _that_fit(
    plan: Plan, saved: Mapping[str, int], there: set[str], stored: Mapping[str, int], most: float
) -> set[str]:
    """Those banks that pay and fit into a number of bytes: those that are there, then the most useful ones.

    Args:
        plan: holds the banks.
        saved: multiply-adds that each would save.
        there: banks that are finished.
        stored: bytes of every bank in the results folder.
        most: bytes.
    """
    new = {bank for bank, own in saved.items() if own >= LEAST} - there
    room = most - sum(size for name, size in stored.items() if name not in new)
    chosen = there.intersection(saved)
    for bank in sorted(new, key=lambda bank: (-saved[bank] / plan.banks[bank].bytes, bank)):
        if plan.banks[bank].bytes <= room:
            room -= plan.banks[bank].bytes
            chosen.add(bank)
    return chosen


def _marker_of(bank: str, results: Results) -> str:
    """A name for a bank's marker: one that is not there yet, unless the bank is there as well."""
    if results.bank(bank).record.is_file():
        found = sorted(results.banks.glob(f"{bank}*.done"), key=lambda file: file.stat().st_mtime)
        return found[-1].name.removesuffix(".done") if found else bank
    names = (bank if not attempt else f"{bank}.{attempt + 1}" for attempt in count())
    return next(name for name in names if not Path(bank_marker(str(results.root), name)).exists())
