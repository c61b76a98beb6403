"""Which weights a penalty on a network's weights falls on."""

from __future__ import annotations

from typing import Literal

from torch import nn

Penalised = Literal["all", "weights"]
"""Every trained tensor, or only those of two dimensions and more: no biases, no batch-norm scales."""


def penalised(model: nn.Module, which: Penalised) -> list[nn.Parameter]:
    """The parameters that a penalty falls on, named as in a protocol's `decay_on`."""
    return [p for p in model.parameters() if p.requires_grad and (which == "all" or p.ndim > 1)]
