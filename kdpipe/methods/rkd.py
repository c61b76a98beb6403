"""Relational knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdpipe.api import Batch, Outputs, Paper, Progress, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full
from kdpipe.nn.relations import inner

TRIPLETS = 2**20
"""How many angles are in memory at a time (4 MiB in float32), or B^2 when that is more."""


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of relative distances: `mean_{i,j} l(d_s / mean d_s, d_t / mean d_t)`, `d = |x_i - x_j|`.

    Args:
        student: features, B x D_s.
        teacher: features, B x D_t.

    Returns:
        A scalar >= 0; `mean d` is over pairs of unlike samples, the outer mean over all B^2 pairs. It is 0
        for B = 1 and for B = 2.

    Source: Park et al. 2019, section 3.2. Deviations: the mean over all ordered pairs where the paper
    sums (as in RepDistiller); distances from inner products, without a B x B x D tensor.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of angles: `mean_{i,j,k} l(cos_s, cos_t)`, cos at sample i between j and k.

    Args:
        student: features, B x D_s.
        teacher: features, B x D_t.

    Returns:
        A scalar >= 0, over all B^3 triplets (cos = 0 where j or k is i). It is 0 for B = 1 and for B = 2.

    Source: Park et al. 2019, section 3.2. Deviations: the mean over all triplets where the paper sums (as in
    RepDistiller); cosines from inner products, in large batches some anchors i at a time and once more in
    the backward pass, so that B x B x D numbers are never in memory and B x B x B only in small batches.
    """
    given = *_products(student), *_products(teacher.detach())
    samples = len(student)
    count = max(1, TRIPLETS // samples**2)
    if count >= samples:
        return _angle_sum(slice(None), *given) / samples**3
    sums = [
        checkpoint(_angle_sum, slice(i, i + count), *given, use_reentrant=False, preserve_rng_state=False)
        for i in range(0, samples, count)
    ]
    return torch.stack(sums).sum() / samples**3


def _products(features: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of the centred features, and squared distances: B x B each.

    A distance that rounding cannot tell from zero is zero.
    """
    x = full(features)
    centred = x - x.mean(0)  # distances and angles stay, rounding errors shrink
    gram = inner(centred, centred)
    own, before = gram.diagonal(), x.detach().square().sum(1)
    squares = own[:, None] + own - 2 * gram
    slack = 8 * torch.finfo(x.dtype).eps
    rounding = slack * (own.detach() + slack * before)
    return gram, torch.where(squares > rounding[:, None] + rounding, squares, 0)


def _relative_distances(features: Tensor) -> Tensor:
    """Distances of all pairs, B x B, divided by the mean of those above zero."""
    _, squares = _products(features)
    apart = squares > 0
    distances = torch.where(apart, squares, 1).sqrt() * apart
    mean = distances.sum() / apart.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def _angle_sum(anchors: slice, *products: Tensor) -> Tensor:
    """Smooth L1 of the angles at some anchors, summed, from `_products` of student and teacher."""
    gram_s, squares_s, gram_t, squares_t = products
    student, teacher = _cosines(anchors, gram_s, squares_s), _cosines(anchors, gram_t, squares_t)
    return F.smooth_l1_loss(student, teacher, reduction="sum")


def _cosines(anchors: slice, gram: Tensor, squares: Tensor) -> Tensor:
    """`<x_j - x_i, x_k - x_i> / |x_j - x_i| |x_k - x_i|` for anchors i and all j, k: A x B x B."""
    near, squares = gram[anchors], squares[anchors]
    own = gram.diagonal()[anchors]
    products = gram - near[:, :, None] - near[:, None, :] + own[:, None, None]
    apart = squares > 0
    scale = torch.where(apart, squares, 1).rsqrt() * apart
    return products * scale[:, :, None] * scale[:, None, :]


class RKD(FeatureMethod):
    """Distances and angles among the student's samples are as among the teacher's.

    Loss: `gamma CE(z_s, y) + beta (distance L_D + angle L_A) [+ alpha T^2 KL(p_t || p_s)]`, as the terms
    `ce`, `distance`, `angle` and, with alpha > 0, `kd`. L_D is the smooth L1 of all distances over their
    mean, L_A that of the cosines of all angles.

    Taps: `embed` of both networks, B x D_s and B x D_t.

    Memory: differences and angles spelt out take B^2 D and B^3 numbers. For vectors of ResNet50 (D = 2048)
    a network's differences are 33.6 MB at B = 64 and 537 MB at B = 256, and its angles 1.0 MB and 67 MB,
    several times over with what the backward pass keeps. Here B x B matrices are kept (16 kB and
    262 kB each), and no other tensor is larger than the features themselves or than 2^20 angles (4.2 MB).

    Deviations: means where the paper sums, as in RepDistiller. Samples that rounding cannot tell apart
    have the distance and the cosine 0 and no gradient. A batch of one or two samples gives no loss
    (RepDistiller gives NaN for one). Pairs without published weights have the default.

    Reference: Park et al. 2019, section 3.2; Dong et al. 2024 (SoTeacher), Table 5, for the published
    weights with KD.
    """

    name = "rkd"
    paper = Paper(
        "Relational knowledge distillation",
        "W. Park, D. Kim, Y. Lu, M. Cho",
        "CVPR",
        2019,
        "https://arxiv.org/abs/1904.05068",
    )
    published = soteacher_weights(standard=1.0, soteacher=0.5)

    class Config(FeatureSettings):
        """Weights."""

        beta: float = hp(1.0, ge=0, doc="weight of both terms together", source="RepDistiller -b 1")
        distance: float = hp(25.0, ge=0, doc="weight of the distances", source="RepDistiller RKDLoss w_d")
        angle: float = hp(50.0, ge=0, doc="weight of the angles", source="RepDistiller RKDLoss w_a")

    config: Config

    def taps(self) -> Wish:
        """The features of both networks."""
        return Wish(student=("embed",), teacher=("embed",))

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The distances and the angles."""
        c = self.config
        given = s["embed"], t["embed"]
        return {
            "distance": c.beta * c.distance * distance_loss(*given),
            "angle": c.beta * c.angle * angle_loss(*given),
        }
