"""Banks: whatever reads one learns the bits that it would learn from the teacher; damage is never silent."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest

from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError, Interrupted, ResultsError
from kdpipe.core.files import read_json
from kdpipe.core.paths import BankPaths, Results, RunPaths
from kdpipe.core.specs import Bank, TeacherRef
from kdpipe.engine import bank as engine
from kdpipe.engine.bank import make_bank
from kdpipe.engine.prepare import prepare
from kdpipe.engine.stop import Stop
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import read_weights, save_weights
from kdpipe.nn.banked import banks_for
from kdpipe.plan.plan import Plan, PlannedBank
from kdpipe.plan.verify import verify_results
from tests.engine.test_pack import TRAIN
from tests.engine.test_train import CPU, StopAfter
from tests.engine.tiny import PLAIN, SPEC, make_run
from tests.workflow.conftest import ROOT, eventually

EPOCHS = 2


def method_of(run):
    plugin = registry.methods.get(run.spec.method.name)
    return plugin(plugin.Config(**run.spec.method.settings))


def wanted(run):
    """The banks that a run could read."""
    return banks_for(run.spec, method_of(run))


def student(name, epochs=EPOCHS, ref=None, **changes):
    """A student's run, of the tiny data set."""
    run = make_run("method", name, epochs=epochs, **changes)
    if ref:
        teacher = run.spec.teacher.model_copy(update=ref)
        run = run.model_copy(update={"spec": run.spec.model_copy(update={"teacher": teacher})})
    return run


BANKED = [name for name in registry.methods.names() if wanted(student(name))]


@pytest.fixture(scope="module")
def teacher(prepared, tmp_path_factory):
    paths = RunPaths(tmp_path_factory.mktemp("teacher"))
    Trainer(make_run("recipe", "standard"), paths, prepared, (), CPU, keep=[1]).train()
    return paths.model


@pytest.fixture(scope="module")
def store(prepared, tmp_path_factory):
    """Makes the banks of a run, each once, and gives their folders."""
    root = tmp_path_factory.mktemp("banks")

    def made(run, weights, **options):
        return [make(spec, root, prepared, weights, **options).root for spec in wanted(run)]

    return made


def make(spec, root, prepared, weights, **options):
    paths = BankPaths(root / spec.id)
    make_bank(Bank(spec=spec, label="bank", model="resnet8"), paths, prepared, weights, CPU, **options)
    return paths


def trained(run, root, prepared, weights, banks=()):
    paths = RunPaths(root)
    Trainer(run, paths, prepared, weights, CPU, stop=Stop(), banks=banks).train()
    return paths


def results(paths):
    """Weights, predictions and history of a run, but for its seconds."""
    with open(paths.history) as file:
        rows = [line.rsplit(",", 1)[0] for line in file]
    return paths.model.read_bytes(), paths.predictions.read_bytes(), rows


def test_what_reads_logits_alone_is_banked():
    """By what methods declare and do, whatever their names: a new one is in the right place at once."""
    assert {"kd", "dhkd", "mlld"} <= set(BANKED)
    for name in registry.methods.names():
        run = student(name)
        method, wish = method_of(run), method_of(run).taps()
        more = wish.teacher or wish.batch_statistics or method.part() or method.first_stage()
        expected = method.teacher and not more and not run.spec.teacher.anchors
        assert bool(wanted(run)) == bool(expected), name
        if method.logit_only and expected:
            assert len(wanted(run)) == 1 + len(method.views)


def test_methods_that_change_the_images_are_not_banked():
    kd = student("kd")

    class Turned(registry.methods.get("kd")):
        """KD on turned images."""

        name = "turned"

        def inputs(self, batch):
            return (batch.images.flip(3),)

    class Late(Turned):
        """KD on images that are chosen in `build`."""

        name = "late"

        def inputs(self, batch):
            return (batch.images[self.chosen],)

    assert banks_for(kd.spec, Turned()) == banks_for(kd.spec, Late()) == ()


def test_students_of_one_teacher_and_seed_share():
    ids = {name: [spec.id for spec in wanted(student(name, **PLAIN))] for name in BANKED}
    (shared,) = ids["kd"]
    assert {first for first, *_ in ids.values()} == {shared}
    assert len(ids["mlld"]) == 2
    changes = [{"seed": 1}, {"epochs": EPOCHS + 1}, {"batch_size": 8}, {"precision": "bfloat16"}]
    changes += [{"split": "train-val"}, {"ref": {"epoch": 1}}, {"ref": {"run": "u"}}, {"ref": {"folds": 2}}]
    changes += [{"ref": {"logits": "float16"}}]
    others = [student("kd", **{**PLAIN, **change}) for change in changes]
    found = [wanted(run)[0].id for run in others]
    assert len({shared, *found}) == 1 + len(found)
    alike = student("kd", lr=0.7, student="resnet14", weight_decay=0.1, **PLAIN)
    assert wanted(alike)[0].id == shared


@pytest.mark.parametrize("name", BANKED)
def test_the_same_bits(name, prepared, teacher, store, tmp_path):
    run = student(name)
    banks = store(run, [teacher])
    alone, banked = (trained(run, tmp_path / str(bool(b)), prepared, [teacher], b) for b in ((), banks))
    assert results(alone) == results(banked)
    assert read_json(alone.provenance)["banks"] == []
    assert read_json(banked.provenance)["banks"] == [folder.name for folder in banks]


@pytest.mark.parametrize("name", ["kd", "mlld"])
@pytest.mark.parametrize("kind", ["bfloat16", "taught in bfloat16", "float16", "folds"])
def test_the_same_bits_in_two_bytes_and_of_folds(name, kind, prepared, teacher, store, tmp_path):
    weights, ref = [teacher], None
    if kind == "folds":
        weights, ref = [teacher, teacher.parent / "checkpoints" / "epoch-0001.safetensors"], {"folds": 2}
    if kind == "float16":
        ref = {"logits": "float16"}
    halved = {"bfloat16": "precision", "taught in bfloat16": "teacher_precision"}.get(kind)
    run = student(name, ref=ref, **{**PLAIN, **({halved: "bfloat16"} if halved else {})})
    banks = store(run, weights)
    assert np.load(banks[0] / "logits.npy").itemsize == (4 if kind == "folds" else 2)
    alone, banked = (trained(run, tmp_path / str(bool(b)), prepared, weights, b) for b in ((), banks))
    assert results(alone) == results(banked)


def test_a_bank_is_of_the_precision_of_the_teachers_passes():
    half, usual = student("kd", **{**PLAIN, "precision": "bfloat16"}), student("kd", **PLAIN)
    taught = student("kd", **{**PLAIN, "teacher_precision": "bfloat16"})
    assert wanted(taught) == wanted(half) != wanted(usual)
    assert taught.id not in (half.id, usual.id)


def test_float16_rounds_as_it_says(prepared, teacher, store):
    students = (student("kd", ref={"logits": p}, **PLAIN) for p in ("float32", "float16"))
    exact, rounded = (np.load(store(run, [teacher])[0] / "logits.npy").astype(np.float64) for run in students)
    assert not np.array_equal(exact, rounded)
    assert np.all(np.abs(rounded - exact) <= np.maximum(2.0**-11 * np.abs(exact), 2.0**-25))


@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_with_the_bank_or_without(first, prepared, teacher, store, tmp_path):
    """Stopped in the middle of an epoch, then continued the other way."""
    run = student("mlld")
    banks = store(run, [teacher])
    whole = trained(run, tmp_path / "whole", prepared, [teacher])
    paths = RunPaths(tmp_path / "stopped")
    begun = Trainer(run, paths, prepared, [teacher], CPU, stop=Stop(), banks=banks if first else ())
    StopAfter(begun, 6)
    with pytest.raises(Interrupted):
        begun.train()
    went_on = trained(run, paths.root, prepared, [teacher], () if first else banks)
    assert results(went_on) == results(whole)


def test_nothing_of_the_teacher_is_loaded(prepared, teacher, store, tmp_path, monkeypatch):
    run = student("kd")
    banks = store(run, [teacher])
    monkeypatch.setattr("kdpipe.engine.train.Teacher", None)
    trained(run, tmp_path, prepared, [teacher], banks)


def test_a_collapsed_teacher(prepared, teacher, store, tmp_path):
    """Its bank holds no logits, and its students end at once, as beside it."""
    model = registry.models.get("resnet8").build(4, 1)
    model.load_state_dict(read_weights(teacher))
    model.conv1.weight.data[:] = float("nan")
    broken = tmp_path / "broken.safetensors"
    save_weights(model, broken)
    run = student("kd")
    (spec,) = wanted(run)
    paths = make(spec, tmp_path, prepared, [broken])
    assert not paths.logits.exists()
    for banks in ((), [paths.root]):
        done = trained(run, tmp_path / f"student{len(banks)}", prepared, [broken], banks)
        assert read_json(done.status)["reason"] == "its teacher collapsed"


# making one


class Death(Exception):
    """A sudden one."""


@pytest.mark.parametrize("place", ["_write", "write_json", "epoch"])
def test_a_killed_bank_is_gone_on_with(place, prepared, teacher, tmp_path, monkeypatch):
    """Whether it dies before an epoch is written, before that is noted, or in the middle of one."""
    (spec,) = wanted(student("kd", epochs=4))
    whole = make(spec, tmp_path / "whole", prepared, [teacher])
    holder = engine._Source if place == "epoch" else engine
    real, calls = getattr(holder, place), []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise Death
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(holder, place, dying)
        with pytest.raises(Death):
            make(spec, tmp_path, prepared, [teacher])
    paths, told = BankPaths(tmp_path / spec.id), []
    assert not paths.record.exists()
    make(spec, tmp_path, prepared, [teacher], tell=lambda epochs, seconds: told.append(epochs))
    assert told == [2, 3, 4]
    assert paths.logits.read_bytes() == whole.logits.read_bytes()
    assert read_json(paths.record)["epochs"] == read_json(whole.record)["epochs"]
    assert not paths.progress.exists()
    make(spec, tmp_path, prepared, [teacher], tell=lambda epochs, seconds: pytest.fail("it is there"))


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_stop_is_soon_and_clean(at_once, prepared, teacher, tmp_path):
    (spec,) = wanted(student("kd"))
    with pytest.raises(Interrupted, match="stopped in epoch 1"):
        make(spec, tmp_path, prepared, [teacher], stop=Stop(requested=True), at_once=at_once)


@pytest.mark.parametrize("folds", [0, 2])
def test_batches_answered_side_by_side_give_the_same_bits(
    folds, prepared, teacher, store, tmp_path, monkeypatch
):
    weights = [teacher, teacher.parent / "checkpoints" / "epoch-0001.safetensors"][: folds or 1]
    run = student("kd", ref={"folds": folds} if folds else None, **PLAIN)
    alone = store(run, weights)[0] / "logits.npy"
    answer, both, met = engine.Teacher.__call__, Barrier(2), []

    def waits(*arguments):
        with suppress(BrokenBarrierError):  # the last batch may be alone
            met.append(both.wait(5))
        return answer(*arguments)

    monkeypatch.setattr(engine.Teacher, "__call__", waits)
    (spec,) = wanted(run)
    assert make(spec, tmp_path, prepared, weights, at_once=2).logits.read_bytes() == alone.read_bytes()
    assert met


def test_what_goes_wrong_side_by_side_is_told(prepared, teacher, tmp_path, monkeypatch):
    def broken(*_):
        raise Death

    monkeypatch.setattr(engine.Teacher, "__call__", broken)
    (spec,) = wanted(student("kd"))
    with pytest.raises(Death):
        make(spec, tmp_path, prepared, [teacher], at_once=2)
    assert not BankPaths(tmp_path / spec.id).record.exists()


def test_a_teacher_that_is_not_there_is_one_message(prepared, tmp_path):
    (spec,) = wanted(student("kd"))
    with pytest.raises(CheckpointError, match="there is no such file"):
        make(spec, tmp_path, prepared, [tmp_path / "nowhere.safetensors"])


def test_a_bank_of_other_weights_is_made_again(prepared, teacher, tmp_path):
    (spec,) = wanted(student("kd"))
    other = teacher.parent / "checkpoints" / "epoch-0001.safetensors"
    first = make(spec, tmp_path, prepared, [other]).logits.read_bytes()
    assert make(spec, tmp_path, prepared, [teacher]).logits.read_bytes() != first
    with pytest.raises(Interrupted):  # nor does what is left of one count for another
        make(spec, tmp_path, prepared, [other], stop=Stop(requested=True))
    assert make(spec, tmp_path, prepared, [other]).logits.read_bytes() == first


@pytest.mark.slow
def test_signals(teacher, prepared, tmp_path):
    """The command line: a stop ends with 75, a kill tears nothing, and the same command goes on."""
    (spec,) = wanted(student("kd", epochs=80))
    bank, paths = Bank(spec=spec, label="bank", model="resnet8"), BankPaths(tmp_path / "bank")
    prepare(SPEC, None, tmp_path / "data")
    command = [sys.executable, "-c", TRAIN, "bank", "--bank", bank.model_dump_json(), "--out", paths.root]
    command += ["--data", tmp_path / "data", "--teacher", teacher, "--marker", tmp_path / "m.done"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, env=env)

    def epochs():
        return len(read_json(paths.progress)["epochs"]) if paths.progress.is_file() else 0

    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        before, process = epochs(), start()
        eventually(lambda before=before: epochs() > before)
        process.send_signal(number)
        assert process.wait() == code
        assert before < epochs() < 80
        assert not (tmp_path / "m.done").exists()
    assert start().wait() == 0
    assert (tmp_path / "m.done").read_text() == f"{bank.name}\n"
    whole = make(spec, tmp_path / "whole", prepared, [teacher])
    assert paths.logits.read_bytes() == whole.logits.read_bytes()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_room_is_asked_for_before_the_teacher_runs(prepared, teacher, tmp_path, monkeypatch):
    (spec,) = wanted(student("kd", **PLAIN))
    monkeypatch.setattr(engine._Source, "epoch", lambda *_: pytest.fail("it runs"))
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: usage(free=100))
        with pytest.raises(ResultsError, match=r"the bank takes 1.86e-06 GB, and 1e-07 GB are free"):
            make(spec, tmp_path, prepared, [teacher])
    monkeypatch.setattr(engine.os, "posix_fallocate", full)
    with pytest.raises(ResultsError, match=r"the disk is full\n.*logits.npy"):
        make(spec, tmp_path, prepared, [teacher])


def test_a_disk_that_fills_up_is_one_message(prepared, teacher, tmp_path, monkeypatch):
    (spec,) = wanted(student("kd"))
    with monkeypatch.context() as patch:
        patch.setattr(engine.os, "fsync", full)
        with pytest.raises(ResultsError, match="the disk is full"):
            make(spec, tmp_path, prepared, [teacher])
    make(spec, tmp_path, prepared, [teacher])


# damage


def flipped(file, place):
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "no record": (lambda p: p.record.unlink(), r"missing\n.*bank\.json"),
    "record": (lambda p: flipped(p.record, 200), r"cannot be read.*\n.*bank\.json"),
    "no logits": (lambda p: p.logits.unlink(), r"cannot be read.*\n.*logits\.npy"),
    "shorter": (
        lambda p: p.logits.write_bytes(p.logits.read_bytes()[:-1]),
        r"cannot be read.*\n.*logits\.npy",
    ),
    "header": (lambda p: flipped(p.logits, 2), r"cannot be read.*\n.*logits\.npy"),
    "shape": (
        lambda p: np.save(p.logits, np.load(p.logits)[:, :-1]),
        r"logits are damaged\n.*logits\.npy",
    ),
    "first epoch": (lambda p: flipped(p.logits, 300), r"epoch 1 has changed.*\n.*logits\.npy"),
    "last epoch": (lambda p: flipped(p.logits, -1), r"epoch 2 has changed.*\n.*logits\.npy"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_message(kind, prepared, teacher, store, tmp_path):
    """It names the file and what to do; once that is done, the student goes on to the same bits."""
    run = student("kd")
    (source,) = store(run, [teacher])
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    damage, message = DAMAGE[kind]
    damage(BankPaths(folder))
    with pytest.raises(ResultsError, match=message) as told:
        trained(run, tmp_path / "run", prepared, [teacher], [folder])
    assert f"delete the folder {folder}" in str(told.value)
    shutil.rmtree(folder)
    shutil.copytree(source, folder)
    mended = trained(run, tmp_path / "run", prepared, [teacher], [folder])
    assert results(mended) == results(trained(run, tmp_path / "alone", prepared, [teacher]))


def test_verify_finds_it(prepared, teacher, tmp_path):
    results, [spec] = Results(tmp_path), wanted(student("kd"))
    bank = Bank(spec=spec, label="bank", model="resnet8")
    paths = results.bank(bank.name)
    plan = Plan(banks={bank.name: PlannedBank(bank, "teacher", "data")})
    assert verify_results(plan, results) == []  # it is not there
    make_bank(bank, paths, prepared, [teacher], CPU)
    assert verify_results(plan, results) == []
    kept = paths.logits.read_bytes()
    flipped(paths.logits, len(kept) - 1)
    assert verify_results(plan, results) == [
        f"{bank.name}: epoch {EPOCHS} of logits.npy has changed since it was written"
    ]
    paths.logits.write_bytes(kept[:-10])
    (told,) = verify_results(plan, results)
    assert "cannot be read" in told
    paths.logits.write_bytes(kept)
    flipped(paths.record, 20)
    (told,) = verify_results(plan, results)
    assert "cannot be read" in told


def test_a_bank_of_something_else_is_refused(prepared, teacher, store, tmp_path):
    run = student("kd")
    other = teacher.parent / "checkpoints" / "epoch-0001.safetensors"
    with pytest.raises(ResultsError, match="other weights of the teacher"):
        trained(run, tmp_path, prepared, [other], store(run, [teacher]))
    again = dataclasses.replace(prepared, checksums={**prepared.checksums, "train": "0"})
    with pytest.raises(ResultsError, match="other prepared data"):
        trained(run, tmp_path, again, [teacher], store(run, [teacher]))
    for strange in (student("kd", seed=1), student("fitnet")):
        with pytest.raises(ResultsError, match="no bank is that of this student's teacher"):
            trained(strange, tmp_path, prepared, [teacher], store(run, [teacher]))
    with pytest.raises(ResultsError, match="stream 'view 2'"):
        trained(student("mlld"), tmp_path, prepared, [teacher], store(run, [teacher]))


def test_the_rounding_is_no_part_of_older_ids():
    run = student("kd")
    assert student("kd", ref={"logits": "float32"}).id == run.id
    assert student("kd", ref={"logits": "float16"}).id != run.id
    assert "logits" in TeacherRef.LATER
