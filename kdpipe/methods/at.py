"""Attention transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.api import Batch, DataInfo, ModelSpec, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full
from kdpipe.nn.relations import unit
from kdpipe.nn.taps import pair_stages, unpaired


def attention(maps: Tensor) -> Tensor:
    """Where a network looks: `q / |q|` with `q = mean_c f^2`, one value per place.

    Args:
        maps: B x C x H x W.

    Returns:
        B x HW, rows of norm 1; the row of a map of zeros is zero.
    """
    return unit(full(maps).square().mean(1).flatten(1))


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention: `mean (q_s / |q_s| - q_t / |q_t|)^2` over samples and places.

    Args:
        student: maps of a stage, B x C_s x H x W.
        teacher: maps of a stage of that size, B x C_t x H x W.

    Returns:
        A scalar in [0, 2 / HW].

    Source: Zagoruyko & Komodakis 2017, Eq. 2, with p = 2. Deviation: the mean of squares where the
    equation prints half the norm, as in the authors' code, RepDistiller and mdistiller; the default weight
    belongs to this form.
    """
    return F.mse_loss(attention(student), attention(teacher.detach()))


class AT(FeatureMethod):
    """The student looks where the teacher looks, at every stage.

    Loss: `gamma CE(z_s, y) + beta sum_stages mean (q_s / |q_s| - q_t / |q_t|)^2 [+ alpha T^2 KL(p_t || p_s)]`
    with `q = mean_c f^2`, as the terms `ce`, `at` and, with alpha > 0, `kd`.

    Taps: the stages of both networks, B x C x H x W each, paired by size (`kdpipe.nn.taps.pair_stages`).

    Deviations: stages pair when their maps have one size, the deepest of each size, and a stage without a
    partner is left out. RepDistiller and mdistiller pair by position and pool the larger map to the size of
    the smaller; the two rules agree where the networks have one stage of each size (resnets, wide
    resnets), not for VGG and MobileNetV2. The mean over places makes the term smaller on larger maps,
    so the weight of 1000 is meant for 32-pixel images. Pairs without published weights have the default.

    Reference: Zagoruyko & Komodakis 2017, Eq. 2; Dong et al. 2024 (SoTeacher), Table 5, for the
    published weights with KD.
    """

    name = "at"
    paper = Paper(
        "Paying more attention to attention: Improving the performance of convolutional neural networks "
        "via attention transfer",
        "S. Zagoruyko, N. Komodakis",
        "ICLR",
        2017,
        "https://arxiv.org/abs/1612.03928",
    )
    published = soteacher_weights(standard=1000, soteacher=500)

    class Config(FeatureSettings):
        """Weights."""

        beta: float = hp(1000.0, ge=0, doc="weight of the attention term", source="RepDistiller -b 1000")

    config: Config

    def taps(self) -> Wish:
        """Every stage of both networks."""
        return Wish(student=("stages",), teacher=("stages",))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """Networks without stages of one size."""
        return unpaired(student, teacher)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The pairs of stages."""
        self.pairs = pair_stages(student, teacher)

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The attention term, summed over stages."""
        losses = [attention_loss(s[mine], t[theirs]) for mine, theirs in self.pairs]
        return {"at": self.config.beta * torch.stack(losses).sum()}
