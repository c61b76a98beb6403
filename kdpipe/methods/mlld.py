"""Multi-level logit distillation: samples, batch and classes, on two views."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress, Published, Settings, hp
from kdpipe.core.specs import Augmentation
from kdpipe.nn.logits import cross_entropy, full, kl

PAIRS = (
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("resnet50", "mobilenetv2"),
    ("vgg13", "mobilenetv2"),
    ("vgg13", "vgg8"),
    ("wrn_40_2", "shufflenetv1"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
)
MASK = 0.5  # the code's mask of the half of least confidence multiplies means, so it halves them
STRONG = 3  # temperatures at which the code reads the strong view; at the others the weak one again

Views = tuple[tuple[Tensor, Tensor], ...]
"""Student's and teacher's logits of each view."""


def batch_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distance of the samples' similarities: `|P_t P_t^T - P_s P_s^T|_F^2 / B`, P the B x C probabilities.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar >= 0, without the factor T^2.

    Source: Jin et al. 2023, batch-level alignment.
    """
    s, t = (_probabilities(z, temperature) for z in (student, teacher.detach()))
    return _gram_distance(s, t)


def class_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distance of the classes' correlations: `|P_t^T P_t - P_s^T P_s|_F^2 / C`, P the B x C probabilities.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0 of both softmaxes.

    Returns:
        A scalar >= 0, without the factor T^2. It grows with the square of the batch.

    Source: Jin et al. 2023, class-level alignment.
    """
    s, t = (_probabilities(z, temperature) for z in (student, teacher.detach()))
    return _gram_distance(s.T, t.T)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (full(logits) / temperature).softmax(1)


def _gram_distance(s: Tensor, t: Tensor) -> Tensor:
    """Squared distance of two Gram matrices, over their number of rows."""
    with torch.autocast(s.device.type, enabled=False):  # products of half precision would not do
        return (t @ t.T - s @ s.T).square().sum() / len(s)


class MLLD(Method):
    """KD at several temperatures, with similarities of samples and of classes, on a weak and a strong view.

    Loss: `gamma sum_v CE(z_s^v, y) + sum_v sum_T (alpha T^2 KL(p_t || p_s)
    + beta |P_t P_t^T - P_s P_s^T|^2 / B + delta |P_t^T P_t - P_s^T P_s|^2 / C)`, v the views and T the
    temperatures, as the terms `ce`, `instance`, `batch` and `class`.

    `form: code` is what the authors' code computes, and so what its published numbers rest on: its
    confidence mask only halves the weak view's three levels; the strong view has no batch and class
    level; and at the last temperatures (2 and 6) the strong view's instance level reads the weak one.

    Taps: none but the logits (B x C each) of two views: the batch's own images, and the protocol's
    augmentation drawn anew with RandAugment and a grey square on top.

    Deviations: weights are the code's, the paper's own are not at hand. Under `code` the mask is 1/2
    exactly, which holds for even batches without ties. The code draws RandAugment's magnitudes at
    random (its m is unused) and the square's side from 0 to half the image; here m = 10 and 9 pixels,
    the side of the same mean area at 32 pixels. Its longer training of some pairs (480 or 960 epochs)
    and its rates are a protocol's matter.

    Reference: Jin et al. 2023, section 3.
    """

    name = "mlld"
    unsettled = "its weights are those of the code, not of the paper"
    logit_only = True
    views = (
        (
            Augmentation(name="randaugment", settings={"n": 2, "m": 10}),
            Augmentation(name="cutout", settings={"size": 9, "fill": 121}),
        ),
    )
    paper = Paper(
        "Multi-level logit distillation",
        "Y. Jin, J. Wang, D. Lin",
        "CVPR",
        2023,
        "https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html",
    )
    published = tuple(
        Published({"form": "code"}, "authors' code, configs/cifar100/ours", "cifar100", teacher, student)
        for teacher, student in PAIRS
    )

    class Config(Settings):
        """Weights, temperatures and form."""

        gamma: float = hp(
            0.1,
            ge=0,
            doc="weight of the labels' cross entropy, of each view",
            source="authors' code (CE_WEIGHT)",
        )
        alpha: float = hp(
            0.9, ge=0, doc="weight of the instance level", source="authors' code (KD_WEIGHT, all levels)"
        )
        beta: float = hp(
            0.9, ge=0, doc="weight of the batch level", source="authors' code (KD_WEIGHT, all levels)"
        )
        delta: float = hp(
            0.9, ge=0, doc="weight of the class level", source="authors' code (KD_WEIGHT, all levels)"
        )
        temperatures: tuple[Annotated[float, Field(gt=0)], ...] = hp(
            (4.0, 3.0, 5.0, 2.0, 6.0),
            min_length=1,
            doc="T of all levels, summed over",
            source="authors' code",
        )
        form: Literal["paper", "code"] = hp(
            "paper", doc="levels on both views, or what the authors' code computes", source="section 3"
        )

    config: Config

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The weak and the strong view."""
        return (batch.images, *batch.views)

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy and the three levels."""
        c = self.config
        views: Views = ((s.logits, t.logits), (s.more[0].logits, t.more[0].logits))
        instance, by_batch, by_class = self._code(views) if c.form == "code" else self._paper(views)
        return {
            "ce": c.gamma
            * (cross_entropy(views[0][0], batch.labels) + cross_entropy(views[1][0], batch.labels)),
            "instance": c.alpha * instance,
            "batch": c.beta * by_batch,
            "class": c.delta * by_class,
        }

    def _paper(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Every level at every temperature on both views."""
        each = [(*view, T) for view in views for T in self.config.temperatures]
        instance, by_batch, by_class = (
            torch.stack([level(*given) for given in each]).sum() for level in (kl, batch_loss, class_loss)
        )
        return instance, by_batch, by_class

    def _code(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """The levels as the authors' code has them."""
        weak, strong = views
        each = [(*weak, T) for T in self.config.temperatures]
        instance, by_batch, by_class = (
            MASK * torch.stack([level(*given) for given in each]).sum()
            for level in (kl, batch_loss, class_loss)
        )
        again = [
            kl(*(strong if place < STRONG else weak), T) for place, T in enumerate(self.config.temperatures)
        ]
        return instance + torch.stack(again).sum(), by_batch, by_class
