"""No step waits for its device: nothing is read back from it, and nothing is copied to it."""

from __future__ import annotations

import dataclasses

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from kdpipe.api import Progress
from kdpipe.core import registry
from tests.engine.test_train import teacher, trainer  # noqa: F401 (a fixture)

WAITS = {
    "aten::_local_scalar_dense": "reads a number (`.item()`, `float(...)`, `if tensor`)",
    "aten::nonzero": "asks for a shape that values decide (`nonzero`, indexing by a mask)",
    "aten::lift_fresh": "copies numbers of the host to the device (`torch.tensor`)",
    "aten::masked_select": "asks for a shape that values decide",
    "aten::is_nonzero": "reads a number (`if tensor`)",
    "aten::equal": "reads a number",
}
DRAWN = "numbers of the host's generator, read on the host"
KNOWN = {  # with the reason why a GPU does not wait
    ("recipe", "mixup"): DRAWN,
    ("recipe", "cutmix"): DRAWN,
}


class Waits(TorchDispatchMode):
    """Notes every operation on whose account a GPU's host would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if name in WAITS:
            self.found.append(f"{name} {WAITS[name]}")
        return func(*args, **(kwargs or {}))


OBJECTIVES = [("recipe", n) for n in registry.recipes.names()]
OBJECTIVES += [("method", n) for n in registry.methods.names()]


@pytest.mark.parametrize(("kind", "name"), OBJECTIVES)
def test_a_step_waits_for_nothing(kind, name, prepared, teacher, tmp_path):  # noqa: F811 (the fixture)
    training = trainer(kind, name, tmp_path, prepared, teacher)
    training.objective.memory = training.memory.open(0)
    at = Progress(0, 3, 0, training.batches.steps)
    batches = training.batches.epoch(0)
    training.step(next(batches), at)  # the first may set things up
    batch = next(batches)
    with Waits() as waits:
        training.step(batch, dataclasses.replace(at, step=1))
    assert bool(waits.found) == ((kind, name) in KNOWN), waits.found
