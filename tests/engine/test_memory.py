"""What is remembered of each sample survives kills, and damage is noticed."""

from __future__ import annotations

import pytest
import torch

from kdpipe.core.errors import Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.engine.memory import MemoryFiles
from kdpipe.nn.folds import folds
from tests.engine.test_train import CPU, StopAfter, bits, trainer

SHAPES = {"average": (3,)}


def files(folder):
    return MemoryFiles(folder, SHAPES, 4, CPU)


def test_an_epoch_reads_what_the_last_one_wrote_and_nothing_else(tmp_path):
    kept = files(tmp_path)
    for epoch in range(5):
        memory = kept.open(epoch)["average"]
        index = torch.tensor([2, 0])
        assert torch.equal(memory[index], torch.full((2, 3), float(epoch)))
        memory[index] = torch.full((2, 3), float(epoch) + 7)
        memory[index] = torch.full((2, 3), float(epoch) + 1)  # a repeated step writes the same place
        kept.flush()
    assert torch.equal(files(tmp_path).open(5)["average"][torch.tensor([0])], torch.full((1, 3), 5.0))


def test_the_state_before_the_last_still_finds_its_memory(tmp_path):
    kept = files(tmp_path)
    everyone = torch.arange(4)
    for epoch in range(3):
        kept.open(epoch)["average"][everyone] = torch.full((4, 3), float(epoch))
        kept.flush()
        if epoch == 1:
            hashes = kept.hashes(2, 0)
    kept.open(3)["average"][everyone] = torch.full((4, 3), 9.0)  # two epochs later, killed
    assert files(tmp_path).whole(hashes, 2, 0)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_noticed(tmp_path, damage):
    kept = files(tmp_path)
    kept.open(0)["average"][torch.arange(4)] = torch.ones(4, 3)
    kept.flush()
    hashes = kept.hashes(1, 0)
    assert files(tmp_path).whole(hashes, 1, 0)
    file = tmp_path / "average-0.f32"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    {"flip": lambda: file.write_bytes(content), "cut": lambda: file.write_bytes(b"x"), "gone": file.unlink}[
        damage
    ]()
    assert not files(tmp_path).whole(hashes, 1, 0)


def test_a_training_whose_memory_is_damaged_starts_over(prepared, tmp_path):
    trainer("recipe", "soteacher", tmp_path / "whole", prepared, None).train()
    stopped = trainer("recipe", "soteacher", tmp_path / "parts", prepared, None)
    StopAfter(stopped, 6)
    with pytest.raises(Interrupted):
        stopped.train()
    (RunPaths(tmp_path / "parts").state / "average-0.f32").unlink()
    trainer("recipe", "soteacher", tmp_path / "parts", prepared, None).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")


def test_folds_deal_out_every_class():
    labels = torch.tensor([0, 1] * 7 + [2])
    fold = folds(labels, 3)
    for label in (0, 1):
        counts = torch.bincount(fold[labels == label], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(fold, folds(labels, 3))
