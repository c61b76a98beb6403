"""How many bytes a step moves, if each operation reads what it is given and writes its results once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.racing import Loop


class Traffic(TorchDispatchMode):
    """Sums up the bytes of all operations; what caches save is not known, so it is no lower bound."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation and count it, unless it gives a view, or memory without content."""
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if view or "empty" in schema.name:
            return out
        named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            self.bytes += (1 + written) * size(named.get(argument.name))
        if not any(r.alias_info for r in schema.returns):
            self.bytes += size(out)
        return out


def size(tensors: Any) -> int:
    """Bytes of the memory that tensors take, nested as they may be; one that repeats itself takes it once."""
    found = (leaf for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor))
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in found)


def bytes_of(loop: Loop) -> float | None:
    """Bytes that a step moves; it takes one. None for a loop whose operations cannot be seen (`opaque`)."""
    if getattr(loop, "opaque", False):
        return None
    with Traffic() as traffic:
        loop.run(1)
    return float(traffic.bytes)
