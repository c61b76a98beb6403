"""DHKD's heads, its two gradients, the paper's propositions on them, and when its second loss ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Gradients, Outputs, Progress, Trainable, total
from kdpipe.methods.dhkd import DHKD
from kdpipe.nn.gradients import add, align, align_rows, deposit, gradients
from kdpipe.nn.heads import mlp_head
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy

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


# ---- Propositions 1 to 4 (Yang et al. 2024, section 3.2 and Appendix B): forces are negative gradients.
# The paper sums over the batch where the losses take the mean, and its classifier has no bias.

TAU = 2.0
LOSSES = {"binarykl": binary_kl, "binarykl_norm": binary_kl_norm}
dhkd_losses = pytest.mark.parametrize("name", LOSSES)


class OneHead:
    """Features h (B x D) and class vectors w (C x D) of one head, the teacher's logits, and labels."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.h = torch.randn(BATCH, WIDTH, dtype=torch.float64, requires_grad=True)
        self.w = torch.randn(CLASSES, WIDTH, dtype=torch.float64, requires_grad=True)
        self.teacher = 3 * torch.randn(BATCH, CLASSES, dtype=torch.float64)
        self.labels = torch.arange(BATCH) % CLASSES

    def force(self, name: str, at: Tensor) -> Tensor:
        """Negative gradient of a loss, summed over the batch."""
        z = self.h @ self.w.T
        loss = cross_entropy(z, self.labels) if name == "ce" else LOSSES[name](z, self.teacher, TAU)
        return -torch.autograd.grad(BATCH * loss, at)[0]

    def pulls(self, name: str) -> Tensor:
        """How much each sample pulls each class vector (B x C), as the propositions have it."""
        z = (self.h @ self.w.T).detach()
        if name == "ce":
            p = z.exp() / z.exp().sum(1, keepdim=True)
            return torch.stack([(c == self.labels).double() - p[:, c] for c in range(CLASSES)], 1)
        if name == "binarykl":
            return TAU * ((self.teacher / TAU).sigmoid() - (z / TAU).sigmoid())
        return TAU * (0.5 - ((z - self.teacher) / TAU).sigmoid())


@pytest.mark.parametrize("name", ["ce", *LOSSES])
def test_gradient_of_class_vectors_is_pull_and_push(name: str) -> None:
    head = OneHead()
    forces, weight, h = head.force(name, head.w), head.pulls(name), head.h.detach()
    for k in range(CLASSES):
        own, others = head.labels == k, head.labels != k
        pull = sum(weight[i, k] * h[i] for i in own.nonzero()[:, 0])
        push = sum(weight[j, k] * h[j] for j in others.nonzero()[:, 0])
        torch.testing.assert_close(forces[k], pull + push)


@pytest.mark.parametrize("name", ["ce", *LOSSES])
def test_gradient_of_features_is_pull_and_push(name: str) -> None:
    head = OneHead()
    forces, weight, w = head.force(name, head.h), head.pulls(name), head.w.detach()
    for i, c in enumerate(head.labels.tolist()):
        pull = weight[i, c] * w[c]
        push = sum(weight[i, k] * w[k] for k in range(CLASSES) if k != c)
        torch.testing.assert_close(forces[i], pull + push)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0])
@dhkd_losses
def test_gradient_of_the_sum_is_the_sum_of_the_forces(name: str, alpha: float) -> None:
    head = OneHead()
    z = head.h @ head.w.T
    loss = cross_entropy(z, head.labels) + alpha * LOSSES[name](z, head.teacher, TAU)
    for at in (head.w, head.h):
        (found,) = torch.autograd.grad(BATCH * loss, at, retain_graph=True)
        torch.testing.assert_close(found, -(head.force("ce", at) + alpha * head.force(name, at)))


def test_labels_pull_their_own_class_and_push_the_others_always() -> None:
    head = OneHead()
    own = torch.nn.functional.one_hot(head.labels, CLASSES).bool()
    assert (head.pulls("ce")[own] > 0).all()
    assert (head.pulls("ce")[~own] < 0).all()


@dhkd_losses
def test_the_teacher_may_pull_and_push_the_other_way(name: str) -> None:
    """The conflict: coefficients against those of the labels, and larger, so that the sum turns round."""
    head = OneHead()
    own = torch.nn.functional.one_hot(head.labels, CLASSES).bool()
    weight = head.pulls(name)
    assert (weight[own] < 0).any()
    assert (weight[~own] > 0).any()
    assert (head.pulls("ce") * (head.pulls("ce") + weight) < 0).any()


def obstacle(head: OneHead, h_teacher: Tensor) -> Tensor:
    """Proposition 3's force, C x D: `tau sum_j (1/2 - w_k(h_s, h_t)) (h_s - h_t)`."""
    h, w = head.h.detach(), head.w.detach()
    gap = h - h_teacher
    share = (gap @ w.T / TAU).sigmoid()
    return TAU * torch.stack([((0.5 - share[:, k, None]) * gap).sum(0) for k in range(CLASSES)])


def test_proposition_three_takes_the_teachers_logits_for_the_students_classifier() -> None:
    """It holds where z_t = w h_t with the student's own w, through which the gradient flows as well.

    A teacher's logits are constants, so what training meets is the pull and push of the test above.
    """
    head = OneHead()
    h_teacher = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    z = (head.h - h_teacher) @ head.w.T
    (found,) = torch.autograd.grad(BATCH * binary_kl_norm(z, torch.zeros_like(z), TAU), head.w)
    force = obstacle(head, h_teacher)
    torch.testing.assert_close(-found, force)
    head.teacher = (h_teacher @ head.w.T).detach()
    assert not torch.allclose(head.force("binarykl_norm", head.w), force)


@pytest.mark.parametrize("seed", range(5))
def test_lemma_one_that_force_always_works_against_the_class_vectors(seed: int) -> None:
    head = OneHead(seed)
    force = obstacle(head, torch.randn(BATCH, WIDTH, dtype=torch.float64))
    assert ((force * head.w.detach()).sum(1) <= 0).all()


def test_lemma_one_does_not_hold_for_constant_logits_of_a_teacher() -> None:
    inner = [
        (head.force("binarykl_norm", head.w) * head.w.detach()).sum(1) for head in map(OneHead, range(5))
    ]
    assert any((each > 0).any() for each in inner)


def test_binary_kl_norm_pulls_by_the_gap_alone_and_binary_kl_does_not() -> None:
    """Section 3.3's reason for the second form: equal gaps from any teacher logits give equal gradients."""
    teacher = torch.tensor([[-4.0, -1.0, 0.0, 2.0, 6.0]], dtype=torch.float64)
    for loss, same in ((binary_kl_norm, True), (binary_kl, False)):
        z = (teacher + 0.3).requires_grad_()
        (grad,) = torch.autograd.grad(loss(z, teacher, TAU), z)
        assert torch.allclose(grad, grad[0, 0].expand_as(grad)) == same


# ---- Eq. 6 and the two readings of it


def test_with_two_heads_no_class_vector_gets_both_gradients() -> None:
    """Why Eq. 6, written for one w_k, needs `align_on`: each head is reached by one loss only."""
    toy = Toy()
    n = len(toy.parameters.backbone)
    shared, classifier, extra = slice(n), slice(n, n + 2), slice(n + 2, None)
    ce, kd = toy.grads("ce"), toy.grads("kd")
    assert None not in [*ce[shared], *kd[shared], *ce[classifier], *kd[extra]]
    assert kd[classifier] == [None, None]
    assert ce[extra] == [None, None]
    assert "Eq. 6 is written for class vectors" in (DHKD.__doc__ or "")


@pytest.mark.parametrize("align_on", ["backbone", "classifier"])
@pytest.mark.parametrize("seed", range(4))
def test_aligned_gradient_never_works_against_the_labels(align_on: str, seed: int) -> None:
    toy = Toy(seed, align_on=align_on)
    n = len(toy.parameters.backbone)
    ce, kd, both = toy.grads("ce"), toy.grads("kd"), toy.backward()
    assert ce[n] is not None
    if align_on == "backbone":
        pairs = [(flat(both[:n]) - flat(ce[:n]), flat(ce[:n]), flat(kd[:n]))]
    else:
        pairs = list(zip(both[-2], ce[n], kd[-2], strict=True))  # row k of h2, row k of h1
    for kept, main, before in pairs:
        inner, after = before @ main, kept @ main
        assert after >= -1e-12
        if inner >= 0:
            torch.testing.assert_close(kept, before)
        else:
            torch.testing.assert_close(kept, before - inner / main.square().sum() * main)
            assert abs(after) <= 1e-12 * main.norm() * before.norm()
        removed = before - kept
        assert abs(removed @ kept) <= 1e-12 * before.square().sum()  # the smallest change that does it


def test_alignment_on_class_vectors_leaves_the_backbone_the_plain_sum() -> None:
    toy = conflict(agree=False)
    n = len(toy.parameters.backbone)
    toy.method.config = DHKD.Config(align_on="classifier")
    torch.testing.assert_close(flat(toy.backward()[:n]), flat(add(toy.grads("ce")[:n], toy.grads("kd")[:n])))
