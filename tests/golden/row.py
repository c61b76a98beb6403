"""A loss under test: in PyTorch, in NumPy, and its golden value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.golden import inputs
from tests.golden.inputs import Array

Y = torch.tensor(inputs.LABELS)
LOGITS = (inputs.STUDENT_LOGITS, inputs.TEACHER_LOGITS)
MAPS = (inputs.STUDENT_MAPS, inputs.TEACHER_MAPS)


@dataclass(frozen=True)
class Row:
    """A loss of (student, teacher).

    Attributes:
        name: for the test's report.
        of: plug-ins that use it.
        loss: in PyTorch.
        reference: the same in NumPy.
        value: the golden value at `inputs`, from the reference code in float64 where there is any.
        inputs: student's and teacher's array.
        matches: zero where student and teacher are equal.
    """

    name: str
    of: tuple[str, ...]
    loss: Callable[[Tensor, Tensor], Tensor]
    reference: Callable[[Array, Array], float]
    value: float
    inputs: tuple[Array, Array] = LOGITS
    matches: bool = True
