"""From a study to its runs: shared, paired, precedence right, reasons given, and back from a file."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError, ConfigError, UnknownNameError
from kdpipe.plan.config import Config
from kdpipe.plan.load import load_plan, plan_path, read_plan, study_digest, write_plan
from kdpipe.plan.overview import overview
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve


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
    cells = curved.studies["a"].cells
    assert {(c.part, c.full) for c in cells} == {("table", None), ("curve", 240)}
    assert {c.dataset for c in cells} == {"cifar100"}
    extra = curved.runs.keys() - plain.runs.keys()
    assert len(extra) == 2 * 2 * 2 * 3  # epochs 60 and 120; 240 is the table's own student
    teachers = [p for p in curved.runs.values() if p.run.kind == "teacher"]
    assert {p.keep for p in teachers} == {(60, 120)}
    places = curved.to_measure("a")
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


# Teachers that are taught


def chain(plan, label, seed=0, teacher="resnet56"):
    """The runs that lead to a recipe's teacher, the first one first."""
    cell = next(
        c
        for s in plan.studies.values()
        for c in s.cells
        if (c.row, c.recipe, c.seed, c.teacher) == ("teacher", label, seed, teacher)
    )
    names = [cell.run]
    while plan.runs[names[0]].teacher:
        names.insert(0, plan.runs[names[0]].teacher)
    return names


def born_again(generations, **settings):
    settings = {"generations": generations, **settings}
    return {"recipes": [{"name": "born_again", "label": "ban", "settings": settings}], "seeds": [0, 1]}


def test_a_born_again_teacher_stands_on_a_chain_of_runs(config):
    plan = resolve(config(a=born_again(3)))
    runs = [plan.runs[name] for name in chain(plan, "ban")]
    assert [r.run.spec.recipe.name for r in runs] == ["standard", *["born_again"] * 3]
    assert [r.run.spec.recipe.settings.get("generations") for r in runs] == [None, 1, 2, 3]
    for before, after in pairwise(runs):
        assert after.run.spec.teacher.run == before.run.id
        assert plan.teacher_weights(after.run.name) == [f"runs/{before.run.name}/model.safetensors"]
        assert plan.teacher_stamps(after.run.name) == plan.teacher_weights(after.run.name)
    students = [p for p in plan.runs.values() if p.run.spec.objective.name == "kd"]
    lasts = {
        chain(plan, "ban", seed, teacher)[-1] for seed in (0, 1) for teacher in ("resnet56", "resnet32x4")
    }
    assert {p.teacher for p in students} == lasts


def test_one_more_generation_adds_one_run_and_studies_share_the_rest(config):
    two, three = (resolve(config(a={**born_again(n), "methods": ["scratch"]})) for n in (2, 3))
    new = [three.runs[n].run for n in three.runs.keys() - two.runs.keys()]
    assert not two.runs.keys() - three.runs.keys()
    assert sorted((r.pair[0], r.spec.seed) for r in new) == [
        (teacher, seed) for teacher in ("resnet32x4", "resnet56") for seed in (0, 1)
    ]
    assert {r.spec.recipe.settings["generations"] for r in new} == {3}
    both = resolve(config(a=born_again(2), b=born_again(3), c={"recipes": ["standard"], "seeds": [0, 1]}))
    assert set(chain(both, "ban")) <= set(resolve(config(b=born_again(3))).runs)
    assert both.runs[chain(both, "ban")[0]].studies == ("a", "b", "c")


def test_a_changed_weight_moves_every_generation_but_the_first(config):
    one, other = (resolve(config(a=born_again(2, alpha=alpha))) for alpha in (1, 2))
    assert chain(one, "ban")[0] == chain(other, "ban")[0]
    assert not set(chain(one, "ban")[1:]) & set(chain(other, "ban")[1:])


def cross_fitting(**changes):
    recipe = {"name": "cross_fitting", "settings": {"folds": 3}}
    study = {"recipes": ["standard", recipe], "seeds": [0], "methods": ["scratch", "kd", "rco"]}
    return {**study, **changes}


def test_a_student_of_several_networks_names_their_weights(config):
    plan = resolve(config(a=cross_fitting()))
    cell = next(c for c in plan.studies["a"].cells if c.row == "kd" and c.recipe == "cross_fitting")
    teacher = plan.runs[cell.run].teacher
    assert plan.runs[cell.run].run.spec.teacher.folds == 3
    assert plan.teacher_weights(cell.run) == [
        f"runs/{teacher}/{file}.safetensors" for file in ("model", "peer-1", "peer-2")
    ]
    assert plan.teacher_stamps(cell.run) == [f"runs/{teacher}/model.safetensors"]
    assert plan.teacher_place(cell.run) == f"runs/{teacher}"


def test_what_needs_earlier_epochs_of_several_networks_has_a_reason(config):
    curve = [{"method": "kd", "epochs": [60, 240], "checkpoints": [{"rule": "lowest_nll"}]}]
    study = cross_fitting(curves=curve, split="train-val", keep={"every": 80})
    plan = resolve(config(a=study))
    cells = [c for c in plan.studies["a"].cells if c.recipe == "cross_fitting" and c.skipped]
    assert {c.skipped for c in cells} == {"of a teacher of several networks only the last weights are kept"}
    assert {(c.part, c.row, c.epoch) for c in cells} == {
        ("table", "rco", None),
        ("curve", "kd", 60),
        ("curve", "kd", None),  # the rule's
    }
    last = [c for c in plan.studies["a"].cells if c.part == "curve" and not (c.epoch or c.rule)]
    assert {c.run for c in last if c.row == "kd"} <= plan.runs.keys()


# Checkpoints


def kept(plan):
    return {p.keep for p in plan.runs.values() if p.run.kind == "teacher"}


@pytest.mark.parametrize(
    ("keep", "epochs"),
    [
        ({"every": 60}, (60, 120, 180)),
        ({"every": 100, "epochs": [7, 240]}, (7, 100, 200)),
        ({"before_drops": True}, (150, 180, 210)),  # crd240: the rate falls in epochs 151, 181 and 211
        ({}, ()),
    ],
)
def test_a_study_keeps_epochs_of_its_teachers(config, keep, epochs):
    plan = resolve(config(a={"keep": keep}))
    assert kept(plan) == {epochs}
    cells = [c for c in plan.studies["a"].cells if c.part == "kept"]
    assert {c.epoch for c in cells} == set(epochs)
    places = set(plan.to_measure("a"))
    assert all(f"runs/{c.run}/sampled/epoch-{c.epoch:04d}" in places for c in cells)
    compared = plan.to_measure("a")  # students with their teachers; teachers, and their epochs, with nobody
    assert {p for p in compared if compared[p]} == {f"runs/{n}" for n in plan.runs if plan.teacher_place(n)}
    assert all(plan.teacher_place(p.split("/")[1]) == compared[p] for p in compared if compared[p])
    assert resolve(config(a={})).runs.keys() == plan.runs.keys()


def test_kept_epochs_follow_the_scale(config):
    tiny = {"scales": {"tiny": {"epochs": 24}}, "keep": {"every": 60, "before_drops": True}}
    assert kept(resolve(config(a=tiny, scale="tiny"))) == {(6, 12, 15, 18, 21)}
    at = {"protocol": "crl300", "keep": {"before_drops": True}}  # there the rate falls in epoch 150 itself
    assert kept(resolve(config(a=at))) == {(149, 249)}


def test_studies_keep_together(config):
    plan = resolve(
        config(a={"keep": {"epochs": [5]}}, b={"keep": {"epochs": [9]}, "checkpoint_precision": "float16"})
    )
    assert {(p.keep, p.keep_half) for p in plan.runs.values() if p.run.kind == "teacher"} == {((5,), (9,))}
    assert Plan.from_json(plan.to_json()) == plan


def test_keeping_what_is_not_there_is_a_mistake(config):
    with pytest.raises(ConfigError, match="'keep' asks for teacher epoch 241; the protocol has 240"):
        resolve(config(a={"keep": {"epochs": [241]}}))
    constant = {"protocol": "kernelregime_gd", "keep": {"before_drops": True}}
    with pytest.raises(ConfigError, match="learning rate of protocol 'kernelregime_gd' never drops"):
        resolve(config(a=constant))


def test_a_fraction_is_an_epoch(config):
    by_fraction = {"curves": [{"method": "kd", "checkpoints": [{"fraction": 0.25}, {"fraction": 1}]}]}
    by_epoch = {"curves": [{"method": "kd", "epochs": [60, 240]}]}
    assert resolve(config(a=by_fraction)).runs == resolve(config(a=by_epoch)).runs


RULES = {
    "split": "train-val",
    "seeds": [0],
    "keep": {"every": 80},
    "curves": [{"method": "kd", "epochs": [60], "checkpoints": [{"rule": "lowest_nll"}]}],
}


def chosen(plan):
    cells = [c for c in plan.studies["a"].cells if c.rule and c.row == "kd"]
    return [plan.runs[c.run] for c in cells]


def test_a_rule_is_part_of_the_students_spec(config):
    plan = resolve(config(a=RULES))
    students = chosen(plan)
    assert len(students) == 2 * 2
    for student in students:
        choice = student.run.spec.teacher.choice
        assert (choice.rule, choice.epochs) == ("lowest_nll", (80, 160))
        teacher = plan.runs[student.teacher]
        assert teacher.choices == {choice.name: choice}
        assert set(choice.epochs) <= set(teacher.keep)
        place = f"runs/{student.teacher}/sampled/{choice.name}"
        assert plan.teacher_place(student.run.name) == place
        assert plan.teacher_weights(student.run.name) == [f"{place}/model.safetensors"]
        assert plan.teacher_stamps(student.run.name) == [f"{place}/checkpoint.json"]
        assert place in plan.to_measure("a")
    assert Plan.from_json(plan.to_json()) == plan


def test_another_rule_or_other_candidates_make_another_run(config):
    def ids(**changes):
        return {s.run.id for s in chosen(resolve(config(a={**RULES, **changes})))}

    first = ids()
    assert ids() == first
    assert not ids(keep={"every": 70}) & first
    assert not ids(checkpoint_precision="float16") & first
    other = [{"method": "kd", "epochs": [60], "checkpoints": [{"rule": "best_accuracy"}]}]
    assert not ids(curves=other) & first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "full-train"},
            "rule 'lowest_nll' looks at validation images, and the study holds",
        ),
        (
            {"keep": {}},
            "the rule 'lowest_nll' has only the last epoch to choose from",
        ),
        ({"curves": [{"method": "kd"}]}, "a curve without 'epochs' and 'checkpoints' has no points"),
        ({"curves": [{"checkpoints": [{}]}]}, "a rule or by a fraction: give one of the two"),
        ({"curves": [{"checkpoints": [{"rule": "best_on_test"}]}]}, "lowest_nll"),
    ],
)
def test_a_wrong_choice_is_one_message(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(config(a={**RULES, **changes}))


def test_a_method_with_a_route_takes_no_rule(config):
    curve = [{"method": "rco", "checkpoints": [{"rule": "lowest_ece"}]}]
    plan = resolve(config(a={**RULES, "methods": ["rco"], "curves": curve}))
    skipped = {c.skipped for c in plan.studies["a"].cells if c.part == "curve" and c.row == "rco"}
    assert skipped == {"rco follows the teacher's training up to an epoch that has to be known"}


def test_half_precision_moves_the_students_of_kept_epochs_and_no_others(config):
    curve = {
        "curves": [{"method": "kd", "epochs": [60, 240]}],
        "methods": ["scratch", "kd", "rco"],
        "seeds": [0],
    }
    full, half = (resolve(config(a={**curve, "checkpoint_precision": p})) for p in ("float32", "float16"))
    moved = [half.runs[n].run for n in half.runs.keys() - full.runs.keys()]
    assert {(r.spec.objective.name, r.spec.teacher.epoch) for r in moved} == {("kd", 60), ("rco", None)}
    assert {r.spec.teacher.precision for r in moved} == {"float16"}
    for run in moved:
        assert all(f.endswith("-float16.safetensors") for f in half.teacher_weights(run.name))
    by_config = resolve(config(a=curve).model_copy(update={"checkpoint_precision": "float16"}))
    assert by_config.runs == half.runs
    assert plan_path(config(a=curve)) != plan_path(
        config(a=curve).model_copy(update={"checkpoint_precision": "float16"})
    )


def test_the_plan_says_how_much_room_checkpoints_take(config, tmp_path):
    parameters = sum(registry.models.get(n).params_at(100) for n in ("resnet32x4", "resnet56"))
    for precision, size in (("float32", 4), ("float16", 2)):
        plan = resolve(
            config(
                a={
                    "keep": {"every": 60},
                    "recipes": ["standard"],
                    "seeds": [0],
                    "checkpoint_precision": precision,
                }
            )
        )
        assert sum(p.bytes for p in plan.runs.values()) == 3 * size * parameters
        text = overview(plan, tmp_path)
        assert f"6 checkpoints of 2 teachers are kept: about {3 * size * parameters / 1e6:.3g} MB" in text
    assert "checkpoints" not in overview(resolve(config(a={})), tmp_path)
