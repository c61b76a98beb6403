"""What a data set declares about itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.api.settings import Paper
from kdpipe.core.ids import digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LAYOUT = 2  # of a prepared folder's files; another one is another folder, while runs keep their ids


@dataclass(frozen=True)
class ImageFiles:
    """Images that stay in their files, in a fixed order.

    Attributes:
        root: folder that holds them.
        names: N paths within it, encoded as the file system does.
        side: height and width of what a network sees of them, in pixels.
    """

    root: Path
    names: NDArray[np.bytes_]
    side: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> ImageFiles:
        return ImageFiles(self.root, self.names[rows], self.side)

    def path(self, row: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(bytes(self.names[row]))


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        images: N x H x W x C, uint8; or files, for images too many or too large to lie in memory.
        labels: N, int64, in [0, num_classes).
        source: kind of files it was read from (`parquet`), for the record.
        classes: names of the classes in the order of their labels, where they are known.
    """

    images: NDArray[np.uint8] | ImageFiles
    labels: NDArray[np.int64]
    source: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What every data set has.

    Attributes:
        name: registry name (`cifar100`).
        licence: terms of use.
        paper: citation.
        revision: bump when the data come out differently.
    """

    name: str
    licence: str
    paper: Paper
    revision: int = 1


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Dataset):
    """A set of labelled images.

    Attributes:
        num_classes: number of labels; None is counted when the data are prepared.
        shape: (channels, height, width) of what a network sees of an image.
        sizes: images per split, for the splits `train` and `test`; empty is counted when prepared.
        read: `read(folder) -> {"train": Split, "test": Split}`; `folder` is None for embedded data.
        mean, std: per-channel normalisation of images in [0, 1]; None is computed from the training
            split when the data are prepared.
        stats_source: where mean and std come from.
        preprocessing: what a network is given: `standardise` is (x / 255 - mean) / std, `unit-norm`
            is x / |x|_2, the norm taken over all values of an image.
        targets: for a regression onto labels, the number that stands for each class.
        embedded: True when a Python package carries the images.
        on_disk: True when the images stay in their files, and preparing them makes an index only.
        layout: for people: what must lie in the folder.
        beside: names of folders beside it where `read` looks too.
        download: `download(folder)` fetches the published files, checksums verified; None where the
            terms of use or the source do not allow it.
    """

    num_classes: int | None
    shape: tuple[int, int, int]
    sizes: dict[str, int]
    read: Callable[[Path | None], dict[str, Split]]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stats_source: str = "computed from the training split"
    preprocessing: Literal["standardise", "unit-norm"] = "standardise"
    targets: tuple[float, ...] | None = None
    embedded: bool = False
    on_disk: bool = False
    layout: str = ""
    beside: tuple[str, ...] = ()
    download: Callable[[Path], None] | None = None

    @cached_property
    def folder(self) -> str:
        """Name of its prepared folder: `<name>-<hash of name, revision and the files' layout>`."""
        return f"{self.name}-{digest({'name': self.name, 'revision': self.revision, 'layout': LAYOUT})}"


@dataclass(frozen=True)
class Regression:
    """One draw of a regression problem.

    Attributes:
        x: N x D inputs.
        y: N noisy targets.
        clean: N targets without the noise.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    clean: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RegressionSpec(Dataset):
    """A small regression problem that is drawn, not read; for closed forms, not for networks.

    Attributes:
        samples: N.
        draw: `draw(seed) -> Regression`.
        about: the problem in one line.
        settings: its constants, each as `(value, source)`.
    """

    samples: int
    draw: Callable[[int], Regression]
    about: str
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
