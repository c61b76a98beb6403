"""SSKD: the teacher also shows how alike it finds rotated views of the images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    Method,
    Outputs,
    Paper,
    Progress,
    Published,
    Settings,
    Shapes,
    TeacherPart,
    Wish,
    hp,
)
from kdpipe.nn.feature_method import SOTEACHER_PAIRS
from kdpipe.nn.logits import cross_entropy, full, kl
from kdpipe.nn.mixing import four_rotations

PAPER = Paper(
    "Knowledge distillation meets self-supervision",
    "G. Xu, Z. Liu, X. Li, C. C. Loy",
    "ECCV",
    2020,
    "https://arxiv.org/abs/2006.07114",
)
TURNED = 3  # views of an image beside the normal one


def similarities(features: Tensor) -> Tensor:
    """Cosine similarity of each rotated view to each normal view: `<x_r, x_n> / (|x_r| |x_n|)`.

    Args:
        features: 4B x D, the B normal views first.

    Returns:
        3B x B, in [-1, 1]; row k B + i belongs to image i.

    Source: Xu et al. 2020, section 3.1. Deviation: none.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(full(features))
        images = len(unit) // (TURNED + 1)
        return unit[images:] @ unit[:images].T


def contrastive_loss(features: Tensor) -> Tensor:
    """Cross entropy of finding a rotated view's own image among the normal views: `mean CE(sim, own)`.

    Args:
        features: 4B x D, as in `similarities`.

    Returns:
        A scalar, in nats.

    Source: Xu et al. 2020, section 3.1. Deviation: the similarities are not divided by a temperature, as in
    the authors' code.
    """
    found = similarities(features)
    return cross_entropy(found, own_image(found))


def selected_kl(
    student: Tensor, teacher: Tensor, targets: Tensor, ratio: float, temperature: float
) -> Tensor:
    """Tempered divergence over the rows on which the teacher may be trusted: `T^2 mean_kept KL(p_t || p_s)`.

    Args:
        student: scores, N x M.
        teacher: scores, N x M; they also decide which rows are kept (`trusted`).
        targets: N, int64: the right answer of each row.
        ratio: share of the teacher's wrong rows that is kept.
        temperature: T > 0.

    Returns:
        A scalar >= 0; 0 where no row is kept.

    Source: Xu et al. 2020, section 3.3. Deviation: where no row is kept, 0 instead of NaN.
    """
    log_s = F.log_softmax(full(student) / temperature, 1)
    log_t = F.log_softmax(full(teacher).detach() / temperature, 1)
    kept = trusted(teacher, targets, ratio)
    each = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
    return temperature**2 * (each * kept).sum() / kept.sum().clamp(min=1)


@torch.no_grad()
def trusted(scores: Tensor, targets: Tensor, ratio: float) -> Tensor:
    """The rows in which the target has the highest score, and the nearest misses among the others.

    Args:
        scores: N x M.
        targets: N, int64.
        ratio: share of the other rows that is kept, rounded down: those with the best rank of the target.

    Returns:
        N, bool. Of rows with equal ranks the earlier are kept.

    Source: Xu et al. 2020, section 3.3 (error level ranking).
    """
    rank = (scores > scores.gather(1, targets[:, None])).sum(1)
    right = (rank == 0).sum()
    kept = right + ((len(rank) - right) * ratio).floor()
    return rank.argsort(stable=True).argsort() < kept


def own_image(scores: Tensor) -> Tensor:
    """For each row of `similarities`, the column of its own image: 3B, int64."""
    return torch.arange(scores.shape[1], device=scores.device).repeat(TURNED)


def projection(width: int) -> nn.Sequential:
    """The head on which views are compared: linear, ReLU, linear, all of one width."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class SSHead(TeacherPart):
    """A projection head on the teacher's features finds the image that a rotated view was made of.

    Loss: `mean CE(cos(h(x_r), h(x_n)), own image)` of the three rotated views of each image against the
    normal views of all, as the term `contrast`.

    Taps: `embed` of the teacher, 4B x D (four rotations of the batch). It adds `projection`, 4B x D.

    Deviations: the four views of an image are rotations of one crop, where the authors crop each anew (the
    engine augments before it rotates).

    Reference: Xu et al. 2020, section 3.1; code: xuguodong03/SSKD, student.py.
    """

    name = "sskd_head"
    paper = PAPER

    class Config(Settings):
        """Length and rate of the training."""

        epochs: int = hp(60, ge=1, doc="epochs of training", source="SSKD student.py --t-epoch 60")
        lr: float = hp(0.05, gt=0, doc="first learning rate", source="SSKD student.py --t-lr 0.05")

    config: Config

    def protocol(self) -> dict[str, Any]:
        """Its own epochs and rate, which falls tenfold after a half and after three quarters of them."""
        epochs = self.config.epochs
        milestones = sorted({max(1, epochs // 2), max(1, epochs * 3 // 4)})
        steps = {"schedule": "step", "milestones": milestones, "gamma": 0.1, "drop": "after"}
        return {"epochs": epochs, "lr": self.config.lr, **steps}

    def taps(self) -> Wish:
        """The teacher's features."""
        return Wish(teacher=("embed",))

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The batch in four rotations."""
        return (four_rotations(batch.images),)

    def build(self, teacher: Shapes, data: DataInfo) -> None:
        """The head."""
        self.head = projection(teacher["embed"][0])

    def extend(self, t: Outputs) -> dict[str, Tensor]:
        """The projected features."""
        return {"projection": self.head(t["embed"])}

    def loss(self, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """How well views are recognised."""
        return {"contrast": contrastive_loss(self.head(t["embed"].detach()))}


class SSKD(Method):
    """KD on rotated images too, and on how alike the teacher finds rotated and normal views.

    Loss: `gamma CE(z_s, y) + alpha T^2 KL(p_t || p_s) + tf T_r^2 KL_kept(p_t || p_s) + ss T_ss^2
    KL_kept(a_t || a_s)`, as the terms `ce` and `kd` (normal images), `tf` (the three rotated views) and `ss`.
    a is the softmax of a rotated view's cosine similarities to all normal views, of projected features.
    KL_kept is the mean over all rotated views that the teacher gets right (the label in `tf`, the own image
    in `ss`) and over the share `tf_ratio` or `ss_ratio` of the others, nearest misses first.

    Taps: `embed` of the student, 4B x D, and `projection` of the teacher, 4B x D', which the part `sskd_head`
    adds; the logits of both, 4B x C. Row k B + i is image i turned k times by 90 degrees.

    Deviations: the weights are those of the authors' code (tf 2.7, ss 10); the arXiv paper states them the
    other way round. SoTeacher prints (1, 1, 2.7, 10), and 1 for the third with its own teachers, without
    saying which is which; they are read in the order of the code's options: ce, kd, tf, ss. The four views
    of an image are rotations of one crop, where the authors crop each anew. Of equally ranked rows the
    earlier are kept, where the authors' order is arbitrary.

    Reference: Xu et al. 2020, sections 3.1 to 3.3; code: xuguodong03/SSKD, student.py; Dong et al. 2024
    (SoTeacher), Appendix D.2, for the published weights.
    """

    name = "sskd"
    paper = PAPER
    published = tuple(
        Published(
            {"gamma": 1, "alpha": 1, "tf": tf, "ss": 10},
            "SoTeacher (Dong et al. 2024), Appendix D.2",
            "cifar100",
            teacher,
            student,
            recipe,
        )
        for teacher, student in SOTEACHER_PAIRS
        for recipe, tf in (("standard", 2.7), ("soteacher", 1))
    )

    class Config(Settings):
        """Weights, temperatures, which samples are kept, and how the teacher's head is made."""

        gamma: float = hp(0.1, ge=0, doc="weight of the labels' cross entropy", source="SSKD --ce-weight 0.1")
        alpha: float = hp(0.9, ge=0, doc="weight of KD on normal images", source="SSKD --kd-weight 0.9")
        tf: float = hp(2.7, ge=0, doc="weight of KD on rotated images", source="SSKD --tf-weight 2.7")
        ss: float = hp(10.0, ge=0, doc="weight of the similarities", source="SSKD --ss-weight 10")
        temperature: float = hp(4.0, gt=0, doc="T of KD on normal images", source="SSKD --kd-T 4")
        tf_temperature: float = hp(4.0, gt=0, doc="T of KD on rotated images", source="SSKD --tf-T 4")
        ss_temperature: float = hp(0.5, gt=0, doc="T of the similarities", source="SSKD --ss-T 0.5")
        tf_ratio: float = hp(
            1.0, ge=0, le=1, doc="share of the teacher's errors kept in `tf`", source="SSKD --ratio-tf 1"
        )
        ss_ratio: float = hp(
            0.75, ge=0, le=1, doc="share of the teacher's errors kept in `ss`", source="SSKD --ratio-ss 0.75"
        )
        part_epochs: int = hp(
            60, epochs=True, ge=1, doc="epochs of the teacher's head", source="SSKD --t-epoch 60"
        )
        part_lr: float = hp(0.05, gt=0, doc="first rate of the teacher's head", source="SSKD --t-lr 0.05")

    config: Config

    def taps(self) -> Wish:
        """The student's features; the teacher's projection comes with its part."""
        return Wish(student=("embed",))

    def part(self) -> SSHead:
        """The teacher's projection head."""
        return SSHead(SSHead.Config(epochs=self.config.part_epochs, lr=self.config.part_lr))

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The batch in four rotations."""
        return (four_rotations(batch.images),)

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The student's projection head."""
        self.head = projection(student["embed"][0])

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Labels and logits of the normal views, logits of the rotated ones, and their similarities."""
        c, size = self.config, len(batch.labels)
        normal, its_normal = s.logits[:size], t.logits[:size]
        turned, its_turned = s.logits[size:], t.logits[size:]
        alike, its_alike = similarities(self.head(s["embed"])), similarities(t["projection"])
        labels, own = batch.labels.repeat(TURNED), own_image(alike)
        return {
            "ce": c.gamma * cross_entropy(normal, batch.labels),
            "kd": c.alpha * kl(normal, its_normal, c.temperature),
            "tf": c.tf * selected_kl(turned, its_turned, labels, c.tf_ratio, c.tf_temperature),
            "ss": c.ss * selected_kl(alike, its_alike, own, c.ss_ratio, c.ss_temperature),
        }
