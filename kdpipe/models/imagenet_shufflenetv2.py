"""ShuffleNetV2 (1x) for 224 pixels: `imagenet_shufflenetv2`.

torchvision's network, without its weights; checkpoints of torchvision load as they are. Weights start as
in torchvision (PyTorch's default). The network with a stem for small images is called `shufflenetv2`.

One change, which alters no value: the last ReLU of each stage runs after the unit's concatenation and
shuffle, where its input can be read. The channels that passed the unit untouched were rectified before.
"""

from __future__ import annotations

from torch import nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import read_channels

PAPER = Paper(
    title="ShuffleNet V2: practical guidelines for efficient CNN architecture design",
    authors="Ma, Zhang, Zheng, Sun",
    venue="ECCV",
    year=2018,
    url="https://arxiv.org/abs/1807.11164",
)
STAGES = {2: (116, 4), 3: (232, 8), 4: (464, 4)}  # torchvision's number -> channels, units
FEATURES = 1024


def build(num_classes: int, in_channels: int) -> nn.Module:
    """Make torchvision's network, with the last ReLU of each stage at the stage's end."""
    from torchvision.models import shufflenet_v2_x1_0

    network: nn.Module = shufflenet_v2_x1_0(num_classes=num_classes)
    read_channels(network, "conv1.0", in_channels)
    for number, (_, units) in STAGES.items():
        network.set_submodule(f"stage{number}.{units - 1}.branch2.7", nn.Identity(), strict=True)
        network.get_submodule(f"stage{number}").append(nn.ReLU())  # type: ignore[operator]
    return network


def _taps() -> dict[str, Tap]:
    taps = {}
    for stage, (number, (channels, units)) in enumerate(STAGES.items(), start=1):
        last, stride = f"stage{number}.{units}", 2 ** (stage + 2)
        taps[f"stage{stage}.pre"] = Tap(last, channels, stride, "linear", side="input")
        taps[f"stage{stage}"] = Tap(last, channels, stride, "relu")
    return {**taps, "embed": Tap("fc", FEATURES, 0, "vector", side="input")}


MODEL = ModelSpec(
    "imagenet_shufflenetv2",
    build,
    _taps(),
    "fc",
    1_356_104,
    PAPER,
    side=224,
    printed={"imagenet": ("shufflenetv2",)},
)
