"""CIFAR-100: 32-pixel colour photographs of 100 classes, 500 training and 100 test images of each."""

from __future__ import annotations

from kdpipe.datasets._formats import Cifar

CIFAR100 = Cifar("cifar100", label="fine_label", pickles="cifar-100-python", reader="CIFAR100").spec(
    num_classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    stats_source="RepDistiller and mdistiller, CIFAR-100 loaders",
)
