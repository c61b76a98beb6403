"""Training batches from data that live on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdpipe.api import Batch, Split
from kdpipe.core.specs import Protocol
from kdpipe.engine.augment import Pipeline
from kdpipe.engine.streams import generator


class Normalise:
    """uint8 images (B x H x W x C) to normalised floats (B x C x H x W, channels-last in memory).

    Args:
        mean, std: per channel, of images in [0, 1].
        device: where the batches are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.scale = 1 / (255 * torch.tensor(std, device=device))
        self.shift = -torch.tensor(mean, device=device) / torch.tensor(std, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch."""
        return images.to(torch.float32).mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)


class Batches:
    """One split on the device, dealt out in shuffled, augmented batches.

    Order and augmentation of an epoch are functions of (seed, epoch) alone. All samples are dealt;
    when the last batch would hold a single one (which batch statistics and pairwise losses cannot
    use), that sample joins the batch before.

    Args:
        split: images and labels.
        mean, std: normalisation.
        protocol: batch size and augmentation.
        seed: the run's seed.
        device: where to keep the images.
    """

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        protocol: Protocol,
        seed: int,
        device: torch.device,
    ) -> None:
        self.images = torch.tensor(split.images).permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = torch.tensor(split.labels).to(device)
        self.seed = seed
        self.size = protocol.batch_size
        self.augment = Pipeline(protocol.augmentation)
        self.normalise = Normalise(mean, std, device)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.samples, self.size)
        return max(full + (rest > 1), 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from batch `start` on."""
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", epoch))
        drawn = self.augment.draw(self.samples, generator(self.seed, "augmentation", epoch))
        device = self.images.device
        order = order.to(device)
        drawn = [d.to(device) for d in drawn]
        for step in range(start, self.steps):
            last = step == self.steps - 1
            index = order[step * self.size : None if last else (step + 1) * self.size]
            images = self.augment.apply(self.images[index], drawn, index)
            yield Batch(images=self.normalise(images), labels=self.labels[index], index=index)
