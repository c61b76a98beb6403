"""What a network costs, and what tells it from others of its name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from kdpipe.api import ModelSpec


@dataclass(frozen=True)
class Cost:
    """Size of a network for some class count and image shape.

    Attributes:
        parameters: trainable ones.
        multiply_adds: of one image's forward pass.
        fingerprint: parameter count and hash of the state dict's keys and shapes.
    """

    parameters: int
    multiply_adds: int
    fingerprint: str


def cost(model: nn.Module, image_shape: Sequence[int]) -> Cost:
    """The cost of a network for images of that shape (C, H, W); the network stays as it is."""
    return Cost(parameters(model), multiply_adds(model, image_shape), fingerprint(model))


def declared_cost(spec: ModelSpec, num_classes: int, channels: int = 3) -> Cost:
    """The cost of a registered network at the image side it was designed for; no weights are made."""
    with torch.device("meta"):
        model = spec.build(num_classes, channels)
    return cost(model, (channels, spec.side, spec.side))


def forward_cost(spec: ModelSpec, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of a registered network for one image (C x H x W).

    Weights are drawn and thrown away: one network without any costs seconds of imports (those of PyTorch's
    kernels for the device `meta`).
    """
    with torch.random.fork_rng(devices=[]):
        return multiply_adds(spec.build(num_classes, image_shape[0]), image_shape)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiplications (each with an addition) of convolutions and linear layers for one image.

        convolution   C_out H_out W_out (C_in / groups) k_H k_W            linear   C_in C_out

    Biases, batch norms, activations and pooling are not counted, as is usual in the literature; nor are
    matrix products outside such layers. The pass runs in eval mode without gradients; modes, buffers and
    random generators stay as they were. Call it before compiling the network. (PyTorch's own counter needs
    no layers, but its first use costs seconds of imports; the tests hold this one to it.)

    Args:
        model: the network.
        image_shape: (C, H, W).
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    modes = [(module, module.training) for module in model.modules()]
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    try:
        with counted(model) as counts, torch.no_grad(), torch.random.fork_rng(devices=devices):
            model.eval()(image)
    finally:
        for module, mode in modes:
            module.training = mode
    return sum(counts)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """A list that is filled with the multiply-adds of every call of a layer below `module`."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        counts.append(_products(layer, inputs, output))

    handles = [each.register_forward_hook(count) for each in module.modules()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _products(layer: nn.Module, read: tuple[Tensor, ...], made: Any) -> int:
    """Multiplications of one call of one layer; a linear one is known by its `in_features`."""
    if isinstance(layer, _ConvNd):
        places, other = (read[0], layer.out_channels) if layer.transposed else (made, layer.in_channels)
        return places.numel() * (other // layer.groups) * math.prod(layer.kernel_size)
    features = getattr(layer, "in_features", None)
    return made.numel() * features if isinstance(features, int) else 0


def fingerprint(model: nn.Module) -> str:
    """`<trainable parameters>-<hash>`, the hash over the sorted (key, shape) list of the state dict.

    Networks that differ in structure under the same name differ here. It depends on the class count and
    the image's channels, on no weight. (The run id says which plug-in revision; this says which network,
    also for weights made elsewhere.)
    """
    listed = sorted((key, tuple(value.shape)) for key, value in model.state_dict().items())
    return f"{parameters(model)}-{hashlib.sha256(repr(listed).encode()).hexdigest()[:12]}"
