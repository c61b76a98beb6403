"""Losses on logits that two or more plug-ins share.

Every loss is summed over classes and averaged over the batch. The teacher's logits are constants.
Half-precision logits are raised to float32, float64 stays.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the labels: `mean_i (LSE(z_i) - z_i[y_i])`.

    Args:
        logits: B x C.
        labels: B, int64 in [0, C).

    Returns:
        A scalar, in nats.
    """
    return F.cross_entropy(full(logits), labels)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of soft targets: `-mean_i sum_c y_ic log softmax(z_i)_c`.

    Args:
        logits: B x C.
        targets: B x C, probabilities.

    Returns:
        A scalar, in nats; that of hard targets is `cross_entropy`.
    """
    z = full(logits)
    return F.cross_entropy(z, targets.to(z.dtype))


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Tempered Kullback-Leibler divergence: `T^2 mean_i sum_c p_t (log p_t - log p_s)`, `p = softmax(z / T)`.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0.

    Returns:
        A scalar >= 0. The factor T^2 keeps the gradient's scale when T changes.

    Source: Hinton et al. 2015, section 2.
    """
    log_s = F.log_softmax(full(student) / temperature, 1)
    log_t = F.log_softmax(full(teacher).detach() / temperature, 1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Per-class Bernoulli divergence: `T^2 mean_i sum_c KL(sigma(z_t / T) || sigma(z_s / T))`.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0.

    Returns:
        A scalar >= 0; its gradient is `T (sigma(z_s / T) - sigma(z_t / T)) / B`.

    Source: Yang et al. 2024 (dual-head knowledge distillation), Eq. 1. Deviations: the mean over the
    batch where the equation prints a sum (as in the authors' code); log-sigmoids instead of clamped
    probabilities, so that it is finite at any logit.
    """
    s, t = full(student) / temperature, full(teacher).detach() / temperature
    on = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s))
    off = torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (on + off).sum(1).mean()


def binary_kl_norm(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Bernoulli divergence of a half: `T^2 mean_i sum_c KL(1/2 || sigma((z_s - z_t) / T))`.

    Args:
        student: logits, B x C.
        teacher: logits, B x C.
        temperature: T > 0.

    Returns:
        A scalar >= 0, equal to `T^2 mean_i sum_c log cosh((z_s - z_t) / 2T)`; its gradient
        `T tanh((z_s - z_t) / 2T) / 2B` is bounded. A shift of all logits changes it.

    Source: Yang et al. 2024 (dual-head knowledge distillation), Eq. 5. Deviations: as `binary_kl`.
    """
    gap = (full(student) - full(teacher).detach()) / temperature
    divergence = -(F.logsigmoid(gap) + F.logsigmoid(-gap)) / 2 - math.log(2)
    return temperature**2 * divergence.sum(1).mean()
