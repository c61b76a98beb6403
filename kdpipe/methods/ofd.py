"""Overhaul of feature distillation (OFD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    ModelSpec,
    Norms,
    Outputs,
    Paper,
    Progress,
    Published,
    Shapes,
    Wish,
    hp,
)
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings
from kdpipe.nn.layers import he_normal
from kdpipe.nn.logits import full
from kdpipe.nn.taps import pair_stages, unpaired

RARE = 1e-3  # a channel that is negative less often takes the margin -3 s


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance to the teacher after margin ReLU: `1/B sum [t > 0 or s > t'] (s - t')^2`.

    Here `t' = max(t, margin)`. Where the teacher does not respond (t <= 0), a student below t' is right.

    Args:
        student: B x C x H x W, after the connector.
        teacher: B x C x H x W, before the ReLU.
        margin: C, at most 0.

    Returns:
        A scalar >= 0: summed over the map, averaged over the batch.

    Source: Heo et al. 2019, section 3 (margin ReLU and partial L2). Deviation: the mean over the batch, as
    in the authors' training script.
    """
    s = full(student)
    target = torch.maximum(full(teacher).detach(), margin.to(s.dtype)[:, None, None])
    counts = (target > 0) | (s > target)
    return (s - target).square().where(counts, 0).sum() / len(s)


def expected_negative(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean negative response of a batch norm's output: `E[x | x < 0]`, `x ~ N(bias, weight^2)`.

        m = mu - s phi(mu / s) / Phi(-mu / s)   where Phi(-mu / s) > 0.001,   else -3 s

    Args:
        weight: C; its absolute value is the standard deviation s.
        bias: C; the mean mu.

    Returns:
        C margins, at most 0.

    Source: Heo et al. 2019, section 3 (margin ReLU); the case of rare negatives from the authors' code.
    Deviation: with s = 0, where theirs divides by zero, it is the limit min(mu, 0).
    """
    mean, deviation = full(bias), full(weight).abs()
    tiny = torch.finfo(mean.dtype).tiny
    z = (mean / deviation.clamp(min=tiny)).clamp(-100, 100)
    log_negative = torch.special.log_ndtr(-z)
    hazard = torch.exp(-z.square() / 2 - math.log(2 * math.pi) / 2 - log_negative)
    margin = torch.where(log_negative > math.log(RARE), mean - deviation * hazard, -3 * deviation)
    return margin.clamp(max=0)


class MeanNegative(nn.Module):
    """Mean of the negative responses of each channel, over all that it has seen.

    Args:
        channels: C.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(channels, dtype=torch.int64))

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        """C means; maps (B x C x H x W) are taken in first, while in training."""
        negative = full(maps).clamp(max=0)
        count = (negative < 0).sum((0, 2, 3))
        seen = self.count + count
        # the step from the old mean to the new one, which stays exact however much was seen
        mean = self.mean + (negative.sum((0, 2, 3)) - count * self.mean) / seen.clamp(min=1)
        if self.training:
            self.mean.copy_(mean)
            self.count.copy_(seen)
        return mean


class OFD(FeatureMethod):
    """Connected maps before the ReLU match the teacher's, but for how negative they are where it is silent.

    Loss: `gamma CE(z_s, y) + beta sum_i 2^-(n - i) d(r_i(f_s,i), f_t,i) [+ alpha T^2 KL(p_t || p_s)]`, pairs
    of maps i = 1 ... n, as the terms `ce`, `ofd` and, with alpha > 0, `kd`. d is `partial_distance`, r a
    1 x 1 convolution with batch norm. Margins come from the teacher's batch norms (`expected_negative`).

    Taps: `stages.pre` of both networks, B x C x H x W each, paired by `kdpipe.nn.taps.pair_stages`: by map
    size, the deepest stage of each.

    Deviations: none in the loss. The paper's pairs have stages of equal sizes. For others mdistiller pairs
    stages from the last backwards, pools the teacher's larger maps, and counts the margins from the first
    stage; here maps of one size are compared, with their own margins, and stages without a partner are left
    out. The batch norm in front of a residual sum stands for the sum, as in the authors' code. A teacher
    whose batch norms use the batch's statistics (the default, as in the paper) keeps its running ones,
    which the authors' code moves.

    Weights: published for CIFAR-100 (0.001) and ImageNet (0.0001), for all pairs alike.

    Reference: Heo et al. 2019, section 3.
    """

    name = "ofd"
    paper = Paper(
        "A comprehensive overhaul of feature distillation",
        "B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi",
        "ICCV",
        2019,
        "https://arxiv.org/abs/1904.01866",
    )
    published = (
        Published(
            {"beta": 1e-4}, "authors' code (/ 10000 on ImageNet); mdistiller, configs/imagenet", "imagenet"
        ),
    )

    class Config(FeatureSettings):
        """Weight, margins and the teacher's statistics."""

        beta: float = hp(
            1e-3, ge=0, doc="weight of the maps' distance", source="authors' code (/ 1000 on CIFAR)"
        )
        margins: Literal["norm", "responses"] = hp(
            "norm",
            doc="margins from the teacher's batch norms, or the running mean of its negative responses",
            source="paper, section 3; the second for networks without batch norm by the authors (issue 7)",
        )
        teacher_statistics: Literal["batch", "eval"] = hp(
            "batch",
            doc="statistics that the teacher's batch norms use: the batch's or the running ones",
            source="paper, Table 8",
        )

    config: Config

    def taps(self) -> Wish:
        """The maps of every stage before the ReLU."""
        batch = self.config.teacher_statistics == "batch"
        return Wish(student=("stages.pre",), teacher=("stages.pre",), batch_statistics=batch)

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """Networks without maps before a ReLU or with no size in common, a teacher without batch norms."""
        for model in (student, teacher):
            if any(f"{stage}.pre" not in model.taps for stage in model.stages):
                return f"{model.name} has no maps before the ReLU (`stageN.pre`)"
        if self.config.margins == "norm":
            for stage in teacher.stages:
                if teacher.taps[f"{stage}.pre"].norm is None:
                    return (
                        f"{teacher.name} has no batch norm right before a ReLU in {stage}, which would give "
                        "the margins; `margins: responses` takes them from its negative responses"
                    )
        return unpaired(student, teacher)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """A connector and margins for each pair of maps."""
        self.pairs = pair_stages(student, teacher, ".pre")
        self.connectors = nn.ModuleList(connector(student[s][0], teacher[t][0]) for s, t in self.pairs)
        self.seen = nn.ModuleList()
        for n, (_, t) in enumerate(self.pairs):
            if self.config.margins == "responses":
                self.seen.append(MeanNegative(teacher[t][0]))
            else:
                self.register_buffer(f"margin{n}", torch.zeros(teacher[t][0]))

    def read_norms(self, teacher: Norms) -> None:
        """The margins."""
        if self.config.margins == "norm":
            for n, (_, t) in enumerate(self.pairs):
                self.get_buffer(f"margin{n}").copy_(expected_negative(*teacher[t]))

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The weighted sum over the pairs; each counts twice as much as the one before it."""
        mine = [connect(s[name]) for connect, (name, _) in zip(self.connectors, self.pairs, strict=True)]
        theirs = [t[name] for _, name in self.pairs]
        distances = map(partial_distance, mine, theirs, self._margins(theirs))
        last = len(self.pairs) - 1
        total = torch.stack([d / 2 ** (last - n) for n, d in enumerate(distances)]).sum()
        return {"ofd": self.config.beta * total}

    def _margins(self, teacher: Sequence[Tensor]) -> list[Tensor]:
        if self.config.margins == "responses":
            return [seen(maps) for seen, maps in zip(self.seen, teacher, strict=True)]
        return [self.get_buffer(f"margin{n}") for n in range(len(teacher))]


def connector(inputs: int, outputs: int) -> nn.Module:
    """A 1 x 1 convolution with batch norm: B x inputs x H x W to B x outputs x H x W."""
    layers = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    he_normal(layers)
    return layers
