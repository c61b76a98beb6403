"""ReviewKD: each level of the teacher teaches all deeper levels of the student."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    ModelSpec,
    Outputs,
    Paper,
    Progress,
    Published,
    Shapes,
    Wish,
    hp,
)
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings
from kdpipe.nn.logits import full
from kdpipe.nn.taps import pair_stages, unpaired

WIDEST = 512  # channels in which maps are fused, at most
POOLED = (4, 2, 1)  # sides of the pooled maps that are compared too

BETA = {  # (teacher, student) -> beta on CIFAR-100
    ("wrn_40_2", "wrn_16_2"): 5,
    ("wrn_40_2", "wrn_40_1"): 5,
    ("wrn_40_2", "shufflenetv1"): 5,
    ("resnet32x4", "resnet8x4"): 5,
    ("resnet32x4", "shufflenetv1"): 5,
    ("resnet32x4", "shufflenetv2"): 8,
    ("resnet56", "resnet20"): 0.6,
    ("resnet110", "resnet32"): 1,
}
IMAGENET_BETA = {
    ("imagenet_resnet34", "imagenet_resnet18"): 1,
    ("imagenet_resnet50", "imagenet_mobilenetv1"): 8,
}


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss (HCL) of one level: `sum_k w_k mse(P_k f_s, P_k f_t) / sum_k w_k`.

    P_0 is the identity; the others are average pools to 4 x 4, 2 x 2 and 1 x 1, of which those smaller
    than the map are used. `w = 1, 1/2, 1/4, ...` in the order of use; mse is the mean over elements.

    Args:
        student: B x C x H x W, after the fusion.
        teacher: B x C x H x W.

    Returns:
        A scalar >= 0.

    Source: Chen et al. 2021, section 3; pools and weights from the authors' code.
    """
    s, t = full(student), full(teacher).detach()
    sides = [side for side in POOLED if side < min(s.shape[2:])]
    errors = [F.mse_loss(s, t)]
    errors += [F.mse_loss(F.adaptive_avg_pool2d(s, n), F.adaptive_avg_pool2d(t, n)) for n in sides]
    weights = [0.5**k for k in range(len(errors))]
    return torch.stack([w * e for w, e in zip(weights, errors, strict=True)]).sum() / sum(weights)


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student's map with what was fused of the deeper ones.

    The map is brought to `width` channels by a 1 x 1 convolution with batch norm; the deeper one, enlarged,
    is added; both are weighted at each place by a sigmoid of a 1 x 1 convolution of the two. The sum is
    brought to the teacher's size (nearest neighbour) and, by a 3 x 3 convolution with batch norm, to its
    channels.

    Args:
        inputs: channels of the student's map.
        width: channels of the fused maps.
        outputs: shape of the teacher's map, C x H x W.
        deepest: there is nothing deeper to fuse with.
    """

    def __init__(self, inputs: int, width: int, outputs: tuple[int, ...], *, deepest: bool) -> None:
        super().__init__()
        channels, *size = outputs
        self.size = tuple(size)
        self.narrow = _convolution(inputs, width, 1)
        self.widen = _convolution(width, channels, 3)
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher's map, and what the next shallower level fuses with."""
        fused: Tensor = self.narrow(maps)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:])
            mine, theirs = self.attention(torch.cat([fused, deeper], 1)).sigmoid().split(1, 1)
            fused = mine * fused + theirs * deeper
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, self.size)
        return self.widen(fused), fused


class ReviewKD(FeatureMethod):
    """Each map of the teacher is matched by a fusion of the student's map of that level and all deeper ones.

    Loss: `gamma CE(z_s, y) + w beta sum_i HCL(F_i, f_t,i) [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce`,
    `review` and, with alpha > 0, `kd`; `F_i` fuses `f_s,i` with `F_i+1` (`Fusion`), HCL is `context_loss`,
    `w = min(epoch / warmup, 1)` with epochs counted from 0: the first has weight 0.

    Taps: `stages` (or `stages.pre`) and `embed`, as a map of side 1, of both networks; B x C x H x W each.
    Networks with equally many stages are paired in order, whatever the sizes of the maps (as in the
    published settings: fusions are resized to the teacher's maps); others by map size
    (`kdpipe.nn.taps.pair_stages`), which the paper leaves open; the student's stages without a partner are
    then left out of the fusion.

    Deviations: the teacher is in eval mode; the authors' code for CIFAR leaves it in training mode (that for
    ImageNet does not). A wide resnet's maps are raw residual sums in a student and batch-normalised in a
    teacher, as in that code. mdistiller counts the epochs of the warm-up from 1, so that its warm-up of 1 on
    ImageNet is none.

    Weights: published for the pairs of the authors' script. Sources are silent on pairs with VGG and
    MobileNetV2 on CIFAR-100; there the default stands, the weight of most other pairs.

    Reference: Chen et al. 2021, section 3; weights from the authors' script.
    """

    name = "reviewkd"
    paper = Paper(
        "Distilling knowledge via knowledge review",
        "P. Chen, S. Liu, H. Zhao, J. Jia",
        "CVPR",
        2021,
        "https://arxiv.org/abs/2104.09044",
    )
    published = (
        *(
            Published({"beta": beta}, "authors' code, script/reviewKD.sh", "cifar100", teacher, student)
            for (teacher, student), beta in BETA.items()
        ),
        *(
            Published(
                {"beta": beta, "warmup": 0, "student_pre": True},
                "mdistiller, configs/imagenet (no warm-up, as in the authors' code for ImageNet)",
                "imagenet",
                teacher,
                student,
            )
            for (teacher, student), beta in IMAGENET_BETA.items()
        ),
    )

    class Config(FeatureSettings):
        """Weight, warm-up and which maps are compared."""

        beta: float = hp(
            5.0,
            ge=0,
            doc="weight of the levels' losses",
            source="authors' script (most pairs); mdistiller, configs/cifar100",
        )
        warmup: int = hp(
            20, epochs=True, ge=0, doc="epochs of linear warm-up", source="authors' code, --kd-warm-up 20"
        )
        teacher_pre: bool = hp(
            True, doc="the teacher's maps before the ReLU", source="authors' code, preact=True"
        )
        student_pre: bool = hp(
            False, doc="the student's maps before the ReLU", source="authors' code (CIFAR-100)"
        )

    config: Config

    def taps(self) -> Wish:
        """Every stage, and the pooled features."""
        student, teacher = ("stages.pre" if pre else "stages" for pre in self._pre())
        return Wish(student=(student, "embed"), teacher=(teacher, "embed"))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """Networks without stages, without the wished-for maps, or without a way to pair their stages."""
        for model, pre in zip((student, teacher), self._pre(), strict=True):
            if not model.stages:
                return f"{model.name} has no stages"
            if pre and any(f"{stage}.pre" not in model.taps for stage in model.stages):
                return f"{model.name} has no maps before the ReLU (`stageN.pre`)"
        return None if len(student.stages) == len(teacher.stages) else unpaired(student, teacher)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """A fusion for each pair of levels, from the deepest to the shallowest."""
        mine, theirs = _as_maps(student), _as_maps(teacher)
        self.levels = [("embed", "embed"), *reversed(_pairs(mine, theirs))]
        width = min(WIDEST, mine["embed"][0])
        self.fusions = nn.ModuleList(
            Fusion(mine[s][0], width, theirs[t], deepest=s == "embed") for s, t in self.levels
        )

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The levels' losses, summed."""
        c = self.config
        mine, theirs = _maps(s), _maps(t)
        losses: list[Tensor] = []
        deeper = None
        for fusion, (student, teacher) in zip(self.fusions, self.levels, strict=True):
            compared, deeper = fusion(mine[student], deeper)
            losses.append(context_loss(compared, theirs[teacher]))
        warm = min(at.epoch / c.warmup, 1.0) if c.warmup else 1.0
        return {"review": warm * c.beta * torch.stack(losses).sum()}

    def _pre(self) -> tuple[bool, bool]:
        return self.config.student_pre, self.config.teacher_pre


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution that keeps the map's size, with batch norm; weights as in the authors' code."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _pairs(student: Shapes, teacher: Shapes) -> list[tuple[str, str]]:
    """Stages of two networks, from the first to the last: in order if equally many, else by map size."""
    mine, theirs = _stages(student), _stages(teacher)
    return list(zip(mine, theirs, strict=True)) if len(mine) == len(theirs) else pair_stages(student, teacher)


def _stages(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("stage")]


def _as_maps(shapes: Shapes) -> Shapes:
    """Shapes by bare names (`stage2.pre` as `stage2`), the vector as a map of side 1."""
    maps = {name.removesuffix(".pre"): shape for name, shape in shapes.items()}
    return {**maps, "embed": (*maps["embed"], 1, 1)}


def _maps(out: Outputs) -> dict[str, Tensor]:
    """Taps by bare names, the vector as a map of side 1."""
    maps = {name.removesuffix(".pre"): tap for name, tap in out.taps.items()}
    return {**maps, "embed": maps["embed"][:, :, None, None]}
