"""The measures of a finished run: what each is called, its unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        title: heading of its column.
        unit: `%`, `nats`, or empty for a plain number.
        better: `higher`, `lower`, or None where neither is better.
        decimals: digits shown after the point.
        about: one line for readers of the table.
        needs_teacher: whether it compares a student with its teacher.
    """

    title: str
    unit: str
    better: Literal["higher", "lower"] | None
    decimals: int
    about: str
    needs_teacher: bool = False


METRICS: dict[str, Measure] = {
    "top1": Measure("top-1", "%", "higher", 2, "test images whose likeliest class is the right one"),
    "top5": Measure("top-5", "%", "higher", 2, "test images whose class is among the five likeliest"),
    "nll": Measure("NLL", "nats", "lower", 3, "mean negative log-likelihood of the right class"),
    "ece": Measure("ECE", "", "lower", 4, "expected calibration error, 15 equal bins of confidence"),
    "brier": Measure("Brier", "", "lower", 4, "squared distance between probabilities and label, 0 to 2"),
    "nll_ts": Measure("NLL (scaled)", "nats", "lower", 3, "NLL after temperature scaling"),
    "ece_ts": Measure("ECE (scaled)", "", "lower", 4, "ECE after temperature scaling"),
    "temperature": Measure("T", "", None, 3, "fitted temperature; above 1 the network was overconfident"),
    "agreement": Measure(
        "agreement",
        "%",
        None,
        2,
        "test images on which student and teacher name one class",
        needs_teacher=True,
    ),
    "kl_teacher": Measure(
        "KL to teacher",
        "nats",
        "lower",
        3,
        "mean KL(teacher || student) at temperature 1",
        needs_teacher=True,
    ),
    "best_test_top1": Measure(
        "best on test", "%", "higher", 2, "highest test accuracy of any epoch, picked on the test set itself"
    ),
}
