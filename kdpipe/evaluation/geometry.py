"""The geometry of the last features: MICC's class distances, neural collapse, t-SNE, correlation of logits.

Everywhere `features` is an N x D array of finite numbers, the input of the last linear layer for plain
images (no augmentation), `labels` holds N integers below C, `weight` is that layer's C x D matrix and
`bias` its C numbers. Only classes that have samples take part; K is their number. A measure that these data
do not define is nan. Sums run in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.evaluation.metrics import Labels, Logits, Vector

Features = NDArray[np.floating[Any]]

SAMPLES = 10_000  # images whose pairs are looked at
DRAWN = 2_000  # points of a t-SNE
PERPLEXITY = 30.0
_ROWS = 1_000  # anchors at a time


# Distances of the intra-class contrastive paper (MICC)


@dataclass(frozen=True)
class Contrast:
    """Both sides of MICC's Theorem 1 for each anchor x; every array has one number per anchor.

    Attributes:
        intra: d_Intra, the mean of exp(phi(x)^T phi(x-)) over the other samples of x's class.
        inter: d_Inter, the same over the samples of other classes.
        m: how many other samples there are of x's class.
        n: how many samples there are of other classes.
        positive: exp(phi(x)^T phi(x+)).
    """

    intra: Vector
    inter: Vector
    m: Vector
    n: Vector
    positive: Vector

    @property
    def loss_intra(self) -> Vector:
        """L_Intra = log(1 + sum_{k<=m} exp(phi(x)^T phi(x_k-)) / exp(phi(x)^T phi(x+))), equation 8."""
        return np.asarray(np.log1p(self.m * self.intra / self.positive))

    @property
    def loss_inter(self) -> Vector:
        """L_Inter, the same over the n samples of other classes."""
        return np.asarray(np.log1p(self.n * self.inter / self.positive))

    @property
    def ratio(self) -> Vector:
        """The theorem's left side, d_Intra / d_Inter."""
        return np.asarray(self.intra / self.inter)

    @property
    def loss_ratio(self) -> Vector:
        """The theorem's right side, K e^L_Intra / e^L_Inter with K = n/m."""
        return np.asarray(self.n / self.m * np.exp(self.loss_intra - self.loss_inter))


def contrast(features: Features, labels: Labels, samples: int = SAMPLES) -> Contrast:
    """Intra- and inter-class distances as MICC defines them, and the losses of its Theorem 1.

    With phi(x) = h(x) / |h(x)|, d_Intra(x) = E_{x- in C(x)}[exp(phi(x)^T phi(x-))], and d_Inter(x) is the
    same over x- not in C(x). The expectation runs over every other sample, x itself left out. They are
    likenesses: both lie in [1/e, e] and grow as samples come together. The theorem says that
    d_Intra / d_Inter = K e^L_Intra / e^L_Inter for n, m -> infinity with n/m = K; it holds for each anchor
    and whatever its positive sample is. At finite n and m the right side is
    K (p + m d_Intra) / (p + n d_Inter) with p = exp(phi(x)^T phi(x+)).

    Args:
        features: N x D; those that are all zero stay zero, with product 0 to every other.
        labels: N.
        samples: at most so many images are anchors and negatives, spread evenly over the classes.

    Returns:
        One number per anchor; samples without another of their class, or without any other class, are none.

    Source: the intra-class contrastive paper (MICC), section 4.2, equation 8, Theorem 1 and its proof A.1.
    Deviation: features are those of plain images, the same for every network and without random draws, not
    of augmented views; so x+ is x itself and p = e. The distances have no positive sample, and in the limit
    of the theorem it cancels. Every other image is a negative, where training draws some. The first line of
    equation 11 has the two expectations swapped; section 4.2 is followed.
    """
    kept = spread(labels, samples)
    phi = _unit(features[kept])
    _, start, count = np.unique(np.asarray(labels)[kept], return_index=True, return_counts=True)
    sums = np.concatenate([_anchors(phi, a, a + size) for a, size in zip(start, count, strict=True)], axis=1)
    m = np.repeat(count, count).astype(np.float64) - 1
    n = len(phi) - 1 - m
    use = (m > 0) & (n > 0)
    own, total, positive = sums[:, use]
    return Contrast((own - positive) / m[use], (total - own) / n[use], m[use], n[use], positive)


def _unit(features: Features) -> Features:
    """Rows of length 1, in single precision if they come so; zero rows stay zero."""
    length = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    return np.asarray(features / np.where(length > 0, length, 1)[:, None].astype(features.dtype))


def _anchors(phi: Features, begin: int, end: int) -> Vector:
    """For the anchors of one class, `begin` to `end`: sums of exp over it, over all, and exp with itself."""
    found = np.empty((3, end - begin))
    for a in range(begin, end, _ROWS):
        b = min(a + _ROWS, end)
        likeness = np.exp(phi[a:b] @ phi.T)
        found[:, a - begin : b - begin] = (
            likeness[:, begin:end].sum(axis=1, dtype=np.float64),
            likeness.sum(axis=1, dtype=np.float64),
            likeness[np.arange(b - a), np.arange(a, b)],
        )
    return found


def spread(labels: Labels, samples: int) -> Labels:
    """Positions of at most `samples` images, evenly spaced in order of class: each class keeps its share."""
    order = np.argsort(labels, kind="stable")
    kept = min(samples, len(order))
    return np.asarray(order[np.arange(kept) * len(order) // max(kept, 1)])


# Neural collapse


def nc1(features: Features, labels: Labels) -> float:
    """Variability collapse, tr(Sigma_W Sigma_B^+) / K, with ^+ the pseudo-inverse.

    Sigma_W = Avg_i (h_i - h_{y_i})(h_i - h_{y_i})^T over all samples, and Sigma_B = Avg_k (h_k - h_G)(h_k -
    h_G)^T over classes, with h_k the mean of class k and h_G the mean of these means.

    Args:
        features: N x D.
        labels: N.

    Returns:
        A number >= 0; 0 if all features of a class are one; nan if the class means are.

    Source: Papyan, Han and Donoho 2020, "Prevalence of neural collapse during the terminal phase of deep
    learning training", figure 6; Yang et al. 2024 (DHKD), appendix B.1 (NC1).
    Deviation: the pseudo-inverse keeps at most the K - 1 directions that K means can span, and of these what
    exceeds rounding. For classes of unequal size h_G is not the mean of all features.
    """
    groups, means = _by_class(features, labels)
    centred = means - means.mean(axis=0)
    _, size, directions = np.linalg.svd(centred, full_matrices=False)
    known = size[: len(means) - 1] > _rounding(means)
    size, directions = size[: len(known)][known], directions[: len(known)][known]
    if not len(size):
        return float("nan")
    within = np.zeros(len(size))
    for group, mean in zip(groups, means, strict=True):
        within += np.square((features[group] - mean) @ directions.T).sum(axis=0)
    return float((within / len(labels) / size**2).sum())


def nc2(features: Features, labels: Labels) -> float:
    """Convergence to a simplex ETF, Avg_{k != l} |cos(h_k - h_G, h_l - h_G) + 1/(K - 1)|.

    Args:
        features: N x D.
        labels: N.

    Returns:
        A number from 0 (the class means point as far apart as K vectors can) to 1 + 1/(K - 1); nan if a class
        mean is h_G.

    Source: Papyan et al. 2020, figure 4; it measures the distance from equation 8 of Yang et al. 2024 (DHKD),
    whose diagonal always holds since its means are normalised (appendix B.1, NC2).
    """
    _, means = _by_class(features, labels)
    centred = means - means.mean(axis=0)
    length = np.linalg.norm(centred, axis=1)
    if len(means) < 2 or length.min() <= _rounding(means):
        return float("nan")
    cosine = (centred / length[:, None]) @ (centred / length[:, None]).T
    apart = ~np.eye(len(means), dtype=bool)
    return float(np.abs(cosine[apart] + 1 / (len(means) - 1)).mean())


def nc2_norms(features: Features, labels: Labels) -> float:
    """Equal length of the class means, Std_k |h_k - h_G| / Avg_k |h_k - h_G|.

    Args:
        features: N x D.
        labels: N.

    Returns:
        A number >= 0; nan if the class means are one.

    Source: Papyan et al. 2020, figure 2; the other half of a simplex ETF (DHKD normalises it away).
    """
    _, means = _by_class(features, labels)
    length = np.linalg.norm(means - means.mean(axis=0), axis=1)
    return float(length.std() / length.mean()) if length.max() > _rounding(means) else float("nan")


def nc3(features: Features, labels: Labels, weight: Features) -> float:
    """Self-duality, |W / |W|_F - M / |M|_F|_F, with the rows of M the class means less h_G.

    Args:
        features: N x D.
        labels: N.
        weight: C x D; rows of classes without samples take no part.

    Returns:
        A number from 0 (classifier and class means are one up to scale) to 2; nan if either is zero.

    Source: Papyan et al. 2020, figure 5; Yang et al. 2024 (DHKD), appendix B.1 (NC3).
    Deviation: one scale for all classes, as Papyan et al. measure it; DHKD normalises each.
    """
    _, means = _by_class(features, labels)
    centred = means - means.mean(axis=0)
    own = np.asarray(weight, np.float64)[np.unique(labels)]
    lengths = np.linalg.norm(own), np.linalg.norm(centred)
    if lengths[0] == 0 or lengths[1] <= _rounding(means):
        return float("nan")
    return float(np.linalg.norm(own / lengths[0] - centred / lengths[1]))


def nc4(features: Features, labels: Labels, weight: Features, bias: Features) -> float:
    """Nearest class centre, the share of samples with argmax_k <w_k, h> + b_k != argmin_k |h - h_k|.

    Args:
        features: N x D.
        labels: N.
        weight: C x D.
        bias: C.

    Returns:
        Percent, 0 to 100.

    Source: Papyan et al. 2020, figure 7; Yang et al. 2024 (DHKD), appendix B.1 (NC4).
    Deviation: with the bias, as Papyan et al. have it, so that the left side is what the network answers;
    DHKD leaves it out.
    """
    groups, means = _by_class(features, labels)
    names, middle = np.unique(labels), means.mean(axis=0)
    centred = means - middle
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    wrong = 0
    for group in groups:
        h = np.asarray(features[group], np.float64)
        nearest = ((h - middle) @ centred.T - np.square(centred).sum(axis=1) / 2).argmax(axis=1)
        wrong += int(((h @ weight.T + bias).argmax(axis=1) != names[nearest]).sum())
    return 100 * wrong / len(labels)


def etf_distance(vectors: Features) -> float:
    """Distance of K vectors to a simplex ETF, |V V^T / |V V^T|_F - (I - 1 1^T / K) / sqrt(K - 1)|_F.

    Args:
        vectors: K x D, the rows of a classifier, or class means less their mean.

    Returns:
        A number from 0 (equal lengths, every angle's cosine -1/(K - 1)), whatever the scale, to sqrt(2); nan
        for a single vector and if all are zero.

    Source: Zhu et al. 2021, "A Geometric Analysis of Neural Collapse with Unconstrained Features", section
    5; the simplex ETF is equation 7 of Yang et al. 2024 (DHKD).
    """
    vectors = np.asarray(vectors, np.float64)
    products, count = vectors @ vectors.T, len(vectors)
    length = np.linalg.norm(products)
    if count < 2 or length == 0:
        return float("nan")
    return float(np.linalg.norm(products / length - (np.eye(count) - 1 / count) / np.sqrt(count - 1)))


def _by_class(features: Features, labels: Labels) -> tuple[list[Labels], Vector]:
    """Positions of each class's samples, and the class means (K x D), in order of class."""
    order = np.argsort(labels, kind="stable")
    _, start = np.unique(np.asarray(labels)[order], return_index=True)
    groups: list[Labels] = list(np.split(order, start[1:]))
    return groups, np.stack([features[group].mean(axis=0, dtype=np.float64) for group in groups])


def _rounding(means: Vector) -> float:
    """The length below which a difference of class means is rounding."""
    return float(max(means.shape) * np.finfo(np.float64).eps * np.linalg.norm(means))


# Pictures: t-SNE, correlation of logits


@dataclass(frozen=True)
class Embedding:
    """Points of a t-SNE.

    Attributes:
        points: M x 2.
        labels: M.
        positions: M, which of the N samples they are.
    """

    points: Vector
    labels: Labels
    positions: Labels


def tsne(
    features: Features,
    labels: Labels,
    classes: Sequence[int] = tuple(range(10)),
    samples: int = DRAWN,
    seed: int = 0,
) -> Embedding:
    """Two-dimensional t-SNE of the features of some classes.

    Starts from the first two principal components; perplexity min(30, (M - 1) / 3), else scikit-learn's
    defaults.

    Args:
        features: N x D.
        labels: N.
        classes: the classes to show.
        samples: at most so many images, spread evenly over these classes.
        seed: of scikit-learn's random numbers.

    Returns:
        M <= samples points. The same on each call with one thread (OMP_NUM_THREADS=1); more threads may add
        up in another order.

    Source: van der Maaten and Hinton 2008; Yang et al. 2024 (DHKD), figure 5.
    Deviation: ten classes in place of CIFAR-100's hundred, whose colours nobody can tell apart.
    """
    from sklearn.manifold import TSNE

    labels = np.asarray(labels)
    wanted = np.flatnonzero(np.isin(labels, classes))
    kept = wanted[spread(labels[wanted], samples)]
    chosen = np.asarray(features[kept], np.float32)
    points = np.zeros((len(kept), 2))
    if len(kept) > 1 and np.ptp(chosen, axis=0).any():
        start = "pca" if min(chosen.shape) > 1 else "random"
        perplexity = min(PERPLEXITY, (len(kept) - 1) / 3)
        points = TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(chosen)
    return Embedding(np.asarray(points, np.float64), labels[kept], kept)


def correlation_difference(student: Logits, teacher: Logits) -> Vector:
    """Difference of the correlation matrices of the classes' logits, corr(t) - corr(s).

    corr(z)_ab is Pearson's correlation of the logits of classes a and b over the samples. A logit that does
    not vary correlates with itself alone.

    Args:
        student: N x C.
        teacher: N x C, of the same samples in the same order.

    Returns:
        C x C, from -2 to 2, zero on the diagonal.

    Source: Yang et al. 2024 (DHKD), appendix H and figure 6; Tian et al. 2020, "Contrastive Representation
    Distillation", figure 3.
    Deviation: none of the words; the published notebook under this title draws another matrix, see
    `class_logits`.
    """
    return _correlation(teacher) - _correlation(student)


def correlation_gap(student: Logits, teacher: Logits) -> float:
    """Mean absolute difference of the correlation matrices, 1/C^2 sum_ab |corr(t)_ab - corr(s)_ab|.

    Args:
        student: N x C.
        teacher: N x C, of the same samples in the same order.

    Returns:
        A number from 0 to 2; the diagonal counts, as zeros.

    Source: as for `correlation_difference`; the papers show it as a picture only.
    """
    return float(np.abs(correlation_difference(student, teacher)).mean())


def class_logits(logits: Logits, labels: Labels) -> Vector:
    """Mean logits of each class's samples, M_ab = Avg_{i: y_i = a} z_ib.

    The absolute difference of the student's and the teacher's, its diagonal set to zero, is what mdistiller's
    notebook of "correlation matrices" draws for DKD.

    Args:
        logits: N x C.
        labels: N.

    Returns:
        C x C; the row of a class without samples is nan.

    Source: mdistiller, tools/visualizations/correlation.ipynb.
    """
    groups, means = _by_class(logits, labels)
    found = np.full((logits.shape[1], logits.shape[1]), np.nan)
    found[[labels[group[0]] for group in groups]] = means
    return found


def _correlation(logits: Logits) -> Vector:
    """Correlation of the columns (C x C), with a diagonal of ones."""
    z = np.asarray(logits, np.float64)
    constant = np.ptp(z, axis=0) == 0
    z = z - z.mean(axis=0)
    z[:, constant] = 0
    length = np.linalg.norm(z, axis=0)
    z /= np.where(length > 0, length, 1)
    found: Vector = np.clip(z.T @ z, -1, 1)
    np.fill_diagonal(found, 1)
    return found
