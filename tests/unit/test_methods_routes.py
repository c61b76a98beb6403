"""Methods that have other teachers than one network, and methods made of others."""

from __future__ import annotations

import pytest
import torch

from kdpipe.api import Batch, DataInfo, Outputs, Progress
from kdpipe.core.errors import ConfigError
from kdpipe.core.registry import methods
from kdpipe.methods.dml import DML
from kdpipe.methods.rco import RCO, interval_ends, next_anchor
from kdpipe.nn.logits import cross_entropy, kl
from tests.contract.helpers import Bench

LABELS = torch.tensor([0, 3, 2])
BATCH = Batch(torch.zeros(3, 1, 2, 2), LABELS, torch.arange(3))
DATA = DataInfo(4, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("epochs", "count", "ends"),
    [
        (240, 24, tuple(range(10, 241, 10))),
        (7, 3, (3, 5, 7)),
        (3, 24, (1, 2, 3)),
        (5, 1, (5,)),
    ],
)
def test_anchors_end_equal_intervals(epochs: int, count: int, ends: tuple[int, ...]) -> None:
    assert interval_ends(epochs, count) == ends
    assert RCO(RCO.Config(anchors=count)).anchors(epochs) == ends


def never() -> list[float]:
    raise AssertionError("equal intervals need no measurement")


def test_equal_intervals_are_followed_in_step() -> None:
    method = RCO(RCO.Config(anchors=3))
    assert [method.anchor(Progress(e, 6), 3, never) for e in range(6)] == [0, 0, 1, 1, 2, 2]


def test_the_greedy_route_goes_as_far_as_it_can_and_never_back() -> None:
    method = RCO(RCO.Config(anchors=5, choice="greedy", threshold=1.0))
    method.build({}, {}, DATA)
    measured = iter([[0.1, 0.9, 1.1, 2, 3], [0.1, 0.2, 0.3, 0.4, 3], [9, 9, 9, 9, 9], [9, 9, 9, 9, 9], []])
    found = [method.anchor(Progress(e, 10), 5, lambda: [*next(measured), *[0] * 0]) for e in range(8)]
    assert found == [1, 1, 3, 3, 4, 4, 4, 4]


def test_the_last_interval_learns_from_the_last_anchor() -> None:
    assert next_anchor([5.0, 5.0, 5.0], first=0, threshold=1, interval=2) == 2
    assert next_anchor([5.0, 5.0, 5.0], first=1, threshold=1, interval=1) == 1


def test_restarts_run_the_schedule_in_every_interval() -> None:
    method = RCO(RCO.Config(anchors=3, restart=True))
    assert [method.schedule_epoch(Progress(e, 12)) for e in range(12)] == [0, 3, 6, 9] * 3
    assert RCO().schedule_epoch(Progress(7, 12)) == 7


def test_every_network_of_a_cohort_has_its_own_two_terms() -> None:
    torch.manual_seed(0)
    z = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
    found = DML(DML.Config(networks=3, alpha=2)).loss(
        Outputs(z[0]), Outputs(z[1], more=(Outputs(z[2]),)), BATCH, Progress(0, 1)
    )
    assert list(found) == ["ce", "kd", "peer1_ce", "peer1_kd", "peer2_ce", "peer2_kd"]
    torch.testing.assert_close(found["peer1_kd"], kl(z[1], z[0], 1) + kl(z[1], z[2], 1))
    for name, own in (("kd", z[0]), ("peer1_kd", z[1]), ("peer2_ce", z[2])):
        grads = torch.autograd.grad(found[name], z, allow_unused=True, retain_graph=True)
        assert [g is not None for g in grads] == [other is own for other in z]


def test_a_combination_adds_terms_and_counts_the_labels_once() -> None:
    kind = methods.get("fitnet+dkd")
    bench = Bench(kind, kind.Config(fitnet={"gamma": 2}, dkd={"beta": 4}))
    terms = bench.terms()
    assert list(terms) == ["ce", "fitnet_hint", "dkd_tckd", "dkd_nckd"]
    torch.manual_seed(0)
    logits = bench.model(bench.batch.images)
    torch.testing.assert_close(terms["ce"], 2 * cross_entropy(logits, bench.batch.labels))
    assert {n.split(".")[0] for n, _ in bench.objective.named_parameters()} == {"fitnet"}


def test_a_combination_is_the_sum_of_its_members() -> None:
    benches = [Bench(methods.get(name), seed=3) for name in ("kd+fitnet", "kd")]
    benches[1].batch = benches[0].batch
    both, alone = (bench.terms() for bench in benches)
    assert both["ce"].item() == alone["ce"].item()
    assert both["kd"].item() == alone["kd"].item()


def test_published_settings_of_the_members_meet() -> None:
    kind = methods.get("fitnet+dkd")
    row = kind.published_for("cifar100", "wrn_40_2", "wrn_16_2", "soteacher")
    assert row is not None
    assert row.settings["fitnet"]["beta"] == 50
    assert "beta" in row.settings["dkd"]
    assert kind.published_for("digits", "a", "b", "c") is None


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("kd+kd", "twice"),
        ("kd+dhkd", "dhkd cannot"),
        ("dml+kd", "dml cannot"),
        ("kd+scratch", "scratch cannot"),
    ],
)
def test_what_cannot_be_combined(name: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        methods.get(name)
