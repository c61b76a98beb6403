"""Correlation congruence."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full
from kdpipe.nn.relations import inner, unit


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Products of neighbouring samples' gaps: `mean_{i < B} sum_d g_{i,d} g_{i+1,d}`, `g = |e_s - e_t|`.

    Args:
        student: embeddings, B x D, B >= 2.
        teacher: embeddings, B x D. They pass the gradient on, since the teacher's embedding is trained too.

    Returns:
        A scalar >= 0. It depends on the order of the samples.

    Source: RepDistiller (`Correlation`). Deviation: another loss than that of Peng et al. 2019, which is
    `kernel_loss`; the field's tables print this one.
    """
    gap = (full(student) - full(teacher)).abs()
    return (gap[:-1] * gap[1:]).sum(1).mean()


def kernel_loss(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Mean squared difference of the correlations of all pairs of samples: `mean_{i,j} (K_s - K_t)_{ij}^2`.

    `K_ij = exp(-2 gamma) sum_{p <= P} (2 gamma)^p / p! <x_i, x_j>^p` with `x = f / |f|`: the Taylor series
    of the Gaussian kernel `exp(-gamma |x_i - x_j|^2)` up to order P.

    Args:
        student: features, B x D_s.
        teacher: features, B x D_t.
        gamma: of the kernel, > 0.
        order: P >= 1.

    Returns:
        A scalar >= 0.

    Source: Peng et al. 2019, section 3. Deviation: none in value; features of zeros count as orthogonal
    to all.
    """
    return F.mse_loss(_correlations(student, gamma, order), _correlations(teacher.detach(), gamma, order))


def _correlations(features: Tensor, gamma: float, order: int) -> Tensor:
    x = unit(features)
    similar = inner(x, x)
    powers = [(2 * gamma) ** p / math.factorial(p) * similar**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)


class CC(FeatureMethod):
    """The student's samples correlate with one another as the teacher's do.

    Loss: `gamma CE(z_s, y) + beta L [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce`, `cc` and, with
    alpha > 0, `kd`. `form: embedding` has `L = mean_{i < B} sum_d d_i d_{i+1}` with
    `d = |A_s f_s - A_t f_t|`, A linear and trained for both networks. `form: kernel` has
    `L = mean_{i,j} (K_s - K_t)_{ij}^2`, K the Taylor series of a Gaussian kernel of the normalised features.

    Taps: `embed` of both networks, B x D_s and B x D_t.

    Deviations: the default form is RepDistiller's, which the field's tables print and which is not the
    paper's loss. As the teacher's embedding is trained too, two constant embeddings minimise it, and it
    depends on the order of the samples. `form: kernel` is the paper's correlation congruence; the paper's
    instance congruence is the KD term, so set alpha with it (the paper weighs CE by a and KD by 1 - a).
    Of its kernels only the Gaussian is offered, and no linear layer stands before it: B x B correlations
    compare features of any widths. Order 2 and gamma 0.4 are those of its public re-implementations. The
    default weight belongs to `embedding`; no source that we could read gives one for `kernel`, whose
    values are far smaller, so choose beta there. Pairs without published weights have the default.

    Reference: Peng et al. 2019, section 3; RepDistiller; Dong et al. 2024 (SoTeacher), Table 5, for the
    published weights with KD.
    """

    name = "cc"
    unsettled = "no sourced weight of the kernel form"
    paper = Paper(
        "Correlation congruence for knowledge distillation",
        "B. Peng, X. Jin, J. Liu, D. Li, Y. Wu, Y. Liu, S. Zhou, Z. Zhang",
        "ICCV",
        2019,
        "https://arxiv.org/abs/1904.01802",
    )
    published = soteacher_weights(standard=0.02, soteacher=0.01)

    class Config(FeatureSettings):
        """Weights, and which correlations are compared."""

        beta: float = hp(0.02, ge=0, doc="weight of the correlation term", source="RepDistiller -b 0.02")
        form: Literal["embedding", "kernel"] = hp(
            "embedding", doc="the field's form, or the paper's", source="RepDistiller Correlation"
        )
        dim: int = hp(
            128, ge=1, doc="length of the embeddings (embedding)", source="RepDistiller --feat_dim 128"
        )
        kernel_gamma: float = hp(
            0.4,
            gt=0,
            doc="gamma of the Gaussian kernel (kernel)",
            source="public re-implementations of CC, gamma=0.4",
        )
        order: int = hp(
            2, ge=1, doc="order P of the Taylor series (kernel)", source="Knowledge-Distillation-Zoo, README"
        )

    config: Config

    def taps(self) -> Wish:
        """The features of both networks."""
        return Wish(student=("embed",), teacher=("embed",))

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The embeddings."""
        if self.config.form == "embedding":
            self.student_embedding = nn.Linear(student["embed"][0], self.config.dim)
            self.teacher_embedding = nn.Linear(teacher["embed"][0], self.config.dim)

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The correlation term."""
        c = self.config
        student, teacher = s["embed"], t["embed"].detach()
        if c.form == "embedding":
            loss = embedding_loss(self.student_embedding(student), self.teacher_embedding(teacher))
        else:
            loss = kernel_loss(student, teacher, c.kernel_gamma, c.order)
        return {"cc": c.beta * loss}
