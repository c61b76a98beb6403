"""Images that stay in their files: decoded, cropped and augmented in worker processes.

What a sample looks like in an epoch is a function of (seed, stream, epoch, index) alone, so neither the
number of workers nor the order of the batches changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdpipe.api import ImageFiles
from kdpipe.core.errors import DataError
from kdpipe.engine.augment import Pipeline, ResizedCrop
from kdpipe.engine.streams import generator

MARGIN = 256 / 224  # torchvision's evaluation presets: the short side becomes 256, the middle 224 are seen
READ_AHEAD = 4  # batches that each worker prepares


def whole(images: ImageFiles, row: int) -> Tensor:
    """An image as it lies in its file: H x W x 3, uint8.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    from PIL import Image

    path = images.path(row)
    try:
        with Image.open(path) as file:
            return torch.from_numpy(np.array(file.convert("RGB")))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError("an image cannot be decoded", where=str(path), fix="get the file again") from error


def centre(image: Tensor, side: int) -> Tensor:
    """The evaluation view: short side to `side` 256 / 224 (bilinear, antialiased), then the middle.

    Args:
        image: H x W x C, uint8.
        side: height and width of the view.

    Returns:
        side x side x C, uint8.
    """
    from torchvision.transforms.v2 import functional as F

    resized = F.resize(image.permute(2, 0, 1), [round(side * MARGIN)], antialias=True)
    view: Tensor = F.center_crop(resized, [side, side]).permute(1, 2, 0)
    return view


def evaluation_views(images: ImageFiles, size: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    """The images in order as batches of at most `size` evaluation views: B x side x side x 3, uint8.

    Raises:
        DataError: an image cannot be decoded.
    """
    parts = [list(range(start, min(start + size, len(images)))) for start in range(0, len(images), size)]
    return _load(_Views(images), parts, workers, device)


def training_views(
    images: ImageFiles,
    augment: Pipeline,
    seed: int,
    stream: str,
    epoch: int,
    parts: Sequence[Tensor],
    workers: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Augmented batches of the samples at `parts`, in that order: B x side x side x 3, uint8.

    A pipeline that starts with `resized_crop` gets the image as it is; others get the evaluation view.

    Args:
        images: the training files.
        augment: the steps.
        seed: the run's seed.
        stream: name of the augmentation's stream.
        epoch: which epoch, from 0.
        parts: indices of each batch.
        workers: processes that decode; 0 is none beside this one.
        device: where the batches shall be.

    Raises:
        DataError: an image cannot be decoded.
    """
    views = _Views(images, augment, seed, stream, epoch)
    return _load(views, [part.tolist() for part in parts], workers, device)


class _Views(Dataset[Tensor | DataError]):
    """Single views by index; a broken image is returned as its error, to be raised in one piece."""

    def __init__(
        self,
        images: ImageFiles,
        augment: Pipeline | None = None,
        seed: int = 0,
        stream: str = "",
        epoch: int = 0,
    ) -> None:
        self.images, self.augment = images, augment
        self.seed, self.stream, self.epoch = seed, stream, epoch

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            image = whole(self.images, index)
        except DataError as error:
            return error
        return self._augmented(image, index) if self.augment else centre(image, self.images.side)

    def _augmented(self, image: Tensor, index: int) -> Tensor:
        assert self.augment is not None
        drawn = self.augment.draw(1, generator(self.seed, f"{self.stream}/{index}", self.epoch))
        steps = self.augment.steps
        if steps and isinstance(steps[0], ResizedCrop):
            batch = steps[0].apply(image[None], drawn[0], self.images.side)
            steps, drawn = steps[1:], drawn[1:]
        else:
            batch = centre(image, self.images.side)[None]
        for step, parameters in zip(steps, drawn, strict=True):
            batch = step.apply(batch, parameters)
        return batch[0]


def _load(views: _Views, parts: list[list[int]], workers: int, device: torch.device) -> Iterator[Tensor]:
    loader = DataLoader(
        views,
        batch_sampler=parts,
        num_workers=workers,
        prefetch_factor=READ_AHEAD if workers else None,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws from it, and must not from the global one
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch.to(device, non_blocking=True)


def _collate(views: list[Tensor | DataError]) -> Tensor | DataError:
    for view in views:
        if isinstance(view, DataError):
            return view
    return torch.stack([view for view in views if isinstance(view, Tensor)])


def sample_of(images: ImageFiles, size: int) -> Iterator[NDArray[np.uint8]]:
    """Evaluation views of at most `size` images, evenly spaced, in small batches of arrays."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(size, len(images))).round().astype(np.int64))
    for batch in evaluation_views(images[rows], 64, 0, torch.device("cpu")):
        yield batch.numpy()
