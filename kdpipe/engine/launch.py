"""Starting the processes of a run that asks for several GPUs, and joining them; by PyTorch's torchrun."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdpipe.core.errors import DeviceError, Interrupted, KdpipeError
from kdpipe.core.specs import Run
from kdpipe.engine.allocator import keep_freed_memory
from kdpipe.engine.device import pick_device
from kdpipe.engine.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

JOINED = "TORCHELASTIC_RUN_ID"  # set by torchrun in the processes that it starts
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
DONE = "done"  # file beside the first process's error file, once all is done
SECONDS = "120"  # that processes which were asked to stop have for saving their state


def joined() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return JOINED in os.environ


@contextmanager
def join(device: str, threads: int) -> Iterator[Processes]:
    """Be one of the processes that torchrun has started; an error is left where `launch` finds it.

    Args:
        device: auto, cpu or cuda.
        threads: processor threads of them all.
    """
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from kdpipe.engine.several import PATIENCE, Several

    try:
        chosen = pick_device(device)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
        processes = Several(chosen)
        torch.set_num_threads(max(threads // processes.size, 1))
        keep_freed_memory()
        threading.Thread(target=_stop_without, args=(os.getppid(),), daemon=True).start()
        yield processes
        processes.wait()
        if processes.first:
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).with_name(DONE).touch()
        dist.destroy_process_group()
    except Exception as error:
        get_error_handler().record_exception(error)
        raise


def _stop_without(parent: int) -> None:
    """Ask this process to stop once the one that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def launch(run: Run, device: str, log: Path | None) -> None:
    """Run this command line again in as many processes as the run asks for, and wait for them.

    Args:
        run: what is trained.
        device: auto, cpu or cuda.
        log: the run's log, where the first process tells its errors itself.

    Raises:
        DeviceError: there are fewer GPUs.
        Interrupted: they were asked to stop, and have saved the state.
        KdpipeError: one of them failed.
    """
    _check(run, device)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # torchrun's, which tells of each process what is told once below
    os.environ.setdefault(GRACE, SECONDS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # until each takes its share of `--threads`
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # which torchrun knows
    with tempfile.TemporaryDirectory(prefix="kdpipe-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=run.gpus,
            run_id=run.id,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "kdpipe", *sys.argv[1:])
        except SignalException:
            if not any(Path(folder).rglob(DONE)):  # else the signal came too late
                raise Interrupted(f"{run.label}: stopped; run it again to go on") from None
        except ChildFailedError as error:
            raise _told(list(error.failures.values()), run, log) from None


def _told(failures: list[ProcessFailure], run: Run, log: Path | None) -> KdpipeError:
    """What went wrong, once for all processes: an error of its own before one that follows from it."""
    recorded = [(f, f.error_file_data["message"]) for f in sorted(failures, key=lambda f: f.local_rank)]
    recorded.sort(key=lambda r: (not isinstance(r[1], dict), "Lost: " in str(r[1]), r[0].exitcode <= 0))
    first, message = recorded[0]
    text = f"process {first.local_rank} of {run.label} ended with exit code {first.exitcode}"
    if isinstance(message, dict):  # `<class>: <message>`
        text = message["message"].partition(": ")[2]
    if first.local_rank and log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"error: {text}\n")
    error = KdpipeError(text)
    error.exit_code = first.exitcode if first.exitcode > 0 else 1
    return error


def _check(run: Run, device: str) -> None:
    """Raise unless there are as many GPUs as the run asks for; on processors its processes may share."""
    if device == "cpu":
        return
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in ("auto", "cuda"):
        pick_device(device)
        raise DeviceError(
            f"{run.label} asks for {run.gpus} GPUs, and '{device}' is one",
            fix="set device to auto or cuda",
        )
    if there < run.gpus:
        raise DeviceError(
            f"{run.label} asks for {run.gpus} GPUs, and there {'is' if there == 1 else 'are'} {there}",
            where=f"protocol '{run.protocol}', key 'gpus'",
            fix=f"set gpus to {max(there, 1)} there (which changes no number), or run where there are more",
        )
