"""The benchmark of recipes: it trains what it says, and compares turn by turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.recipes import loop, noise, ratios
from benchmarks.step import measure
from kdpipe.core.specs import Protocol

PROTOCOL = Protocol(
    epochs=1, lr=0.05, momentum=0.9, weight_decay=0, batch_size=20, milestones=(), augmentation=()
)


def test_recipes_take_turns(tmp_path: Path) -> None:
    racers = {
        name: loop(name, "resnet8", noise(40, classes=4), PROTOCOL, tmp_path / name, torch.device("cpu"))
        for name in ("standard", "soteacher", "micc")
    }
    before = racers["micc"].trainer.model.conv1.weight.clone()
    rates = measure(racers, slices=2, steps=1, batch=20)
    assert {name: len(found) for name, found in rates.items()} == dict.fromkeys(racers, 2)
    assert not torch.equal(racers["micc"].trainer.model.conv1.weight, before)
    assert racers["soteacher"].trainer.objective.memory["average"].future.any()


def test_ratio_is_that_of_each_turn() -> None:
    found = ratios({"standard": [1.0, 2.0, 4.0], "soteacher": [1.1, 2.2, 4.0]})
    assert found == {"soteacher": [pytest.approx(1.1), pytest.approx(1.1), pytest.approx(1.0)]}
