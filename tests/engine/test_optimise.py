"""Schedules as the protocols state them."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdpipe.core.specs import Protocol
from kdpipe.engine.optimise import optimizer, rate


def protocol(**changes):
    base = {"lr": 0.05, "epochs": 240, "batch_size": 64, "milestones": (150, 180, 210)}
    return Protocol(**{**base, **changes})


@pytest.mark.parametrize(
    ("epoch", "drop", "expected"),
    [  # epochs counted from 1, as the papers do
        (150, "after", 0.05),
        (151, "after", 0.005),
        (181, "after", 0.0005),
        (211, "after", 0.00005),
        (149, "at", 0.05),
        (150, "at", 0.005),
        (210, "at", 0.00005),
    ],
)
def test_step_schedule(epoch, drop, expected):
    assert rate(protocol(drop=drop), epoch - 1) == pytest.approx(expected)


def test_cosine_and_constant():
    assert rate(protocol(schedule="cosine"), 0) == 0.05
    assert rate(protocol(schedule="cosine"), 120) == pytest.approx(0.025)
    assert rate(protocol(schedule="constant"), 239) == 0.05


def test_sgd_step_is_the_formula():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    opt = optimizer(protocol(momentum=0.9, weight_decay=0.1), [weight])
    expected, velocity = weight.detach().clone(), torch.zeros(1, 2)
    for _ in range(3):
        opt.zero_grad()
        (weight * torch.tensor([[3.0, 4.0]])).sum().backward()
        opt.step()
        velocity = 0.9 * velocity + torch.tensor([[3.0, 4.0]]) + 0.1 * expected
        expected = expected - 0.05 * velocity
    torch.testing.assert_close(weight.detach(), expected)


def test_decay_on_weights_spares_vectors():
    layer = nn.Linear(3, 2)
    groups = optimizer(protocol(weight_decay=0.1, decay_on="weights"), list(layer.parameters())).param_groups
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decays[id(layer.weight)] == 0.1
    assert decays[id(layer.bias)] == 0.0


def test_adam():
    assert isinstance(optimizer(protocol(optimizer="adam"), [nn.Parameter(torch.zeros(2))]), torch.optim.Adam)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("sgd", lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9, nesterov=True, fused=True)),
        ("adam", lambda w: torch.optim.Adam(w, lr=0.05, fused=True)),
    ],
)
def test_eager_steps_are_torchs_own_bit_for_bit(name, plain):
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    ours = optimizer(protocol(optimizer=name, momentum=0.9, nesterov=name == "sgd"), weights[:1])
    for opt, weight in zip((ours, plain(weights[1:])), weights, strict=True):
        for _ in range(5):
            opt.zero_grad(set_to_none=True)
            (weight.sin() * weight).sum().backward()
            opt.step()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], start)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_does_not_load_the_compiler(name):
    code = f"""
import sys, torch
from kdpipe.core.specs import Protocol
from kdpipe.engine.optimise import optimizer
weight = torch.nn.Parameter(torch.ones(2))
opt = optimizer(Protocol(optimizer={name!r}, lr=0.1, epochs=1, batch_size=2), [weight])
opt.zero_grad(set_to_none=True)
weight.sum().backward()
opt.step()
opt.load_state_dict(opt.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
