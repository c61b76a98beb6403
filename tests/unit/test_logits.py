"""Properties of the logit losses, for any logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.methods.dkd import others_loss, target_loss, without_label
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy, full, kl

LOSSES = [kl, binary_kl, binary_kl_norm]
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
quick = settings(max_examples=25, deadline=None)
temperatures = st.floats(0.5, 8)


@st.composite
def logits(draw: st.DrawFn, bound: float = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits (B x C, float64) and labels."""
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.floats(0.01, bound))
    student, teacher = scale * torch.randn(2, batch, classes, dtype=torch.float64, generator=rng)
    return student, teacher, torch.randint(classes, (batch,), generator=rng)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at)[0]


@losses
@given(logits(), temperatures)
@quick
def test_never_negative(loss: object, given: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    student, teacher, _ = given
    assert loss(student, teacher, temperature) >= -1e-9


@losses
@given(logits(), temperatures)
@quick
def test_mean_over_the_batch(loss: object, given: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    student, teacher, _ = given
    each = [loss(s[None], t[None], temperature) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(loss(student, teacher, temperature), torch.stack(each).mean())


@given(logits(), temperatures, st.floats(-20, 20))
@quick
def test_only_the_softmax_forgets_a_shift_of_all_logits(
    given: tuple[Tensor, Tensor, Tensor], temperature: float, shift: float
) -> None:
    student, teacher, labels = given
    for loss in (
        kl,
        lambda s, t, T: target_loss(s, t, labels, T),
        lambda s, t, T: others_loss(s, t, labels, T),
    ):
        expected = loss(student, teacher, temperature)
        torch.testing.assert_close(
            loss(student + shift, teacher, temperature), expected, atol=1e-9, rtol=1e-7
        )
    for loss in (binary_kl, binary_kl_norm):
        assert loss(teacher + 1, teacher, temperature) > 0


@given(logits(), temperatures)
@quick
def test_dkd_with_matching_weights_is_kd(given: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    for s, t, y in zip(*given, strict=True):
        s, t, y = s[None].requires_grad_(), t[None], y[None]
        beta = 1 - (t / temperature).softmax(1)[0, y]
        split = target_loss(s, t, y, temperature) + beta[0] * others_loss(s, t, y, temperature)
        whole = kl(s, t, temperature)
        torch.testing.assert_close(split, whole, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(gradient(split, s), gradient(whole, s), atol=1e-8, rtol=1e-6)


@given(logits(), temperatures)
@quick
def test_binary_kl_norm_is_log_cosh(given: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    student, teacher, _ = given
    student.requires_grad_()
    loss = binary_kl_norm(student, teacher, temperature)
    half = (student - teacher).detach() / (2 * temperature)
    expected = temperature**2 * half.cosh().log().sum(1).mean()
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-7)
    slope = temperature / 2 * half.tanh() / len(student)
    torch.testing.assert_close(gradient(loss, student), slope, atol=1e-12, rtol=1e-7)


@given(logits(), temperatures)
@quick
def test_gradient_of_binary_kl(given: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    student, teacher, _ = given
    student.requires_grad_()
    loss = binary_kl(student, teacher, temperature)
    gap = (student / temperature).sigmoid() - (teacher / temperature).sigmoid()
    expected = temperature * gap.detach() / len(student)
    torch.testing.assert_close(gradient(loss, student), expected, atol=1e-10, rtol=1e-6)


def test_kd_at_high_temperature_is_the_gradient_of_a_squared_difference() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64, generator=rng)
    student.requires_grad_()
    gap = (student - teacher).detach()
    expected = (gap - gap.mean(1, keepdim=True)) / 7 / 5
    torch.testing.assert_close(gradient(kl(student, teacher, 1e4), student), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("student", [-400.0, 100.0, 1e4])
@pytest.mark.parametrize("temperature", [1, 4])
def test_dkd_is_finite_where_the_label_is_certain_or_hopeless(student: float, temperature: float) -> None:
    z = torch.zeros(2, 5)
    z[:, 0] = student
    z.requires_grad_()
    labels = torch.zeros(2, dtype=torch.int64)
    loss = target_loss(z, torch.eye(2, 5), labels, temperature) + others_loss(
        z, torch.eye(2, 5), labels, temperature
    )
    assert loss.isfinite()
    assert gradient(loss, z).isfinite().all()


def test_without_label_keeps_the_order_of_the_others() -> None:
    logits = torch.arange(8.0).view(2, 4)
    assert without_label(logits, torch.tensor([0, 2])).tolist() == [[1, 2, 3], [4, 5, 7]]


def test_cross_entropy_of_equal_logits_is_the_log_of_their_number() -> None:
    loss = cross_entropy(torch.zeros(3, 7, dtype=torch.bfloat16), torch.tensor([0, 1, 6]))
    assert loss.item() == pytest.approx(1.9459101)


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_full_precision(given: torch.dtype, computed: torch.dtype) -> None:
    assert full(torch.zeros(1, dtype=given)).dtype == computed
