"""VGG networks with batch norm for small images: vgg8, vgg11, vgg13, vgg16, vgg19.

Five blocks of 3 x 3 convolutions (with bias), batch norms and ReLUs, 64 to 512 channels wide; 2 x 2 max
pooling after each of the first three, after the fourth for images of 64 pixels and more only; global
average pool; one linear classifier. `stage1` to `stage4` are blocks 1 to 4: the first block (block 0) is
the stem, as in the field's feature lists.

State-dict keys are those of RepDistiller and mdistiller (their `vgg*_bn`), whose checkpoints load as they
are. Weights start as in the published code: convolutions N(0, 2 / (k^2 C_out)) with bias 0, the classifier
N(0, 0.01^2) with bias 0.

Deviations from Simonyan and Zisserman: batch norm; no fully connected layers but the last; the pooling
above. Deviation from the published code: it pools after the fourth block at exactly 64 pixels, here from
64 pixels on (the same at 32 and 64).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.nn.layers import he_normal, small_normal

PAPER = Paper(
    title="Very deep convolutional networks for large-scale image recognition",
    authors="Simonyan, Zisserman",
    venue="ICLR",
    year=2015,
    url="https://arxiv.org/abs/1409.1556",
)
WIDTHS = (64, 128, 256, 512, 512)
STRIDES = (1, 2, 4, 8, 8)


class PoolLarge(nn.Module):
    """Max pooling that halves maps of 8 x 8 and more: those of images of 64 pixels and more."""

    def forward(self, maps: Tensor) -> Tensor:
        """B x C x H x W, or half of H and W."""
        return F.max_pool2d(maps, 2) if maps.shape[2] >= 8 else maps


class VGG(nn.Module):
    """Five blocks, global average pool, linear classifier.

    Args:
        depths: convolutions in each block.
        num_classes: length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, depths: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        # The ReLUs do not work in place, because the `.pre` taps read their inputs.
        self.block0, self.relu0 = _block(in_channels, WIDTHS[0], depths[0]), nn.ReLU()
        self.block1, self.relu1 = _block(WIDTHS[0], WIDTHS[1], depths[1]), nn.ReLU()
        self.block2, self.relu2 = _block(WIDTHS[1], WIDTHS[2], depths[2]), nn.ReLU()
        self.block3, self.relu3 = _block(WIDTHS[2], WIDTHS[3], depths[3]), nn.ReLU()
        self.block4, self.relu4 = _block(WIDTHS[3], WIDTHS[4], depths[4]), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.pool_large = PoolLarge()
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        he_normal(self)
        small_normal(self.classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B x num_classes) of images (B x in_channels x H x W)."""
        maps = self.pool(self.relu0(self.block0(images)))
        maps = self.pool(self.relu1(self.block1(maps)))
        maps = self.pool(self.relu2(self.block2(maps)))
        maps = self.pool_large(self.relu3(self.block3(maps)))
        maps = self.relu4(self.block4(maps))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` convolutions with batch norm and ReLU, without the last ReLU."""
    layers: list[nn.Module] = []
    for n in range(depth):
        conv = nn.Conv2d(outputs if n else inputs, outputs, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _spec(depths: tuple[int, ...], params: int) -> ModelSpec:
    taps = {}
    for stage in range(1, 5):
        place = (f"relu{stage}", WIDTHS[stage], STRIDES[stage])
        large = 16 if stage == 4 else None
        norm = f"block{stage}.{3 * depths[stage] - 2}"
        taps[f"stage{stage}.pre"] = Tap(*place, "linear", side="input", stride_64=large, norm=norm)
        taps[f"stage{stage}"] = Tap(*place, "relu", stride_64=large)
    taps["embed"] = Tap("classifier", WIDTHS[-1], 0, "vector", side="input")
    layers = sum(depths) + 3  # named after the original, whose classifier has three layers
    return ModelSpec(f"vgg{layers}", partial(VGG, depths), taps, "classifier", params, PAPER)


MODELS = (
    _spec((1, 1, 1, 1, 1), 3_965_028),
    _spec((1, 1, 2, 2, 2), 9_277_284),
    _spec((2, 2, 2, 2, 2), 9_462_180),
    _spec((2, 2, 3, 3, 3), 14_774_436),
    _spec((2, 2, 4, 4, 4), 20_086_692),
)
