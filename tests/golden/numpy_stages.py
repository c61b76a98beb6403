"""The losses of AB, FT and SSKD once more, in NumPy, as the papers or the authors' codes state them."""

from __future__ import annotations

import numpy as np

from tests.golden.inputs import Array
from tests.golden.numpy_losses import kl, softmax


def boundary(s: Array, t: Array, margin: float) -> float:
    """Heo et al. 2019, the piecewise loss neuron by neuron; mean over the batch."""
    loss = 0.0
    for mine, its in zip(s.flat, t.flat, strict=True):
        if its <= 0 and mine > -margin:
            loss += (mine + margin) ** 2
        elif its > 0 and mine <= margin:
            loss += (mine - margin) ** 2
    return loss / len(s)


def three_stages(s: Array, t: Array) -> float:
    """The same stage three times, weighted 1/4, 1/2 and 1."""
    return 3 / 1000 * (1 / 4 + 1 / 2 + 1) * boundary(s, t, 1)


def unit(rows: Array) -> Array:
    return np.array([row / np.sqrt((row**2).sum()) for row in rows])


def factors(s: Array, t: Array) -> float:
    """Kim et al. 2018, Eq. 2 with p = 1, as a mean over elements."""
    return float(np.abs(unit(s.reshape(len(s), -1)) - unit(t.reshape(len(t), -1))).mean())


def fields(s: Array, t: Array) -> float:
    """The same with the mean of the squared factors over channels; the teacher's map is the larger."""
    while t.shape[2] > s.shape[2]:
        t = (t[:, :, ::2, ::2] + t[:, :, 1::2, ::2] + t[:, :, ::2, 1::2] + t[:, :, 1::2, 1::2]) / 4
    return factors((s**2).mean(1), (t**2).mean(1))


def cosines(features: Array) -> Array:
    """Of each of 3B rotated views (the last rows) to each of B normal ones (the first)."""
    images = len(features) // 4
    return np.array(
        [[a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)) for b in features[:images]] for a in features[images:]]
    )


def contrast(features: Array) -> float:
    """Xu et al. 2020: the softmax over normal views should choose the view's own image."""
    found = softmax(cosines(features))
    images = found.shape[1]
    return float(np.mean([-np.log(row[i % images]) for i, row in enumerate(found)]))


def selected(s: Array, t: Array, targets: Array, ratio: float, temperature: float) -> float:
    """Xu et al. 2020: KD on what the teacher gets right, and on its best-ranked errors."""
    ranks = [list(np.argsort(-row)).index(y) for row, y in zip(t, targets, strict=True)]
    wrong = sum(rank > 0 for rank in ranks)
    order = sorted(range(len(t)), key=lambda i: (ranks[i], i))
    kept = order[: len(t) - wrong + int(ratio * wrong)]
    return temperature**2 * kl(softmax(t[kept] / temperature), softmax(s[kept] / temperature))


def selected_similarities(s: Array, t: Array, ratio: float, temperature: float) -> float:
    mine, its = cosines(s), cosines(t)
    own = np.arange(len(its)) % its.shape[1]
    return selected(mine, its, own, ratio, temperature)
