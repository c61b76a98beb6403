"""MobileNetV2 for 224 pixels, full width: `imagenet_mobilenetv2`.

torchvision's network as it is, without its weights; checkpoints of torchvision load as they are. Weights
start as in torchvision: convolutions N(0, 2 / (k^2 C_out)), the classifier N(0, 0.01^2) with bias 0. The
half-width network for small images is called `mobilenetv2`.

The stage taps are bottlenecks at strides 4, 8, 16 and 32: sums of linear maps, which may be negative, with
no ReLU after them within the stage. So `stageN.pre` is `stageN` itself. `embed` is what the last linear
layer reads: in training, what torchvision's dropout (rate 0.2) leaves of the pooled features.
"""

from __future__ import annotations

from torch import nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import he_normal, read_channels

PAPER = Paper(
    title="MobileNetV2: inverted residuals and linear bottlenecks",
    authors="Sandler, Howard, Zhu, Zhmoginov, Chen",
    venue="CVPR",
    year=2018,
    url="https://arxiv.org/abs/1801.04381",
)


def build(num_classes: int, in_channels: int) -> nn.Module:
    """Make torchvision's network."""
    from torchvision.models import mobilenet_v2

    network: nn.Module = mobilenet_v2(num_classes=num_classes)
    read_channels(network, "features.0.0", in_channels)
    if in_channels != 3:
        he_normal(network.get_submodule("features.0.0"))
    return network


STAGES = ((3, 24, 4), (6, 32, 8), (13, 96, 16), (17, 320, 32))  # position, channels, stride


def _taps() -> dict[str, Tap]:
    taps: dict[str, Tap] = {}
    for stage, (position, channels, stride) in enumerate(STAGES, start=1):
        tap = Tap(f"features.{position}", channels, stride, "linear")
        taps |= {f"stage{stage}.pre": tap, f"stage{stage}": tap}
    return {**taps, "embed": Tap("classifier.1", 1280, 0, "vector", side="input")}


MODEL = ModelSpec(
    "imagenet_mobilenetv2",
    build,
    _taps(),
    "classifier.1",
    2_351_972,
    PAPER,
    side=224,
    printed={"imagenet": ("mobilenetv2",)},
)
