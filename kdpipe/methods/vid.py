"""Variational information distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, ModelSpec, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full
from kdpipe.nn.taps import pair_stages, unpaired

SMALLEST = 1e-5
"""Lower bound of a variance."""


def gaussian_loss(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's maps: `mean ((mu - f_t)^2 / v_c + log v_c) / 2`.

    Args:
        mean: mu, what the student's maps say of the teacher's, B x C x H x W.
        teacher: f_t, B x C x H x W.
        variance: v, one per channel, C, > 0.

    Returns:
        A scalar, over all elements; it is below zero once variances are below one.

    Source: Ahn et al. 2019, section 2. Deviation: the mean over elements where the paper sums over them,
    as in RepDistiller and mdistiller, and no constant `log(2 pi) / 2`.
    """
    v = full(variance)[:, None, None]
    return ((full(mean) - full(teacher).detach()).square() / v + v.log()).mean() / 2


class Likelihood(nn.Module):
    """A Gaussian of the teacher's maps given the student's: a regressor for the mean, a variance per channel.

    Args:
        student: channels of the student's maps.
        teacher: channels of the teacher's maps.
        variance: the first variance of every channel.
    """

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
        )
        v = variance - SMALLEST
        self.scale = nn.Parameter(torch.full((teacher,), v + math.log(-math.expm1(-v))))  # softplus backwards

    @property
    def variance(self) -> Tensor:
        """`softplus(scale) + 1e-5`, one per channel."""
        return F.softplus(self.scale) + SMALLEST

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Negative log-likelihood of the teacher's maps, a scalar."""
        return gaussian_loss(self.mean(student), teacher, self.variance)


class VID(FeatureMethod):
    """The student's maps predict the teacher's under a Gaussian with a trained variance per channel.

    Loss: `gamma CE(z_s, y) + beta sum_stages mean ((mu(f_s) - f_t)^2 / v + log v) / 2
    [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce`, `vid` and, with alpha > 0, `kd`. mu is three 1 x 1
    convolutions without bias, ReLUs between them; `v = softplus(scale) + 1e-5`, trained per channel.

    Taps: the stages of both networks, B x C x H x W each, paired by size (`kdpipe.nn.taps.pair_stages`).

    First stage: with `init_epochs` > 0, mu and v are trained before the student, whose maps are constants
    there; `vid` is then the only term.

    Deviations: stages pair when their maps have one size, the deepest of each size, and a stage without a
    partner is left out. RepDistiller and mdistiller pair by position and pool the larger map to the size of
    the smaller. The paper also predicts the teacher's logits from the student's vector; as in RepDistiller,
    stages alone are compared. The term is below zero once variances are small. mdistiller never trains the
    variances; here, as in RepDistiller, they are trained and saved. Pairs without published weights have
    the default.

    Reference: Ahn et al. 2019, section 2; Dong et al. 2024 (SoTeacher), Table 5, for the published weights
    with KD.
    """

    name = "vid"
    paper = Paper(
        "Variational information distillation for knowledge transfer",
        "S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai",
        "CVPR",
        2019,
        "https://arxiv.org/abs/1904.05835",
    )
    published = soteacher_weights(standard=1.0, soteacher=0.5)

    class Config(FeatureSettings):
        """Weights, the first variance and a first stage."""

        beta: float = hp(1.0, ge=0, doc="weight of the likelihood", source="RepDistiller -b 1")
        variance: float = hp(
            5.0, gt=SMALLEST, doc="first variance of every channel", source="RepDistiller VIDLoss"
        )
        init_epochs: int = hp(
            0,
            epochs=True,
            ge=0,
            doc="epochs in which only mu and v are trained",
            source="RepDistiller (no first stage)",
        )

    config: Config

    def taps(self) -> Wish:
        """Every stage of both networks."""
        return Wish(student=("stages",), teacher=("stages",))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """Networks without stages of one size."""
        return unpaired(student, teacher)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """A Gaussian for each pair of stages."""
        self.pairs = pair_stages(student, teacher)
        self.likelihoods = nn.ModuleList(
            Likelihood(student[mine][0], teacher[theirs][0], self.config.variance)
            for mine, theirs in self.pairs
        )

    def first_stage(self) -> int:
        return self.config.init_epochs

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """All terms, or in the first stage the likelihood of constant maps alone."""
        if at.first_stage:
            constant = {name: maps.detach() for name, maps in s.taps.items()}
            return self.terms(replace(s, taps=constant), t, batch, at)
        return super().loss(s, t, batch, at)

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The likelihood, summed over stages."""
        losses = [
            likelihood(s[mine], t[theirs])
            for likelihood, (mine, theirs) in zip(self.likelihoods, self.pairs, strict=True)
        ]
        return {"vid": self.config.beta * torch.stack(losses).sum()}
