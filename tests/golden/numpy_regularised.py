"""The losses of the regularised teachers once more, in NumPy, as their papers print them."""

from __future__ import annotations

import numpy as np

from tests.golden.inputs import LABELS, Array
from tests.golden.numpy_losses import kl, softmax


def absolute(s: Array, t: Array) -> float:
    return float(np.linalg.norm(s.ravel(), 1))


def squares(s: Array, t: Array) -> float:
    return float(np.linalg.norm(s.ravel(), 2) ** 2 / 2)


def smoothed(s: Array, t: Array, epsilon: float) -> float:
    """Szegedy et al. 2016, section 7: q'(k) = (1 - eps) delta_ky + eps / K."""
    classes = s.shape[1]
    q = (1 - epsilon) * np.eye(classes)[LABELS] + epsilon / classes
    return float(np.mean([-sum(a * np.log(p)) for a, p in zip(q, softmax(s), strict=True)]))


def mixed(s: Array, t: Array, lam: float) -> float:
    """Zhang et al. 2018 as their code computes it, from two losses; each sample is mixed with the next."""
    log_p = [np.log(p) for p in softmax(s)]
    own = np.mean([-row[y] for row, y in zip(log_p, LABELS, strict=True)])
    other = np.mean([-row[y] for row, y in zip(log_p, np.roll(LABELS, -1), strict=True)])
    return float(lam * own + (1 - lam) * other)


def jensen_shannon(views: list[Array]) -> float:
    """Hendrycks et al. 2020, section 3: the mean divergence of the views from their mean."""
    p = [softmax(z) for z in views]
    m = sum(p) / len(p)
    return float(np.mean([kl(each, m) for each in p]))


def two_views(s: Array, t: Array) -> float:
    return jensen_shannon([s, t])


def three_views(s: Array, t: Array) -> float:
    return jensen_shannon([s, s[:, ::-1] / 2, t])


def scaled(s: Array, t: Array, temperature: float) -> float:
    """Guo et al. 2017, section 4.2."""
    return float(np.mean([-np.log(p[y]) for p, y in zip(softmax(s / temperature), LABELS, strict=True)]))
