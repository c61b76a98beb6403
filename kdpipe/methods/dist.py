"""DIST: correlation instead of equality."""

from __future__ import annotations

import torch
from torch import Tensor

from kdpipe.api import Paper, Published, hp
from kdpipe.nn.logit_method import LogitMethod, LogitSettings
from kdpipe.nn.logits import full

EPS = 1e-8  # of the authors' code: a constant row or column correlates with nothing
IMAGENET_PAIRS = (("imagenet_resnet34", "imagenet_resnet18"), ("imagenet_resnet50", "imagenet_mobilenetv1"))


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """One minus the mean correlation of rows: `1 - mean_i a_i.b_i / (|a_i| |b_i| + 1e-8)`, a and b centred.

    Args:
        a: N x M.
        b: N x M.

    Returns:
        A scalar in [0, 2], the same for any positive affine map of a row.

    Source: Huang et al. 2022, section 3 (Pearson's distance).
    """
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return 1 - ((a * b).sum(1) / (norms + EPS)).mean()


def inter_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distance of each sample's probabilities: `T^2 (1 - mean_i r(p_s[i, :], p_t[i, :]))`, r the correlation.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar >= 0.

    Source: Huang et al. 2022, section 3 (inter-class relation). Deviation: the factor T^2 of the
    authors' code.
    """
    return temperature**2 * pearson_distance(*_probabilities(student, teacher, temperature))


def intra_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distance of each class's probabilities: `T^2 (1 - mean_c r(p_s[:, c], p_t[:, c]))`, over the batch.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar >= 0. It depends on which samples share a batch.

    Source: Huang et al. 2022, section 3 (intra-class relation). Deviation: the factor T^2 of the
    authors' code.
    """
    s, t = _probabilities(student, teacher, temperature)
    return temperature**2 * pearson_distance(s.T, t.T)


def _probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    s, t = full(student) / temperature, full(teacher).detach() / temperature
    return s.softmax(1), t.softmax(1)


class DIST(LogitMethod):
    """The student's probabilities correlate with the teacher's, sample by sample and class by class.

    Loss: `gamma CE(z_s, y) + inter T^2 (1 - mean_i r(p_s[i, :], p_t[i, :]))
    + intra T^2 (1 - mean_c r(p_s[:, c], p_t[:, c]))`, r Pearson's correlation, as the terms `ce`, `inter` and
    `intra`.

    Taps: none but the logits (B x C).

    Deviations: the factor T^2 and the 1e-8 beside the norms are those of the authors' code. Its CIFAR
    runs take T = 4 for every pair; no value is given for other data sets than CIFAR-100 and ImageNet.

    Reference: Huang et al. 2022, section 3.
    """

    name = "dist"
    paper = Paper(
        "Knowledge distillation from a stronger teacher",
        "T. Huang, S. You, F. Wang, C. Qian, C. Xu",
        "NeurIPS",
        2022,
        "https://arxiv.org/abs/2205.10536",
    )
    published = tuple(
        Published({"temperature": 1}, "authors' code, T = 1 on ImageNet", "imagenet", teacher, student)
        for teacher, student in IMAGENET_PAIRS
    )

    class Config(LogitSettings):
        """Weights and temperature."""

        gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="authors' code")
        inter: float = hp(2.0, ge=0, doc="weight of the correlation over classes", source="authors' code")
        intra: float = hp(2.0, ge=0, doc="weight of the correlation over the batch", source="authors' code")
        temperature: float = hp(
            4.0, gt=0, doc="softening T of both softmaxes", source="authors' code, dist_t4 (CIFAR-100)"
        )

    config: Config

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The two distances."""
        c = self.config
        return {
            "inter": c.inter * inter_loss(student, teacher, c.temperature),
            "intra": c.intra * intra_loss(student, teacher, c.temperature),
        }
