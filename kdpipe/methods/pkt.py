"""Probabilistic knowledge transfer."""

from __future__ import annotations

from torch import Tensor

from kdpipe.api import Batch, Outputs, Paper, Progress, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.relations import inner, unit

EPSILON = 1e-7


def neighbour_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the neighbours' probabilities: `mean_{i,j} p_t log((p_t + e) / (p_s + e))`, e = 1e-7.

    `p_ij = k_ij / sum_j k_ij` with `k_ij = (cos(x_i, x_j) + 1) / 2`.

    Args:
        student: features, B x D_s.
        teacher: features, B x D_t.

    Returns:
        A scalar, the mean over all B^2 pairs; features of real networks give some 1e-6.

    Source: Passalis & Tefas 2018, section 3, with the cosine kernel. Deviations: the mean over pairs where
    the paper sums, and a sample counts among its own neighbours, both as in RepDistiller; a feature
    of zeros has the cosine 0 with all and no gradient, where the reference code's is NaN.
    """
    p_s, p_t = neighbours(student), neighbours(teacher.detach())
    return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


def neighbours(features: Tensor) -> Tensor:
    """Probability that a sample (row) picks another (column) as its neighbour: B x B from B x D."""
    x = unit(features)
    kernel = (inner(x, x) + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


class PKT(FeatureMethod):
    """Samples choose their neighbours among the student's features as among the teacher's.

    Loss: `gamma CE(z_s, y) + beta mean_{i,j} p_t log((p_t + e) / (p_s + e)) [+ alpha T^2 KL(p_t || p_s)]`
    with `p_ij` proportional to `cos(x_i, x_j) + 1` over j, as the terms `ce`, `pkt` and, with alpha > 0,
    `kd`.

    Taps: `embed` of both networks, B x D_s and B x D_t.

    Deviations: see `neighbour_loss`. The mean over pairs makes the term depend on the batch size; the weight
    belongs to batches of 64. Pairs without published weights have the default.

    Reference: Passalis & Tefas 2018, section 3; Dong et al. 2024 (SoTeacher), Table 5, for the published
    weights with KD.
    """

    name = "pkt"
    paper = Paper(
        "Learning deep representations with probabilistic knowledge transfer",
        "N. Passalis, A. Tefas",
        "ECCV",
        2018,
        "https://arxiv.org/abs/1803.10837",
    )
    published = soteacher_weights(standard=30000, soteacher=15000)

    class Config(FeatureSettings):
        """Weights."""

        beta: float = hp(30000.0, ge=0, doc="weight of the divergence", source="RepDistiller -b 30000")

    config: Config

    def taps(self) -> Wish:
        """The features of both networks."""
        return Wish(student=("embed",), teacher=("embed",))

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The divergence."""
        return {"pkt": self.config.beta * neighbour_loss(s["embed"], t["embed"])}
