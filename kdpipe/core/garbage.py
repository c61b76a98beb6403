"""Python's search for cycles of dead objects, out of the way while many are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_search() -> Iterator[None]:
    """Make objects that stay, without a look through all of them again and again.

    The search is half of the time to read a large plan, and an eighth of that to import torch.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
