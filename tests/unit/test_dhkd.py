"""DHKD's heads, its two gradients, and when its second loss ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Progress, Trainable, total
from kdpipe.methods.dhkd import DHKD, mlp_head
from kdpipe.nn.gradients import Gradients, add, align, align_rows, deposit, gradients

CLASSES, WIDTH, BATCH = 5, 6, 8


class Toy:
    """A student of two layers, its DHKD objective and one batch, all in float64."""

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh()).double()
        self.classifier = nn.Linear(WIDTH, CLASSES).double()
        self.method = DHKD(DHKD.Config(**settings))
        data = DataInfo(CLASSES, torch.zeros(BATCH, dtype=torch.int64))
        self.method.build({"embed": (WIDTH,), "logits": (CLASSES,)}, {"logits": (CLASSES,)}, data)
        self.method.double().eval()
        labels = torch.randint(CLASSES, (BATCH,))
        images = torch.randn(BATCH, 4, dtype=torch.float64)
        self.batch = Batch(images, labels, torch.arange(BATCH))
        self.teacher = Outputs(3 * torch.randn(BATCH, CLASSES, dtype=torch.float64))
        self.parameters = Trainable(
            list(self.backbone.parameters()),
            list(self.classifier.parameters()),
            list(self.method.parameters()),
        )

    def terms(self, epoch: int = 0) -> dict[str, Tensor]:
        embed = self.backbone(self.batch.images)
        student = Outputs(self.classifier(embed), {"embed": embed})
        return self.method.loss(student, self.teacher, self.batch, Progress(epoch, 10))

    def grads(self, term: str) -> Gradients:
        return gradients(self.terms()[term], self.parameters.all)

    def backward(self, epoch: int = 0) -> Gradients:
        for p in self.parameters.all:
            p.grad = None
        self.method.backward(self.terms(epoch), self.parameters)
        return [p.grad for p in self.parameters.all]


def flat(grads: Gradients) -> Tensor:
    return torch.cat([g.flatten() for g in grads if g is not None])


def conflict(agree: bool) -> Toy:
    """A toy whose two gradients agree or conflict on the backbone."""
    for seed in range(50):
        toy = Toy(seed)
        n = len(toy.parameters.backbone)
        if (flat(toy.grads("ce")[:n]) @ flat(toy.grads("kd")[:n]) > 0) == agree:
            return toy
    raise AssertionError("no such seed")


def test_conflicting_gradients_are_orthogonal_on_the_backbone_afterwards() -> None:
    toy = conflict(agree=False)
    n = len(toy.parameters.backbone)
    ce, kd, both = toy.grads("ce"), toy.grads("kd"), toy.backward()
    m, a = flat(ce[:n]), flat(kd[:n])
    kept = flat(both[:n]) - m
    torch.testing.assert_close(kept, a - (a @ m) / (m @ m) * m)
    assert abs(kept @ m) < 1e-12 * m.norm() * a.norm()
    torch.testing.assert_close(flat(both[n:]), torch.cat([flat(ce[n:]), flat(kd[n:])]))


def test_agreeing_gradients_are_added() -> None:
    toy = conflict(agree=True)
    torch.testing.assert_close(flat(toy.backward()), flat(add(toy.grads("ce"), toy.grads("kd"))))


@pytest.mark.parametrize("settings", [{"align": False}, {"align": True, "kd_epochs": 0}])
def test_without_alignment_or_second_loss_it_is_the_plain_sum(settings: dict[str, Any]) -> None:
    toy = Toy(**settings)
    both = toy.backward()
    for p in toy.parameters.all:
        p.grad = None
    total(toy.terms()).backward()
    for mine, parameter in zip(both, toy.parameters.all, strict=True):
        assert (mine is None) == (parameter.grad is None)
        assert mine is None or torch.equal(mine, parameter.grad)


def test_alignment_class_by_class_changes_the_auxiliary_weight_alone() -> None:
    toy = Toy(align_on="classifier")
    plain, both = add(toy.grads("ce"), toy.grads("kd")), toy.backward()
    *head, classifier, _, auxiliary, bias = both
    torch.testing.assert_close(flat([*head, classifier, bias]), flat([*plain[:-4], plain[-4], plain[-1]]))
    before, ce = toy.grads("kd")[-2], toy.grads("ce")[-4]
    assert before is not None
    assert ce is not None
    inner = (before * ce).sum(1)
    assert (inner < 0).any()
    assert (inner >= 0).any()
    after = (auxiliary * ce).sum(1)
    torch.testing.assert_close(after, inner.clamp(min=0), atol=1e-12, rtol=1e-9)


def test_gradients_add_to_those_that_are_there() -> None:
    toy = Toy()
    once = [g.clone() for g in toy.backward() if g is not None]
    toy.method.backward(toy.terms(), toy.parameters)
    for parameter, gradient in zip(toy.parameters.all, once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_second_loss_ends_after_its_epochs() -> None:
    toy = Toy(kd_epochs=2)
    assert [sorted(toy.terms(epoch)) for epoch in range(4)] == [["ce", "kd"], ["ce", "kd"], ["ce"], ["ce"]]


def test_alpha_scales_the_second_loss() -> None:
    one, tenth = (Toy(alpha=a).terms()["kd"] for a in (1, 0.1))
    torch.testing.assert_close(tenth, 0.1 * one)


def test_class_vectors_need_a_linear_head() -> None:
    with pytest.raises(ValidationError, match="head must be linear"):
        DHKD.Config(head="mlp", align_on="classifier")


@pytest.mark.parametrize(  # student's feature length -> extra parameters at 100 classes
    ("width", "extra"), [(256, 71_900), (1024, 225_500), (1280, 276_700), (512, 123_100), (128, 46_300)]
)
def test_mlp_head_has_the_published_size(width: int, extra: int) -> None:
    assert sum(p.numel() for p in mlp_head(width, 100).parameters()) == extra


def test_missing_gradients_count_as_zero() -> None:
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    assert align([x, None], [None, y]) == [x, None]
    kept = align([-y, None, x], [y, x, None])
    norm = 26  # |y|^2 + |x|^2
    torch.testing.assert_close(kept[0], -y + y / norm)
    torch.testing.assert_close(kept[1], x / norm)
    assert kept[2] is x
    assert add([None, x], [None, None]) == [None, x]


def test_zero_main_gradient_removes_nothing() -> None:
    zero, x = torch.zeros(1, 3), torch.ones(1, 3)
    (kept,) = align([x], [zero])
    torch.testing.assert_close(kept, x)
    torch.testing.assert_close(align_rows(x, zero), x)


def test_deposit_keeps_the_memory_format_of_the_parameter() -> None:
    weight = nn.Parameter(torch.zeros(4, 3, 1, 1).to(memory_format=torch.channels_last))
    deposit([torch.ones(4, 3, 1, 1)], [weight])
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
    deposit([None], [weight])
    assert weight.grad.sum() == 12
