"""What a plan costs: counted by hand, from measured runs, and told in words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.core.paths import Results
from kdpipe.nn.cost import declared_cost
from kdpipe.plan.config import Config
from kdpipe.plan.cost import Rates, bill, estimate, longest_path, prepared, read_rates, room
from kdpipe.plan.overview import overview
from kdpipe.plan.plan import Plan, PlannedRun
from kdpipe.plan.resolve import resolve
from kdpipe.plan.work import forward_of

Make = Callable[..., Config]
SMALL = {"seeds": [0], "pairs": [{"teacher": "resnet56", "student": "resnet20"}], "recipes": ["standard"]}
RATES = Rates("a device", 1e12, "stated")
TEACHER, STUDENT = (
    declared_cost(registry.models.get(n), 100).multiply_adds for n in ("resnet56", "resnet20")
)


def of(plan: Plan, objective: str) -> PlannedRun:
    """The run of an objective."""
    return next(p for p in plan.runs.values() if p.run.spec.objective.name == objective)


def test_the_work_of_a_run_is_counted_by_hand(config: Make) -> None:
    plan = resolve(config(a={**SMALL, "methods": ["scratch", "kd", "dml", "sskd", "mlld"]}))
    forwards = {p.run.spec.objective.name: p.work for p in plan.runs.values()}
    assert forwards["standard"].step == 3 * TEACHER
    assert forwards["scratch"].step == 3 * STUDENT
    assert forwards["kd"].step == 3 * STUDENT + TEACHER
    assert forwards["dml"].step == 2 * 3 * STUDENT  # a network beside it, and no teacher
    assert forwards["sskd"].step == 4 * (3 * STUDENT + TEACHER)  # four rotations
    assert forwards["mlld"].step == 2 * (3 * STUDENT + TEACHER)  # two views
    kd = forwards["kd"]
    assert (kd.epochs, kd.images, kd.watched, kd.stored) == (240, 50_000, 10_000, 10_000)
    part = next(p.work for p in plan.runs.values() if p.run.kind == "part")
    assert (part.watched, part.stored) == (0, 0)


def test_held_out_images_are_watched_instead_of_the_test_set(config: Make) -> None:
    study = {**SMALL, "split": "train-val", "methods": ["kd"], "scales": {"s": {"train_samples": 1000}}}
    work = of(resolve(config(a=study, scale="s")), "kd").work
    assert (work.images, work.watched, work.stored) == (900, 100, 10_100)


def test_seconds_are_work_over_rate(config: Make) -> None:
    kd = of(resolve(config(a={**SMALL, "methods": ["kd"]})), "kd")
    madds = 240 * (50_000 * (3 * STUDENT + TEACHER) + 10_000 * STUDENT)
    found = estimate(kd, RATES)
    assert found == (pytest.approx(madds / 1e12), False)
    slow = estimate(kd, replace(RATES, least=1.0))
    steps = 240 * 50_000 / 64
    assert slow.seconds == pytest.approx(steps + 240 * 10_000 * STUDENT / 1e12)
    assert estimate(replace(kd, work=None), RATES) is None
    assert estimate(kd, Rates("unknown", 0.0, "")) is None


def test_room_is_counted_by_hand(config: Make) -> None:
    study = {**SMALL, "methods": ["kd"], "keep": {"every": 120}, "metrics": ["top1", "nc1"]}
    plan = resolve(config(a=study))
    teacher, parameters = of(plan, "standard"), registry.models.get("resnet56").params_at(100)
    predictions = 10_000 * (4 * 100 + 16)
    features = 60_000 * (4 * (100 + 64) + 16)
    assert room(teacher) == 2 * (4 * parameters + predictions + features)  # the last epoch, and one kept
    assert prepared(plan) == 60_000 * (3 * 32 * 32 + 8)


def test_the_longest_path_is_teacher_then_student(config: Make) -> None:
    recipe = {"name": "born_again", "label": "ban", "settings": {"generations": 2}}
    plan = resolve(config(a={**SMALL, "recipes": ["standard", recipe], "methods": ["scratch", "kd"]}))
    path = longest_path(plan, RATES)
    assert [plan.runs[name].run.spec.objective.name for name, _ in path] == [
        "standard",
        "born_again",
        "born_again",
        "kd",
    ]
    seconds = [estimate(plan.runs[name], RATES).seconds for name, _ in path]
    assert [s for _, s in path] == pytest.approx(seconds)


def measured(plan: Plan, results: Results, device: str, ms: float, *names: str) -> None:
    """Let some runs have been made on a device, with a step of `ms` milliseconds."""
    for name in names:
        paths = results.run(name)
        paths.root.mkdir(parents=True, exist_ok=True)
        run = plan.runs[name].run.model_dump(mode="json")
        paths.spec.write_text(json.dumps(run))
        cost = {"ms_student": ms / 2, "ms_backward": ms / 2, "memory_mib": 5.0}
        paths.provenance.write_text(json.dumps({"device": device, "threads": 2, "cost": cost}))
        paths.status.write_text("{}")


def test_what_was_measured_wins(config: Make, tmp_path: Path) -> None:
    settings = config(a={**SMALL, "seeds": [0, 1], "methods": ["scratch", "kd"]})
    plan, results = resolve(settings), Results(tmp_path / "results")
    assert read_rates(plan, results, tmp_path) is None  # no run, no file
    first = of(plan, "kd")
    measured(plan, results, "NVIDIA H200", 100.0, first.run.name)
    rates = read_rates(plan, results, tmp_path)
    assert rates is not None
    assert rates.device == "NVIDIA H200"
    both = [p for p in plan.runs.values() if p.run.spec.objective.name == "kd"]
    for planned in both:  # another seed is as fast
        found = estimate(planned, rates)
        steps = 240 * 50_000 / 64
        assert found.measured
        assert found.seconds == pytest.approx(0.1 * steps * (1 + 0.2 * STUDENT / (3 * STUDENT + TEACHER)))
    reached = 64 / 0.1 * (3 * STUDENT + TEACHER)
    assert rates.rate == pytest.approx(reached)
    assert not estimate(of(plan, "scratch"), rates).measured
    other = resolve(config(b={**SMALL, "methods": ["dkd"], "recipes": ["mixup"]}))
    assert read_rates(other, results, tmp_path) is None  # what was measured says nothing of these
    cost = bill(plan, plan.runs, rates, dict.fromkeys(plan.runs, False))
    assert (cost.measured, cost.computed, cost.unknown) == (2, 4, 0)
    assert cost.left == cost.hours
    assert bill(plan, plan.runs, rates, dict.fromkeys(plan.runs, True)).left == 0


def test_the_device_can_be_named(config: Make, tmp_path: Path) -> None:
    plan, results = resolve(config(a={**SMALL, "methods": ["kd"]})), Results(tmp_path / "results")
    measured(plan, results, "A processor", 100.0, *plan.runs)
    given = {
        "devices": [{"device": "A big one", "rate": 1e13, "least_ms": 5, "source": "a guess"}],
        "measured": [],
    }
    (tmp_path / "throughput.yaml").write_text(yaml.safe_dump(given))
    assert read_rates(plan, results, tmp_path).device == "A big one"  # a plan is for GPUs, if any is known
    assert read_rates(plan, results, tmp_path, "processor").device == "A processor, 2 threads"
    big = read_rates(plan, results, tmp_path, "big")
    assert (big.device, big.rate, big.least, big.measured) == ("A big one", 1e13, 0.005, {})
    measured(plan, results, "NVIDIA one", 50.0, *plan.runs)
    assert read_rates(plan, results, tmp_path).device == "NVIDIA one"
    with pytest.raises(UnknownNameError, match="no device 'small'"):
        read_rates(plan, results, tmp_path, "small")
    (tmp_path / "throughput.yaml").write_text("devices: [{device: x, rate: fast, source: s}]")
    with pytest.raises(ConfigError, match=r"throughput\.yaml, key 'devices\.0\.rate'"):
        read_rates(plan, results, tmp_path)


def test_what_cannot_be_read_is_left_out(config: Make, tmp_path: Path) -> None:
    plan, results = resolve(config(a={**SMALL, "methods": ["kd"]})), Results(tmp_path / "results")
    names = list(plan.runs)
    measured(plan, results, "A processor", 100.0, *names)
    results.run(names[0]).provenance.write_text("{")
    assert len(read_rates(plan, results, tmp_path).measured) == len(names) - 1


def test_the_shipped_file_is_right_and_its_measured_pairs_exist(config: Make, tmp_path: Path) -> None:
    plan = resolve(config(a={**SMALL, "methods": ["kd"]}))
    rates = read_rates(plan, Results(tmp_path), Path("config"), "2 threads")
    for dataset, teacher, student, objective, *_ in rates.measured:
        registry.datasets.get(dataset)
        registry.models.get(teacher)
        registry.models.get(student)
        registry.methods.get(objective)


def test_the_overview_says_it(config: Make, tmp_path: Path) -> None:
    settings = config(a=SMALL, b={**SMALL, "title": "other", "methods": ["kd", "wttm"]})
    plan = resolve(settings)
    text = overview(plan, tmp_path / "results")
    assert "4 runs (1 teacher, 3 students): 4 missing" in text
    assert "shared with b: 2 runs" in text
    assert "5 runs (1 teacher, 4 students) in all: 5 missing" in text
    assert "by multiply-adds at 9.4e+12 a second (Yang et al." in text.replace("\n         ", " ")
    assert "longest: " in text
    assert "runs/" not in text
    assert next(iter(plan.runs)) in overview(plan, tmp_path / "results", runs=True)
    data: dict[str, Any] = json.loads(overview(plan, tmp_path / "results", as_json=True))
    assert set(data["runs"]) == set(plan.runs)
    assert data["cost"]["hours"] == pytest.approx(sum(r["seconds"] for r in data["runs"].values()) / 3600)
    assert len(data["longest_path"]) == 2


def test_skipped_cells_are_told_once_with_their_reason(config: Make, tmp_path: Path) -> None:
    study = {**SMALL, "seeds": [0, 1], "methods": [{"name": "kd", "recipes": ["standard"]}]}
    plan = resolve(config(a={**study, "recipes": ["standard", "mixup"]}))
    text = overview(plan, tmp_path / "results")
    assert "2 cells skipped:" in text
    assert text.count("kd is asked for with standard teachers only") == 1
    assert "kd: resnet56 (mixup) -> resnet20" in text


def test_a_network_that_cannot_take_the_images_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="two_layer_100 cannot take images of 8 x 8 pixels"):
        forward_of("two_layer_100", 10, (1, 8, 8))


def test_thirty_thousand_runs_are_estimated_in_seconds(config: Make) -> None:
    plan = resolve(config(a={**SMALL, "methods": ["kd"]}))
    kd, begun = of(plan, "kd"), time.process_time()
    for _ in range(30_000):
        estimate(kd, RATES)
    assert time.process_time() - begun < 5
