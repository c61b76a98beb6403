"""Dual-head knowledge distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor, nn

from kdpipe.api import (
    Batch,
    DataInfo,
    Gradients,
    Method,
    Outputs,
    Paper,
    Progress,
    Published,
    Settings,
    Shapes,
    Trainable,
    Wish,
    hp,
)
from kdpipe.nn.gradients import align, align_rows, deposit, gradients
from kdpipe.nn.heads import HEADS, MLP_PAIRS
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy

ALPHA = {  # (teacher, student) of one architecture -> alpha on CIFAR-100
    ("resnet56", "resnet20"): (0.1, "Appendix F"),
    ("resnet110", "resnet32"): (0.1, "Appendix F"),
    ("resnet32x4", "resnet8x4"): (2, "Table 11"),
}
IMAGENET_PAIRS = (("imagenet_resnet34", "imagenet_resnet18"), ("imagenet_resnet50", "imagenet_mobilenetv1"))
IMAGENET = {"alpha": 0.1, "align": False, "kd_epochs": 50}

LOSSES = {"binarykl": binary_kl, "binarykl_norm": binary_kl_norm}


class DHKD(Method):
    """A second head on the student's features learns the teacher's logits; the first learns the labels.

    Loss: `CE(h1(f), y) + alpha BinaryKL-Norm(h2(f), z_t)`, as the terms `ce` and `kd`; h1 is the
    student's own classifier and alone makes its predictions, h2 is dropped after training.

    Gradients: g_kd is compared with g_ce and, where their inner product is negative, projected onto
    the plane orthogonal to g_ce; then both are added. `align_on` says on which parameters:
    `backbone`: those that both losses reach, read as one vector; each head keeps its own gradient.
    `classifier`: each class vector of h2 against the same class vector of h1 (h2 must be linear); the
    backbone gets the plain sum.

    Taps: `embed` of the student (B x D), and the logits of both (B x C).

    Deviations: Eq. 6 is written for class vectors w_k, on which only one of the losses acts once there
    are two heads; the authors' code aligns the gradients of the whole model, in which the heads'
    parts do not meet. The default follows the code, with |g_ce| taken over the backbone alone (where
    the gradients meet), so that the result is orthogonal there. Eqs. 1 and 5 print sums over the batch;
    the code takes the mean, and so does this. alpha is chosen from {0.5, 1, 2} for most pairs, without
    saying which: the default is 1, that of the code.

    Reference: Yang et al. 2024, Eqs. 1, 5 and 6 and Appendix F.
    """

    name = "dhkd"
    paper = Paper(
        "Dual-head knowledge distillation: Enhancing logits utilization with an auxiliary head",
        "P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An",
        "arXiv",
        2024,
        "https://arxiv.org/abs/2411.08937",
    )
    published = (
        *(
            Published({"alpha": alpha}, source, "cifar100", teacher, student)
            for (teacher, student), (alpha, source) in ALPHA.items()
        ),
        *(
            Published({"head": "mlp"}, "Appendix F", "cifar100", teacher, student)
            for teacher, student in MLP_PAIRS
        ),
        *(
            Published(IMAGENET, "Appendix F", "imagenet", teacher, student)
            for teacher, student in IMAGENET_PAIRS
        ),
    )

    class Config(Settings):
        """The auxiliary head, its loss and the alignment of gradients."""

        alpha: float = hp(1.0, ge=0, doc="weight of the auxiliary head's loss", source="authors' code, -a 1")
        temperature: float = hp(2.0, gt=0, doc="T of the auxiliary head's loss", source="Appendix F")
        head: Literal["linear", "mlp"] = hp(
            "linear",
            doc="auxiliary head: linear for networks of one family, mlp (200 hidden) for two",
            source="Appendix F",
        )
        loss: Literal["binarykl_norm", "binarykl"] = hp(
            "binarykl_norm", doc="loss of the auxiliary head", source="Section 3.3"
        )
        align: bool = hp(True, doc="project conflicting gradients", source="Appendix F (CIFAR-100)")
        align_on: Literal["backbone", "classifier"] = hp(
            "backbone", doc="where gradients are compared", source="authors' code"
        )
        kd_epochs: int | None = hp(
            None,
            ge=0,
            epochs=True,
            doc="epochs with the auxiliary loss; null for all",
            source="Appendix F (CIFAR-100)",
        )

        @model_validator(mode="after")
        def _comparable(self) -> DHKD.Config:
            if self.align_on == "classifier" and self.head != "linear":
                raise ValueError("align_on: classifier compares class vectors, so head must be linear")
            return self

    config: Config

    def taps(self) -> Wish:
        """The student's features."""
        return Wish(student=("embed",))

    def build(self, student: Shapes, teacher: Shapes, data: DataInfo) -> None:
        """The auxiliary head."""
        self.head: nn.Module = HEADS[self.config.head](student["embed"][0], data.num_classes)

    def auxiliary(self) -> nn.Module:
        """The auxiliary head."""
        return self.head

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy of the classifier, and the auxiliary head's distance from the teacher."""
        c = self.config
        terms = {"ce": cross_entropy(s.logits, batch.labels)}
        if c.kd_epochs is None or at.epoch < c.kd_epochs:
            terms["kd"] = c.alpha * LOSSES[c.loss](self.head(s["embed"]), t.logits, c.temperature)
        return terms

    def backward(self, terms: dict[str, Tensor], parameters: Trainable) -> None:
        """Add the two gradients, without the part of the distillation's that works against the labels'."""
        if not self.config.align or "kd" not in terms:
            return super().backward(terms, parameters)
        ce = parameters.mean(gradients(terms["ce"], parameters.all, retain_graph=True))
        kd = parameters.mean(gradients(terms["kd"], parameters.all))
        if self.config.align_on == "backbone":
            shared = len(parameters.backbone)
            kd[:shared] = align(kd[:shared], ce[:shared])
        else:
            _align_class_vectors(kd, ce, parameters)
        deposit(ce, parameters.all)
        deposit(kd, parameters.all)


def _align_class_vectors(kd: Gradients, ce: Gradients, parameters: Trainable) -> None:
    """Align the auxiliary weight's gradient with the classifier weight's, row by row, in place."""
    first = len(parameters.backbone)
    main, auxiliary = (i for i, p in enumerate(parameters.all) if i >= first and p.ndim == 2)
    a, m = kd[auxiliary], ce[main]
    if a is not None and m is not None:
        kd[auxiliary] = align_rows(a, m)
