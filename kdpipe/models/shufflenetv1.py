"""ShuffleNetV1 for small images: grouped 1 x 1 convolutions (3 groups) and channel shuffles.

    x_{l+1} = ReLU(x_l + BN(gconv1x1(ReLU(BN(dwconv3x3(shuffle(ReLU(BN(gconv1x1(x_l)))))))))

Three stages, 240, 480 and 960 channels wide, after a 1 x 1 stem of 24 channels. The first unit of a stage
halves the map and concatenates the branch with the average-pooled input instead of adding it.

State-dict keys are those of RepDistiller and mdistiller, whose checkpoints load as they are. Weights start
as PyTorch's default, as in the published code.

Deviations from Zhang et al.: the stem, and no max pooling after it, for small images; a ReLU after the
depthwise convolution, which they leave out; both as in the published code. The average pool takes the
whole map, so any image size works (equal bits at 32 pixels).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import global_average, shuffle

PAPER = Paper(
    title="ShuffleNet: an extremely efficient convolutional neural network for mobile devices",
    authors="Zhang, Zhou, Lin, Sun",
    venue="CVPR",
    year=2018,
    url="https://arxiv.org/abs/1707.01083",
)
GROUPS = 3
STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


class Unit(nn.Module):
    """A grouped bottleneck with channel shuffle; its first convolution has `groups` groups."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, down: bool) -> None:
        super().__init__()
        self.groups, self.down = groups, down
        branch = outputs - inputs if down else outputs
        hidden = branch // 4
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, 2 if down else 1, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if down else nn.Identity()
        self.last = nn.ReLU()  # not in place: the `.pre` taps read its input

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H x W, or half of H and W."""
        out = shuffle(self.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        shortcut = self.shortcut(x)
        joined: Tensor = self.last(torch.cat([out, shortcut], 1) if self.down else out + shortcut)
        return joined


class ShuffleNetV1(nn.Module):
    """Stem, three stages, global average pool, linear classifier.

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
        self.layer1 = _stage(STEM, *STAGES[0], groups=1)  # the stem's channels are too few for groups
        self.layer2 = _stage(one, *STAGES[1])
        self.layer3 = _stage(two, *STAGES[2])
        self.linear = nn.Linear(three, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(global_average(maps))
        return logits


def _stage(inputs: int, outputs: int, units: int, groups: int = GROUPS) -> nn.Sequential:
    """Units, the first of which halves the map; `groups` are those of its first convolution."""
    first = Unit(inputs, outputs, groups, down=True)
    return nn.Sequential(first, *(Unit(outputs, outputs, GROUPS, down=False) for _ in range(units - 1)))


def _taps() -> dict[str, Tap]:
    taps = {}
    for stage, (channels, units) in enumerate(STAGES, start=1):
        unit = f"layer{stage}.{units - 1}"
        place = (f"{unit}.last", channels, 2**stage)
        taps[f"stage{stage}.pre"] = Tap(*place, "linear", side="input", norm=f"{unit}.bn3")
        taps[f"stage{stage}"] = Tap(*place, "relu")
    return {**taps, "embed": Tap("linear", STAGES[-1][0], 0, "vector", side="input")}


MODEL = ModelSpec("shufflenetv1", ShuffleNetV1, _taps(), "linear", 949_258, PAPER, light=True)
