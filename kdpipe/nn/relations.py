"""Relations within a batch: inner products and unit vectors, in full precision whatever autocast says."""

from __future__ import annotations

import torch
from torch import Tensor

from kdpipe.nn.logits import full

SHORTEST = 1e-12
"""A vector below this norm has no direction."""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of a and b: ... x N x M from ... x N x D and ... x M x D.

    In float32 at least and outside autocast: sums of D squares leave the range of half precision soon.
    """
    with torch.autocast(a.device.type, enabled=False):
        return full(a) @ full(b).mT


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """`x / |x|` along a dimension, and zero where x is zero.

    A zero vector gets no gradient. With a norm that is only bounded from below, as in
    `torch.nn.functional.normalize`, it would get one of up to 1e12, and with a bare square root NaN.
    """
    x = full(x)
    squares = x.square().sum(dim, keepdim=True)
    directed = squares > SHORTEST**2
    return x * torch.where(directed, squares, 1).rsqrt() * directed
