"""ImageNet (ILSVRC 2012): 1.28 million photographs of 1,000 classes; the 50,000 validation images test.

The photographs stay where they are: preparation makes an index, and worker processes decode them in each
epoch. Labels follow the sorted WordNet ids, as torchvision's pre-trained networks expect.
"""

from __future__ import annotations

from kdpipe.api import DatasetSpec, Paper
from kdpipe.datasets._formats import Pixels
from kdpipe.datasets._trees import ClassFolders

FILES = ClassFolders("imagenet", Pixels(224), test="val", on_disk=True)

IMAGENET = DatasetSpec(
    name="imagenet",
    num_classes=1000,
    shape=(3, 224, 224),
    sizes={"train": 1_281_167, "test": 50_000},
    read=FILES.read,
    on_disk=FILES.on_disk,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    stats_source="torchvision, presets of its classification networks",
    licence="ImageNet's terms of access: non-commercial research and education",
    paper=Paper(
        title="ImageNet large scale visual recognition challenge",
        authors="Russakovsky, Deng, Su, and others",
        venue="International Journal of Computer Vision 115",
        year=2015,
        url="https://www.image-net.org/challenges/LSVRC/2012/",
    ),
    layout=f"{FILES.layout}, a folder per WordNet id in each (n01440764/...)",
)
