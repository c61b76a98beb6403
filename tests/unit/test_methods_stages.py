"""The methods that train in stages: AB, FitNet in two, FT with its paraphraser, SSKD with its head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdpipe.api import Batch, DataInfo, Method, Outputs, Progress
from kdpipe.api.settings import later_settings
from kdpipe.core.registry import models
from kdpipe.core.specs import without_defaults
from kdpipe.methods.ab import AB, boundaries_loss, boundary_loss
from kdpipe.methods.fitnet import FitNet, hint_loss
from kdpipe.methods.ft import FT, factor_loss, last_stage
from kdpipe.methods.sskd import SSKD, contrastive_loss, own_image, selected_kl, similarities, trusted
from kdpipe.nn.logits import cross_entropy, kl
from kdpipe.nn.mixing import four_rotations
from kdpipe.nn.taps import unpaired
from tests.contract.helpers import FIRST, START, Bench

DATA = DataInfo(4, torch.tensor([0, 3, 2]))
BATCH = Batch(torch.zeros(3, 1, 2, 2), DATA.labels, torch.arange(3))


def row(*values: float) -> Tensor:
    """A map of one sample and one channel."""
    return torch.tensor(values).reshape(1, 1, 1, -1)


def reached(bench: Bench, at: Progress) -> set[str]:
    """Names of the student's parameters to which a moment's loss has a gradient."""
    bench.model.zero_grad(set_to_none=True)
    bench.objective.backward(bench.terms(at), bench.parameters)
    return {name for name, p in bench.model.named_parameters() if p.grad is not None}


def all_but_classifier(bench: Bench) -> set[str]:
    head = bench.spec.classifier + "."
    return {name for name, _ in bench.model.named_parameters() if not name.startswith(head)}


class TestAB:
    def test_by_hand(self) -> None:
        on, off = row(1.0), row(-1.0)
        assert boundary_loss(row(0.5), on, 1).item() == 0.25
        assert boundary_loss(row(0.5), off, 1).item() == 2.25
        assert boundary_loss(row(0.5, -0.5), row(7.0, -7.0), 1).item() == 0.5
        assert boundary_loss(row(0.5), row(0.0), 1).item() == 2.25, "zero counts as off"
        assert boundary_loss(torch.cat([row(0.5)] * 4), torch.cat([on] * 4), 1).item() == 0.25

    @given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0.1, 10))
    def test_zero_exactly_where_the_student_is_beyond_the_margin(self, s: float, t: float, m: float) -> None:
        student = row(s).requires_grad_()
        loss = boundary_loss(student, row(t), m)
        loss.backward()
        assert student.grad is not None
        beyond = bool(student >= torch.tensor(m)) if row(t) > 0 else bool(student <= torch.tensor(-m))
        assert (loss.item() == 0) == (student.grad.item() == 0) == beyond

    def test_only_signs_of_the_teacher_matter(self) -> None:
        s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        assert boundary_loss(s, t, 1) == boundary_loss(s, 100 * t, 1) == boundary_loss(s, t.sign(), 1)

    def test_each_stage_counts_half_of_the_next(self) -> None:
        s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        one = boundaries_loss([s], [t], 1)
        torch.testing.assert_close(one, 3 / 1000 * boundary_loss(s, t, 1))
        perfect = 2 * t.sign()
        for place, share in enumerate([1 / 8, 1 / 4, 1 / 2, 1]):
            students = [s if i == place else perfect for i in range(4)]
            torch.testing.assert_close(boundaries_loss(students, [t] * 4, 1), share * one)

    def test_lists_of_unequal_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match="argument"):
            boundaries_loss([row(1.0)], [row(1.0)] * 2, 1)

    def test_connectors_only_where_shapes_differ_and_without_relu(self) -> None:
        method = AB()
        student = {"stage1.pre": (4, 8, 8), "stage2.pre": (8, 4, 4), "logits": (4,)}
        teacher = {"stage1.pre": (6, 8, 8), "stage2.pre": (8, 4, 4), "stage3.pre": (9, 2, 2), "logits": (4,)}
        method.build(student, teacher, DATA)
        assert method.pairs == [("stage1.pre", "stage1.pre"), ("stage2.pre", "stage2.pre")]
        first, second = method.connectors
        assert isinstance(second, nn.Identity)
        assert not any(isinstance(module, nn.ReLU) for module in first.modules())

    def test_stages(self) -> None:
        bench = Bench(AB, AB.Config(beta=0.5, alpha=0.7), pair=("resnet8x4", "resnet8"))
        assert AB().first_stage() == 30
        assert set(bench.terms(FIRST)) == {"boundary"}
        assert set(bench.terms(START)) == {"ce", "kd"}
        assert reached(bench, FIRST) == all_but_classifier(bench)
        full = Bench(AB, AB.Config(), pair=("resnet8x4", "resnet8"))
        torch.testing.assert_close(2 * bench.terms(FIRST)["boundary"], full.terms(FIRST)["boundary"])

    def test_networks_without_a_place_before_a_relu_are_refused(self) -> None:
        other = models.get("resnet8x4")
        for _, spec in models.items():
            missing = [stage for stage in spec.stages if f"{stage}.pre" not in spec.taps]
            for pair in ((spec, other), (other, spec)):
                reason = AB().skip(*pair)
                assert (reason is None) == (not missing and unpaired(*pair) is None)
                assert not missing or f"'{missing[0]}.pre'" in str(reason)

    def test_networks_with_other_numbers_of_stages_are_paired(self) -> None:
        assert AB().skip(models.get("vgg8"), models.get("resnet8x4")) is None


class TestFitNetInTwoStages:
    def test_stages(self) -> None:
        bench = Bench(FitNet, FitNet.Config(stages="two", alpha=0.9))
        assert bench.objective.first_stage() == 30
        assert set(bench.terms(FIRST)) == {"hint"}
        assert set(bench.terms(START)) == {"ce", "kd"}
        first = reached(bench, FIRST)
        assert first
        assert all("layer3" not in name and not name.startswith(bench.spec.classifier) for name in first)
        assert reached(bench, START) == {name for name, _ in bench.model.named_parameters()}

    def test_hint_is_that_of_joint_training(self) -> None:
        joint, two = (Bench(FitNet, FitNet.Config(stages=stages)) for stages in ("joint", "two"))
        assert joint.objective.first_stage() == 0
        assert joint.terms(START)["hint"] == two.terms(FIRST)["hint"]
        assert joint.terms(START)["ce"] == two.terms(START)["ce"]

    def test_joint_keeps_its_ids(self) -> None:
        assert FitNet.revision == 1
        settings = FitNet.Config().model_dump(mode="json")
        kept = without_defaults(settings, later_settings(FitNet.Config))
        assert set(kept) == {"gamma", "alpha", "temperature", "beta", "hint", "relu"}
        two = FitNet.Config(stages="two").model_dump(mode="json")
        assert without_defaults(two, later_settings(FitNet.Config))["stages"] == "two"


class TestFT:
    def test_field_ignores_channels_and_scale(self) -> None:
        s, t = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
        loss = factor_loss(s, t, "field")
        torch.testing.assert_close(factor_loss(-3 * s[:, torch.randperm(6)], 7 * t, "field"), loss)
        assert factor_loss(t, t, "field") == factor_loss(t, t, "paper") == 0

    def test_paper_sees_channels_and_signs_but_not_scale(self) -> None:
        s, t = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
        loss = factor_loss(s, t, "paper")
        torch.testing.assert_close(factor_loss(3 * s, 7 * t, "paper"), loss)
        assert not torch.isclose(factor_loss(-s, t, "paper"), loss)
        assert not torch.isclose(factor_loss(s.flip(1), t, "paper"), loss)

    def test_by_hand(self) -> None:
        s, t = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2), torch.tensor([4.0, -3.0]).reshape(1, 1, 1, 2)
        assert factor_loss(s, t, "paper").item() == pytest.approx((0.2 + 1.4) / 2)
        squares = [9 / math.hypot(9, 16), 16 / math.hypot(9, 16)]
        assert factor_loss(s, t, "field").item() == pytest.approx(squares[1] - squares[0])

    @pytest.mark.parametrize("form", ["field", "paper"])
    def test_the_larger_map_is_pooled(self, form: Any) -> None:
        small, large = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 8, 8)
        pooled = nn.functional.avg_pool2d(large, 2)
        torch.testing.assert_close(factor_loss(small, large, form), factor_loss(small, pooled, form))
        torch.testing.assert_close(factor_loss(large, small, form), factor_loss(pooled, small, form))

    @pytest.mark.parametrize("form", ["field", "paper"])
    def test_zero_factors_are_harmless(self, form: Any) -> None:
        s = torch.zeros(2, 6, 4, 4, requires_grad=True)
        loss = factor_loss(s, torch.randn(2, 6, 4, 4), form)
        loss.backward()
        assert loss.isfinite()
        assert s.grad is not None
        assert s.grad.isfinite().all()

    def test_last_stage_is_found_by_number(self) -> None:
        shapes = {"stage2": (1,), "stage10": (1,), "stage9.pre": (1,), "stage11.pre": (1,), "logits": (1,)}
        assert last_stage(shapes) == "stage10"

    @pytest.mark.parametrize(("rate", "factors"), [(0.5, 32), (0.3, 19), (2, 128), (0.001, 1)])
    def test_factors_per_channel(self, rate: float, factors: int) -> None:
        bench = Bench(FT, FT.Config(rate=rate))
        assert bench.part is not None
        taught = bench.part.extend(bench.catch_teacher(bench.batch.images))
        assert taught["factor"].shape == (6, factors, 4, 4)
        assert_sound(bench.terms())

    def test_part_is_made_from_the_settings(self) -> None:
        part = FT(FT.Config(rate=0.25, part_epochs=3, part_lr=0.2)).part()
        assert part.config == type(part).Config(rate=0.25, epochs=3, lr=0.2)
        assert part.protocol() == {"epochs": 3, "lr": 0.2, "schedule": "constant", "milestones": []}

    def test_terms(self) -> None:
        bench = Bench(FT, FT.Config(beta=2, gamma=3, alpha=4, form="paper"))
        s, t = bench.catch(bench.batch.images), bench._taught(bench.batch)
        factors = factor_loss(bench.objective.translator(s["stage3"]), t["factor"], "paper")
        labels = cross_entropy(s.logits, bench.batch.labels)
        expected = {"ce": 3 * labels, "factor": 2 * factors, "kd": 4 * kl(s.logits, t.logits, 4)}
        torch.testing.assert_close(bench.terms(), expected)

    def test_networks_without_maps_are_refused(self) -> None:
        plain = next((spec for _, spec in models.items() if not spec.stages), None)
        if plain is not None:
            assert FT().skip(plain, models.get("resnet8")) is not None
            assert FT().skip(models.get("resnet8"), plain) is not None


class TestSimilarities:
    def test_rows_and_columns(self) -> None:
        normal = torch.eye(3)
        found = similarities(torch.cat([normal, 5 * normal, -normal, normal.roll(1, 0)]))
        assert torch.equal(found, torch.cat([normal, -normal, normal.roll(1, 0)]))
        assert own_image(found).tolist() == [0, 1, 2] * 3

    def test_order_is_that_of_the_rotations(self) -> None:
        images = torch.randn(3, 1, 4, 4)
        views = four_rotations(images)
        invariant = torch.stack([views.mean((1, 2, 3)), views.std((1, 2, 3)), views.amax((1, 2, 3))], 1)
        found = similarities(invariant - invariant.mean(0))
        assert torch.equal(found.argmax(1), own_image(found))

    def test_length_of_features_does_not_matter(self) -> None:
        features = torch.randn(8, 5)
        torch.testing.assert_close(similarities(features * torch.rand(8, 1) * 9), similarities(features))

    def test_contrast(self) -> None:
        assert contrastive_loss(torch.ones(12, 4)).item() == pytest.approx(math.log(3))
        best = contrastive_loss(torch.eye(2).repeat(4, 1))
        assert best.item() == pytest.approx(math.log(1 + math.exp(-1)))

    def test_zero_features_are_harmless(self) -> None:
        features = torch.zeros(8, 4, requires_grad=True)
        loss = contrastive_loss(features)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2))
        assert features.grad is not None
        assert features.grad.isfinite().all()


class TestSelection:
    SCORES = torch.tensor([[3.0, 2, 1, 0]] * 5)
    TARGETS = torch.tensor([2, 0, 3, 1, 1])  # ranks 2, 0, 3, 1, 1

    @pytest.mark.parametrize(
        ("ratio", "kept"),
        [(0, [1]), (0.24, [1]), (0.25, [1, 3]), (0.5, [1, 3, 4]), (0.75, [0, 1, 3, 4]), (1, [0, 1, 2, 3, 4])],
    )
    def test_by_hand(self, ratio: float, kept: list[int]) -> None:
        assert trusted(self.SCORES, self.TARGETS, ratio).nonzero().flatten().tolist() == kept

    @given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 6), st.floats(0, 1))
    def test_all_right_rows_and_the_nearest_misses(
        self, seed: int, rows: int, columns: int, ratio: float
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        scores = torch.randn(rows, columns, generator=rng)
        targets = torch.randint(columns, (rows,), generator=rng)
        kept = trusted(scores, targets, ratio)
        ranks = (scores.argsort(1, descending=True) == targets[:, None]).int().argmax(1)
        wrong = int((ranks > 0).sum())
        assert kept[ranks == 0].all()
        assert int(kept.sum()) == rows - wrong + math.floor(torch.tensor(wrong) * ratio)
        if not kept.all():
            assert ranks[kept].numel() == 0 or ranks[kept].max() <= ranks[~kept].min()

    def test_whole_is_kd(self) -> None:
        s, t = torch.randn(6, 4), torch.randn(6, 4)
        torch.testing.assert_close(selected_kl(s, t, torch.arange(6) % 4, 1, 4), kl(s, t, 4))

    def test_part_is_kd_of_the_part(self) -> None:
        s = torch.randn(5, 4)
        part = selected_kl(s, self.SCORES, self.TARGETS, 0.5, 2)
        torch.testing.assert_close(part, kl(s[[1, 3, 4]], self.SCORES[[1, 3, 4]], 2))

    def test_nothing_kept_is_zero_not_nan(self) -> None:
        s = torch.randn(2, 4, requires_grad=True)
        loss = selected_kl(s, self.SCORES[:2], torch.tensor([3, 3]), 0, 4)
        loss.backward()
        assert loss.item() == 0
        assert s.grad is not None
        assert s.grad.abs().max() == 0


class TestSSKD:
    def outputs(self, seed: int, width: int, tap: str) -> Outputs:
        rng = torch.Generator().manual_seed(seed)
        logits, features = torch.randn(12, 4, generator=rng), torch.randn(12, width, generator=rng)
        return Outputs(logits, {tap: features})

    def test_both_networks_see_the_four_rotations(self) -> None:
        images = torch.randn(3, 1, 4, 4)
        batch = Batch(images, DATA.labels, torch.arange(3))
        for objective in (SSKD(), SSKD().part()):
            (views,) = objective.inputs(batch)
            assert torch.equal(views, four_rotations(images))

    def test_terms_view_by_view(self) -> None:
        s, t = self.outputs(0, 5, "embed"), self.outputs(1, 7, "projection")
        method = SSKD(SSKD.Config(gamma=2, alpha=3, tf=4, ss=5, temperature=1, tf_temperature=2, tf_ratio=0))
        method.build({"embed": (5,), "logits": (4,)}, {"projection": (7,), "logits": (4,)}, DATA)
        found = method.loss(s, t, BATCH, Progress(0, 1))
        assert list(found) == ["ce", "kd", "tf", "ss"]
        torch.testing.assert_close(found["ce"], 2 * cross_entropy(s.logits[:3], DATA.labels))
        torch.testing.assert_close(found["kd"], 3 * kl(s.logits[:3], t.logits[:3], 1))
        right = [
            turn * 3 + image
            for turn in (1, 2, 3)
            for image in range(3)
            if t.logits[turn * 3 + image].argmax() == DATA.labels[image]
        ]
        assert right
        torch.testing.assert_close(found["tf"], 4 * kl(s.logits[right], t.logits[right], 2))
        alike = similarities(method.head(s["embed"])), similarities(t["projection"])
        torch.testing.assert_close(found["ss"], 5 * selected_kl(*alike, own_image(alike[0]), 0.75, 0.5))

    def test_part_is_made_from_the_settings(self) -> None:
        protocol = SSKD().part().protocol()
        assert (protocol["epochs"], protocol["lr"], protocol["milestones"]) == (60, 0.05, [30, 45])
        short = SSKD(SSKD.Config(part_epochs=4, part_lr=0.1)).part()
        assert (short.protocol()["epochs"], short.protocol()["lr"], short.protocol()["milestones"]) == (
            4,
            0.1,
            [2, 3],
        )

    def test_published_weights_are_in_the_order_of_the_codes_options(self) -> None:
        found = {row.recipe: row.settings for row in SSKD.published}
        assert found["standard"] == {"gamma": 1, "alpha": 1, "tf": 2.7, "ss": 10}
        assert found["soteacher"] == {"gamma": 1, "alpha": 1, "tf": 1, "ss": 10}


@pytest.mark.parametrize("kind", [AB, FT, SSKD, FitNet])
def test_settings_beyond_their_range_are_refused(kind: type[Method]) -> None:
    for name in kind.Config.model_fields:
        if isinstance(kind.Config.model_fields[name].default, float | int) and name != "relu":
            with pytest.raises(ValueError, match=name):
                kind.Config(**{name: -1})


def test_hint_alone_is_unweighted_by_the_labels() -> None:
    bench = Bench(FitNet, FitNet.Config(stages="two", beta=7, gamma=9))
    s, t = bench.catch(bench.batch.images), bench.catch_teacher(bench.batch.images)
    hint = hint_loss(bench.objective.regressor(s["stage2"]), t["stage2"])
    torch.testing.assert_close(bench.terms(FIRST), {"hint": 7 * hint})


def assert_sound(terms: dict[str, Tensor]) -> None:
    assert all(term.isfinite() for term in terms.values())
