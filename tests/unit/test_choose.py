"""The rules that pick a checkpoint: by validation predictions alone, earliest of equals, numbers only."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdpipe.core.errors import CheckpointError, ResultsError
from kdpipe.core.files import sha256
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Choice, Rule, point
from kdpipe.evaluation import metrics
from kdpipe.evaluation.choose import RULES, choose
from kdpipe.evaluation.evaluate import evaluate

LABELS = np.arange(40) % 4
LAST = 9


def logits(accuracy: float, scale: float, seed: int = 0) -> np.ndarray:
    """Predictions that are right about a share of the samples, and sure in some degree."""
    rng = np.random.default_rng(seed)
    wrong = np.arange(40) >= accuracy * 40
    told = np.where(wrong, (LABELS + 1) % 4, LABELS)
    return (scale * np.eye(4)[told] + 0.01 * rng.normal(size=(40, 4))).astype(np.float32)


def write(found: RunPaths, weights, epoch: int, val: np.ndarray | None, test: np.ndarray) -> None:
    arrays = {"test_logits": test, "test_labels": LABELS, "test_index": np.arange(40)}
    if val is not None:
        arrays |= {"val_logits": val, "val_labels": LABELS, "val_index": np.arange(40)}
    found.root.mkdir(parents=True, exist_ok=True)
    np.savez(found.predictions, **arrays)
    found.status.write_text(json.dumps({"status": "finished", "epoch": epoch, "reason": ""}))
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(f"weights of {epoch}".encode())


def teacher(root, vals: dict[int, np.ndarray | None], tests: dict[int, np.ndarray] | None = None) -> RunPaths:
    """A teacher with sampled checkpoints; the last of `vals` is its end."""
    run = RunPaths(root)
    for epoch, val in vals.items():
        found = run if epoch == LAST else run.sampled(epoch)
        test = (tests or {}).get(epoch, logits(0.5, 1))
        write(found, run.model if epoch == LAST else run.checkpoint(epoch), epoch, val, test)
    run.provenance.write_text("{}")
    return run


def pick(run: RunPaths, rule: Rule, epochs=(3, 6)) -> tuple[int, RunPaths]:
    choice = Choice(rule=rule, epochs=epochs)
    return choose(run, choice)["epoch"], run.sampled(choice.name)


def test_each_rule_has_its_own_best(tmp_path):
    # the most accurate is far too sure; the best likelihood is neither that nor the best calibrated
    vals = {3: logits(0.7, 2.2), 6: logits(0.5, 1.1), LAST: logits(0.9, 30)}
    run = teacher(tmp_path, vals)
    assert pick(run, "best_accuracy")[0] == LAST
    assert pick(run, "lowest_nll")[0] == min(vals, key=lambda e: metrics.nll(vals[e], LABELS)) == 3
    assert pick(run, "lowest_ece")[0] == min(vals, key=lambda e: metrics.ece(vals[e], LABELS)) != LAST


def test_the_chosen_one_is_an_artifact(tmp_path):
    run = teacher(tmp_path, {3: logits(0.9, 2), 6: logits(0.5, 2), LAST: logits(0.6, 2)})
    epoch, out = pick(run, "best_accuracy")
    record = json.loads(out.checkpoint_record.read_text())
    assert (epoch, record["epoch"], record["rule"]) == (3, 3, "best_accuracy")
    assert record["scores"] == {"3": -90.0, "6": -50.0, str(LAST): -60.0}
    assert out.model.read_bytes() == b"weights of 3"
    assert record["sha256"] == sha256(out.model)
    assert out.predictions.read_bytes() == run.sampled(3).predictions.read_bytes()
    assert evaluate(out)["epoch"] == 3
    student = RunPaths(tmp_path / "student")
    write(student, student.model, LAST, None, logits(0.5, 1))
    assert evaluate(student, out)["teacher_epoch"] == 3
    assert "teacher_epoch" not in evaluate(student, run)


@pytest.mark.parametrize("rule", RULES)
def test_test_images_decide_nothing(rule, tmp_path):
    vals = {3: logits(0.4, 1), 6: logits(0.8, 1.5), LAST: logits(0.6, 5)}
    found = []
    for folder, best in (("a", 3), ("b", LAST)):
        tests = {epoch: logits(1.0 if epoch == best else 0.1, 5) for epoch in vals}
        found.append(pick(teacher(tmp_path / folder, vals, tests), rule)[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("rule", RULES)
def test_the_earliest_of_equals_wins(rule, tmp_path):
    same = logits(0.5, 1)
    assert pick(teacher(tmp_path, dict.fromkeys((3, 6, LAST), same)), rule)[0] == 3


def test_what_is_no_number_is_passed_over(tmp_path):
    nothing = np.full((40, 4), np.nan, np.float32)
    run = teacher(tmp_path / "some", {3: nothing, 6: logits(0.5, 1), LAST: nothing})
    assert pick(run, "lowest_nll")[0] == 6
    run = teacher(tmp_path / "none", dict.fromkeys((3, 6, LAST), nothing))
    epoch, out = pick(run, "lowest_nll")
    assert epoch == LAST
    assert json.loads(out.checkpoint_record.read_text())["scores"]["3"] is None


def test_without_validation_images_nothing_is_chosen(tmp_path):
    run = teacher(tmp_path, dict.fromkeys((3, 6, LAST)))
    with pytest.raises(CheckpointError, match="lack an array: val_logits"):
        pick(run, "lowest_nll")


def test_a_missing_checkpoint_is_one_message(tmp_path):
    run = teacher(tmp_path, {3: logits(0.9, 1), 6: logits(0.5, 1), LAST: logits(0.5, 1)})
    run.checkpoint(3).unlink()
    with pytest.raises(CheckpointError, match=r"lacks a file.*\n.*epoch-0003"):
        pick(run, "best_accuracy")
    run.status.unlink()
    with pytest.raises(ResultsError):
        pick(run, "best_accuracy")


def test_names_say_what_is_chosen_among():
    one, other = (Choice(rule="lowest_nll", epochs=epochs) for epochs in ((3, 6), (3,)))
    half = Choice(rule="lowest_nll", epochs=(3, 6), precision="float16")
    assert len({one.name, other.name, half.name}) == 3
    assert one.name.startswith("lowest_nll-")
    assert (point(3), point(3, "float16")) == ("epoch-0003", "epoch-0003-float16")
