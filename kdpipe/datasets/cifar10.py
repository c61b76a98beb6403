"""CIFAR-10: 32-pixel colour photographs of 10 classes, 5,000 training and 1,000 test images of each."""

from __future__ import annotations

from kdpipe.api import DatasetSpec, Paper
from kdpipe.datasets._formats import Cifar

FILES = Cifar("cifar10", label="label", pickles="cifar-10-batches-py", reader="CIFAR10")

CIFAR10 = DatasetSpec(
    name="cifar10",
    num_classes=10,
    shape=(3, 32, 32),
    sizes={"train": 50_000, "test": 10_000},
    read=FILES.read,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    stats_source="pixels of the 50,000 training images, rounded as the field writes them",
    licence="none stated; the author asks for a citation",
    paper=Paper(
        title="Learning multiple layers of features from tiny images",
        authors="Krizhevsky",
        venue="Technical report, University of Toronto",
        year=2009,
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    layout=FILES.layout,
    download=FILES.download,
)
