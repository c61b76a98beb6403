"""Every loss against stored values, against NumPy, and against finite differences.

A new loss is one new `Row`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kdpipe.core.registry import Registry, methods, recipes
from kdpipe.methods.dkd import others_loss, target_loss
from kdpipe.methods.fitnet import hint_loss
from kdpipe.nn.gradients import align
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy, full, kl
from kdpipe.recipes.soteacher import consistency_loss
from tests.golden import inputs, numpy_losses
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


def dkd(s: Tensor, t: Tensor) -> Tensor:
    return target_loss(s, t, Y, 4) + 8 * others_loss(s, t, Y, 4)


def consistency(s: Tensor, t: Tensor) -> Tensor:
    return consistency_loss(full(s).softmax(1), full(t).softmax(1))


ROWS = [
    Row(
        "ce",
        ("scratch", "standard"),
        lambda s, t: cross_entropy(s, Y),
        numpy_losses.cross_entropy,
        3.82384602,
        matches=False,
    ),
    Row("kd-T4", ("kd",), partial(kl, temperature=4), partial(numpy_losses.kd, temperature=4), 5.21036271),
    Row("kd-T1", ("kd",), partial(kl, temperature=1), partial(numpy_losses.kd, temperature=1), 2.4107138),
    Row(
        "tckd-T4",
        ("dkd",),
        lambda s, t: target_loss(s, t, Y, 4),
        partial(numpy_losses.tckd, temperature=4),
        0.289710587,
    ),
    Row(
        "nckd-T4",
        ("dkd",),
        lambda s, t: others_loss(s, t, Y, 4),
        partial(numpy_losses.nckd, temperature=4),
        5.46572427,
    ),
    Row("dkd-a1-b8-T4", ("dkd",), dkd, partial(numpy_losses.dkd, temperature=4, alpha=1, beta=8), 44.0155048),
    Row(
        "binarykl-T2",
        ("dhkd",),
        partial(binary_kl, temperature=2),
        partial(numpy_losses.binary_kl, temperature=2),
        12.7490143,
    ),
    Row(
        "binarykl-norm-T2",
        ("dhkd",),
        partial(binary_kl_norm, temperature=2),
        partial(numpy_losses.binary_kl_norm, temperature=2),
        12.8890443,
    ),
    Row("hint", ("fitnet",), hint_loss, numpy_losses.hint, 1.0120178, inputs=MAPS),
    Row("consistency", ("soteacher",), consistency, numpy_losses.consistency, 0.478198300),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def at(row: Row, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in row.inputs)
    return student, teacher


@rows
def test_golden_value(row: Row) -> None:
    assert row.loss(*at(row)).item() == pytest.approx(row.value, rel=1e-7)


@rows
def test_numpy_reference(row: Row) -> None:
    assert row.loss(*at(row)).item() == pytest.approx(row.reference(*row.inputs), rel=1e-12)
    student, teacher = (x[::-1].copy() * 0.7 + 0.1 for x in row.inputs)
    given = torch.tensor(student), torch.tensor(teacher)
    assert row.loss(*given).item() == pytest.approx(row.reference(student, teacher), rel=1e-12)


@rows
def test_gradient_is_that_of_finite_differences(row: Row) -> None:
    student, teacher = at(row)
    sample = (slice(None), slice(2), slice(2)) if student.ndim == 4 else ()
    student, teacher = student[sample].detach().requires_grad_(), teacher[sample].detach()
    assert torch.autograd.gradcheck(lambda s: row.loss(s, teacher), student)


@rows
def test_teacher_is_a_constant(row: Row) -> None:
    student, teacher = at(row)
    row.loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("row", [r for r in ROWS if r.matches], ids=lambda row: row.name)
def test_zero_and_flat_where_student_and_teacher_agree(row: Row) -> None:
    _, teacher = at(row)
    student = teacher.detach().clone().requires_grad_()
    loss = row.loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(row: Row, dtype: torch.dtype) -> None:
    student, teacher = at(row, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = row.loss(student, teacher)
    loss.backward()
    exact = row.loss(student.detach().double(), teacher.detach().double())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@rows
def test_finite_at_huge_values(row: Row) -> None:
    student, teacher = (
        torch.tensor(np.sign(x) * 1e4, dtype=torch.float32, requires_grad=True) for x in row.inputs
    )
    loss = row.loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_projection_of_a_conflicting_gradient() -> None:
    (projected,) = align([torch.tensor([1.0, -2.0])], [torch.tensor([1.0, 1.0])])
    assert projected is not None
    assert projected.tolist() == [1.5, -1.5]


@pytest.mark.parametrize("registry", [methods, recipes], ids=lambda r: r.kind)
def test_every_plug_in_of_kdpipe_has_a_row(registry: Registry) -> None:
    covered = {name for row in ROWS for name in row.of}
    ours = {n for n in registry.names() if registry.file(n).parent.parent.name == "kdpipe"}
    assert ours - covered == set()
