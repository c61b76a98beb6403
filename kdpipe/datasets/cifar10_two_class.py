"""CIFAR-10's first two classes (airplane +1, automobile -1), each image divided by its 2-norm.

The data of the experiments in Rahbar et al. 2020, section 4. The arrays stay uint8; the division is the
declared preprocessing, and the numbers that stand for the classes are declared targets. The paper does
not say how many images it used: these are all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdpipe.api import DatasetSpec, Paper, Split
from kdpipe.datasets._formats import CIFAR_LICENCE, Cifar

CLASSES = ("airplane", "automobile")
BESIDE = ("cifar10-two-class", "cifar10")
FILES = Cifar("cifar10_two_class", label="label", pickles="cifar-10-batches-py", reader="CIFAR10")


def read(folder: Path | None) -> dict[str, Split]:
    """The two classes in the order of the files, from CIFAR-10 or from parquet files of these alone.

    Where `folder` is missing, `cifar10-two-class` and `cifar10` beside it are looked at.

    Raises:
        DataError: none of them holds the images.
    """
    return {name: _first_two(split) for name, split in FILES.read(_place(folder)).items()}


def download(folder: Path) -> None:
    """Fetch CIFAR-10 into `folder` unless it is there or beside it; torchvision checks the sums."""
    if _place(folder) == folder:
        FILES.download(folder)


def _place(folder: Path | None) -> Path | None:
    beside = [folder.parent / name for name in BESIDE] if folder else []
    return next((place for place in [folder, *beside] if place and place.is_dir()), folder)


def _first_two(split: Split) -> Split:
    kept = np.flatnonzero(split.labels < len(CLASSES))
    return Split(split.images[kept], split.labels[kept], split.source, CLASSES)


CIFAR10_TWO_CLASS = DatasetSpec(
    name="cifar10_two_class",
    num_classes=2,
    shape=(3, 32, 32),
    sizes={"train": 10_000, "test": 2_000},
    read=read,
    preprocessing="unit-norm",
    targets=(1.0, -1.0),
    licence=CIFAR_LICENCE,
    paper=Paper(
        title="On the unreasonable effectiveness of knowledge distillation: analysis in the kernel regime",
        authors="Rahbar, Panahi, Bhattacharyya, Dubhashi, Haghir Chehreghani",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2003.13438",
    ),
    layout=f"CIFAR-10 ({FILES.layout}), or parquet files of its first two classes alone",
    beside=BESIDE,
    download=download,
)
