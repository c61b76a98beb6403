"""ShuffleNetV2 for small images: half of the channels pass each unit untouched, then all are shuffled.

    x, y = split(x_l);   x_{l+1} = shuffle([x, ReLU(BN(conv1x1(BN(dwconv3x3(ReLU(BN(conv1x1(y))))))))])

Three stages, 116, 232 and 464 channels wide, after a 1 x 1 stem of 24 channels; a 1 x 1 convolution to 1024
channels at the end. The first unit of a stage halves the map and transforms both branches.

State-dict keys are those of RepDistiller and mdistiller, whose checkpoints load as they are. Weights start
as PyTorch's default, as in the published code.

The last ReLU of a unit runs after the shuffle, on all channels. The half that passed untouched was
rectified before, so the values are the same; and `stageN.pre` has the channel order of `stageN` (in the
published code's lists it has the order before the shuffle).

Deviations from Ma et al.: the stem, and no max pooling after it, for small images, as in the published
code. The average pool takes the whole map, so any image size works (equal bits at 32 pixels).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import global_average, shuffle

PAPER = Paper(
    title="ShuffleNet V2: practical guidelines for efficient CNN architecture design",
    authors="Ma, Zhang, Zheng, Sun",
    venue="ECCV",
    year=2018,
    url="https://arxiv.org/abs/1807.11164",
)
STEM, FEATURES = 24, 1024
STAGES = ((116, 3), (232, 7), (464, 3))  # channels, units after the one that halves the map


class Unit(nn.Module):
    """Splits the channels and transforms one half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.ReLU()  # not in place: the `.pre` taps read its input

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to the same shape."""
        kept, changed = x.chunk(2, 1)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(changed)))))
        out = self.bn3(self.conv3(out))
        joined: Tensor = self.last(shuffle(torch.cat([kept, out], 1), 2))
        return joined


class DownUnit(nn.Module):
    """Halves the map and widens it: two branches that both read all channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = _depthwise(inputs, stride=2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/2 x W/2."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.relu(self.bn3(self.conv3(x)))))
        right = self.bn5(self.conv5(right))
        joined: Tensor = self.relu(shuffle(torch.cat([left, right], 1), 2))
        return joined


class ShuffleNetV2(nn.Module):
    """Stem, three stages, 1 x 1 convolution, global average pool, linear classifier.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        (one, _), (two, _), (three, _) = STAGES
        self.layer1 = _stage(STEM, *STAGES[0])
        self.layer2 = _stage(one, *STAGES[1])
        self.layer3 = _stage(two, *STAGES[2])
        self.conv2 = nn.Conv2d(three, FEATURES, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(FEATURES)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        maps = self.relu(self.bn2(self.conv2(maps)))
        logits: Tensor = self.linear(global_average(maps))
        return logits


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(inputs, outputs), *(Unit(outputs) for _ in range(units)))


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


def _taps() -> dict[str, Tap]:
    taps = {}
    for stage, (channels, units) in enumerate(STAGES, start=1):
        last, stride = f"layer{stage}.{units}.last", 2**stage
        taps[f"stage{stage}.pre"] = Tap(last, channels, stride, "linear", side="input")
        taps[f"stage{stage}"] = Tap(last, channels, stride, "relu")
    return {**taps, "embed": Tap("linear", FEATURES, 0, "vector", side="input")}


MODEL = ModelSpec("shufflenetv2", ShuffleNetV2, _taps(), "linear", 1_355_528, PAPER, light=True)
