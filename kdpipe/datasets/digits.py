"""Handwritten digits: 1,797 real scans of 8 x 8 pixels that scikit-learn carries, half of them for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.api import DatasetSpec, Paper, Split

SPLIT_SEED = 0


def read(folder: Path | None = None) -> dict[str, Split]:
    """The splits `train` (899) and `test` (898) from scikit-learn; `folder` is not used.

    Grey levels 0 to 16 become bytes, v -> (255 v + 8) // 16, in whole numbers. Every class is dealt
    out one by one to either split in a shuffled order, so classes differ by at most one image.
    """
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)
    images = ((255 * grey.astype(np.int64) + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int64)
    train, test = _halves(labels)
    return {
        "train": Split(images[train], labels[train], source="scikit-learn"),
        "test": Split(images[test], labels[test], source="scikit-learn"),
    }


def _halves(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two disjoint halves of the samples with equal shares of every class, each in rising order."""
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    return np.sort(by_class[::2]), np.sort(by_class[1::2])


DIGITS = DatasetSpec(
    name="digits",
    num_classes=10,
    shape=(1, 8, 8),
    sizes={"train": 899, "test": 898},
    read=read,
    licence="CC BY 4.0 (UCI Machine Learning Repository)",
    paper=Paper(
        title="Optical recognition of handwritten digits",
        authors="Alpaydin, Kaynak",
        venue="UCI Machine Learning Repository",
        year=1998,
        url="https://archive.ics.uci.edu/dataset/80",
    ),
    embedded=True,
    layout="nothing: the images come with scikit-learn",
)
