"""Compiled networks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Have `torch.compile` make the networks' passes; hooks must be registered before.

    Each shape of batch has kernels of its own, whichever comes first: a resumed training uses the same ones.
    """
    from torch._dynamo import config
    from torch._functorch import config as backward

    backward.donated_buffer = False  # methods may go back through a pass more than once
    # or the cache, which forgets the line above, gives what another program compiled: wrong gradients
    torch.compiler.config.cache_key_tag = "kdpipe"
    config.recompile_limit = 64  # for teacher and student, training or not, and each shape; then it gives up
    config.skip_nnmodule_hook_guards = False  # or a network without taps shares the code of one that has some
    for network in networks:
        network.compile(dynamic=False)
