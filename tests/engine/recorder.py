"""What a CUDA graph does, on a processor: operations are noted once and done again on the same memory."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Notes(TorchDispatchMode):
    """Every operation with what it was given and where its results went."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.operations.append((func, args, kwargs, out))
        return out


class Recorder:
    """Stands for `CudaGraphs`. Its first replay does nothing: it cannot note work without doing it."""

    def __init__(self):
        self.captured = self.replayed = 0

    def before(self, work):
        with Notes():
            return work()

    def __call__(self, work):
        self.captured += 1
        with Notes() as notes:
            result = work()
        done = True

        def replay():
            nonlocal done
            self.replayed += 1
            if not done:
                for operation in notes.operations:
                    again(*operation)
            done = False

        return replay, result


@torch.no_grad()
def again(func, args, kwargs, out):
    """Do an operation and put its results where they were the first time."""
    if any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
        return  # a view, which is there
    for place, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(place, torch.Tensor) and place is not new and place.data_ptr() != new.data_ptr():
            place.detach().copy_(new)
