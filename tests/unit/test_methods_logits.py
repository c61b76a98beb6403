"""Properties of the methods that match logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.api import Batch, DataInfo, Method, Outputs, Progress
from kdpipe.core.errors import UnknownNameError
from kdpipe.core.registry import methods
from kdpipe.engine.augment import Pipeline
from kdpipe.methods.binarykl import BinaryKL
from kdpipe.methods.binarykl_norm import BinaryKLNorm
from kdpipe.methods.ce_binarykl import CEBinaryKL
from kdpipe.methods.dist import DIST, inter_loss, intra_loss, pearson_distance
from kdpipe.methods.dkd import DKD
from kdpipe.methods.dual_head_kd import DualHeadKD
from kdpipe.methods.kd import KD
from kdpipe.methods.logit_std_kd import LogitStdKD, standardise
from kdpipe.methods.mlld import MLLD, batch_loss, class_loss
from kdpipe.methods.mse import MSE, logit_mse
from kdpipe.methods.ttm import TTM, ttm_loss
from kdpipe.methods.wttm import WTTM, power_sum, wttm_loss
from kdpipe.nn.logits import binary_kl, binary_kl_norm, cross_entropy, kl
from tests.contract.helpers import Bench, variants
from tests.golden import numpy_logits
from tests.golden.inputs import LABELS, STUDENT_LOGITS, TEACHER_LOGITS, wave

quick = settings(max_examples=25, deadline=None)
temperatures = st.floats(0.5, 8)
Given = tuple[Tensor, Tensor]

Y = torch.tensor(LABELS)
IMAGES = torch.zeros(8, 1, 2, 2)
BATCH = Batch(IMAGES, Y, torch.arange(8), (IMAGES + 1,))
S, T = torch.tensor(STUDENT_LOGITS), torch.tensor(TEACHER_LOGITS)
STRONG_S, STRONG_T = (torch.tensor(wave((8, 10), a, b, 3)) for a, b in ((0.53, 0.2), (0.71, 0.9)))
STUDENT = Outputs(S, {}, (Outputs(STRONG_S),))
TEACHER = Outputs(T, {}, (Outputs(STRONG_T),))
CE = cross_entropy(S, Y)

MEMBERS = ("logit_std_dkd", "logit_std_mlld", "logit_std_dist", "logit_std_ttm", "logit_std_binarykl")


@st.composite
def logits(draw: st.DrawFn, bound: float = 10) -> Given:
    """Student's and teacher's logits: B x C, float64."""
    batch, classes = draw(st.integers(2, 5)), draw(st.integers(2, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.floats(0.1, bound))
    student, teacher = scale * torch.randn(2, batch, classes, dtype=torch.float64, generator=rng)
    return student, teacher


def terms(method: Method) -> dict[str, Tensor]:
    return method.loss(STUDENT, TEACHER, BATCH, Progress(30, 240))


def assert_terms(found: dict[str, Tensor], **expected: Tensor) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at)[0]


# ---- how the methods weigh their terms


def test_logits_alone_unless_the_labels_have_a_weight() -> None:
    assert_terms(terms(MSE()), mse=logit_mse(S, T))
    assert_terms(terms(BinaryKL()), kd=binary_kl(S, T, 2))
    assert_terms(terms(BinaryKLNorm()), kd=binary_kl_norm(S, T, 2))
    assert_terms(terms(MSE(MSE.Config(gamma=0.5, alpha=3))), ce=CE / 2, mse=3 * logit_mse(S, T))


def test_collapsing_sum_is_the_sum_of_its_parts() -> None:
    assert_terms(terms(CEBinaryKL()), ce=CE, kd=binary_kl(S, T, 2))
    other = CEBinaryKL.Config(loss="binarykl_norm", alpha=0.1, temperature=3)
    assert_terms(terms(CEBinaryKL(other)), ce=CE, kd=0.1 * binary_kl_norm(S, T, 3))
    whole = terms(BinaryKL(BinaryKL.Config(gamma=1)))
    assert_terms(whole, **terms(CEBinaryKL()))


def test_correlations_and_transforms() -> None:
    assert_terms(terms(DIST()), ce=CE, inter=2 * inter_loss(S, T, 4), intra=2 * intra_loss(S, T, 4))
    assert_terms(terms(TTM()), ce=CE, ttm=45 * ttm_loss(S, T, 10))
    assert_terms(terms(WTTM()), ce=CE, wttm=4 * wttm_loss(S, T, 5))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_second_head_alone_learns_from_the_teacher(head: str) -> None:
    torch.manual_seed(0)
    method = DualHeadKD(DualHeadKD.Config(head=head, alpha=0.5)).eval().double()
    method.build({"embed": (6,), "logits": (10,)}, {"logits": (10,)}, DataInfo(10, Y))
    method.double().eval()
    embed, main = torch.randn(8, 6, dtype=torch.float64), S.clone().requires_grad_()
    found = method.loss(Outputs(main, {"embed": embed}), TEACHER, BATCH, Progress(0, 1))
    assert_terms(found, ce=CE, kd=0.5 * kl(method.head(embed), T, 4))
    assert torch.autograd.grad(found["kd"], main, allow_unused=True, retain_graph=True) == (None,)


def test_which_methods_read_logits_only() -> None:
    known = {"binarykl", "binarykl_norm", "ce_binarykl", "dist", "dkd", "kd", "logit_std_kd", "mlld", "mse"}
    assert {n for n, m in methods.items() if m.logit_only} >= known | {"ttm", "wttm"}
    assert not any(methods.get(n).logit_only for n in ("scratch", "dhkd", "dual_head_kd", "fitnet"))


# ---- what the losses do not see


@given(logits(), temperatures, st.floats(-5, 5))
@quick
def test_shift_of_all_logits(given: Given, temperature: float, shift: float) -> None:
    student, teacher = given
    for loss in (ttm_loss, inter_loss, intra_loss, batch_loss, class_loss):
        for moved in ((student + shift, teacher), (student, teacher + shift)):
            torch.testing.assert_close(
                loss(*moved, temperature), loss(student, teacher, temperature), atol=1e-9, rtol=1e-7
            )
    torch.testing.assert_close(logit_mse(teacher + shift, teacher).item(), shift**2)


@given(logits(), temperatures)
@quick
def test_order_of_the_batch(given: Given, temperature: float) -> None:
    student, teacher = given
    for loss in (ttm_loss, inter_loss, intra_loss, batch_loss, class_loss):
        flipped = loss(student.flip(0), teacher.flip(0), temperature)
        torch.testing.assert_close(flipped, loss(student, teacher, temperature), atol=1e-9, rtol=1e-7)


@given(logits(), st.floats(0.1, 5), st.floats(-1, 1))
@quick
def test_correlation_forgets_positive_affine_maps_of_rows(given: Given, scale: float, shift: float) -> None:
    p, q = (standardise(z) for z in given)  # far from constant, where the 1e-8 beside the norms would show
    factors = scale * torch.linspace(0.5, 2, len(p), dtype=p.dtype)[:, None]
    torch.testing.assert_close(
        pearson_distance(factors * p + shift, q), pearson_distance(p, q), atol=1e-4, rtol=1e-4
    )
    assert -1e-9 <= pearson_distance(p, q) <= 2


def test_correlation_is_undone_by_a_sign() -> None:
    rows = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    assert pearson_distance(rows, rows).item() == pytest.approx(0, abs=1e-7)
    assert pearson_distance(rows, -rows).item() == pytest.approx(2, abs=1e-7)
    assert pearson_distance(rows, torch.ones_like(rows)).item() == 1


def test_uniform_rows_correlate_with_nothing_and_stay_finite() -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    loss = inter_loss(student, torch.randn(4, 3), 1) + intra_loss(student, torch.zeros(4, 3), 1)
    assert loss.item() == 2
    assert gradient(loss, student).isfinite().all()


# ---- transformed teacher matching


@given(logits(), st.floats(1, 10))
@quick
def test_ttm_is_the_divergence_from_the_power_transform(given: Given, temperature: float) -> None:
    student, teacher = given
    power = teacher.softmax(1) ** (1 / temperature)
    target = power / power.sum(1, keepdim=True)
    expected = (target * (target.log() - student.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(ttm_loss(student, teacher, temperature), expected, atol=1e-9, rtol=1e-6)


@given(logits(), st.floats(1, 10))
@quick
def test_ttm_is_zero_only_at_the_softened_teacher(given: Given, temperature: float) -> None:
    _, teacher = given
    assert ttm_loss(teacher / temperature, teacher, temperature).abs() < 1e-9
    assert wttm_loss(teacher / temperature, teacher, temperature).abs() < 1e-9
    assert ttm_loss(teacher / temperature + teacher, teacher, temperature) > 0


@given(logits(bound=50), st.floats(1, 10))
@quick
def test_weight_lies_between_one_and_a_power_of_the_classes(given: Given, temperature: float) -> None:
    _, teacher = given
    weight, most = power_sum(teacher, temperature), teacher.shape[1] ** (1 - 1 / temperature)
    assert (weight >= 1 - 1e-9).all()
    assert (weight <= most * (1 + 1e-9)).all()
    flat = power_sum(torch.zeros_like(teacher), temperature)
    torch.testing.assert_close(flat, torch.full_like(flat, most))


def test_weights_of_extremes() -> None:
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    assert power_sum(sure, 4).item() == 1
    assert power_sum(torch.zeros(1, 100), 4).item() == pytest.approx(31.6227766, rel=1e-6)


def test_wttm_is_ttm_at_temperature_one() -> None:
    torch.testing.assert_close(wttm_loss(S, T, 1), ttm_loss(S, T, 1))
    torch.testing.assert_close(ttm_loss(S, T, 1), kl(S, T, 1))


def test_wttm_weighs_smooth_samples_more() -> None:
    teacher = torch.tensor([[20.0, 0.0, 0.0], [0.1, 0.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    each = [ttm_loss(s[None], t[None], 4) for s, t in zip(student, teacher, strict=True)]
    weighed = [wttm_loss(s[None], t[None], 4) for s, t in zip(student, teacher, strict=True)]
    assert weighed[0] / each[0] < 1.1 < 2 < weighed[1] / each[1]


# ---- multi-level logit distillation


@pytest.mark.parametrize("form", ["paper", "code"])
def test_levels_are_those_of_the_numpy_version(form: str) -> None:
    arrays = (STUDENT_LOGITS, TEACHER_LOGITS, STRONG_S.numpy(), STRONG_T.numpy())
    expected = numpy_logits.multi_level(*arrays, form)
    weights = (0.1, 0.9, 0.9, 0.9)
    found = terms(MLLD(MLLD.Config(form=form)))
    assert list(found) == ["ce", "instance", "batch", "class"]
    for term, weight, value in zip(found.values(), weights, expected, strict=True):
        assert term.item() == pytest.approx(weight * value, rel=1e-10)


def test_each_view_has_its_own_images() -> None:
    weak, strong = MLLD().inputs(BATCH)
    assert torch.equal(weak, IMAGES)
    assert torch.equal(strong, IMAGES + 1)


def test_strong_view_can_be_made() -> None:
    pipeline = Pipeline(MLLD.views[0])
    images = (torch.arange(2 * 32 * 32 * 3) % 251).view(2, 32, 32, 3).to(torch.uint8)
    drawn = pipeline.draw(2, torch.Generator().manual_seed(0))
    strong = pipeline.apply(images, drawn, torch.arange(2))
    assert strong.shape == images.shape
    assert not torch.equal(strong, images)


def swapped(view: str) -> tuple[Outputs, Outputs]:
    """Outputs whose student equals its teacher on the other view."""
    if view == "weak":
        return Outputs(S, {}, (Outputs(STRONG_T),)), TEACHER
    return Outputs(T, {}, (Outputs(STRONG_S),)), TEACHER


@pytest.mark.parametrize("form", ["paper", "code"])
def test_levels_vanish_where_student_and_teacher_agree(form: str) -> None:
    student = Outputs(T, {}, (Outputs(STRONG_T),))
    found = MLLD(MLLD.Config(form=form)).loss(student, TEACHER, BATCH, Progress(0, 1))
    for name in ("instance", "batch", "class"):
        assert found[name].item() == pytest.approx(0, abs=1e-9)


def test_code_leaves_levels_of_the_strong_view_out_and_the_paper_does_not() -> None:
    found = {
        form: MLLD(MLLD.Config(form=form)).loss(*swapped("strong"), BATCH, Progress(0, 1))
        for form in ("paper", "code")
    }
    assert found["code"]["batch"].item() == pytest.approx(0, abs=1e-12)
    assert found["code"]["class"].item() == pytest.approx(0, abs=1e-12)
    assert found["paper"]["batch"] > 0
    assert found["paper"]["class"] > 0
    instance = [kl(STRONG_S, STRONG_T, T) for T in (4, 3, 5)]
    torch.testing.assert_close(found["code"]["instance"], 0.9 * torch.stack(instance).sum())


def test_code_reads_the_weak_view_again_at_two_and_six() -> None:
    found = MLLD(MLLD.Config(form="code")).loss(*swapped("weak"), BATCH, Progress(0, 1))["instance"]
    once = sum(kl(S, T, temperature) for temperature in (4, 3, 5, 2, 6))
    again = sum(kl(S, T, temperature) for temperature in (2, 6))
    torch.testing.assert_close(found, 0.9 * (0.5 * once + again))


def test_mask_of_the_code_is_a_constant_half() -> None:
    confidence = T.softmax(1).amax(1).numpy()
    mask = confidence <= np.percentile(confidence, 50)
    level = kl(S, T, 4)  # a scalar, as there
    assert (level * torch.tensor(mask)).mean().item() == pytest.approx(0.5 * level.item())


def test_temperatures_are_a_setting() -> None:
    found = terms(MLLD(MLLD.Config(temperatures=(1,))))
    torch.testing.assert_close(found["instance"], 0.9 * (kl(S, T, 1) + kl(STRONG_S, STRONG_T, 1)))
    for wrong in ((), (0,), (4, -1)):
        with pytest.raises(ValueError, match="temperatures"):
            MLLD.Config(temperatures=wrong)


# ---- logit standardisation


@given(logits(), st.floats(0.1, 10), st.floats(-5, 5))
@quick
def test_z_scores_forget_shift_and_scale_of_each_sample(given: Given, scale: float, shift: float) -> None:
    for z in given:
        factors = scale * torch.linspace(0.5, 2, len(z), dtype=z.dtype)[:, None]
        torch.testing.assert_close(standardise(factors * z + shift), standardise(z), atol=1e-4, rtol=1e-4)


@given(logits())
@quick
def test_z_scores_have_mean_zero_and_deviation_one(given: Given) -> None:
    scores = standardise(given[0])
    torch.testing.assert_close(scores.mean(1), torch.zeros_like(scores[:, 0]), atol=1e-9, rtol=0)
    torch.testing.assert_close(scores.std(1), torch.ones_like(scores[:, 0]), atol=1e-3, rtol=0)


def test_standardised_kd_ignores_the_students_scale_but_its_labels_do_not() -> None:
    one = terms(LogitStdKD())
    scaled = replace(STUDENT, logits=3 * S + torch.arange(8)[:, None])
    other = LogitStdKD().loss(scaled, TEACHER, BATCH, Progress(0, 1))
    torch.testing.assert_close(one["kd"], other["kd"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one["ce"], 0.1 * CE)
    torch.testing.assert_close(other["ce"], 0.1 * cross_entropy(scaled.logits, Y))


@pytest.mark.parametrize("name", ["logit_std_kd", *MEMBERS])
@pytest.mark.parametrize("constant", ["teacher", "student", "both"])
def test_constant_rows_give_finite_gradients(name: str, constant: str) -> None:
    flat, rows = torch.full((8, 10), 3.7), torch.tensor(STUDENT_LOGITS, dtype=torch.float32)
    s = flat.clone() if constant != "teacher" else rows.clone()
    t = flat.clone() if constant != "student" else rows.clone()
    s.requires_grad_()
    student, teacher = Outputs(s, {}, (Outputs(s),)), Outputs(t, {}, (Outputs(t),))
    found = methods.get(name)().loss(student, teacher, BATCH, Progress(30, 240))
    assert all(term.isfinite() for term in found.values())
    assert gradient(torch.stack(list(found.values())).sum(), s).isfinite().all()


@pytest.mark.parametrize("name", MEMBERS)
def test_member_is_its_method_on_z_scores(name: str) -> None:
    kind = methods.get(name)
    inner = methods.get(name.removeprefix("logit_std_"))
    assert issubclass(kind, inner)
    assert (kind.name, kind.views) == (name, inner.views)
    assert set(kind.Config.model_fields) == set(inner.Config.model_fields)
    found, raw = terms(kind()), terms(inner(kind.Config()))
    scores = [
        Outputs(standardise(a), {}, (Outputs(standardise(b)),)) for a, b in ((S, STRONG_S), (T, STRONG_T))
    ]
    told = inner(kind.Config()).loss(*scores, BATCH, Progress(30, 240))
    assert list(found) == list(told)
    for term, value in found.items():
        torch.testing.assert_close(value, raw[term] if term == "ce" else told[term])


def test_family_of_kd_would_be_the_listed_one() -> None:
    told = KD(KD.Config(**LogitStdKD.Config().model_dump()))
    scores = [Outputs(standardise(z)) for z in (S, T)]
    expected = {**told.loss(*scores, BATCH, Progress(0, 1)), "ce": 0.1 * CE}
    assert_terms(terms(LogitStdKD()), **expected)
    assert set(LogitStdKD.Config.model_fields) == set(KD.Config.model_fields)


def test_settings_that_the_paper_gives_replace_the_methods() -> None:
    dkd = methods.get("logit_std_dkd")
    assert dkd.Config() == dkd.Config(gamma=1, alpha=9, beta=72, temperature=2, warmup=20)
    assert "kd-weight 9" in str(dkd.Config.model_fields["beta"].json_schema_extra)
    with pytest.raises(ValueError, match="temperature"):
        dkd.Config(temperature=0)
    betas = {(r.teacher, r.student): r.settings["beta"] for r in dkd.published}
    original = {(r.teacher, r.student): r.settings["beta"] for r in DKD.published if r.dataset == "cifar100"}
    assert betas == {pair: 9 * beta for pair, beta in original.items()}
    assert methods.get("logit_std_mlld").Config().temperatures == (2, 3, 5, 2, 6)
    dist = methods.get("logit_std_dist")
    assert dist.Config is DIST.Config
    assert dist.published == ()


def test_members_are_made_once() -> None:
    assert methods.get("logit_std_dkd") is methods.get("logit_std_dkd")
    assert methods.file("logit_std_dkd") == methods.file("logit_std_kd")
    assert "logit_std_dkd" not in methods.names()


@pytest.mark.parametrize(
    "name",
    ["logit_std_fitnet", "logit_std_scratch", "logit_std_nothing", "logit_std_logit_std_kd", "logit_std_"],
)
def test_no_member_where_there_is_nothing_to_standardise(name: str) -> None:
    with pytest.raises(UnknownNameError, match="no method"):
        methods.get(name)


@pytest.mark.parametrize("name", MEMBERS)
def test_member_trains_in_all_its_forms(name: str) -> None:
    kind = methods.get(name)
    for _, config in variants(kind):
        bench = Bench(kind, config)
        optimizer = torch.optim.SGD(bench.parameters.all, lr=0.002)
        sums = [bench.step(optimizer) for _ in range(8)]
        assert sums[-1] < sums[0]
        assert all(p.grad is None for p in bench.teacher.parameters())
