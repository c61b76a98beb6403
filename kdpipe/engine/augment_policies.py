"""Augmentation by policies of many small operations: RandAugment and AugMix.

The operations are torchvision's, called once per group of images that share an operation and its
magnitude, so a batch costs a few dozen calls, not one per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdpipe.core.specs import Frozen

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
TONES = ("posterize", "solarize", "autocontrast", "equalize")
COLOURS = ("brightness", "color", "contrast", "sharpness")
DEPTH = 3  # operations in the longest chain of AugMix
SIGNED = (*GEOMETRIC, *COLOURS)  # operations that go either way


class RandAugment(Frozen):
    """n operations in a row, each drawn from fourteen, all at magnitude m (Cubuk et al. 2020).

    Operations and magnitudes are those of torchvision's `RandAugment`, nearest pixel, black borders.

    Attributes:
        n: operations.
        m: magnitude, 0 to 30.
    """

    n: int = Field(2, ge=0)
    m: int = Field(9, ge=0, le=30)

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """Operation and sign of each step of each sample: N x n x 2, int64."""
        operation = torch.randint(0, 1 + len(_RANDAUGMENT), (samples, self.n), generator=rng)
        return torch.stack([operation, torch.randint(0, 2, (samples, self.n), generator=rng)], dim=-1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Augment a batch (B x H x W x C, uint8) with its draws (B x n x 2)."""
        planes = images.permute(0, 3, 1, 2)
        share = self.m / 30

        def operate(group: Tensor, key: list[int]) -> Tensor:
            operation, sign = key
            if operation == 0:
                return group
            height, width = group.shape[-2:]
            name = _RANDAUGMENT[operation - 1]
            reach = {"translate_x": 150 / 331 * width, "translate_y": 150 / 331 * height, "posterize": 8}
            return _operate(group, name, _magnitude(name, share, reach, sign), "nearest")

        for step in range(self.n):
            planes = _grouped(planes, drawn[:, step], operate)
        return planes.permute(0, 2, 3, 1)


class AugMix(Frozen):
    """A mixture of the image and of several chains of random operations (Hendrycks et al. 2020).

    `m x + (1 - m) sum_i w_i chain_i(x)` with `w ~ Dirichlet(alpha, ..., alpha)` and
    `m ~ Beta(alpha, alpha)`; a chain is one to three operations. Operations and magnitudes are those
    of torchvision's `AugMix`, bilinear. Deviation: mixed before normalisation (which is affine) and
    rounded to whole pixel values. The paper's consistency loss belongs to a recipe.

    Attributes:
        severity: largest magnitude, 1 to 10.
        width: chains.
        alpha: of the Dirichlet and Beta distributions.
        all_ops: include brightness, colour, contrast and sharpness, which the paper leaves out
            because its test corruptions include them.
    """

    severity: int = Field(3, ge=1, le=10)
    width: int = Field(3, ge=1)
    alpha: float = Field(1.0, gt=0)
    all_ops: bool = False

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """Everything that each sample needs: N x (1 + width 11), float64.

        First m; then for each chain its weight, its depth, and three times operation, level, sign.
        """
        numbers = np.random.Generator(np.random.PCG64(int(torch.randint(2**62, (1,), generator=rng))))
        shape = (samples, self.width, DEPTH)
        choices = [
            numbers.integers(0, len(self._operations), shape),
            numbers.integers(0, self.severity, shape),
            numbers.integers(0, 2, shape),
        ]
        chains = [
            numbers.dirichlet([self.alpha] * self.width, samples)[..., None],
            numbers.integers(1, DEPTH + 1, (samples, self.width, 1)),
            np.stack(choices, axis=-1).reshape(samples, self.width, -1),
        ]
        keep = numbers.beta(self.alpha, self.alpha, (samples, 1))
        rows = np.concatenate(chains, axis=-1).reshape(samples, -1)
        return torch.from_numpy(np.concatenate([keep, rows], axis=1))

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Augment a batch (B x H x W x C, uint8) with its draws."""
        planes = images.permute(0, 3, 1, 2)
        keep = drawn[:, 0].float()[:, None, None, None]
        mixed = torch.zeros_like(planes, dtype=torch.float32)
        for chain in drawn[:, 1:].reshape(len(images), self.width, -1).unbind(1):
            weight, depth = chain[:, 0].float(), chain[:, 1]
            operations = chain[:, 2:].long().reshape(-1, DEPTH, 3)
            mixed += weight[:, None, None, None] * self._chain(planes, operations, depth)
        result = (keep * planes + (1 - keep) * mixed).round().clamp(0, 255)
        return result.to(images.dtype).permute(0, 2, 3, 1)

    @property
    def _operations(self) -> tuple[str, ...]:
        return (*GEOMETRIC, *TONES, *(COLOURS if self.all_ops else ()))

    def _chain(self, planes: Tensor, operations: Tensor, depth: Tensor) -> Tensor:
        """The images after their first `depth` operations."""

        def operate(group: Tensor, key: list[int]) -> Tensor:
            operation, level, sign = key
            name = self._operations[operation]
            height, width = group.shape[-2:]
            reach = {"translate_x": width / 3, "translate_y": height / 3, "posterize": 4}
            return _operate(group, name, _magnitude(name, level / 9, reach, sign), "bilinear")

        for step in range(DEPTH):
            longer = (depth > step).nonzero()[:, 0]
            changed = _grouped(planes[longer], operations[longer, step], operate)
            planes = planes.index_copy(0, longer, changed)
        return planes


_RANDAUGMENT = (*GEOMETRIC, *COLOURS, *TONES)


def _grouped(images: Tensor, keys: Tensor, operate: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
    """`operate(group, key)` on each group of images that have the same key (a row of `keys`)."""
    result = images.clone()
    for key in torch.unique(keys, dim=0) if len(keys) else ():
        rows = (keys == key).all(1).nonzero()[:, 0]
        result[rows] = operate(images[rows], key.tolist())
    return result


def _magnitude(name: str, share: float, reach: dict[str, float], sign: int) -> float:
    """The magnitude of an operation at a share (0 to 1) of its range; `reach` holds what policies set."""
    largest = {"shear_x": 0.3, "shear_y": 0.3, "rotate": 30.0, **dict.fromkeys(COLOURS, 0.9), **reach}
    if name == "posterize":
        return reach[name] - round(4 * share)
    if name == "solarize":
        return 255 * (1 - share)
    size = largest.get(name, 0.0) * share
    return -size if name in SIGNED and sign else size


def _operate(images: Tensor, name: str, magnitude: float, interpolation: str) -> Tensor:
    """One operation on a batch (B x C x H x W, uint8)."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    mode = InterpolationMode(interpolation)
    result: Tensor
    match name:
        case "shear_x" | "shear_y":
            angle = math.degrees(math.atan(magnitude))
            shear = [angle, 0.0] if name == "shear_x" else [0.0, angle]
            result = F.affine(images, 0.0, [0, 0], 1.0, shear, mode, center=[0, 0])
        case "translate_x" | "translate_y":
            shift = [int(magnitude), 0] if name == "translate_x" else [0, int(magnitude)]
            result = F.affine(images, 0.0, shift, 1.0, [0.0, 0.0], mode)
        case "rotate":
            result = F.rotate(images, magnitude, mode)
        case "brightness":
            result = F.adjust_brightness(images, 1 + magnitude)
        case "color":
            result = F.adjust_saturation(images, 1 + magnitude)
        case "contrast":
            result = F.adjust_contrast(images, 1 + magnitude)
        case "sharpness":
            result = F.adjust_sharpness(images, 1 + magnitude)
        case "posterize":
            result = F.posterize(images, int(magnitude))
        case "solarize":
            result = F.solarize(images, magnitude)
        case "autocontrast":
            result = F.autocontrast(images)
        case _:
            result = F.equalize(images)
    return result
