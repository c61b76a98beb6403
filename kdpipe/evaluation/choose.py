"""Which of a teacher's checkpoints a rule picks: by predictions of the validation images, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.core.errors import CheckpointError
from kdpipe.core.files import atomic, read_json, sha256, write_json
from kdpipe.core.paths import RunPaths
from kdpipe.core.specs import Choice, point
from kdpipe.evaluation import metrics
from kdpipe.evaluation.evaluate import load_predictions

RULES: dict[str, Callable[[metrics.Logits, metrics.Labels], float]] = {  # the least wins
    "lowest_nll": metrics.nll,
    "lowest_ece": metrics.ece,
    "best_accuracy": lambda logits, labels: -metrics.top_k(logits, labels),
}


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may be chosen.

    Attributes:
        epoch: after which it was kept.
        found: its predictions and status.
        weights: its weights.
    """

    epoch: int
    found: RunPaths
    weights: Path


def choose(run: RunPaths, choice: Choice) -> dict[str, Any]:
    """Pick a checkpoint and lay its weights and predictions down as an artifact that students can name.

    Of equal ones the earliest wins. A checkpoint whose predictions are not finite is passed over; where all
    are, the end of the training is taken.

    Args:
        run: the teacher's folder; the checkpoints it chooses among are sampled.
        choice: the rule, and the epochs.

    Returns:
        What was written beside them: `rule`, `epoch`, `scores` (epoch -> what the rule compares, on
        validation images, the least being best; None where it is not finite) and `sha256` of the weights.

    Raises:
        CheckpointError: a checkpoint has no predictions of validation images, or is missing.
    """
    candidates = [
        Candidate(epoch, run.sampled(point(epoch, choice.precision)), run.checkpoint(epoch, choice.precision))
        for epoch in choice.epochs
    ]
    candidates.append(Candidate(int(read_json(run.status)["epoch"]), run, run.model))
    scores = [_score(candidate, choice) for candidate in candidates]
    usable = [(score, place) for place, score in enumerate(scores) if score is not None]
    chosen = candidates[min(usable)[1] if usable else -1]
    out = run.sampled(choice.name)
    for source, target in (
        (chosen.weights, out.model),
        (chosen.found.predictions, out.predictions),
        (chosen.found.status, out.status),
        (run.provenance, out.provenance),
    ):
        _copy(source, target)
    record = {
        "rule": choice.rule,
        "epoch": chosen.epoch,
        "scores": {str(c.epoch): score for c, score in zip(candidates, scores, strict=True)},
        "sha256": sha256(out.model),
    }
    write_json(out.checkpoint_record, record)
    return record


def _score(candidate: Candidate, choice: Choice) -> float | None:
    val = load_predictions(candidate.found.predictions, "val")
    return RULES[choice.rule](val.logits, val.labels) if val.finite else None


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise CheckpointError("a checkpoint lacks a file", where=str(source), fix="make it again")
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)
