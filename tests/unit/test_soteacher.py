"""SoTeacher's constants against brute force, its schedules and its averages."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Memory, Outputs, Progress
from kdpipe.core.errors import ConfigError
from kdpipe.recipes.soteacher import (
    SCHEDULES,
    SoTeacher,
    conv_lipschitz,
    entrywise,
    linear_lipschitz,
    lipschitz_loss,
    norm_lipschitz,
)


def induced(operator: nn.Module, shape: tuple[int, ...]) -> float:
    """1-norm of a linear operator by brute force: the largest absolute column sum of its matrix."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        columns = operator(basis) - operator(torch.zeros_like(basis))
    return float(columns.flatten(1).abs().sum(1).max())


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, (1, 3)])
def test_convolution(kernel: Any, groups: int, stride: int, dilation: int, padding: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups).double()
    assert conv_lipschitz(conv).item() == pytest.approx(induced(conv, (4, 15, 15)), rel=1e-12)
    assert entrywise(conv) >= conv_lipschitz(conv)


def test_convolution_of_unequal_strides() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, (3, 4), stride=(1, 2), dilation=(2, 1)).double()
    assert conv_lipschitz(conv).item() == pytest.approx(induced(conv, (2, 12, 12)), rel=1e-12)


def test_convolution_in_channels_last_memory() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, groups=2)
    expected = conv_lipschitz(conv)
    torch.testing.assert_close(conv_lipschitz(conv.to(memory_format=torch.channels_last)), expected)


def test_convolution_on_a_tiny_map_is_bounded() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 5, padding=2).double()
    assert induced(conv, (2, 2, 2)) < conv_lipschitz(conv).item()


def test_linear_and_norm() -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(5, 3).double(), nn.BatchNorm1d(6).double().eval()
    assert linear_lipschitz(linear).item() == pytest.approx(induced(linear, (5,)), rel=1e-12)
    with torch.no_grad():
        norm.weight.normal_()
        norm.running_var.uniform_(0.1, 2)
    assert norm_lipschitz(norm).item() == pytest.approx(induced(norm, (6,)), rel=1e-12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


def test_network_is_the_sum_of_its_trainable_components() -> None:
    model = network()
    conv, norm, _, _, linear = model
    expected = conv_lipschitz(conv) + norm_lipschitz(norm) + linear_lipschitz(linear)
    torch.testing.assert_close(lipschitz_loss(model), expected)
    lipschitz_loss(model).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"0.weight", "1.weight", "4.weight"}


NO_TEACHER = Outputs(torch.empty(0))
DATA = DataInfo(4, torch.zeros(6, dtype=torch.int64))


def recipe(model: nn.Module | None = None, **settings: Any) -> SoTeacher:
    made = SoTeacher(SoTeacher.Config(**settings))
    made.build(model or nn.Linear(1, 1), {"logits": (4,)}, DATA)
    made.memory = {name: Memory.zeros(6, shape) for name, shape in made.per_sample(DATA).items()}
    return made


def turn(made: SoTeacher) -> None:
    """An epoch has ended."""
    made.memory = {name: Memory(m.future, m.future.clone()) for name, m in made.memory.items()}


def step(made: SoTeacher, logits: Tensor, index: list[int], epoch: int, epochs: int = 4) -> dict[str, Tensor]:
    chosen = torch.tensor(index)
    batch = Batch(torch.zeros(len(index), 1), torch.zeros_like(chosen), chosen)
    return made.loss(nn.Linear(1, 1), Outputs(logits[chosen]), NO_TEACHER, batch, Progress(epoch, epochs))


def test_average_of_all_earlier_predictions() -> None:
    torch.manual_seed(0)
    made = recipe()
    logits = 3 * torch.randn(4, 6, 4)
    for epoch in range(4):
        order = torch.randperm(6).tolist()
        for index in (order[:4], order[4:]):
            found = step(made, logits[epoch], index, epoch)["consistency"]
            now, past = logits[epoch, index].softmax(1), logits[:epoch, index].softmax(2)
            expected = epoch / 4 * (now - past.mean(0)).square().sum(1).mean() if epoch else torch.tensor(0.0)
            torch.testing.assert_close(found, expected)
        turn(made)
    torch.testing.assert_close(made.memory["average"].past, logits.softmax(2).mean(0))


def test_consistency_is_the_mean_squared_error_times_classes() -> None:
    torch.manual_seed(0)
    made, logits = recipe(), torch.randn(2, 6, 4)
    step(made, logits[0], list(range(6)), 0)
    turn(made)
    found = step(made, logits[1], list(range(6)), 2)["consistency"]
    torch.testing.assert_close(
        found, 0.5 * 4 * nn.functional.mse_loss(logits[1].softmax(1), logits[0].softmax(1))
    )


def test_a_sample_without_a_past_is_not_pulled_anywhere() -> None:
    assert step(recipe(), torch.randn(6, 4), [0, 1], 0)["consistency"] == 0


def test_no_gradient_through_the_average() -> None:
    made = recipe()
    first, second = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    step(made, first, list(range(6)), 0)
    turn(made)
    sum(step(made, second, list(range(6)), 2).values()).backward()
    assert first.grad is None
    assert second.grad is not None
    assert not made.memory["average"].future.requires_grad


def test_ablations_leave_their_term_out() -> None:
    assert set(step(recipe(lambda_lr=0), torch.zeros(6, 4), [0], 1)) == {"ce", "consistency"}
    no_cr = recipe(lambda_cr=0)
    assert set(step(no_cr, torch.zeros(6, 4), [0], 1)) == {"ce", "lipschitz"}
    assert not list(no_cr.buffers())


def test_unknown_layers_are_refused_only_where_they_matter() -> None:
    model = nn.Sequential(nn.LayerNorm(3))
    with pytest.raises(ConfigError, match=r"'0' \(LayerNorm\)"):
        recipe(model)
    recipe(model, lambda_lr=0)
    recipe(network())


@pytest.mark.parametrize(
    ("name", "weights"),  # at t = 0, T/4, T/3, T/2, 2T/3, 3T/4, T
    [
        ("linear", [0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1]),
        ("cosine", [0, np.sin(np.pi / 8), 0.5, np.sqrt(0.5), np.sqrt(0.75), np.cos(np.pi / 8), 1]),
        ("cyclic", [0, np.sqrt(7) / 4, np.sqrt(5) / 3, np.sqrt(0.75), np.sqrt(8) / 3, np.sqrt(15) / 4, 1]),
        ("piecewise", [0, 0, 0, 0.5, 0.5, 1, 1]),
    ],
)
@pytest.mark.parametrize("epochs", [12, 240])
def test_schedules(name: str, weights: list[float], epochs: int) -> None:
    times = [0, epochs // 4, epochs // 3, epochs // 2, 2 * epochs // 3, 3 * epochs // 4, epochs]
    assert [SCHEDULES[name](t / epochs) for t in times] == pytest.approx(weights, abs=1e-12)
    grid = [SCHEDULES[name](t / epochs) for t in range(epochs + 1)]
    assert all(a <= b for a, b in pairwise(grid))


def test_every_schedule_of_the_settings_exists() -> None:
    for name in SCHEDULES:
        assert SoTeacher.Config(schedule=name).schedule == name
