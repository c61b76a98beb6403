"""CIFAR-100: 32-pixel colour photographs of 100 classes, 500 training and 100 test images of each."""

from __future__ import annotations

from kdpipe.api import DatasetSpec, Paper
from kdpipe.datasets._formats import Cifar

FILES = Cifar("cifar100", label="fine_label", pickles="cifar-100-python", reader="CIFAR100")

CIFAR100 = DatasetSpec(
    name="cifar100",
    num_classes=100,
    shape=(3, 32, 32),
    sizes={"train": 50_000, "test": 10_000},
    read=FILES.read,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    stats_source="RepDistiller and mdistiller, CIFAR-100 loaders",
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
