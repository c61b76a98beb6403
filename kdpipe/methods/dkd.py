"""Decoupled knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from kdpipe.api import Batch, Method, Outputs, Paper, Progress, Published, Settings, hp
from kdpipe.nn.logits import cross_entropy, full, kl

BETA = {  # (teacher, student) -> beta on CIFAR-100
    ("resnet56", "resnet20"): 2,
    ("resnet110", "resnet32"): 2,
    ("resnet32x4", "resnet8x4"): 8,
    ("resnet32x4", "shufflenetv1"): 8,
    ("resnet32x4", "shufflenetv2"): 8,
    ("resnet50", "mobilenetv2"): 8,
    ("wrn_40_2", "shufflenetv1"): 8,
    ("wrn_40_2", "wrn_16_2"): 6,
    ("wrn_40_2", "wrn_40_1"): 6,
    ("vgg13", "vgg8"): 6,
    ("vgg13", "mobilenetv2"): 6,
}
IMAGENET_BETA = {
    ("imagenet_resnet34", "imagenet_resnet18"): 0.5,
    ("imagenet_resnet50", "imagenet_mobilenetv1"): 2,
}


def target_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Target-class term (TCKD): `T^2 mean_i KL([p_t, 1 - p_t] || [p_s, 1 - p_s])` of the label's probability.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        labels: B, int64.
        temperature: T > 0.

    Returns:
        A scalar >= 0.

    Source: Zhao et al. 2022, Eq. 7. Deviation: log-probabilities from log-sum-exps,
    `log(1 - p) = LSE(z without the label's) - LSE(z)`, so that it is finite at any logit.
    """
    log_s = _target_and_rest(full(student) / temperature, labels)
    log_t = _target_and_rest(full(teacher).detach() / temperature, labels)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(1).mean()


def others_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Non-target term (NCKD): `T^2 mean_i KL(q_t || q_s)`, q the softmax over the other classes.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        labels: B, int64.
        temperature: T > 0.

    Returns:
        A scalar >= 0.

    Source: Zhao et al. 2022, Eq. 7. Deviation: the label's logit is left out instead of lowered by 1000.
    """
    return kl(without_label(full(student), labels), without_label(full(teacher), labels), temperature)


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of all classes but the label: B x (C - 1)."""
    place = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, place + (place >= labels[:, None]))


class DKD(Method):
    """KD split into the label's probability and the ranking of the other classes, weighted freely.

    Loss: `gamma CE(z_s, y) + w (alpha TCKD + beta NCKD)`, as the terms `ce`, `tckd` and `nckd`, with
    `w = min(epoch / warmup, 1)` and epochs counted from 1. With alpha = 1 and beta = 1 - p_t(y) for each
    sample, DKD is KD.

    Taps: none but the logits (B x C).

    Deviations: none in the loss (see `target_loss` and `others_loss` for its stable form). The warm-up
    is that of the authors' code (mdistiller). It counts epochs, whatever the protocol's number of them:
    a short protocol wants a short warm-up.

    Reference: Zhao et al. 2022, Eq. 7; betas from the authors' configurations.
    """

    name = "dkd"
    logit_only = True
    paper = Paper(
        "Decoupled knowledge distillation",
        "B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang",
        "CVPR",
        2022,
        "https://arxiv.org/abs/2203.08679",
    )
    published = (
        *(
            Published({"beta": beta}, "mdistiller, configs/cifar100/dkd", "cifar100", teacher, student)
            for (teacher, student), beta in BETA.items()
        ),
        *(
            Published(
                {"beta": beta, "temperature": 1, "warmup": 1},
                "mdistiller, configs/imagenet",
                "imagenet",
                teacher,
                student,
            )
            for (teacher, student), beta in IMAGENET_BETA.items()
        ),
    )

    class Config(Settings):
        """Weights, temperature and warm-up."""

        gamma: float = hp(1.0, ge=0, doc="weight of the labels' cross entropy", source="mdistiller CE_WEIGHT")
        alpha: float = hp(1.0, ge=0, doc="weight of the label's term", source="mdistiller DKD.ALPHA")
        beta: float = hp(8.0, ge=0, doc="weight of the other classes' term", source="mdistiller DKD.BETA")
        temperature: float = hp(4.0, gt=0, doc="softening T of both softmaxes", source="mdistiller DKD.T")
        warmup: int = hp(
            20,
            ge=0,
            epochs=True,
            doc="epochs of linear warm-up of both terms",
            source="mdistiller DKD.WARMUP",
        )

    config: Config

    def loss(self, s: Outputs, t: Outputs, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Cross entropy and the two halves of KD."""
        c = self.config
        warm = min((at.epoch + 1) / c.warmup, 1.0) if c.warmup else 1.0
        given = (s.logits, t.logits, batch.labels, c.temperature)
        return {
            "ce": c.gamma * cross_entropy(s.logits, batch.labels),
            "tckd": warm * c.alpha * target_loss(*given),
            "nckd": warm * c.beta * others_loss(*given),
        }


def _target_and_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the label and of all the rest together: B x 2."""
    target = logits.gather(1, labels[:, None])
    rest = without_label(logits, labels).logsumexp(1, keepdim=True)
    return torch.cat([target, rest], 1).log_softmax(1)
