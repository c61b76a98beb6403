"""Wide residual networks: three stages of pre-activation blocks, `wrn_<depth>_<width>`.

    x_{l+1} = shortcut(x_l) + conv(ReLU(BN(conv(ReLU(BN(x_l))))))        depth = 6 n + 4, n blocks a stage

State-dict keys are those of RepDistiller (Tian et al., ICLR 2020), whose checkpoints load as they are.
Where the shape changes, the shortcut is a 1 x 1 convolution of the activated input.

The stage taps are the residual sums, which the next stage's batch norm and ReLU have yet to read: they
may be negative, and there is no ReLU within a stage after them. `stageN.pre` is the sum after that batch
norm, which is what the ReLU reads: as OFD, ReviewKD and RepDistiller's `preact` have it. (The peers' other
feature methods read the raw sums.)

Deviations from Zagoruyko and Komodakis: no dropout (the field's setting, rate 0); the average pool takes
the whole map, so any image size works (equal bits at 32 pixels).
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import conv3x3, global_average, he_normal

PAPER = Paper(
    title="Wide residual networks",
    authors="Zagoruyko, Komodakis",
    venue="BMVC",
    year=2016,
    url="https://arxiv.org/abs/1605.07146",
)


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()  # not in place: the `.pre` taps read its input
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        same = inputs == outputs
        self.convShortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/stride x W/stride."""
        active = self.relu1(self.bn1(x))
        shortcut: Tensor = x if self.convShortcut is None else self.convShortcut(active)
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return shortcut + residual


class Stage(nn.Module):
    """A sequence of blocks; only the first changes the shape."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = (PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(PreActivationBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/stride x W/stride."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Stem, three stages, batch norm and ReLU, global average pool, linear classifier.

    Weights start as in the original: convolutions N(0, 2 / (k^2 C_out)), the classifier's bias 0.

    Args:
        depth: layers with weights, 6 n + 4.
        width: the widening factor k; the stages are 16 k, 32 k and 64 k channels wide.
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        one, two, three = _widths(width)
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = Stage(16, one, blocks, stride=1)
        self.block2 = Stage(one, two, blocks, stride=2)
        self.block3 = Stage(two, three, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(three)
        self.relu = nn.ReLU()  # not in place: a `.pre` tap reads its input
        self.fc = nn.Linear(three, num_classes)
        he_normal(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(global_average(self.relu(self.bn1(maps))))
        return logits


def _widths(width: int) -> tuple[int, int, int]:
    return 16 * width, 32 * width, 64 * width


def _spec(depth: int, width: int, params: int) -> ModelSpec:
    widths = _widths(width)
    taps = {}
    after = (("block2.layer.0.relu1", "block2.layer.0.bn1"), ("block3.layer.0.relu1", "block3.layer.0.bn1"))
    for stage, (relu, norm) in enumerate((*after, ("relu", "bn1")), start=1):
        size = (widths[stage - 1], 2 ** (stage - 1))
        taps[f"stage{stage}"] = Tap(f"block{stage}", *size, "linear")
        taps[f"stage{stage}.pre"] = Tap(relu, *size, "linear", side="input", norm=norm)
    taps["embed"] = Tap("fc", widths[-1], 0, "vector", side="input")
    return ModelSpec(f"wrn_{depth}_{width}", partial(WideResNet, depth, width), taps, "fc", params, PAPER)


MODELS = (
    _spec(16, 1, 180_916),
    _spec(16, 2, 703_284),
    _spec(40, 1, 569_780),
    _spec(40, 2, 2_255_156),
)


def family(name: str) -> ModelSpec | None:
    """The wide residual network called `wrn_<depth>_<width>`, or None when there is none of that name."""
    found = re.fullmatch(r"wrn_([1-9]\d*)_([1-9]\d*)", name)
    if not found:
        return None
    depth, width = int(found[1]), int(found[2])
    if depth < 10 or (depth - 4) % 6:
        return None
    with torch.device("meta"):  # counts parameters without making them
        network = WideResNet(depth, width, 100, 3)
    return _spec(depth, width, sum(p.numel() for p in network.parameters()))
