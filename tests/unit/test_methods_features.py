"""Properties of the losses on features, and how their methods weigh and train them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdpipe.api import Batch, DataInfo, Method, Outputs, Progress, Shapes
from kdpipe.core.registry import models
from kdpipe.methods import rkd
from kdpipe.methods.at import AT, attention, attention_loss
from kdpipe.methods.cc import CC, embedding_loss, kernel_loss
from kdpipe.methods.nst import NST, by_channels, by_places, selectivity_loss
from kdpipe.methods.pkt import PKT, neighbour_loss, neighbours
from kdpipe.methods.rkd import RKD, angle_loss, distance_loss
from kdpipe.methods.sp import SP, similarity_loss
from kdpipe.methods.vid import VID, Likelihood, gaussian_loss
from kdpipe.nn.logits import cross_entropy, kl
from kdpipe.nn.relations import inner, unit
from tests.golden.rows_features import LARGE_MAPS, VECTORS, numpy_pooled_attention, pooled_attention

Loss = Callable[[Tensor, Tensor], Tensor]

gaussian_kernel_loss = partial(kernel_loss, gamma=0.4, order=2)
RELATIONAL: dict[str, Loss] = {
    "similarity": similarity_loss,
    "kernel": gaussian_kernel_loss,
    "distance": distance_loss,
    "angle": angle_loss,
    "neighbours": neighbour_loss,
}
ON_MAPS: dict[str, Loss] = {"attention": attention_loss, "selectivity": selectivity_loss}
ALL = {**RELATIONAL, **ON_MAPS, "embedding": embedding_loss}
relational = pytest.mark.parametrize("loss", RELATIONAL.values(), ids=RELATIONAL.keys())
on_maps = pytest.mark.parametrize("loss", ON_MAPS.values(), ids=ON_MAPS.keys())
scale_free = pytest.mark.parametrize("name", [*RELATIONAL, *ON_MAPS])
every = pytest.mark.parametrize("name", ALL)
quick = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)
batches = st.integers(2, 6)


def draw(name: str, seed: int, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Maps or features of student and teacher, of other widths where the loss allows it."""
    rng = torch.Generator().manual_seed(seed)
    mine, theirs = ((3, 2, 4), (5, 2, 4)) if name in ON_MAPS else ((6,), (6 if name == "embedding" else 9,))
    return (
        torch.randn(batch, *mine, generator=rng, dtype=dtype),
        torch.randn(batch, *theirs, generator=rng, dtype=dtype),
    )


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.detach().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


def close(a: Tensor, b: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **({"rtol": 1e-9, "atol": 1e-11} | tolerance))


@every
@given(seeds, batches)
@quick
def test_never_negative(name: str, seed: int, batch: int) -> None:
    assert ALL[name](*draw(name, seed, batch)) >= -1e-9


@scale_free
@given(seeds, batches, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
@quick
def test_a_common_factor_of_all_features_does_not_matter(
    name: str, seed: int, batch: int, mine: float, theirs: float
) -> None:
    student, teacher = draw(name, seed, batch)
    close(ALL[name](mine * student, theirs * teacher), ALL[name](student, teacher))


@scale_free
@given(seeds, batches)
@quick
def test_the_order_of_samples_does_not_matter(name: str, seed: int, batch: int) -> None:
    student, teacher = draw(name, seed, batch)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    close(ALL[name](student[order], teacher[order]), ALL[name](student, teacher))


def test_the_order_of_samples_matters_to_the_fields_correlation() -> None:
    student, teacher = draw("embedding", 0, 4)
    order = torch.tensor([0, 2, 1, 3])
    assert embedding_loss(student[order], teacher[order]) != embedding_loss(student, teacher)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@given(seeds, st.floats(-100, 100))
@quick
def test_relations_forget_motions_of_all_features(loss: Loss, seed: int, shift: float) -> None:
    student, teacher = draw("angle", seed, 5)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double())
    close(loss(student @ turn + shift, teacher), loss(student, teacher), atol=1e-9)


@on_maps
def test_channels_have_no_order(loss: Loss) -> None:
    student, teacher = draw("attention", 0, 3)
    close(loss(student[:, [2, 0, 1]], teacher), loss(student, teacher))


@every
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_constant_and_zero_features_give_finite_gradients(name: str, value: float, rows: int) -> None:
    student, teacher = draw(name, 0, 4, torch.float32)
    student[:rows] = value
    found = gradient(ALL[name], student, teacher)
    assert ALL[name](student, teacher).isfinite()
    assert found.isfinite().all()
    assert found.abs().max() < 1e5  # not 1e12, what a norm bounded from below would give


@scale_free
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_half_precision_neither_overflows_nor_vanishes(name: str, dtype: torch.dtype, size: float) -> None:
    student, teacher = (size * x.clamp(-5, 5) for x in draw(name, 1, 4, torch.float32))
    student, teacher = student.to(dtype), teacher.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = ALL[name](student, teacher)
    assert found.dtype == torch.float32
    close(found.double(), ALL[name](student.double(), teacher.double()), rtol=2e-4, atol=1e-7)


def test_similarities_of_half_precision_maps_beyond_its_range() -> None:
    maps = torch.full((2, 100), 100.0, dtype=torch.float16)
    assert (maps @ maps.T).isinf().all()  # what the reference code would go on with
    orthogonal = torch.eye(2, 100)
    assert similarity_loss(maps, maps) == 0
    assert similarity_loss(maps, orthogonal) == pytest.approx((2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4)


def test_inner_products_stay_full_under_autocast() -> None:
    a = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = inner(a, a), a @ a.T
    assert (found.dtype, plain.dtype) == (torch.float32, torch.bfloat16)
    close(found, a @ a.T, rtol=1e-6, atol=1e-6)


def test_a_vector_of_zeros_has_no_direction_and_no_gradient() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = unit(x)
    close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]), rtol=1e-6)
    found[:, 0].sum().backward()
    assert x.grad is not None
    close(x.grad, torch.tensor([[0.128, -0.096], [0.0, 0.0]]), rtol=1e-6)


def test_zero_features_where_a_bare_root_gives_nan() -> None:
    student, teacher = draw("neighbours", 0, 4)
    student[0] = 0
    rows = student.clone().requires_grad_()
    (rows / (rows.square().sum(1, keepdim=True).sqrt() + 1e-7)).sum().backward()
    assert rows.grad is not None
    assert rows.grad[0].isnan().all()  # the reference code's normalisation
    found = gradient(neighbour_loss, student, teacher)
    assert not found[0].any()
    assert found[1:].abs().min() > 0


# attention transfer


def test_attention_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])  # B 1, C 2, H 1, W 2: mean squares 1 and 1/2
    close(attention(maps), torch.tensor([[2.0, 1.0]]) / 5**0.5, rtol=1e-6)
    one_place = torch.tensor([[[[0.0, -7.0]]]])
    expected = (4 / 5 + (1 / 5**0.5 - 1) ** 2) / 2
    assert attention_loss(maps, one_place).item() == pytest.approx(expected)


def test_attention_of_pooled_maps_has_the_reference_codes_value() -> None:
    value = pooled_attention(*(torch.tensor(x) for x in LARGE_MAPS)).item()
    assert value == pytest.approx(0.000673052171, rel=1e-7)
    assert value == pytest.approx(numpy_pooled_attention(*LARGE_MAPS), rel=1e-12)


# correlation congruence


def test_kernel_tends_to_the_gaussian() -> None:
    student, teacher = draw("kernel", 0, 5)
    kernels = [torch.exp(-0.7 * torch.cdist(unit(x), unit(x)).square()) for x in (student, teacher)]
    close(kernel_loss(student, teacher, 0.7, 30), F.mse_loss(*kernels))


def test_order_one_compares_cosines() -> None:
    student, teacher = draw("kernel", 0, 5)
    cosines = [unit(x) @ unit(x).T for x in (student, teacher)]
    close(kernel_loss(student, teacher, 0.3, 1), (0.6 * math.exp(-0.6)) ** 2 * F.mse_loss(*cosines))


def test_embeddings_of_both_networks_are_trained_by_the_fields_form_alone() -> None:
    assert {name.split(".")[0] for name, _ in built(CC).named_parameters()} == {
        "student_embedding",
        "teacher_embedding",
    }
    assert not list(built(CC, form="kernel").parameters())


def test_constant_embeddings_minimise_the_fields_form() -> None:
    method = built(CC, dim=3)
    for parameter in method.parameters():
        torch.nn.init.zeros_(parameter)
    assert terms(method)["cc"] == 0


# variational information distillation


@pytest.mark.parametrize("variance", [0.001, 0.5, 5, 100])
def test_variances_start_where_they_are_told(variance: float) -> None:
    found = Likelihood(2, 3, variance).variance
    close(found, torch.full((3,), float(variance)), rtol=2e-5)


def test_variances_are_finite_far_out() -> None:
    likelihood = Likelihood(2, 3, 5)
    with torch.no_grad():
        likelihood.scale.copy_(torch.tensor([-1e4, 0, 1e4]))
    close(likelihood.variance.detach(), torch.tensor([1e-5, math.log(2) + 1e-5, 1e4]), rtol=1e-6)
    likelihood(torch.randn(2, 2, 2, 2), torch.randn(2, 3, 2, 2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in likelihood.parameters())


def test_variances_are_trained_and_saved() -> None:
    method = built(VID)
    names = {f"likelihoods.{i}.scale" for i in range(3)}
    assert names < set(dict(method.named_parameters()))
    assert names < set(method.state_dict())
    before = [likelihood.variance.detach().clone() for likelihood in method.likelihoods]
    torch.optim.SGD(method.parameters(), lr=0.1).zero_grad()
    terms(method)["vid"].backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    after = [likelihood.variance.detach() for likelihood in method.likelihoods]
    assert all((a != b).all() for a, b in zip(after, before, strict=True))


def test_the_best_variance_is_the_mean_square_and_the_loss_may_be_negative() -> None:
    mean, teacher = torch.zeros(4, 1, 5, 5), 0.1 * torch.randn(4, 1, 5, 5)
    best = teacher.square().mean()
    losses = [gaussian_loss(mean, teacher, factor * best[None]) for factor in (0.9, 1, 1.1)]
    assert losses[1] < min(losses[0], losses[2])
    assert losses[1].item() == pytest.approx((1 + best.log().item()) / 2, rel=1e-5)
    assert losses[1] < 0


@pytest.mark.parametrize(
    ("teacher", "student", "weights"),
    [
        ("resnet32x4", "resnet8x4", 258_048),
        ("resnet56", "resnet20", 16_128),
        ("wrn_40_2", "wrn_16_2", 64_512),
    ],
)
def test_regressors_have_the_reference_codes_sizes(teacher: str, student: str, weights: int) -> None:
    shapes = [declared(name) for name in (student, teacher)]
    method = VID()
    method.build(*shapes, INFO)
    assert sum(p.numel() for name, p in method.named_parameters() if "mean" in name) == weights


def test_a_first_stage_trains_regressors_and_variances_alone() -> None:
    method = built(VID, init_epochs=2, alpha=1, beta=3)
    assert method.first_stage() == 2
    assert built(VID).first_stage() == 0
    maps = {name: tap.clone().requires_grad_() for name, tap in STUDENT.taps.items()}
    student = Outputs(STUDENT.logits.clone().requires_grad_(), maps)
    found = method.loss(student, TEACHER, BATCH, Progress(-1, 240))
    assert set(found) == {"vid"}
    close(found["vid"], terms(method)["vid"], rtol=1e-6)
    found["vid"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert student.logits.grad is None
    assert all(tap.grad is None for tap in maps.values())
    assert set(method.loss(student, TEACHER, BATCH, Progress(0, 240))) == {"ce", "kd", "vid"}


# relational knowledge distillation


def test_relations_by_hand() -> None:
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)  # sides 1, cos 1/2
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    mean, half = (2 + 2**0.5) / 3, 0.5**0.5
    distances = (4 * (1 - 1 / mean) ** 2 + 2 * (1 - 2**0.5 / mean) ** 2) / 2 / 9
    angles = (2 * 0.5**2 + 4 * (half - 0.5) ** 2) / 2 / 27
    assert distance_loss(equal, right).item() == pytest.approx(distances)
    assert angle_loss(equal, right).item() == pytest.approx(angles)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_or_two_samples_have_no_relations(loss: Loss, batch: int) -> None:
    student, teacher = draw("angle", 0, batch)
    assert loss(student, teacher).item() == pytest.approx(0, abs=1e-15)
    assert gradient(loss, student, teacher).abs().max() < 1e-15


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_relations_far_from_the_origin_keep_their_digits(loss: Loss) -> None:
    student, teacher = draw("angle", 0, 6)
    far = (student + 1e3).float()
    close(loss(far, teacher.float()).double(), loss(far.double(), teacher), rtol=1e-4)


@pytest.mark.parametrize("triplets", [1, 49, 100, 150])
def test_angles_in_parts_are_the_angles_at_once(triplets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = draw("angle", 0, 7)
    value, slope = angle_loss(student, teacher), gradient(angle_loss, student, teacher)
    monkeypatch.setattr(rkd, "TRIPLETS", triplets)
    close(angle_loss(student, teacher), value)
    close(gradient(angle_loss, student, teacher), slope)


@pytest.mark.parametrize("batch", [64, 256])
def test_relations_need_no_cube_of_memory(batch: int) -> None:
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(batch, 2048, generator=rng, requires_grad=True)
    teacher = torch.randn(batch, 2048, generator=rng)
    with Largest() as largest:
        (distance_loss(student, teacher) + angle_loss(student, teacher)).backward()
    assert largest.numel <= max(batch * 2048, rkd.TRIPLETS) < batch**2 * 2048


# probabilistic knowledge transfer


def test_neighbours_are_probabilities() -> None:
    found = neighbours(draw("neighbours", 0, 5)[0])
    assert found.min() >= 0
    close(found.sum(1), torch.ones(5, dtype=torch.float64))


def test_neighbours_differ_from_the_reference_code_by_its_epsilon_in_the_norms() -> None:
    p = []
    for x in VECTORS:
        directions = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-7)
        kernel = (directions @ directions.T + 1) / 2
        p.append(kernel / kernel.sum(1, keepdims=True))
    reference = float(np.mean(p[1] * np.log((p[1] + 1e-7) / (p[0] + 1e-7))))
    assert reference == pytest.approx(0.0849027549, rel=1e-8)
    assert neighbour_loss(*map(torch.tensor, VECTORS)).item() == pytest.approx(reference, rel=5e-7)


def test_neighbours_agree_up_to_their_epsilon() -> None:
    features, _ = draw("neighbours", 0, 5)
    assert neighbour_loss(features, features) == 0
    assert gradient(neighbour_loss, features, features).abs().max() < 1e-6


def test_opposite_features_are_finite() -> None:
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    _, teacher = draw("neighbours", 0, 2, torch.float32)
    assert neighbour_loss(student, teacher).isfinite()
    assert neighbour_loss(teacher, student).isfinite()
    assert gradient(neighbour_loss, student, teacher).isfinite().all()


# neuron selectivity transfer


def test_selectivity_by_hand() -> None:
    here, there = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert selectivity_loss(here, there) == 2  # 1 + 1 - 2 * 0
    assert selectivity_loss(here, torch.cat([here, there], 1)) == 0.5  # 1 + 1/2 - 2 * 1/2


@given(seeds, batches)
@quick
def test_channels_and_places_give_one_number(seed: int, batch: int) -> None:
    student, teacher = (unit(x.flatten(2)) for x in draw("selectivity", seed, batch))
    close(by_channels(student, teacher), by_places(student, teacher))
    close(gradient(by_channels, student, teacher), gradient(by_places, student, teacher))


@pytest.mark.parametrize("shape", [(256, 32), (512, 16), (1024, 8), (2048, 4)])
def test_selectivity_of_resnet50_needs_the_smaller_side(shape: tuple[int, int]) -> None:
    channels, side = shape
    student, teacher = (
        torch.randn(2, channels, side, side, requires_grad=True),
        torch.randn(2, 16, side, side),
    )
    with Largest() as largest:
        selectivity_loss(student, teacher).backward()
    assert largest.numel <= max(student.numel(), 2 * 256**2)
    assert largest.numel < 2 * channels * 16 * side**2


class Largest(TorchDispatchMode):
    """Watches the sizes of all tensors that are made, in the backward pass too."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        # a view counts as what it holds in memory
        self.numel = max([self.numel, *(x.untyped_storage().nbytes() // x.element_size() for x in made)])
        return out


# the methods

LABELS = torch.tensor([0, 3, 2, 1])
INFO = DataInfo(4, LABELS)
BATCH = Batch(torch.zeros(4, 1, 2, 2), LABELS, torch.arange(4))
MINE: Shapes = {"stage1": (2, 8, 8), "stage2": (3, 4, 4), "stage3": (4, 2, 2), "embed": (4,), "logits": (4,)}
THEIRS: Shapes = {**MINE, "stage1": (5, 8, 8), "stage2": (6, 4, 4), "stage3": (7, 2, 2), "embed": (7,)}


def outputs(shapes: Shapes, seed: int) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    taps = {name: torch.randn(4, *shape, generator=rng) for name, shape in shapes.items()}
    return Outputs(taps.pop("logits"), taps)


def only(out: Outputs, wish: tuple[str, ...]) -> Outputs:
    """The outputs with the wished-for taps alone, as the engine gives them."""
    taps = {k: v for k, v in out.taps.items() if k in wish or ("stages" in wish and k.startswith("stage"))}
    return Outputs(out.logits, taps)


STUDENT, TEACHER = outputs(MINE, 0), outputs(THEIRS, 1)


def built(kind: type[Method], student: Shapes = MINE, teacher: Shapes = THEIRS, **values: Any) -> Any:
    torch.manual_seed(0)
    method = kind(kind.Config(**values))
    method.build(student, teacher, INFO)
    return method


def terms(method: Method) -> dict[str, Tensor]:
    wish = method.taps()
    return method.loss(only(STUDENT, wish.student), only(TEACHER, wish.teacher), BATCH, Progress(0, 240))


def declared(name: str) -> Shapes:
    """Shapes of a network's stages for images of 32 pixels, as it declares them."""
    spec = models.get(name)
    taps = {stage: spec.taps[stage] for stage in spec.stages}
    return {stage: (tap.channels, tap.size(32), tap.size(32)) for stage, tap in taps.items()}


def over_stages(loss: Loss) -> Tensor:
    return sum((loss(STUDENT[k], TEACHER[k]) for k in ("stage1", "stage2", "stage3")), torch.zeros(()))


EMBED = STUDENT["embed"], TEACHER["embed"]
METHODS: list[tuple[type[Method], str, float, dict[str, Any], Callable[[], Tensor]]] = [
    (AT, "at", 1000, {}, lambda: over_stages(attention_loss)),
    (SP, "sp", 3000, {}, lambda: similarity_loss(STUDENT["stage3"], TEACHER["stage3"])),
    (CC, "cc", 0.02, {"form": "kernel"}, lambda: kernel_loss(*EMBED, 0.4, 2)),
    (RKD, "distance", 25, {}, lambda: distance_loss(*EMBED)),
    (RKD, "angle", 50, {}, lambda: angle_loss(*EMBED)),
    (PKT, "pkt", 30000, {}, lambda: neighbour_loss(*EMBED)),
    (NST, "nst", 50, {}, lambda: over_stages(selectivity_loss)),
]


@pytest.mark.parametrize(
    ("kind", "term", "weight", "values", "expected"),
    METHODS,
    ids=[f"{row[0].name}-{row[1]}" for row in METHODS],
)
def test_weights(
    kind: type[Method], term: str, weight: float, values: dict[str, Any], expected: Callable[[], Tensor]
) -> None:
    own = {"distance", "angle"} if kind is RKD else {term}
    found = terms(built(kind, **values))
    assert set(found) == {"ce", *own}
    close(found["ce"], cross_entropy(STUDENT.logits, LABELS), rtol=1e-6)
    close(found[term], weight * expected(), rtol=1e-5)
    default = kind.Config().beta
    found = terms(built(kind, **values, gamma=0.5, alpha=0.7, temperature=2, beta=3 * default))
    assert set(found) == {"ce", "kd", *own}
    close(found["ce"], 0.5 * cross_entropy(STUDENT.logits, LABELS), rtol=1e-6)
    close(found["kd"], 0.7 * kl(STUDENT.logits, TEACHER.logits, 2), rtol=1e-6)
    close(found[term], 3 * weight * expected(), rtol=1e-5)


def test_weights_of_trained_parts() -> None:
    cc, vid = built(CC), built(VID)
    embeddings = cc.student_embedding(EMBED[0]), cc.teacher_embedding(EMBED[1])
    close(terms(cc)["cc"], 0.02 * embedding_loss(*embeddings), rtol=1e-6)
    names = "stage1", "stage2", "stage3"
    parts = [link(STUDENT[k], TEACHER[k]) for link, k in zip(vid.likelihoods, names, strict=True)]
    close(terms(vid)["vid"], sum(parts), rtol=1e-6)


@pytest.mark.parametrize("kind", [AT, VID, NST])
def test_stages_pair_by_size_and_not_by_position(kind: type[Method]) -> None:
    sizes = {"stage1": (5, 16, 16), "stage2": (5, 8, 8), "stage3": (6, 4, 4), "stage4": (7, 4, 4)}
    deeper: Shapes = {**sizes, "logits": (4,)}
    assert built(kind, MINE, deeper).pairs == [("stage1", "stage2"), ("stage2", "stage4")]
    assert built(kind, deeper, MINE).pairs == [("stage2", "stage1"), ("stage4", "stage2")]


@pytest.mark.parametrize("kind", [AT, VID, NST, SP])
def test_networks_without_stages_are_refused_with_a_reason(kind: type[Method]) -> None:
    flat, resnet = models.get("two_layer_20"), models.get("resnet20")
    assert "stage" in (kind().skip(flat, resnet) or "")
    assert "stage" in (kind().skip(resnet, flat) or "")
    assert kind().skip(resnet, models.get("vgg13")) is None
