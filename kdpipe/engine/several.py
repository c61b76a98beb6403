"""Several processes for one run, a GPU each: what they exchange.

Losses are taken of the whole batch by every process, so each method is right as it stands, and so are
memories and adapters. A process's gradients are wrong on their own (only its own rows carry them), and
right as means over the processes: rows that were brought together (`Several.whole`) get as many times their
gradient as there are processes, and what every process computes alike is its own mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.api import Gradients
from kdpipe.core.errors import KdpipeError
from kdpipe.engine.processes import Processes

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # for a process that others wait for, such as the first while it writes


class Lost(KdpipeError):
    """Another process of the run has ended, which is the one to tell why."""


class Several(Processes):
    """The processes that torchrun has started, of which this is one.

    Args:
        device: where this process trains.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.first = self.rank == 0
        self.samples = 0  # of the batch at hand
        # signs are exchanged between processors, so that no step waits for a GPU
        self.signs: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    def shared(self, network: nn.Module) -> nn.Module:
        """The network with batch norms and dropouts that act on the whole batch."""
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.SyncBatchNorm):
                if self.device.type == "cpu":
                    module.__class__ = _BatchNorm
                if module.running_mean is None:  # those of a teacher that reads the batch's statistics
                    module.training = True
            elif isinstance(module, nn.Dropout):
                network.set_submodule(name, _Dropout(module.p, self))
        return network

    def rows(self, samples: int) -> slice:
        """See `Processes.rows`; parts differ by one sample at most."""
        return slice(self.rank * samples // self.size, (self.rank + 1) * samples // self.size)

    def mine(self, whole: Tensor, samples: int) -> Tensor:
        """See `Processes.mine`."""
        self.samples = samples
        times = len(whole) // samples
        parts = whole.reshape(times, samples, *whole.shape[1:])
        return parts[:, self.rows(samples)].flatten(0, 1)

    def whole(self, mine: Tensor, samples: int) -> Tensor:
        """See `Processes.whole`."""
        result: Tensor = _Whole.apply(mine, samples, self)
        return result

    def mean(self, gradients: Gradients) -> Gradients:
        """See `Processes.mean`."""
        means = [None if g is None else g.clone() for g in gradients]
        self.average([g for g in means if g is not None])
        return means

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """See `Processes.average`; tensors of one kind, brought in one piece."""
        if not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self.add(flat)
        flat /= self.size
        parts = torch.split(flat, [t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def any(self, asked: bool) -> bool:
        """See `Processes.any`."""
        sign = torch.tensor(int(asked))
        with _told():
            dist.all_reduce(sign, dist.ReduceOp.MAX, group=self.signs)
        return bool(sign)

    def wait(self) -> None:
        """See `Processes.wait`."""
        self.any(False)

    def in_turn(self, do: Callable[[], T]) -> T:
        """See `Processes.in_turn`."""
        if not self.first:
            self.wait()
            return do()
        done = do()
        self.wait()
        return done

    def add(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes, and return it."""
        with _told():
            dist.all_reduce(tensor)
        return tensor


class _Whole(torch.autograd.Function):
    """Rows of all processes, as a sum of what is zero but for one's own."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, samples: int, processes: Several) -> Tensor:
        rows = processes.rows(samples)
        times = len(mine) // (rows.stop - rows.start)
        ctx.rows, ctx.times, ctx.samples, ctx.size = rows, times, samples, processes.size
        # in channels-first memory whatever the network's, because all processes must agree
        whole = mine.new_zeros(times, samples, *mine.shape[1:])
        whole[:, rows] = mine.reshape(times, -1, *mine.shape[1:])
        return processes.add(whole).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        mine = grad.reshape(ctx.times, ctx.samples, *grad.shape[1:])[:, ctx.rows].flatten(0, 1)
        return ctx.size * mine, None, None


class _Sum(torch.autograd.Function):
    """A sum over the processes, each of which goes on with it."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _sum(mine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _sum(grads[0])


def _sum(mine: Tensor) -> Tensor:
    total = mine.clone()
    with _told():
        dist.all_reduce(total)
    return total


class _BatchNorm(nn.SyncBatchNorm):
    """PyTorch's batch norm over several processes, which knows GPUs only, on the processor."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of the rows of all processes."""
        if not self.training:
            normalised: Tensor = super().forward(input)
            return normalised
        channels = (1, -1, *[1] * (input.ndim - 2))
        over = [d for d in range(input.ndim) if d != 1]
        count = _sum(torch.tensor(input.numel() / input.shape[1], dtype=torch.float64)).to(input.dtype)
        mean = _Sum.apply(input.sum(over)) / count
        centred = input - mean.view(channels)
        var = _Sum.apply(centred.square().sum(over)) / count
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * count / (count - 1))
        result: Tensor = centred * (var + self.eps).rsqrt().view(channels)
        if self.affine:
            result = result * self.weight.view(channels) + self.bias.view(channels)
        return result.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class _Dropout(nn.Module):
    """Dropout with one draw for the whole batch, of which each process takes its rows.

    Args:
        p: share that is dropped.
        processes: which rows.
    """

    def __init__(self, p: float, processes: Several) -> None:
        super().__init__()
        self.p, self.processes = p, processes

    def forward(self, input: Tensor) -> Tensor:
        """Drop."""
        if not self.training:
            return input
        samples = self.processes.samples
        rows = self.processes.rows(samples)
        times = len(input) // (rows.stop - rows.start)
        kept = F.dropout(input.new_ones(times * samples, *input.shape[1:]), self.p)
        return input * self.processes.mine(kept, samples)


@contextmanager
def _told() -> Iterator[None]:
    """Say in one line that the processes cannot go on together."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(f"another process of this run has ended ({str(error).splitlines()[0]})") from error
