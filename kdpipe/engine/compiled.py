"""Compiled networks, whose kernels a GPU may replay as CUDA graphs: one launch for all of a pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from kdpipe.core.specs import Compile


def compile_networks(networks: Iterable[nn.Module], how: Compile) -> None:
    """Have `torch.compile` make the networks' passes, as a protocol says; hooks must be registered before.

    Each shape of batch has kernels of its own, whichever comes first: a resumed training uses the same ones.
    With `graphs` those of each pass, forward and backward, are captured; without a GPU that is `true` but for
    rounding.
    """
    if not how:
        return
    from torch._dynamo import config
    from torch._functorch import config as backward

    backward.donated_buffer = False  # methods may go back through a pass more than once
    # or the cache, which forgets the line above, gives what another program compiled: wrong gradients
    torch.compiler.config.cache_key_tag = "kdpipe"
    config.recompile_limit = 64  # for teacher and student, training or not, and each shape; then it gives up
    config.skip_nnmodule_hook_guards = False  # or a network without taps shares the code of one that has some
    for network in networks:
        network.compile(mode="reduce-overhead" if how == "graphs" else "default", dynamic=False)


def next_step(how: Compile) -> None:
    """Say that no output of an earlier pass is needed any more: a graph writes to the same place again."""
    if how == "graphs":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
