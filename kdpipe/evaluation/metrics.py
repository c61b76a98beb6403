"""Measures of a classifier from its logits: accuracy, likelihood, calibration, likeness to a teacher.

Everywhere `logits` is an N x C array of finite numbers with N >= 1 and `labels` holds N integers below C.
Sums run in double precision. Every measure but the temperature-scaled ones is independent of the order
of the samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Vector = NDArray[np.float64]

BINS = 15
TEMPERATURES = (0.1, 10.0)


def top_k(logits: Logits, labels: Labels, k: int = 1) -> float:
    """Top-k accuracy: the share of samples whose class is among the k largest logits.

    Args:
        logits: N x C.
        labels: N.
        k: how many classes may be named; with k >= C every sample is right.

    Returns:
        Percent, 0 to 100.
    """
    return float(100 * np.mean(among_largest(logits, labels, k)))


def among_largest(logits: Logits, labels: Labels, k: int = 1) -> NDArray[np.bool_]:
    """Of each sample, whether its class is among the k largest logits.

    Equal logits rank in order of class, as `argmax` has it, so a network that says the same of every
    class is right as often as the first k classes occur, and not always.

    Args:
        logits: N x C.
        labels: N.
        k: how many classes may be named.

    Returns:
        N.
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    earlier = np.arange(logits.shape[1]) < np.asarray(labels)[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return np.asarray(rank < k)


def nll(logits: Logits, labels: Labels) -> float:
    """Mean negative log-likelihood, -1/N sum_i log softmax(z_i)[y_i].

    Args:
        logits: N x C.
        labels: N.

    Returns:
        Nats, >= 0; log C for a uniform prediction.
    """
    return float(np.mean(_surprise(log_softmax(logits), labels)))


def brier(logits: Logits, labels: Labels) -> float:
    """Brier score, 1/N sum_i sum_c (p_ic - [c = y_i])^2.

    Summed over classes as in Brier (1950, equation 2), so 0 to 2; some libraries divide by C.

    Args:
        logits: N x C.
        labels: N.

    Returns:
        A number from 0 (certain and right) to 2 (certain and wrong).
    """
    p = np.exp(log_softmax(logits))
    own = p[np.arange(len(labels)), labels]
    return float(np.mean((p**2).sum(axis=1) - 2 * own + 1))


def ece(logits: Logits, labels: Labels, bins: int = BINS) -> float:
    """Expected calibration error, sum_m |B_m|/N |acc(B_m) - conf(B_m)|.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: confidence is the largest
    probability, and B_m holds the samples whose confidence lies in ((m-1)/M, m/M].

    Args:
        logits: N x C.
        labels: N.
        bins: M; the paper and most of the literature use 15.

    Returns:
        A fraction, 0 to 1.
    """
    confidence = np.exp(log_confidence(logits))
    gap = (np.argmax(logits, axis=1) == labels) - confidence
    place = bin_of(confidence, bins)
    return float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(labels))


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The T that minimises the NLL of softmax(z / T).

    Guo et al. 2017, section 4.2. The NLL is convex in 1/T, so a bounded scalar search over log T
    (Brent) finds the minimum; it replaces the authors' L-BFGS.

    Degenerate cases: when every sample is right (or every one wrong) the NLL falls all the way to
    T = 0 (or infinity), and the search ends at its bound, 0.1 (or 10). When the NLL does not depend
    on T, as for logits that are all equal, T is 1; so it is without samples.

    Args:
        logits: N x C; N may be 0.
        labels: N.

    Returns:
        T, between 0.1 and 10; its NLL is never above that of T = 1.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0

    def loss(log_t: float) -> float:
        return nll(logits / np.exp(log_t), labels)

    logits = np.asarray(logits, np.float64)
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    best = min((0.0, low, float(found.x), high), key=loss)
    return float(np.exp(best))


def cross_scaled(logits: Logits, labels: Labels) -> tuple[Logits, float]:
    """Logits divided by a temperature that was fitted on other samples.

    Guo et al. fit T on held-out validation data. The protocols of the distillation papers train on all
    training images and so have none, and a T fitted on the test set itself would flatter what is then
    measured there. Deviation: samples at even positions are divided by the T fitted on those at odd
    positions and the other way round, so no sample takes part in fitting what it is measured with.

    Args:
        logits: N x C, in an order that is the same for every run that is compared.
        labels: N.

    Returns:
        Scaled logits (N x C, float64), and the geometric mean of the two temperatures.
    """
    odd = np.arange(len(labels)) % 2 == 1
    for_even = fit_temperature(logits[odd], labels[odd])
    for_odd = fit_temperature(logits[~odd], labels[~odd])
    scaled = np.asarray(logits, np.float64) / np.where(odd, for_odd, for_even)[:, None]
    return scaled, float(np.sqrt(for_even * for_odd))


def agreement(student: Logits, teacher: Logits) -> float:
    """Top-1 agreement, the share of samples on which both networks' largest logit is of one class.

    Stanton et al. 2021, "Does Knowledge Distillation Really Work?", equation 4.

    Args:
        student: N x C.
        teacher: N x C, of the same samples in the same order.

    Returns:
        Percent, 0 to 100.
    """
    return float(100 * np.mean(student.argmax(axis=1) == teacher.argmax(axis=1)))


def kl_divergence(student: Logits, teacher: Logits) -> float:
    """Predictive divergence, 1/N sum_i KL(softmax(t_i) || softmax(s_i)), at temperature 1.

    Stanton et al. 2021, equation 5.

    Args:
        student: N x C.
        teacher: N x C, of the same samples in the same order.

    Returns:
        Nats, >= 0.
    """
    log_s, log_t = log_softmax(student), log_softmax(teacher)
    return max(0.0, float(np.mean((np.exp(log_t) * (log_t - log_s)).sum(axis=1))))


def log_softmax(logits: Logits) -> Vector:
    """Log-probabilities (N x C, float64), computed so that large logits do not overflow."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def log_confidence(logits: Logits) -> Vector:
    """Logarithm of each sample's largest probability (N); it rounds alike in every order of the classes."""
    return log_softmax(np.sort(logits, axis=1))[:, -1]


def bin_of(confidence: Vector, bins: int = BINS) -> Labels:
    """The bin (0 to M - 1) of each confidence (N); bin m holds (m/M, (m+1)/M], and the first 0 as well."""
    return np.asarray(np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1))


def _surprise(log_p: Vector, labels: Labels) -> Vector:
    """Negative log-probability of each sample's own class (N)."""
    return -log_p[np.arange(len(labels)), labels]
