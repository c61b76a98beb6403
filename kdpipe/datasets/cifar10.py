"""CIFAR-10: 32-pixel colour photographs of 10 classes, 5,000 training and 1,000 test images of each."""

from __future__ import annotations

from kdpipe.datasets._formats import Cifar

CIFAR10 = Cifar("cifar10", label="label", pickles="cifar-10-batches-py", reader="CIFAR10").spec(
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    stats_source="pixels of the 50,000 training images, rounded as the field writes them",
)
