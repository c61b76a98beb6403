"""Mixing whole batches: mixup, cutmix, and four rotations.

Pure functions of a batch and of numbers drawn beforehand from the caller's stream. (Independent views need
the images before normalisation: an objective with `views` gets the others in its batch.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed.

    Attributes:
        partner: B, int64: whom each sample is mixed with.
        lam: share of the sample itself, in [0, 1].
    """

    partner: Tensor
    lam: float


def draw_mix(samples: int, alpha: float, rng: torch.Generator) -> Mix:
    """A random permutation as partners, and one `lam ~ Beta(alpha, alpha)` for the whole batch.

    Args:
        samples: B.
        alpha: > 0; small values give shares near 0 and 1.
        rng: the stream, on the CPU.

    Source: Zhang et al. 2018 (mixup), Algorithm 1; Yun et al. 2019 (CutMix), section 3.1.
    """
    partner = torch.randperm(samples, generator=rng)
    numbers = np.random.Generator(np.random.PCG64(int(torch.randint(2**62, (1,), generator=rng))))
    return Mix(partner, float(numbers.beta(alpha, alpha)))


def mixup(images: Tensor, mix: Mix) -> Tensor:
    """`lam x + (1 - lam) x[partner]`.

    Args:
        images: B x C x H x W, float.
        mix: partners and share.

    Source: Zhang et al. 2018 (mixup), Eq. 1.
    """
    return torch.lerp(images[_onto(mix.partner, images)], images, mix.lam)


def cutmix(images: Tensor, mix: Mix, centre: tuple[float, float]) -> tuple[Tensor, Mix]:
    """Each image with a box of its partner pasted in; the box is the same in all.

    The box has `sqrt(1 - lam)` of the image's height and width, rounded down, and is clipped at the
    borders.

    Args:
        images: B x C x H x W.
        mix: partners, and the share that is left of the sample before clipping.
        centre: row and column of the box's centre, as shares in [0, 1).

    Returns:
        The images, and the mix with the share of pixels that really is the sample's own.

    Source: Yun et al. 2019 (CutMix), Eq. 2 and Algorithm A1.
    """
    height, width = images.shape[-2:]
    (top, bottom), (left, right) = (
        _clipped(length, mix.lam, place) for length, place in zip((height, width), centre, strict=True)
    )
    result = images.clone()
    partners = images[_onto(mix.partner, images)]
    result[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return result, Mix(mix.partner, kept)


def mixed_targets(labels: Tensor, mix: Mix, num_classes: int) -> Tensor:
    """`lam y + (1 - lam) y[partner]`, y one-hot.

    Their cross entropy is `lam CE(z, y) + (1 - lam) CE(z, y[partner])`.

    Args:
        labels: B, int64.
        mix: partners and share.
        num_classes: C.

    Returns:
        B x C, float32; rows sum to one.

    Source: Zhang et al. 2018 (mixup), Eq. 1; Yun et al. 2019 (CutMix), Eq. 1.
    """
    own = F.one_hot(labels, num_classes).float()
    return torch.lerp(own[_onto(mix.partner, labels)], own, mix.lam)


def four_rotations(images: Tensor) -> Tensor:
    """Each image turned by 0, 90, 180 and 270 degrees anticlockwise.

    Args:
        images: B x C x H x W, H = W.

    Returns:
        4 B x C x H x W: all at 0 degrees, then all at 90, and so on; image i at turn k is row k B + i.

    Source: Xu et al. 2020 (SSKD), section 3.1. Deviation: their loader keeps the four of an image
    together.
    """
    return torch.cat([torch.rot90(images, turns, (-2, -1)) for turns in range(4)])


def _onto(partner: Tensor, other: Tensor) -> Tensor:
    """The partners on the device of `other`, which is not waited for."""
    return partner.to(other.device, non_blocking=True)


def _clipped(length: int, lam: float, place: float) -> tuple[int, int]:
    """First and last row (or column) of the box, the last not included."""
    half = int(length * (1 - lam) ** 0.5) // 2
    centre = int(place * length)
    return max(centre - half, 0), min(centre + half, length)
