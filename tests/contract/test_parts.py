"""What every part that a method trains on top of a teacher must fulfil; a new one is found by its method."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from kdpipe.api import Batch, DataInfo, Method, Outputs, TeacherPart, total
from kdpipe.api.settings import field_note
from kdpipe.core.registry import methods, models, recipes
from kdpipe.core.specs import Protocol
from kdpipe.nn.taps import catch, expand, extended, extended_shapes, shapes
from tests.contract.helpers import CLASSES, IMAGE, PAIRS, SAMPLES, START, numeric_fields

METHODS: dict[str, type[Method]] = {name: kind for name, kind in methods.items() if kind().part() is not None}
TEACHERS = sorted({teacher for teacher, _ in PAIRS})

owners = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


class Bench:
    """A part in training on a small teacher, without an engine."""

    def __init__(
        self, method: type[Method], teacher: str = TEACHERS[0], seed: int = 0, size: int = 6
    ) -> None:
        torch.manual_seed(seed)
        self.part = part_of(method)
        self.spec = models.get(teacher)
        self.teacher = self.spec.build(CLASSES, IMAGE[0]).eval()
        self.names = expand(self.spec, self.part.taps().teacher)
        self.shapes = shapes(self.teacher, self.spec, self.names, IMAGE)
        data = DataInfo(CLASSES, torch.arange(SAMPLES) % CLASSES)
        self.part.build(self.shapes, data)
        self.catch = catch(self.teacher, self.spec, self.names)
        index = torch.randperm(SAMPLES)[:size]
        self.batch = Batch(torch.randn(size, *IMAGE), data.labels[index], index)

    def taught(self) -> Outputs:
        """The teacher's outputs; they carry gradients, to show that nothing uses them."""
        return self.catch(self.part.inputs(self.batch)[0])

    def terms(self) -> dict[str, Tensor]:
        return self.part.loss(self.taught(), self.batch, START)


def part_of(method: type[Method]) -> TeacherPart:
    part = method().part()
    assert part is not None
    return part


def test_there_are_parts_with_names_of_their_own() -> None:
    names = [part_of(method).name for method in METHODS.values()]
    assert names
    assert len(set(names)) == len(names)
    assert not set(names) & {"", *methods.names(), *recipes.names()}


@owners
def test_docstring_has_its_four_paragraphs(method: type[Method]) -> None:
    part = part_of(method)
    text = type(part).__doc__ or ""
    assert not [p for p in ("Loss:", "Taps:", "Deviations:", "Reference:") if f"\n    {p} " not in text]
    assert re.search(r"Loss: `[^`]+`", text), "the loss is a formula in backquotes"
    assert part.paper.url.startswith("https://")


@owners
def test_every_setting_has_a_meaning_and_a_source_and_a_default_in_its_method(method: type[Method]) -> None:
    part = part_of(method)
    for name, info in type(part).Config.model_fields.items():
        assert info.description, name
        assert field_note(info, "source"), name
    assert part.config == type(part).Config(), "the method's defaults are the part's"


@owners
def test_its_protocol_is_legal(method: type[Method]) -> None:
    part = part_of(method)
    teachers = Protocol(lr=0.05, epochs=240, batch_size=64, milestones=(150, 180, 210))
    changes = [part.protocol()]
    for name, value in numeric_fields(type(part).Config).items():
        changes.append(type(part)(part.config.model_copy(update={name: value})).protocol())
    for change in changes:
        assert Protocol.model_validate({**teachers.model_dump(), **change}).epochs == change["epochs"]


@owners
@pytest.mark.parametrize("teacher", TEACHERS)
def test_terms_are_finite_and_gradients_reach_the_part_alone(method: type[Method], teacher: str) -> None:
    bench = Bench(method, teacher)
    terms = bench.terms()
    for name, term in terms.items():
        assert term.shape == (), name
        assert term.dtype == torch.float32, name
        assert term.isfinite(), name
    total(terms).backward()
    for name, parameter in bench.part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert all(p.grad is None for p in bench.teacher.parameters())
    assert not {id(p) for p in bench.teacher.parameters()} & {id(p) for p in bench.part.parameters()}


@owners
@pytest.mark.parametrize("size", [2, 3])
def test_any_batch_of_two_or_more(method: type[Method], size: int) -> None:
    assert total(Bench(method, size=size).terms()).isfinite()


@owners
def test_steps_lower_the_loss_and_leave_the_teacher_alone(method: type[Method]) -> None:
    bench = Bench(method)
    before = {key: value.clone() for key, value in bench.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(bench.part.parameters(), lr=0.005, momentum=0.9)
    sums = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = total(bench.terms())
        loss.backward()
        optimizer.step()
        sums.append(loss.item())
    assert sum(sums[-5:]) < sum(sums[:5])
    assert all(torch.equal(before[key], value) for key, value in bench.teacher.state_dict().items())


@owners
@pytest.mark.parametrize("teacher", TEACHERS)
def test_added_taps_have_the_shapes_that_students_are_built_for(method: type[Method], teacher: str) -> None:
    bench = Bench(method, teacher)
    found = extended_shapes(bench.part, bench.shapes)
    out = bench.taught()
    added = extended(bench.part, out).taps
    new = set(added) - set(out.taps)
    assert new
    assert not new & (set(bench.spec.taps) | {"logits"}), "it hides none of the network's own"
    assert {name: tuple(tap.shape[1:]) for name, tap in added.items()} == {
        name: shape for name, shape in found.items() if name != "logits"
    }
    assert all(len(tap) == len(out.logits) for tap in added.values())


@owners
def test_saved_state_gives_the_same_taps(method: type[Method]) -> None:
    bench, other = Bench(method), Bench(method, seed=1)
    out = bench.taught()
    other.part.load_state_dict(bench.part.state_dict())
    for name, tap in bench.part.extend(out).items():
        assert torch.equal(tap, other.part.extend(out)[name])


@owners
def test_bfloat16_is_finite(method: type[Method]) -> None:
    bench = Bench(method)
    with torch.autocast("cpu", torch.bfloat16):
        terms = bench.terms()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    total(terms).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bench.part.parameters())
