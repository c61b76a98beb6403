"""The regularised teachers: penalties, mixed batches, views, calibration, and weights that are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Outputs, Progress, Recipe
from kdpipe.core.registry import models
from kdpipe.core.specs import Augmentation
from kdpipe.engine.augment_policies import AugMix as Policy
from kdpipe.evaluation.metrics import fit_temperature as evaluated
from kdpipe.evaluation.metrics import nll
from kdpipe.nn.logits import cross_entropy, soft_cross_entropy
from kdpipe.nn.mixing import Mix, mixed_targets
from kdpipe.nn.penalties import penalised
from kdpipe.recipes.augmix import AugMix, jensen_shannon
from kdpipe.recipes.cutmix import CutMix
from kdpipe.recipes.early_stopping import EarlyStopping, quality
from kdpipe.recipes.l1 import L1, l1_penalty
from kdpipe.recipes.l2 import L2, l2_penalty
from kdpipe.recipes.label_smoothing import smoothed_cross_entropy
from kdpipe.recipes.mixup import Mixup
from kdpipe.recipes.swa import SWA
from kdpipe.recipes.temperature_scaling import TemperatureScaling, fit_temperature

NO_TEACHER = Outputs(torch.empty(0))
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])
DATA = DataInfo(4, LABELS)
AT = Progress(0, 10)
quick = settings(max_examples=25, deadline=None)


def made(kind: type[Recipe], model: nn.Module, **config: Any) -> Any:
    recipe = kind(kind.Config(**config))
    recipe.build(model, {"logits": (4,)}, DATA)
    return recipe


def batch(images: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(6, 3, 8, 8) if images is None else images, LABELS, torch.arange(6))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4))


def test_penalties_fall_on_what_the_settings_say() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert [p.shape for p in penalised(model, "all")] == [(2,), (2,), (4, 72), (4,)]
    assert [p.shape for p in penalised(model, "weights")] == [(4, 72)]


@pytest.mark.parametrize(("kind", "power"), [(L1, 1), (L2, 2)])
def test_penalty_is_weighed_once(kind: type[Recipe], power: int) -> None:
    model = network()
    for which in ("all", "weights"):
        recipe = made(kind, model, weight=0.25, on=which)
        terms = recipe.loss(model, Outputs(torch.zeros(6, 4)), NO_TEACHER, batch(), AT)
        each = [(p.abs() ** power).sum() / power for p in model.parameters() if which == "all" or p.ndim > 1]
        assert terms["ce"].item() == pytest.approx(math.log(4))
        torch.testing.assert_close(terms[kind.name], 0.25 * torch.stack(each).sum())


def test_the_squares_pull_as_weight_decay_does() -> None:
    model = network()
    (5e-4 * l2_penalty(model.parameters())).backward()
    for p in model.parameters():
        torch.testing.assert_close(p.grad, 5e-4 * p.detach())
    zeros = torch.zeros(3, requires_grad=True)
    l1_penalty([zeros]).backward()
    assert zeros.grad is not None
    assert not zeros.grad.any()


@given(st.integers(0, 2**31), st.floats(0, 1))
@quick
def test_smoothing_lies_between_labels_and_uniform(seed: int, epsilon: float) -> None:
    z = 3 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    targets = (1 - epsilon) * F.one_hot(LABELS, 4) + epsilon / 4
    torch.testing.assert_close(smoothed_cross_entropy(z, LABELS, epsilon), soft_cross_entropy(z, targets))
    torch.testing.assert_close(smoothed_cross_entropy(z, LABELS, 0), cross_entropy(z, LABELS))


@given(st.integers(0, 2**31), st.floats(0, 1))
@quick
def test_mixed_targets_mix_the_losses(seed: int, lam: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    z, mix = torch.randn(6, 4, generator=rng), Mix(torch.randperm(6, generator=rng), lam)
    targets = mixed_targets(LABELS, mix, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    expected = lam * cross_entropy(z, LABELS) + (1 - lam) * cross_entropy(z, LABELS[mix.partner])
    torch.testing.assert_close(soft_cross_entropy(z, targets), expected)


@pytest.mark.parametrize(
    "logits", [torch.full((2, 3), 1e4), torch.tensor([[1e4, -1e4, 0]] * 2), torch.zeros(2, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_stay_finite(logits: Tensor, dtype: torch.dtype) -> None:
    targets = torch.tensor([[0, 0.3, 0.7], [1, 0, 0]])
    for loss in (
        lambda z: soft_cross_entropy(z, targets),
        lambda z: smoothed_cross_entropy(z, torch.tensor([1, 2]), 0.1),
        lambda z: jensen_shannon([z, -z, z.flip(1)]),
    ):
        z = logits.detach().to(dtype, copy=True).requires_grad_()
        value = loss(z)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert z.grad is not None
        assert z.grad.isfinite().all()


def test_mixup_mixes_images_and_targets_alike() -> None:
    """Images that show their label alone are mixed as their targets are."""
    shown = F.one_hot(LABELS, 4).float()[:, :, None, None].expand(6, 4, 2, 2)
    torch.manual_seed(1)
    mixed = made(Mixup, network(), alpha=1.0).transform(batch(shown), AT)
    assert mixed.targets is not None
    torch.testing.assert_close(mixed.images.mean((2, 3)), mixed.targets)
    assert ((mixed.targets > 0).sum(1) > 1).any()
    assert torch.equal(mixed.labels, LABELS)


def test_cutmix_targets_are_shares_of_pixels() -> None:
    shown = F.one_hot(LABELS, 4).float()[:, :, None, None].expand(6, 4, 9, 9)
    recipe = made(CutMix, network(), alpha=1.0)
    torch.manual_seed(0)
    for _ in range(20):
        mixed = recipe.transform(batch(shown), AT)
        torch.testing.assert_close(mixed.images.mean((2, 3)), mixed.targets)


def test_cutmix_leaves_some_batches_alone() -> None:
    whole = batch(torch.randn(6, 3, 8, 8))
    torch.manual_seed(0)
    recipe = made(CutMix, network(), alpha=1.0, probability=0.25)
    changed = [not torch.equal(recipe.transform(whole, AT).images, whole.images) for _ in range(200)]
    assert 0.1 < np.mean(changed) < 0.35
    never = made(CutMix, network(), probability=0.0)
    torch.testing.assert_close(never.transform(whole, AT).targets, F.one_hot(LABELS, 4).float())


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_mixing_follows_the_global_stream(kind: type[Recipe]) -> None:
    recipe, found = made(kind, network()), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(recipe.transform(batch(torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8)), AT))
    assert torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].targets, found[1].targets)
    assert not torch.equal(found[0].images, found[2].images)


@given(st.integers(0, 2**31), st.integers(2, 4), st.floats(0.01, 100))
@quick
def test_jensen_shannon_is_bounded_and_symmetric(seed: int, views: int, scale: float) -> None:
    z = scale * torch.randn(views, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = jensen_shannon(list(z))
    assert -1e-12 <= found <= math.log(views) + 1e-12
    torch.testing.assert_close(jensen_shannon(list(z.flip(0))), found)
    torch.testing.assert_close(jensen_shannon([z[0]] * views), torch.zeros((), dtype=torch.float64))


def test_jensen_shannon_reaches_its_bound_and_every_view() -> None:
    certain = [torch.tensor([[1e4, 0, 0.0]]), torch.tensor([[0, 1e4, 0.0]]), torch.tensor([[0, 0, 1e4]])]
    assert jensen_shannon(certain).item() == pytest.approx(math.log(3))
    views = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    jensen_shannon(views).backward()
    assert all(v.grad is not None and v.grad.any() for v in views)


def test_augmix_asks_for_the_views_of_its_settings() -> None:
    step = Augmentation(name="augmix", settings={"alpha": 1.0, "width": 3, "severity": 3})
    assert AugMix().views == ((step,), (step,))
    assert Policy(**step.settings) == Policy()
    alone = AugMix(AugMix.Config(lambda_js=0, k=2))
    assert [[s.settings["width"] for s in view] for view in alone.views] == [[2]]


def test_augmix_learns_from_the_first_view_and_agrees_over_all() -> None:
    first, second, third = torch.randn(3, 6, 4)
    seen = replace(batch(), views=(torch.ones(1), torch.ones(2)))
    recipe = made(AugMix, network(), lambda_js=3.0)
    assert [len(x) for x in recipe.inputs(seen)] == [6, 1, 2]
    out = Outputs(first, more=(Outputs(second), Outputs(third)))
    terms = recipe.loss(network(), out, NO_TEACHER, seen, AT)
    torch.testing.assert_close(terms["ce"], cross_entropy(first, LABELS))
    torch.testing.assert_close(terms["js"], 3 * jensen_shannon([first, second, third]))
    alone = made(AugMix, network(), lambda_js=0)
    assert [len(x) for x in alone.inputs(replace(seen, views=(torch.ones(1),)))] == [1]
    assert set(alone.loss(network(), Outputs(first), NO_TEACHER, seen, AT)) == {"ce"}


@given(st.integers(0, 2**31), st.floats(0.2, 30), st.floats(0, 1))
@quick
def test_temperature_is_the_evaluations(seed: int, scale: float, right: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 60)
    logits = rng.normal(size=(60, 5)) + 2 * np.eye(5)[np.where(rng.random(60) < right, labels, 0)]
    logits = (scale * logits).astype(np.float32)
    found, expected = fit_temperature(torch.tensor(logits), torch.tensor(labels)), evaluated(logits, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    exact = logits.astype(np.float64)
    assert nll(exact / found, labels) <= nll(exact / expected, labels) + 1e-12


@pytest.mark.parametrize(
    ("logits", "labels", "temperature"),
    [
        ([[3.7, 3.7, 3.7], [0.1, 0.1, 0.1]], [0, 2], 1.0),
        ([[1.0, 0.0], [0.0, 1.0]], [0, 1], 0.1),
        ([[1.0, 0.0], [0.0, 1.0]], [1, 0], 10.0),
        ([[1e4, -1e4], [-1e4, 1e4]], [1, 0], 10.0),
        ([[math.nan, 0.0], [0.0, 1.0]], [0, 1], 1.0),
        ([[math.inf, 0.0], [0.0, 1.0]], [0, 1], 1.0),
    ],
)
def test_temperature_without_a_minimum(logits: Any, labels: Any, temperature: float) -> None:
    assert fit_temperature(torch.tensor(logits), torch.tensor(labels)) == temperature
    if np.isfinite(logits).all():
        assert evaluated(np.array(logits), np.array(labels)) == pytest.approx(temperature)


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "two_layer_20"])
def test_the_classifier_scales_the_logits(name: str) -> None:
    """Also where its weights are frozen, as in the two-layer networks."""
    torch.manual_seed(0)
    spec = models.get(name)
    model = spec.build(4, 3).eval()
    images = torch.randn(5, 3, 32, 32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logits = model(images).detach()
    held_out = 30 * torch.randn(50, 4), torch.randint(4, (50,))
    made(TemperatureScaling, model).finish(model, model.get_submodule(spec.classifier), lambda: held_out)
    temperature = fit_temperature(*held_out)
    assert temperature > 5
    torch.testing.assert_close(model(images), logits / temperature, atol=1e-6, rtol=1e-4)
    assert torch.equal(model(images).argmax(1), logits.argmax(1))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith(spec.classifier) for k in changed)


def test_quality_of_predictions() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    assert quality(logits, labels, "accuracy") == pytest.approx(2 / 3)
    assert quality(logits, labels, "nll") == -cross_entropy(logits, labels).item()
    assert quality(logits.log(), labels, "nll") == -math.inf


def stopped(errors: list[float], **config: Any) -> tuple[int, float]:
    """At which epoch a training with these validation errors ends, and the epoch whose weights it keeps."""
    model = nn.Linear(1, 2, bias=False)
    recipe = made(EarlyStopping, model, **config)
    for epoch, error in enumerate(errors, 1):
        with torch.no_grad():
            model.weight.fill_(epoch)
        logits = torch.tensor([[0.0, error]])
        if recipe.after_epoch(
            model, lambda z=logits: (z, torch.tensor([0])), Progress(epoch - 1, len(errors))
        ):
            break
    recipe.finish(model, model, None)
    return epoch, model.weight[0].item()


def test_early_stopping_waits_and_goes_back() -> None:
    assert stopped([3, 2, 2.5, 2.5, 1, 1], patience=2) == (4, 2)
    assert stopped([3, 2, 2.5, 1, 1.5, 1.5, 1.5], patience=3) == (7, 4)
    assert stopped([3, 2, 1], patience=1) == (3, 3)
    assert stopped([3, 2, 2, 2], patience=2) == (4, 2)
    assert stopped([3, 1, 2], patience=9) == (3, 2)
    assert stopped([3, -1, -2, -3], patience=2, measure="accuracy") == (4, 2)


def test_early_stopping_ignores_what_is_not_finite() -> None:
    assert stopped([3, math.nan, 2, math.nan], patience=9) == (4, 3)
    assert stopped([math.nan, math.nan], patience=9) == (2, 2)


def averaged(epochs: int, **config: Any) -> tuple[list[float], Tensor]:
    """Rates of a training whose weight is 1, 2, ... after each epoch, and the weight that is kept."""
    model = nn.Linear(1, 1, bias=False)
    recipe, rates = made(SWA, model, **config), []
    for epoch in range(epochs):
        rates.append(recipe.rate(Progress(epoch, epochs), lambda e: 0.8 * 0.5**e))
        with torch.no_grad():
            model.weight.fill_(epoch + 1)
        assert not recipe.after_epoch(model, None, Progress(epoch, epochs))
    recipe.finish(model, model, None)
    return rates, model.weight.detach().squeeze()


@pytest.mark.parametrize(("start", "first"), [(0.0, 1), (0.5, 4), (0.625, 5), (1.0, 8)])
def test_weights_are_averaged_from_the_start_on(start: float, first: int) -> None:
    rates, kept = averaged(8, start=start, rate=0.25)
    assert kept.item() == pytest.approx(np.mean(range(first, 9)))
    own = first if start else 0
    assert rates == pytest.approx([0.8 * 0.5**e for e in range(own)] + [0.2] * (8 - own))
    assert averaged(8, start=start, rate=None)[0] == pytest.approx([0.8 * 0.5**e for e in range(8)])


def test_150_of_240_epochs_come_first() -> None:
    recipe = made(SWA, nn.Linear(1, 1))
    rates = [recipe.rate(Progress(epoch, 240), lambda e: 1.0 + e) for epoch in range(240)]
    assert rates.index(0.5) == 150
    assert recipe.recalibrate


def test_nothing_averaged_leaves_the_network_alone() -> None:
    model = nn.Linear(1, 1)
    before = model.weight.clone()
    made(SWA, model).finish(model, model, None)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("kind", [EarlyStopping, SWA])
def test_what_is_kept_is_not_trained(kind: type[Recipe]) -> None:
    recipe = made(kind, network())
    assert not list(recipe.parameters())
    assert len(recipe.state_dict()) > 2
