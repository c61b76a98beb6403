"""The overlap of hidden features with the top eigenvectors of the expected Gram matrix.

    H_infinity_ij = E_w[sigma'(w . x_i) sigma'(w . x_j)] x_i . x_j,    w ~ N(0, k^2 I)
    overlap_k = mean over j <= J of |<phi_k / ||phi_k||, v_j>|,    v_1, v_2, ... eigenvectors of H_infinity

The expectation is over two correlated normal numbers u = w . x_i and v = w . x_j, with deviations
s_i = k ||x_i|| and correlation rho = cos(x_i, x_j):

    ReLU       (pi - arccos(rho)) / (2 pi)
    erf        (4 / pi) / sqrt((1 + 2 s_i^2) (1 + 2 s_j^2) - 4 rho^2 s_i^2 s_j^2)
    any other  sum_p c_p(s_i) c_p(s_j) rho^p,    c_p(s) = E[sigma'(s z) He_p(z)] / sqrt(p!)

The last is Mehler's expansion in Hermite polynomials; its coefficients come from Gauss-Hermite quadrature.
What a cut after p terms leaves out of entry ij is at most sqrt(R_i R_j) with
R = E[sigma'(s z)^2] - sum_{q <= p} c_q(s)^2, so terms are added until R is below 1e-7 of E[sigma'(s z)^2].

Reference: Rahbar et al. 2020 (arXiv 2003.13438), sections 3 and 4.4; the matrix of ReLU is that of
Arora et al. 2019 (arXiv 1901.08584), section 3.

Deviations: the paper prints the H_k with x_i in both slopes; one of them is x_j. It averages dot products
with "the top eigenvectors" without their number, and eigenvectors have no sign: the number is an argument,
and the mean is over absolute values unless another rule is asked for. It does not say on which images
H_infinity and phi are taken; callers pass the training images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.two_layer import ACTIVATIONS, Array

Rule = Literal["absolute", "squared", "towards_labels"]
Floats = NDArray[np.float64]

NODES = 160  # of the quadrature, in one dimension
TERMS = 60  # of the expansion at most: a power of a correlation costs n x n
ACCURACY = 1e-7  # of the expansion, relative to E[sigma'^2]


def expected_gram(gram: Array, activation: str, spread: float) -> Floats:
    """H_infinity, the Gram matrix of slopes and images expected over random weights.

    H_ij = E_w[sigma'(w . x_i) sigma'(w . x_j)] K_ij,    w ~ N(0, spread^2 I)

    Args:
        gram: K = X X^T of the images (n x n), none of which is 0.
        activation: a name of `ACTIVATIONS`.
        spread: standard deviation k of a weight.

    Returns:
        H_infinity (n x n), symmetric and positive semi-definite.

    Raises:
        DataError: an image is 0.
        ConfigError: the activation is too steep for the quadrature at this spread.
    """
    inner = np.asarray(gram, dtype=np.float64)
    norms = np.sqrt(np.diag(inner))
    if not norms.all():
        raise DataError(
            f"image {int(np.argmin(norms))} is 0, so that its angle to others is not defined",
            where="expected_gram",
            fix="leave out images without a single bright pixel",
        )
    cosine = np.clip(inner / np.multiply.outer(norms, norms), -1, 1)
    if activation == "relu":
        expected = (np.pi - np.arccos(cosine)) / (2 * np.pi)
    elif activation == "erf":
        wide = 2 * (spread * norms) ** 2
        expected = 4 / np.pi / np.sqrt(np.multiply.outer(1 + wide, 1 + wide) - (2 * spread**2 * inner) ** 2)
    else:
        expected = _mehler(cosine, activation, spread * norms)
    product: Floats = expected * inner
    return product


def top_eigenvectors(matrix: Floats, count: int) -> Floats:
    """The eigenvectors of the largest eigenvalues of a symmetric matrix.

    Args:
        matrix: symmetric (n x n).
        count: how many, at most n.

    Returns:
        One vector of length 1 per column, that of the largest eigenvalue first (n x count).

    Raises:
        ConfigError: there are not as many.
    """
    size = len(matrix)
    if not 1 <= count <= size:
        raise ConfigError(
            f"{count} top eigenvectors are asked for of a matrix of {size} images",
            where="eigenvectors",
            fix=f"use 1 to {size}",
        )
    _, vectors = eigh(matrix, subset_by_index=(size - count, size - 1))
    found: Floats = vectors[:, ::-1]
    return found


def overlaps(
    features: Array, vectors: Floats, rule: Rule = "absolute", targets: Array | None = None
) -> Floats:
    """The overlap parameter of every hidden unit (section 4.4).

    With b_kj = <phi_k / ||phi_k||, v_j>: `absolute` is the mean of |b_kj| over j, `squared` that of b_kj^2
    (the same for every basis of the eigenvectors' space), `towards_labels` that of b_kj after each v_j is
    turned so that <v_j, y> is positive.

    Args:
        features: phi, one column per hidden unit (n x m).
        vectors: top eigenvectors v_j of H_infinity, one per column (n x J).
        rule: how the products are averaged.
        targets: labels y (n), where `rule` turns towards them.

    Returns:
        One number per hidden unit (m), between -1 and 1; NaN for a unit that is 0 on every image and so
        has no direction.

    Raises:
        ConfigError: `towards_labels` without labels.
    """
    columns = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(columns, axis=0)
    products = (columns / np.where(norms > 0, norms, np.nan)).T @ vectors
    if rule == "squared":
        products = products**2
    elif rule == "absolute":
        products = np.abs(products)
    elif targets is None:
        raise ConfigError(
            "eigenvectors can only be turned towards labels that are given",
            where="overlaps",
            fix="give the targets, or use the rule 'absolute'",
        )
    else:
        products = products * np.where(np.asarray(targets, dtype=np.float64) @ vectors < 0, -1, 1)
    mean: Floats = products.mean(1)
    return mean


def _mehler(cosine: Floats, activation: str, deviations: Floats) -> Floats:
    """E[sigma'(u) sigma'(v)] by Mehler's expansion, for each pair of images."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    slopes = ACTIVATIONS[activation].slope(np.multiply.outer(deviations, nodes))  # images x nodes
    total = slopes**2 @ weights
    left, power = total.copy(), np.ones_like(cosine)
    previous, polynomial = np.zeros_like(nodes), np.ones_like(nodes)  # He_p / sqrt(p!), from p = 0
    expected = np.zeros_like(cosine)
    for order in range(TERMS):
        coefficients = slopes @ (weights * polynomial)
        expected += np.multiply.outer(coefficients, coefficients) * power
        left -= coefficients**2
        if np.max(left / total) < ACCURACY:
            return expected
        power *= cosine
        previous, polynomial = (
            polynomial,
            (nodes * polynomial - np.sqrt(order) * previous) / np.sqrt(order + 1),
        )
    raise ConfigError(
        f"the expected Gram matrix of '{activation}' is only known to {np.max(left / total):.0e} "
        f"for weights with a spread of {np.max(deviations):.3g} on an image",
        where="spread",
        fix="use a smaller spread; 1 and below is accurate for every activation",
    )
