"""Neuron selectivity transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kdpipe.api import Batch, DataInfo, ModelSpec, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.relations import inner, unit
from kdpipe.nn.taps import pair_stages, unpaired


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Maximum mean discrepancy of the channels: `mean k(s, s) + mean k(t, t) - 2 mean k(s, t)`.

    `k(a, b) = <a, b>^2`; a channel is a vector of length HW and norm 1. Means are over samples and over
    pairs of channels. As `sum_ij <a_i, b_j>^2 = <A^T A, B^T B>` for channels in the rows of A and B, the same
    number is `mean_B |S^T S / C_s - T^T T / C_t|^2`; which of the two is computed depends on the smaller
    of the sides HW and C.

    Args:
        student: maps of a stage, B x C_s x H x W.
        teacher: maps of a stage of that size, B x C_t x H x W.

    Returns:
        A scalar >= 0 (up to rounding).

    Source: Huang & Wang 2017, section 4, with the polynomial kernel of degree 2 and c = 0. Deviation: none
    in value; the reference code's B x C_t x C_s x HW products are never made, and a channel of zeros
    gets no gradient.
    """
    s, t = unit(student.flatten(2)), unit(teacher.detach().flatten(2))
    return by_places(s, t) if s.shape[2] <= max(s.shape[1], t.shape[1]) else by_channels(s, t)


def by_channels(s: Tensor, t: Tensor) -> Tensor:
    """`selectivity_loss` of unit channels, B x C x HW, in memory of B x C x C."""
    same = _kernel(s, s) + _kernel(t, t)
    return same - 2 * _kernel(s, t)


def by_places(s: Tensor, t: Tensor) -> Tensor:
    """`selectivity_loss` of unit channels, B x C x HW, in memory of B x HW x HW."""
    gap = _second_moment(s) - _second_moment(t)
    return gap.square().sum((1, 2)).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return inner(a, b).square().mean()


def _second_moment(channels: Tensor) -> Tensor:
    return inner(channels.mT, channels.mT) / channels.shape[1]


class NST(FeatureMethod):
    """The student's channels are distributed over the places of a map as the teacher's are.

    Loss: `gamma CE(z_s, y) + beta sum_stages (mean k(s, s) + mean k(t, t) - 2 mean k(s, t))
    [+ alpha T^2 KL(p_t || p_s)]` with `k(a, b) = <a, b>^2` of channels of norm 1, as the terms `ce`,
    `nst` and, with alpha > 0, `kd`.

    Taps: the stages of both networks, B x C x H x W each, paired by size (`kdpipe.nn.taps.pair_stages`).

    Memory: for the stages of ResNet50 on 32-pixel images (256 x 32 x 32 to 2048 x 4 x 4) the reference
    code's products of two such maps take 17.2 GB at B = 64 and 68.7 GB at B = 256, at every stage. Here the
    matrices are of the smaller side: at most 16.8 MB and 67.1 MB each (1.07 GB and 4.29 GB with channels
    alone).

    Deviations: stages pair when their maps have one size, the deepest of each size, and a stage without a
    partner is left out. RepDistiller and mdistiller pair by position and pool the larger map to the size of
    the smaller. Only the polynomial kernel, the one of the published tables, is offered; the paper has half
    the weight in front of the term. Pairs without published weights have the default.

    Reference: Huang & Wang 2017, section 4; Dong et al. 2024 (SoTeacher), Table 5, for the published weights
    with KD.
    """

    name = "nst"
    paper = Paper(
        "Like what you like: Knowledge distill via neuron selectivity transfer",
        "Z. Huang, N. Wang",
        "arXiv",
        2017,
        "https://arxiv.org/abs/1707.01219",
    )
    published = soteacher_weights(standard=50, soteacher=25)

    class Config(FeatureSettings):
        """Weights."""

        beta: float = hp(50.0, ge=0, doc="weight of the discrepancy", source="RepDistiller -b 50")

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
        """The discrepancy, summed over stages."""
        losses = [selectivity_loss(s[mine], t[theirs]) for mine, theirs in self.pairs]
        return {"nst": self.config.beta * torch.stack(losses).sum()}
