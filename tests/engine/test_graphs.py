"""Captured steps give the numbers of others, for every objective; what cannot be captured is told.

A recorder plays the GPU: like a CUDA graph it fixes all that the step read on the host, and the memory.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kdpipe.api import Batch, Progress
from kdpipe.core.errors import ConfigError, Interrupted
from kdpipe.engine import graphs, train
from kdpipe.engine.graphs import Replays, homes_of
from tests.engine.recorder import Notes, Recorder
from tests.engine.test_train import (  # noqa: F401 (a fixture)
    OBJECTIVES,
    StopAfter,
    bits,
    rows,
    teacher,
    trainer,
)

# Autograd adds gradients up in place where nobody else holds them, as the notes do: here, in another layout.
IN_PLACE = {("method", "reviewkd")}


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(train, "capture_on", lambda device: recorder)
    return recorder


def noted(step):
    """A step whose operations are noted, for nothing."""

    def with_notes(batch, at):
        with Notes():
            return step(batch, at)

    return with_notes


@pytest.mark.parametrize(("kind", "name"), OBJECTIVES)
def test_captured_steps_are_exact(kind, name, prepared, teacher, tmp_path, recorder):  # noqa: F811
    """The bits of steps that are not captured, also when stopped and resumed."""

    def begun(folder, how="graphs"):
        return trainer(kind, name, tmp_path / folder, prepared, teacher, batch_size=8, epochs=3, compile=how)

    plain = begun("plain", False)
    if (kind, name) in IN_PLACE:
        plain._step = noted(plain._step)
    plain.train()
    assert recorder.captured == 0
    stopped = begun("captured")
    StopAfter(stopped, 12)  # in the second epoch
    with pytest.raises(Interrupted):
        stopped.train()
    begun("captured").train()
    assert recorder.replayed > 2 * recorder.captured > 0
    assert bits(tmp_path / "plain") == bits(tmp_path / "captured")
    assert rows(tmp_path / "plain") == rows(tmp_path / "captured")


def batch(value, size=2):
    index = torch.arange(size)
    return Batch(torch.full((size, 1), float(value)), 0 * index, index)


class Summing(torch.nn.Module):
    """Puts a new tensor in a buffer's place at each step, and knows a number of the host."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.factor = 1.0
        self.calls = 0

    def step(self, batch, at):
        self.calls += 1
        self.total = self.total + self.factor * batch.images.sum()
        return {"loss": self.total * 1}


def test_what_a_step_replaces_is_carried_on_and_the_host_s_numbers_hold_for_an_epoch():
    """1 + 2 + 3 + 4 images' sums of two; then the factor 10 in the next epoch."""
    module = Summing()
    replays = Replays(module.step, lambda: homes_of([module]), Recorder())
    at = Progress(0, 2)
    seen = [float(replays(batch(value), at)["loss"]) for value in (1, 2, 3, 4)]
    assert seen == [2.0, 6.0, 12.0, 20.0]
    assert module.calls == 2
    assert float(module.total) == 20.0
    replays(batch(5, size=1), at)  # another shape is another graph
    assert (module.calls, float(module.total)) == (3, 25.0)
    module.factor = 10.0
    replays.begin()
    for value in (1, 2, 3):
        replays(batch(value), Progress(1, 2))
    assert (module.calls, float(module.total)) == (5, 145.0)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (lambda batch, at: {"loss": batch.images.sum() * at.step}, "reads how many steps came before"),
        (lambda batch, at: {"loss": batch.images.sum() * at.epoch}, None),
    ],
)
def test_a_step_that_reads_its_number_is_not_captured(step, what):
    replays = Replays(step, list, Recorder())
    replays(batch(1), Progress(1, 2, 0, 9))
    if what is None:
        assert float(replays(batch(2), Progress(1, 2, 1, 9))["loss"]) == 4.0
        return
    with pytest.raises(ConfigError, match=what) as told:
        replays(batch(2), Progress(1, 2, 1, 9))
    assert "compile" in str(told.value)


def test_a_tensor_that_comes_later_is_told():
    home = {}

    def step(batch, at):
        home[f"term {len(home)}"] = batch.images.sum()
        return {}

    replays = Replays(step, lambda: [home], Recorder())
    replays(batch(1), Progress(0, 1))
    with pytest.raises(ConfigError, match="'term 1' is there in some steps"):
        replays(batch(1), Progress(0, 1))


def test_a_processor_captures_nothing(prepared, teacher, tmp_path):  # noqa: F811
    assert graphs.capture_on(torch.device("cpu")) is None
    assert trainer("method", "kd", tmp_path, prepared, teacher, compile="graphs").replays is None


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Broken(nullcontext):
    """A capture that cannot be ended, since something in it was refused."""

    def __init__(self, *given, **named):
        super().__init__()

    def __exit__(self, *error):
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Graph:
    def replay(self):
        pass


@pytest.fixture
def capture(monkeypatch):
    """`CudaGraphs`; the parts of PyTorch that need a GPU are played: how they are put together is tested."""
    for name, plays in (("Stream", Stream), ("CUDAGraph", Graph), ("graph_pool_handle", lambda: (0, 1))):
        monkeypatch.setattr(torch.cuda, name, plays)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, **named: nullcontext())
    return graphs.capture_on(torch.device("cuda"))


@pytest.mark.parametrize(
    ("work", "what"),
    [
        (lambda: torch.zeros(1), None),
        (lambda: torch.rand(1), "draws random numbers on the processor"),
        (lambda: {}["no such thing"], KeyError),
    ],
)
def test_what_a_gpu_would_refuse_is_one_error(work, what, capture):
    assert capture.before(lambda: 5) == 5
    if what is None:
        replay, result = capture(work)
        replay()
        assert torch.equal(result, torch.zeros(1))
    elif isinstance(what, str):
        with pytest.raises(ConfigError, match=what):
            capture(work)
    else:
        with pytest.raises(what):
            capture(work)


def test_what_cuda_does_not_permit_names_the_setting(capture, monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph", Broken)

    def waits():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")

    with pytest.raises(ConfigError, match="not permitted when stream is capturing") as told:
        capture(waits)
    assert "set compile to false" in str(told.value)
    assert "more of it" not in str(told.value)
