"""Residual networks for small images: three stages of basic blocks (resnet8 ... resnet110, resnet8x4 ...).

    x_{l+1} = ReLU(shortcut(x_l) + BN(conv(ReLU(BN(conv(x_l))))))        depth = 6 n + 2, n blocks a stage

The names, widths and state-dict keys are those of RepDistiller (Tian et al., ICLR 2020), whose
checkpoints load as they are. In `resnetNx4` the stages are 64, 128 and 256 channels wide (the stem 32).

Deviations from He et al.: a shortcut that changes shape is a 1 x 1 convolution with batch norm (their
option B; their CIFAR networks pad with zeros, option A), as in RepDistiller; the average pool takes the
whole map, so any image size works (equal bits at 32 pixels).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import conv3x3, global_average, he_normal

PAPER = Paper(
    title="Deep residual learning for image recognition",
    authors="He, Zhang, Ren, Sun",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1512.03385",
)
NARROW = (16, 16, 32, 64)  # channels of the stem and of the three stages
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()  # not in place: the `.pre` taps read its input

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/stride x W/stride."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu2(out + shortcut)
        return activated


class ResNet(nn.Module):
    """Stem, three stages, global average pool, linear classifier.

    Args:
        depth: layers with weights, 6 n + 2.
        widths: channels of the stem and of each stage.
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        blocks = _blocks(depth)
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.fc(global_average(maps))
        return logits


def _blocks(depth: int) -> int:
    return (depth - 2) // 6


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _spec(name: str, depth: int, widths: tuple[int, int, int, int], params: int) -> ModelSpec:
    taps = {}
    for stage, width in enumerate(widths[1:], start=1):
        block = f"layer{stage}.{_blocks(depth) - 1}"
        place = (f"{block}.relu2", width, 2 ** (stage - 1))
        taps[f"stage{stage}.pre"] = Tap(*place, "linear", side="input", norm=f"{block}.bn2")
        taps[f"stage{stage}"] = Tap(*place, "relu")
    taps["embed"] = Tap("fc", widths[3], 0, "vector", side="input")
    return ModelSpec(name, partial(ResNet, depth, widths), taps, "fc", params, PAPER)


MODELS = (
    _spec("resnet8", 8, NARROW, 83_892),
    _spec("resnet14", 14, NARROW, 181_108),
    _spec("resnet20", 20, NARROW, 278_324),
    _spec("resnet32", 32, NARROW, 472_756),
    _spec("resnet44", 44, NARROW, 667_188),
    _spec("resnet56", 56, NARROW, 861_620),
    _spec("resnet110", 110, NARROW, 1_736_564),
    _spec("resnet8x4", 8, WIDE, 1_233_540),
    _spec("resnet32x4", 32, WIDE, 7_433_860),
)
