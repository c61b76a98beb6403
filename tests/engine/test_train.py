"""The loop: exact under interruption, repeatable, paired over methods, and honest about divergence."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from kdpipe.api import Split
from kdpipe.core import registry
from kdpipe.core.errors import CheckpointError, ConfigError, Interrupted
from kdpipe.core.files import read_json
from kdpipe.core.paths import RunPaths
from kdpipe.engine.predict import save_predictions
from kdpipe.engine.sample import sample
from kdpipe.engine.state import StateStore
from kdpipe.engine.stop import Stop
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import load_weights, read_weights
from tests.engine.tiny import PLAIN, history, make_run

CPU = torch.device("cpu")
OBJECTIVES = (
    [("recipe", n) for n in registry.recipes.names()]
    + [("method", n) for n in registry.methods.names()]
    + [("part", n) for n in registry.parts.names()]
)


class StopAfter:
    """Asks for a stop once so many batches were dealt."""

    def __init__(self, trainer, batches):
        self.trainer, self.left = trainer, batches
        self.step = trainer.step
        trainer.step = self

    def __call__(self, batch, at):
        terms = self.step(batch, at)
        self.left -= 1
        self.trainer.stop.requested = self.left == 0
        return terms


class Crash(Exception):
    """A sudden death."""


class CrashAfter(StopAfter):
    """Dies in the middle of a step, without saving anything."""

    def __call__(self, batch, at):
        self.left -= 1
        if self.left == 0:
            raise Crash
        return self.step(batch, at)


@pytest.fixture(scope="module")
def teacher(prepared, tmp_path_factory):
    paths = RunPaths(tmp_path_factory.mktemp("teacher"))
    run = make_run("recipe", "standard", epochs=6)
    Trainer(run, paths, prepared, (), CPU, keep=range(1, 7)).train()
    return paths


def trainer(kind, name, root, prepared, teacher, **changes):
    run = make_run(kind, name, **changes)
    teachers = []
    if run.spec.teacher:
        teachers = [teacher.checkpoint(e) for e in run.spec.teacher.anchors] or [teacher.model]
    part = part_of(run, teacher, prepared)
    return Trainer(run, RunPaths(root), prepared, teachers, CPU, stop=Stop(), part=part)


def part_of(run, teacher, prepared):
    """The weights of what a method needs on top of the teacher, trained once."""
    if run.spec.kind != "method":
        return None
    plugin = registry.methods.get(run.spec.method.name)
    wanted = plugin(plugin.Config(**run.spec.method.settings)).part()
    if wanted is None:
        return None
    paths = RunPaths(teacher.root / wanted.name)
    if not paths.status.exists():
        of = make_run("part", wanted.name, settings=wanted.config.model_dump(), epochs=2)
        Trainer(of, paths, prepared, [teacher.model], CPU).train()
    return paths.model


def rows(root):
    """A run's history, but for its seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history(RunPaths(root))]


def bits(root):
    return {k: v.numpy().tobytes() for k, v in read_weights(RunPaths(root).model).items()}


@pytest.mark.parametrize(("kind", "name"), OBJECTIVES)
def test_interrupted_and_resumed_is_bit_identical(kind, name, prepared, teacher, tmp_path):
    trainer(kind, name, tmp_path / "whole", prepared, teacher).train()
    stopped = trainer(kind, name, tmp_path / "parts", prepared, teacher)
    StopAfter(stopped, 6)  # in the middle of the second epoch
    with pytest.raises(Interrupted):
        stopped.train()
    crashed = trainer(kind, name, tmp_path / "parts", prepared, teacher)
    CrashAfter(crashed, 4)  # goes on, then dies in the third epoch
    with pytest.raises(Crash):
        crashed.train()
    trainer(kind, name, tmp_path / "parts", prepared, teacher).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert not RunPaths(tmp_path / "parts").state.exists()


@pytest.mark.parametrize(
    ("kind", "name"), [("recipe", "standard"), ("method", "kd"), ("recipe", "soteacher")]
)
def test_a_long_epoch_saves_its_state_on_the_way(kind, name, prepared, teacher, tmp_path):
    trainer(kind, name, tmp_path / "whole", prepared, teacher).train()
    killed = trainer(kind, name, tmp_path / "parts", prepared, teacher)
    killed.save_every = 0.0  # after every step
    CrashAfter(killed, 7)  # in the third step of the second epoch
    with pytest.raises(Crash):
        killed.train()
    left = StateStore(killed.paths.state, killed.run.id).load()
    assert left is not None
    assert (left["epoch"], left["step"]) == ((1, 0) if killed.memory.shapes else (1, 2))
    trainer(kind, name, tmp_path / "parts", prepared, teacher).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")


def test_seeds_differ_and_repeat(prepared, teacher, tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer("method", "kd", tmp_path / folder, prepared, teacher, seed=seed, epochs=1).train()
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert bits(tmp_path / "a") != bits(tmp_path / "c")


def test_students_of_one_seed_start_equal_and_see_the_same_batches(prepared, teacher, tmp_path):
    seen = []
    for name in ("scratch", "kd", "dhkd", "fitnet"):
        t = trainer("method", name, tmp_path / name, prepared, teacher)
        seen.append((t.model.state_dict(), [b.images for b in t.batches.epoch(1)]))
    for weights, images in seen[1:]:
        assert all(torch.equal(weights[k], v) for k, v in seen[0][0].items())
        assert all(torch.equal(a, b) for a, b in zip(images, seen[0][1], strict=True))


def test_the_route_is_followed_and_resumed(prepared, teacher, tmp_path):
    files = [str(teacher.checkpoint(e)) for e in range(1, 7)]
    for choice in ("equal", "greedy"):
        followed = []
        for batches in (None, 10, 7):  # undisturbed, then killed in the third epoch and resumed
            root = tmp_path / f"{choice}-{batches is None}"
            t = trainer("method", "rco", root, prepared, teacher, settings={"choice": choice}, epochs=6)
            watch(t, followed)
            if batches == 10:
                StopAfter(t, batches)
                with pytest.raises(Interrupted):
                    t.train()
            else:
                t.train()
        assert bits(tmp_path / f"{choice}-True") == bits(tmp_path / f"{choice}-False")
        if choice == "equal":
            assert followed[:5] == files[1:]
        assert files[5] in followed  # the last one teaches at the end


def watch(trainer, followed):
    """Note which of the teacher's checkpoints is taken."""
    load = trainer._load_teacher

    def noted():
        followed.append(str(trainer.teachers[trainer.anchor]))
        return load()

    trainer._load_teacher = noted


def test_peers_differ_learn_and_are_kept(prepared, teacher, tmp_path):
    t = trainer("method", "dml", tmp_path, prepared, teacher, settings={"networks": 3})
    start = [{k: v.clone() for k, v in n.state_dict().items()} for n in (t.model, *t.peers)]
    scratch = trainer("method", "scratch", tmp_path / "scratch", prepared, teacher)
    assert all(torch.equal(start[0][k], v) for k, v in scratch.model.state_dict().items())
    t.train()
    kept = [read_weights(RunPaths(tmp_path).peer(n)) for n in (1, 2)]
    for peer, before in zip(kept, start[1:], strict=True):
        assert not torch.equal(before["conv1.weight"], start[0]["conv1.weight"])
        assert not torch.equal(peer["conv1.weight"], before["conv1.weight"])
    row = history(RunPaths(tmp_path))[-1]
    assert {"loss_ce", "loss_kd", "loss_peer1_ce", "loss_peer1_kd", "loss_peer2_ce"} <= set(row)


@pytest.mark.parametrize("name", registry.methods.names())
def test_nothing_changes_the_teacher(name, prepared, teacher, tmp_path):
    t = trainer("method", name, tmp_path, prepared, teacher)
    if t.teacher is None:
        assert not registry.methods.get(name).teacher
        return
    first = t.teacher.models
    before = {k: v.clone() for k, v in first.state_dict().items()}
    file = teacher.model.read_bytes()
    t.train()
    assert all(torch.equal(before[k], v) for k, v in first.state_dict().items())
    assert not first.training
    assert teacher.model.read_bytes() == file
    assert not {id(p) for p in first.parameters()} & {id(p) for p in t.trainable.all}


def test_nothing_that_trains_reads_the_test_split(prepared, teacher, tmp_path):
    poisoned = dataclasses.replace(prepared, test=noise(prepared.test))
    for folder, data in (("clean", prepared), ("poisoned", poisoned)):
        trainer("method", "kd", tmp_path / folder, data, teacher).train()
    assert bits(tmp_path / "clean") == bits(tmp_path / "poisoned")
    rows = [history(RunPaths(tmp_path / f)) for f in ("clean", "poisoned")]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    assert [r["test_top1"] for r in rows[0]] != [r["test_top1"] for r in rows[1]]


def noise(split):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, split.images.shape, dtype=np.uint8)
    return Split(images, rng.permutation(split.labels))


def test_it_learns_and_leaves_what_it_promises(prepared, teacher):
    rows = history(teacher)
    assert [int(r["epoch"]) for r in rows] == list(range(1, 7))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["test_top1"]) > 80
    assert "val_top1" not in rows[0]
    stored = np.load(teacher.predictions)
    assert stored["test_logits"].shape == (20, 4)
    accuracy = 100 * np.mean(stored["test_logits"].argmax(1) == stored["test_labels"])
    assert accuracy == pytest.approx(float(rows[-1]["test_top1"]))
    assert read_json(teacher.status) == {"status": "finished", "epoch": 6, "reason": ""}
    record = json.loads(teacher.provenance.read_text())
    assert record["torch"] == torch.__version__
    weights = read_weights(teacher.model)
    trained = sum(v.numel() for k, v in weights.items() if "running" not in k and "tracked" not in k)
    assert record["model"]["parameters"] == trained
    assert record["model"]["fingerprint"].startswith(f"{trained}-")
    assert record["model"]["multiply_adds"] > trained
    assert teacher.checkpoint(2).is_file()


def test_the_loss_of_each_epoch_is_that_of_the_predictions(teacher):
    stored = np.load(teacher.predictions)
    logits, labels = (torch.from_numpy(stored[f"test_{name}"]) for name in ("logits", "labels"))
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert float(history(teacher)[-1]["test_loss"]) == pytest.approx(loss)


@pytest.mark.parametrize(("kind", "name"), [("method", "kd"), ("recipe", "swa"), ("recipe", "standard")])
@pytest.mark.parametrize("split", ["train-val", "full-train"])
def test_the_predictions_are_those_of_the_stored_weights(prepared, teacher, tmp_path, kind, name, split):
    """Of a student they are what the last epoch was scored by; a recipe may change its network after."""
    t = trainer(kind, name, tmp_path, prepared, teacher if kind == "method" else None, split=split, **PLAIN)
    t.train()
    paths, again = RunPaths(tmp_path), RunPaths(tmp_path / "again")
    network = registry.models.get("resnet8").build(4, 1)
    load_weights(network, paths.model)
    save_predictions(again.predictions, network, prepared, t.run.spec, CPU)
    stored, expected = np.load(paths.predictions), np.load(again.predictions)
    assert set(expected.files) == set(stored.files)
    for key in expected.files:
        assert np.array_equal(stored[key], expected[key]), key


def test_the_teacher_alone_in_bfloat16(prepared, teacher, tmp_path):
    """What it says is of that precision; the student's own passes are in float32."""
    said = {}
    for precision in (None, "bfloat16"):
        t = trainer(
            "method",
            "kd",
            tmp_path / str(precision),
            prepared,
            teacher,
            **{**PLAIN, "teacher_precision": precision},
        )
        batch = next(t.batches.epoch(0))
        said[precision] = t.model(batch.images), t.teacher([batch.images], batch.index).logits
    (student, exact), (same, rounded) = said.values()
    assert torch.equal(student, same)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize("method", ["dhkd", "dual_head_kd", "kd"])
def test_predictions_of_a_second_head_are_kept(prepared, teacher, tmp_path, method):
    t = trainer("method", method, tmp_path, prepared, teacher, split="train-val", precision="float32")
    t.train()
    stored = np.load(RunPaths(tmp_path).predictions)
    if method == "kd":
        assert "test_auxiliary" not in stored
        return
    assert stored["val_auxiliary"].shape == stored["val_logits"].shape
    images = torch.from_numpy(np.asarray(prepared.test.images[stored["test_index"]]))
    with torch.no_grad():
        features = t.catch(t.normalise(images))["embed"]
        logits = t.objective.head.eval()(features)
    np.testing.assert_allclose(stored["test_auxiliary"], logits, rtol=1e-4, atol=1e-5)
    assert np.abs(stored["test_auxiliary"] - stored["test_logits"]).max() > 0.01


def test_with_a_hold_out_the_test_set_stays_closed(prepared, teacher, tmp_path):
    trainer("method", "scratch", tmp_path, prepared, teacher, split="train-val").train()
    paths = RunPaths(tmp_path)
    rows = history(paths)
    assert "val_top1" in rows[0]
    assert "test_top1" not in rows[0]
    assert {"val_logits", "test_logits"} <= set(np.load(paths.predictions).files)


def test_divergence_is_a_result(prepared, teacher, tmp_path):
    trainer("method", "kd", tmp_path, prepared, teacher, lr=1e30, epochs=3).train()
    paths = RunPaths(tmp_path)
    status = json.loads(paths.status.read_text())
    assert status["status"] == "collapsed"
    assert 1 <= status["epoch"] <= 3
    assert paths.predictions.is_file()
    taught = RunPaths(tmp_path / "student")
    run = make_run("method", "kd")
    Trainer(run, taught, prepared, [paths.model], CPU).train()
    assert json.loads(taught.status.read_text())["reason"] == "its teacher collapsed"


def test_a_bound_on_the_gradient_bounds_every_step(prepared, teacher, tmp_path):
    bound, rate = 1e-3, 0.5
    plain = {"lr": rate, "momentum": 0.0, "weight_decay": 0.0, "milestones": (), "max_grad_norm": bound}
    run = trainer("method", "kd", tmp_path, prepared, teacher, epochs=1, **plain)
    lengths, step = [], run.step

    def watched(batch, at):
        before = [p.detach().clone() for p in run.trainable.all]
        terms = step(batch, at)
        moved = [(p.detach() - b).square().sum() for p, b in zip(run.trainable.all, before, strict=True)]
        lengths.append(float(sum(moved)) ** 0.5)
        return terms

    run.step = watched
    run.train()
    assert lengths
    assert max(lengths) == pytest.approx(rate * bound, rel=1e-2)  # these gradients are longer than the bound
    assert max(lengths) <= rate * bound * 1.001


def test_bf16_trains(prepared, teacher, tmp_path):
    trainer("method", "dhkd", tmp_path, prepared, teacher, precision="bfloat16").train()
    rows = history(RunPaths(tmp_path))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert all(v.dtype != torch.bfloat16 for v in read_weights(RunPaths(tmp_path).model).values())


def test_a_sampled_checkpoint_is_the_training_at_that_epoch(prepared, teacher, tmp_path):
    kept = read_weights(teacher.checkpoint(2))
    run = make_run("recipe", "standard", epochs=6)
    sample(run, teacher, prepared, 2, CPU)
    out = teacher.sampled(2)
    assert json.loads((out.root / "checkpoint.json").read_text())["epoch"] == 2
    assert json.loads(out.provenance.read_text())["model"]["parameters"] > 0
    rows = history(teacher)
    stored = np.load(out.predictions)
    accuracy = 100 * np.mean(stored["test_logits"].argmax(1) == stored["test_labels"])
    assert accuracy == pytest.approx(float(rows[1]["test_top1"]))
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:100])):
        damage(teacher.checkpoint(2))
        sample(run, teacher, prepared, 2, CPU)  # trained again up to there
        again = read_weights(teacher.checkpoint(2))
        assert all(torch.equal(kept[k], v) for k, v in again.items())
    assert not teacher.state.exists()


@pytest.mark.parametrize(("name", "given"), [("kd", 0), ("kd", 2), ("scratch", 1)])
def test_other_than_its_teachers_is_one_message(name, given, prepared, teacher, tmp_path):
    with pytest.raises(ConfigError, match=f"weights of {given} teachers are given"):
        Trainer(make_run("method", name), RunPaths(tmp_path), prepared, given * [teacher.model], CPU)


def test_a_corrupt_teacher_is_one_message(prepared, teacher, tmp_path):
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(teacher.model.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"damaged.*\n.*model\.safetensors"):
        Trainer(make_run("method", "kd"), RunPaths(tmp_path), prepared, [broken], CPU)


def test_another_networks_teacher_is_one_message(prepared, teacher, tmp_path):
    run = make_run("method", "kd").model_copy(update={"pair": ("resnet14", "resnet8")})
    with pytest.raises(CheckpointError, match="another network"):
        Trainer(run, RunPaths(tmp_path), prepared, [teacher.model], CPU)
