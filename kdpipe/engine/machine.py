"""What a training uses of its machine, told once an epoch and without a thread: memory, processor, GPU."""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import torch

MIB = 2**20


class Machine:
    """The processor's share and memory of this process, and the GPU's, whoever else uses it.

    The names are in MLflow's form for system metrics, which its pages show apart from the curves.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seen = time.monotonic(), time.process_time()
        self._gpu = _Gpu(device) if device.type == "cuda" else None

    def used(self) -> dict[str, float]:
        """What was used since the last call; what cannot be measured is left out."""
        wall, busy = time.monotonic(), time.process_time()
        (wall_before, busy_before), self._seen = self._seen, (wall, busy)
        values = {
            "system/cpu_utilization_percentage": 100 * (busy - busy_before) / max(wall - wall_before, 1e-6),
            "system/memory_megabytes": _resident() / MIB,
        }
        return values | (self._gpu.used() if self._gpu else {})


class _Gpu:
    """A GPU as its driver sees it.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seen = 0  # microseconds, in the driver's time
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # indices differ from torch's
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(name.encode())
            self._nvml = pynvml
        except Exception:  # no such library or driver, or a part of a GPU: then it is not told how busy it is
            return

    def used(self) -> dict[str, float]:
        """Memory in use on the device, and how busy it was."""
        values = {}
        try:
            free, total = torch.cuda.mem_get_info(self.device)
            values["system/gpu_memory_megabytes"] = (total - free) / MIB
            if self._nvml is not None:
                values["system/gpu_utilization_percentage"] = self._busy()
        except Exception:  # watching never harms a training
            self._nvml = None
        return values

    def _busy(self) -> float:
        """Mean of the samples that the driver keeps (of the last seconds), else its latest."""
        nvml = self._nvml
        try:
            _, samples = nvml.nvmlDeviceGetSamples(
                self._handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, self._seen
            )
        except nvml.NVMLError:
            samples = []
        if not samples:
            return float(nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        self._seen = max(sample.timeStamp for sample in samples)
        return float(sum(sample.sampleValue.uiVal for sample in samples) / len(samples))


def _resident() -> int:
    """Bytes of memory that this process holds; at most so far, where the system does not tell more."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
