"""What every benchmark gives: figures, each with what it is to be compared with."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        part: which benchmark it belongs to.
        name: what was measured.
        value: the number.
        unit: of the number.
        ratio: the number over that of the part's yardstick, measured in the same call; machines change
            it little, so `--check` compares it. None: nothing to compare.
        better: which way the ratio should go.
    """

    part: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    better: Literal["more", "less"] = "less"


@dataclass(frozen=True)
class Took:
    """What a command took.

    Attributes:
        seconds: by the clock.
        processor: seconds of the processor, its children's included.
        output: what it printed, on both streams.
    """

    seconds: float
    processor: float
    output: str


def call(command: Sequence[str | Path], cwd: Path = ROOT, *, check: bool = True, **environment: str) -> Took:
    """Run a command to its end, with this package importable and Python's byte code kept.

    Raises:
        RuntimeError: it failed, and that is checked; the message ends with what it printed.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(ROOT), **environment}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    output = done.stdout + done.stderr
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{output[-2000:]}")
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Took(seconds, used, output)


def most_resident_mib() -> float:
    """The most memory that this process has taken itself, not its parent before `exec`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def python(*arguments: str | Path) -> list[str | Path]:
    """A command of this Python."""
    return [sys.executable, *arguments]
