"""What a data set declares about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.api.settings import Paper
from kdpipe.core.ids import digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """One split as arrays.

    Attributes:
        images: N x C x H x W, uint8.
        labels: N, int64, in [0, num_classes).
        source: kind of files it was read from (`parquet`), for the record.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """A data set by name.

    Attributes:
        name: registry name (`cifar100`).
        num_classes: number of labels.
        shape: (channels, height, width) of an image.
        sizes: images per split, for the splits `train` and `test`.
        mean, std: per-channel normalisation of images in [0, 1]; None is computed from the training
            split when the data are prepared.
        stats_source: where mean and std come from.
        read: `read(folder) -> {"train": Split, "test": Split}`; `folder` is None for embedded data.
        embedded: True when a Python package carries the images.
        layout: for people: what must lie in the folder.
        licence: terms of use.
        paper: citation.
        revision: bump when `read` gives other arrays.
    """

    name: str
    num_classes: int
    shape: tuple[int, int, int]
    sizes: dict[str, int]
    read: Callable[[Path | None], dict[str, Split]]
    licence: str
    paper: Paper
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stats_source: str = "computed from the training split"
    embedded: bool = False
    layout: str = ""
    revision: int = 1

    @property
    def folder(self) -> str:
        """Name of its prepared folder: `<name>-<hash of name and revision>`."""
        return f"{self.name}-{digest({'name': self.name, 'revision': self.revision})}"
