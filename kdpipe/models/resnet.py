"""Residual networks of the ImageNet design with a stem for small images: resnet18, resnet34, resnet50.

    x_{l+1} = ReLU(shortcut(x_l) + F(x_l)),   F = two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1 (resnet50)

Four stages, 64 to 512 channels wide (resnet50: 256 to 2048). The stem is one 3 x 3 convolution of stride 1
without max pooling. This is what the field means by these names at 32 and 64 pixels; the networks for 224
pixels are called `imagenet_resnet18`, `imagenet_resnet34`, ...

State-dict keys are those of RepDistiller and mdistiller, whose checkpoints load as they are. Weights start
as in the published code: convolutions N(0, 2 / (k^2 C_out)), the classifier as PyTorch's default.

Deviations from He et al.: the stem; in resnet50 the 3 x 3 convolution of a block carries the stride, not
the first 1 x 1 (as in the published code and torchvision).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import conv3x3, he_normal

PAPER = Paper(
    title="Deep residual learning for image recognition",
    authors="He, Zhang, Ren, Sun",
    venue="CVPR",
    year=2016,
    url="https://arxiv.org/abs/1512.03385",
)
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """What both kinds of block share: the shortcut, the sum and the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.ReLU()  # not in place: the `.pre` taps read its input

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/stride x W/stride."""
        out: Tensor = self.last(self.residual(x) + self.shortcut(x))
        return out

    def residual(self, x: Tensor) -> Tensor:
        """The branch beside the shortcut, of the shape of the block's output."""
        raise NotImplementedError


class BasicBlock(Block):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion, norm = 1, "bn2"  # the last batch norm's name

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        """BN(conv(ReLU(BN(conv(x)))))."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out


class Bottleneck(Block):
    """A 3 x 3 convolution between two 1 x 1 that narrow and widen by 4, and a shortcut."""

    expansion, norm = 4, "bn3"

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        outputs = width * self.expansion
        super().__init__(inputs, outputs, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def residual(self, x: Tensor) -> Tensor:
        """Three convolutions with batch norm, ReLUs between them."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        widened: Tensor = self.bn3(self.conv3(out))
        return widened


Kind = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Stem, four stages, global average pool, linear classifier.

    Args:
        block: kind of block.
        blocks: how many in each stage.
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        block: Kind,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        one, two, three, four = (width * block.expansion for width in WIDTHS)
        self.layer1 = _stage(block, blocks[0], WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = _stage(block, blocks[1], one, WIDTHS[1], stride=2)
        self.layer3 = _stage(block, blocks[2], two, WIDTHS[2], stride=2)
        self.layer4 = _stage(block, blocks[3], three, WIDTHS[3], stride=2)
        self.linear = nn.Linear(four, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


def _stage(block: Kind, blocks: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(blocks - 1)))


def _spec(
    depth: int,
    block: Kind,
    blocks: tuple[int, int, int, int],
    params: int,
) -> ModelSpec:
    taps = {}
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
        last = f"layer{stage}.{count - 1}"
        place = (f"{last}.last", width * block.expansion, 2 ** (stage - 1))
        norm = f"{last}.{block.norm}"
        taps[f"stage{stage}.pre"] = Tap(*place, "linear", side="input", norm=norm)
        taps[f"stage{stage}"] = Tap(*place, "relu")
    taps["embed"] = Tap("linear", WIDTHS[-1] * block.expansion, 0, "vector", side="input")
    return ModelSpec(f"resnet{depth}", partial(ResNet, block, blocks), taps, "linear", params, PAPER)


MODELS = (
    _spec(18, BasicBlock, (2, 2, 2, 2), 11_220_132),
    _spec(34, BasicBlock, (3, 4, 6, 3), 21_328_292),
    _spec(50, Bottleneck, (3, 4, 6, 3), 23_705_252),
)
