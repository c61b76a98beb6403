"""What every registered network promises, checked against real tensors."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import ModelSpec
from kdpipe.api.model import meant
from kdpipe.core import registry
from kdpipe.models import two_layer, wide_resnet
from kdpipe.nn.cost import fingerprint, multiply_adds, parameters
from kdpipe.nn.fold import fold_batch_norm
from kdpipe.nn.layers import global_average, shuffle
from kdpipe.nn.taps import catch, shapes
from kdpipe.plan.cards import card

SPECS = [
    *(spec for _, spec in registry.models.items()),
    wide_resnet.family("wrn_10_1"),
    two_layer.family("two_layer_7"),
]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@lru_cache(maxsize=4)
def pristine(name: str, num_classes: int, channels: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return registry.models.get(name).build(num_classes, channels)


def build(spec: ModelSpec, num_classes: int = 10, channels: int = 3, seed: int = 0) -> nn.Module:
    return copy.deepcopy(pristine(spec.name, num_classes, channels, seed))


def on_meta(spec: ModelSpec, num_classes: int) -> nn.Module:
    """Its structure without weights."""
    with torch.device("meta"):
        return spec.build(num_classes, 3)


def images(side: int = 32, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


def size(spec: ModelSpec) -> int:
    """Side of small images, for tests in which size does not matter."""
    return spec.side if spec.fixed else 16


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


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name, scope="module")  # all tests of one, then the next
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return request.param


def test_parameter_count_is_the_declared_one(spec: ModelSpec) -> None:
    assert {n: parameters(on_meta(spec, n)) for n in (1, 10, 100, 200, 1000)} == {
        n: spec.params_at(n) for n in (1, 10, 100, 200, 1000)
    }


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (8, 1), (64, 3)])
def test_taps_are_as_declared(spec: ModelSpec, side: int, channels: int) -> None:
    if spec.fixed:
        side = spec.side
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
            assert value.shape[2:] == (tap.size(side), tap.size(side)), name
        if tap.kind != "vector":
            assert (value.min() >= 0) == (tap.kind == "relu"), name


def test_has_the_taps_of_the_interface(spec: ModelSpec) -> None:
    assert spec.stages == [f"stage{n}" for n in range(1, len(spec.stages) + 1)]
    assert spec.stages or all(tap.kind == "vector" for tap in spec.taps.values())
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
        model(images(size(spec)))
    assert sorted(spec.taps, key=lambda name: len(reached) - reached[::-1].index(name)) == list(spec.taps)


def test_pre_tap_is_the_stage_with_its_negative_responses(spec: ModelSpec) -> None:
    model = settled(build(spec))
    with torch.no_grad():
        out = catch(model, spec, list(spec.taps))(images(size(spec)))
    for stage in spec.stages:
        tap, pre = spec.taps[stage], spec.taps.get(f"{stage}.pre")
        assert pre or tap.kind == "linear"
        if pre is None:
            continue
        found = out[f"{stage}.pre"]
        assert found.min() < 0
        if tap.kind == "relu":
            assert torch.equal(found.relu(), out[stage])
        elif pre == tap:
            assert torch.equal(found, out[stage])
        else:
            assert torch.equal(found, model.get_submodule(pre.norm)(out[stage]))


def test_norms_are_the_last_in_front_of_their_taps(spec: ModelSpec) -> None:
    model, calls = build(spec).eval(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    for name, tap in spec.taps.items():
        if tap.norm:
            module = model.get_submodule(tap.module)
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        model(images(size(spec)))
    for name, tap in spec.taps.items():
        if tap.norm:
            last = len(calls) - calls[::-1].index(name) - 1  # some networks call one ReLU more than once
            assert calls[last - 1] == tap.norm
            assert model.get_submodule(tap.norm).num_features == tap.channels


def test_classifier_reads_embed(spec: ModelSpec) -> None:
    model = build(spec).eval()
    with torch.no_grad():
        out = catch(model, spec, ["embed"])(images(size(spec)))
        assert torch.equal(model.get_submodule(spec.classifier)(out["embed"]), out.logits)


def test_taps_change_no_bit_of_the_logits(spec: ModelSpec) -> None:
    model = build(spec).eval()
    with torch.no_grad():
        plain = model(images(size(spec)))
        assert torch.equal(catch(model, spec, [])(images(size(spec))).logits, plain)
        assert torch.equal(catch(model, spec, list(spec.taps))(images(size(spec))).logits, plain)


def test_every_parameter_gets_a_gradient(spec: ModelSpec) -> None:
    model = build(spec).train()
    nn.functional.cross_entropy(model(images(size(spec), 4)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_one_image_alone_gives_what_it_gives_in_a_batch(spec: ModelSpec) -> None:
    model = build(spec).eval()
    with torch.no_grad():
        assert_near(model(images(size(spec))[:1]), model(images(size(spec)))[:1])


def test_the_seed_decides_the_weights(spec: ModelSpec) -> None:
    one, same, other = (build(spec, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = [key for key in one if key.endswith("weight") and one[key].dim() > 1]
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


def test_channels_last_gives_the_same(spec: ModelSpec) -> None:
    model = settled(build(spec))
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    batch = images(size(spec))
    with torch.no_grad():
        assert_near(other(batch.contiguous(memory_format=torch.channels_last)), model(batch))


def test_folding_keeps_logits_and_taps(spec: ModelSpec) -> None:
    model = settled(build(spec))
    folded = fold_batch_norm(model)
    with torch.no_grad():
        wanted = catch(model, spec, list(spec.taps))(images(size(spec)))
        found = catch(folded, spec, list(spec.taps))(images(size(spec)))
    assert_near(found.logits, wanted.logits)
    for name in spec.taps:
        assert_near(found[name], wanted[name])


def test_shapes_match_the_declaration(spec: ModelSpec) -> None:
    found = shapes(on_meta(spec, 10), spec, list(spec.taps), (3, spec.side, spec.side))
    assert found.pop("logits") == (10,)
    for name, tap in spec.taps.items():
        size = () if tap.kind == "vector" else (tap.size(spec.side),) * 2
        assert found[name] == (tap.channels, *size)


def test_taps_can_enter_a_loss(spec: ModelSpec) -> None:
    """Nothing overwrites a tap after it was read, which autograd would refuse."""
    model = build(spec).train()
    out = catch(model, spec, list(spec.taps))(images(size(spec), 4))
    total = out.logits.square().mean() + sum(tap.square().mean() for tap in out.taps.values())
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_card_says_what_it_is(spec: ModelSpec) -> None:
    text, model = card(spec.name, Path("config")), on_meta(spec, 100)
    assert f"{spec.params:,} (100 classes)" in text
    assert f"Multiply-adds: {multiply_adds(model, (3, spec.side, spec.side)):,} " in text
    assert fingerprint(model) in text
    assert all(
        re.search(rf"^  {re.escape(name)} .*{tap.channels}", text, re.M) for name, tap in spec.taps.items()
    )
    assert str(spec.paper) in text


def test_no_two_networks_are_printed_alike() -> None:
    printed = [(d, name) for spec in SPECS for d, names in spec.printed.items() for name in names]
    assert len(set(printed)) == len(printed)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [  # every network that the five papers' tables print, and what it is
        (
            "cifar100",
            "mobilenet=mobilenetv2 mobilenetv2 resnet20 resnet32 resnet34 resnet50 resnet56 resnet110 "
            "resnet8x4 resnet32x4 shufflenetv1 shufflenetv2 vgg8 vgg13 wrn_16_2 wrn_40_1 wrn_40_2",
        ),
        ("cifar10", "mobilenetv2 resnet18 resnet34 resnet50 shufflenetv2 vgg8 vgg13 wrn_16_2 wrn_40_2"),
        (
            "tiny_imagenet",
            "mobilenet=mobilenetv2 resnet18 resnet34 resnet50 shufflenetv2 vgg8 vgg13 wrn_16_2 wrn_40_2",
        ),
        (
            "imagenet",
            "mobilenet=imagenet_mobilenetv1 resnet18=imagenet_resnet18 resnet34=imagenet_resnet34 "
            "resnet50=imagenet_resnet50",
        ),
    ],
)
def test_every_printed_network_is_registered(dataset: str, names: str) -> None:
    for name, _, wanted in (pair.partition("=") for pair in names.split()):
        spec = meant(name, dataset, SPECS)
        assert spec is not None, name
        assert spec.name == (wanted or name)
    assert all(dataset in registry.datasets.names() for spec in SPECS for dataset in spec.printed)


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [  # as counted in RepDistiller, mdistiller and torchvision
        ("resnet18", 100, 11_220_132),
        ("resnet34", 100, 21_328_292),
        ("resnet50", 100, 23_705_252),
        ("vgg8", 100, 3_965_028),
        ("vgg11", 100, 9_277_284),
        ("vgg13", 100, 9_462_180),
        ("vgg16", 100, 14_774_436),
        ("vgg19", 100, 20_086_692),
        ("mobilenetv2", 100, 812_836),
        ("shufflenetv1", 100, 949_258),
        ("shufflenetv2", 100, 1_355_528),
        ("resnet18", 200, 11_271_432),
        ("imagenet_resnet18", 1000, 11_689_512),
        ("imagenet_resnet34", 1000, 21_797_672),
        ("imagenet_resnet50", 1000, 25_557_032),
        ("imagenet_resnet101", 1000, 44_549_160),
        ("imagenet_mobilenetv1", 1000, 4_231_976),
        ("imagenet_mobilenetv2", 1000, 3_504_872),
        ("imagenet_shufflenetv2", 1000, 2_278_604),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, num_classes: int, count: int) -> None:
    assert parameters(on_meta(registry.models.get(name), num_classes)) == count


@pytest.mark.parametrize(
    ("name", "last", "pool"),
    [
        ("resnet8", "layer3", nn.AvgPool2d(8)),
        ("wrn_16_1", "relu", nn.AvgPool2d(8)),
        ("resnet18", "layer4", nn.AdaptiveAvgPool2d(1)),
        ("vgg8", "relu4", nn.AdaptiveAvgPool2d(1)),
        ("mobilenetv2", "conv2", nn.AvgPool2d(2, ceil_mode=True)),
        ("shufflenetv1", "layer3", nn.AvgPool2d(4)),
        ("shufflenetv2", "relu", nn.AvgPool2d(4)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_pools_as_published_at_32_and_over_the_whole_map_at_64(
    name: str, last: str, pool: nn.Module, layout: torch.memory_format
) -> None:
    spec = registry.models.get(name)
    model = settled(build(spec)).to(memory_format=layout)
    maps: list[Tensor] = []
    model.get_submodule(last).register_forward_hook(lambda *call: maps.append(call[2]))
    with torch.no_grad():
        out = catch(model, spec, ["embed"])(images().contiguous(memory_format=layout))
        assert torch.equal(out["embed"], pool(maps[-1]).flatten(1))
        out = catch(model, spec, ["embed"])(images(64).contiguous(memory_format=layout))
        assert_near(out["embed"], maps[-1].mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("imagenet_resnet18", "resnet18"),
        ("imagenet_resnet50", "resnet50"),
        ("imagenet_mobilenetv2", "mobilenet_v2"),
        ("imagenet_shufflenetv2", "shufflenet_v2_x1_0"),
    ],
)
def test_wrapped_networks_compute_what_torchvision_does(name: str, theirs: str) -> None:
    from torchvision import models

    mine, other = settled(build(registry.models.get(name))), getattr(models, theirs)(num_classes=10).eval()
    other.load_state_dict(mine.state_dict())
    with torch.no_grad():
        assert torch.equal(mine(images(64)), other(images(64)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_shuffle_permutes_the_channels_and_keeps_the_layout(layout: torch.memory_format) -> None:
    maps = torch.arange(2 * 6 * 4 * 4.0).reshape(2, 6, 4, 4).contiguous(memory_format=layout)
    assert torch.equal(shuffle(maps, 3), maps[:, [0, 2, 4, 1, 3, 5]])
    assert torch.equal(shuffle(maps, 3), nn.ChannelShuffle(3)(maps))
    if layout == torch.channels_last:
        assert shuffle(maps, 3).is_contiguous(memory_format=layout)


def test_shufflenetv2_leaves_half_of_the_channels_untouched() -> None:
    unit = settled(build(registry.models.get("shufflenetv2"))).get_submodule("layer1.1")
    x = images(8, channels=116).relu()
    changed = x[:, 58:]
    with torch.no_grad():
        for conv, norm in ((unit.conv1, unit.bn1), (unit.conv2, unit.bn2), (unit.conv3, unit.bn3)):
            changed = norm(conv(changed))
            changed = changed if conv is unit.conv2 else changed.relu()
        out = unit(x)
    assert torch.equal(out[:, ::2], x[:, :58])
    assert torch.equal(out[:, 1::2], changed)


@pytest.mark.parametrize(("classes", "mirrored"), [(2, True), (5, False)])
def test_two_layer_network_is_the_papers(classes: int, mirrored: bool) -> None:
    model = build(registry.models.get("two_layer_100"), classes)
    weight, signs = model.get_submodule("hidden").weight, model.get_submodule("output").signs
    assert weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(signs[1], -signs[0]) == mirrored
    x = images().flatten(1)
    wanted = torch.stack([(signs[c] / 10 * (x @ weight.T).clamp(min=0)).sum(1) for c in range(classes)], 1)
    assert_near(model(images()), wanted)
    assert not any(p is signs for p in model.parameters())
    assert "output.signs" in model.state_dict()


def test_average_pool_has_the_bits_of_the_published_one() -> None:
    maps = torch.randn(4, 64, 8, 8, generator=torch.Generator().manual_seed(3))
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = maps.contiguous(memory_format=layout)
        assert torch.equal(global_average(laid), nn.AvgPool2d(8)(laid).flatten(1))


def test_resnet_keys_are_the_published_ones() -> None:
    keys = set(build(registry.models.get("resnet8")).state_dict())
    wanted = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in NORM)}
    for stage in (1, 2, 3):
        block = f"layer{stage}.0"
        wanted |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
        wanted |= {f"{block}.{bn}.{n}" for bn in ("bn1", "bn2") for n in NORM}
        if stage > 1:
            wanted |= {f"{block}.downsample.0.weight", *(f"{block}.downsample.1.{n}" for n in NORM)}
    assert keys == wanted


def test_wide_resnet_keys_are_the_published_ones() -> None:
    keys = set(build(registry.models.get("wrn_16_2")).state_dict())
    wanted = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in NORM)}
    for stage in (1, 2, 3):
        wanted.add(f"block{stage}.layer.0.convShortcut.weight")
        for n in (0, 1):
            block = f"block{stage}.layer.{n}"
            wanted |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
            wanted |= {f"{block}.{bn}.{part}" for bn in ("bn1", "bn2") for part in NORM}
    assert keys == wanted


def keys_of(norms: list[str], convs: list[str], head: str, bias: bool = False) -> set[str]:
    """State-dict keys of a network with these batch norms, convolutions and classifier."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {
        *(f"{norm}.{part}" for norm in norms for part in NORM),
        *(f"{conv}.{part}" for conv in convs for part in parts),
        *(f"{head}.{part}" for part in ("weight", "bias")),
    }


def published_keys(name: str) -> set[str]:
    """The keys of RepDistiller's and mdistiller's checkpoints, written from their description."""
    if name == "vgg13":
        places = [f"block{n}.{m}" for n in range(5) for m in (0, 3)]
        norms = [f"block{n}.{m}" for n in range(5) for m in (1, 4)]
        return keys_of(norms, places, "classifier", bias=True)
    if name == "mobilenetv2":
        blocks = [f"blocks.{i}.{j}" for i, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(count)]
        convs = [f"{block}.conv.{k}" for block in blocks for k in (0, 3, 6)]
        norms = [f"{block}.conv.{k}" for block in blocks for k in (1, 4, 7)]
        return keys_of([*norms, "conv1.1", "conv2.1"], [*convs, "conv1.0", "conv2.0"], "classifier.0")
    if name == "imagenet_mobilenetv1":
        convs = [f"model.{i}.{k}" for i in range(1, 14) for k in (0, 3)]
        norms = [f"model.{i}.{k}" for i in range(1, 14) for k in (1, 4)]
        return keys_of([*norms, "model.0.1"], [*convs, "model.0.0"], "fc")
    counts = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}.get(name, (4, 8, 4))
    convs, norms = ["conv1"], ["bn1"]
    for stage, count in enumerate(counts, start=1):
        for block in range(count):
            inside = 2 if name == "resnet18" else 5 if name == "shufflenetv2" and block == 0 else 3
            convs += [f"layer{stage}.{block}.conv{n}" for n in range(1, inside + 1)]
            norms += [f"layer{stage}.{block}.bn{n}" for n in range(1, inside + 1)]
        if name.startswith("resnet") and (stage > 1 or name == "resnet50"):
            convs.append(f"layer{stage}.0.shortcut.0")
            norms.append(f"layer{stage}.0.shortcut.1")
    if name == "shufflenetv2":
        convs, norms = [*convs, "conv2"], [*norms, "bn2"]
    return keys_of(norms, convs, "linear")


@pytest.mark.parametrize(
    "name",
    ["vgg13", "mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet18", "resnet50", "imagenet_mobilenetv1"],
)
def test_keys_are_the_published_ones(name: str) -> None:
    assert build(registry.models.get(name)).state_dict().keys() == published_keys(name)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "resnet18", "vgg8", "mobilenetv2"])
def test_initial_weights_have_the_published_spread(name: str) -> None:
    model = build(registry.models.get(name))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    spec = registry.models.get(name)
    head = model.get_submodule(spec.classifier)
    if name.startswith(("wrn", "vgg", "mobilenet")):
        assert not head.bias.any()
    if name.startswith(("vgg", "mobilenet")):
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    if name.startswith("vgg"):
        assert not model.get_submodule("block0.0").bias.any()


@pytest.mark.parametrize(
    "name", ["wrn_16", "wrn_15_2", "wrn_4_1", "wrn_16_0", "wrn_016_2", "resnet8", "two_layer_0", "two_layer"]
)
def test_families_refuse_what_is_no_member(name: str) -> None:
    assert wide_resnet.family(name) is None
    assert two_layer.family(name) is None


def test_family_agrees_with_the_listed_networks() -> None:
    for listed in wide_resnet.MODELS:
        made = wide_resnet.family(listed.name)
        assert made is not None
        assert (made.params, made.taps) == (listed.params, listed.taps)
    wide = registry.Registry("model").get("wrn_28_10")
    assert round(wide.params_at(10) / 1e6, 1) == 36.5  # Zagoruyko and Komodakis, table 4
