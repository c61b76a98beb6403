"""A kernel embedding that is learnt: Gaussian kernels, combined by their alignment with the labels.

    min over v >= 0 of  v^T M v - 2 v^T a,    M_kl = <K_k^c, K_l^c>_F,    a_k = <K_k^c, y y^T>_F      (Eq. 17)
    mu = v / ||v||,    K = sum_k mu_k K_k,    K^c = C K C,    C = I - 1 1^T / n                       (Eq. 18)

The objective is ||sum_k v_k K_k^c - y y^T||_F^2 up to a constant: a least-squares problem with v >= 0, whose
columns are the centred kernels, written out as vectors. A QR factorisation without Q reduces its n^2 rows to
as many as there are kernels, without forming M (which would square its condition number), and an active-set
solver does the rest. The kernel's features follow from landmarks Z among the training images (Nystroem):

    F(x) = k(x, Z) U S^(-1/2),    k(Z, Z) = U S U^T,    so that F F^T = k(X, Z) k(Z, Z)^+ k(Z, X).

Only training images make the kernel; a test image is embedded with the landmarks' kernel alone.

Reference: Rahbar et al. 2020 (arXiv 2003.13438), section 4.3, Eqs. 17 and 18; Cortes, Mohri and Rostamizadeh
2012 (JMLR 13), the method `alignf`; Williams and Seeger 2001 (NIPS 13).

Deviations: the paper names seven Gaussian kernels without their widths, and neither the number of landmarks
nor whether the features are scaled: widths are the median distance times powers of a ratio, the rest are
arguments. y is not centred; as the kernels are, that changes nothing. scikit-learn's `Nystroem` is not used:
a kernel that is a sum over widths would have to be a Python function called for every pair of images. A
test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial.distance import cdist, pdist

from kdpipe.core.errors import ConfigError, DataError

Floats = NDArray[np.float64]

CUTOFF = 1e-10  # of the landmarks' eigenvalues, relative to the largest: below are rounding errors


def width_grid(points: Floats, count: int, ratio: float) -> Floats:
    """A geometric grid of kernel widths around the median distance of two points.

    s_j = median ||x - x'|| ratio^(j - (count - 1) / 2),    j = 0 ... count - 1

    Args:
        points: one per row (n x d).
        count: number of widths.
        ratio: of a width to the one before.

    Returns:
        The widths, ascending (count), in units of the points' distances.

    Raises:
        DataError: most points are equal.
    """
    median = float(np.median(pdist(points)))
    if median == 0:
        raise DataError(
            "most training images are equal, so that no width suits the Gaussian kernels",
            where="width_grid",
            fix="use images that differ",
        )
    widths: Floats = median * np.power(ratio, np.arange(count, dtype=np.float64) - (count - 1) / 2)
    return widths


def gaussian_kernels(points: Floats, others: Floats, widths: Floats) -> Floats:
    """Gaussian kernels of several widths: exp(-||x - z||^2 / (2 s^2)).

    Args:
        points: x, one per row (n x d).
        others: z, one per row (r x d).
        widths: s (p).

    Returns:
        One matrix per width (p x n x r).
    """
    squares = cdist(points, others, "sqeuclidean")
    kernels: Floats = np.exp(-squares / (2 * np.asarray(widths)[:, None, None] ** 2))
    return kernels


def centred(kernel: Floats) -> Floats:
    """C K C with C = I - 1 1^T / n: the kernel of features whose mean is 0.

    Args:
        kernel: one matrix, or several (... x n x n).
    """
    rows, columns = kernel.mean(-1, keepdims=True), kernel.mean(-2, keepdims=True)
    middle: Floats = kernel - rows - columns + kernel.mean((-2, -1), keepdims=True)
    return middle


def alignf(kernels: Floats, targets: Floats) -> Floats:
    """The weights of kernels whose combination is best aligned with the labels (Eqs. 17 and 18).

    mu = v / ||v||,    v = argmin over v >= 0 of ||sum_k v_k K_k^c - y y^T||_F

    Args:
        kernels: one matrix per base kernel (p x n x n), symmetric.
        targets: labels y (n).

    Returns:
        mu (p): none negative, of 2-norm 1.

    Raises:
        DataError: no kernel is aligned with the labels.
    """
    count, size = len(kernels), len(targets)
    upper = np.triu_indices(size)
    twice = np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0))  # each entry off the diagonal stands for two
    columns = np.empty((len(twice), count + 1))
    for place, kernel in enumerate(kernels):
        columns[:, place] = centred(kernel)[upper] * twice
    columns[:, count] = np.outer(targets, targets)[upper] * twice
    triangle: Floats = np.asarray(np.linalg.qr(columns, mode="r"))
    solution, _ = nnls(triangle[:, :count], triangle[:, count])
    length = np.linalg.norm(solution)
    if length == 0:
        raise DataError(
            "none of the Gaussian kernels is aligned with the labels",
            where="alignf",
            fix="use other widths, or more training images",
        )
    weights: Floats = solution / length
    return weights


@dataclass(frozen=True)
class Embedding:
    """A learnt kernel's features.

    Attributes:
        landmarks: training images Z (r x d).
        widths: of the base kernels (p).
        weights: mu (p).
        whitening: U S^(-1/2) (r x q); q < r where landmarks depend on each other.
        unit_norm: whether each image's features are divided by their 2-norm.
    """

    landmarks: Floats
    widths: Floats
    weights: Floats
    whitening: Floats
    unit_norm: bool

    @classmethod
    def learn(
        cls,
        points: Floats,
        targets: Floats,
        widths: Floats,
        rank: int,
        unit_norm: bool,
        rng: np.random.Generator,
    ) -> Embedding:
        """The embedding of training images.

        Args:
            points: training images, one per row (n x d).
            targets: their labels y (n).
            widths: of the Gaussian kernels (p).
            rank: landmarks r, drawn without replacement.
            unit_norm: whether features are divided by their 2-norm.
            rng: draws the landmarks.

        Raises:
            ConfigError: there are fewer images than landmarks.
            DataError: no kernel is aligned with the labels.
        """
        if rank > len(points):
            raise ConfigError(
                f"{rank} landmarks are asked for of {len(points)} training images",
                where="rank",
                fix=f"use at most {len(points)}, which gives the kernel without approximation",
            )
        weights = alignf(gaussian_kernels(points, points, widths), targets)
        landmarks = points[np.sort(rng.choice(len(points), rank, replace=False))]
        values, vectors = np.linalg.eigh(_combined(landmarks, landmarks, widths, weights))
        kept = values > CUTOFF * values[-1]
        return cls(landmarks, widths, weights, vectors[:, kept] / np.sqrt(values[kept]), unit_norm)

    def features(self, points: Floats) -> Floats:
        """The features of images: k(x, Z) U S^(-1/2).

        Args:
            points: one per row (n x d).

        Returns:
            One row per image (n x q).

        Raises:
            DataError: an image is so far from every landmark that its features cannot be scaled.
        """
        raw = _combined(points, self.landmarks, self.widths, self.weights) @ self.whitening
        if not self.unit_norm:
            return raw
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        if not norms.all():
            raise DataError(
                f"image {int(np.argmin(norms))} is too far from every landmark: its features are 0",
                where="unit_norm",
                fix="use wider kernels or more landmarks, or leave the features unscaled",
            )
        scaled: Floats = raw / norms
        return scaled


def _combined(points: Floats, others: Floats, widths: Floats, weights: Floats) -> Floats:
    used = weights > 0
    combined: Floats = np.tensordot(weights[used], gaussian_kernels(points, others, widths[used]), axes=1)
    return combined
