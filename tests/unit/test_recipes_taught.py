"""CRL's history and ranking, the networks of cross-fitting, born-again and self-distilled teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Memory, Outputs, Progress
from kdpipe.nn.folds import folds
from kdpipe.nn.logits import cross_entropy, kl
from kdpipe.recipes.born_again import BornAgain
from kdpipe.recipes.crl import CONFIDENCES, CRL, ranking_loss, scaled_counts
from kdpipe.recipes.cross_fitting import CrossFitting, outside_loss
from kdpipe.recipes.self_distillation import SelfDistillation, probability_mse

NO_TEACHER = Outputs(torch.empty(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
DATA = DataInfo(4, LABELS)


def batch(index: list[int]) -> Batch:
    chosen = torch.tensor(index)
    return Batch(torch.zeros(len(index), 1), LABELS[chosen], chosen)


def crl(**settings: Any) -> CRL:
    made = CRL(CRL.Config(**settings))
    made.memory = {name: Memory.zeros(8, shape) for name, shape in made.per_sample(DATA).items()}
    return made


def turn(made: CRL) -> None:
    """An epoch has ended."""
    made.memory = {name: Memory(m.future, m.future.clone()) for name, m in made.memory.items()}


# CRL


def test_ranking_by_hand() -> None:
    # c: .5 > 0 (k apart by .2 of .5), 0 < 1 (k in order, apart by .1 of 1), 1 > .5 (k the wrong way round)
    found = ranking_loss(torch.tensor([0.6, 0.4, 0.5]), torch.tensor([0.5, 0.0, 1.0]))
    assert found.item() == pytest.approx((0.3 + 0.9 + (0.5 + 0.1)) / 3)


def test_pairs_in_order_and_far_enough_apart_cost_nothing() -> None:
    correctness = torch.rand(9)
    assert ranking_loss(correctness, correctness).item() == pytest.approx(0, abs=1e-6)
    assert ranking_loss(0.1 + 0.9 * torch.rand(9), torch.full((9,), 0.5)).item() == 0


def test_each_confidence_moves_towards_its_rank() -> None:
    confidence = torch.tensor([0.5, 0.5], requires_grad=True)
    ranking_loss(confidence, torch.tensor([1.0, 0.0])).backward()
    assert confidence.grad is not None
    assert confidence.grad[0] < 0 < confidence.grad[1]


@pytest.mark.parametrize("name", CONFIDENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0, 1, 1e4])
def test_confidences_are_bounded_and_finite(name: str, dtype: torch.dtype, scale: float) -> None:
    logits = (scale * torch.randn(2, 5)).to(dtype).requires_grad_()
    found = CONFIDENCES[name](logits)
    ranking_loss(found, torch.tensor([0.0, 1.0])).backward()
    assert found.dtype == torch.float32
    assert (found.abs() <= 1 + 1e-6).all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_surer_is_more_confident() -> None:
    logits = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    for confidence in CONFIDENCES.values():
        assert confidence(logits).diff().min() > 0


def test_counts_are_shares_of_their_range() -> None:
    counts = torch.tensor([2.0, 4, 6])
    assert scaled_counts(counts, 0.0, 8).tolist() == [0.25, 0.5, 0.75]
    assert scaled_counts(counts, torch.tensor(2.0), 6).tolist() == [0, 0.5, 1]
    assert scaled_counts(torch.tensor([6.0, 6]), torch.tensor(6.0), 6).tolist() == [0, 0]
    assert scaled_counts(torch.zeros(2), 0.0, 0).tolist() == [0, 0]


@pytest.mark.parametrize("correctness", ["min-max", "share"])
def test_history_of_several_epochs(correctness: str) -> None:
    torch.manual_seed(0)
    made, right = crl(correctness=correctness), torch.zeros(8)
    for epoch in range(4):
        logits = torch.nn.functional.one_hot(LABELS, 4) * 2 + torch.randn(8, 4)
        order = torch.randperm(8).tolist()
        low = right.min() if correctness == "min-max" else torch.tensor(0.0)
        shares = (right - low) / max(epoch - float(low), 1)
        for index in (order[:5], order[5:]):
            terms = made.loss(
                nn.Linear(1, 1), Outputs(logits[index]), NO_TEACHER, batch(index), Progress(epoch, 4)
            )
            expected = ranking_loss(logits[index].softmax(1).amax(1), shares[index])
            torch.testing.assert_close(terms["ranking"], expected)
        right += logits.argmax(1) == LABELS
        turn(made)
    assert torch.equal(made.memory["correct"].past, right)
    assert right.unique().numel() > 1


def test_the_first_epoch_ranks_nothing_and_the_weight_counts() -> None:
    logits, everyone = torch.randn(8, 4), list(range(8))

    def terms(made: CRL, epoch: int) -> dict[str, Tensor]:
        for memory in made.memory.values():
            memory.past.copy_(torch.arange(8) % 3 if epoch else torch.zeros(8))
        return made.loss(nn.Linear(1, 1), Outputs(logits), NO_TEACHER, batch(everyone), Progress(epoch, 9))

    assert terms(crl(), 0)["ranking"] == 0
    torch.testing.assert_close(terms(crl(weight=3), 3)["ranking"], 3 * terms(crl(), 3)["ranking"])
    assert set(terms(crl(weight=0), 3)) == {"ce"}
    assert crl(weight=0).per_sample(DATA) == {}


# Cross-fitting


def cross_fitting(number: int) -> CrossFitting:
    made = CrossFitting(CrossFitting.Config(folds=number))
    made.build(nn.Linear(1, 1), {"logits": (4,)}, DATA)
    return made


def test_no_network_learns_its_own_fold() -> None:
    made, fold = cross_fitting(2), folds(LABELS, 2)
    logits = [torch.randn(8, 4, requires_grad=True) for _ in range(2)]
    terms = made.loss(
        nn.Linear(1, 1), Outputs(logits[0]), Outputs(logits[1]), batch(list(range(8))), Progress(0, 1)
    )
    sum(terms.values()).backward()
    for number, own in enumerate(logits):
        assert own.grad is not None
        reached = own.grad.abs().sum(1) > 0
        assert torch.equal(reached, fold != number)


def test_terms_are_named_per_network_and_are_the_mean_over_its_data() -> None:
    made, fold = cross_fitting(3), folds(LABELS, 3)
    outputs = [Outputs(torch.randn(5, 4)) for _ in range(3)]
    index = [7, 1, 4, 2, 6]
    t = Outputs(outputs[1].logits, more=(outputs[2],))
    terms = made.loss(nn.Linear(1, 1), outputs[0], t, batch(index), Progress(0, 1))
    assert list(terms) == ["ce", "peer1_ce", "peer2_ce"]
    for number, term in enumerate(terms.values()):
        rows = [row for row, sample in enumerate(index) if fold[sample] != number]
        expected = cross_entropy(outputs[number].logits[rows], LABELS[index][rows])
        torch.testing.assert_close(term, expected)
    assert (made.folds(), made.peers()) == (3, 2)


def test_a_batch_within_one_fold_teaches_its_network_nothing() -> None:
    logits = torch.full((2, 4), 1e4, requires_grad=True)
    loss = outside_loss(logits, LABELS[:2], torch.tensor([True, True]))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_folds_need_no_state() -> None:
    assert not cross_fitting(2).state_dict()


# Born again


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_labels_and_the_generation_before(gamma: float) -> None:
    made = BornAgain(BornAgain.Config(gamma=gamma, alpha=2, temperature=4))
    s, t = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    terms = made.loss(nn.Linear(1, 1), Outputs(s), Outputs(t), batch(list(range(8))), Progress(0, 1))
    torch.testing.assert_close(terms["kd"], 2 * kl(s, t, 4))
    assert ("ce" in terms) == bool(gamma)
    if gamma:
        torch.testing.assert_close(terms["ce"], gamma * cross_entropy(s, LABELS))
    sum(terms.values()).backward()
    assert t.grad is None


# Self-distillation


def terms_of(s: Tensor, t: Tensor, **settings: Any) -> dict[str, Tensor]:
    made = SelfDistillation(SelfDistillation.Config(**settings))
    taught = Outputs(t) if made.generations() else NO_TEACHER
    return made.loss(nn.Linear(1, 1), Outputs(s), taught, batch(list(range(8))), Progress(0, 1))


def test_the_weighted_target_gives_the_same_gradient() -> None:
    # footnote 8: the two distances differ from the distance to the weighted target by a constant,
    # alpha (1 - alpha) |y_1 - y_2|^2 here, where the paper prints it without the factor of its halves
    s, t = torch.randn(8, 4, dtype=torch.float64, requires_grad=True), torch.randn(8, 4, dtype=torch.float64)
    onehot = nn.functional.one_hot(LABELS, 4).double()
    both = sum(terms_of(s, t, alpha=0.3).values())
    one = probability_mse(s, 0.3 * onehot + 0.7 * t.softmax(1))
    torch.testing.assert_close(both - one, 0.21 * ((onehot - t.softmax(1)) ** 2).mean())
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (both, one)))


def test_the_first_step_needs_no_network_before_it() -> None:
    s = torch.randn(8, 4, requires_grad=True)
    (name,) = terms_of(s, s, alpha=1.0, generations=0)
    assert name == "labels"
    assert SelfDistillation(SelfDistillation.Config(generations=3)).first() == (
        "self_distillation",
        {"alpha": 1.0, "generations": 0, "loss": "mse", "weights": "new"},
    )


def test_each_step_draws_its_own_weights_unless_told_otherwise() -> None:
    drawn = [
        [SelfDistillation(SelfDistillation.Config(generations=g, weights=w)).draw() for g in range(3)]
        for w in ("new", "same")
    ]
    assert drawn == [[0, 1, 2], [0, 0, 0]]


def test_without_labels_the_step_before_is_a_fixed_point() -> None:
    s = torch.randn(8, 4, requires_grad=True)
    for loss in ("mse", "kl"):
        (value,) = terms_of(s, s.detach().clone(), alpha=0.0, loss=loss).values()
        assert value.item() == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(torch.autograd.grad(value, s)[0], torch.zeros(8, 4))
