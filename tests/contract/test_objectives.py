"""What every method and every recipe must fulfil; a new file is tested here without a new line."""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kdpipe.api import Method, Objective, Recipe, total
from kdpipe.api.model import meant
from kdpipe.api.settings import Settings, field_note
from kdpipe.core.registry import datasets, methods, models, plugin_files, recipes
from tests.contract.helpers import PAIRS, SAMPLES, Bench, numeric_fields, offences, variants

OBJECTIVES = {name: cls for registry in (methods, recipes) for name, cls in registry.items()}
FILES = {p for p in plugin_files() if p.parent.name in ("methods", "recipes") and not p.stem.startswith("_")}

objectives = pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES.keys())
settled = pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, config, id=f"{name}-{label}")
        for name, kind in OBJECTIVES.items()
        for label, config in variants(kind)
    ],
)


def test_each_file_is_named_after_the_one_plug_in_it_holds() -> None:
    """A file that answers to a family of names may list none."""
    declared = {registry.file(n): n for registry in (methods, recipes) for n in registry.names()}
    assert all(file.stem == name for file, name in declared.items())
    assert all(hasattr(module(file), "family") for file in FILES - set(declared))
    assert len(declared) == len([*methods.names(), *recipes.names()])


def module(file: Path) -> ModuleType:
    return importlib.import_module(f"kdpipe.{file.parent.name}.{file.stem}")


@objectives
def test_docstring_has_its_four_paragraphs(kind: type[Objective]) -> None:
    text = kind.__doc__ or ""
    missing = [p for p in ("Loss:", "Taps:", "Deviations:", "Reference:") if f"\n    {p} " not in text]
    assert not missing
    assert re.search(r"Loss: `[^`]+`", text), "the loss is a formula in backquotes"
    assert str(kind.paper)
    assert kind.paper.url.startswith("https://")


@objectives
def test_every_setting_has_a_meaning_and_a_source(kind: type[Objective]) -> None:
    for name, info in kind.Config.model_fields.items():
        assert info.description, name
        assert field_note(info, "source"), name


@objectives
def test_published_settings_are_legal(kind: type[Objective]) -> None:
    for row in kind.published:
        kind.Config(**row.settings)
        assert row.source
        assert row.dataset in {"*", *datasets.names()}
        assert row.recipe in {"*", *recipes.names()}
        for network in {row.teacher, row.student} - {"*"}:  # `resnet34` on ImageNet is another network
            assert meant(network, row.dataset, [spec for _, spec in models.items()]) is models.get(network)


@objectives
def test_at_most_one_published_row_is_nearest(kind: type[Objective]) -> None:
    keys = [(row.dataset, row.teacher, row.student, row.recipe) for row in kind.published]
    assert len(set(keys)) == len(keys)


@objectives
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_works_or_a_reason_is_given(kind: type[Objective], pair: tuple[str, str]) -> None:
    if issubclass(kind, Method):
        teacher, student = (models.get(name) for name in pair)
        reason = kind().skip(student, teacher)
        if reason is not None:
            assert reason.strip()
            return
    assert_sound(Bench(kind, pair=pair).terms())


@settled
def test_terms_are_finite_scalars(kind: type[Objective], config: Settings) -> None:
    bench = Bench(kind, config)
    for at in bench.moments:
        terms = bench.terms(at)
        assert_sound(terms)
        without_labels = getattr(config, "gamma", 1) == 0
        assert {"ce", "labels"} & terms.keys() or at.first_stage or without_labels


@objectives
@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_batch_of_two_or_more(kind: type[Objective], size: int) -> None:
    bench = Bench(kind, size=size)
    for at in bench.moments:
        terms = bench.terms(at)
        assert_sound(terms)
        bench.objective.backward(terms, bench.parameters)


@settled
def test_gradients_reach_all_that_is_trained_and_nothing_else(
    kind: type[Objective], config: Settings
) -> None:
    bench = Bench(kind, config)
    for at in bench.moments[:-1]:  # what a first stage trains need not be trained after it
        bench.objective.backward(bench.terms(at), bench.parameters)
    trained = [*bench.model.named_parameters(), *bench.objective.named_parameters()]
    for name, parameter in trained:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(p.grad is not None and p.grad.any() for _, p in trained)
    assert all(p.grad is None for p in bench.teacher.parameters())
    networks = {id(p) for p in (*bench.model.parameters(), *bench.teacher.parameters())}
    assert not networks & {id(p) for p in bench.objective.parameters()}


@settled
def test_steps_lower_the_sum_and_leave_the_teacher_alone(kind: type[Objective], config: Settings) -> None:
    bench = Bench(kind, config)
    before = {key: value.clone() for key, value in bench.teacher.state_dict().items()}
    for at in bench.moments[:-1]:
        optimizer = torch.optim.SGD(bench.parameters.all, lr=0.005, momentum=0.9)
        sums = bench.steps(optimizer, at, 40)
        assert sum(sums[-5:]) < sum(sums[:5])
    after = bench.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@settled
def test_same_seed_same_terms(kind: type[Objective], config: Settings) -> None:
    assert Bench(kind, config).trace() == Bench(kind, config).trace()


@settled
def test_saved_state_gives_the_same_terms(kind: type[Objective], config: Settings) -> None:
    bench, other = Bench(kind, config), Bench(kind, config, seed=1)
    optimizer = torch.optim.SGD(bench.parameters.all, lr=0.005)
    for _ in range(2):
        bench.step(optimizer)
    other.batch = bench.batch
    assert bench.trace() != other.trace()
    for part in ("model", "teacher", "objective", "part", "peers"):
        if getattr(bench, part) is not None:
            getattr(other, part).load_state_dict(getattr(bench, part).state_dict())
    assert bench.trace() == other.trace()


@objectives
def test_pickles(kind: type[Objective]) -> None:
    bench, other = Bench(kind), Bench(kind)
    other.objective = pickle.loads(pickle.dumps(other.objective))
    assert bench.trace() == other.trace()


@settled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_finite(kind: type[Objective], config: Settings, dtype: torch.dtype) -> None:
    bench = Bench(kind, config)
    for at in bench.moments:
        with torch.autocast("cpu", dtype):
            terms = bench.terms(at)
        assert_sound(terms)
        bench.objective.backward(terms, bench.parameters)
    assert all(p.grad is None or p.grad.isfinite().all() for p in bench.parameters.all)


@objectives
def test_every_number_matters(kind: type[Objective]) -> None:
    for name, value in numeric_fields(kind.Config).items():
        configs = [(config, config.model_copy(update={name: value})) for _, config in variants(kind)]
        changed = any(Bench(kind, one).trace() != Bench(kind, other).trace() for one, other in configs)
        late = (
            Bench(kind, one, size=SAMPLES).sure().trace() != Bench(kind, other, size=SAMPLES).sure().trace()
            for one, other in configs
        )
        assert changed or any(late), f"{name} is read by no variant"


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_source_names_no_device_and_no_global_state(file: Path) -> None:
    assert offences(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "x.cuda()",
        "x.cpu()",
        "x.to('cuda')",
        "torch.zeros(1, device='cuda')",
        "print(1)",
        "import random",
        "from numpy.random import rand",
        "np.random.rand()",
        "torch.manual_seed(0)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert offences(source)


def assert_sound(terms: dict[str, Tensor]) -> None:
    for name, term in terms.items():
        assert term.shape == (), name
        assert term.dtype == torch.float32, name
        assert term.isfinite(), name
    assert total(terms).requires_grad


@pytest.mark.parametrize("kind", [k for _, k in recipes.items() if k().generations()], ids=lambda k: k.name)
def test_a_setting_says_how_many_generations(kind: type[Objective]) -> None:
    for number in (1, 3):
        recipe = kind(kind.Config(generations=number))
        assert isinstance(recipe, Recipe)
        assert recipe.generations() == number
