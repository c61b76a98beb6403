"""Augmentation of whole batches on the training device.

Each augmentation draws its parameters for every sample of an epoch at once, on the CPU, by sample
index; applying them to a batch is a pure function. So neither batch order nor device changes what a
sample looks like in an epoch, and anything that knows (seed, epoch) can replay it. torchvision takes
seconds to import, so only the steps that need it do so, when they are first applied.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, ValidationError
from torch import Tensor

from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.specs import Augmentation, Frozen
from kdpipe.engine.augment_policies import AugMix, RandAugment


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


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must not be larger than the second")
    return pair


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]


class ResizedCrop(Frozen):
    """Random crop of random area and shape, resized to the image's size (Inception-style).

    As torchvision's `RandomResizedCrop`: area and logarithm of the aspect ratio are uniform; of ten
    tries the first that fits is taken, else the largest crop in the middle with an allowed shape.
    Bilinear, antialiased. For images on disk, as a pipeline's first step, it crops from the whole
    image.

    Attributes:
        scale: least and largest share of the image's area.
        ratio: least and largest width / height.
    """

    scale: Annotated[tuple[Share, Share], AfterValidator(_rising)] = (0.08, 1.0)
    ratio: Annotated[tuple[Ratio, Ratio], AfterValidator(_rising)] = (3 / 4, 4 / 3)

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """Uniform numbers for ten tries of each sample: N x 10 x 4 (area, shape, row, column)."""
        return torch.rand(samples, 10, 4, generator=rng)

    def apply(self, images: Tensor, tries: Tensor, side: int | None = None) -> Tensor:
        """Crop and resize each image of a batch (B x H x W x C, uint8).

        Args:
            images: the batch.
            tries: B x 10 x 4.
            side: height and width of the result; None is those of the images.
        """
        from torchvision.transforms.v2 import functional as F

        height, width = images.shape[1:3]
        size = [height, width] if side is None else [side, side]
        boxes = [self.box(height, width, numbers) for numbers in tries.tolist()]
        planes = images.permute(0, 3, 1, 2)
        cropped = [
            F.resized_crop(image, *box, size, antialias=True)
            for image, box in zip(planes, boxes, strict=True)
        ]
        return torch.stack(cropped).permute(0, 2, 3, 1)

    def box(self, height: int, width: int, tries: list[list[float]]) -> tuple[int, int, int, int]:
        """The crop's top, left, height and width, in pixels."""
        low, high = (math.log(r) for r in self.ratio)
        for area, shape, row, column in tries:
            target = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(row * (height - h + 1)), int(column * (width - w + 1)), h, w
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        return (height - h) // 2, (width - w) // 2, h, w


class Rotation(Frozen):
    """Random rotation about the centre, nearest pixel, corners black; as torchvision's `RandomRotation`.

    torchvision turns a batch by one angle; here each image has its own, in one call.

    Attributes:
        degrees: largest angle either way.
    """

    degrees: float = Field(20.0, ge=0, le=180)

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """The angle of each sample in degrees, anticlockwise: N, uniform in [-degrees, degrees]."""
        return (2 * torch.rand(samples, generator=rng) - 1) * self.degrees

    def apply(self, images: Tensor, angle: Tensor) -> Tensor:
        """Turn each image of a batch (B x H x W x C, uint8) by its angle (B)."""
        height, width = images.shape[1:3]
        device = images.device
        x = torch.arange(width, device=device) - (width - 1) / 2  # pixel centres from the image's centre
        y = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
        radians = torch.deg2rad(angle)[:, None, None]
        cos, sin = torch.cos(radians), torch.sin(radians)
        source = torch.stack([(cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height], dim=-1)
        planes = images.permute(0, 3, 1, 2).float()
        turned = F.grid_sample(planes, source, mode="nearest", align_corners=False)
        return turned.to(images.dtype).permute(0, 2, 3, 1)


class Cutout(Frozen):
    """A square of one colour at a random place, clipped at the borders (DeVries and Taylor 2017).

    Deviation: the paper fills with zero after normalisation, which is the data set's mean; here the
    colour is given in pixel values.

    Attributes:
        size: side of the square, in pixels.
        fill: grey level, 0 to 255.
    """

    size: int = Field(16, ge=0)
    fill: int = Field(0, ge=0, le=255)

    def draw(self, samples: int, rng: torch.Generator) -> Tensor:
        """Row and column of the square's centre as shares of the image: N x 2, in [0, 1)."""
        return torch.rand(samples, 2, generator=rng)

    def apply(self, images: Tensor, centre: Tensor) -> Tensor:
        """Cover a square of each image of a batch (B x H x W x C, uint8)."""
        covered = [self._covered(length, centre[:, axis]) for axis, length in enumerate(images.shape[1:3])]
        inside = covered[0][:, :, None] & covered[1][:, None, :]
        return images.masked_fill(inside[..., None], self.fill)

    def _covered(self, length: int, centre: Tensor) -> Tensor:
        """Which rows (or columns) the square covers: B x length, bool."""
        first = (centre * length).long()[:, None] - self.size // 2
        place = torch.arange(length, device=centre.device)
        return (place >= first) & (place < first + self.size)


Step = Crop | Flip | ResizedCrop | Rotation | Cutout | RandAugment | AugMix
AUGMENTATIONS: dict[str, type[Step]] = {
    "crop": Crop,
    "flip": Flip,
    "resized_crop": ResizedCrop,
    "rotation": Rotation,
    "cutout": Cutout,
    "randaugment": RandAugment,
    "augmix": AugMix,
}


class Pipeline:
    """A protocol's augmentations, in order.

    Args:
        steps: names and settings, as a protocol states them.

    Raises:
        UnknownNameError: a step has no such name.
        ConfigError: a setting is wrong.
    """

    def __init__(self, steps: tuple[Augmentation, ...]) -> None:
        self.steps: list[Step] = [_step(s) for s in steps]

    def draw(self, samples: int, rng: torch.Generator) -> list[Tensor]:
        """One epoch's parameters of every step, for all samples."""
        return [step.draw(samples, rng) for step in self.steps]

    def apply(self, images: Tensor, parameters: list[Tensor], index: Tensor) -> Tensor:
        """Augment a batch (B x H x W x C) of the samples at `index`."""
        for step, drawn in zip(self.steps, parameters, strict=True):
            images = step.apply(images, drawn[index])
        return images


def _step(step: Augmentation) -> Step:
    kind = AUGMENTATIONS.get(step.name)
    if kind is None:
        raise UnknownNameError.of("augmentation", step.name, AUGMENTATIONS)
    try:
        return kind(**step.settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"augmentation '{step.name}', setting '{key}': {first['msg']}") from None
