"""MobileNetV1 for 224 pixels: depthwise and 1 x 1 convolutions in turn, `imagenet_mobilenetv1`.

    x_{l+1} = ReLU(BN(conv1x1(ReLU(BN(dwconv3x3(x_l))))))

A 3 x 3 stem of stride 2 and thirteen such pairs, to 1024 channels. torchvision has no such network.
State-dict keys are those of mdistiller and ReviewKD, whose checkpoints load as they are. The stages end at
strides 4, 8, 16 and 32. Weights start as PyTorch's default, as in the published code.

Deviations from Howard et al.: none. The average pool takes the whole map, so any image size works (equal
bits at 224 pixels).
"""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import conv3x3, global_average

PAPER = Paper(
    title="MobileNets: efficient convolutional neural networks for mobile vision applications",
    authors="Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam",
    venue="arXiv",
    year=2017,
    url="https://arxiv.org/abs/1704.04861",
)
STEM = 32
PAIRS = (  # channels, stride
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
STAGES = {3: 4, 5: 8, 11: 16, 13: 32}  # position in `model` -> stride of its maps


class MobileNetV1(nn.Module):
    """Stem, thirteen pairs of convolutions, global average pool, linear classifier.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Sequential(conv3x3(in_channels, STEM, stride=2), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        )
        inputs = STEM
        for outputs, stride in PAIRS:
            self.model.append(_pair(inputs, outputs, stride))
            inputs = outputs
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        logits: Tensor = self.fc(global_average(self.model(images)))
        return logits


def _pair(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),  # not in place: the `.pre` taps read its input
    )


def _taps() -> dict[str, Tap]:
    taps = {}
    for stage, (position, stride) in enumerate(STAGES.items(), start=1):
        place = (f"model.{position}.5", PAIRS[position - 1][0], stride)
        taps[f"stage{stage}.pre"] = Tap(*place, "linear", side="input", norm=f"model.{position}.4")
        taps[f"stage{stage}"] = Tap(*place, "relu")
    return {**taps, "embed": Tap("fc", PAIRS[-1][0], 0, "vector", side="input")}


MODEL = ModelSpec(
    "imagenet_mobilenetv1",
    MobileNetV1,
    _taps(),
    "fc",
    3_309_476,
    PAPER,
    side=224,
    printed={"imagenet": ("mobilenet",)},
)
