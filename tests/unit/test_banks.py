"""Which banks a plan makes, for whom, and what they cost and save."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from kdpipe.core import registry
from kdpipe.core.errors import ConfigError
from kdpipe.core.paths import Results
from kdpipe.nn.cost import declared_cost
from kdpipe.plan.banks import (
    Banks,
    bank_marker,
    make_banks,
    read_banks,
    remove,
    stored_banks,
)
from kdpipe.plan.config import BankSettings, Config, parse
from kdpipe.plan.cost import Rates, bill, estimate, longest_path, making, speed_key
from kdpipe.plan.load import plan_path, read_plan, write_plan
from kdpipe.plan.overview import overview
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import _StudyResolver, resolve

SMALL = {"seeds": [0], "pairs": [{"teacher": "resnet56", "student": "resnet20"}], "recipes": ["standard"]}
AUTO, RATES = BankSettings(), Rates("a device", 1e12, "stated")
FORWARD = declared_cost(registry.models.get("resnet56"), 100).multiply_adds


def named(plan, *methods):
    """The runs of some methods, in order."""
    return [name for name, p in plan.runs.items() if p.run.spec.objective.name in methods]


def finish(results, plan, *names):
    """Let some runs, and the data, be there."""
    for folder in plan.data:
        (results.data(folder) / "x").mkdir(parents=True, exist_ok=True)
        (results.data(folder) / "meta.json").touch()
    for name in names:
        results.run(name).root.mkdir(parents=True, exist_ok=True)
        results.run(name).status.touch()


def store(results, bank, marker=None):
    """Let a bank be there."""
    results.bank(bank).root.mkdir(parents=True, exist_ok=True)
    results.bank(bank).record.write_text("{}")
    (results.banks / f"{marker or bank}.done").touch()


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results")


def test_students_of_a_teacher_share_a_bank(config, results):
    methods = ["scratch", "kd", "dkd", "dist", "dhkd", "mlld", "fitnet", "crd+kd", "logit_std_dkd"]
    plan = resolve(config(a={**SMALL, "seeds": [0, 1], "methods": methods}))
    (shared,) = plan.runs[named(plan, "kd")[0]].banks
    for name, planned in plan.runs.items():
        spec = planned.run.spec
        alone = spec.kind == "recipe" or spec.objective.name in ("scratch", "fitnet", "crd+kd")
        assert len(planned.banks) == (0 if alone else 2 if spec.objective.name == "mlld" else 1), name
        if planned.banks and spec.seed == 0:
            assert planned.banks[0] == shared
    assert len(plan.banks) == 2 * 2  # seeds, views
    bank = plan.banks[shared]
    assert plan.runs[bank.teacher].run.spec.seed == bank.bank.spec.seed == 0
    assert bank.bytes == 240 * 50_000 * 100 * 4
    assert bank.passes == 240 * 50_000 * FORWARD
    assert plan.teacher_weights(shared) == [f"runs/{bank.teacher}/model.safetensors"]
    assert plan.teacher_stamps(shared) == plan.teacher_stamps(named(plan, "kd")[0])
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_checkpoints_have_banks_of_their_own(config):
    study = {
        **SMALL,
        "methods": ["kd"],
        "curves": [{"method": "kd", "epochs": [60], "checkpoints": [{"rule": "lowest_nll"}]}],
    }
    plan = resolve(config(a={**study, "split": "train-val", "keep": {"every": 60}}))
    students = named(plan, "kd")
    assert len({plan.runs[name].banks for name in students}) == len(students) == 3
    for name in students:
        assert plan.teacher_weights(plan.runs[name].banks[0]) == plan.teacher_weights(name)
        assert plan.teacher_stamps(plan.runs[name].banks[0]) == plan.teacher_stamps(name)


def test_no_banks_of_images_in_files_or_for_several_gpus(config, monkeypatch):
    study = {**SMALL, "methods": ["kd", "dkd"]}
    plan = resolve(config(a=study))
    spec = registry.datasets.get("cifar100")
    with monkeypatch.context() as patch:
        patch.setitem(registry.datasets._found, "cifar100", replace(spec, on_disk=True))
        assert not resolve(config(a=study)).banks
    real = _StudyResolver._read_protocol
    shared = lambda self, name: real(self, name).model_copy(update={"gpus": 4})  # noqa: E731
    monkeypatch.setattr(_StudyResolver, "_read_protocol", shared)
    several = resolve(config(a=study))
    assert {p.run.gpus for p in several.runs.values()} == {4}
    assert not several.banks
    assert several.runs.keys() == plan.runs.keys()


def test_float16_makes_other_students_and_nothing_else_does(config):
    study = {**SMALL, "methods": ["kd", "fitnet", "scratch"]}
    usual = config(a=study)
    plan = resolve(usual)
    half = resolve(usual.model_copy(update={"bank": BankSettings(precision="float16")}))
    moved = {p.run.spec.objective.name for name, p in half.runs.items() if name not in plan.runs}
    assert moved == {"kd"}
    (before,), (after,) = plan.banks.values(), half.banks.values()
    assert 2 * after.bytes == before.bytes
    assert after.bank.spec.storage == "float16"
    for settings in ({"use": "never"}, {"most_gb": 1}):  # nor is the plan resolved again
        assert plan_path(usual) == plan_path(usual.model_copy(update={"bank": BankSettings(**settings)}))
    short = config(a={**study, "scales": {"s": {"precision": "bfloat16"}}}, scale="s")
    brief = resolve(short)
    (bank,) = brief.banks.values()
    assert (bank.bank.spec.storage, bank.bytes) == ("bfloat16", after.bytes)
    asked = short.model_copy(update={"bank": BankSettings(precision="float16")})
    assert resolve(asked).runs.keys() == brief.runs.keys()


def test_a_bank_needs_two_students(config, results):
    plan = resolve(config(a={**SMALL, "methods": ["scratch", "kd", "mlld", "fitnet"]}))
    assert make_banks(plan, results, AUTO) == Banks()  # mlld would need a second one, all for itself
    plan = resolve(config(a={**SMALL, "methods": ["kd", "mlld", "dkd"]}))
    banks = make_banks(plan, results, AUTO)
    assert list(banks.of) == named(plan, "kd", "dkd")
    assert banks.readers == Counter(dict.fromkeys(banks.markers, 2))
    every = make_banks(plan, results, BankSettings(use="always", most_gb=0))
    assert list(every.of) == named(plan, "kd", "mlld", "dkd")
    assert len(every.markers) == 2
    assert make_banks(plan, results, BankSettings(use="never")) == Banks()
    two = resolve(
        config(a={**SMALL, "methods": ["mlld", {"name": "mlld", "label": "b", "settings": {"beta": 2}}]})
    )
    assert len(make_banks(two, results, AUTO).markers) == 2


def test_a_bank_must_save_more_than_its_job_costs(config, results):
    plan = resolve(config(a={**SMALL, "methods": ["kd", "dkd"]}, scale="smoke"))
    assert plan.banks
    assert not make_banks(plan, results, AUTO).of
    assert make_banks(plan, results, BankSettings(use="always")).of


def test_the_most_useful_banks_fit(config, results):
    study = {**SMALL, "seeds": [0, 1], "methods": ["kd", "dkd"]}
    study["pairs"] = [*SMALL["pairs"], {"teacher": "resnet110", "student": "resnet20"}]
    plan = resolve(config(a=study))
    assert len(make_banks(plan, results, AUTO).markers) == 4
    few = make_banks(plan, results, BankSettings(most_gb=10))
    assert {plan.banks[bank].bank.model for bank in few.markers} == {"resnet110"}
    assert len(few.markers) == 2
    other = results.banks / "of_another_study"
    other.mkdir(parents=True)
    with open(other / "logits.npy", "wb") as file:
        file.truncate(3 * 10**9)
    assert len(make_banks(plan, results, BankSettings(most_gb=10)).markers) == 1


def test_only_students_that_are_not_finished_count(config, results):
    plan = resolve(config(a={**SMALL, "methods": ["kd", "dkd", "dist"]}))
    (teacher,) = named(plan, "standard")
    (bank,) = plan.banks
    finish(results, plan, teacher, named(plan, "kd")[0])
    assert list(make_banks(plan, results, AUTO).of) == named(plan, "dkd", "dist")
    finish(results, plan, named(plan, "dkd")[0])
    assert not make_banks(plan, results, AUTO).of  # the last one alone is not worth it
    store(results, bank)
    assert make_banks(plan, results, BankSettings(most_gb=0)).of == {named(plan, "dist")[0]: (bank,)}


def test_a_marker_of_a_deleted_bank_does_not_count(config, results):
    plan = resolve(config(a={**SMALL, "methods": ["kd", "dkd"]}))
    (bank,) = plan.banks
    assert make_banks(plan, results, AUTO).markers == {bank: bank}
    store(results, bank)
    assert make_banks(plan, results, AUTO).markers == {bank: bank}
    remove(stored_banks(plan, results), results)
    assert (results.banks / f"{bank}.done").is_file()
    again = make_banks(plan, results, AUTO)
    assert again.markers == {bank: f"{bank}.2"}
    assert again.marked == {f"{bank}.2": bank}
    store(results, bank, f"{bank}.2")
    assert make_banks(plan, results, AUTO).markers == {bank: f"{bank}.2"}
    assert bank_marker("r", f"{bank}.2") == f"r/banks/{bank}.2.done"


def test_what_is_stored_and_can_go(config, results):
    plan = resolve(config(a={**SMALL, "seeds": [0, 1], "methods": ["kd", "dkd"]}))
    first, second = plan.banks
    for bank in (first, second, "of_another_study"):
        store(results, bank)
    results.bank(second).record.unlink()
    done = [name for name in plan.runs if plan.runs[name].run.spec.seed == 0]
    finish(results, plan, *done, *named(plan, "standard"))
    found = {bank.name: (bank.whole, bank.unread) for bank in stored_banks(plan, results)}
    assert found == {first: (True, 0), second: (False, 2), "of_another_study": (True, 0)}
    Banks({"a_student_of_it": ("of_another_study",)}, {"of_another_study": "x"}).write(results)
    assert {bank.name for bank in stored_banks(plan, results) if not bank.unread} == {first}


def test_jobs_elsewhere_read_the_banks_of_this_call(config, results):
    plan = resolve(config(a={**SMALL, "methods": ["kd", "dkd"]}))
    Banks().write(results)
    assert not results.banks.exists()
    banks = make_banks(plan, results, AUTO)
    banks.write(results)
    assert read_banks(results) == banks
    Banks().write(results)
    assert read_banks(results) == Banks()


def test_a_banked_student_costs_less(config, results):
    plan = resolve(config(a={**SMALL, "methods": ["kd", "dkd", "fitnet"]}))
    banks = make_banks(plan, results, AUTO)
    (bank,), passes = banks.markers, 240 * 50_000 * FORWARD
    kd = plan.runs[named(plan, "kd")[0]]
    alone, banked = estimate(kd, RATES), estimate(kd, RATES, banked=True)
    assert alone.seconds - banked.seconds == pytest.approx(passes / 1e12)
    assert making(plan.banks[bank], RATES) == pytest.approx(passes / 1e12)
    made = dict.fromkeys(plan.runs, False)
    less = bill(plan, plan.runs, RATES, made).hours - bill(plan, plan.runs, RATES, made, banks).hours
    assert less == pytest.approx(2 * passes / 1e12 / 3600)
    without, within = longest_path(plan, RATES), longest_path(plan, RATES, banks)
    assert [name for name, _ in within[:1]] == [name for name, _ in without[:1]]
    always = make_banks(plan, results, BankSettings(use="always"))
    study = resolve(config(a={**SMALL, "methods": ["kd", "dkd"]}))
    path = [name for name, _ in longest_path(study, RATES, always)]
    assert path[1] in study.banks
    assert path[2] in banks.of


def test_measured_speeds_of_either_kind_tell_the_other(config):
    plan = resolve(config(a={**SMALL, "methods": ["kd"]}))
    kd = plan.runs[named(plan, "kd")[0]]
    kd = replace(kd, work=replace(kd.work, watched=0))
    share = (kd.work.step - kd.work.taught) / kd.work.step
    for known in (False, True):
        key = speed_key(kd.run.spec, kd.run.pair, known)
        rates = replace(RATES, rate=0.0, measured={key: 100.0})
        own, other = estimate(kd, rates, banked=known), estimate(kd, rates, banked=not known)
        assert own.measured
        assert own.seconds == pytest.approx(240 * 50_000 / 100)
        assert other.seconds / own.seconds == pytest.approx(1 / share if known else share)


def test_the_teachers_precision_is_the_matter_of_who_has_one(config):
    """It moves students that have a teacher, where it differs from their own, and no other run."""

    def runs(**protocol):
        entries = [{"name": name, "protocol": protocol} for name in ("kd", "scratch")]
        recipes = [{"name": name, "protocol": protocol} for name in ("standard", "born_again")]
        return resolve(config(a={**SMALL, "methods": entries, "recipes": recipes})).runs

    usual, same, half = runs(), runs(teacher_precision="float32"), runs(teacher_precision="bfloat16")
    assert usual.keys() == same.keys()
    moved = [half[name].run for name in half.keys() - usual.keys()]
    assert {(run.spec.objective.name, run.recipe) for run in moved if run.spec.method} == {
        ("kd", "standard"),
        ("kd", "born_again"),
    }
    assert {run.spec.objective.name for run in moved if run.spec.recipe} == {"born_again"}
    assert all(run.spec.teacher and run.spec.protocol.taught_in == "bfloat16" for run in moved)
    kd = next(run for run in moved if run.spec.method)
    exact = kd.spec.model_copy(
        update={"protocol": kd.spec.protocol.model_copy(update={"teacher_precision": None})}
    )
    assert speed_key(kd.spec, kd.pair) != speed_key(exact, kd.pair)  # beside its teacher it is faster
    assert speed_key(kd.spec, kd.pair, True) == speed_key(exact, kd.pair, True)


def test_the_plan_tells_of_banks(config, results, tmp_path):
    settings = config(a={**SMALL, "methods": ["kd", "dkd", "dist"]})
    plan = resolve(settings)
    (tmp_path / "throughput.yaml").write_text("devices: [{device: a device, rate: 1.0e12, source: stated}]\n")
    banks = make_banks(plan, results, AUTO)
    told = overview(plan, results.root, tmp_path, banks=banks)
    assert "banks:   1 bank for 3 students, 4.8 GB; 25 min to make and 1.26 h less for the students" in told
    (bank,) = plan.banks
    data = json.loads(overview(plan, results.root, tmp_path, as_json=True, banks=banks))
    assert data["banks"][bank]["students"] == 3
    assert data["banks"][bank]["bytes"] == plan.banks[bank].bytes
    assert data["runs"][named(plan, "kd")[0]]["banks"] == [bank]
    store(results, bank)
    again = overview(plan, results.root, tmp_path, banks=make_banks(plan, results, AUTO))
    assert "1 of them there" in again
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


def test_settings_are_checked():
    assert parse(Config, {}, "config").bank == AUTO
    with pytest.raises(ConfigError, match=r"key 'bank\.use'"):
        parse(Config, {"bank": {"use": "sometimes"}}, "config")
    with pytest.raises(ConfigError, match="did you mean 'most_gb'"):
        parse(Config, {"bank": {"most_gbs": 1}}, "config")
