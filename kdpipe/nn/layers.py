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
    gradient's variance, fan-out). Batch norms keep weight 1 and bias 0, linear layers PyTorch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def global_average(maps: Tensor) -> Tensor:
    """Mean over the map, whatever its size: B x C x H x W to B x C.

    Average pooling with the map itself as window adds up in the order of the `AvgPool2d(8)` of the
    published code, so 32-pixel images give the same bits; adaptive pooling does not.
    """
    return F.avg_pool2d(maps, (maps.shape[2], maps.shape[3])).flatten(1)
