"""Where a result comes from: code, versions, machine, inputs."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe import __version__
from kdpipe.core.fingerprint import ROOT, code_of, fingerprint
from kdpipe.core.specs import BenchRun, Run


def provenance(run: Run | BenchRun, device: torch.device) -> dict[str, Any]:
    """What is known before training: versions, code, hardware, job."""
    return {
        "run": run.id,
        "kdpipe": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "code": fingerprint(code_of(run)),
        "git": _git(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
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


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
