"""CRD, ReviewKD and OFD: limits, invariances and cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from kdpipe.api import Batch, DataInfo, ModelSpec, Outputs, Progress, Shapes
from kdpipe.core.errors import ConfigError
from kdpipe.core.registry import models
from kdpipe.methods import crd as crd_module
from kdpipe.methods.crd import CRD, ClassDraw, nce_loss, similarities
from kdpipe.methods.ofd import OFD, MeanNegative, expected_negative, partial_distance
from kdpipe.methods.reviewkd import Fusion, ReviewKD, context_loss
from kdpipe.nn.taps import catch, expand, norms, shapes
from tests.golden import numpy_review

LABELS = torch.tensor([2, 0, 2, 1, 2, 2, 0, 2, 1, 2])  # classes of 2, 2 and 6 samples
DATA = DataInfo(4, LABELS)  # and one without any
START = Progress(0, 240)
CIFAR_PAIRS = [  # (teacher, student) of the papers' tables
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("vgg13", "mobilenetv2"),
    ("resnet50", "mobilenetv2"),
    ("resnet50", "vgg8"),
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("wrn_40_2", "shufflenetv1"),
    ("resnet34", "resnet18"),
    ("resnet50", "resnet34"),
]
IMAGENET_PAIRS = [
    ("imagenet_resnet34", "imagenet_resnet18"),
    ("imagenet_resnet50", "imagenet_mobilenetv1"),
]


def tap_shapes(name: str, wish: tuple[str, ...], side: int) -> Shapes:
    spec: ModelSpec = models.get(name)
    with torch.device("meta"):
        network = spec.build(100, 3)
    return shapes(network, spec, expand(spec, wish), (3, side, side))


def built(method: OFD | ReviewKD, pair: tuple[str, str], side: int = 32) -> OFD | ReviewKD:
    teacher, student = pair
    assert method.skip(models.get(student), models.get(teacher)) is None
    wish = method.taps()
    found = tap_shapes(student, wish.student, side), tap_shapes(teacher, wish.teacher, side)
    method.build(*found, DATA)
    return method


def outputs(found: Shapes) -> Outputs:
    taps = {name: torch.randn(2, *shape) for name, shape in found.items()}
    return Outputs(taps.pop("logits"), taps)


def terms(method: OFD | ReviewKD, pair: tuple[str, str], side: int = 32, at: Progress = START) -> Tensor:
    wish = method.taps()
    s = outputs(tap_shapes(pair[1], wish.student, side))
    t = outputs(tap_shapes(pair[0], wish.teacher, side))
    batch = Batch(torch.zeros(2, 3, side, side), LABELS[:2], torch.arange(2))
    return method.loss(s, t, batch, at)[method.name.removesuffix("kd")]


def extra(method: OFD | ReviewKD) -> int:
    return sum(p.numel() for p in method.parameters())


# CRD


def test_negatives_are_never_of_the_anchors_class_and_uniform_over_the_others() -> None:
    torch.manual_seed(0)
    draw = ClassDraw(LABELS, 4)
    anchors = torch.tensor([0, 1, 2])
    drawn = draw.others(anchors, 20_000)
    for label, row in zip(anchors, drawn, strict=True):
        counts = torch.bincount(row, minlength=len(LABELS))
        assert not counts[label == LABELS].any()
        assert stats.chisquare(counts[label != LABELS]).pvalue > 1e-3


def test_relaxed_positives_are_uniform_over_the_class() -> None:
    torch.manual_seed(0)
    drawn = ClassDraw(LABELS, 4).own(torch.full((20_000,), 2)).flatten()
    counts = torch.bincount(drawn, minlength=len(LABELS))
    assert not counts[LABELS != 2].any()
    assert stats.chisquare(counts[LABELS == 2]).pvalue > 1e-3


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(lambda labels: len(set(labels)) > 1))
def test_any_class_sizes_will_do(labels: list[int]) -> None:
    found = torch.tensor(labels)
    draw = ClassDraw(found, 4)
    assert (found[draw.others(found, 50)] != found[:, None]).all()
    assert (found[draw.own(found)] == found[:, None]).all()


def made(seed: int = 0, labels: Tensor = LABELS, **settings: Any) -> CRD:
    torch.manual_seed(seed)
    method = CRD(CRD.Config(**{"negatives": 7, "dim": 4, **settings}))
    method.build({"embed": (5,)}, {"embed": (6,)}, DataInfo(4, labels))
    return method.train()


def crd_batch(seed: int = 1) -> tuple[Outputs, Outputs, Batch]:
    torch.manual_seed(seed)
    index = torch.tensor([7, 1, 3])
    s, t = (Outputs(torch.randn(3, 4), {"embed": torch.randn(3, d)}) for d in (5, 6))
    return s, t, Batch(torch.zeros(3, 1, 2, 2), LABELS[index], index)


def vectors(method: CRD, s: Outputs, t: Outputs) -> tuple[Tensor, Tensor]:
    v_s, v_t = method.student_map(s["embed"]), method.teacher_map(t["embed"])
    return v_s / v_s.norm(dim=1, keepdim=True), v_t / v_t.norm(dim=1, keepdim=True)


def test_crd_is_the_estimate_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    method, (s, t, batch) = made(), crd_batch()
    index = torch.stack([torch.tensor([i, 0, 2, 4, 4, 9]) for i in batch.index.tolist()])
    monkeypatch.setattr(method, "_candidates", lambda batch: index)
    v_s, v_t = (v.detach().double().numpy() for v in vectors(method, s, t))
    m_s, m_t = (bank.double().numpy() for bank in (method.student_bank, method.teacher_bank))
    wanted = sum(numpy_review.contrast(v, m, index.numpy(), 0.07) for v, m in ((v_s, m_t), (v_t, m_s)))
    assert method.loss(s, t, batch, START)["crd"].item() == pytest.approx(0.8 * wanted, rel=1e-5)


def test_the_first_batch_sets_the_normalisers_for_good() -> None:
    method, (s, t, batch) = made(), crd_batch()
    method.eval()
    method.loss(s, t, batch, START)
    assert not method.started
    method.train()
    method.loss(s, t, batch, START)
    first = method.log_z.clone()
    assert method.started
    assert first.any()
    method.loss(*crd_batch(seed=2)[:2], batch, START)
    assert torch.equal(method.log_z, first)


def test_the_normaliser_makes_ratios_average_one_over_n() -> None:
    method = made()
    scores = [torch.randn(3, 8) * 50, torch.randn(3, 8)]
    log_z = method._normalisers(scores)
    for score, z in zip(scores, log_z, strict=True):
        assert (score - z).exp().mean().item() == pytest.approx(1 / len(LABELS), rel=1e-4)


def test_memories_take_in_the_batch_after_its_loss_and_in_training_only() -> None:
    method, (s, t, batch) = made(momentum=0.25), crd_batch()
    before = method.student_bank.clone(), method.teacher_bank.clone()
    method.eval().loss(s, t, batch, START)
    assert torch.equal(method.student_bank, before[0])
    method.train().loss(s, t, batch, START)
    banks = method.student_bank, method.teacher_bank
    for old, new, vector in zip(before, banks, vectors(method, s, t), strict=True):
        moved = 0.25 * old[batch.index] + 0.75 * vector
        torch.testing.assert_close(new[batch.index], moved / moved.norm(dim=1, keepdim=True))
        rest = [i for i in range(len(LABELS)) if i not in batch.index]
        assert torch.equal(new[rest], old[rest])
        assert not new.requires_grad


def test_the_gradient_is_that_of_the_memory_before_the_update() -> None:
    method, (s, t, batch) = made(), crd_batch()
    torch.manual_seed(5)
    method.eval().loss(s, t, batch, START)["crd"].backward()
    wanted = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    torch.manual_seed(5)
    method.train().loss(s, t, batch, START)["crd"].backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(method.parameters(), wanted, strict=True))


def test_crd_resumes_from_its_state() -> None:
    one, other = made(), made(seed=3)
    one.loss(*crd_batch(), START)
    assert {"student_bank", "teacher_bank", "log_z", "started"} <= set(one.state_dict())
    other.load_state_dict(one.state_dict())
    found = []
    for method in (one, other):
        torch.manual_seed(4)
        s, t, batch = crd_batch(seed=2)
        found.append([method.loss(s, t, batch, START)["crd"].item() for _ in range(3)])
    assert found[0] == found[1]


def test_crd_refuses_one_class() -> None:
    with pytest.raises(ConfigError, match="one label"):
        made(labels=torch.ones(5, dtype=torch.int64))


def test_memory_rows_have_the_published_spread() -> None:
    method = CRD()
    method.build({"embed": (5,)}, {"embed": (6,)}, DataInfo(2, torch.arange(2000) % 2))
    bound = 1 / math.sqrt(128 / 3)
    for bank in (method.student_bank, method.teacher_bank):
        assert bank.abs().max() <= bound
        assert bank.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_blocks_do_not_change_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    anchors, bank = torch.randn(7, 3, dtype=torch.float64, requires_grad=True), torch.randn(10, 3).double()
    index = torch.randint(10, (7, 25))
    wanted = (anchors[:, None] * bank[index]).sum(2)
    for block in (1, 25, 2**24):
        monkeypatch.setattr(crd_module, "BLOCK", block)
        torch.testing.assert_close(similarities(anchors, bank, index), wanted)
        assert torch.autograd.gradcheck(lambda v: similarities(v, bank, index), anchors)


def test_zero_features_are_no_reason_to_fail() -> None:
    method, (s, t, batch) = made(), crd_batch()
    with torch.no_grad():
        for linear in (method.student_map, method.teacher_map):
            linear.bias.zero_()
    zeros = [
        Outputs(out.logits, {"embed": torch.zeros_like(out["embed"], requires_grad=True)}) for out in (s, t)
    ]
    loss = method.loss(*zeros, batch, START)["crd"]
    loss.backward()
    assert loss.isfinite()
    assert zeros[0]["embed"].grad.isfinite().all()
    assert method.student_bank.isfinite().all()


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_nce_is_positive_and_finite_at_any_similarity(positive: float, negative: float) -> None:
    log_p = torch.tensor([[positive, negative]], requires_grad=True)
    loss = nce_loss(log_p, 50_000)
    loss.backward()
    assert loss >= 0
    assert loss.isfinite()
    assert log_p.grad.isfinite().all()


# ReviewKD


def test_published_number_of_extra_parameters() -> None:
    assert extra(built(ReviewKD(), ("resnet32x4", "resnet8x4"))) == 1_808_774


@pytest.mark.parametrize("pair", CIFAR_PAIRS, ids="-".join)
@pytest.mark.parametrize("settings", [{}, {"student_pre": True}, {"teacher_pre": False}], ids=str)
def test_review_of_the_papers_pairs(pair: tuple[str, str], settings: dict[str, Any]) -> None:
    method = ReviewKD(ReviewKD.Config(**settings))
    teacher, student = (models.get(name) for name in pair)
    if len(teacher.stages) == len(student.stages):
        assert len(built(method, pair).levels) == len(student.stages) + 1
    else:
        assert len(built(method, pair).levels) >= 3
    assert terms(method, pair, at=Progress(20, 240)).isfinite()


@pytest.mark.parametrize("pair", IMAGENET_PAIRS, ids="-".join)
def test_review_on_imagenet(pair: tuple[str, str]) -> None:
    method = built(ReviewKD(ReviewKD.Config(student_pre=True)), pair, side=224)
    assert [t for _, t in method.levels] == ["embed", "stage4", "stage3", "stage2", "stage1"]
    assert [fusion.size for fusion in method.fusions] == [(n, n) for n in (1, 7, 14, 28, 56)]


@pytest.mark.parametrize(
    ("pair", "sizes"),
    [  # the sizes that the authors type for these pairs
        (("resnet50", "mobilenetv2"), (1, 4, 8, 16, 32)),
        (("vgg13", "mobilenetv2"), (1, 4, 4, 8, 16)),
        (("vgg13", "vgg8"), (1, 4, 4, 8, 16)),
        (("resnet32x4", "shufflenetv1"), (1, 8, 16, 32)),
    ],
)
def test_fusions_have_the_published_sizes(pair: tuple[str, str], sizes: tuple[int, ...]) -> None:
    assert [fusion.size for fusion in built(ReviewKD(), pair).fusions] == [(n, n) for n in sizes]


def test_maps_are_fused_in_at_most_512_channels() -> None:
    method = built(ReviewKD(), ("resnet50", "mobilenetv2"))  # its features have 1280
    assert {fusion.narrow[0].out_channels for fusion in method.fusions} == {512}


@pytest.mark.parametrize(
    ("warmup", "epoch", "weight"), [(20, 0, 0), (20, 5, 0.25), (20, 20, 1), (20, 239, 1), (0, 0, 1)]
)
def test_review_warms_up_by_epochs_counted_from_zero(warmup: int, epoch: int, weight: float) -> None:
    method = built(ReviewKD(ReviewKD.Config(beta=3, warmup=warmup)), ("resnet14", "resnet8")).eval()
    levels = torch.stack(
        [
            terms(method, ("resnet14", "resnet8"), at=at)
            for at in (Progress(epoch, 240), Progress(10_000, 240))
            for _ in [torch.manual_seed(0)]
        ]
    )
    torch.testing.assert_close(levels[0], weight * levels[1])


def test_fusion_weighs_two_maps_at_each_place() -> None:
    torch.manual_seed(0)
    fusion = Fusion(3, 4, (5, 6, 6), deepest=False).eval()
    maps, deeper = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)
    out, fused = fusion(maps, deeper)
    mine = fusion.narrow(maps)
    enlarged = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    kernel, bias = fusion.attention.weight[:, :, 0, 0], fusion.attention.bias
    logits = torch.einsum("oc,bchw->bohw", kernel, torch.cat([mine, enlarged], 1)) + bias[:, None, None]
    weights = 1 / (1 + (-logits).exp())
    wanted = weights[:, :1] * mine + weights[:, 1:] * enlarged
    places = torch.tensor([0, 0, 1, 2, 2, 3])  # nearest neighbours of 6 in 4
    torch.testing.assert_close(fused, wanted[:, :, places][:, :, :, places])
    torch.testing.assert_close(out, fusion.widen(fused))


def test_context_loss_of_a_constant_gap_is_its_square_at_every_scale() -> None:
    maps = torch.randn(2, 3, 8, 8)
    assert context_loss(maps + 3, maps).item() == pytest.approx(9, rel=1e-5)


def test_context_loss_of_maps_of_one_place_is_the_squared_difference() -> None:
    s, t = torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(context_loss(s, t), (s - t).square().mean())


def test_review_skips_what_has_no_stages() -> None:
    reason = ReviewKD().skip(models.get("two_layer_20"), models.get("resnet20"))
    assert reason == "two_layer_20 has no stages"


# OFD


@pytest.mark.parametrize(
    ("weight", "bias", "wanted"),
    [
        (1, 0, -0.797884561),
        (1, 0.5, -0.64107777),
        (1, 2, -0.373215533),
        (1, 4, -3),
        (0.5, -0.3, -0.529573568),
    ],
)
def test_margins_are_those_of_the_formula(weight: float, bias: float, wanted: float) -> None:
    found = expected_negative(*torch.tensor([[weight], [bias]], dtype=torch.float64))
    assert found.item() == pytest.approx(wanted, rel=1e-8)
    assert torch.equal(expected_negative(*torch.tensor([[-weight], [bias]], dtype=torch.float64)), found)


@given(st.floats(0.01, 3), st.floats(-6, 6))
def test_margins_are_those_of_numpy(weight: float, bias: float) -> None:
    if abs(bias / weight - 3.0902) < 1e-3:  # where Phi(-bias / weight) = 0.001, and the margin jumps
        return
    found = expected_negative(*torch.tensor([[weight], [bias]], dtype=torch.float64)).item()
    assert found == pytest.approx(numpy_review.margin(weight, bias), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("weight", "bias", "wanted"),
    [(0, -0.7, -0.7), (0, 0.7, 0), (0, 0, 0), (1e-30, -2, -2), (1e-3, -1e4, -1e4), (1e-3, 1e4, -3e-3)],
)
def test_margins_without_spread_do_not_divide_by_zero(weight: float, bias: float, wanted: float) -> None:
    found = expected_negative(torch.tensor([float(weight)]), torch.tensor([float(bias)]))
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_partial_distance_by_hand() -> None:
    teacher = torch.tensor([2.0, 2.0, -0.1, -0.1, -3.0, -3.0, -3.0])
    student = torch.tensor([1.0, 4.0, -2.0, 0.5, -5.0, -0.7, 1.0])
    # the last three aim at the margin; a student below a silent target is right
    wanted = [1.0, 4.0, 0, 0.36, 0, 0, 2.25]
    for s, t, w in zip(student, teacher, wanted, strict=True):
        loss = partial_distance(s.reshape(1, 1, 1, 1), t.reshape(1, 1, 1, 1), torch.tensor([-0.5]))
        assert loss.item() == pytest.approx(w)


def test_a_silent_student_of_a_silent_teacher_gets_no_gradient() -> None:
    student = torch.full((2, 3, 2, 2), -1.0, requires_grad=True)
    partial_distance(student, -torch.rand(2, 3, 2, 2) / 2, -torch.rand(3)).backward()
    assert not student.grad.any()


@pytest.mark.parametrize(
    ("pair", "count"),
    [
        (("resnet32x4", "resnet8x4"), 86_912),
        (("resnet56", "resnet20"), 5_600),
        (("wrn_40_2", "wrn_16_2"), 21_952),
    ],
)
def test_published_numbers_of_connector_parameters(pair: tuple[str, str], count: int) -> None:
    assert extra(built(OFD(), pair)) == count


@pytest.mark.parametrize("pair", [*CIFAR_PAIRS, *IMAGENET_PAIRS], ids="-".join)
@pytest.mark.parametrize("margins", ["norm", "responses"])
def test_overhaul_of_the_papers_pairs(pair: tuple[str, str], margins: str) -> None:
    side = 224 if pair in IMAGENET_PAIRS else 32
    method = built(OFD(OFD.Config(margins=margins)), pair, side)
    assert len(method.pairs) >= 2
    assert terms(method, pair, side).isfinite()


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "resnet18", "shufflenetv1"])
def test_margins_belong_to_their_own_stage(name: str) -> None:
    spec: ModelSpec = models.get(name)
    network = spec.build(10, 3)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    method = OFD()
    found = shapes(network, spec, expand(spec, ("stages.pre",)), (3, 32, 32))
    method.build(found, found, DATA)
    known = norms(network, spec, ["stages.pre"])
    method.read_norms(known)
    for n, (_, tap) in enumerate(method.pairs):
        path = spec.taps[tap].norm
        norm = network.get_submodule(path)
        assert torch.equal(method.state_dict()[f"margin{n}"], expected_negative(norm.weight, norm.bias))


def test_stages_weigh_twice_as_much_as_the_one_before() -> None:
    method = OFD(OFD.Config(beta=2)).eval()
    found: Shapes = {f"stage{n}.pre": (3, 8 // n, 8 // n) for n in (1, 2, 4)}
    method.build(found, found, DATA)
    taps = {name: torch.randn(2, *shape) for name, shape in found.items()}
    t = {name: torch.randn_like(tap) for name, tap in taps.items()}
    batch = Batch(torch.zeros(2, 1, 8, 8), LABELS[:2], torch.arange(2))
    total = method.loss(Outputs(torch.randn(2, 4), taps), Outputs(torch.randn(2, 4), t), batch, START)["ofd"]
    parts = [
        partial_distance(connect(taps[name]), t[name], torch.zeros(3))
        for connect, name in zip(method.connectors, found, strict=True)
    ]
    torch.testing.assert_close(total, 2 * (parts[0] / 4 + parts[1] / 2 + parts[2]))


def test_mean_negative_is_that_of_all_batches() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 2, 3, 3) - torch.tensor([0.5, -0.5])[:, None, None] for _ in range(5)]
    batches[2][:, 0] = 1  # a batch in which the channel is never negative
    seen = MeanNegative(2)
    for batch in batches:
        found = seen(batch)
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found, torch.stack([row[row < 0].mean() for row in values]))
    before = seen.mean.clone()
    seen.eval()(torch.full((1, 2, 1, 1), -100.0))
    assert torch.equal(seen.mean, before)


def test_mean_negative_approaches_the_formula() -> None:
    torch.manual_seed(0)
    weight, bias = torch.tensor([1.0, 0.5]), torch.tensor([0.5, -0.3])
    maps = bias[:, None, None] + weight[:, None, None] * torch.randn(500, 2, 20, 20)
    torch.testing.assert_close(MeanNegative(2)(maps), expected_negative(weight, bias), rtol=0.02, atol=0)


def test_a_teacher_whose_norm_is_unknown_is_skipped_with_the_way_out() -> None:
    student = models.get("shufflenetv1")
    for name in ("shufflenetv2", "mobilenetv2"):
        reason = OFD().skip(student, models.get(name))
        assert reason is not None
        assert "margins: responses" in reason
        assert OFD(OFD.Config(margins="responses")).skip(student, models.get(name)) is None


def test_statistics_of_the_teacher() -> None:
    assert OFD().taps().batch_statistics
    assert not OFD(OFD.Config(teacher_statistics="eval")).taps().batch_statistics


def test_a_wide_resnet_runs_its_batch_norms_once() -> None:
    """The reference code reads the maps by a second pass, which moves the running statistics twice."""
    spec = models.get("wrn_16_1")
    model = spec.build(10, 3).train()
    catch(model, spec, ["stages.pre"])(torch.randn(2, 3, 16, 16))
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert counts == {1}


def test_numpy_pooling_is_torchs() -> None:
    maps = np.arange(2 * 3 * 8 * 8, dtype=float).reshape(2, 3, 8, 8)
    wanted = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(maps), 4)
    assert np.allclose(numpy_review.pooled(maps, 4), wanted.numpy())
