"""Every loss against stored values, against NumPy, and against finite differences.

A new loss is one new `Row` in a file `rows_*.py` beside this one.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdpipe.core.registry import Registry, methods, recipes
from kdpipe.nn.gradients import align
from tests.golden.row import Row

FILES = sorted(Path(__file__).parent.glob("rows_*.py"))
ROWS: list[Row] = [row for file in FILES for row in importlib.import_module(f"tests.golden.{file.stem}").ROWS]
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(row: Row, dtype: torch.dtype) -> None:
    student, teacher = at(row, dtype)
    with torch.autocast("cpu", dtype if dtype == torch.float16 else torch.bfloat16):
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
