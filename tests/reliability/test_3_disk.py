"""Drill 3: a full disk, read-only results, results that move: one message, then the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from kdpipe.core.paths import RunPaths
from tests.reliability.conftest import cases, one_message, same

pytestmark = pytest.mark.slow


@pytest.fixture
def small(tmp_path):
    """Mounts a small file system in memory; gives a function that sets its size and how it is mounted."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(size: int, *options: str) -> None:
        how = ["-o", ",".join((f"size={size}", *options))]
        done = subprocess.run(
            [
                "mount",
                *(["-o", "remount"] if os.path.ismount(place) else ["-t", "tmpfs"]),
                *how,
                "tmpfs",
                place,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    yield place, mount
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


def fill(place) -> None:
    """Take what is left of a file system, but for some pages."""
    with open(place / "filler", "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


def test_a_full_disk_while_training(lab, outcome, small, tmp_path):
    """State, weights, journal, log, memory files: whichever meets it."""
    place, mount = small
    for kind in ("teacher", "student"):
        name = lab.kinds[kind]
        mount(2**26)
        ours, theirs = RunPaths(place / "run"), lab.results.run(name)
        peak = sum(f.stat().st_size for f in theirs.root.rglob("*") if f.is_file())
        for _ in range(cases(4, 40)):
            shutil.rmtree(ours.root, ignore_errors=True)
            size = outcome.rng.randrange(0, int(peak * 2.5), 4096)
            mount(max(size, 4096))
            with outcome.case(f"{kind}, a disk of {size} bytes"):
                done = lab.call(lab.train(name, ours.root))
                if done.code:
                    assert done.code == 2
                    one_message(done.text, "cannot write: the disk ", "free some space", str(place))
                    mount(2**26)
                    lab.made(lab.train(name, ours.root))
                same(ours, theirs)


def test_a_file_that_may_not_grow(lab, outcome, tmp_path):
    """The same without a file system of its own: the kernel refuses to write on."""
    name = lab.kinds["teacher"]
    for _ in range(cases(3, 30)):
        ours, theirs = RunPaths(tmp_path / "run"), lab.results.run(name)
        shutil.rmtree(ours.root, ignore_errors=True)
        limit = outcome.rng.randrange(1, 400_000)
        with outcome.case(f"files of at most {limit} bytes"):
            done = lab.call(lab.train(name, ours.root), limit=limit)
            assert done.code == 2, done.text
            one_message(done.text, "cannot write: ", "fix:")
            lab.made(lab.train(name, ours.root))
            same(ours, theirs)


def test_a_full_disk_keeps_the_old_files(lab, outcome, small):
    """Tables, measures, samples and prepared data: what was there stays."""
    place, mount = small
    mount(2**27)
    shutil.copytree(lab.root, place / "lab")
    moved = lab.at(place / "lab")
    study = ["tiny", "--plan", str(lab.plan_file), "--results", "results"]
    run, teacher = f"results/runs/{lab.kinds['student']}", lab.kinds["teacher"]
    commands = {
        "table": ["table", *study],
        "evaluate": ["evaluate", "--run", run],
        "sample": lab.sample(teacher, lab.kept),
        "prepare": ["prepare", "digits", "--out", "results/data/new"],
        "figure": ["figure", "tiny", "learning_curves", *study[1:]],
        "report": ["report", *study[1:]],
    }
    moved.made(commands["table"])
    moved.made(commands["figure"])
    moved.made(commands["report"])
    fill(place)
    before = {f: f.read_bytes() for f in (place / "lab").rglob("*") if f.is_file()}
    for what, argv in commands.items():
        with outcome.case(what):
            done = moved.call(argv)
            assert done.code == 2, done.text
            one_message(done.text, "cannot write: the disk ", "free some space")
            after = {f: f.read_bytes() for f in (place / "lab").rglob("*") if f.is_file()}
            assert after == before
    (place / "filler").unlink()
    for what, argv in commands.items():
        with outcome.case(f"{what}, with room again"):
            moved.made(argv)


def test_read_only_results(lab, outcome, small):
    place, mount = small
    mount(2**27)
    shutil.copytree(lab.root, place / "lab")
    mount(2**27, "ro")
    moved = lab.at(place / "lab")
    plan = ["--plan", str(lab.plan_file), "--results", "results"]
    for argv in (["table", "--show", "tiny", *plan], ["plan"], ["compare", "_scratch_", "_ab_"]):
        with outcome.case(f"{argv[0]} reads"):
            moved.made(argv)
    name = lab.kinds["student"]
    for argv in (
        lab.train(name),
        ["table", "tiny", *plan],
        ["evaluate", "--run", f"results/runs/{name}"],
        lab.sample(lab.kinds["teacher"], lab.kept),
    ):
        with outcome.case(f"{argv[0]} says that it cannot write"):
            done = moved.call(argv)
            assert done.code == 2, done.text
            one_message(done.text, "cannot write: the file system is read-only")


def test_moved_and_continued(lab, outcome, tmp_path):
    """Killed in its second epoch, the whole folder renamed, continued there; no path of the old place."""
    shutil.copytree(lab.root, tmp_path / "old")
    before = lab.at(tmp_path / "old")
    for kind, name in lab.kinds.items():
        with outcome.case(kind):
            paths = before.results.run(name)
            shutil.rmtree(paths.root)
            before.killed(lab.train(name))
            (tmp_path / "old").rename(tmp_path / "new")
            lab.driver.call(lab.train(name), tmp_path / "new")
            (tmp_path / "new").rename(tmp_path / "old")
            same(paths, lab.results.run(name))
    with outcome.case("no file knows where it lies"):
        place = os.fsencode(str(tmp_path))
        files = [f for f in (tmp_path / "old").rglob("*") if f.is_file()]
        assert not [f for f in files if place in f.read_bytes() or os.fsencode(lab.root) in f.read_bytes()]
