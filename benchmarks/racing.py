"""Loops that take turns, each in a process of its own, so that none has another's memory or settings."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any, Protocol

from benchmarks.figures import most_resident_mib

LAUNCH = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch)")  # calls of CUDA's runtime and of its driver


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
        launches: how often a step has a GPU begin something; None without one.
        moved: bytes that a step reads and writes; None where that cannot be seen.
    """

    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    launches: float | None = None
    moved: float | None = None


def race(
    entrants: Mapping[str, Callable[[], Loop]],
    slices: int,
    steps: int,
    copies: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Lap]:
    """Time every entrant's slices in turn: whatever else the machine does hits all alike.

    Args:
        entrants: what makes each loop, in its own process; it is pickled.
        slices: how many are counted.
        steps: in a slice.
        copies: how many of an entrant run at once, if more than one; its slice lasts as long as any.

    Raises:
        RuntimeError: an entrant failed.
    """
    context = multiprocessing.get_context("spawn")
    laps = {name: Lap() for name in entrants}
    lines: dict[str, list[Connection]] = {name: [] for name in entrants}
    processes = []
    try:
        for name, make in entrants.items():
            for _ in range(copies.get(name, 1)):
                mine, theirs = context.Pipe()
                lines[name].append(mine)
                process = context.Process(target=_serve, args=(make, theirs))
                process.start()
                theirs.close()
                processes.append(process)
                (laps[name].moved,) = _ask(name, [mine], 0)  # one starts after the other
        for turn in range(slices + 1):
            for name in entrants:
                seconds, peaks, launches = zip(*_ask(name, lines[name], steps), strict=True)
                laps[name].peak_mib, laps[name].launches = sum(peaks), launches[0]
                if turn:
                    laps[name].seconds.append(max(seconds))
    finally:
        for line in chain.from_iterable(lines.values()):
            line.close()
        for process in processes:
            process.join()
    return laps


def _ask(name: str, lines: Sequence[Connection], steps: int) -> list[Any]:
    try:
        for line in lines if steps else ():
            line.send(steps)
        return [line.recv() for line in lines]
    except (EOFError, OSError):
        raise RuntimeError(f"the loop '{name}' failed; what it printed says why") from None


def _serve(make: Callable[[], Loop], line: Connection) -> None:
    """Run slices as they are asked for, until nobody asks any more."""
    from benchmarks.traffic import bytes_of

    loop, launches = make(), None
    line.send(bytes_of(loop))  # of the first step, which is as it is written, whatever is captured later
    while True:
        try:
            steps = line.recv()
        except EOFError:
            return
        seconds = loop.run(steps)
        launches = launches or launches_of(loop)
        line.send((seconds, peak_mib(), launches))


def peak_mib() -> float:
    """The most memory that this process has taken on a GPU, if it uses one, or else at all."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return most_resident_mib()


def launches_of(loop: Loop, steps: int = 4) -> float | None:
    """How often a loop's step has a GPU begin something, a whole graph counting once; None without one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_initialized():
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        loop.run(steps)
    return sum(event.count for event in seen.key_averages() if LAUNCH.match(event.key)) / steps
