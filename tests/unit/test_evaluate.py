"""From stored predictions to metrics.json, and what happens when the files are not what they should be."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from kdpipe.core.errors import CheckpointError, ResultsError
from kdpipe.core.files import write_json
from kdpipe.core.measures import METRICS
from kdpipe.core.paths import RunPaths
from kdpipe.evaluation import metrics
from kdpipe.evaluation.evaluate import evaluate, load_predictions

N, CLASSES = 60, 7


def arrays(seed=0, n=N, prefix="test"):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    logits = rng.normal(0, 2, (n, CLASSES)) + 3 * np.eye(CLASSES)[labels]
    found = {"logits": logits.astype(np.float32), "labels": labels, "index": np.arange(n)}
    return {f"{prefix}_{name}": value for name, value in found.items()}


def make(root, status="finished", epoch=4, **stored):
    run = RunPaths(root)
    write_json(run.status, {"status": status, "epoch": epoch, "reason": ""})
    np.savez(run.predictions, **(stored or arrays()))
    run.history.write_text("epoch,loss,test_top1\n1,1.0,50.0\n2,0.5,61.0\n3,0.4,61.0\n4,0.4,60.5\n")
    return run


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "student")


@pytest.fixture
def teacher(tmp_path):
    return make(tmp_path / "teacher", **arrays(seed=1))


def test_every_measure_is_there_and_declared(run, teacher):
    found = evaluate(run, teacher)
    assert found["values"].keys() == METRICS.keys()
    assert json.loads(run.metrics.read_text()) == found
    assert (found["status"], found["epoch"], found["split"], found["samples"]) == ("finished", 4, "test", N)
    assert found["time"] > 1_700_000_000_000
    own, theirs = arrays(), arrays(seed=1)
    values = found["values"]
    assert values["top1"] == metrics.top_k(own["test_logits"], own["test_labels"])
    assert values["agreement"] == metrics.agreement(own["test_logits"], theirs["test_logits"])
    assert values["kl_teacher"] == metrics.kl_divergence(own["test_logits"], theirs["test_logits"])


def test_without_a_teacher_exactly_its_measures_are_left_out(run):
    missing = METRICS.keys() - evaluate(run)["values"].keys()
    assert missing == {name for name, measure in METRICS.items() if measure.needs_teacher}


def test_the_networks_size_is_copied_from_the_provenance(run):
    assert "model" not in evaluate(run)
    size = {"parameters": 5, "multiply_adds": 7, "fingerprint": "5-abc"}
    write_json(run.provenance, {"model": size})
    assert evaluate(run)["model"] == size


def test_best_on_test_is_the_first_best_epoch(run):
    found = evaluate(run)
    assert (found["values"]["best_test_top1"], found["best_test_epoch"]) == (61.0, 2)


@pytest.mark.parametrize(
    "history",
    [None, "epoch\n", "epoch,val_top1\n1,50.0\n", "epoch,test_top1\n1,\n", "epoch,test_top1\n1,nan\n"],
)
def test_without_test_accuracies_there_is_no_best(run, history):
    run.history.unlink() if history is None else run.history.write_text(history)
    found = evaluate(run)
    assert "best_test_top1" not in found["values"]
    assert found["best_test_epoch"] is None


def test_the_order_in_the_file_does_not_matter(run, teacher):
    before = evaluate(run, teacher)["values"]
    order = np.random.default_rng(0).permutation(N)
    np.savez(run.predictions, **{name: array[order] for name, array in arrays().items()})
    assert evaluate(run, teacher)["values"] == before


def test_held_out_images_set_the_temperature(tmp_path):
    val = arrays(seed=2, n=40, prefix="val")
    run = make(tmp_path / "run", **arrays(), **val)
    found = evaluate(run)
    expected = metrics.fit_temperature(val["val_logits"], val["val_labels"])
    assert found["values"]["temperature"] == expected
    assert found["temperature_from"] == "val"
    assert found["values"]["nll_ts"] == metrics.nll(
        arrays()["test_logits"].astype(float) / expected, arrays()["test_labels"]
    )


def test_a_collapsed_run_has_no_values(tmp_path):
    run = make(tmp_path / "run", status="collapsed", epoch=8)
    run.predictions.unlink()
    found = evaluate(run)
    assert (found["status"], found["epoch"], found["values"]) == ("collapsed", 8, {})
    assert json.loads(run.metrics.read_text()) == found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_a_collapse(tmp_path, value):
    stored = arrays()
    stored["test_logits"][3, 2] = value
    found = evaluate(make(tmp_path / "run", **stored))
    assert (found["status"], found["values"]) == ("collapsed", {})


def test_a_collapsed_teacher_leaves_the_student_its_other_measures(run, tmp_path):
    stored = arrays()
    stored["test_logits"][:] = np.nan
    found = evaluate(run, make(tmp_path / "gone", status="collapsed", **stored))
    assert found["status"] == "finished"
    assert not {"agreement", "kl_teacher"} & found["values"].keys()


def without(name):
    return {k: v for k, v in arrays().items() if k != name}


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (without("test_labels"), "lack an array"),
        (arrays() | {"test_labels": np.arange(N - 1)}, "59"),
        (arrays() | {"test_labels": np.arange(N)}, "among 7 classes"),
        (arrays() | {"test_labels": np.zeros(N)}, "labels are float64"),
        (arrays() | {"test_index": np.zeros(N, int)}, "twice"),
        (arrays() | {"test_logits": np.zeros(N)}, "not numbers of shape"),
        (arrays() | {"test_logits": np.zeros((N, 3), int)}, "not numbers of shape"),
        (arrays(n=0), "not numbers of shape"),
        (arrays() | {"test_labels": np.array([object()] * N)}, "cannot be read"),
    ],
)
def test_predictions_that_do_not_fit(tmp_path, stored, words):
    run = make(tmp_path / "run", **stored)
    with pytest.raises(CheckpointError, match=words) as caught:
        evaluate(run)
    assert str(run.predictions) in str(caught.value)
    assert "delete the file" in str(caught.value)
    assert not run.metrics.exists()


def test_damaged_predictions_are_one_clear_error(run):
    whole = run.predictions.read_bytes()
    bare = io.BytesIO()
    np.save(bare, np.zeros(3))
    for broken in (
        b"",
        b"not a zip",
        whole[:100],
        whole[:-30],
        whole[:400] + b"\xff" * 50 + whole[450:],
        bare.getvalue(),
    ):
        run.predictions.write_bytes(broken)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_predictions(run.predictions)
    run.predictions.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        evaluate(run)


def test_a_teacher_of_other_images(run, tmp_path):
    fewer = {name: array[:50] for name, array in arrays().items()}
    others = arrays() | {"test_index": np.arange(1, N + 1)}
    for name, stored in (("fewer", fewer), ("others", others)):
        with pytest.raises(CheckpointError, match="other images or classes"):
            evaluate(run, make(tmp_path / name, **stored))


def test_a_missing_status(run):
    run.status.unlink()
    with pytest.raises(ResultsError, match="missing"):
        evaluate(run)


def test_measures_are_declared_with_care():
    for name, measure in METRICS.items():
        assert name.isidentifier()
        assert measure.title
        assert measure.about
        assert measure.unit in ("%", "nats", "")
        assert 0 <= measure.decimals <= 4
