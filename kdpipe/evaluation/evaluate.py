"""From a run's stored predictions to its `metrics.json`; no network, no GPU."""

from __future__ import annotations

import csv
import math
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.core.errors import CheckpointError
from kdpipe.core.files import read_json, write_json
from kdpipe.core.paths import RunPaths
from kdpipe.evaluation import metrics


@dataclass(frozen=True)
class Predictions:
    """What a network said of some images, ordered by image.

    Attributes:
        logits: N x C.
        labels: N, the right classes.
        index: N, which images.
    """

    logits: NDArray[np.floating[Any]]
    labels: NDArray[np.integer[Any]]
    index: NDArray[np.integer[Any]]

    @property
    def finite(self) -> bool:
        """Whether the network still gave numbers."""
        return bool(np.isfinite(self.logits).all())


def evaluate(run: RunPaths, teacher: RunPaths | None = None) -> dict[str, Any]:
    """Compute every measure of a run (or sampled checkpoint) and write its `metrics.json`.

    A run that collapsed, or whose predictions are not finite, gets status `collapsed` and no values.
    Likeness to the teacher is left out where the teacher collapsed.

    Args:
        run: the run's folder.
        teacher: the folder of its teacher, with predictions for the same images.

    Returns:
        What was written: `status`, `epoch`, `time` (ms since 1970), `split`, `values` by name of measure
        (`kdpipe.core.measures.METRICS`), and, for a finished run, `samples`, `temperature_from`
        (`val` or `test halves`) and `best_test_epoch` (None without a test accuracy per epoch). `model` has
        the network's parameters, multiply-adds and fingerprint where the run's provenance states them.

    Raises:
        CheckpointError: predictions are missing, damaged or of other images than the teacher's.
        ResultsError: the status is missing or cannot be read, or `metrics.json` cannot be written.
    """
    status = read_json(run.status)
    found = {
        "status": status["status"],
        "epoch": status["epoch"],
        "time": time.time_ns() // 1_000_000,
        "split": "test",
        "values": {},
    }
    if status["status"] != "collapsed":
        test = load_predictions(run.predictions)
        if test.finite:
            found |= _measured(run, test, teacher)
        else:
            found["status"] = "collapsed"
    if run.provenance.is_file() and (network := read_json(run.provenance).get("model")):
        found["model"] = network
    write_json(run.metrics, found)
    return found


def load_predictions(path: Path, split: str = "test") -> Predictions:
    """One split's predictions in order of image index.

    Raises:
        CheckpointError: the file is missing or damaged, lacks the split, or its arrays do not fit.
    """
    names = [f"{split}_{part}" for part in ("logits", "labels", "index")]
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            logits, labels, index = (stored[name] for name in names)
    except FileNotFoundError:
        raise _unusable(path, "predictions are missing") from None
    except KeyError as error:
        raise _unusable(path, f"predictions lack an array: {error.args[0]}") from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unusable(path, f"predictions cannot be read: {error}") from error
    wrong = _mismatch(logits, labels, index)
    if wrong:
        raise _unusable(path, f"predictions do not fit together: {wrong}")
    order = np.argsort(index, kind="stable")
    return Predictions(logits[order], labels[order], index[order])


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


def _measured(run: RunPaths, test: Predictions, teacher: RunPaths | None) -> dict[str, Any]:
    scaled, temperature, source = _scaled(run.predictions, test)
    values = {
        "top1": metrics.top_k(test.logits, test.labels),
        "top5": metrics.top_k(test.logits, test.labels, 5),
        "nll": metrics.nll(test.logits, test.labels),
        "ece": metrics.ece(test.logits, test.labels),
        "brier": metrics.brier(test.logits, test.labels),
        "nll_ts": metrics.nll(scaled, test.labels),
        "ece_ts": metrics.ece(scaled, test.labels),
        "temperature": temperature,
    }
    if teacher is not None:
        values |= _fidelity(run, test, teacher)
    best = best_on_test(run.history)
    if best:
        values["best_test_top1"] = best[0]
    return {
        "values": values,
        "samples": len(test.labels),
        "temperature_from": source,
        "best_test_epoch": best[1] if best else None,
    }


def _scaled(path: Path, test: Predictions) -> tuple[NDArray[np.floating[Any]], float, str]:
    """Temperature-scaled test logits, the temperature, and what it was fitted on."""
    with np.load(path, allow_pickle=False) as stored:
        held_out = "val_logits" in stored
    if held_out:
        val = load_predictions(path, "val")
        if val.finite:
            temperature = metrics.fit_temperature(val.logits, val.labels)
            return np.asarray(test.logits, np.float64) / temperature, temperature, "val"
    return *metrics.cross_scaled(test.logits, test.labels), "test halves"


def _fidelity(run: RunPaths, test: Predictions, teacher: RunPaths) -> dict[str, float]:
    theirs = load_predictions(teacher.predictions)
    if theirs.logits.shape != test.logits.shape or not np.array_equal(theirs.index, test.index):
        raise CheckpointError(
            f"student and teacher predict other images or classes: {test.logits.shape[0]} x "
            f"{test.logits.shape[1]} and {theirs.logits.shape[0]} x {theirs.logits.shape[1]}",
            where=f"{run.predictions} and {teacher.predictions}",
            fix="delete the folder of the run that was made with other data; it will be made again",
        )
    if not theirs.finite:
        return {}
    return {
        "agreement": metrics.agreement(test.logits, theirs.logits),
        "kl_teacher": metrics.kl_divergence(test.logits, theirs.logits),
    }


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


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        what, where=str(path), fix="delete the file and run the same command again; the run is made again"
    )
