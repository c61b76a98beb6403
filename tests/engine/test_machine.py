"""What a training uses of its machine, and that watching it harms nothing."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from kdpipe.engine import machine as machine_module
from kdpipe.engine.machine import Machine

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_the_processor_and_the_memory_of_this_process():
    watched = Machine(CPU)
    held = torch.ones(2**25)  # 128 MiB
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    used = watched.used()
    assert used.keys() == {"system/cpu_utilization_percentage", "system/memory_megabytes"}
    assert used["system/cpu_utilization_percentage"] > 1
    assert used["system/memory_megabytes"] > held.nbytes / 2**20
    time.sleep(0.5)
    assert watched.used()["system/cpu_utilization_percentage"] < used["system/cpu_utilization_percentage"]


class Nvml:
    """As `pynvml`, of a driver that keeps some samples."""

    NVML_GPU_UTILIZATION_SAMPLES = 1

    class NVMLError(Exception):
        pass

    def __init__(self, busy):
        self.samples = [
            SimpleNamespace(timeStamp=at, sampleValue=SimpleNamespace(uiVal=value))
            for at, value in enumerate(busy, 1)
        ]

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == b"GPU-an-id"
        return "handle"

    def nvmlDeviceGetSamples(self, handle, kind, since):
        assert (handle, kind) == ("handle", 1)
        found = [sample for sample in self.samples if sample.timeStamp > since]
        if not found:
            raise self.NVMLError
        return 0, found

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=7)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * 2**20, 100 * 2**20))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="an-id"))


def test_a_gpu_is_as_busy_as_the_samples_since_the_last_epoch(gpu, monkeypatch):
    nvml = Nvml([10, 30])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    watched = Machine(GPU)
    assert watched.used()["system/gpu_utilization_percentage"] == 20
    assert watched.used()["system/gpu_utilization_percentage"] == 7  # no new sample: what it does now
    nvml.samples.append(SimpleNamespace(timeStamp=9, sampleValue=SimpleNamespace(uiVal=90)))
    used = watched.used()
    assert used["system/gpu_utilization_percentage"] == 90
    assert used["system/gpu_memory_megabytes"] == 40


def test_without_the_library_only_the_memory_is_known(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    used = Machine(GPU).used()
    assert used["system/gpu_memory_megabytes"] == 40
    assert "system/gpu_utilization_percentage" not in used


def test_a_driver_that_breaks_does_no_harm(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([1]))
    watched = Machine(GPU)

    def broken(_):
        raise RuntimeError("lost")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert "system/memory_megabytes" in watched.used()


def test_memory_where_the_system_has_no_proc(monkeypatch):
    def absent(*_):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert machine_module._resident() > 2**20
