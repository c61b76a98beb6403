"""A step works wholly where its networks are: no tensor stays on the processor, and none is copied from it.

PyTorch's `meta` device has shapes and no numbers. Like a GPU it refuses tensors of the processor among its
own; unlike one it needs no hardware. A CUDA graph cannot hold a copy from the processor either.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdpipe.api import Batch, Memory, Progress, Trainable
from kdpipe.engine.train import Meter
from tests.engine.test_train import OBJECTIVES, teacher, trainer  # noqa: F401 (a fixture)

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Notes operations that take numbers of the processor and give some of the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if META in devices(out) and devices((args, kwargs)) - {META}:
            self.found.append(func.name())
        return out


def devices(tensors):
    """Where tensors are, nested as they may be."""
    return {leaf.device for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor)}


def moved(training):
    """Bring everything that a step uses to the device; what is made of parameters there is made anew."""
    networks = [training.model, training.objective, training.peers]
    networks += [training.teacher.models] if training.teacher else []
    before = [p for network in networks for p in network.parameters()]
    for network in networks:
        network.to(META)
    after = dict(zip(map(id, before), (p for n in networks for p in n.parameters()), strict=True))
    roles = ("backbone", "classifier", "extra")
    own = {role: [after[id(p)] for p in getattr(training.trainable, role)] for role in roles}
    training.trainable = Trainable(**own, mean=training.trainable.mean)
    training.optimizer = torch.optim.SGD(training.trainable.all, lr=0.1)  # fused ones do not know the device
    training.device, training.meter = META, Meter(META)
    if part := getattr(training.teacher, "_part", None):
        part.to(META)
    training.objective.memory = {
        name: Memory(kept.past.to(META), kept.future.to(META))
        for name, kept in training.memory.open(0).items()
    }
    return training


def there(batch):
    """A batch on the device."""
    views = tuple(view.to(META) for view in batch.views)
    targets = None if batch.targets is None else batch.targets.to(META)
    return Batch(batch.images.to(META), batch.labels.to(META), batch.index.to(META), views, targets)


@pytest.mark.parametrize(("kind", "name"), OBJECTIVES)
def test_nothing_of_a_step_stays_on_the_processor(kind, name, prepared, teacher, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # which is not known there
    training = trainer(kind, name, tmp_path, prepared, teacher)
    batch, at = next(training.batches.epoch(0)), Progress(0, 3)
    if kind == "recipe":
        batch = training.objective.transform(batch, at)
    training, batch = moved(training), there(batch)
    with Copies() as copies:
        terms = training._step(batch, at)
    assert copies.found == []
    assert {term.device for term in terms.values()} == {META}
