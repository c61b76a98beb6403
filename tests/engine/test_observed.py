"""What is watched beside a training changes none of its numbers, and what is stored of it is right."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from kdpipe.core.errors import Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.core.registry import models
from kdpipe.engine.features import save_features
from kdpipe.engine.weights import load_weights
from kdpipe.evaluation.evaluate import evaluate
from kdpipe.nn.gradients import compared
from tests.engine.test_train import CPU, StopAfter, bits, trainer
from tests.engine.tiny import PLAIN, history, make_run


def test_watching_gradients_changes_nothing(prepared, tmp_path):
    for folder, every in (("plain", 0), ("watched", 2)):
        t = trainer("recipe", "soteacher", tmp_path / folder, prepared, None, epochs=4)
        t.gradients = every
        t.train()
    assert bits(tmp_path / "plain") == bits(tmp_path / "watched")
    rows = history(RunPaths(tmp_path / "watched"))
    assert [bool(r["gradient_ce_backbone"]) for r in rows] == [False, True, False, True]
    assert -1 <= float(rows[1]["cosine_ce_consistency_classifier"]) <= 1
    assert not any("gradient" in key for key in history(RunPaths(tmp_path / "plain"))[0])


def test_what_was_watched_survives_a_stop(prepared, tmp_path):
    t = trainer("recipe", "standard", tmp_path, prepared, None)
    t.gradients = 2
    StopAfter(t, 6)  # after the first step of the second epoch, which is the one compared
    with pytest.raises(Interrupted):
        t.train()
    t = trainer("recipe", "standard", tmp_path, prepared, None)
    t.gradients = 2
    t.train()
    assert float(history(RunPaths(tmp_path))[1]["gradient_ce_backbone"]) > 0


def test_gradients_compared_by_hand(prepared, tmp_path):
    t = trainer("recipe", "standard", tmp_path, prepared, None)
    weight = t.trainable.classifier[0]
    a, b = torch.zeros_like(weight), torch.zeros_like(weight)
    a[0, 0], b[0, 0], b[0, 1] = 3, -1, 1
    terms = {"a": (weight * a).sum(), "b": (weight * b).sum()}
    found = compared(terms, t.trainable)
    assert set(found) == {"gradient_a_classifier", "gradient_b_classifier", "cosine_a_b_classifier"}
    assert found["gradient_a_classifier"] == pytest.approx(3)
    assert found["cosine_a_b_classifier"] == pytest.approx(-1 / math.sqrt(2))


def test_features_are_those_of_the_network(prepared, tmp_path):
    run, paths = make_run("recipe", "standard", **PLAIN), RunPaths(tmp_path)
    trainer("recipe", "standard", tmp_path, prepared, None, **PLAIN).train()
    save_features(paths.features, run, paths.model, prepared, CPU)
    stored = np.load(paths.features)
    assert stored["train_features"].shape == (58, 64)
    linear = stored["test_features"] @ stored["weight"].T + stored["bias"]
    np.testing.assert_allclose(linear, stored["test_logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.load(paths.predictions)["test_logits"], stored["test_logits"], rtol=1e-4, atol=1e-5
    )
    values = evaluate(paths)["values"]
    assert {"nc1", "d_intra", "train_top1"} <= set(values)
    model = models.get("resnet8").build(4, 1)
    load_weights(model, paths.model)
    torch.testing.assert_close(torch.from_numpy(stored["weight"]), model.fc.weight.detach())


def test_the_cost_of_a_step_is_recorded(prepared, tmp_path):
    t = trainer("recipe", "standard", tmp_path, prepared, None, epochs=6)
    t.train()
    cost = json.loads(RunPaths(tmp_path).provenance.read_text())["cost"]
    assert {"ms_data", "ms_student", "ms_loss", "ms_backward", "ms_optimizer"} <= set(cost)
    assert cost["memory_mib"] > 1
    assert cost["extra_parameters"] == 0


def test_shares_of_the_test_images_reach_the_measures(prepared, tmp_path):
    shares = np.full((20, 4), 0.25, np.float32)
    data = dataclasses.replace(prepared, reference=shares)
    trainer("recipe", "standard", tmp_path, data, None).train()
    paths = RunPaths(tmp_path)
    assert np.array_equal(np.load(paths.predictions)["test_reference"], shares)
    values = evaluate(paths)["values"]
    logits = np.load(paths.predictions)["test_logits"].astype(float)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert values["tv_reference"] == pytest.approx(np.abs(p - 0.25).sum(1).mean() / 2, rel=1e-5)
