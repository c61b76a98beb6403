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
    """Stopped before the last batch of an epoch, which is smaller: a resumed training meets it first.

    dhkd reads taps, and takes gradients twice in a step.
    """

    def begun(folder, how):
        torch._dynamo.reset()
        return trainer("method", "dhkd", tmp_path / folder, prepared, teacher, epochs=2, compile=how)

    begun("eager", False).train()
    begun("whole", True).train()
    stopped = begun("parts", True)
    StopAfter(stopped, 3)
    with pytest.raises(Interrupted):
        stopped.train()
    begun("parts", True).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")
    eager, compiled = (history(RunPaths(tmp_path / f)) for f in ("eager", "whole"))
    for a, b in zip(eager, compiled, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-2)


def test_what_another_program_compiled_is_not_taken_from_the_cache():
    """PyTorch's cache does not tell passes that may be gone through twice from those that may not."""
    from torch._functorch import config as backward
    from torch._inductor.utils import fresh_cache

    network = registry.models.get("resnet8").build(4, 1).train()
    images = torch.randn(4, 1, 8, 8)
    parameters = list(network.parameters())

    def gradients():
        logits = network(images)
        once = torch.autograd.grad(logits.square().sum(), parameters, retain_graph=True)
        return torch.cat([g.flatten() for g in (*once, *torch.autograd.grad(logits.sum(), parameters))])

    expected = gradients()
    with (
        fresh_cache(),
        backward.patch(donated_buffer=True),
        torch.compiler.config.patch(cache_key_tag=""),
    ):
        network.compile(dynamic=False)
        torch.autograd.grad(network(images).sum(), parameters)
        torch._dynamo.reset()
        compile_networks([network])
        torch.testing.assert_close(gradients(), expected, rtol=1e-3, atol=1e-4)


def test_two_networks_of_a_kind_keep_their_own_taps():
    """PyTorch lets them share what it compiled, hooks and all, unless it is told to look at the hooks."""
    spec = registry.models.get("resnet8")
    plain, first, second = (spec.build(4, 1).eval() for _ in range(3))
    caught = [catch(network, spec, ["embed"]) for network in (first, second)]
    compile_networks([plain, first, second])
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        plain(images)
        found = [network(images).taps["embed"] for network in caught]
        plain(images)
    assert not torch.equal(*found)
