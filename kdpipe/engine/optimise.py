"""Optimisers and learning-rate schedules as a protocol states them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdpipe.core.specs import Protocol


class _Eager:
    """An optimiser's own step without the breaks that `torch.compile` needs around it.

    They import torch's compiler, which takes longer than everything else that a training starts with.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> Any:
        return self._step()

    _step: Any


class SGD(_Eager, torch.optim.SGD):  # type: ignore[misc]
    """`torch.optim.SGD`, run eagerly."""

    _step = inspect.unwrap(torch.optim.SGD.step)


class Adam(_Eager, torch.optim.Adam):  # type: ignore[misc]
    """`torch.optim.Adam`, run eagerly."""

    _step = inspect.unwrap(torch.optim.Adam.step)


for _method in vars(torch.optim.Optimizer).values():
    if inspect.isfunction(_method) and "_disable_dynamo" in _method.__code__.co_qualname:
        _inner = inspect.unwrap(_method)
        setattr(_inner, "__dynamo_disable", _inner)


def optimizer(protocol: Protocol, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The protocol's optimiser over `parameters`.

    With `decay_on: weights`, vectors (biases, batch-norm scales) are not decayed. Adam must know that its
    steps will be captured; SGD need not.
    """
    decayed = [p for p in parameters if protocol.decay_on == "all" or p.ndim > 1]
    rest = [p for p in parameters if protocol.decay_on == "weights" and p.ndim <= 1]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, protocol.weight_decay), (rest, 0.0))
        if group
    ]
    if protocol.optimizer == "adam":
        captured = protocol.compile == "graphs" and all(p.is_cuda for p in parameters)
        return Adam(groups, lr=protocol.lr, fused=True, capturable=captured)
    return SGD(groups, lr=protocol.lr, momentum=protocol.momentum, nesterov=protocol.nesterov, fused=True)


def rate(protocol: Protocol, epoch: int) -> float:
    """The learning rate of an epoch (from 0).

    step: `lr * gamma^(number of milestones passed)`. A drop `after` milestone m takes effect in epoch
    m + 1 counted from 1 (RepDistiller and mdistiller), a drop `at` m in epoch m itself.
    cosine: `lr * (1 + cos(pi * epoch / epochs)) / 2`.
    """
    if protocol.schedule == "constant":
        return protocol.lr
    if protocol.schedule == "cosine":
        return protocol.lr * (1 + math.cos(math.pi * epoch / protocol.epochs)) / 2
    counted = epoch + 1
    passed = sum(counted > m if protocol.drop == "after" else counted >= m for m in protocol.milestones)
    return float(protocol.lr * protocol.gamma**passed)
