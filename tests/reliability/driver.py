"""Runs kdpipe's commands in forked processes that are killed, starved or misled as a drill asks.

PyTorch is imported once; a fork of this process starts at once where a new interpreter takes seconds. This
process itself computes nothing, so that no thread but its own is lost in a fork.

It reads one JSON object per line and answers each with one:
    {"start": argv, "cwd": folder, "log": file} -> {"pid": n}
        and, if wanted, "trap": {...}, "limit": bytes of a file, "memory": bytes, "clock": seconds to shift by
        and "pause": states after which it stops itself
    {"wait": pid, "kill_after": seconds} -> {"code": n, "seconds": s, "killed": bool}; minus n is a signal
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time

CALLS = {"fsync": os, "replace": os, "write": os, "unlink": os, "rmdir": os, "mkstemp": tempfile}


def trap(nth: int, when: str, calls: str | None = None) -> None:
    """Kill this process at the nth of the calls that change files: before it, after it or half-way.

    Args:
        nth: which call, from 1; 0 kills nobody.
        when: before, after or half.
        calls: file to list the calls in, by name.
    """
    seen = 0

    def wrapped(name, original):
        def call(*args, **kwargs):
            nonlocal seen
            seen += 1
            if calls:
                with open(calls, "a") as file:
                    print(name, file=file)
            mine = seen == nth
            if mine and when == "half" and name == "write":
                original(args[0], args[1][: len(args[1]) // 2])
            if mine and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(*args, **kwargs)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name, module in CALLS.items():
        setattr(module, name, wrapped(name, getattr(module, name)))


def pause(after: int) -> None:
    """Stop this process (SIGSTOP) once it has saved so many states, however fast it is."""
    left, replace = after, os.replace

    def call(source, target):
        nonlocal left
        replace(source, target)
        left -= str(target).endswith(".state")
        if not left:
            os.replace = replace
            os.kill(os.getpid(), signal.SIGSTOP)

    os.replace = call


def child(job) -> None:
    """Be the command: never returns."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.chdir(job["cwd"])
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if job.get("memory"):
        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    if job.get("clock"):
        real, real_ns, shift = time.time, time.time_ns, job["clock"]
        time.time = lambda: real() + shift
        time.time_ns = lambda: real_ns() + int(shift * 1e9)
    if job.get("trap"):
        trap(**job["trap"])
    if job.get("pause"):
        pause(job["pause"])
    sys.argv = ["kdpipe", *job["start"]]
    code = 1
    try:
        from kdpipe.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, started: float, kill_after: float | None) -> dict:
    """Wait for a process, killing it when its time is over."""
    killed = False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - started
        if found:
            return {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "killed": killed}
        if kill_after is not None and seconds >= kill_after and not killed:
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.0005)


def serve() -> None:
    """Answer requests until there are no more."""
    import matplotlib.pyplot
    import pandas
    import scipy.optimize
    import sklearn.datasets
    import torch

    import kdpipe.cli
    import kdpipe.engine.features
    import kdpipe.engine.sample
    import kdpipe.evaluation.evaluate
    import kdpipe.tracking.observer
    from kdpipe.core import registry
    from kdpipe.core.fingerprint import ROOT, fingerprint

    torch.set_num_threads(1)
    for plugins in (*registry.REGISTRIES.values(), registry.models, registry.datasets):
        for name in plugins.names():
            plugins.get(name)
    fingerprint([ROOT / "engine/train.py", *registry.plugin_files()])  # remembered by the forks
    assert all((matplotlib.pyplot, pandas, scipy.optimize, sklearn.datasets, kdpipe.cli))  # for the forks
    started: dict[int, float] = {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = wait(job["wait"], started.pop(job["wait"]), job.get("kill_after"))
        else:
            begun = time.monotonic()
            pid = os.fork()
            if not pid:
                child(job)
            started[pid] = begun
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
