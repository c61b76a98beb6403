"""Activation boundaries: a first stage teaches the student where the teacher's neurons switch on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, ModelSpec, Outputs, Paper, Progress, Shapes, Wish, hp
from kdpipe.nn.adapters import connector
from kdpipe.nn.feature_method import FeatureMethod, FeatureSettings, soteacher_weights
from kdpipe.nn.logits import full
from kdpipe.nn.taps import pair_stages, unpaired

SCALE = 3 / 1000  # of the sum over elements, as in the authors' code; the weights belong to this form


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared hinge on the side of each neuron: `mean_i sum relu(m - a s)^2`, a = 1 where t > 0, else -1.

    Args:
        student: B x C x H x W, before the ReLU and after the connector.
        teacher: B x C x H x W, before the ReLU; only its signs matter.
        margin: m > 0, how far beyond the boundary the student's neuron must be.

    Returns:
        A scalar >= 0: the mean over the batch of the sum over neurons.

    Source: Heo et al. 2019, the loss that stands in for the activation transfer loss. Deviation: none
    (the authors' code writes the two sides as masks; the values are equal).
    """
    s, t = full(student), full(teacher).detach()
    side = torch.where(t > 0, 1.0, -1.0)
    return (margin - side * s).clamp(min=0).square().sum() / len(s)


def boundaries_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], margin: float) -> Tensor:
    """Weighted sum over n stages, the deepest counting most: `3/1000 sum_i 2^(i - n) boundary_i`, i = 1..n.

    Args:
        students: a map per stage, B x C x H x W each, from the first stage to the last.
        teachers: maps of the same shapes.
        margin: m > 0.

    Returns:
        A scalar >= 0.

    Source: the authors' code and RepDistiller; the paper states no weights of stages.
    """
    stages = list(zip(students, teachers, strict=True))
    halvings = range(1 - len(stages), 1)
    return (
        SCALE
        * torch.stack(
            [2.0**power * boundary_loss(s, t, margin) for power, (s, t) in zip(halvings, stages, strict=True)]
        ).sum()
    )


class AB(FeatureMethod):
    """The student first copies which of the teacher's neurons are on, then learns the labels.

    Loss: `beta 3/1000 sum_i 2^(i - n) mean sum relu(m - a_i r_i(f_s,i))^2` with `a_i = sign(f_t,i)` in
    `init_epochs` epochs of a first stage, as the term `boundary`; then
    `gamma CE(z_s, y) [+ alpha T^2 KL(p_t || p_s)]`, as the terms `ce` and, with alpha > 0, `kd`. The
    connectors r_i are `kdpipe.nn.adapters.connector` without ReLU, or nothing where the shapes agree.

    Taps: the stages of both networks before their last ReLU, B x C x H x W each, paired by the size of their
    maps (`kdpipe.nn.taps.pair_stages`); n is the number of pairs.

    Deviations: the paper's second stage is KD (the authors' code: KD alone, T = 3, without labels);
    the default is RepDistiller's plain cross entropy, on which the published tables of others rest, and
    alpha adds KD. RepDistiller multiplies beta into a main-stage term that is 0, so that it has no
    effect there; here beta weighs the first stage, where RepDistiller's weight is 1: SoTeacher's published
    0.5 halves that stage's loss, which its code did not. Stages are paired by size instead of
    by position, so that networks with different numbers of stages can be taught. The authors train the
    teacher's batch norms on batch statistics in the first stage; here, as in RepDistiller, the teacher is
    in eval mode. Linear bottlenecks (MobileNetV2) are read as they are, as in RepDistiller, though no ReLU
    reads them (the authors go on to the next one); networks without `.pre` taps are refused.

    Reference: Heo et al. 2019, section "Activation boundary"; code: bhheo/AB_distillation; Dong et al. 2024
    (SoTeacher), Table 5, for the published weights with KD.
    """

    name = "ab"
    paper = Paper(
        "Knowledge transfer via distillation of activation boundaries formed by hidden neurons",
        "B. Heo, M. Lee, S. Yun, J. Y. Choi",
        "AAAI",
        2019,
        "https://arxiv.org/abs/1811.03233",
    )
    published = soteacher_weights(standard=1, soteacher=0.5)

    class Config(FeatureSettings):
        """Weights, margin, and the length of the first stage."""

        beta: float = hp(1.0, ge=0, doc="weight of the first stage's loss", source="RepDistiller -b 1")
        margin: float = hp(1.0, gt=0, doc="margin around a boundary", source="RepDistiller ABLoss margin=1.0")
        init_epochs: int = hp(
            30, epochs=True, ge=0, doc="epochs of the first stage", source="RepDistiller --init_epochs 30"
        )

    config: Config

    def taps(self) -> Wish:
        """Every stage before its last ReLU."""
        return Wish(student=("stages.pre",), teacher=("stages.pre",))

    def skip(self, student: ModelSpec, teacher: ModelSpec) -> str | None:
        """A network that declares no place before a ReLU, or stages of which no two have one size."""
        for model in (student, teacher):
            missing = [f"{stage}.pre" for stage in model.stages if f"{stage}.pre" not in model.taps]
            if missing:
                return f"{model.name} has no tap '{missing[0]}' (a stage before its ReLU)"
        return unpaired(student, teacher)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """A connector for each pair of stages."""
        self.pairs = pair_stages(student, teacher, ".pre")
        self.connectors = nn.ModuleList(
            nn.Identity()
            if student[mine] == teacher[its]
            else connector(student[mine], teacher[its], relu=False)
            for mine, its in self.pairs
        )

    def first_stage(self) -> int:
        """The epochs in which only boundaries are learnt."""
        return int(self.config.init_epochs)

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The boundaries in the first stage; labels, and logits where they have a weight, in the main one."""
        if not at.first_stage:
            return super().loss(s, t, batch, at)
        c = self.config
        mine = [link(s[tap]) for link, (tap, _) in zip(self.connectors, self.pairs, strict=True)]
        its = [t[tap] for _, tap in self.pairs]
        return {"boundary": c.beta * boundaries_loss(mine, its, c.margin)}

    def terms(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """None in the main stage."""
        return {}
