"""Similarity-preserving knowledge distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdpipe.api import Batch, ModelSpec, Outputs, Paper, Progress, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.relations import inner, unit


def similarities(maps: Tensor) -> Tensor:
    """How alike the samples are: the rows of `G = F F^T`, F the flattened maps, each divided by its norm.

    Args:
        maps: B x ..., one row per sample after flattening.

    Returns:
        B x B; the row of a sample of zeros is zero.
    """
    rows = maps.flatten(1)
    return unit(inner(rows, rows))


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the similarities: `|G_s - G_t|_F^2 / B^2`, G with rows of norm 1.

    Args:
        student: B x ..., any shape of a sample.
        teacher: B x ..., any shape of a sample.

    Returns:
        A scalar in [0, 4 / B].

    Source: Tung & Mori 2019, section 3, for one pair of layers. Deviation: none in value; the products
    are taken in float32 under autocast too, since they exceed half precision's 65,504 on real maps.
    """
    return F.mse_loss(similarities(student), similarities(teacher.detach()))


class SP(FeatureMethod):
    """Samples that are alike to the teacher are alike to the student.

    Loss: `gamma CE(z_s, y) + beta |G_s - G_t|_F^2 / B^2 [+ alpha T^2 KL(p_t || p_s)]` with G the
    row-normalised `F F^T` of the flattened maps, as the terms `ce`, `sp` and, with alpha > 0, `kd`.

    Taps: the last stage of both networks, B x C x H x W each, of any sizes.

    Deviations: one pair of layers, the last stages, as in RepDistiller and mdistiller; the paper allows
    several. The loss depends on the batch size (B^2 terms, rows of norm 1), and the weight belongs to
    batches of 64. Pairs without published weights have the default.

    Reference: Tung & Mori 2019, section 3; Dong et al. 2024 (SoTeacher), Table 5, for the published
    weights with KD.
    """

    name = "sp"
    paper = Paper(
        "Similarity-preserving knowledge distillation",
        "F. Tung, G. Mori",
        "ICCV",
        2019,
        "https://arxiv.org/abs/1907.09682",
    )
    published = soteacher_weights(standard=3000, soteacher=1500)

    class Config(FeatureSettings):
        """Weights."""

        beta: float = hp(3000.0, ge=0, doc="weight of the similarity term", source="RepDistiller -b 3000")

    config: Config

    def taps(self) -> Wish:
        """Every stage of both networks, of which the last is read."""
        return Wish(student=("stages",), teacher=("stages",))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """A network without stages."""
        missing = [model.name for model in (student, teacher) if not model.stages]
        return f"{missing[0]} has no stages" if missing else None

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The similarity term."""
        # taps are in the order of the network
        *_, student = s.taps.values()
        *_, teacher = t.taps.values()
        return {"sp": self.config.beta * similarity_loss(student, teacher)}
