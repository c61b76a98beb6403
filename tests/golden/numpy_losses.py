"""The losses once more, in NumPy, term by term as the papers print them: no shared code, no stable forms."""

from __future__ import annotations

import numpy as np

from tests.golden.inputs import LABELS, Array


def softmax(z: Array) -> Array:
    e = np.exp(z)
    return e / e.sum(1, keepdims=True)


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def kl(p: Array, q: Array) -> float:
    """Divergence of the rows of p from those of q, mean over rows."""
    return float(
        np.mean(
            [sum(a * np.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
        )
    )


def cross_entropy(s: Array, t: Array) -> float:
    return float(np.mean([-np.log(p[y]) for p, y in zip(softmax(s), LABELS, strict=True)]))


def kd(s: Array, t: Array, temperature: float) -> float:
    """Hinton et al. 2015, section 2."""
    return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))


def tckd(s: Array, t: Array, temperature: float) -> float:
    """Zhao et al. 2022, section 3.1: the binary probabilities of the label."""
    target_s, target_t = (np.take_along_axis(softmax(z / temperature), LABELS[:, None], 1) for z in (s, t))
    return temperature**2 * kl(np.hstack([target_t, 1 - target_t]), np.hstack([target_s, 1 - target_s]))


def nckd(s: Array, t: Array, temperature: float) -> float:
    """Zhao et al. 2022, section 3.1: probabilities among the other classes, p_i / (1 - p_label)."""
    others = []
    for z in (t, s):
        p = softmax(z / temperature)
        others.append(np.array([np.delete(row, y) / (1 - row[y]) for row, y in zip(p, LABELS, strict=True)]))
    return temperature**2 * kl(*others)


def dkd(s: Array, t: Array, temperature: float, alpha: float, beta: float) -> float:
    return alpha * tckd(s, t, temperature) + beta * nckd(s, t, temperature)


def bernoulli(p: Array, q: Array) -> Array:
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def binary_kl(s: Array, t: Array, temperature: float) -> float:
    """Yang et al. 2024, Eq. 1, with the mean over the batch."""
    each = bernoulli(sigmoid(t / temperature), sigmoid(s / temperature))
    return float(temperature**2 * each.sum() / len(s))


def binary_kl_norm(s: Array, t: Array, temperature: float) -> float:
    """Yang et al. 2024, Eq. 5, with the mean over the batch."""
    each = bernoulli(np.full_like(s, 0.5), sigmoid((s - t) / temperature))
    return float(temperature**2 * each.sum() / len(s))


def hint(s: Array, t: Array) -> float:
    """Romero et al. 2015, Eq. 3, with the mean over elements."""
    return float(((s - t) ** 2).sum() / s.size)


def consistency(s: Array, t: Array) -> float:
    """Dong et al. 2024, Appendix C, the average being the softmax of t."""
    return float(np.mean([np.linalg.norm(p - m) ** 2 for p, m in zip(softmax(s), softmax(t), strict=True)]))
