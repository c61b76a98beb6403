"""Packs: which runs train side by side in one job.

A pack holds runs of one depth, so that none waits for another, and as few teachers as possible. It is made of
runs that are still to be trained: a study that is added later packs its own runs, and moves no finished one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from kdpipe.core.files import read_json, write_json
from kdpipe.core.ids import digest
from kdpipe.core.paths import Results
from kdpipe.plan.plan import Plan


@dataclass(frozen=True)
class Packs:
    """The packs of one call of Snakemake.

    Attributes:
        members: name of each pack -> its runs.
        retries: how often Snakemake repeats a job that fails, once it has said so.
    """

    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    retries: int = 0

    @cached_property
    def of(self) -> dict[str, str]:
        """Each run's pack."""
        return {run: pack for pack, runs in self.members.items() for run in runs}

    def write(self, results: Results, retries: int) -> None:
        """Say in the results folder what the packs are, for jobs that run elsewhere.

        Args:
            results: the results folder.
            retries: how often Snakemake repeats a job that fails.
        """
        if self.members or _file(results).is_file():
            write_json(_file(results), {"members": self.members, "retries": retries})


def make_packs(plan: Plan, results: Results, size: int) -> Packs:
    """The packs of a plan's runs that are still to be trained.

    Args:
        plan: the plan.
        results: its results folder.
        size: runs in a pack; with 1 there are no packs.
    """
    if size == 1:
        return Packs()
    todo = to_train(plan, results)
    names = [name for name, planned in plan.runs.items() if name in todo and not planned.run.imported]
    chunks = group(plan, names, size)
    return Packs({_unused(runs, results): runs for runs in chunks})


def read_packs(results: Results) -> Packs:
    """The packs of the call of Snakemake that this job belongs to."""
    if not _file(results).is_file():
        return Packs()
    stored = read_json(_file(results))
    return Packs({pack: tuple(runs) for pack, runs in stored["members"].items()}, stored["retries"])


def _file(results: Results) -> Path:
    return results.packs / "packs.json"


def marker(results: str, pack: str) -> str:
    """The file that says that a pack is done; with `{pack}` for its name, the pattern of all."""
    return f"{results}/packs/{pack}.done"


def group(plan: Plan, names: Iterable[str], size: int) -> list[tuple[str, ...]]:
    """Runs in packs of at most `size`: of one depth, kind and data set; same teacher first.

    Packs are first filled with runs that wait for the same files, then with those of the same teacher that
    are left, then with the rest; within that, runs keep their order. A run on several GPUs is alone.

    Args:
        plan: holds the runs.
        names: of those to pack.
        size: the most runs in a pack.
    """
    depths = _depths(plan)

    def needed(name: str) -> tuple[int, str, str, int]:
        run = plan.runs[name].run
        return depths[name], run.kind, plan.runs[name].data, run.gpus

    packs: list[tuple[str, ...]] = []
    for (*_, gpus), left in _by(names, needed).items():
        most = size if gpus == 1 else 1
        for shared in (plan.teacher_stamps, plan.needs):
            rest: list[str] = []
            for together in _by(left, shared).values():
                whole = len(together) - len(together) % most
                packs += _cut(together[:whole], most)
                rest += together[whole:]
            left = rest
        packs += _cut(left, most)
    return packs


def _by(names: Iterable[str], key: Callable[[str], Iterable[Any]]) -> dict[tuple[Any, ...], list[str]]:
    """Names by their key, in the order in which the keys appear."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        found.setdefault(tuple(key(name)), []).append(name)
    return found


def _cut(names: list[str], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), size):
        yield tuple(names[start : start + size])


def _depths(plan: Plan) -> dict[str, int]:
    """How many trainings come before each run, one after the other."""
    depths: dict[str, int] = {}
    for name in plan.in_order():
        depths[name] = 1 + max((depths[other] for other in plan.needs(name)), default=-1)
    return depths


def to_train(plan: Plan, results: Results) -> set[str]:
    """The runs that are not finished, and those of teachers or data that are not."""
    folders = {planned.data for planned in plan.runs.values()}
    prepared = {data: (results.data(data) / "meta.json").is_file() for data in folders}
    todo: set[str] = set()
    for name in plan.in_order():
        done = prepared[plan.runs[name].data] and results.run(name).status.is_file()
        if not done or not todo.isdisjoint(plan.needs(name)):
            todo.add(name)
    return todo


def _unused(runs: tuple[str, ...], results: Results) -> str:
    """A name for a pack that no earlier pack of the same runs has left its marker under."""
    names = (digest([*runs, attempt]) for attempt in count())
    return next(name for name in names if not Path(marker(str(results.root), name)).exists())
