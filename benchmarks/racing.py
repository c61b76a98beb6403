"""Loops that take turns, each in a process of its own, so that none has another's memory or settings."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from benchmarks.figures import most_resident_mib


class Loop(Protocol):
    """Something that can be timed in slices."""

    def run(self, steps: int) -> float:
        """Take `steps` steps and return the seconds they took."""


@dataclass
class Lap:
    """What was measured of one loop.

    Attributes:
        seconds: of each slice, after a warm-up slice.
        peak_mib: the most memory that its process took, or that it took on a GPU.
    """

    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0


def race(entrants: Mapping[str, Callable[[], Loop]], slices: int, steps: int) -> dict[str, Lap]:
    """Time every entrant's slices in turn: whatever else the machine does hits all alike.

    Args:
        entrants: what makes each loop, in its own process; it is pickled.
        slices: how many are counted.
        steps: in a slice.

    Raises:
        RuntimeError: an entrant failed.
    """
    context = multiprocessing.get_context("spawn")
    laps = {name: Lap() for name in entrants}
    lines: dict[str, Connection] = {}
    processes = []
    try:
        for name, make in entrants.items():
            lines[name], theirs = context.Pipe()
            process = context.Process(target=_serve, args=(make, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            _ask(name, lines[name], 0)  # one starts after the other
        for turn in range(slices + 1):
            for name, line in lines.items():
                seconds, laps[name].peak_mib = _ask(name, line, steps)
                if turn:
                    laps[name].seconds.append(seconds)
    finally:
        for line in lines.values():
            line.close()
        for process in processes:
            process.join()
    return laps


def _ask(name: str, line: Connection, steps: int) -> Any:
    try:
        if steps:
            line.send(steps)
        return line.recv()
    except (EOFError, OSError):
        raise RuntimeError(f"the loop '{name}' failed; what it printed says why") from None


def _serve(make: Callable[[], Loop], line: Connection) -> None:
    """Run slices as they are asked for, until nobody asks any more."""
    loop = make()
    line.send(None)
    while True:
        try:
            steps = line.recv()
        except EOFError:
            return
        line.send((loop.run(steps), peak_mib()))


def peak_mib() -> float:
    """The most memory that this process has taken on a GPU, if it uses one, or else at all."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return most_resident_mib()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
