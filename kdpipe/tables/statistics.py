"""What the seeds say: mean, spread, intervals, differences from a baseline, and which rows are best."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kdpipe.tables.collect import Measurement

Key = TypeVar("Key", bound=Hashable)
Mark = Literal["best", "second"]
Interval = tuple[float, float]
FEWEST = 3  # pairs of seeds that a test is made of
EXACT = 6  # with fewer pairs, no outcome of the exact Wilcoxon test is below 0.05
_ROUNDING = 1e-9  # spread of differences, as a share of the values, that is rounding and no spread


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
        values: of each finished seed: (seed, value).
        resampled: 95 % interval over test images, where the study asks for one.
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
    values: tuple[tuple[int, float], ...] = ()
    resampled: Interval | None = None

    @property
    def complete(self) -> bool:
        """Whether every planned seed has a value."""
        return 0 < self.n == self.planned

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean over seeds, mean ± t(n - 1) std / sqrt(n); None when n < 2."""
        return None if self.mean is None else t_interval(self.mean, self.std, self.n)


@dataclass(frozen=True)
class Comparison:
    """A cell against the baseline of its column: own minus baseline, paired by seed.

    Attributes:
        n: seeds that both have.
        mean: mean difference, in the measure's unit; None when n is 0.
        std: sample standard deviation of the differences; None when n < 2.
        p: two-sided paired t test; None when n < `FEWEST` or the differences do not vary.
        p_exact: two-sided exact Wilcoxon signed-rank test; None when n < `EXACT` or as above.
        p_holm: `p` after Holm's correction over the rows of the column.
    """

    n: int
    mean: float | None = None
    std: float | None = None
    p: float | None = None
    p_exact: float | None = None
    p_holm: float | None = None

    @property
    def interval(self) -> Interval | None:
        """95 % t-interval of the mean difference; None when n < 2."""
        return None if self.mean is None else t_interval(self.mean, self.std, self.n)

    @property
    def effect(self) -> float | None:
        """Cohen's d_z: the mean difference in standard deviations of the differences; None without spread."""
        return self.mean / self.std if self.mean is not None and self.std else None


def summarise(seeds: Iterable[Measurement], resampled: Interval | None = None) -> Summary:
    """Summary of one cell and one measure over its seeds."""
    seeds = sorted(seeds, key=lambda m: m.seed)
    values = [(m.seed, m.value) for m in seeds if m.value is not None]
    numbers = [value for _, value in values]
    mean = fmean(numbers) if numbers else None
    reasons = [m.reason or "cannot be made" for m in seeds if m.status == "skipped"]
    reasons += ["the measure does not apply" for m in seeds if m.status == "unmeasured"]
    return Summary(
        mean=mean,
        std=_deviation(numbers, mean) if mean is not None and len(numbers) > 1 else None,
        n=len(values),
        planned=len(seeds),
        collapsed=tuple(sorted(m.collapsed_epoch for m in seeds if m.collapsed_epoch is not None)),
        missing=sum(m.status == "missing" for m in seeds),
        reason=reasons[0] if reasons else None,
        runs=tuple(m.run for m in seeds if m.run),
        ids=tuple(m.run_id for m in seeds if m.run_id),
        values=tuple(values),
        resampled=resampled,
    )


def _deviation(values: Sequence[float], mean: float) -> float:
    """Sample standard deviation; `statistics.stdev` takes ten times as long, which large studies feel."""
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_interval(mean: float, std: float | None, n: int) -> Interval | None:
    """95 % interval of a mean, mean ± t(n - 1) std / sqrt(n) (Student 1908); None when n < 2."""
    if std is None or n < 2:
        return None
    half = _t_quantile(n - 1) * std / math.sqrt(n)
    return mean - half, mean + half


@cache
def _t_quantile(freedom: int) -> float:
    return float(special.stdtrit(freedom, 0.975))


def resample(right: Sequence[NDArray[np.bool_]], times: int) -> Interval:
    """95 % percentile interval of the mean accuracy over test images (Efron and Tibshirani 1993, sec. 13.3).

    The images are drawn with replacement, the same ones for every seed. The mean of a draw depends only on
    how many images were drawn that k of the seeds have right, so these counts are drawn at once, from the
    multinomial distribution that they follow.

    Args:
        right: of each seed, which of the N images it has right; the same images in the same order.
        times: number of draws.

    Returns:
        Percent. The same input gives the same interval.
    """
    count = np.bincount(np.sum(right, axis=0, dtype=np.int64), minlength=len(right) + 1)
    images = int(count.sum())
    draws = np.random.default_rng(0).multinomial(images, count / images, size=times)
    means = 100 * draws @ np.arange(len(right) + 1) / (images * len(right))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def compare(own: Mapping[int, float], base: Mapping[int, float]) -> Comparison:
    """Own minus baseline over the seeds that both have; `p_holm` is left to `holm`.

    Differences that do not vary (beyond rounding) are no sample of anything: they get no test and no effect.

    Args:
        own: seed -> value.
        base: seed -> value of the baseline.
    """
    seeds = sorted(own.keys() & base.keys())
    differences = [own[seed] - base[seed] for seed in seeds]
    if not differences:
        return Comparison(0)
    n, mean = len(differences), fmean(differences)
    if n < 2:
        return Comparison(n, mean)
    std = _deviation(differences, mean)
    if std <= _ROUNDING * max(abs(value) for seed in seeds for value in (own[seed], base[seed])):
        return Comparison(n, mean, 0.0)
    if n < FEWEST:
        return Comparison(n, mean, std)
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / (std / math.sqrt(n))))
    return Comparison(n, mean, std, p, _wilcoxon(differences) if n >= EXACT else None)


def _wilcoxon(differences: Sequence[float]) -> float | None:
    """Two-sided Wilcoxon signed-rank test (Wilcoxon 1945) over all signs; zeros are left out.

    Equal sizes, as accuracies have them often, share their mean rank; SciPy takes 0.1 s for each such sample.
    """
    from scipy import stats

    signed = np.array([kept for d in differences if (kept := round(d, 9))])
    if len(signed) < EXACT:
        return None
    doubled = (2 * stats.rankdata(np.abs(signed))).astype(np.int64)
    chances = np.ones(1)  # of each sum of the doubled ranks with a positive sign
    for step in doubled:
        chances = (np.pad(chances, (0, step)) + np.pad(chances, (step, 0))) / 2
    here = doubled[signed > 0].sum()
    return float(min(1.0, 2 * min(chances[: here + 1].sum(), chances[here:].sum())))


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's correction (Holm 1979): the j-th smallest of m becomes max over i <= j of (m - i + 1) p_i.

    Args:
        p: the p-values of one family.

    Returns:
        The corrected p-values, at most 1, in the order of the p-values.
    """
    corrected: dict[Key, float] = {}
    so_far = 0.0
    for index, key in enumerate(sorted(p, key=lambda k: p[k])):
        so_far = max(so_far, min(1.0, (len(p) - index) * p[key]))
        corrected[key] = so_far
    return corrected


def ranks(
    column: Mapping[Key, Summary], better: Literal["higher", "lower"] | None, decimals: int
) -> dict[Key, float]:
    """Ranks within a column, 1 for the best; equal text has the mean of its ranks.

    Args:
        column: the competing cells of one column; only complete ones are ranked.
        better: direction of the measure; None ranks nothing.
        decimals: printed decimals.
    """
    means = {key: round(s.mean, decimals) for key, s in column.items() if s.complete and s.mean is not None}
    if better is None:
        return {}
    order = sorted(means.values(), reverse=better == "higher")
    return {key: order.index(value) + (order.count(value) + 1) / 2 for key, value in means.items()}


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
