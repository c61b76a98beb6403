"""Randomness: one seed per run, split into named streams.

Every draw is a function of (seed, stream, epoch) alone. So a resumed run continues as if it had never
stopped, and students of one seed see the same batches in the same order: comparisons are paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, stream: str, epoch: int = 0) -> int:
    """A 63-bit seed from (seed, stream, epoch): the head of a BLAKE2b hash."""
    text = f"{seed}/{stream}/{epoch}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator at the start of a stream; draws are the same on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, epoch))


@contextmanager
def seeded(seed: int, stream: str, epoch: int = 0) -> Iterator[None]:
    """Run a block (building a network, say) under a stream's global seed; the state before is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(seed, stream, epoch))
        yield
