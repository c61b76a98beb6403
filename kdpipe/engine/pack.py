"""Trainings side by side in one job: processes forked from one that has imported everything once.

The parent starts no thread and touches no GPU, so that a fork is safe; each child makes its own. It imports
no torch itself: the caller does, once it knows that there is something to train.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kdpipe.core.errors import DeviceError, Interrupted, KdpipeError, UserError

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True)
class Member:
    """One training of a pack.

    Attributes:
        work: trains; it is told its slot, from 0, which no other process has at that time.
        log: file that everything it prints is appended to.
    """

    work: Callable[[int], None]
    log: Path


def side_by_side(members: Mapping[str, Member], at_once: int) -> dict[str, int]:
    """Run each member in a process of its own, `at_once` of them at a time; the others wait.

    One that fails, or is killed, leaves its neighbours alone. A SIGTERM, SIGINT or SIGUSR1 asks every
    running member for a clean stop and starts no more. Members whose parent dies are asked too.

    Returns:
        The exit code of each: -N where signal N killed it; of one that was never started, that of a
        training that was interrupted.

    Raises:
        DeviceError: this system cannot fork safely.
    """
    if sys.platform != "linux":
        raise DeviceError("packs need Linux", where="key 'pack'", fix="set pack: 1")
    codes = dict.fromkeys(members, Interrupted.exit_code)
    waiting, free = deque(members.items()), deque(range(at_once))
    running: dict[int, tuple[str, int]] = {}
    asked = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in STOPS}
    gc.freeze()  # else each process copies what its collector only looks through
    try:
        while running or (waiting and not asked):
            if waiting and free and not asked:
                name, member = waiting.popleft()
                slot = free.popleft()
                with _stops_held():  # until the new process is known, which else would not hear of them
                    running[_fork(member, slot)] = name, slot
            else:
                process, status = os.wait()
                name, slot = running.pop(process)
                codes[name] = os.waitstatus_to_exitcode(status)
                free.append(slot)
    finally:
        gc.unfreeze()
        for number, handler in before.items():
            signal.signal(number, handler)
    return codes


def outcome(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by signal {-code}"
    words = {
        0: "finished",
        Interrupted.exit_code: "interrupted",
        UserError.exit_code: "failed, as it will again",
    }
    return words.get(code, "failed")


def will_not_mend(code: int) -> bool:
    """Whether repeating a training that ended so is in vain: it is done, or the user has to mend things."""
    return code in (0, UserError.exit_code)


@contextmanager
def _stops_held() -> Iterator[None]:
    """Let stops wait until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(member: Member, slot: int) -> int:
    """Start a member; returns its process."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if not process:
        _child(member, slot, parent)
    return process


def _child(member: Member, slot: int, parent: int) -> None:
    """Do a member's work and exit; never returns. Its stops are held until it handles them."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before that took hold
            os._exit(Interrupted.exit_code)
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent passes it on
        member.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(member.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        member.work(slot)
        code = 0
    except KdpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
