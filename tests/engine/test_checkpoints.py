"""Kept checkpoints: in half the room, made again when missing, and chosen by a rule for a student."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.core import registry
from kdpipe.core.errors import Interrupted
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Choice, TeacherRef
from kdpipe.engine.sample import sample
from kdpipe.engine.stop import Stop
from kdpipe.engine.train import Trainer
from kdpipe.engine.weights import load_weights, read_weights, save_weights
from kdpipe.evaluation.choose import choose
from kdpipe.evaluation.evaluate import evaluate
from tests.engine.test_train import CPU, StopAfter, bits
from tests.engine.tiny import make_run

RUN = {"epochs": 4, "split": "train-val"}


@pytest.fixture(scope="module")
def teacher(prepared, tmp_path_factory):
    """A teacher that kept two epochs in float32, and the same two in float16."""
    paths = RunPaths(tmp_path_factory.mktemp("teacher"))
    run = make_run("recipe", "standard", **RUN)
    Trainer(run, paths, prepared, (), CPU, keep=(1, 3), keep_half=(1, 3)).train()
    for epoch in (1, 3):
        for precision in ("float32", "float16"):
            sample(run, paths, prepared, epoch, CPU, precision=precision)
    return paths


def test_half_takes_half_the_room_and_comes_back_in_float32(teacher):
    files = [teacher.checkpoint(3, precision) for precision in ("float32", "float16")]
    sizes = [file.stat().st_size for file in files]
    assert sizes[1] < 0.55 * sizes[0]
    exact, rounded = map(read_weights, files)
    model = registry.models.get("resnet8").build(4, 1)
    load_weights(model, files[1])
    for name, value in model.state_dict().items():
        assert value.dtype == exact[name].dtype
        if value.is_floating_point():
            assert rounded[name].dtype == torch.float16
            torch.testing.assert_close(value, exact[name], rtol=2**-11, atol=2**-24)
        else:
            assert torch.equal(value, exact[name])


def test_the_effect_of_half_precision_on_predictions_is_small(teacher):
    exact, rounded = (
        np.load(teacher.sampled(name).predictions)["test_logits"]
        for name in ("epoch-0003", "epoch-0003-float16")
    )
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 5e-3 * np.abs(exact).max()


def test_what_float16_cannot_hold_stays_as_it_is(tmp_path):
    model = nn.BatchNorm1d(2)
    model.running_var.copy_(torch.tensor([1e6, 1.0]))
    model.running_mean.fill_(float("nan"))
    save_weights(model, tmp_path / "w", "float16")
    found = read_weights(tmp_path / "w")
    assert found["running_var"].tolist() == [1e6, 1.0]
    assert found["running_mean"].isnan().all()
    assert found["weight"].dtype == torch.float16
    assert found["num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("exact", [True, False], ids=["from the exact ones", "by a replay"])
def test_lost_half_weights_are_made_again(exact, teacher, prepared):
    run, half = make_run("recipe", "standard", **RUN), teacher.checkpoint(1, "float16")
    before, whole = read_weights(half), teacher.checkpoint(1).read_bytes()
    half.unlink()
    if not exact:
        teacher.checkpoint(1).unlink()
    sample(run, teacher, prepared, 1, CPU, precision="float16")
    assert all(torch.equal(before[k], v) for k, v in read_weights(half).items())
    assert not teacher.state.exists()
    teacher.checkpoint(1).write_bytes(whole)


def student(root, teacher, prepared, choice):
    run = make_run("method", "kd", epochs=3, split="train-val")
    ref = TeacherRef(run="t", choice=choice)
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"teacher": ref})})
    weights = [teacher.sampled(choice.name).model]
    return Trainer(run, RunPaths(root), prepared, weights, CPU, stop=Stop())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_student_of_a_chosen_checkpoint_resumes_bit_for_bit(precision, teacher, prepared, tmp_path):
    choice = Choice(rule="lowest_nll", epochs=(1, 3), precision=precision)
    epoch = choose(teacher, choice)["epoch"]
    student(tmp_path / "whole", teacher, prepared, choice).train()
    stopped = student(tmp_path / "parts", teacher, prepared, choice)
    StopAfter(stopped, 6)
    with pytest.raises(Interrupted):
        stopped.train()
    assert choose(teacher, choice)["epoch"] == epoch  # a rule that is asked again says the same
    student(tmp_path / "parts", teacher, prepared, choice).train()
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")
    record = json.loads(RunPaths(tmp_path / "parts").provenance.read_text())
    assert record["choice"]["epoch"] == epoch
    assert record["teacher"] == [record["choice"]["sha256"]]
    found = evaluate(RunPaths(tmp_path / "parts"), teacher.sampled(choice.name))
    assert found["teacher_epoch"] == epoch
    assert 0 <= found["values"]["agreement"] <= 100
