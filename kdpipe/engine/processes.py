"""The processes that train a run: this one alone, or several that share the work on every batch.

Every process does the same things with the same numbers: it deals the same batches, takes the same losses
of the whole batch, and steps the same weights. Shared are only the networks' passes, each process having
its part of the rows, and the decoding of images that lie on disk. The first process alone writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdpipe.api import Gradients

T = TypeVar("T")


class Processes:
    """A run in one process: every part is the whole. `Several` has the same methods.

    Args:
        device: where this process trains.

    Attributes:
        size: how many processes there are.
        first: whether this is the one that writes.
    """

    size = 1
    first = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def shared(self, network: nn.Module) -> nn.Module:
        """The network, for passes that see a part of the batch each and shall act as one pass of it all."""
        return network

    def rows(self, samples: int) -> slice:
        """Which of `samples` samples are this process's."""
        return slice(0, samples)

    def mine(self, whole: Tensor, samples: int) -> Tensor:
        """This process's rows.

        Args:
            whole: rows of `samples` samples, or of several times as many, each time in their order.
            samples: how many there are.
        """
        return whole

    def whole(self, mine: Tensor, samples: int) -> Tensor:
        """The rows of all processes, in order; what is `mine` of it is given, and gets its gradient."""
        return mine

    def mean(self, gradients: Gradients) -> Gradients:
        """Means over the processes; where a loss was taken of `whole` outputs, its true gradients."""
        return gradients

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""

    def any(self, asked: bool) -> bool:
        """Whether any process was asked."""
        return asked

    def wait(self) -> None:
        """Wait until all processes are here."""

    def in_turn(self, do: Callable[[], T]) -> T:
        """Do something, the first process before the others."""
        return do()


ALONE = Processes(torch.device("cpu"))
