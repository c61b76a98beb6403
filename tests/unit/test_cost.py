"""Counting multiplications, and the fingerprint of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdpipe.core import registry
from kdpipe.nn.cost import Cost, cost, declared_cost, fingerprint, multiply_adds


def test_a_convolution_by_its_formula() -> None:
    conv = nn.Conv2d(6, 8, (3, 5), stride=2, padding=1, groups=2)
    height, width = (10 + 2 - 3) // 2 + 1, (14 + 2 - 5) // 2 + 1
    assert multiply_adds(conv, (6, 10, 14)) == 8 * height * width * (6 // 2) * 3 * 5


def test_a_transposed_convolution_by_its_formula() -> None:
    conv = nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1)
    assert multiply_adds(conv, (6, 5, 5)) == 5 * 5 * 6 * 8 * 4 * 4


def test_only_products_count() -> None:
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 7))
    assert multiply_adds(layers, (3, 4, 4)) == 12 * 7


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return registry.models.get(name).build(100, 3)


def resnet_by_hand(blocks: int, classes: int, side: int) -> int:
    """Multiplications of a narrow CIFAR resnet with 1 x 1 shortcuts."""
    total = side**2 * 3 * 16 * 9 + 64 * classes
    inputs = 16
    for stage, width in enumerate((16, 32, 64)):
        area = (side >> stage) ** 2
        total += area * 9 * (inputs * width + (2 * blocks - 1) * width**2)
        total += area * inputs * width if inputs != width else 0
        inputs = width
    return total


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3), ("resnet56", 9)])
@pytest.mark.parametrize("side", [32, 64])
def test_a_resnet_by_hand(name: str, blocks: int, side: int) -> None:
    model = registry.models.get(name).build(100, 3)
    assert multiply_adds(model, (3, side, side)) == resnet_by_hand(blocks, 100, side)


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # as the papers round them, at 1000 classes
        ("imagenet_resnet18", 1814),
        ("imagenet_resnet50", 4089),
        ("imagenet_mobilenetv1", 569),
        ("imagenet_mobilenetv2", 301),
        ("imagenet_shufflenetv2", 145),
    ],
)
def test_known_networks_cost_what_is_known(name: str, millions: int) -> None:
    assert round(declared_cost(registry.models.get(name), 1000).multiply_adds / 1e6) == millions


@pytest.mark.parametrize("name", registry.models.names())
def test_agrees_with_pytorchs_counter(name: str) -> None:
    """An independent count, where PyTorch dispatches the operations; it counts each addition too."""
    spec, model = registry.models.get(name), on_meta(name).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, spec.side, spec.side, device="meta"))
    assert 2 * multiply_adds(model, (3, spec.side, spec.side)) == counter.get_total_flops()


def test_the_network_and_the_random_state_stay_as_they_were() -> None:
    model = registry.models.get("imagenet_mobilenetv2").build(10, 3).train()  # it has a dropout
    model.get_submodule("features.0").eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    cost(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_declared_cost_is_that_of_real_weights() -> None:
    spec = registry.models.get("shufflenetv1")
    real = cost(spec.build(10, 1), (1, 32, 32))
    assert declared_cost(spec, 10, 1) == real
    assert isinstance(real, Cost)
    assert real.parameters == spec.params_at(10) - 2 * 24  # two channels less in the stem


def layers(classes: int = 5, bias: bool = True, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, kernel, bias=bias), nn.Flatten(), nn.Linear(16, classes))


def test_the_fingerprint_is_of_the_structure_not_of_the_weights() -> None:
    assert fingerprint(layers()) == fingerprint(layers())
    assert fingerprint(layers()).startswith(f"{4 * 28 + 5 * 17}-")
    named = nn.ModuleDict({"a": layers()})
    different = [layers(), layers(classes=6), layers(bias=False), layers(kernel=1), named]
    assert len({fingerprint(model) for model in different}) == len(different)


def test_registered_networks_differ_in_their_fingerprints() -> None:
    found = {fingerprint(on_meta(name)) for name in registry.models.names()}
    assert len(found) == len(registry.models.names())


def test_fingerprints_do_not_move() -> None:
    """A change of structure under an old name needs a new revision, and then new values here."""
    assert {name: fingerprint(on_meta(name)) for name in PINNED} == PINNED


PINNED = {
    "resnet8x4": "1233540-6cfd514df58b",
    "wrn_16_2": "703284-26f9310b77cb",
    "resnet50": "23705252-13bb09321c5b",
    "vgg13": "9462180-86b9c338b9db",
    "mobilenetv2": "812836-4f50e9ebb8f9",
    "shufflenetv1": "949258-0d87b45d0a9e",
    "shufflenetv2": "1355528-d2c6860f03cc",
    "imagenet_mobilenetv1": "3309476-de2eb3f8c9a8",
    "two_layer_20": "61440-b9de4dbb7100",
}
