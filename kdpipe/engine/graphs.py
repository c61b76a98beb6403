"""Training steps that a GPU replays: all kernels of one are a CUDA graph, which is launched at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kdpipe.api import Batch, Progress
from kdpipe.core.errors import ConfigError, KdpipeError

T = TypeVar("T")
Home = dict[str, Any]
"""Tensors by name, as a module holds its buffers; a step may put another tensor in one's place."""


class Capture(Protocol):
    """How work is captured: by a GPU, or by a test that plays one."""

    def before(self, work: Callable[[], T]) -> T:
        """Do the work as usual, in such a way that it can be captured afterwards."""

    def __call__(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """What does the work again, in place, and the work's result; the work itself is not done."""


class CudaGraphs:
    """CUDA graphs of one training, in memory that they share.

    Everything runs on a stream of its own: what autograd remembers of a stream must not be another one's.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def before(self, work: Callable[[], T]) -> T:
        """Do the work on the stream of the graphs, which settles what kernels and buffers it takes."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def __call__(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture the work.

        Raises:
            ConfigError: it waits for the GPU, or draws random numbers on the processor.
        """
        graph, drawn = torch.cuda.CUDAGraph(), torch.get_rng_state()
        try:
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            first = _first(error)
            if isinstance(first, KdpipeError | torch.OutOfMemoryError):
                raise first from None
            raise _refused(str(first).partition("\n")[0]) from error
        if not torch.equal(drawn, torch.get_rng_state()):
            raise _refused("it draws random numbers on the processor")
        return graph.replay, result


def _first(error: BaseException) -> BaseException:
    """What happened before an error that only follows from it, as the end of a broken capture does."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _refused(why: str) -> ConfigError:
    return ConfigError(
        f"a step cannot be captured as a CUDA graph: {why}",
        fix="set compile to false or true in the protocol",
    )


def capture_on(device: torch.device) -> Capture | None:
    """How a device captures work; None if it cannot."""
    return CudaGraphs(device) if device.type == "cuda" else None


class Replays:
    """A training's steps: as usual, captured, or replayed.

    In each epoch the first batch of a shape is stepped as usual, and the second one's step is captured.
    Others are copied to where that batch was, and the step is replayed. What a step reads on the host is
    fixed by the capture: the learning rate, weights that depend on the epoch. So nothing that is captured
    outlives its epoch.

    Tensors that a step replaces by others (a memory of features, a sum) are copied back to where they were.

    Args:
        step: works on a batch; gives the loss terms.
        homes: gives the dictionaries of tensors that a step may replace.
        capture: how it is captured.
    """

    def __init__(
        self,
        step: Callable[[Batch, Progress], dict[str, Tensor]],
        homes: Callable[[], Iterable[Home]],
        capture: Capture,
    ) -> None:
        self.step, self.homes, self.capture = step, homes, capture
        self.begin()

    def begin(self) -> None:
        """An epoch begins: forget what was captured."""
        self._captured: dict[object, Callable[[Batch], dict[str, Tensor]] | None] = {}

    def __call__(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Step on a batch; the loss terms are overwritten by the next replay."""
        shape = tuple(t.shape for t in _tensors(batch))
        if shape not in self._captured:
            self._captured[shape] = None
            return self.capture.before(lambda: self.step(batch, at))
        replayed = self._captured[shape]
        if replayed is None:
            replayed = self._captured[shape] = self._capture(batch, at)
        return replayed(batch)

    def _capture(self, batch: Batch, at: Progress) -> Callable[[Batch], dict[str, Tensor]]:
        held, epoch = copy.deepcopy(batch), Epoch(at.epoch, at.epochs, at.step, at.steps)

        def work() -> dict[str, Tensor]:
            found = [(home, dict(home)) for home in self.homes()]
            terms = self.step(held, epoch)
            for home, before in found:
                _put_back(home, before)
            return {name: term.detach() for name, term in terms.items()}

        replay, terms = self.capture(work)

        def replayed(batch: Batch) -> dict[str, Tensor]:
            for place, tensor in zip(_tensors(held), _tensors(batch), strict=True):
                place.copy_(tensor)
            replay()
            return terms

        return replayed


class Epoch(Progress):
    """Where the training stands, for a step that stands for many of an epoch."""

    def __getattribute__(self, name: str) -> Any:
        if name == "step":
            raise _refused("it reads how many steps came before it")
        return super().__getattribute__(name)


def homes_of(modules: Iterable[nn.Module]) -> list[Home]:
    """The buffers of modules and of all that are part of them."""
    return [part._buffers for module in modules for part in module.modules()]


@torch.no_grad()
def _put_back(home: Home, before: Home) -> None:
    """Copy tensors that have replaced others to where those were, and the others to their names."""
    if home.keys() != before.keys():
        new = sorted(home.keys() ^ before.keys())[0]
        raise _refused(f"'{new}' is there in some steps of an epoch only")
    for name, tensor in before.items():
        if home[name] is not tensor:
            tensor.copy_(home[name])
            home[name] = tensor


def _tensors(batch: Batch) -> list[Tensor]:
    targets = () if batch.targets is None else (batch.targets,)
    return [batch.images, batch.labels, batch.index, *batch.views, *targets]
