"""Training batches: from data that live on the device, or from files that worker processes decode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdpipe.api import Batch, ImageFiles, Split
from kdpipe.core.errors import ConfigError
from kdpipe.core.specs import AUGMENTATION, BankSpec, Protocol, Steps, streams
from kdpipe.engine.augment import Pipeline
from kdpipe.engine.ondisk import evaluation_views, training_views
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.processes import ALONE, Processes
from kdpipe.engine.streams import generator

Preprocess = Callable[[Tensor], Tensor]
"""uint8 images (B x H x W x C) to what a network is given (B x C x H x W, channels-last in memory)."""


class Normalise:
    """Standardised images: `(x / 255 - mean) / std`.

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


def unit_norm(images: Tensor) -> Tensor:
    """Images of 2-norm one: `x / |x|_2` over all values of an image; a black image stays black."""
    values = images.to(torch.float32)
    norm = torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True)
    return values.div_(norm.clamp_min(1.0)).permute(0, 3, 1, 2)  # pixels are whole: a norm below 1 is 0


def preprocessing(prepared: Prepared, device: torch.device) -> Preprocess:
    """What turns a prepared data set's images into a network's inputs."""
    if prepared.preprocessing == "unit-norm":
        return unit_norm
    return Normalise(prepared.mean, prepared.std, device)


class Batches:
    """One split, dealt out in shuffled, augmented batches on the device.

    Order and augmentation of an epoch are functions of (seed, epoch) alone. All samples are dealt;
    when the last batch would hold a single one (which batch statistics and pairwise losses cannot
    use), that sample joins the batch before.

    Args:
        split: images and labels.
        normalise: what networks are given.
        protocol: batch size and augmentation.
        seed: the run's seed.
        device: where the batches shall be.
        further: for each further view that a batch carries, steps that follow the protocol's own
            augmentation, which is drawn anew for it.
        workers: processes that decode images which lie on disk; None is one per thread of torch.
        processes: which share the decoding; each deals whole batches.
        view: name of the stream that the batches' own images are drawn from.

    Raises:
        ConfigError: there is a single image.
    """

    def __init__(
        self,
        split: Split,
        normalise: Preprocess,
        protocol: Protocol | BankSpec,
        seed: int,
        device: torch.device,
        further: Sequence[Steps] = (),
        workers: int | None = None,
        processes: Processes = ALONE,
        view: str = AUGMENTATION,
    ) -> None:
        if len(split.labels) < 2:
            raise ConfigError(
                "one training image is no training set: batch statistics need two",
                fix="raise train_samples, or lower val_fraction",
            )
        self.labels = torch.tensor(split.labels).to(device)
        self.images = split.images if isinstance(split.images, ImageFiles) else resident(split.images, device)
        self.normalise, self.seed, self.device = normalise, seed, device
        self.size = protocol.batch_size
        drawn = streams(protocol.augmentation, further, view)
        self.pipelines = {name: Pipeline(steps) for name, steps in drawn.items()}
        self.workers = torch.get_num_threads() if workers is None else workers
        self.processes = processes

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.samples, self.size)
        return max(full + (rest > 1), 1)

    @property
    def least(self) -> int:
        """Samples of the smallest batch, which is the last."""
        return min(self.size, self.samples - (self.steps - 1) * self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from batch `start` on."""
        order = torch.randperm(self.samples, generator=generator(self.seed, "order", epoch))
        if isinstance(self.images, Tensor):
            order = order.to(self.device)  # once: a copy per step would make the step wait
        cuts = [step * self.size for step in range(self.steps)] + [self.samples]
        parts = [order[a:b] for a, b in zip(cuts[start:-1], cuts[start + 1 :], strict=True)]
        views = [self._views(stream, epoch, parts) for stream in self.pipelines]
        for part, *images in zip(parts, *views, strict=True):
            index = part.to(self.device)
            first, *further = (self.normalise(x) for x in images)
            yield Batch(first, self.labels[index], index, tuple(further))

    def _views(self, stream: str, epoch: int, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Augmented uint8 images of each part, on the device."""
        augment = self.pipelines[stream]
        if isinstance(self.images, ImageFiles):
            mine = [part[self.processes.rows(len(part))] for part in parts]
            views = training_views(
                self.images, augment, self.seed, stream, epoch, mine, self.workers, self.device
            )
            for part, view in zip(parts, views, strict=True):
                yield self.processes.whole(view, len(part))
            return
        drawn = augment.draw(self.samples, generator(self.seed, stream, epoch))
        drawn = [d.to(self.device) for d in drawn]
        for index in parts:
            yield augment.apply(self.images[index], drawn, index)


def in_order(images: NDArray[np.uint8] | ImageFiles, size: int, device: torch.device) -> Iterator[Tensor]:
    """Images as they are evaluated, in order, in batches of at most `size`: B x H x W x C, uint8."""
    if isinstance(images, ImageFiles):
        yield from evaluation_views(images, size, torch.get_num_threads(), device)
        return
    for start in range(0, len(images), size):
        yield resident(images[start : start + size], device)


def resident(images: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device.

    On the CPU it shares the array's memory: a map of a file stays one, its pages shared by all
    processes of the machine. Such a map is read-only; nothing may write to the tensor.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images).to(device)
