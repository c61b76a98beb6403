"""MICC in the engine: its pipeline survives kills, and without its weight it is the standard recipe."""

from __future__ import annotations

import pytest

from kdpipe.core.errors import Interrupted
from tests.engine.test_train import StopAfter, bits, trainer

EAGER = {"delta": 0.01, "enough": 6, "lambda_intra": 0.5}


def test_a_pipeline_that_holds_samples_is_resumed(prepared, tmp_path):
    whole = trainer("recipe", "micc", tmp_path / "whole", prepared, None, settings=EAGER)
    whole.train()
    assert all(row["loss_intra"] > 0 for row in whole.history[1:])
    stopped = trainer("recipe", "micc", tmp_path / "parts", prepared, None, settings=EAGER)
    StopAfter(stopped, 6)
    with pytest.raises(Interrupted):
        stopped.train()
    assert (stopped.objective.waiting_labels >= 0).any()
    trainer("recipe", "micc", tmp_path / "parts", prepared, None, settings=EAGER).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")


def test_the_contrast_changes_the_weights_and_weight_zero_does_not(prepared, tmp_path):
    trainer("recipe", "standard", tmp_path / "standard", prepared, None).train()
    for name, settings in (("zero", {"lambda_intra": 0}), ("eager", EAGER)):
        trainer("recipe", "micc", tmp_path / name, prepared, None, settings=settings).train()
    assert bits(tmp_path / "zero") == bits(tmp_path / "standard")
    assert bits(tmp_path / "eager") != bits(tmp_path / "standard")
