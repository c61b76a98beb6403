"""Where a result comes from: code, versions, machine, inputs."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe import __version__
from kdpipe.core.fingerprint import ROOT, code_of, fingerprint
from kdpipe.core.specs import Bank, BenchRun, Run

if TYPE_CHECKING:
    import torch


def provenance(
    run: Run | BenchRun | Bank, device: torch.device | None = None, threads: int = 0
) -> dict[str, Any]:
    """What is known before a run: versions, code, hardware, job.

    Args:
        run: the run, or the bank.
        device: where it trains; None for a bench, which does without torch.
        threads: processor threads of a bench; those of torch are asked of torch.
    """
    return {
        "run": run.id,
        "kdpipe": __version__,
        "python": platform.python_version(),
        **_torch(device, threads),
        "numpy": np.__version__,
        "code": fingerprint(code_of(run)),
        "git": _git(),
        "device": _device_name(device),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that kdpipe runs from, and whether it was changed since."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--", str(ROOT))),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _torch(device: torch.device | None, threads: int) -> dict[str, Any]:
    if device is None:
        return {"threads": threads}
    import torch

    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _device_name(device: torch.device | None) -> str:
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
