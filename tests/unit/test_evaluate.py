"""From stored predictions to metrics.json, and what happens when the files are not what they should be."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from kdpipe.core import measures
from kdpipe.core.errors import CheckpointError, ResultsError
from kdpipe.core.files import read_json, write_json
from kdpipe.core.measures import METRICS
from kdpipe.core.paths import RunPaths
from kdpipe.evaluation import calibration, geometry, metrics, soft_labels
from kdpipe.evaluation.evaluate import (
    evaluate,
    load_features,
    load_predictions,
    measure,
    measure_all,
)

N, CLASSES, WIDTH = 60, 7, 9


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


def reference(seed=5):
    return np.random.default_rng(seed).dirichlet(np.ones(CLASSES), N).astype(np.float32)


def features(seed=0, train=90):
    """What `features.npz` holds beside a run of `arrays(seed)`."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    found = {"weight": weight, "bias": rng.normal(size=CLASSES).astype(np.float32)}
    for split, part in (("train", arrays(seed + 10, train, "train")), ("test", arrays(seed))):
        noise = rng.normal(size=(len(part[f"{split}_labels"]), WIDTH))
        found |= part | {f"{split}_features": (weight[part[f"{split}_labels"]] + noise).astype(np.float32)}
    return found


def with_features(run, seed=0, **changed):
    np.savez(run.features, **(features(seed) | changed))
    return run


def named(**flags):
    return {
        name for name, m in METRICS.items() if all(getattr(m, flag) == is_ for flag, is_ in flags.items())
    }


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "student")


@pytest.fixture
def teacher(tmp_path):
    return make(tmp_path / "teacher", **arrays(seed=1))


def test_every_measure_is_there_and_declared(tmp_path, teacher):
    run = with_features(make(tmp_path / "student", **arrays(), test_reference=reference()))
    found = evaluate(run, with_features(teacher, seed=1))
    assert found["values"].keys() == METRICS.keys() - named(of_training=True)
    assert all(np.isfinite(value) for value in found["values"].values())
    assert read_json(run.metrics) == found
    assert (found["status"], found["epoch"], found["split"], found["samples"]) == ("finished", 4, "test", N)
    assert found["time"] > 1_700_000_000_000
    own, theirs = arrays(), arrays(seed=1)
    values = found["values"]
    assert values["top1"] == metrics.top_k(own["test_logits"], own["test_labels"])
    assert values["agreement"] == metrics.agreement(own["test_logits"], theirs["test_logits"])
    assert values["kl_teacher"] == metrics.kl_divergence(own["test_logits"], theirs["test_logits"])


def test_without_a_teacher_exactly_its_measures_are_left_out(run):
    with_features(run)
    missing = METRICS.keys() - named(of_training=True) - evaluate(run)["values"].keys()
    assert missing == named(needs_teacher=True, of_training=False) | named(needs_reference=True)


def test_without_features_exactly_their_measures_are_left_out(run, teacher):
    missing = METRICS.keys() - named(of_training=True) - evaluate(run, teacher)["values"].keys()
    assert missing == named(needs_features=True) | named(needs_reference=True)
    with_features(run)  # the teacher has none
    missing = METRICS.keys() - named(of_training=True) - evaluate(run, teacher)["values"].keys()
    assert missing == named(needs_features=True, needs_teacher=True) | named(needs_reference=True)


def test_the_measures_of_predictions(tmp_path, teacher):
    run = make(tmp_path / "student", **arrays(), test_reference=reference())
    values = evaluate(run, teacher)["values"]
    z, y, t = (arrays()["test_logits"], arrays()["test_labels"], arrays(seed=1)["test_logits"])
    scaled, _ = metrics.cross_scaled(z, y)
    assert values["ece_mass"] == calibration.ece_equal_mass(z, y)
    assert values["eaurc_ts"] == calibration.excess_aurc(scaled, y)
    assert values["brier_ts"] == metrics.brier(scaled, y)
    assert values["aurc"] == calibration.aurc(z, y)
    assert values["entropy"] == soft_labels.entropy(z)
    assert values["off_label"] == soft_labels.off_label(z, y)
    assert values["tv_reference"] == soft_labels.total_variation(z, reference())
    assert values["kl_reference"] == soft_labels.kl_reference(z, reference())
    assert values["correlation_gap"] == geometry.correlation_gap(z, t)


def test_the_measures_of_features(run, teacher):
    own, theirs = features(0), features(1)
    values = evaluate(with_features(run), with_features(teacher, seed=1))["values"]
    h, y, w, b = (own[name] for name in ("train_features", "train_labels", "weight", "bias"))
    assert values["nc1"] == geometry.nc1(h, y)
    assert values["nc4"] == geometry.nc4(h, y, w, b)
    assert values["etf_distance"] == geometry.etf_distance(w)
    assert values["train_d_ratio"] == geometry.contrast(h, y).ratio.mean()
    assert values["d_inter"] == geometry.contrast(own["test_features"], own["test_labels"]).inter.mean()
    assert values["train_top1"] == metrics.top_k(own["train_logits"], y)
    assert values["train_agreement"] == metrics.agreement(own["train_logits"], theirs["train_logits"])
    assert values["train_kl_teacher"] == metrics.kl_divergence(own["train_logits"], theirs["train_logits"])
    before = {name: values[name] for name in METRICS if not METRICS[name].needs_features and name in values}
    run.features.unlink()
    assert evaluate(run, teacher)["values"] == before


def test_what_is_up_to_date_is_not_measured_again(run, teacher):
    first = measure(run, teacher)
    assert read_json(run.metrics)["of"] == first
    write_json(run.metrics, {**read_json(run.metrics), "values": {}})  # to see whether it is written again
    assert measure(run, teacher) == first
    assert read_json(run.metrics)["values"] == {}


def of_its_predictions(run, teacher, monkeypatch):
    np.savez(run.predictions, **arrays(seed=3))


def of_its_features(run, teacher, monkeypatch):
    with_features(run)


def of_its_provenance(run, teacher, monkeypatch):
    write_json(run.provenance, {"cost": {"ms_forward": 1.0}})


def of_its_status(run, teacher, monkeypatch):
    write_json(run.status, {"status": "finished", "epoch": 5, "reason": ""})


def of_its_teacher(run, teacher, monkeypatch):
    np.savez(teacher.predictions, **arrays(seed=4))


def of_the_revision(run, teacher, monkeypatch):
    monkeypatch.setattr(measures, "REVISION", 1000)


def of_the_file_itself(run, teacher, monkeypatch):
    run.metrics.write_text("{")


@pytest.mark.parametrize(
    "change",
    [
        of_its_predictions,
        of_its_features,
        of_its_provenance,
        of_its_status,
        of_its_teacher,
        of_the_revision,
        of_the_file_itself,
    ],
)
def test_after_a_change_it_is_measured_anew(run, teacher, monkeypatch, change):
    first = measure(run, teacher)
    write_json(run.metrics, {**read_json(run.metrics), "values": {}})
    change(run, teacher, monkeypatch)
    again = measure(run, teacher)
    assert (again == first) == (change is of_the_file_itself)
    assert read_json(run.metrics)["values"] == evaluate(run, teacher)["values"] != {}


@pytest.mark.parametrize("processes", [1, 2])
def test_many_are_measured_as_one_by_one(tmp_path, teacher, processes):
    runs = [make(tmp_path / f"{seed}", **arrays(seed)) for seed in range(3)]
    wanted = {run.root: teacher.root if number else None for number, run in enumerate(runs)}
    found = measure_all(wanted, processes)
    assert found == [measure(run, teacher if number else None) for number, run in enumerate(runs)]
    assert ["agreement" in read_json(run.metrics)["values"] for run in runs] == [False, True, True]
    assert measure_all({}, processes) == []


def test_what_these_data_do_not_define_is_left_out(run):
    flat = {
        f"{split}_features": np.zeros((n, WIDTH), np.float32) for split, n in (("train", 90), ("test", N))
    }
    values = evaluate(with_features(run, **flat))["values"]
    assert named(needs_features=True, needs_teacher=False) - values.keys() == {
        "nc1",
        "nc2",
        "nc2_norms",
        "nc3",
    }
    assert values["d_ratio"] == 1


def test_one_image_alone_can_be_evaluated(tmp_path):
    one = {name: array[:1] for name, array in arrays().items()}
    run = make(tmp_path / "run", **one)
    stored = {name: a[:1] if name.startswith("t") else a for name, a in features().items()}
    np.savez(run.features, **stored)
    values = evaluate(run)["values"]
    assert not {"d_ratio", "train_d_ratio", "nc1"} & values.keys()
    assert {"aurc", "ece_mass_ts", "nc4", "etf_distance", "train_entropy"} <= values.keys()


def test_features_that_are_not_finite_leave_the_run_its_other_measures(run):
    bad = features()["train_features"]
    bad[2, 3] = np.inf
    found = evaluate(with_features(run, train_features=bad))
    assert found["status"] == "finished"
    assert not named(needs_features=True) & found["values"].keys()


def test_features_are_in_order_of_image(run):
    before = evaluate(with_features(run))["values"]
    order = np.random.default_rng(0).permutation(90)
    mixed = {name: array[order] for name, array in features().items() if name.startswith("train")}
    assert evaluate(with_features(run, **mixed))["values"] == pytest.approx(before)
    found, h = load_features(run.features, "train")
    np.testing.assert_array_equal(h, features()["train_features"])
    np.testing.assert_array_equal(found.index, np.arange(90))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_features": np.zeros((90, 2, 2), np.float32)}, "not numbers of shape"),
        ({"train_features": np.zeros((89, WIDTH), np.float32)}, "not numbers of shape"),
        ({"train_features": np.zeros((90, WIDTH), int)}, "not numbers of shape"),
        ({"train_features": np.zeros((90, WIDTH + 1), np.float32)}, "classifier of shape"),
        ({"bias": np.zeros(CLASSES + 1)}, "classifier of shape"),
        ({"test_index": np.arange(1, N + 1)}, "predictions and features predict other images"),
    ],
)
def test_features_that_do_not_fit(run, changed, words):
    with pytest.raises(CheckpointError, match=words):
        evaluate(with_features(run, **changed))


def test_features_that_lack_an_array_or_are_of_other_training_images(run, teacher):
    np.savez(run.features, **{name: a for name, a in features().items() if name != "weight"})
    with pytest.raises(CheckpointError, match="lack an array: weight"):
        evaluate(run)
    with_features(teacher, **{"train_index": np.arange(1, 91)})
    with pytest.raises(CheckpointError, match="student and teacher predict other images"):
        evaluate(with_features(run), teacher)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.ones((N, CLASSES)), "sums other than 1"),
        (np.ones((N, 2)) / 2, "reference distributions are float64"),
    ],
)
def test_references_that_are_no_distributions(tmp_path, wrong, words):
    with pytest.raises(CheckpointError, match=words):
        evaluate(make(tmp_path / "run", **arrays(), test_reference=wrong))


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
    assert read_json(run.metrics) == found


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
    for name, declared in METRICS.items():
        assert name.isidentifier()
        assert declared.title
        assert declared.about
        assert declared.unit in ("%", "nats", "ms", "MiB", "")
        assert 0 <= declared.decimals <= 4


def test_the_cost_of_a_training_is_among_its_measures(run, teacher):
    phases = {f"ms_{name}": 1.5 for name in ("data", "student", "teacher", "loss", "backward", "optimizer")}
    record = {
        "cost": {**phases, "memory_mib": 300.0, "extra_parameters": 7},
        "model": {"parameters": 10, "multiply_adds": 20, "fingerprint": "10-abc"},
    }
    run.provenance.write_text(json.dumps(record))
    values = evaluate(run, teacher)["values"]
    assert values["ms_step"] == 9
    assert named(of_training=True) - {"ms_replay"} <= values.keys()
    captured = {"ms_data": 1.5, "ms_replay": 2.0}
    run.provenance.write_text(json.dumps({**record, "cost": captured}))
    values = evaluate(run, teacher)["values"]
    assert values["ms_step"] == 3.5
    assert named(of_training=True) & values.keys() >= captured.keys()
    run.provenance.write_text(json.dumps({"model": record["model"]}))
    assert "ms_step" not in evaluate(run, teacher)["values"]
