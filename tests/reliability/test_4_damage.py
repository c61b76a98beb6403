"""Drill 4: truncated, emptied and bit-flipped files: found and named, or harmless; nothing wrong unseen."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest

from kdpipe.core.errors import UserError
from kdpipe.core.files import read_json
from kdpipe.core.paths import RunPaths
from kdpipe.engine.bench import DeskOnDisk
from kdpipe.engine.prepare import load
from kdpipe.engine.stop import Stop
from kdpipe.engine.weights import read_weights
from kdpipe.evaluation.evaluate import evaluate
from kdpipe.plan.load import read_plan
from kdpipe.tracking import journal
from tests.reliability.conftest import cases, one_message, same

pytestmark = pytest.mark.slow


def damage(content: bytes, rng, how: str) -> bytes:
    """A file's bytes cut short, emptied, or with a bit flipped."""
    if how == "emptied":
        return b""
    if how == "truncated":
        return content[: rng.randrange(len(content))]
    return flipped(content, rng.randrange(8 * len(content)))


def flipped(content: bytes, bit: int) -> bytes:
    """A file's bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def weights(file):
    return {k: v.numpy().tobytes() for k, v in read_weights(file).items()}


def data(folder):
    found = load(folder)
    arrays = (found.train.images, found.train.labels, found.test.images, found.test.labels)
    return [a.tobytes() for a in arrays], found.mean, found.std, found.num_classes, found.shape


def measures(folder):
    return evaluate(RunPaths(folder))["values"]


def test_whatever_is_read(lab, outcome, tmp_path):
    """Each kind of file, damaged in many ways, by the function that reads it."""
    student, teacher = (lab.results.run(lab.kinds[k]) for k in ("student", "teacher"))
    plan = lab.root / lab.plan_file
    prepared = lab.results.data(lab.plan.runs[lab.kinds["teacher"]].data)
    readers = {  # what it is: folder or file to copy, file to damage, reader
        "weights": (student.model, "", weights),
        "kept checkpoint": (teacher.checkpoint(lab.kept), "", weights),
        "plan": (plan, "", lambda f: read_plan(f).to_json()),
        "metrics": (student.metrics, "", read_json),
        "status": (student.status, "", read_json),
        "provenance": (student.provenance, "", read_json),
        "checkpoint record": (teacher.sampled(lab.kept).checkpoint_record, "", read_json),
        "predictions": (student.root, "predictions.npz", measures),
        "history": (student.root, "history.csv", measures),
        "images": (prepared, "train_images.npy", data),
        "labels": (prepared, "test_labels.npy", data),
        "facts of the data": (prepared, "meta.json", data),
    }
    for what, (source, inner, read) in readers.items():
        copy = tmp_path / "copy"
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy(source, copy)
        file = copy / inner if inner else copy
        content, right = file.read_bytes(), read(copy)
        for number in range(cases(8, 100)):
            how = ["flipped", "truncated", "flipped", "emptied"][number % 4]
            with outcome.case(f"{what}, {how}"):
                file.write_bytes(damage(content, outcome.rng, how))
                try:
                    assert read(copy) == right, "silently wrong"
                    assert how == "flipped" or file.read_bytes() == content
                except UserError as error:
                    if not (file.name in str(error) and error.fix):
                        raise
        if copy.is_dir():
            shutil.rmtree(copy)
        else:
            copy.unlink()


def test_a_journal(lab, outcome, tmp_path):
    """Lines that are damaged are passed over; no wrong one is taken for right."""
    source = lab.results.run(lab.kinds["teacher"]).journal
    right = [repr(e) for e in journal.read(source)]
    for number in range(cases(20, 300)):
        how = ["flipped", "truncated"][number % 2]
        with outcome.case(how):
            copy = tmp_path / "journal.jsonl"
            copy.write_bytes(damage(source.read_bytes(), outcome.rng, how))
            assert {repr(e) for e in journal.read(copy)} <= set(right)


def interrupted(lab, name, root):
    """A run killed once it has two states, and its folder."""
    shutil.rmtree(root, ignore_errors=True)
    paths = RunPaths(root)
    lab.killed(lab.train(name, root), states=2)
    return paths


def test_a_state(lab, outcome, tmp_path):
    """The newest, the older one, both, or what an objective remembers: the same bits, and a warning."""
    name = lab.kinds["teacher"]
    for number in range(cases(4, 40)):
        how = ["flipped", "truncated", "emptied"][number % 3]
        pattern, count = [("*.state", 1), ("*.state", 2), ("*.f32", 1), ("*.state", 1)][number % 4]
        with outcome.case(f"{count} of {pattern}, {how}"):
            paths = interrupted(lab, name, tmp_path / "run")
            hit = outcome.rng.sample(sorted(paths.state.glob(pattern)), count)
            for file in hit:
                file.write_bytes(damage(file.read_bytes(), outcome.rng, how))
            done = lab.made(lab.train(name, paths.root))
            for file in hit:
                assert pattern == "*.f32" or str(file) in done.text, done.text
            same(paths, lab.results.run(name))


def test_what_a_training_is_given(lab, outcome, tmp_path):
    """Damaged data, teacher or part: one message that names the file, and no result."""
    student, staged = (lab.kinds[k] for k in ("student", "two-stage, a part first"))
    shutil.copytree(lab.root, tmp_path / "lab")
    for name in (student, staged):
        planned = lab.plan.runs[name]
        given = [f"data/{planned.data}/train_images.npy", f"data/{planned.data}/train_labels.npy"]
        given += lab.plan.teacher_weights(name)
        given += [f"runs/{planned.part}/model.safetensors"] if planned.part else []
        for inner in given:
            file, argv = tmp_path / "lab" / "results" / inner, lab.train(name, tmp_path / "run")
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            content = file.read_bytes()
            middle = bytearray(content)
            middle[len(middle) // 2] ^= 4
            for how, changed in (("flipped", middle), ("truncated", content[: len(content) // 2])):
                with outcome.case(f"{inner}, {how}"):
                    file.write_bytes(changed)
                    done = lab.driver.call(argv, tmp_path / "lab")
                    assert done.code == 2, done.text
                    one_message(done.text, f"results/{inner}", "fix:")
                    assert not (tmp_path / "run" / "status.json").exists()
            file.write_bytes(content)
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            with outcome.case(f"{inner}, whole again"):
                assert lab.driver.call(argv, tmp_path / "lab").code == 0
                same(RunPaths(tmp_path / "run"), lab.results.run(name))


def test_a_kept_checkpoint_is_made_again(lab, outcome, tmp_path):
    name = lab.kinds["teacher"]
    theirs = lab.results.run(name)
    shutil.copytree(theirs.root, tmp_path / "run")
    ours = RunPaths(tmp_path / "run")
    with outcome.case("flipped"):
        content = bytearray(ours.checkpoint(lab.kept).read_bytes())
        content[-100] ^= 1
        ours.checkpoint(lab.kept).write_bytes(content)
        lab.made(lab.sample(name, lab.kept, ours.root))
        assert ours.checkpoint(lab.kept).read_bytes() == theirs.checkpoint(lab.kept).read_bytes()
        assert (
            ours.sampled(lab.kept).predictions.read_bytes()
            == theirs.sampled(lab.kept).predictions.read_bytes()
        )


def test_a_plan_is_resolved_again(lab, outcome, tmp_path):
    shutil.copytree(lab.root, tmp_path / "lab")
    plan = tmp_path / "lab" / lab.plan_file
    content = plan.read_bytes()
    with outcome.case("flipped"):
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        plan.write_bytes(changed)
        done = lab.driver.call(["verify"], tmp_path / "lab")
        assert done.code == 0, done.text
        assert "the plan is resolved again" in done.text
        assert plan.name in done.text
        assert plan.read_bytes() == content


def test_a_benchs_part_is_made_again(outcome, tmp_path):
    def desk():
        return DeskOnDisk(tmp_path, "code", "bench", Stop(), io.StringIO())

    def make():
        return {"x": np.arange(5.0)}

    desk().once("a", make)
    content = (tmp_path / "a.npz").read_bytes()
    bits, ends = range(8 * len(content)), range(len(content))
    missed = len(bits) - 804  # in the archive's list: its reader then passes over an array
    chosen = [missed, *outcome.rng.sample(bits, cases(20, len(bits)))]
    damaged = {f"bit {bit}": flipped(content, bit) for bit in chosen}
    damaged |= {f"{end} bytes": content[:end] for end in [0, *outcome.rng.sample(ends, cases(10, 100))]}
    for how, bad in damaged.items():
        with outcome.case(how):
            (tmp_path / "a.npz").write_bytes(bad)
            assert desk().once("a", make)["x"].tolist() == [0, 1, 2, 3, 4]
            (tmp_path / "a.npz").write_bytes(content)
