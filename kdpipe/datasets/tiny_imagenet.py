"""Tiny ImageNet: 64-pixel colour photographs of 200 classes, 500 training and 50 validation images of each.

Labels follow the sorted names of the classes. The labels of the published test images are secret, so the
field tests on the validation images; here they are the split `test`.
"""

from __future__ import annotations

from pathlib import Path

from kdpipe.api import DatasetSpec, Paper
from kdpipe.datasets._formats import Pixels, arriving
from kdpipe.datasets._trees import ClassFolders

FILES = ClassFolders("tiny_imagenet", Pixels(64), test="val", inner="tiny-imagenet-200")
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # as several loaders of the field state it


def download(folder: Path) -> None:
    """Fetch the published archive into `folder` unless the data are there; its checksum is compared."""
    archive = folder / f"{FILES.inner}.zip"
    if archive.exists() or (folder / FILES.inner).exists() or (folder / FILES.train).exists():
        return
    from torchvision.datasets.utils import download_url

    with arriving(archive, FILES.name) as place:
        download_url(URL, str(place.parent), place.name, MD5)


TINY_IMAGENET = DatasetSpec(
    name="tiny_imagenet",
    num_classes=200,
    shape=(3, 64, 64),
    sizes={"train": 100_000, "test": 10_000},
    read=FILES.read,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2302, 0.2265, 0.2262),
    stats_source="mdistiller, Tiny ImageNet loader",
    licence="ImageNet's terms of access: non-commercial research and education",
    paper=Paper(
        title="Tiny ImageNet visual recognition challenge",
        authors="Le, Yang",
        venue="CS 231N report, Stanford University",
        year=2015,
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    layout="tiny-imagenet-200.zip as published, or its folder tiny-imagenet-200/ unpacked",
    download=download,
)
