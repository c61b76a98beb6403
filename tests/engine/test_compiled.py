"""Compiled networks: close to eager ones, the same after a resume, and each with its own taps."""

from __future__ import annotations

import pytest
import torch

from kdpipe.core import registry
from kdpipe.core.errors import Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.engine.compiled import compile_networks
from kdpipe.engine.train import Trainer
from kdpipe.nn.taps import catch
from tests.engine.test_train import CPU, StopAfter, bits, trainer
from tests.engine.tiny import history, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(prepared, tmp_path_factory):
    paths = RunPaths(tmp_path_factory.mktemp("teacher"))
    Trainer(make_run("recipe", "standard", epochs=1, compile=False), paths, prepared, (), CPU).train()
    return paths


def test_a_training_gives_nearly_the_same_numbers_and_resumes_exactly(prepared, teacher, tmp_path):
    """Stopped before the last batch of an epoch, which is smaller: a resumed training meets it first."""

    def begun(folder, how):
        torch._dynamo.reset()
        return trainer("method", "fitnet", tmp_path / folder, prepared, teacher, epochs=2, compile=how)

    begun("eager", False).train()
    begun("compiled", True).train()
    stopped = begun("graphs", "graphs")
    StopAfter(stopped, 3)
    with pytest.raises(Interrupted):
        stopped.train()
    begun("graphs", "graphs").train()
    assert bits(tmp_path / "compiled") == bits(tmp_path / "graphs")
    eager, compiled = (history(RunPaths(tmp_path / f)) for f in ("eager", "compiled"))
    for a, b in zip(eager, compiled, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-2)


def test_gradients_may_be_taken_twice(prepared, teacher, tmp_path):
    trainer("method", "dhkd", tmp_path, prepared, teacher, epochs=1, compile="graphs").train()
    assert history(RunPaths(tmp_path))


def test_two_networks_of_a_kind_keep_their_own_taps():
    """PyTorch lets them share what it compiled, hooks and all, unless it is told to look at the hooks."""
    spec = registry.models.get("resnet8")
    plain, first, second = (spec.build(4, 1).eval() for _ in range(3))
    caught = [catch(network, spec, ["embed"]) for network in (first, second)]
    compile_networks([plain, first, second], True)
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        plain(images)
        found = [network(images).taps["embed"] for network in caught]
        plain(images)
    assert not torch.equal(*found)
