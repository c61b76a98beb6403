"""MobileNetV2 for small images: half as wide, inverted residuals that expand by T = 6.

    x_{l+1} = x_l + BN(conv1x1(ReLU(BN(dwconv3x3(ReLU(BN(conv1x1(x_l))))))))      (no sum where shapes change)

The stem has stride 2; seven groups of blocks follow, then a 1 x 1 convolution to 1280 channels. State-dict
keys are those of RepDistiller and mdistiller, whose checkpoints load as they are. Weights start as in the
published code: convolutions N(0, 2 / (k^2 C_out)), the classifier N(0, 0.01^2) with bias 0.

The stage taps are bottlenecks: sums of linear maps, which may be negative, with no ReLU after them within
the stage. So `stageN.pre` is `stageN` itself. They are groups 1, 2, 4 and 6, as in the published code.

Deviations from Sandler et al.: ReLU where they clip at 6; the first group has an expansion convolution too
(with factor 1); groups 1 and 4 keep the map's size; widths are halved without rounding to multiples of 8;
no dropout; all as in the published code. The average pool takes the whole map, so any image size works
(equal bits at 32 pixels).
"""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import conv3x3, global_average, he_normal, small_normal

PAPER = Paper(
    title="MobileNetV2: inverted residuals and linear bottlenecks",
    authors="Sandler, Howard, Zhu, Zhmoginov, Chen",
    venue="CVPR",
    year=2018,
    url="https://arxiv.org/abs/1801.04381",
)
STEM, FEATURES = 16, 1280
GROUPS = (  # expansion, channels, blocks, stride of the first
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
STAGES = {1: 2, 2: 4, 4: 8, 6: 16}  # group -> stride of its maps


class InvertedResidual(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise convolution, linear 1 x 1 projection; a sum where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """B x inputs x H x W to B x outputs x H/stride x W/stride."""
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """Stem, seven groups of inverted residuals, 1 x 1 convolution, global average pool, classifier.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv3x3(in_channels, STEM, stride=2), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential()
        inputs = STEM
        for expansion, outputs, count, stride in GROUPS:
            group = nn.Sequential()
            for n in range(count):
                group.append(InvertedResidual(inputs, outputs, 1 if n else stride, expansion))
                inputs = outputs
            self.blocks.append(group)
        self.conv2 = nn.Sequential(
            nn.Conv2d(inputs, FEATURES, 1, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU(inplace=True)
        )
        linear = nn.Linear(FEATURES, num_classes)
        self.classifier = nn.Sequential(linear)
        he_normal(self)
        small_normal(linear)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.conv2(self.blocks(self.conv1(images)))
        logits: Tensor = self.classifier(global_average(maps))
        return logits


def _taps() -> dict[str, Tap]:
    taps: dict[str, Tap] = {}
    for stage, (group, stride) in enumerate(STAGES.items(), start=1):
        tap = Tap(f"blocks.{group}", GROUPS[group][1], stride, "linear")
        taps |= {f"stage{stage}.pre": tap, f"stage{stage}": tap}
    return {**taps, "embed": Tap("classifier.0", FEATURES, 0, "vector", side="input")}


MODEL = ModelSpec(
    "mobilenetv2",
    MobileNetV2,
    _taps(),
    "classifier.0",
    812_836,
    PAPER,
    light=True,
    printed={"cifar100": ("mobilenet",), "tiny_imagenet": ("mobilenet",)},
)
