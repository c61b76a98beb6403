"""The losses on logits once more, in NumPy, as the papers print them."""

from __future__ import annotations

import numpy as np

from tests.golden.inputs import Array
from tests.golden.numpy_losses import binary_kl, cross_entropy, kd, kl, softmax


def mse(s: Array, t: Array) -> float:
    """Kim et al. 2021, divided by the number of classes."""
    return float(np.mean([sum((a - b) ** 2) for a, b in zip(s, t, strict=True)]) / s.shape[1])


def ce_binary_kl(s: Array, t: Array, temperature: float) -> float:
    """Yang et al. 2024, Eq. 2 with alpha = 1."""
    return cross_entropy(s, t) + binary_kl(s, t, temperature)


def pearson(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + 1e-8))


def dist(s: Array, t: Array, temperature: float) -> float:
    """Huang et al. 2022: both relations, weight 1."""
    p, q = softmax(s / temperature), softmax(t / temperature)
    inter = 1 - np.mean([pearson(p[i, :], q[i, :]) for i in range(p.shape[0])])
    intra = 1 - np.mean([pearson(p[:, c], q[:, c]) for c in range(p.shape[1])])
    return float(temperature**2 * (inter + intra))


def transform(t: Array, power: float) -> Array:
    """The power transform of the softmax of t."""
    p = softmax(t) ** power
    return p / p.sum(1, keepdims=True)


def ttm(s: Array, t: Array, power: float) -> float:
    """Zheng and Yang 2024, by powers of probabilities."""
    return kl(transform(t, power), softmax(s))


def wttm(s: Array, t: Array, power: float) -> float:
    """Zheng and Yang 2024, sample by sample."""
    weights = (softmax(t) ** power).sum(1)
    each = [kl(transform(b[None], power), softmax(a[None])) for a, b in zip(s, t, strict=True)]
    return float(np.mean(weights * each))


def batch_level(s: Array, t: Array, temperature: float) -> float:
    """Jin et al. 2023: similarities of pairs of samples."""
    p, q = softmax(s / temperature), softmax(t / temperature)
    n = len(p)
    return float(sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in range(n) for j in range(n)) / n)


def class_level(s: Array, t: Array, temperature: float) -> float:
    """Jin et al. 2023: correlations of pairs of classes."""
    p, q = softmax(s / temperature), softmax(t / temperature)
    n = p.shape[1]
    return float(sum((q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 for i in range(n) for j in range(n)) / n)


def z_scores(z: Array) -> Array:
    return np.stack([(row - row.mean()) / (row.std(ddof=1) + 1e-7) for row in z])


def logit_std_kd(s: Array, t: Array, temperature: float) -> float:
    """Sun et al. 2024."""
    return kd(z_scores(s), z_scores(t), temperature)


def multi_level(s: Array, t: Array, strong_s: Array, strong_t: Array, form: str) -> tuple[float, ...]:
    """Jin et al. 2023: the cross entropy and three levels of two views, unweighted; or as coded."""
    ce = cross_entropy(s, t) + cross_entropy(strong_s, strong_t)
    temperatures = (4, 3, 5, 2, 6)
    levels = [[level(s, t, T) for T in temperatures] for level in (kd, batch_level, class_level)]
    if form == "paper":
        strong = [
            [level(strong_s, strong_t, T) for T in temperatures] for level in (kd, batch_level, class_level)
        ]
        return (ce, *(sum(a) + sum(b) for a, b in zip(levels, strong, strict=True)))
    instance = 0.5 * sum(levels[0])
    instance += sum(kd(strong_s, strong_t, T) for T in (4, 3, 5)) + sum(kd(s, t, T) for T in (2, 6))
    return (ce, instance, 0.5 * sum(levels[1]), 0.5 * sum(levels[2]))
