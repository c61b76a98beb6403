"""From a study to its runs: shared, paired, precedence right, reasons given, and back from a file."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError, ConfigError, UnknownNameError
from kdpipe.plan.config import Config
from kdpipe.plan.load import load_plan, plan_path, read_plan, study_digest, write_plan
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve

STUDY = {
    "title": "t",
    "dataset": "cifar100",
    "protocol": "crd240",
    "seeds": [0, 1, 2],
    "pairs": [
        {"teacher": "resnet32x4", "student": "resnet8x4"},
        {"teacher": "resnet56", "student": "resnet20"},
    ],
    "recipes": ["standard", "soteacher"],
    "methods": ["scratch", "kd", "dkd"],
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes studies beside the real protocols; gives a Config for them."""
    from pathlib import Path

    real = Path("config").resolve()
    (tmp_path / "studies").mkdir()
    (tmp_path / "protocols").symlink_to(real / "protocols")
    (tmp_path / "scales.yaml").symlink_to(real / "scales.yaml")

    def make(settings=None, scale=None, **studies):
        for name, changes in studies.items():
            (tmp_path / "studies" / f"{name}.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
        return Config(
            studies=tuple(studies),
            folder=str(tmp_path),
            results=str(tmp_path / "results"),
            settings=settings or {},
            scale=scale,
        )

    return make


def settings_of(plan, method, student="resnet8x4", recipe="standard"):
    cell = next(
        c
        for s in plan.studies.values()
        for c in s.cells
        if c.row == method and c.student == student and c.recipe == recipe
    )
    run = plan.runs[cell.run].run
    return run.spec.method.settings, run.sources


def test_counts_and_sharing(config):
    plan = resolve(config(a={}))
    teachers = [p for p in plan.runs.values() if p.run.kind == "teacher"]
    scratch = [p for p in plan.runs.values() if p.run.spec.objective.name == "scratch"]
    assert len(teachers) == 2 * 2 * 3
    assert len(scratch) == 2 * 3  # shared by the recipes
    assert len(plan.runs) == 12 + 6 + 2 * (2 * 2 * 3)


def test_studies_share_runs(config):
    alone, both = resolve(config(a={})), resolve(config(a={}, b={"title": "other", "metrics": ["nll"]}))
    assert both.runs.keys() == alone.runs.keys()
    assert next(iter(both.runs.values())).studies == ("a", "b")


def test_a_student_names_its_teacher(config):
    plan = resolve(config(a={}))
    for planned in plan.runs.values():
        if planned.teacher:
            assert planned.run.spec.teacher.run == plan.runs[planned.teacher].run.id
            assert planned.run.pair[0] == plan.runs[planned.teacher].run.spec.model.name
            assert planned.run.spec.seed == plan.runs[planned.teacher].run.spec.seed


def test_precedence_default_published_study_entry_command_line(config):
    beta = settings_of(resolve(config(a={})), "dkd")
    assert beta[0]["beta"] == 8.0
    assert beta[1]["beta"].startswith("published")
    assert settings_of(resolve(config(a={})), "dkd", "resnet20")[0]["beta"] == 2.0
    study = config(a={"settings": {"dkd": {"beta": 3}}})
    assert settings_of(resolve(study), "dkd")[0]["beta"] == 3.0
    assert settings_of(resolve(study), "dkd")[1]["beta"] == "study a"
    entry = config(
        a={"settings": {"dkd": {"beta": 3}}, "methods": ["scratch", {"name": "dkd", "settings": {"beta": 4}}]}
    )
    assert settings_of(resolve(entry), "dkd")[0]["beta"] == 4.0
    line = config(a={"settings": {"dkd": {"beta": 3}}}, settings={"dkd": {"beta": 5}})
    assert settings_of(resolve(line), "dkd")[0]["beta"] == 5.0
    assert settings_of(resolve(line), "dkd")[1]["beta"] == "command line"


def test_a_network_for_other_images_is_refused(config):
    small = config(a={"dataset": "digits", "pairs": [{"teacher": "two_layer_100", "student": "resnet8"}]})
    with pytest.raises(ConfigError, match=r"two_layer_100 takes images of 32 pixels only; .* digits have 8"):
        resolve(small)


def test_only_the_changed_students_move(config):
    before, after = resolve(config(a={})), resolve(config(a={"settings": {"dkd": {"beta": 3}}}))
    moved = [before.runs[n].run.spec.objective.name for n in before.runs.keys() - after.runs.keys()]
    assert set(moved) == {"dkd"}
    assert len(moved) == 12


def test_a_changed_teacher_moves_its_students(config):
    before, after = resolve(config(a={})), resolve(config(a={"settings": {"soteacher": {"lambda_lr": 2e-5}}}))
    moved = [before.runs[n].run for n in before.runs.keys() - after.runs.keys()]
    assert {r.recipe for r in moved} == {"soteacher"}
    assert {r.kind for r in moved} == {"teacher", "student"}


def test_the_scale_reduces_and_moves_milestones(config):
    plan = resolve(
        config(a={"scales": {"tiny": {"epochs": 24, "train_samples": 1000, "seeds": 1}}}, scale="tiny")
    )
    assert len(plan.runs) == (12 + 6 + 24) // 3
    spec = next(iter(plan.runs.values())).run.spec
    assert (spec.protocol.epochs, spec.protocol.milestones) == (24, (15, 18, 21))
    assert spec.data.train_samples == 1000


def test_a_scale_that_changes_nothing_shares_the_runs(config):
    full = resolve(config(a={}))
    same = resolve(config(a={"scales": {"big": {"epochs": 240, "train_samples": 50000}}}, scale="big"))
    assert same.runs.keys() == full.runs.keys()


def test_curves_share_the_last_epoch_and_ask_for_checkpoints(config):
    curve = {"curves": [{"method": "kd", "epochs": [60, 120, 240]}]}
    plain, curved = resolve(config(a={})), resolve(config(a=curve))
    extra = curved.runs.keys() - plain.runs.keys()
    assert len(extra) == 2 * 2 * 2 * 3  # epochs 60 and 120; 240 is the table's own student
    teachers = [p for p in curved.runs.values() if p.run.kind == "teacher"]
    assert {p.keep for p in teachers} == {(60, 120)}
    places = curved.studies["a"].places()
    assert sum("sampled/epoch-0060" in p for p in places) == 12


def test_a_pair_that_a_method_cannot_do_has_a_reason(config, monkeypatch):
    method = registry.methods.get("kd")
    monkeypatch.setattr(method, "skip", lambda self, student, teacher: f"not from {teacher.name}")
    plan = resolve(config(a={"methods": ["scratch", "kd"]}))
    cells = [c for c in plan.studies["a"].cells if c.row == "kd"]
    assert {(c.run, c.skipped) for c in cells} == {
        (None, "not from resnet32x4"),
        (None, "not from resnet56"),
    }
    assert not [p for p in plan.runs.values() if p.run.spec.objective.name == "kd"]


def test_a_plan_survives_its_file(config, tmp_path):
    plan = resolve(config(a={"curves": [{"method": "kd", "epochs": [60]}]}))
    write_plan(plan, tmp_path / "plans" / "p.json")
    assert read_plan(tmp_path / "plans" / "p.json") == plan
    assert Plan.from_json(plan.to_json()) == plan


def test_the_plans_name_follows_what_decides_it(config):
    first = plan_path(config(a={}))
    assert plan_path(config(a={})) == first
    assert plan_path(config(a={"seeds": [0]})) != first
    assert plan_path(config(a={}).model_copy(update={"device": "cuda", "threads": 4})) == first


def test_the_digest_follows_the_layout(config):
    a, b = (resolve(config(a=c)).studies["a"] for c in ({}, {"metrics": ["nll"]}))
    assert study_digest(a) != study_digest(b)


def test_reading_a_known_plan_imports_no_torch(config):
    settings = config(a={})
    load_plan(settings)
    code = (
        "import sys, json; from kdpipe.plan.config import Config; from kdpipe.plan.load import load_plan\n"
        "load_plan(Config.model_validate_json(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    for _ in range(2):  # known, and (after the change of a study) resolved by a child
        done = subprocess.run(
            [sys.executable, "-c", code, settings.model_dump_json()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        settings = config(a={"seeds": [0]})


def test_teachers_and_students_may_have_protocols_of_their_own(config):
    plan = resolve(config(a={"protocol": {"teacher": "micc90_teacher", "student": "micc90_student"}}))
    found = {(p.run.kind, p.run.protocol, p.run.spec.protocol.lr) for p in plan.runs.values()}
    assert found == {("teacher", "micc90_teacher", 0.5), ("student", "micc90_student", 0.05)}


def test_one_name_stands_for_both_protocols(config):
    named = {"protocol": {"teacher": "crd240", "student": "crd240"}}
    assert resolve(config(a=named)).runs == resolve(config(a={})).runs


def test_a_curve_counts_the_teachers_epochs(config):
    protocol = {"teacher": "soteacher_tiny90", "student": "soteacher_tiny100"}
    plan = resolve(config(a={"protocol": protocol, "curves": [{"method": "kd", "epochs": [30, 90]}]}))
    assert {p.keep for p in plan.runs.values() if p.run.kind == "teacher"} == {(30,)}
    with pytest.raises(ConfigError, match="teacher epoch 100; the protocol has 90"):
        resolve(config(a={"protocol": protocol, "curves": [{"method": "kd", "epochs": [100]}]}))


def imported(**files):
    return {"recipes": ["standard", {"name": "imported", "settings": {"files": files}}]}


def test_an_imported_teacher_is_one_run_for_all_seeds_and_never_trained(config):
    files = {"resnet32x4": "a" * 64, "resnet56": "b" * 64}
    plan = resolve(config(a=imported(**files)))
    teachers = [p.run for p in plan.runs.values() if p.run.imported]
    assert sorted((r.pair[0], r.imported) for r in teachers) == sorted(files.items())
    for run in teachers:
        students = [p.run for p in plan.runs.values() if p.teacher == run.name]
        assert {s.spec.seed for s in students} == {0, 1, 2}
        assert {s.spec.teacher.run for s in students} == {run.id}
    own = [c for c in plan.studies["a"].cells if c.row == "teacher" and c.recipe == "imported"]
    assert len(own) == 2  # measured once, not once a seed


def test_a_missing_import_is_one_message(config):
    settings = config(a=imported(resnet32x4="a" * 64, resnet56="b" * 64))
    with pytest.raises(CheckpointError, match="kdpipe import-teacher FILE --model resnet32x4"):
        load_plan(settings)
    with pytest.raises(ConfigError, match="'files' names no checkpoint of resnet56"):
        resolve(config(a=imported(resnet32x4="a" * 64)))


def test_no_study_is_a_mistake():
    with pytest.raises(ConfigError, match="no study is asked for"):
        resolve(Config())


def test_unknown_settings_name_the_nearest(config):
    with pytest.raises(UnknownNameError, match="did you mean 'dkd'"):
        resolve(config(a={}, settings={"dkdd": {}}))
