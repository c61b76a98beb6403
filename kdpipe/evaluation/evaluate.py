"""From a run's stored predictions, and features if it has any, to its `metrics.json`; no network, no GPU."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.core import measures
from kdpipe.core.errors import CheckpointError, ResultsError
from kdpipe.core.files import read_json, sha256, write_json
from kdpipe.core.ids import digest
from kdpipe.core.paths import RunPaths
from kdpipe.evaluation import calibration, geometry, metrics, soft_labels

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Predictions:
    """What a network said of some images, ordered by image.

    Attributes:
        logits: N x C.
        labels: N, the right classes.
        index: N, which images.
        reference: N x C, the true label distributions, where they are known.
    """

    logits: Array
    labels: NDArray[np.integer[Any]]
    index: NDArray[np.integer[Any]]
    reference: Array | None = None

    @property
    def finite(self) -> bool:
        """Whether the network still gave numbers."""
        return bool(np.isfinite(self.logits).all())


def measure(run: RunPaths, teacher: RunPaths | None = None) -> str:
    """`evaluate` a run, unless its `metrics.json` has the measures of these predictions and features.

    Args:
        run: the run's folder.
        teacher: the folder of its teacher.

    Returns:
        The hash of what the measures are computed from.

    Raises:
        CheckpointError, ResultsError: as `evaluate`.
    """
    sources = _sources(run, teacher)
    try:
        fresh = read_json(run.metrics).get("of") == sources
    except ResultsError:  # missing, or damaged
        fresh = False
    if not fresh:
        evaluate(run, teacher)
    return sources


def measure_all(wanted: Mapping[Path, Path | None], processes: int = 1) -> list[str]:
    """`measure` each folder with the folder of its teacher, in so many processes; their hashes, in order."""
    pairs = [(RunPaths(run), RunPaths(teacher) if teacher else None) for run, teacher in wanted.items()]
    if processes == 1 or len(pairs) < 2:
        return [measure(*pair) for pair in pairs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(measure, *zip(*pairs, strict=True), chunksize=16))


def evaluate(run: RunPaths, teacher: RunPaths | None = None) -> dict[str, Any]:
    """Compute every measure of a run (or sampled checkpoint) and write its `metrics.json`.

    A run that collapsed, or whose predictions are not finite, gets status `collapsed` and no values.
    Likeness to the teacher is left out where the teacher collapsed, and so is a measure that these data do
    not define, as the angle between class means where there is one class. What needs features is measured
    where `features.npz` lies in the run's folder (and the teacher's, for likeness on training images).

    Args:
        run: the run's folder.
        teacher: the folder of its teacher, with predictions for the same images.

    Returns:
        What was written: `status`, `epoch`, `time` (ms since 1970), `split`, `values` by name of measure
        (`kdpipe.core.measures.METRICS`), and, for a finished run, `samples`, `temperature_from`
        (`val` or `test halves`) and `best_test_epoch` (None without a test accuracy per epoch). `model` has
        the network's parameters, multiply-adds and fingerprint where the run's provenance states them,
        `teacher_epoch` is there where the teacher is a sampled checkpoint, and `of` is the hash of what the
        measures are computed from.

    Raises:
        CheckpointError: predictions are missing, or they or the features are damaged or of other images than
            the teacher's.
        ResultsError: the status is missing or cannot be read, or `metrics.json` cannot be written.
    """
    status = read_json(run.status)
    found = {
        "status": status["status"],
        "epoch": status["epoch"],
        "time": time.time_ns() // 1_000_000,
        "of": _sources(run, teacher),
        "split": "test",
        "values": {},
    }
    if status["status"] != "collapsed":
        test = load_predictions(run.predictions)
        if test.finite:
            found |= _measured(run, test, teacher)
        else:
            found["status"] = "collapsed"
    if teacher is not None and teacher.checkpoint_record.is_file():
        found["teacher_epoch"] = read_json(teacher.checkpoint_record)["epoch"]
    record = read_json(run.provenance) if run.provenance.is_file() else {}
    if network := record.get("model"):
        found["model"] = network
    if found["status"] != "collapsed":
        found["values"] |= _cost(record)
    write_json(run.metrics, found)
    return found


def _sources(run: RunPaths, teacher: RunPaths | None) -> str:
    """Hash of what a run's measures are computed from; its provenance stands for its predictions."""
    folders = [run, *([teacher] if teacher else [])]
    files = [
        (p.status, p.provenance if p.provenance.is_file() else p.predictions, p.features) for p in folders
    ]
    hashes = [[sha256(file) if file.is_file() else None for file in group] for group in files]
    return digest([measures.REVISION, hashes])


def load_auxiliary(path: Path) -> Predictions | None:
    """The test predictions of a head that was dropped after training; None where there was none.

    Raises:
        CheckpointError: as `load_predictions`.
    """
    own = load_predictions(path)
    logits = _stored(path, ["test_index"], optional="test_auxiliary")
    if "test_auxiliary" not in logits:
        return None
    order = np.argsort(logits["test_index"], kind="stable")
    return replace(own, logits=logits["test_auxiliary"][order])


def load_predictions(path: Path, split: str = "test") -> Predictions:
    """One split's predictions in order of image index.

    Raises:
        CheckpointError: the file is missing or damaged, lacks the split, or its arrays do not fit.
    """
    names = [f"{split}_{part}" for part in ("logits", "labels", "index")]
    arrays = _stored(path, names, optional=f"{split}_reference")
    logits, labels, index = (arrays[name] for name in names)
    reference = arrays.get(f"{split}_reference")
    wrong = _mismatch(logits, labels, index) or (
        _no_reference(reference, logits.shape) if reference is not None else None
    )
    if wrong:
        raise _unusable(path, f"predictions do not fit together: {wrong}")
    order = np.argsort(index, kind="stable")
    return Predictions(
        logits[order], labels[order], index[order], None if reference is None else reference[order]
    )


def load_features(path: Path, split: str) -> tuple[Predictions, Array]:
    """One split's predictions and features (N x D), both in order of image index.

    Raises:
        CheckpointError: as `load_predictions`, or the features are missing or do not fit.
    """
    found = load_predictions(path, split)
    arrays = _stored(path, [f"{split}_features", f"{split}_index"])
    features, order = arrays[f"{split}_features"], np.argsort(arrays[f"{split}_index"], kind="stable")
    if features.ndim != 2 or len(features) != len(order) or not features.size or features.dtype.kind != "f":
        raise _unusable(
            path,
            f"predictions do not fit together: features are {features.dtype} of shape {features.shape}, "
            f"not numbers of shape ({len(order)}, D)",
        )
    return found, features[order]


def load_classifier(path: Path, shape: tuple[int, int]) -> tuple[Array, Array]:
    """The last layer's `weight` (C x D) and `bias` (C).

    Raises:
        CheckpointError: the file is missing or damaged, lacks one, or they are not of that shape (C, D).
    """
    arrays = _stored(path, ["weight", "bias"])
    weight, bias = arrays["weight"], arrays["bias"]
    if weight.shape != shape or bias.shape != shape[:1]:
        raise _unusable(
            path,
            f"a classifier of shape {weight.shape} and {bias.shape} does not fit {shape} and {shape[:1]}",
        )
    return weight, bias


def best_on_test(history: Path) -> tuple[float, int] | None:
    """The highest test accuracy (%) of any epoch, and the first epoch that has it.

    It is picked on the very images that it is measured on, so it is shown under that name and never
    used to choose anything. None where no epoch has a test accuracy, as when validation images were
    held out, or at a sampled checkpoint.

    Raises:
        CheckpointError: the file is there but cannot be read.
    """
    if not history.exists():
        return None
    try:
        with open(history, encoding="utf-8", newline="") as file:
            rows = [
                (float(row["test_top1"]), int(row["epoch"]))
                for row in csv.DictReader(file)
                if row.get("test_top1")
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(history, f"the history cannot be read: {error}") from error
    finite = [row for row in rows if math.isfinite(row[0])]
    return max(finite, key=lambda row: (row[0], -row[1])) if finite else None


def check_history(run: RunPaths) -> None:
    """Compare a run's history with the checksum that its provenance states, if it has both.

    Raises:
        CheckpointError: it has changed since the run was finished.
    """
    if run.history.is_file() and run.provenance.is_file():
        stated = (read_json(run.provenance).get("outputs") or {}).get("history")
        if stated is not None and stated != sha256(run.history):
            raise _unusable(run.history, "the history has changed since the run was finished")


def _cost(record: Mapping[str, Any]) -> dict[str, float]:
    """What the training cost, from the run's provenance; nothing of a run that was not trained here."""
    cost = dict(record.get("cost") or {})
    phases = [value for name, value in cost.items() if name.startswith("ms_")]
    if phases:
        cost["ms_step"] = sum(phases)
    network = record.get("model") or {}
    return cost | {name: network[name] for name in ("parameters", "multiply_adds") if name in network}


def _measured(run: RunPaths, test: Predictions, teacher: RunPaths | None) -> dict[str, Any]:
    scaled, temperature, source = _scaled(run.predictions, test)
    values = {
        "top1": metrics.top_k(test.logits, test.labels),
        "top5": metrics.top_k(test.logits, test.labels, 5),
        **_calibration(test.logits, test.labels),
        **{f"{name}_ts": value for name, value in _calibration(scaled, test.labels).items()},
        "temperature": temperature,
        **_soft_labels(test),
    }
    if teacher is not None:
        values |= _fidelity(run, test, teacher)
    if run.features.is_file():
        values |= _from_features(run, test, teacher)
    check_history(run)
    best = best_on_test(run.history)
    if best:
        values["best_test_top1"] = best[0]
    return {
        "values": {name: value for name, value in values.items() if math.isfinite(value)},
        "samples": len(test.labels),
        "temperature_from": source,
        "best_test_epoch": best[1] if best else None,
    }


def _calibration(logits: Array, labels: NDArray[np.integer[Any]]) -> dict[str, float]:
    """The measures that are also shown after temperature scaling."""
    return {
        "nll": metrics.nll(logits, labels),
        "ece": metrics.ece(logits, labels),
        "ece_mass": calibration.ece_equal_mass(logits, labels),
        "brier": metrics.brier(logits, labels),
        "aurc": calibration.aurc(logits, labels),
        "eaurc": calibration.excess_aurc(logits, labels),
    }


def _soft_labels(found: Predictions) -> dict[str, float]:
    values = {
        "entropy": soft_labels.entropy(found.logits),
        "off_label": soft_labels.off_label(found.logits, found.labels),
    }
    if found.reference is not None:
        values["tv_reference"] = soft_labels.total_variation(found.logits, found.reference)
        values["kl_reference"] = soft_labels.kl_reference(found.logits, found.reference)
    return values


def _scaled(path: Path, test: Predictions) -> tuple[Array, float, str]:
    """Temperature-scaled test logits, the temperature, and what it was fitted on."""
    if "val_logits" in _stored(path, [], optional="val_logits"):
        val = load_predictions(path, "val")
        if val.finite:
            temperature = metrics.fit_temperature(val.logits, val.labels)
            return np.asarray(test.logits, np.float64) / temperature, temperature, "val"
    return *metrics.cross_scaled(test.logits, test.labels), "test halves"


def _fidelity(run: RunPaths, test: Predictions, teacher: RunPaths) -> dict[str, float]:
    theirs = load_predictions(teacher.predictions)
    _same_images(test, theirs, run.predictions, teacher.predictions)
    if not theirs.finite:
        return {}
    return {
        "agreement": metrics.agreement(test.logits, theirs.logits),
        "kl_teacher": metrics.kl_divergence(test.logits, theirs.logits),
        "correlation_gap": geometry.correlation_gap(test.logits, theirs.logits),
    }


def _from_features(run: RunPaths, test: Predictions, teacher: RunPaths | None) -> dict[str, float]:
    """What needs `features.npz`: the geometry, and the predictions for training images."""
    train, train_features = load_features(run.features, "train")
    own, test_features = load_features(run.features, "test")
    _same_images(test, own, run.predictions, run.features)
    weight, bias = load_classifier(run.features, (train.logits.shape[1], train_features.shape[1]))
    arrays = (train.logits, train_features, test_features, weight, bias)
    if not all(np.isfinite(array).all() for array in arrays):
        return {}
    values = {
        "train_top1": metrics.top_k(train.logits, train.labels),
        "train_entropy": soft_labels.entropy(train.logits),
        "train_off_label": soft_labels.off_label(train.logits, train.labels),
        **_distances(test_features, own.labels),
        **{f"train_{name}": value for name, value in _distances(train_features, train.labels).items()},
        "nc1": geometry.nc1(train_features, train.labels),
        "nc2": geometry.nc2(train_features, train.labels),
        "nc2_norms": geometry.nc2_norms(train_features, train.labels),
        "nc3": geometry.nc3(train_features, train.labels, weight),
        "nc4": geometry.nc4(train_features, train.labels, weight, bias),
        "etf_distance": geometry.etf_distance(weight),
    }
    if teacher is not None and teacher.features.is_file():
        theirs = load_predictions(teacher.features, "train")
        _same_images(train, theirs, run.features, teacher.features)
        if bool(np.isfinite(theirs.logits).all()):
            values["train_agreement"] = metrics.agreement(train.logits, theirs.logits)
            values["train_kl_teacher"] = metrics.kl_divergence(train.logits, theirs.logits)
    return values


def _distances(features: Array, labels: NDArray[np.integer[Any]]) -> dict[str, float]:
    """Means over the anchors of MICC's distances and of both sides of its Theorem 1; none without anchors."""
    found = geometry.contrast(features, labels)
    if not len(found.m):
        return {}
    return {
        "d_intra": float(found.intra.mean()),
        "d_inter": float(found.inter.mean()),
        "d_ratio": float(found.ratio.mean()),
        "loss_ratio": float(found.loss_ratio.mean()),
    }


def _same_images(one: Predictions, other: Predictions, path: Path, other_path: Path) -> None:
    """Check that two files predict the same images and classes."""
    if one.logits.shape == other.logits.shape and np.array_equal(one.index, other.index):
        return
    who = "student and teacher" if path.parent != other_path.parent else "predictions and features"
    raise CheckpointError(
        f"{who} predict other images or classes: {one.logits.shape[0]} x {one.logits.shape[1]} and "
        f"{other.logits.shape[0]} x {other.logits.shape[1]}",
        where=f"{path} and {other_path}",
        fix="delete the folder of the run that was made with other data; it will be made again",
    )


def _stored(path: Path, names: list[str], optional: str = "") -> dict[str, NDArray[Any]]:
    """Arrays of a file by name; the optional one may be missing."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            more = [optional] if optional in stored else []
            return {name: stored[name] for name in [*names, *more]}
    except FileNotFoundError:
        raise _unusable(path, "predictions are missing") from None
    except KeyError as error:
        raise _unusable(path, f"predictions lack an array: {error.args[0]}") from None
    except Exception as error:  # a damaged archive makes its reader raise almost anything
        raise _unusable(path, f"predictions cannot be read: {error}") from error


def _mismatch(logits: NDArray[Any], labels: NDArray[Any], index: NDArray[Any]) -> str | None:
    """What is wrong with the shapes, types or values of predictions, or None."""
    if logits.ndim != 2 or not logits.size or logits.dtype.kind != "f":
        return f"logits are {logits.dtype} of shape {logits.shape}, not numbers of shape (N, C)"
    for name, array in (("labels", labels), ("index", index)):
        if array.shape != (len(logits),) or array.dtype.kind not in "iu":
            return f"{name} are {array.dtype} of shape {array.shape}, not {len(logits)} integers"
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        return f"labels reach from {labels.min()} to {labels.max()} among {logits.shape[1]} classes"
    if len(np.unique(index)) < len(index):
        return "an image is there twice"
    return None


def _no_reference(reference: NDArray[Any], shape: tuple[int, ...]) -> str | None:
    """Why an array cannot be label distributions of that shape (N, C), or None."""
    if reference.shape != shape or reference.dtype.kind != "f":
        return f"reference distributions are {reference.dtype} of shape {reference.shape}, not {shape}"
    if not (reference.min() >= 0 and np.allclose(reference.sum(axis=1), 1, atol=1e-4)):
        return "reference distributions have negative entries, or sums other than 1"
    return None


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        what, where=str(path), fix="delete the file and run the same command again; the run is made again"
    )
