"""Losses on features in NumPy, sample by sample and pair by pair: no shared code, no stable forms."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np

from tests.golden.inputs import Array


def normal(x: Array) -> Array:
    return x / np.linalg.norm(x)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def smooth_l1(a: float, b: float) -> float:
    gap = abs(a - b)
    return gap * gap / 2 if gap < 1 else gap - 0.5


def attention(s: Array, t: Array) -> float:
    """Zagoruyko & Komodakis 2017, Eq. 2, with the mean over samples and places of squares."""
    maps = [[normal(sum(c**2 for c in sample).ravel()) for sample in x] for x in (s, t)]
    return float(np.mean([(a - b) ** 2 for a, b in zip(*maps, strict=True)]))


def similarity(s: Array, t: Array) -> float:
    """Tung & Mori 2019, section 3, one pair of layers."""
    grams = [np.array([[a.ravel() @ b.ravel() for b in x] for a in x]) for x in (s, t)]
    mine, theirs = (np.array([normal(row) for row in gram]) for gram in grams)
    return float(np.linalg.norm(mine - theirs) ** 2 / len(s) ** 2)


def correlation(s: Array, t: Array) -> float:
    """RepDistiller's correlation of embeddings."""
    gaps = [abs(a - b) for a, b in zip(s, t, strict=True)]
    return float(np.mean([a @ b for a, b in pairwise(gaps)]))


def kernel_correlation(s: Array, t: Array, gamma: float, order: int) -> float:
    """Peng et al. 2019, section 3: the Taylor series of the Gaussian kernel, for each pair."""

    def kernel(a: Array, b: Array) -> float:
        series = sum((2 * gamma * cosine(a, b)) ** p / math.factorial(p) for p in range(order + 1))
        return math.exp(-2 * gamma) * series

    pairs = list(product(range(len(s)), repeat=2))
    return float(np.mean([(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i, j in pairs]))


def gaussian(s: Array, t: Array, variance: Array) -> float:
    """Ahn et al. 2019, section 2, with the mean over elements."""
    each = [(s[:, c] - t[:, c]) ** 2 / (2 * v) + np.log(np.sqrt(v)) for c, v in enumerate(variance)]
    return float(np.mean(each))


def distances(s: Array, t: Array) -> float:
    """Park et al. 2019, section 3.2, with the mean over pairs."""
    pairs = list(product(range(len(s)), repeat=2))
    lengths = [np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (s, t)]
    relative = [d / d[d > 0].mean() for d in lengths]
    return float(np.mean([smooth_l1(a, b) for a, b in zip(*relative, strict=True)]))


def angles(s: Array, t: Array) -> float:
    """Park et al. 2019, section 3.2, with the mean over triplets, those of two samples too."""

    def angle(x: Array, i: int, j: int, k: int) -> float:
        return 0.0 if i in (j, k) else cosine(x[j] - x[i], x[k] - x[i])

    triplets = list(product(range(len(s)), repeat=3))
    return float(np.mean([smooth_l1(angle(s, *ijk), angle(t, *ijk)) for ijk in triplets]))


def relations(s: Array, t: Array) -> float:
    return 25 * distances(s, t) + 50 * angles(s, t)


def neighbours(s: Array, t: Array) -> float:
    """Passalis & Tefas 2018, section 3, cosine kernel; a sample is its own neighbour too, mean over pairs."""
    kernels = [np.array([[(cosine(a, b) + 1) / 2 for b in x] for a in x]) for x in (s, t)]
    mine, theirs = (np.array([row / sum(row) for row in kernel]) for kernel in kernels)
    return float(np.mean(theirs * np.log((theirs + 1e-7) / (mine + 1e-7))))


def selectivity(s: Array, t: Array) -> float:
    """Huang & Wang 2017, section 4, polynomial kernel: every pair of channels of every sample."""

    def discrepancy(a: Array, b: Array) -> float:
        mine, theirs = ([normal(channel.ravel()) for channel in x] for x in (a, b))
        kernel = [
            np.mean([(x @ y) ** 2 for x, y in product(*pair)])
            for pair in ((mine, mine), (theirs, theirs), (mine, theirs))
        ]
        return float(kernel[0] + kernel[1] - 2 * kernel[2])

    return float(np.mean([discrepancy(a, b) for a, b in zip(s, t, strict=True)]))
