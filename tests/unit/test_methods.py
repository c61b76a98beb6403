"""How the methods weigh their terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdpipe.api import Batch, DataInfo, Method, Outputs, Progress
from kdpipe.methods.dkd import DKD, others_loss, target_loss
from kdpipe.methods.fitnet import FitNet, hint_loss
from kdpipe.methods.kd import KD
from kdpipe.methods.scratch import Scratch
from kdpipe.nn.logits import cross_entropy, kl

torch.manual_seed(0)
LABELS = torch.tensor([0, 3, 2])
BATCH = Batch(torch.zeros(3, 1, 2, 2), LABELS, torch.arange(3))
STUDENT = Outputs(torch.randn(3, 4), {"stage2": torch.randn(3, 2, 4, 4)})
TEACHER = Outputs(torch.randn(3, 4), {"stage2": torch.randn(3, 5, 4, 4)})
CE = cross_entropy(STUDENT.logits, LABELS)


def terms(method: Method, epoch: int = 0) -> dict[str, Tensor]:
    return method.loss(STUDENT, TEACHER, BATCH, Progress(epoch, 240))


def assert_terms(found: dict[str, Tensor], **expected: Tensor) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_scratch_needs_no_teacher() -> None:
    found = Scratch().loss(STUDENT, Outputs(torch.empty(0)), BATCH, Progress(0, 1))
    assert_terms(found, ce=CE)
    assert not Scratch.teacher


def test_kd() -> None:
    divergence = kl(STUDENT.logits, TEACHER.logits, 4)
    assert_terms(terms(KD()), ce=0.1 * CE, kd=0.9 * divergence)
    half = KD.Config(gamma=0.5, alpha=0.5, temperature=2)
    assert_terms(terms(KD(half)), ce=0.5 * CE, kd=0.5 * kl(STUDENT.logits, TEACHER.logits, 2))


@pytest.mark.parametrize(
    ("warmup", "epoch", "weight"),
    [(20, 0, 0.05), (20, 9, 0.5), (20, 19, 1), (20, 20, 1), (20, 239, 1), (1, 0, 1), (0, 0, 1)],
)
def test_dkd_warms_up_by_epochs_counted_from_one(warmup: int, epoch: int, weight: float) -> None:
    given = STUDENT.logits, TEACHER.logits, LABELS, 4
    expected = {"tckd": weight * 1.5 * target_loss(*given), "nckd": weight * 8 * others_loss(*given)}
    assert_terms(terms(DKD(DKD.Config(alpha=1.5, warmup=warmup)), epoch), ce=CE, **expected)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.7, "beta": 50, "gamma": 2, "relu": False}], ids=str)
def test_fitnet(settings: dict[str, Any]) -> None:
    method = FitNet(FitNet.Config(**settings)).eval()
    assert method.taps().student == method.taps().teacher == ("stage2",)
    method.build({"stage2": (2, 4, 4)}, {"stage2": (5, 4, 4)}, DataInfo(4, LABELS))
    hint = hint_loss(method.regressor(STUDENT["stage2"]), TEACHER["stage2"])
    expected = {"ce": settings.get("gamma", 1) * CE, "hint": settings.get("beta", 100) * hint}
    if "alpha" in settings:
        expected["kd"] = 0.7 * kl(STUDENT.logits, TEACHER.logits, 4)
    assert_terms(terms(method), **expected)
