"""CRD, ReviewKD and OFD once more, in NumPy, as the papers and the authors' code define them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tests.golden.inputs import Array

IntArray = NDArray[np.int64]


def context(s: Array, t: Array) -> float:
    """Chen et al. 2021, section 3: squared differences of the maps and of their pooled versions."""
    side = s.shape[2]
    total, weights, weight = mse(s, t), 1.0, 1.0
    for n in (4, 2, 1):
        if n < side:
            weight /= 2
            total += weight * mse(pooled(s, n), pooled(t, n))
            weights += weight
    return total / weights


def mse(a: Array, b: Array) -> float:
    return float(((a - b) ** 2).sum() / a.size)


def pooled(maps: Array, n: int) -> Array:
    """Means over n x n equal cells; n divides the side."""
    cell = maps.shape[2] // n
    found = np.empty((*maps.shape[:2], n, n))
    for i in range(n):
        for j in range(n):
            found[:, :, i, j] = maps[:, :, cell * i : cell * (i + 1), cell * j : cell * (j + 1)].mean((2, 3))
    return found


def partial_distance(s: Array, t: Array, margin: Array) -> float:
    """Heo et al. 2019, section 3, element by element."""
    total = 0.0
    for place in np.ndindex(*s.shape):
        target = t[place] if t[place] > margin[place[1]] else margin[place[1]]
        if not s[place] <= target <= 0:
            total += (target - s[place]) ** 2
    return total / len(s)


def margin(weight: float, bias: float) -> float:
    """Heo et al. 2019, section 3: E[x | x < 0], and the authors' case of rare negatives."""
    s = abs(weight)
    negative = math.erfc(bias / s / math.sqrt(2)) / 2
    if negative <= 0.001:
        return -3 * s
    return bias - s * math.exp(-((bias / s) ** 2) / 2) / math.sqrt(2 * math.pi) / negative


def nce(p: Array, samples: int) -> float:
    """Tian et al. 2020, section 3.1, with the denominators of RepDistiller; the positive comes first."""
    noise = (p.shape[1] - 1) / samples
    total = 0.0
    for row in p:
        total += math.log(row[0] / (row[0] + noise + 1e-7))
        total += sum(math.log(noise / (x + noise + 1e-7)) for x in row[1:])
    return -total / len(p)


def contrast(anchors: Array, bank: Array, index: IntArray, tau: float, z: float | None = None) -> float:
    """One direction of CRD for given samples; without z, the batch sets it."""
    scores = np.array(
        [[math.exp(v @ bank[i] / tau) for i in row] for v, row in zip(anchors, index, strict=True)]
    )
    return nce(scores / (z or scores.mean() * len(bank)), len(bank))
