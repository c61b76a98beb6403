"""MICC's loss in NumPy, as Eqs. 4 and 7 print it."""

from __future__ import annotations

import numpy as np

from tests.golden.inputs import Array


def margin(p: Array, label: int) -> float:
    """Yuan et al. 2025, Eq. 6, of one sample's probabilities."""
    return float(p[label] - max(q for c, q in enumerate(p) if c != label))


def tuplet(x: Array, positive: Array, negatives: list[Array]) -> float:
    """Yuan et al. 2025, Eq. 4."""
    own = np.exp(x @ positive)
    return float(-np.log(own / (own + sum(np.exp(x @ other) for other in negatives))))


def contrasts(x: Array, positives: Array, labels: list[int]) -> list[float]:
    """The loss of each row, all others of its class being its negatives."""
    return [
        tuplet(x[i], positives[i], [x[k] for k in range(len(x)) if k != i and labels[k] == labels[i]])
        for i in range(len(x))
    ]


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
