"""MICC's margins, its loss against the paper's statements, and its pipeline against lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Progress
from kdpipe.evaluation.geometry import contrast
from kdpipe.nn.relations import unit
from kdpipe.recipes.micc import MICC, intra_class_losses, margins
from tests.golden import numpy_micc

NO_TEACHER = Outputs(torch.empty(0))
AT = Progress(0, 1)
D, CLASSES = 6, 3
MODEL = nn.Linear(1, 1)


def test_margin_of_each_sample() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(50, CLASSES, dtype=torch.float64), torch.randint(CLASSES, (50,))
    expected = [
        numpy_micc.margin(p, y) for p, y in zip(logits.softmax(1).numpy(), labels.tolist(), strict=True)
    ]
    found = margins(logits, labels)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    assert torch.equal(found > 0, logits.argmax(1) == labels)


def test_margin_of_huge_and_of_equal_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, 0]], dtype=torch.bfloat16)
    assert margins(logits, torch.tensor([0, 0, 0])).tolist() == [1, -1, 0]
    assert not margins(logits.float().requires_grad_(), torch.tensor([0, 0, 0])).requires_grad


def losses(x: Tensor, positives: Tensor, labels: list[int], index: list[int] | None = None) -> Tensor:
    return intra_class_losses(
        x, positives, torch.tensor(labels), torch.tensor(index or list(range(len(labels))))
    )


def test_only_other_samples_of_the_class_are_negatives() -> None:
    torch.manual_seed(0)
    x, positives = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True).unbind()
    found = losses(x, positives, [0, 1, 0, 2])
    np.testing.assert_allclose(
        found.detach(),
        numpy_micc.contrasts(x.detach().numpy(), positives.detach().numpy(), [0, 1, 0, 2]),
        rtol=1e-12,
    )
    assert found[1] == 0
    assert found[3] == 0
    (gradient,) = torch.autograd.grad(found[0], x)
    assert gradient[[1, 3]].abs().sum() == 0
    assert gradient[[0, 2]].abs().sum(1).min() > 0


def test_two_views_of_one_sample_are_no_negatives_of_each_other() -> None:
    x = torch.randn(3, D)
    assert losses(x[:2], x[1:], [0, 0], [7, 7]).tolist() == [0, 0]


def test_a_step_brings_the_views_together_and_the_class_apart() -> None:
    torch.manual_seed(0)
    views = torch.randn(2, 5, D, requires_grad=True)
    x, positives = unit(views).unbind()
    losses(x, positives, [0] * 5).sum().backward()
    after = unit(views.detach() - 0.1 * views.grad)

    def likeness(v: Tensor) -> tuple[Tensor, Tensor]:
        products = v[0] @ v[0].T
        return (v[0] * v[1]).sum(), products.sum() - products.trace()

    (own, others), (own_after, others_after) = likeness(unit(views.detach())), likeness(after)
    assert own_after > own
    assert others_after < others


@pytest.mark.parametrize("m", [1, 7, 100])
def test_range_for_vectors_of_length_one(m: int) -> None:
    """The bounds that Theorem 2's constants are made of, and both are met."""
    x = torch.zeros(m + 1, D, dtype=torch.float64)
    x[:, 0] = 1
    low, high = math.log1p(m * math.exp(-2)), math.log1p(m * math.exp(2))
    assert losses(x, -x, [0] * (m + 1))[0].item() == pytest.approx(high)
    x[0] *= -1
    assert losses(x, x, [0] * (m + 1))[0].item() == pytest.approx(low)
    torch.manual_seed(0)
    views = unit(torch.randn(2, m + 1, D, dtype=torch.float64))
    found = losses(*views, [0] * (m + 1))
    assert low <= found.min()
    assert found.max() <= high


def test_theorem_1_holds_in_the_limit() -> None:
    """d_Intra / d_Inter = K e^L_Intra / e^L_Inter as n, m grow with n / m = K."""
    gaps = []
    for m in (10, 100, 1000):
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(3 * m + 1, D, dtype=torch.float64, generator=rng)
        x[: m + 1, 0] += 1
        x = unit(x)
        mine = losses(x[: m + 1], x[: m + 1], [0] * (m + 1))[0]
        theirs = losses(torch.cat([x[:1], x[m + 1 :]]), torch.cat([x[:1], x[m + 1 :]]), [0] * (2 * m + 1))[0]
        likeness = (x @ x[0]).exp()
        ratio = likeness[1 : m + 1].mean() / likeness[m + 1 :].mean()
        assert (mine.expm1() / theirs.expm1() * 2).item() == pytest.approx(ratio.item())  # Eq. 12, exact
        gaps.append(abs((2 * (mine - theirs).exp() / ratio).item() - 1))
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 2e-3


def test_the_trained_loss_is_the_one_that_is_measured() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(20, D, dtype=torch.float64), torch.arange(20) % 4
    measured = contrast(x.numpy(), labels.numpy()).loss_intra
    found = losses(unit(x), unit(x), labels.tolist())
    np.testing.assert_allclose(np.sort(found), np.sort(measured), rtol=1e-9)


@pytest.mark.parametrize("normalise", [True, False])
def test_extreme_vectors(normalise: bool) -> None:
    for x in (torch.zeros(2, D), 1e4 * torch.ones(2, D), torch.tensor([[1e4], [-1e4]]).expand(2, D)):
        views = torch.stack([x, x.flip(0)]).to(torch.bfloat16).requires_grad_()
        found = losses(*(unit(views) if normalise else views), [0, 0])
        found.sum().backward()
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert views.grad.isfinite().all()


def recipe(classes: int = CLASSES, dim: int = D, **settings: Any) -> MICC:
    made = MICC(MICC.Config(**settings))
    shapes = {"embed": (dim,), "logits": (classes,)}
    made.build(MODEL, shapes, DataInfo(classes, torch.zeros(9, dtype=torch.int64)))
    return made


def step(
    made: MICC, views: Tensor, labels: list[int], index: list[int], logits: Tensor | None = None
) -> Tensor:
    """The weighted contrast of embeddings 2 x B x D; without logits, every margin is 1."""
    y = torch.tensor(labels)
    logits = 100 * nn.functional.one_hot(y, CLASSES).float() if logits is None else logits
    s = Outputs(logits, {"embed": views[0]}, (Outputs(logits, {"embed": views[1]}),))
    batch = Batch(torch.zeros(len(y), 1), y, torch.tensor(index), (torch.zeros(len(y), 1),))
    return made.loss(MODEL, s, NO_TEACHER, batch, AT)["intra"]


def test_anchors_wait_until_there_are_enough_and_then_begin_anew() -> None:
    torch.manual_seed(0)
    made, views = recipe(enough=3, lambda_intra=0.5), unit(torch.randn(4, 2, 2, D))
    assert step(made, views[0], [0, 1], [0, 1]) == 0
    assert step(made, views[1], [0, 1], [2, 3]) == 0
    assert sorted(made.waiting_labels.tolist()) == [-1, -1, 0, 0, 1, 1]
    found = step(made, views[2], [0, 2], [4, 5])
    x = views[:3, :, 0]
    torch.testing.assert_close(found, 0.5 * losses(x[:, 0], x[:, 1], [0, 0, 0]).sum() / 2)
    assert sorted(made.waiting_labels.tolist()) == [-1, -1, -1, 1, 1, 2]
    assert step(made, views[3], [0, 0], [6, 7]) == 0  # class 0 has begun anew


@pytest.mark.parametrize("normalise", [True, False])
def test_pipeline_is_that_of_lists(normalise: bool) -> None:
    """Against one list for each class, over many batches, with samples that are sure and unsure."""
    torch.manual_seed(0)
    made = recipe(enough=4, lambda_intra=1, normalise=normalise, delta=0.2)
    queues: dict[int, list[tuple[Tensor, Tensor, int]]] = {c: [] for c in range(CLASSES)}
    fired = 0
    for _ in range(60):
        size = int(torch.randint(2, 9, ()))
        views, logits = torch.randn(2, size, D), torch.randn(size, CLASSES)
        labels, index = torch.randint(CLASSES, (size,)).tolist(), torch.randperm(30)[:size].tolist()
        rho = [numpy_micc.margin(p, y) for p, y in zip(logits.softmax(1).numpy(), labels, strict=True)]
        used = unit(views) if normalise else views
        for i in range(size):
            if rho[i] > 0.2:
                queues[labels[i]].append((used[0, i], used[1, i], index[i]))
        expected = torch.tensor(0.0)
        for c, queue in queues.items():
            if len(queue) >= 4:
                x, positives, whose = zip(*queue, strict=True)
                expected += (
                    losses(torch.stack(x), torch.stack(positives), [c] * len(x), list(whose)).sum() / size
                )
                queues[c] = []
                fired += 1
        torch.testing.assert_close(step(made, views, labels, index, logits), expected)
        waiting = [c for c, queue in queues.items() for _ in queue]
        assert sorted(x for x in made.waiting_labels.tolist() if x >= 0) == waiting
    assert fired > 10


def test_gradient_goes_to_the_batch_alone() -> None:
    torch.manual_seed(0)
    made = recipe(enough=3)
    first, second = (torch.randn(2, 2, D, requires_grad=True) for _ in range(2))
    step(made, first, [0, 0], [0, 1])
    assert not made.waiting.requires_grad
    step(made, second, [0, 1], [2, 3]).backward()
    assert first.grad is None
    assert second.grad[:, 0].abs().sum(1).min() > 0
    assert second.grad[:, 1].abs().sum() == 0


def test_a_pipeline_goes_on_from_its_saved_state() -> None:
    torch.manual_seed(0)
    one, other, views = recipe(enough=3), recipe(enough=3), torch.randn(3, 2, 2, D)
    step(one, views[0], [0, 1], [0, 1])
    other.load_state_dict(one.state_dict())
    for n in (1, 2):
        assert step(one, views[n], [0, 1], [2 * n, 2 * n + 1]) == step(
            other, views[n], [0, 1], [2 * n, 2 * n + 1]
        )


def test_an_image_that_waits_is_no_negative_of_itself() -> None:
    torch.manual_seed(0)
    made, views = recipe(enough=2), torch.randn(2, 2, 2, D)
    step(made, views[0], [0, 1], [0, 1])
    assert step(made, views[1], [0, 1], [0, 1]) == 0
    assert (made.waiting_labels == -1).all()


def test_without_a_pipeline_all_samples_of_the_class_are_negatives() -> None:
    torch.manual_seed(0)
    made, views = recipe(pipeline=False, lambda_intra=1), unit(torch.randn(2, 3, D))
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [9, 0, 0]])  # of class 0, the second is not sure
    found = step(made, views, [0, 0, 1], [0, 1, 2], logits)
    torch.testing.assert_close(found, losses(*views, [0, 0, 1])[0] / 3)
    assert not list(made.buffers())


def test_without_a_margin_every_sample_is_an_anchor() -> None:
    torch.manual_seed(0)
    made, views = recipe(pipeline=False, margin=False, lambda_intra=1), unit(torch.randn(2, 3, D))
    found = step(made, views, [0, 0, 0], [0, 1, 2], torch.tensor([[-1e4, 1e4, 0]] * 3))
    torch.testing.assert_close(found, losses(*views, [0, 0, 0]).mean())


def test_delta_is_exceeded_not_met() -> None:
    torch.manual_seed(0)
    views, logits = torch.randn(2, 2, D), torch.tensor([[1.0, 0, 0]] * 2)
    rho = margins(logits, torch.tensor([0, 0]))[0].item()
    for delta, counts in ((rho, False), (rho - 1e-4, True)):
        found = step(recipe(pipeline=False, delta=delta), views, [0, 0], [0, 1], logits)
        assert bool(found > 0) == counts


def test_logits_can_be_contrasted() -> None:
    torch.manual_seed(0)
    made = recipe(vectors="logits", pipeline=False, margin=False, lambda_intra=1)
    assert made.taps().student == ()
    logits = torch.randn(2, 4, CLASSES)
    y = torch.tensor([0, 0, 1, 1])
    s = Outputs(logits[0], {}, (Outputs(logits[1]),))
    batch = Batch(torch.zeros(4, 1), y, torch.arange(4), (torch.zeros(4, 1),))
    found = made.loss(MODEL, s, NO_TEACHER, batch, AT)["intra"]
    torch.testing.assert_close(found, losses(*unit(logits), y.tolist()).mean())


def test_weight_zero_is_the_standard_recipe() -> None:
    made = recipe(lambda_intra=0)
    images = torch.zeros(2, 1)
    batch = Batch(images, torch.tensor([0, 1]), torch.arange(2), (images + 1,))
    assert made.inputs(batch) == (images,)
    assert set(made.loss(MODEL, Outputs(torch.randn(2, 3)), NO_TEACHER, batch, AT)) == {"ce"}
    assert not list(made.buffers())
