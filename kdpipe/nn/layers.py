"""Small parts that several network families share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the map's size (divided by `stride`), without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def he_normal(model: nn.Module) -> None:
    """Draw the weights of every convolution anew: w ~ N(0, 2 / (k^2 C_out)).

    He et al., Delving Deep into Rectifiers, ICCV 2015, equation 14 (the variant that preserves the
    gradient's variance, fan-out). Biases of convolutions become 0; batch norms keep weight 1 and bias 0,
    linear layers PyTorch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_normal(linear: nn.Linear) -> None:
    """Draw the weights of a classifier anew: w ~ N(0, 0.01^2), bias 0 (VGG and MobileNetV2)."""
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)


def read_channels(model: nn.Module, path: str, channels: int) -> None:
    """Give the convolution at `path` fresh weights for images of so many channels, if it has others.

    For networks that a library builds for three. The weights are PyTorch's default; bias and kernel stay.
    """
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    if conv.in_channels != channels:
        conv.in_channels = channels
        conv.weight = nn.Parameter(conv.weight.new_empty(conv.out_channels, channels, *conv.kernel_size))
        conv.reset_parameters()


def shuffle(maps: Tensor, groups: int) -> Tensor:
    """Channel shuffle: channel `i C/g + j` of C becomes channel `j g + i`.

    Zhang et al., ShuffleNet, CVPR 2018, section 3.1. The channels are permuted as the last axis, so maps
    in channels-last memory stay so and the convolutions after it need not rearrange them.

    Args:
        maps: B x C x H x W.
        groups: g, which divides C.
    """
    batch, channels, height, width = maps.shape
    last = maps.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups)
    return last.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def global_average(maps: Tensor) -> Tensor:
    """Mean over the map, whatever its size: B x C x H x W to B x C.

    Average pooling with the map itself as window adds up in the order of the `AvgPool2d(8)` of the
    published code, so 32-pixel images give the same bits; adaptive pooling does not. (Networks whose
    published code pools adaptively use PyTorch's adaptive pooling, for the same reason.)
    """
    return F.avg_pool2d(maps, (maps.shape[2], maps.shape[3])).flatten(1)
