"""Recipes that look at validation images, or keep other weights than the last."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.api import Split
from kdpipe.core.errors import Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.engine.sample import sample
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import read_weights
from kdpipe.evaluation.metrics import fit_temperature, nll
from tests.engine.test_train import CPU, StopAfter, bits
from tests.engine.tiny import PLAIN, history, make_run

EPOCHS = 8
CONSTANT = {"milestones": ()}


@pytest.fixture(scope="module")
def prepared(prepared):
    """The tiny data set with some wrong labels, which are learnt by heart in the end."""
    rng, labels = np.random.default_rng(0), np.array(prepared.train.labels)
    labels[rng.random(len(labels)) < 0.25] += 1
    return dataclasses.replace(prepared, train=Split(prepared.train.images, labels % 4))


def trained(name, root, prepared, keep=(), epochs=EPOCHS, **changes):
    run = make_run("recipe", name, epochs=epochs, **PLAIN, **changes)
    trainer = Trainer(run, RunPaths(root), prepared, (), CPU, keep=keep)
    trainer.train()
    return trainer, RunPaths(root)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("measure", ["nll", "accuracy"])
def test_early_stopping_keeps_the_best_epoch(measure, prepared, tmp_path):
    """It is found again from a training that goes on, and its checkpoints."""
    usual, whole = trained(
        "standard", tmp_path / "whole", prepared, range(1, 9), split="train-val", **CONSTANT
    )
    found = []
    for epoch in range(1, EPOCHS + 1):
        usual.model.load_state_dict(read_weights(whole.checkpoint(epoch)))
        logits, labels = usual.scores.held_out(usual.model)()
        right = float((logits.argmax(1) == labels).float().mean())
        found.append(right if measure == "accuracy" else -nll(logits.numpy(), labels.numpy()))
    best = next(
        e
        for e in range(EPOCHS)
        if found[e] == max(found[: e + 1]) >= max(found[e + 1 : e + 3], default=-np.inf)
    )
    assert best + 3 < EPOCHS, "the training must end early for this test"

    settings = {"patience": 2, "measure": measure}
    _, stopped = trained("early_stopping", tmp_path / "stopped", prepared, settings=settings, **CONSTANT)
    assert json.loads(stopped.status.read_text())["epoch"] == best + 3
    assert len(history(stopped)) == best + 3
    assert same(read_weights(stopped.model), read_weights(whole.checkpoint(best + 1)))
    if measure == "nll":
        stored = np.load(stopped.predictions)
        assert -nll(stored["val_logits"], stored["val_labels"]) == pytest.approx(found[best], rel=1e-5)


def test_a_stopped_training_resumes_exactly(prepared, tmp_path):
    settings = {"patience": 2}
    _, whole = trained("early_stopping", tmp_path / "whole", prepared, settings=settings, **CONSTANT)
    steps = 4 * len(history(whole))
    for batches in range(1, steps, 5):
        parts = tmp_path / f"parts-{batches}"
        run = make_run("recipe", "early_stopping", epochs=EPOCHS, settings=settings, **PLAIN, **CONSTANT)
        stopped = Trainer(run, RunPaths(parts), prepared, (), CPU)
        StopAfter(stopped, batches)
        with pytest.raises(Interrupted):
            stopped.train()
        Trainer(run, RunPaths(parts), prepared, (), CPU).train()
        assert bits(parts) == bits(tmp_path / "whole")
        assert len(history(RunPaths(parts))) == len(history(whole))


def test_an_epoch_after_the_stop_is_the_weights_it_ended_with(prepared, tmp_path):
    trainer, paths = trained("early_stopping", tmp_path, prepared, settings={"patience": 1}, **CONSTANT)
    ended = json.loads(paths.status.read_text())["epoch"]
    assert ended < EPOCHS
    sample(trainer.run, paths, prepared, EPOCHS, CPU)
    assert same(read_weights(paths.checkpoint(EPOCHS)), read_weights(paths.model))
    assert json.loads(paths.sampled(EPOCHS).status.read_text())["epoch"] == ended


def test_temperature_scaling_divides_by_the_evaluations_temperature(prepared, tmp_path):
    _, usual = trained("standard", tmp_path / "usual", prepared, split="train-val", **CONSTANT)
    _, scaled = trained("temperature_scaling", tmp_path / "scaled", prepared, **CONSTANT)
    before, after = np.load(usual.predictions), np.load(scaled.predictions)
    temperature = fit_temperature(before["val_logits"], before["val_labels"])
    assert 1.1 < temperature < 10
    np.testing.assert_allclose(
        after["test_logits"] * temperature, before["test_logits"], rtol=1e-3, atol=1e-4
    )
    assert fit_temperature(after["val_logits"], after["val_labels"]) == pytest.approx(1, abs=1e-3)
    weights = [read_weights(p.model) for p in (usual, scaled)]
    changed = {k for k in weights[0] if not torch.equal(weights[0][k], weights[1][k])}
    assert changed == {"fc.weight", "fc.bias"}


def test_swa_is_the_mean_of_the_epochs_with_its_own_statistics(prepared, tmp_path):
    settings = {"start": 0.5, "rate": 0.5}
    trainer, paths = trained("swa", tmp_path, prepared, range(1, 7), epochs=6, settings=settings)
    kept = read_weights(paths.model)
    for name, _ in trainer.model.named_parameters():
        each = [read_weights(paths.checkpoint(epoch))[name] for epoch in range(3, 7)]
        torch.testing.assert_close(kept[name], torch.stack(each).mean(0), rtol=1e-5, atol=1e-7)
    assert [float(r["lr"]) for r in history(paths)] == pytest.approx([0.05, 0.05, 0.005, 0.025, 0.025, 0.025])

    norms = {n: m for n, m in trainer.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    seen = {name: [] for name in norms}
    hooks = [
        m.register_forward_pre_hook(lambda _, x, n=n: seen[n].append(x[0].double())) for n, m in norms.items()
    ]
    trainer.model.train()
    with torch.no_grad():
        for batch in trainer.batches.epoch(6):
            trainer.model(batch.images)
    for hook in hooks:
        hook.remove()
    for name, maps in seen.items():
        flat = [x.transpose(0, 1).flatten(1) for x in maps]
        mean = torch.stack([x.mean(1) for x in flat]).mean(0)
        variance = torch.stack([x.var(1) for x in flat]).mean(0)
        torch.testing.assert_close(kept[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kept[f"{name}.running_var"].double(), variance, rtol=1e-4, atol=1e-5)


def test_swa_resumes_exactly(prepared, tmp_path):
    run = make_run("recipe", "swa", epochs=4, settings={"start": 0.25})
    Trainer(run, RunPaths(tmp_path / "whole"), prepared, (), CPU).train()
    for batches in (3, 7, 12, 15):
        parts = RunPaths(tmp_path / f"parts-{batches}")
        stopped = Trainer(run, parts, prepared, (), CPU)
        StopAfter(stopped, batches)
        with pytest.raises(Interrupted):
            stopped.train()
        Trainer(run, parts, prepared, (), CPU).train()
        assert bits(parts.root) == bits(tmp_path / "whole")
