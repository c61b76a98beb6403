"""Which runs share a job: of one depth, few teachers, only what is still to be trained."""

from __future__ import annotations

import random
import time
from graphlib import TopologicalSorter

import pytest

from kdpipe.core.paths import Results
from kdpipe.core.specs import DataSpec, Part, Protocol, Run, RunSpec, TeacherRef
from kdpipe.plan.config import Config
from kdpipe.plan.packs import Packs, group, make_packs, marker, read_packs
from kdpipe.plan.plan import Plan, PlannedRun


def run_of(kind, name, seed=0, teacher=None, epoch=None):
    """A run, as far as packs look at it."""
    spec = RunSpec(
        data=DataSpec(dataset="digits", revision=1),
        model=Part(name="resnet8", revision=1),
        protocol=Protocol(lr=1, epochs=1, batch_size=2),
        **{kind: Part(name=name, revision=1)},
        teacher=TeacherRef(run=teacher, epoch=epoch) if teacher else None,
        seed=seed,
    )
    return Run(spec=spec, label=f"{kind}_{name}_s{seed}", protocol="p")


def plan_of(teachers=3, students=5, epochs=(), scratch=2, data=("d",)):
    """Teachers with students each (of the last and of other epochs), and students without a teacher."""
    runs = {}
    for folder in data:
        for t in range(teachers):
            runs[f"t{t}{folder}"] = PlannedRun(run_of("recipe", "standard", t), None, folder)
            for s in range(students):
                for epoch in (None, *epochs):
                    name = f"t{t}{folder}s{s}" + (f"e{epoch}" if epoch else "")
                    runs[name] = PlannedRun(
                        run_of("method", "kd", s, f"t{t}", epoch), f"t{t}{folder}", folder
                    )
        for s in range(scratch):
            runs[f"{folder}x{s}"] = PlannedRun(run_of("method", "scratch", s), None, folder)
    return Plan(runs)


def test_each_run_is_in_one_pack_and_packs_are_filled():
    plan = plan_of()
    packs = group(plan, plan.runs, 4)
    assert sorted(name for pack in packs for name in pack) == sorted(plan.runs)
    assert sorted(map(len, packs)) == [2, 3, 3, 4, 4, 4]  # scratch; teachers; 3 x 4 students, and the rest


def test_students_of_one_teacher_come_together():
    packs = group(plan_of(), [f"t{t}ds{s}" for t in range(3) for s in range(5)], 4)
    teachers = [{name[:2] for name in pack} for pack in packs]
    assert teachers == [{"t0"}, {"t1"}, {"t2"}, {"t0", "t1", "t2"}]


def test_those_that_wait_for_the_same_checkpoint_come_first():
    plan = plan_of(teachers=1, students=3, epochs=[5], scratch=0)
    packs = group(plan, [name for name in plan.runs if plan.runs[name].teacher], 2)
    kinds = [{"e5" in name for name in pack} for pack in packs]
    assert kinds == [{False}, {True}, {False, True}]


def test_data_sets_kinds_and_depths_do_not_mix():
    plan = plan_of(teachers=1, students=1, scratch=1, data=("d", "e"))
    chain = dict(plan.runs)
    chain["second"] = PlannedRun(run_of("recipe", "born_again", teacher="t0"), "t0d", "d")
    chain["third"] = PlannedRun(run_of("recipe", "born_again", teacher="t1"), "second", "d")
    packs = group(Plan(chain), reversed(chain), 8)
    assert sorted(packs) == [(name,) for name in sorted(chain)]


def test_a_run_on_several_gpus_is_alone(monkeypatch):
    plan = plan_of(teachers=0, scratch=5)
    monkeypatch.setattr(Run, "gpus", property(lambda run: 1 + run.spec.seed // 3), raising=False)
    assert sorted(map(len, group(plan, plan.runs, 4))) == [1, 1, 3]


def test_no_pack_waits_for_itself():
    """Whatever the plan: packs depend on each other in one direction."""
    rng = random.Random(0)
    runs = {}
    for n in range(200):
        teacher = rng.choice([None, *runs]) if runs else None
        kind = rng.choice(["recipe", "method", "part"])
        runs[f"r{n}"] = PlannedRun(run_of(kind, "x", n, teacher), teacher, rng.choice("ab"))
    plan = Plan(runs)
    packs = group(plan, rng.sample(list(runs), 150), 7)
    at = {name: number for number, pack in enumerate(packs) for name in pack}
    needs = {n: {at[o] for name in pack for o in plan.needs(name) if o in at} for n, pack in enumerate(packs)}
    assert len(list(TopologicalSorter(needs).static_order())) == len(packs)
    assert max(map(len, packs)) == 7


def test_packs_hold_what_is_still_to_be_trained(tmp_path):
    plan, results = plan_of(teachers=2, students=2, scratch=0), Results(tmp_path)
    (tmp_path / "data" / "d").mkdir(parents=True)
    assert make_packs(plan, results, 1) == Packs()
    assert make_packs(plan, results, 4).of.keys() == plan.runs.keys()
    (tmp_path / "data" / "d" / "meta.json").touch()
    for name in ("t0d", "t0ds0", "t1ds0"):
        results.run(name).root.mkdir(parents=True)
        results.run(name).status.touch()
    left = make_packs(plan, results, 4)
    assert left.of.keys() == {"t1d", "t0ds1", "t1ds0", "t1ds1"}  # the student of an unfinished teacher too
    assert left == make_packs(plan, results, 4)


def test_a_marker_of_an_earlier_attempt_does_not_count(tmp_path):
    plan, results = plan_of(teachers=1, students=0, scratch=0), Results(tmp_path)
    (first,) = make_packs(plan, results, 2).members
    results.packs.mkdir()
    (results.packs / f"{first}.done").touch()
    assert str(results.packs / f"{first}.done") == marker(str(tmp_path), first)
    (second,) = make_packs(plan, results, 2).members
    assert second != first


def test_jobs_elsewhere_read_the_packs_of_this_call(tmp_path):
    plan, results = plan_of(), Results(tmp_path)
    packs = make_packs(plan, results, 4)
    packs.write(results, retries=3)
    assert read_packs(results) == Packs(packs.members, 3)
    fewer = make_packs(plan, results, 8)
    fewer.write(results, retries=0)
    assert read_packs(results) == fewer
    Packs().write(results, retries=0)
    assert read_packs(results) == Packs()
    nothing = Results(tmp_path / "none")
    Packs().write(nothing, retries=2)
    assert read_packs(nothing) == Packs()
    assert not nothing.packs.exists()


def test_ten_thousand_runs_take_no_time(tmp_path):
    plan = plan_of(teachers=100, students=99, scratch=0)
    begun = time.process_time()
    packs = make_packs(plan, Results(tmp_path), 8)
    assert len(packs.of) == 10_000
    assert time.process_time() - begun < 5  # half a second on an idle processor


@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_a_wrong_size_is_refused(value):
    from kdpipe.core.errors import ConfigError
    from kdpipe.plan.config import parse

    with pytest.raises(ConfigError, match="pack"):
        parse(Config, {"pack": value}, "config")
