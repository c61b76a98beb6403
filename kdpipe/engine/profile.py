"""What a training step costs, by phase, and how much memory; measured on the run's own first steps."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WARM = 3  # steps before measuring
MEASURED = 10  # steps measured


class Profile:
    """Milliseconds of each phase of a step: median over some early steps of this process.

    Measuring waits for the device at the ends of phases, so only a few steps are measured. No number of
    the training depends on it.

    Args:
        device: where the training is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        self.times: dict[str, list[float]] = {}

    @property
    def on(self) -> bool:
        """Whether the step at hand is measured."""
        return WARM <= self.steps < WARM + MEASURED

    def next(self) -> None:
        """A step has ended."""
        self.steps += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside, if this step is measured."""
        if not self.on:
            yield
            return
        self._wait()
        begun = time.perf_counter()
        yield
        self._wait()
        self.times.setdefault(name, []).append(1000 * (time.perf_counter() - begun))

    def summary(self) -> dict[str, float]:
        """Median milliseconds per phase, under `ms_<phase>`, and the peak of memory in MiB."""
        found = {f"ms_{name}": sorted(times)[len(times) // 2] for name, times in self.times.items()}
        return {**found, "memory_mib": self._memory()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory(self) -> float:
        """Of the device where it has its own memory, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
