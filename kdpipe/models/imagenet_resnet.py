"""Residual networks for 224 pixels: imagenet_resnet18, _resnet34, _resnet50, _resnet101.

torchvision's networks as they are (7 x 7 stem of stride 2, max pooling, four stages), without its weights;
checkpoints of torchvision load as they are. The networks with a stem for small images are called
`resnet18`, `resnet34`, `resnet50`.

Deviation from He et al.: the 3 x 3 convolution of a bottleneck carries the stride ("v1.5"), as in
torchvision. Weights start as in torchvision: convolutions N(0, 2 / (k^2 C_out)).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import he_normal, read_channels

PAPER = Paper(
    title="Deep residual learning for image recognition",
    authors="He, Zhang, Ren, Sun",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1512.03385",
)
WIDTHS = (64, 128, 256, 512)


def build(depth: int, num_classes: int, in_channels: int) -> nn.Module:
    """Make torchvision's network of that depth.

    The last ReLU of each stage does not work in place, because the `.pre` taps read its input.
    """
    from torchvision import models

    network: nn.Module = getattr(models, f"resnet{depth}")(num_classes=num_classes)
    read_channels(network, "conv1", in_channels)
    if in_channels != 3:
        he_normal(network.get_submodule("conv1"))
    for stage in range(1, 5):
        last = list(network.get_submodule(f"layer{stage}").children())[-1]
        last.relu = nn.ReLU()
    return network


def _spec(depth: int, blocks: tuple[int, int, int, int], expansion: int, params: int) -> ModelSpec:
    taps = {}
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
        block = f"layer{stage}.{count - 1}"
        place = (f"{block}.relu", width * expansion, 2 ** (stage + 1))
        norm = f"{block}.bn3" if expansion > 1 else f"{block}.bn2"
        taps[f"stage{stage}.pre"] = Tap(*place, "linear", side="input", norm=norm)
        taps[f"stage{stage}"] = Tap(*place, "relu")
    taps["embed"] = Tap("fc", WIDTHS[-1] * expansion, 0, "vector", side="input")
    return ModelSpec(
        f"imagenet_resnet{depth}",
        partial(build, depth),
        taps,
        "fc",
        params,
        PAPER,
        side=224,
        printed={"imagenet": (f"resnet{depth}",)},
    )


MODELS = (
    _spec(18, (2, 2, 2, 2), 1, 11_227_812),
    _spec(34, (3, 4, 6, 3), 1, 21_335_972),
    _spec(50, (3, 4, 6, 3), 4, 23_712_932),
    _spec(101, (3, 4, 23, 3), 4, 42_705_060),
)
