"""What an objective remembers of each training sample."""

from __future__ import annotations

import torch
from torch import Tensor


class Memory:
    """Numbers of each training sample, carried from one epoch to the next.

    What is read is what the epoch before wrote (zeros in the first); what is written is read in the next.
    So a step that is repeated after a kill finds what it found the first time. An epoch deals every sample
    once.

    Args:
        past: N x ..., float32: what is read.
        future: the same shape: where is written.
    """

    def __init__(self, past: Tensor, future: Tensor) -> None:
        self.past, self.future = past, future

    def __getitem__(self, index: Tensor) -> Tensor:
        """What the last epoch wrote for the samples at `index` (B), on the device of `index`."""
        return self.past[index.to(self.past.device)].to(index.device)

    def __setitem__(self, index: Tensor, value: Tensor) -> None:
        """Remember `value` (B x ...) of the samples at `index` (B) for the next epoch."""
        with torch.no_grad():
            self.future[index.to(self.future.device)] = value.detach().to(self.future)

    @classmethod
    def zeros(cls, samples: int, shape: tuple[int, ...]) -> Memory:
        """A memory in which nothing is written yet."""
        return cls(torch.zeros(samples, *shape), torch.zeros(samples, *shape))
