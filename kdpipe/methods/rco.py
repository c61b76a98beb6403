"""Route-constrained optimisation: the teacher's own training as a curriculum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kdpipe.api import (
    Batch,
    DataInfo,
    Method,
    Outputs,
    Paper,
    Progress,
    Settings,
    Shapes,
    hp,
)
from kdpipe.nn.logits import cross_entropy, kl


class RCO(Method):
    """The student follows the teacher's training from checkpoint to checkpoint.

    Loss: `gamma CE(z_s, y) + alpha T^2 KL(p_a || p_s)`, p_a being the anchor's prediction, as the terms `ce`
    and `kd`.

    The teacher's epochs are cut into `anchors` equal intervals, whose ends are the anchors. The student's
    epochs are cut into as many. `equal`: the i-th interval learns from the i-th anchor. `greedy`: at the
    start of each interval the furthest anchor is taken whose divergence from the student,
    `mean KL(p_a || p_s)` on training images, is at most `threshold`; never an earlier one than before, one
    further when none is near enough, and the last one in the last interval.

    Taps: the logits of both networks (B x C).

    Deviations: the paper measures the divergence on a validation set; here it is measured on training
    images, since not every study holds any out. Its rule for the threshold compares it with the
    divergence at the stage's start; here it is in nats. By default one schedule of the learning rate
    spans all anchors (one stage, as SoTeacher has it); `restart` runs the schedule anew at each anchor.
    Weights and temperature are SoTeacher's of KD, since it prints none of RCO. An imported teacher has no
    earlier epochs; it teaches alone, as in KD.

    Reference: Jin et al. 2019, Section 3; Dong et al. 2024 (SoTeacher), Appendix D.2, for the 24 anchors.
    """

    name = "rco"
    unsettled = "the greedy rule and its threshold follow second-hand accounts"
    logit_only = True
    paper = Paper(
        "Knowledge distillation via route constrained optimization",
        "X. Jin, B. Peng, Y. Wu, Y. Liu, J. Liu, D. Liang, J. Yan, X. Hu",
        "ICCV",
        2019,
        "https://arxiv.org/abs/1904.09149",
    )

    class Config(Settings):
        """The route and the weights."""

        gamma: float = hp(
            0.5, ge=0, doc="weight of the labels' cross entropy", source="SoTeacher, Appendix D.2"
        )
        alpha: float = hp(0.5, ge=0, doc="weight of the divergence", source="SoTeacher, Appendix D.2")
        temperature: float = hp(4.0, gt=0, doc="T of the divergence", source="SoTeacher, Appendix D.2")
        anchors: int = hp(24, ge=1, doc="checkpoints of the teacher", source="SoTeacher, Appendix D.2")
        choice: Literal["equal", "greedy"] = hp(
            "equal", doc="how the next anchor is chosen", source="SoTeacher, Appendix D.2 (EEI)"
        )
        threshold: float = hp(
            1.0,
            gt=0,
            doc="greedy: largest divergence to an anchor, in nats",
            source="ours; the paper's is relative",
        )
        restart: bool = hp(
            False, doc="run the schedule anew at each anchor", source="SoTeacher, Appendix D.2 (one stage)"
        )

    config: Config
    position: Tensor

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The position on the route."""
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def anchors(self, epochs: int) -> tuple[int, ...]:
        """The ends of equal intervals of the teacher's epochs."""
        return interval_ends(epochs, self.config.anchors)

    def anchor(self, at: Progress, count: int, gaps: Callable[[], list[float]]) -> int:
        """The anchor of the interval that this epoch lies in."""
        interval = at.epoch * count // at.epochs
        if self.config.choice == "equal":
            return interval
        if at.epoch == 0 or interval != (at.epoch - 1) * count // at.epochs:
            first = 0 if at.epoch == 0 else int(self.position) + 1
            self.position.fill_(next_anchor(gaps(), first, self.config.threshold, interval))
        return int(self.position)

    def schedule_epoch(self, at: Progress) -> int:
        """The epoch itself or, with restarts, the place within the interval stretched over all epochs."""
        if not self.config.restart:
            return at.epoch
        count = min(self.config.anchors, at.epochs)
        return at.epoch * count % at.epochs

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy, and the divergence from the anchor."""
        c = self.config
        return {
            "ce": c.gamma * cross_entropy(s.logits, batch.labels),
            "kd": c.alpha * kl(s.logits, t.logits, c.temperature),
        }


def interval_ends(epochs: int, count: int) -> tuple[int, ...]:
    """The last epochs (from 1) of `count` equal intervals; every epoch where there are fewer than that."""
    count = min(count, epochs)
    return tuple(-(-epochs * i // count) for i in range(1, count + 1))


def next_anchor(gaps: list[float], first: int, threshold: float, interval: int) -> int:
    """The greedy choice: the furthest anchor within reach.

    Args:
        gaps: divergence of each anchor from the student, in nats.
        first: the first anchor that may be chosen.
        threshold: largest divergence that is within reach.
        interval: which of as many intervals begins; in the last one the last anchor is chosen.

    Returns:
        A position among the anchors, at least `first` where there is one.
    """
    last = len(gaps) - 1
    if interval >= last:
        return last
    near = [i for i in range(first, len(gaps)) if gaps[i] <= threshold]
    return max(near, default=min(first, last))
