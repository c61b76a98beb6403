"""Steps of a chain in training: their starts, what teaches them, and that a stopped one resumes exactly."""

from __future__ import annotations

import pytest
import torch

from kdpipe.api import Progress
from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError, Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import read_weights, save_weights
from tests.engine.test_train import CPU, StopAfter
from tests.engine.tiny import make_run


def trainer(root, prepared, teachers=(), start=None, **settings):
    run = make_run("recipe", "self_distillation", settings=settings)
    return Trainer(run, RunPaths(root), prepared, teachers, CPU, start=start)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def first(prepared, tmp_path_factory):
    """The first step's weights: labels alone."""
    root = tmp_path_factory.mktemp("first")
    trainer(root, prepared, alpha=1.0, generations=0).train()
    return RunPaths(root).model


def test_initial_weights_are_equal_for_all_alphas_and_new_for_each_step(prepared, tmp_path, first):
    def initial(**settings):
        made = trainer(tmp_path, prepared, [first] if settings["generations"] else (), **settings)
        return {k: v.clone() for k, v in made.model.state_dict().items()}

    second = initial(alpha=0.0, generations=1)
    assert same(second, initial(alpha=0.5, generations=1))
    assert not same(second, initial(alpha=1.0, generations=0))
    assert not same(second, initial(alpha=0.0, generations=2))
    one_draw = {"alpha": 0.0, "weights": "same"}
    assert same(initial(generations=1, **one_draw), initial(generations=2, **one_draw))
    assert same(initial(generations=1, **one_draw), initial(alpha=1.0, generations=0))


def test_without_labels_the_chain_learns_from_the_step_before_alone(prepared, tmp_path, first):
    own = trainer(tmp_path, prepared, [first], alpha=0.0, generations=1)
    batch = next(iter(own.batches.epoch(0, 0)))
    terms = own.step(batch, Progress(0, 3, 0, own.batches.steps))
    assert set(terms) == {"before"}


def test_a_stopped_step_resumes_exactly(prepared, tmp_path, first):
    trainer(tmp_path / "whole", prepared, [first], alpha=0.3, generations=1).train()
    stopped = trainer(tmp_path / "stopped", prepared, [first], alpha=0.3, generations=1)
    StopAfter(stopped, 5)
    with pytest.raises(Interrupted):
        stopped.train()
    trainer(tmp_path / "stopped", prepared, [first], alpha=0.3, generations=1).train()
    whole, resumed = (read_weights(RunPaths(tmp_path / name).model) for name in ("whole", "stopped"))
    assert same(whole, resumed)


def test_a_network_starts_from_given_weights_all_but_its_classifier(prepared, tmp_path):
    spec = registry.models.get("resnet8")
    other = spec.build(7, prepared.shape[0])  # of other classes
    file = tmp_path / "start.safetensors"
    save_weights(other, file)
    settings = {"alpha": 1.0, "generations": 0}
    drawn = trainer(tmp_path, prepared, **settings).model.state_dict()
    started = trainer(tmp_path, prepared, start=file, **settings).model.state_dict()
    for key, value in started.items():
        theirs = drawn if key.startswith(f"{spec.classifier}.") else other.state_dict()
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("wrong", ["network", "missing", "damaged"])
def test_wrong_weights_to_start_from_are_one_clear_error(prepared, tmp_path, wrong):
    file = tmp_path / "start.safetensors"
    if wrong == "network":
        save_weights(registry.models.get("resnet14").build(4, prepared.shape[0]), file)
    if wrong == "damaged":
        file.write_bytes(b"no weights")
    said = {"network": "another network", "missing": "missing", "damaged": "damaged"}[wrong]
    with pytest.raises(CheckpointError, match=said):
        trainer(tmp_path, prepared, start=file, alpha=1.0, generations=0)
