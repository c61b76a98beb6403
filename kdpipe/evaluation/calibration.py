"""Whether a classifier's confidence can be trusted: equal-mass ECE, risk at each coverage, reliability bins.

Confidence is the largest probability. Where several samples have the same confidence, what depends on
their order is averaged over all their orders, so every measure is independent of the order of the samples.
The others of their kind, `nll`, `brier` and `ece`, stand in `kdpipe.evaluation.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdpipe.evaluation.metrics import BINS, Labels, Logits, Vector, bin_of, log_confidence


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram's data; every array has one number per bin.

    Attributes:
        lower: where the bin begins on the axis of confidence; nan for an equal-mass bin without samples.
        upper: where it ends.
        confidence: mean confidence of its samples; nan without any.
        accuracy: share of its samples that are right, 0 to 1; nan without any.
        count: how many samples it holds.
    """

    lower: Vector
    upper: Vector
    confidence: Vector
    accuracy: Vector
    count: Vector

    @property
    def error(self) -> float:
        """The ECE of these bins, sum_m |B_m|/N |acc(B_m) - conf(B_m)|."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.count * gaps).sum() / self.count.sum())


def reliability(logits: Logits, labels: Labels, bins: int = BINS, *, equal_mass: bool = False) -> Reliability:
    """Confidence, accuracy and count of each bin of a reliability diagram.

    conf(B_m) = Avg_{i in B_m} max_c p_ic, and acc(B_m) = Avg_{i in B_m} [argmax_c p_ic = y_i].

    Args:
        logits: N x C.
        labels: N.
        bins: M.
        equal_mass: bins of equally many samples, as in `ece_equal_mass`, instead of equally wide ones, as in
            `ece`.

    Returns:
        M numbers of each kind; their `error` is that very measure.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    certain, right = _ranked(logits, labels)
    confidence = np.exp(certain)
    if equal_mass:
        place = _equal_masses(len(confidence), bins)
        runs = [confidence[place == m] for m in range(bins)]
        lower, upper = ([end(run) if len(run) else np.nan for run in runs] for end in (np.min, np.max))
    else:
        place = bin_of(confidence, bins)
        edges = np.arange(bins + 1) / bins
        lower, upper = edges[:-1].tolist(), edges[1:].tolist()
    count = np.bincount(place, minlength=bins).astype(np.float64)
    filled = np.where(count > 0, count, np.nan)
    return Reliability(
        np.array(lower, np.float64),
        np.array(upper, np.float64),
        np.bincount(place, weights=confidence, minlength=bins) / filled,
        np.bincount(place, weights=right, minlength=bins) / filled,
        count,
    )


def ece_equal_mass(logits: Logits, labels: Labels, bins: int = BINS) -> float:
    """Adaptive calibration error, sum_m |B_m|/N |acc(B_m) - conf(B_m)| with bins of equally many samples.

    The samples in order of confidence are cut into M runs whose lengths differ by at most one. With N < M
    every sample is a bin of its own.

    Args:
        logits: N x C.
        labels: N.
        bins: M.

    Returns:
        A fraction, 0 to 1.

    Source: Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural language
    processing models", section 3; for networks Mukhoti et al. 2020, "Calibrating Deep Neural Networks using
    Focal Loss" (AdaECE).
    Deviation: samples of one confidence that lie across a cut are not put into one bin; each bin gets their
    mean accuracy in its share, so that bins stay equal in mass.
    """
    certain, right = _ranked(logits, labels)
    gaps = np.bincount(_equal_masses(len(right), bins), weights=right - np.exp(certain), minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def aurc(logits: Logits, labels: Labels) -> float:
    """Area under the risk-coverage curve, 1/N sum_{i=1..N} r_i, with r_i the error of the i most certain.

    r_i = 1/i sum_{j<=i} e_(j), where e_(j) is 1 if the j-th most certain sample is wrong, else 0. It is low
    when errors are few and when they come with low confidence.

    Args:
        logits: N x C.
        labels: N.

    Returns:
        A fraction, 0 to 1; the error rate if the network is equally certain of everything.

    Source: Geifman, Uziel and El-Yaniv 2019, "Bias-Reduced Uncertainty Estimation for Deep Neural
    Classifiers", section 2; often printed times 1000.
    Deviation: for samples of one confidence, whose order the source leaves open, the mean over all orders.
    """
    _, right = _ranked(logits, labels)
    return _area(1 - right[::-1])


def excess_aurc(logits: Logits, labels: Labels) -> float:
    """E-AURC, AURC - AURC*, where AURC* is that of a confidence that ranks every error last.

    AURC* = 1/N sum_{i=N-k+1..N} (i - (N - k)) / i for k errors: what is left when accuracy is taken out.

    Args:
        logits: N x C.
        labels: N.

    Returns:
        A fraction, 0 to 1; 0 without errors, and without right answers.

    Source: Geifman, Uziel and El-Yaniv 2019, section 3.
    Deviation: the exact sum, where the source goes on to the approximation r + (1 - r) log(1 - r).
    """
    wrong = np.argmax(logits, axis=1) != labels
    return max(0.0, aurc(logits, labels) - _area(np.sort(wrong).astype(np.float64)))


def _area(wrong: Vector) -> float:
    """Mean of the running means of `wrong` (N)."""
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


def _ranked(logits: Logits, labels: Labels) -> tuple[Vector, Vector]:
    """Log-confidence (N, ascending), and for each its share of right answers among those equally certain."""
    certain = log_confidence(logits)
    order = np.argsort(certain, kind="stable")
    right = (np.argmax(logits, axis=1) == labels)[order]
    _, group, size = np.unique(certain[order], return_inverse=True, return_counts=True)
    return certain[order], (np.bincount(group, weights=right) / size)[group]


def _equal_masses(samples: int, bins: int) -> Labels:
    """The bin (0 to bins - 1) of each of N samples in order; bins differ by at most one sample."""
    sizes = [samples // bins + (m < samples % bins) for m in range(bins)]
    return np.repeat(np.arange(bins), sizes)
