"""Trainings that wait after an epoch, so that a test can disturb them however fast or slow they are."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Pauses:
    """Trainings that stop themselves (SIGSTOP) when they have first saved their state.

    Args:
        folder: a folder of this alone.
        parts: part of the name of a run's folder -> megabytes that the training seems to use while it waits;
            0 is what it does use.
        more: code that each Python runs at its start, too.

    Attributes:
        path: `PYTHONPATH` of the trainings.
    """

    def __init__(self, folder: Path, parts: Mapping[str, int], more: str = "") -> None:
        self.folder, self.path = folder, os.pathsep.join((str(folder), str(ROOT)))
        folder.mkdir(parents=True)
        for part, megabytes in parts.items():
            (folder / f"{part}.asked").write_text(str(megabytes))
        pause = f"from tests.pausing import pause_in\n\npause_in({str(folder)!r})\n"
        (folder / "sitecustomize.py").write_text(more + pause)

    def waiting(self, part: str) -> tuple[int, str] | None:
        """The process that waits (or was killed for its memory) and its SLURM job; None before that."""
        file = self.folder / f"{part}.waits"
        if not file.exists():
            return None
        process, _, job = file.read_text().partition(" ")
        return (int(process), job) if state_of(int(process)) in ("T", "") else None


def pause_in(folder: str) -> None:
    """Have this process and its forks wait once they have saved the state of a run that is asked for."""
    replace = os.replace

    def call(source, target, **options):
        replace(source, target, **options)
        if str(target).endswith(".state"):
            run = Path(target).parents[1].name
            for asked in Path(folder).glob("*.asked"):
                if asked.stem in run:
                    _wait(asked)

    def _wait(asked):
        mine = asked.with_suffix(f".{os.getpid()}")
        try:
            replace(asked, mine)
        except FileNotFoundError:  # another process took it
            return
        megabytes = int(mine.read_text())
        mine.write_text(f"{os.getpid()} {os.environ.get('SLURM_JOB_ID', '')}")
        replace(mine, asked.with_suffix(".waits"))
        seeming = seem_to_use(megabytes)
        os.kill(os.getpid(), signal.SIGSTOP)
        del seeming

    os.replace = call


def seem_to_use(megabytes: int) -> list[mmap.mmap]:
    """The same 64 megabytes again and again: the kernel counts them each time as memory of this process."""
    file = os.memfd_create("seeming")
    os.truncate(file, 64 << 20)
    return [
        mmap.mmap(file, 64 << 20, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) for _ in range(megabytes // 64)
    ]


def asked_to_stop(process: int) -> bool:
    """Whether a SIGTERM waits for a process that is stopped."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(signals >> (signal.SIGTERM - 1) & 1 for signals in pending)


def state_of(process: int) -> str:
    """What the kernel says that a process does, in a letter; empty where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
