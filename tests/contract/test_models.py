"""What every registered network promises, checked against real tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import ModelSpec
from kdpipe.core import registry
from kdpipe.models import wide_resnet
from kdpipe.nn.fold import fold_batch_norm
from kdpipe.nn.layers import global_average
from kdpipe.nn.taps import catch, shapes

SPECS = [*(spec for _, spec in registry.models.items()), wide_resnet.family("wrn_10_1")]


def build(spec: ModelSpec, num_classes: int = 10, channels: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec.build(num_classes, channels)


def images(side: int = 32, batch: int = 3, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module) -> nn.Module:
    """The model in eval mode with batch-norm statistics and weights as after some training."""
    draw = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
    return model.eval()


def assert_near(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return request.param


@pytest.mark.parametrize("num_classes", [10, 100])
def test_parameter_count_is_the_declared_one(spec: ModelSpec, num_classes: int) -> None:
    parameters = build(spec, num_classes).parameters()
    assert sum(p.numel() for p in parameters if p.requires_grad) == spec.params_at(num_classes)


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (8, 1), (64, 3)])
def test_taps_are_as_declared(spec: ModelSpec, side: int, channels: int) -> None:
    model = settled(build(spec, channels=channels))
    with torch.no_grad():
        out = catch(model, spec, list(spec.taps))(images(side, 2, channels))
    assert out.logits.shape == (2, 10)
    assert list(out.taps) == list(spec.taps)
    for name, tap in spec.taps.items():
        value = out[name]
        assert value.shape[:2] == (2, tap.channels), name
        if tap.kind == "vector":
            assert value.dim() == 2, name
        else:
            assert value.shape[2:] == (side // tap.stride, side // tap.stride), name
        if tap.kind != "vector":
            assert (value.min() >= 0) == (tap.kind == "relu"), name


def test_has_the_taps_of_the_interface(spec: ModelSpec) -> None:
    assert spec.stages == [f"stage{n}" for n in range(1, len(spec.stages) + 1)]
    assert spec.stages
    assert spec.taps["embed"].kind == "vector"


def test_taps_are_declared_in_the_order_of_the_network(spec: ModelSpec) -> None:
    model, reached = build(spec).eval(), []
    for name, tap in spec.taps.items():
        module = model.get_submodule(tap.module)
        if tap.side == "input":
            module.register_forward_pre_hook(lambda *_, name=name: reached.append(name))
        else:
            module.register_forward_hook(lambda *_, name=name: reached.append(name))
    with torch.no_grad():
        model(images())
    assert reached == list(spec.taps)


def test_pre_tap_then_relu_is_the_tap(spec: ModelSpec) -> None:
    model = settled(build(spec))
    with torch.no_grad():
        out = catch(model, spec, list(spec.taps))(images())
    for stage in spec.stages:
        before = f"{stage}.pre"
        assert (before in spec.taps) == (spec.taps[stage].kind == "relu")
        if before in spec.taps:
            assert out[before].min() < 0
            assert torch.equal(out[before].relu(), out[stage])


def test_classifier_reads_embed(spec: ModelSpec) -> None:
    model = build(spec).eval()
    with torch.no_grad():
        out = catch(model, spec, ["embed"])(images())
        assert torch.equal(model.get_submodule(spec.classifier)(out["embed"]), out.logits)


def test_taps_change_no_bit_of_the_logits(spec: ModelSpec) -> None:
    model = build(spec).eval()
    with torch.no_grad():
        plain = model(images())
        assert torch.equal(catch(model, spec, [])(images()).logits, plain)
        assert torch.equal(catch(model, spec, list(spec.taps))(images()).logits, plain)


def test_every_parameter_gets_a_gradient(spec: ModelSpec) -> None:
    model = build(spec).train()
    nn.functional.cross_entropy(model(images(batch=4)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_one_image_alone_gives_what_it_gives_in_a_batch(spec: ModelSpec) -> None:
    model = build(spec).eval()
    with torch.no_grad():
        assert_near(model(images()[:1]), model(images())[:1])


def test_the_seed_decides_the_weights(spec: ModelSpec) -> None:
    one, same, other = (build(spec, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = [key for key in one if key.endswith("weight") and one[key].dim() > 1]
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


def test_channels_last_gives_the_same(spec: ModelSpec) -> None:
    model = settled(build(spec))
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_near(other(images().contiguous(memory_format=torch.channels_last)), model(images()))


def test_folding_keeps_logits_and_taps(spec: ModelSpec) -> None:
    model = settled(build(spec))
    folded = fold_batch_norm(model)
    with torch.no_grad():
        wanted = catch(model, spec, list(spec.taps))(images())
        found = catch(folded, spec, list(spec.taps))(images())
    assert_near(found.logits, wanted.logits)
    for name in spec.taps:
        assert_near(found[name], wanted[name])


def test_shapes_match_the_declaration(spec: ModelSpec) -> None:
    found = shapes(build(spec), spec, list(spec.taps), (3, 32, 32))
    assert found.pop("logits") == (10,)
    for name, tap in spec.taps.items():
        side = 32 // tap.stride if tap.stride else None
        assert found[name] == ((tap.channels,) if side is None else (tap.channels, side, side))


def test_average_pool_has_the_bits_of_the_published_one() -> None:
    maps = torch.randn(4, 64, 8, 8, generator=torch.Generator().manual_seed(3))
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = maps.contiguous(memory_format=layout)
        assert torch.equal(global_average(laid), nn.AvgPool2d(8)(laid).flatten(1))


def test_resnet_keys_are_the_published_ones() -> None:
    keys = set(build(registry.models.get("resnet8")).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in norm)}
    for stage in (1, 2, 3):
        block = f"layer{stage}.0"
        wanted |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
        wanted |= {f"{block}.{bn}.{n}" for bn in ("bn1", "bn2") for n in norm}
        if stage > 1:
            wanted |= {f"{block}.downsample.0.weight", *(f"{block}.downsample.1.{n}" for n in norm)}
    assert keys == wanted


def test_wide_resnet_keys_are_the_published_ones() -> None:
    keys = set(build(registry.models.get("wrn_16_2")).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in norm)}
    for stage in (1, 2, 3):
        wanted.add(f"block{stage}.layer.0.convShortcut.weight")
        for n in (0, 1):
            block = f"block{stage}.layer.{n}"
            wanted |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
            wanted |= {f"{block}.{bn}.{part}" for bn in ("bn1", "bn2") for part in norm}
    assert keys == wanted


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_initial_weights_have_the_published_spread(name: str) -> None:
    model = build(registry.models.get(name))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    if name.startswith("wrn"):
        assert not model.get_submodule("fc").bias.any()


@pytest.mark.parametrize("name", ["wrn_16", "wrn_15_2", "wrn_4_1", "wrn_16_0", "wrn_016_2", "resnet8"])
def test_family_refuses_what_is_no_wide_resnet(name: str) -> None:
    assert wide_resnet.family(name) is None


def test_family_agrees_with_the_listed_networks() -> None:
    for listed in wide_resnet.MODELS:
        made = wide_resnet.family(listed.name)
        assert made is not None
        assert (made.params, made.taps) == (listed.params, listed.taps)
    wide = registry.Registry("model").get("wrn_28_10")
    assert round(wide.params_at(10) / 1e6, 1) == 36.5  # Zagoruyko and Komodakis, table 4
