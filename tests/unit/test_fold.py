"""Folding batch norms into convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdpipe.core import registry
from kdpipe.nn.fold import fold_batch_norm


def moved(model: nn.Module) -> nn.Module:
    """The model with batch-norm statistics that are not their initial ones."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=draw))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=draw))
            if module.affine:
                module.weight.data.copy_(torch.randn(module.weight.shape, generator=draw))
                module.bias.data.copy_(torch.randn(module.bias.shape, generator=draw))
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def assert_same(model: nn.Module, images: Tensor, left: int) -> None:
    """Folding leaves so many norms and the outputs as they were."""
    folded = fold_batch_norm(model)
    assert norms(folded) == left
    with torch.no_grad():
        wanted, found = model.eval()(images), folded(images)
    assert (wanted - found).abs().max() <= 1e-4 * wanted.abs().max()


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_pair_folds_exactly(bias: bool, affine: bool, groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups, bias=bias, padding_mode="reflect")
    assert_same(moved(nn.Sequential(conv, nn.BatchNorm2d(8, affine=affine))), images(4), left=0)


class Shared(nn.Module):
    """A convolution that two read, a norm after a sum, a norm called twice, a norm without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm_of_sum = nn.BatchNorm2d(3)
        self.conv2, self.conv3, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.again, self.norm4, self.norm5 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv6, self.of_batch = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.conv7, self.folds = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.read_twice(x)
        x = self.norm_of_sum(a + self.norm1(a))
        x = self.twice(self.conv2(x)) + self.twice(self.conv3(x))
        x = self.norm4(self.again(x)) + self.norm5(self.again(x))
        return self.folds(self.conv7(self.of_batch(self.conv6(x))))


def test_only_exact_pairs_fold() -> None:
    torch.manual_seed(0)
    assert_same(moved(Shared()), images(), left=6)


class Branching(nn.Module):
    """A forward pass that depends on values, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > -1e9 else x


def test_an_untraceable_network_is_left_unfolded() -> None:
    torch.manual_seed(0)
    assert_same(moved(Branching()), images(), left=1)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet20", 0),
        ("resnet8x4", 0),
        ("wrn_16_1", 7),
        ("resnet50", 0),
        ("vgg8", 0),
        ("mobilenetv2", 0),
        ("shufflenetv1", 0),
        ("shufflenetv2", 0),
        ("imagenet_resnet18", 0),
        ("imagenet_mobilenetv1", 0),
        ("imagenet_mobilenetv2", 0),
        ("imagenet_shufflenetv2", 0),
    ],
)
def test_networks_fold_as_far_as_they_can(name: str, left: int) -> None:
    torch.manual_seed(0)
    assert_same(moved(registry.models.get(name).build(10, 3)), images(), left)


def test_the_original_is_not_touched_and_the_copy_is_frozen() -> None:
    model = moved(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert isinstance(folded[1], nn.Identity)
