"""Catching taps, expanding groups, shapes and the pairing of stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdpipe.api import ModelSpec, Paper, Tap
from kdpipe.core.errors import ConfigError, PluginError
from kdpipe.nn.taps import Catcher, catch, expand, pair_stages, shapes, unpaired


class Net(nn.Module):
    """Two stages, dropout and a buffer that a training pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.two = nn.Conv2d(4, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout()
        self.unused = nn.Identity()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.two(self.relu(self.one(x))))
        return self.fc(self.drop(x.mean((2, 3))))


SPEC = ModelSpec(
    name="net",
    build=lambda num_classes, channels: Net(),
    taps={
        "stage1.pre": Tap("relu", 4, 1, "linear", side="input"),
        "stage1": Tap("relu", 4, 1, "relu"),
        "stage2": Tap("norm", 6, 2, "linear"),
        "embed": Tap("fc", 6, 0, "vector", side="input"),
    },
    classifier="fc",
    params=0,
    paper=Paper("t", "a", "v", 2020),
)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_catches_what_is_wished_in_the_order_of_the_network(model: Net, images: Tensor) -> None:
    out = catch(model, SPEC, ["embed", "stage1", "stage1.pre"])(images)
    assert list(out.taps) == ["stage1.pre", "stage1", "embed"]
    assert torch.equal(out["stage1.pre"], model.one(images))
    assert torch.equal(out["stage1"], model.one(images).relu())
    assert torch.equal(model.fc(out["embed"]), out.logits)


def test_taps_carry_gradients(model: Net, images: Tensor) -> None:
    catch(model, SPEC, ["stage1"])(images)["stage1"].sum().backward()
    assert model.one.weight.grad is not None
    assert model.two.weight.grad is None


def test_without_wishes_there_are_no_hooks(model: Net, images: Tensor) -> None:
    plain = model(images)
    catcher = catch(model, SPEC, [])
    assert hooks(model) == 0
    assert torch.equal(catcher(images).logits, plain)
    assert catcher(images).taps == {}


def test_remove_takes_all_hooks_off(model: Net, images: Tensor) -> None:
    catcher = catch(model, SPEC, list(SPEC.taps))
    assert hooks(model) == 4
    catcher.remove()
    assert hooks(model) == 0
    assert catcher(images).taps == {}


def test_keeps_nothing_between_calls(model: Net, images: Tensor) -> None:
    catcher = catch(model, SPEC, ["stage1"])
    first = catcher(images)["stage1"]
    assert catcher._caught == {}
    catcher(2 * images)
    assert torch.equal(first, model.one(images).relu())


def test_two_catchers_do_not_disturb_each_other(model: Net, images: Tensor) -> None:
    one, two = catch(model, SPEC, ["stage1"]), catch(model, SPEC, ["stage2"])
    assert list(one(images).taps) == ["stage1"]
    assert list(two(images).taps) == ["stage2"]
    one.remove()
    assert list(two(images).taps) == ["stage2"]


def test_works_under_inference_mode(model: Net, images: Tensor) -> None:
    with torch.inference_mode():
        out = catch(model, SPEC, ["stage2"])(images)
    assert out["stage2"].is_inference()


def test_a_compiled_network_gives_the_same_taps(model: Net, images: Tensor) -> None:
    wanted = catch(model, SPEC, list(SPEC.taps))(images)
    other = Net().eval()
    other.load_state_dict(model.state_dict())
    catcher = catch(other, SPEC, list(SPEC.taps))
    other.compile(backend="eager")
    for _ in range(2):
        found = catcher(images)
        assert torch.equal(found.logits, wanted.logits)
        assert all(torch.equal(found[name], wanted[name]) for name in SPEC.taps)


def test_unknown_tap_names_the_known(model: Net) -> None:
    with pytest.raises(PluginError, match=r"net has no tap 'stage9'.*stage1\.pre, stage1, stage2, embed"):
        catch(model, SPEC, ["stage9"])


def test_missing_module_is_an_error(model: Net) -> None:
    wrong = replace(SPEC, taps={"stage1": Tap("gone", 4, 1, "relu")})
    with pytest.raises(PluginError, match="names no module 'gone'"):
        catch(model, wrong, ["stage1"])


def test_module_that_is_not_called_is_an_error(model: Net, images: Tensor) -> None:
    wrong = replace(SPEC, taps={"stage1": Tap("unused", 4, 1, "relu")})
    with pytest.raises(PluginError, match="'stage1' names a module that the forward pass does not call"):
        Catcher(model, wrong, ["stage1"])(images)


def test_expand_spells_groups_out_once_and_in_order() -> None:
    assert expand(SPEC, ["embed", "stages", "stage2"]) == ("stage1", "stage2", "embed")
    assert expand(SPEC, []) == ()
    both = replace(SPEC, taps={**SPEC.taps, "stage2.pre": SPEC.taps["stage2"]})
    assert expand(both, ["stages.pre"]) == ("stage1.pre", "stage2.pre")


def test_expand_refuses_a_group_that_is_not_whole() -> None:
    with pytest.raises(PluginError, match=r"no tap 'stage2\.pre'"):
        expand(SPEC, ["stages.pre"])


def test_shapes_come_from_a_pass_that_leaves_no_trace(model: Net) -> None:
    model.train()
    model.drop.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    found = shapes(model, SPEC, ["stages", "embed"], (3, 16, 16))
    assert found == {"stage1": (4, 16, 16), "stage2": (6, 8, 8), "embed": (6,), "logits": (5,)}
    assert list(found) == ["stage1", "stage2", "embed", "logits"]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.drop.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert hooks(model) == 0
    assert all(p.grad is None for p in model.parameters())


def test_shapes_restores_the_network_after_an_error(model: Net) -> None:
    model.train()
    with pytest.raises(RuntimeError):
        shapes(model, SPEC, ["stages"], (7, 16, 16))
    assert model.training
    assert hooks(model) == 0


def test_stages_of_equal_size_pair_the_deepest() -> None:
    student = {"stage1": (16, 32, 32), "stage2": (32, 16, 16), "stage3": (64, 8, 8), "embed": (64,)}
    teacher = {
        "stage1": (128, 16, 16),
        "stage2": (256, 8, 8),
        "stage3": (512, 4, 4),
        "stage4": (512, 4, 4),
        "logits": (10,),
    }
    assert pair_stages(student, teacher) == [("stage2", "stage1"), ("stage3", "stage2")]
    assert pair_stages(teacher, teacher)[-1] == ("stage4", "stage4")


def test_stages_pair_by_number_not_by_name() -> None:
    student = {f"stage{n}": (1, 64 // n, 64 // n) for n in (10, 2, 1)}
    assert [name for name, _ in pair_stages(student, student)] == ["stage1", "stage2", "stage10"]


def test_stages_before_their_relu_pair_by_suffix() -> None:
    student = {"stage1.pre": (8, 4, 4), "stage1": (8, 4, 4), "stage2": (8, 2, 2)}
    assert pair_stages(student, student, suffix=".pre") == [("stage1.pre", "stage1.pre")]
    assert pair_stages(student, student) == [("stage1", "stage1"), ("stage2", "stage2")]


def test_networks_without_a_common_size_do_not_pair() -> None:
    with pytest.raises(ConfigError, match=r"student: stage1 8x8; teacher: stage1 7x7"):
        pair_stages({"stage1": (4, 8, 8)}, {"stage1": (4, 7, 7)})


def test_unpaired_says_so_before_any_network_is_made() -> None:
    assert unpaired(SPEC, SPEC) is None
    coarse = replace(SPEC, name="coarse", taps={"stage1": Tap("one", 4, 8, "relu")})
    reason = unpaired(SPEC, coarse)
    assert reason is not None
    assert "coarse: [8]" in reason
