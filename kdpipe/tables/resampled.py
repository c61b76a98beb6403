"""Intervals over test images, from the predictions that the runs stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.core.errors import ResultsError
from kdpipe.core.paths import Results
from kdpipe.evaluation.evaluate import Predictions, load_predictions
from kdpipe.evaluation.metrics import among_largest
from kdpipe.plan.plan import Plan
from kdpipe.tables.statistics import Interval, resample

ACCURACIES = {"top1": 1, "top5": 5}  # measure -> how many classes may be named
Resampled = Callable[[str, Sequence[str]], Interval | None]


def over_images(times: int, plan: Plan, results: Results) -> Resampled:
    """How to resample a cell.

    Args:
        times: number of draws; 0 is none.
        plan: the plan that the runs are part of.
        results: the results folder.

    Returns:
        From a measure and the folders of a cell's finished runs to the 95 % interval of their mean over test
        images; None for measures that are no share of test images.
    """

    @lru_cache(maxsize=8)  # a teacher's are read for all its students, a run's for each of its measures
    def predictions(path: Path) -> Predictions:
        return load_predictions(path)

    def right(metric: str, run: str) -> NDArray[np.bool_]:
        own = predictions(results.run(run).predictions)
        if metric in ACCURACIES:
            return among_largest(own.logits, own.labels, ACCURACIES[metric])
        theirs = predictions(results.root / str(plan.teacher_place(run)) / "predictions.npz")
        return np.asarray(own.logits.argmax(axis=1) == theirs.logits.argmax(axis=1))

    def interval(metric: str, runs: Sequence[str]) -> Interval | None:
        if not (times and runs and metric in (*ACCURACIES, "agreement")):
            return None
        rights = [right(metric, run) for run in runs]
        if len({len(each) for each in rights}) > 1:
            raise ResultsError(
                "the seeds of a cell have predictions for different test images",
                where=", ".join(str(results.run(run).predictions) for run in runs),
                fix="make the runs again, or leave out the study's key 'bootstrap'",
            )
        return resample(rights, times)

    return interval
