"""Mean, standard deviation, and which rows are best."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, TypeVar

from kdpipe.tables.collect import Measurement

Key = TypeVar("Key", bound=Hashable)
Mark = Literal["best", "second"]


@dataclass(frozen=True)
class Summary:
    """What the seeds of one cell say about one measure.

    Attributes:
        mean: arithmetic mean over the finished seeds; None when none has finished.
        std: sample standard deviation (denominator n - 1); None when n < 2.
        n: finished seeds.
        planned: all seeds of the cell.
        collapsed: epochs at which runs diverged, ascending.
        missing: seeds whose run is not made yet.
        reason: why the cell is empty for good: skipped, or the measure does not apply.
        runs: folders of the runs, in order of seed.
        ids: their run ids.
    """

    mean: float | None
    std: float | None
    n: int
    planned: int
    collapsed: tuple[int, ...] = ()
    missing: int = 0
    reason: str | None = None
    runs: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every planned seed has a value."""
        return 0 < self.n == self.planned


def summarise(seeds: Iterable[Measurement]) -> Summary:
    """Summary of one cell and one measure over its seeds."""
    seeds = sorted(seeds, key=lambda m: m.seed)
    values = [m.value for m in seeds if m.value is not None]
    reasons = [m.reason or "cannot be made" for m in seeds if m.status == "skipped"]
    reasons += ["the measure does not apply" for m in seeds if m.status == "unmeasured"]
    return Summary(
        mean=fmean(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
        n=len(values),
        planned=len(seeds),
        collapsed=tuple(sorted(m.collapsed_epoch for m in seeds if m.collapsed_epoch is not None)),
        missing=sum(m.status == "missing" for m in seeds),
        reason=reasons[0] if reasons else None,
        runs=tuple(m.run for m in seeds if m.run),
        ids=tuple(m.run_id for m in seeds if m.run_id),
    )


def rank(
    column: Mapping[Key, Summary], better: Literal["higher", "lower"] | None, decimals: int
) -> dict[Key, Mark]:
    """The best and the second best of a column.

    Only complete cells compete, at the precision that is printed, so that equal text is equally
    marked; all that tie share the mark. A column with fewer than two complete cells has no best.

    Args:
        column: the competing cells of one column.
        better: direction of the measure; None marks nothing.
        decimals: printed decimals.
    """
    means = {key: round(s.mean, decimals) for key, s in column.items() if s.complete and s.mean is not None}
    if better is None or len(means) < 2:
        return {}
    first, *others = sorted(set(means.values()), reverse=better == "higher")
    marks: dict[Key, Mark] = {key: "best" for key, value in means.items() if value == first}
    if others and len(marks) == 1:
        marks |= {key: "second" for key, value in means.items() if value == others[0]}
    return marks
