"""The losses of taught and self-checking teachers once more, in NumPy, pair by pair and sample by sample."""

from __future__ import annotations

import numpy as np

from tests.golden.inputs import LABELS, Array


def softmax(z: Array) -> Array:
    e = np.exp(z)
    return e / e.sum(1, keepdims=True)


def ranking(confidence: Array, correctness: Array) -> float:
    """Moon et al. 2020, Eq. 3, over neighbours."""
    losses = []
    for i in range(len(confidence)):
        j = (i + 1) % len(confidence)
        c = correctness[i] - correctness[j]
        g = 1 if c > 0 else -1 if c < 0 else 0
        losses.append(max(0.0, -g * (confidence[i] - confidence[j]) + abs(c)))
    return float(np.mean(losses))


def crl_softmax(s: Array, t: Array) -> float:
    return ranking(softmax(s).max(1), softmax(t).max(1))


def crl_margin(s: Array, t: Array) -> float:
    first, second = np.sort(softmax(s), 1)[:, -1], np.sort(softmax(s), 1)[:, -2]
    return ranking(first - second, softmax(t).max(1))


def crl_entropy(s: Array, t: Array) -> float:
    p = softmax(s)
    return ranking(np.array([sum(x * np.log(x) for x in row) for row in p]) / np.log(10), softmax(t).max(1))


def outside(s: Array, t: Array) -> float:
    """Cross entropy of the samples whose number is not a multiple of 3."""
    chosen = [i for i in range(len(s)) if i % 3 != 0]
    return float(np.mean([-np.log(softmax(s)[i, LABELS[i]]) for i in chosen]))


def self_distillation(s: Array, t: Array, alpha: float, loss: str) -> float:
    """Borup and Andersen 2021, Eq. 1 for probabilities: alpha to the labels, the rest to the step before."""
    p, q = softmax(s), softmax(t)
    onehot = np.zeros_like(p)
    onehot[range(len(p)), LABELS[: len(p)]] = 1
    if loss == "mse":
        return float(alpha * ((p - onehot) ** 2).mean() + (1 - alpha) * ((p - q) ** 2).mean())
    return born_again(s, t, alpha, 1 - alpha)


def born_again(s: Array, t: Array, gamma: float, alpha: float) -> float:
    """Furlanello et al. 2018: labels, and the generation before."""
    p, q = softmax(s), softmax(t)
    labels = np.mean([-np.log(p[i, y]) for i, y in enumerate(LABELS)])
    before = np.mean([sum(b * np.log(b / a) for a, b in zip(p[i], q[i], strict=True)) for i in range(len(p))])
    return float(gamma * labels + alpha * before)
