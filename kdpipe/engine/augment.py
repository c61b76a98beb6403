"""Augmentation of whole batches on the training device.

Each augmentation draws its parameters for every sample of an epoch at once, on the CPU, by sample
index; applying them to a batch is a pure function. So neither batch order nor device changes what a
sample looks like in an epoch, and anything that knows (seed, epoch) can replay it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor

from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.specs import Augmentation, Frozen


class Crop(Frozen):
    """Random crop of the image's own size after padding each side.

    Attributes:
        padding: pixels added on each side.
        mode: what is added: zeros (black), or the mirrored border.
    """

    padding: int = Field(4, ge=1)
    mode: Literal["zero", "reflect"] = "zero"

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """Row and column of the crop's corner for each sample: N x 2, in [0, 2 padding]."""
        return torch.randint(0, 2 * self.padding + 1, (samples, 2), generator=rng)

    def apply(self, images: Tensor, corner: Tensor) -> Tensor:
        """Crop a batch (B x H x W x C, uint8) at each sample's corner (B x 2)."""
        batch, height, width, _ = images.shape
        p = self.padding
        if self.mode == "zero":
            padded = F.pad(images, (0, 0, p, p, p, p))
        else:
            padded = F.pad(images.permute(0, 3, 1, 2).float(), (p, p, p, p), mode="reflect")
            padded = padded.to(images.dtype).permute(0, 2, 3, 1)
        rows = corner[:, :1] + torch.arange(height, device=images.device)
        columns = corner[:, 1:] + torch.arange(width, device=images.device)
        which = torch.arange(batch, device=images.device)
        return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]


class Flip(Frozen):
    """Random horizontal flip.

    Attributes:
        p: probability of a flip.
    """

    p: float = Field(0.5, ge=0, le=1)

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """Whether to flip each sample: N, bool."""
        return torch.rand(samples, generator=rng) < self.p

    def apply(self, images: Tensor, flip: Tensor) -> Tensor:
        """Mirror the chosen images of a batch (B x H x W x C)."""
        return torch.where(flip[:, None, None, None], images.flip(2), images)


AUGMENTATIONS: dict[str, type[Crop] | type[Flip]] = {"crop": Crop, "flip": Flip}


class Pipeline:
    """A protocol's augmentations, in order.

    Args:
        steps: names and settings, as a protocol states them.

    Raises:
        UnknownNameError: a step has no such name.
        ConfigError: a setting is wrong.
    """

    def __init__(self, steps: tuple[Augmentation, ...]) -> None:
        self.steps = [_step(s) for s in steps]

    def draw(self, samples: int, rng: torch.Generator) -> list[Tensor]:
        """One epoch's parameters of every step, for all samples."""
        return [step.draw(samples, rng) for step in self.steps]

    def apply(self, images: Tensor, parameters: list[Tensor], index: Tensor) -> Tensor:
        """Augment a batch (B x H x W x C) of the samples at `index`."""
        for step, drawn in zip(self.steps, parameters, strict=True):
            images = step.apply(images, drawn[index])
        return images


def _step(step: Augmentation) -> Any:
    kind = AUGMENTATIONS.get(step.name)
    if kind is None:
        raise UnknownNameError.of("augmentation", step.name, AUGMENTATIONS)
    try:
        return kind(**step.settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"augmentation '{step.name}', setting '{key}': {first['msg']}") from None
