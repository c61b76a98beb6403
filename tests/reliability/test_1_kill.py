"""Drill 1: kill -9 at random moments and inside writes; the same bits, nothing left over.

Twice in a row too. Kinds of run: teacher, student, two stages, chain.
"""

from __future__ import annotations

import shutil

import pytest

from kdpipe.core.paths import RunPaths
from tests.reliability.conftest import cases, same

pytestmark = pytest.mark.slow


def fresh(lab, name, tmp_path):
    """A new folder for a run, and the undisturbed one."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    return RunPaths(tmp_path / "run"), lab.results.run(name)


def test_at_random_moments(lab, outcome, tmp_path):
    lasts = {}
    for kind, name in lab.kinds.items():
        ours, theirs = fresh(lab, name, tmp_path)
        lasts[kind] = lab.made(lab.train(name, ours.root)).seconds
        same(ours, theirs)
    for number in range(cases(6, 100)):
        kind = list(lab.kinds)[number % len(lab.kinds)]
        ours, theirs = fresh(lab, lab.kinds[kind], tmp_path)
        argv = lab.train(lab.kinds[kind], ours.root)
        moments = [outcome.rng.uniform(0, lasts[kind]) for _ in range(1 + number % 3 // 2)]
        with outcome.case(f"{kind}, killed after {moments} s"):
            for moment in moments:
                done = lab.call(argv, kill_after=moment)
                assert done.killed or done.code == 0, done.text
            lab.made(argv)
            same(ours, theirs)


def test_inside_writes(lab, outcome, tmp_path):
    kinds = list(lab.kinds.items())
    points = []
    for kind, name in kinds:
        ours, theirs = fresh(lab, name, tmp_path)
        listed = tmp_path / "calls"
        listed.unlink(missing_ok=True)
        trap = {"nth": 0, "when": "before", "calls": str(listed)}
        lab.made(lab.train(name, ours.root), trap=trap)
        same(ours, theirs)
        calls = listed.read_text().split()
        assert {"fsync", "replace", "write", "unlink", "mkstemp"} <= set(calls)
        for nth, call in enumerate(calls, 1):
            points += [(kind, name, nth, call, w) for w in ("before", "after")]
            points += [(kind, name, nth, call, "half")] * (call == "write")
    chosen = outcome.rng.sample(points, cases(8, min(len(points), 250)))
    for kind, name, nth, call, when in chosen:
        ours, theirs = fresh(lab, name, tmp_path)
        argv = lab.train(name, ours.root)
        with outcome.case(f"{kind}, killed {when} call {nth}, {call}"):
            done = lab.call(argv, trap={"nth": nth, "when": when})
            assert done.code == -9, done.text
            lab.made(argv)
            same(ours, theirs)


def test_inside_what_is_not_training(lab, outcome, tmp_path):
    """Preparing data, sampling a checkpoint and evaluating: killed at each of their writes."""
    teacher = lab.kinds["teacher"]
    data = lab.plan.runs[teacher].data

    def prepared(root):
        return ["prepare", "digits", "--out", root / "data" / data], root / "data" / data

    def sampled(root):
        copy = root / "run"
        if not copy.exists():
            shutil.copytree(lab.results.run(teacher).root, copy)
            shutil.rmtree(copy / "sampled")
        return lab.sample(teacher, lab.kept, copy), copy / "sampled"

    def measured(root):
        copy = root / "run"
        if not copy.exists():
            shutil.copytree(lab.results.run(lab.kinds["student"]).root, copy)
            (copy / "metrics.json").unlink()
        return ["evaluate", "--run", copy], copy

    def content(place):
        files = [f for f in place.rglob("*") if f.is_file() and f.suffix in (".npz", ".npy")]
        assert files
        assert not list(place.parent.rglob("*.tmp"))
        return {f.name: f.read_bytes() for f in files}

    for make in (prepared, sampled, measured):
        argv, place = make(tmp_path / "whole")
        listed = tmp_path / f"{make.__name__}.calls"
        lab.made(argv, trap={"nth": 0, "when": "before", "calls": str(listed)})
        whole, calls = content(place), listed.read_text().split()
        points = [(n, when) for n in range(1, len(calls) + 1) for when in ("before", "after")]
        shutil.rmtree(tmp_path / "whole")
        for nth, when in outcome.rng.sample(points, min(len(points), cases(2, 50))):
            argv, place = make(tmp_path / "parts")
            with outcome.case(f"{make.__name__}, killed {when} call {nth}, {calls[nth - 1]}"):
                assert lab.call(argv, trap={"nth": nth, "when": when}).code == -9
                lab.made(argv)
                assert content(place) == whole
            shutil.rmtree(tmp_path / "parts")
