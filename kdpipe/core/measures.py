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
        needs_features: whether it is computed from `features.npz`, which a run has only when asked for.
        needs_reference: whether it needs the images' true label distributions.
        of_training: whether it is of the training, and so missing where a network was imported.
    """

    title: str
    unit: str
    better: Literal["higher", "lower"] | None
    decimals: int
    about: str
    needs_teacher: bool = False
    needs_features: bool = False
    needs_reference: bool = False
    of_training: bool = False


REVISION = 1  # bump when a measure is added, or the same predictions give other values

METRICS: dict[str, Measure] = {
    "top1": Measure("top-1", "%", "higher", 2, "test images whose likeliest class is the right one"),
    "top5": Measure("top-5", "%", "higher", 2, "test images whose class is among the five likeliest"),
    "nll": Measure("NLL", "nats", "lower", 3, "mean negative log-likelihood of the right class"),
    "ece": Measure("ECE", "", "lower", 4, "expected calibration error, 15 equal bins of confidence"),
    "brier": Measure("Brier", "", "lower", 4, "squared distance between probabilities and label, 0 to 2"),
    "nll_ts": Measure("NLL (scaled)", "nats", "lower", 3, "NLL after temperature scaling"),
    "ece_ts": Measure("ECE (scaled)", "", "lower", 4, "ECE after temperature scaling"),
    "ece_mass": Measure(
        "ECE (equal mass)", "", "lower", 4, "expected calibration error, 15 bins of equally many images"
    ),
    "ece_mass_ts": Measure(
        "ECE (equal mass, scaled)", "", "lower", 4, "equal-mass ECE after temperature scaling"
    ),
    "brier_ts": Measure("Brier (scaled)", "", "lower", 4, "Brier score after temperature scaling"),
    "aurc": Measure(
        "AURC", "", "lower", 4, "mean error of the most certain images, over every share of them; 0 to 1"
    ),
    "aurc_ts": Measure("AURC (scaled)", "", "lower", 4, "AURC after temperature scaling"),
    "eaurc": Measure("E-AURC", "", "lower", 4, "AURC less that of a confidence that ranks every error last"),
    "eaurc_ts": Measure("E-AURC (scaled)", "", "lower", 4, "E-AURC after temperature scaling"),
    "temperature": Measure("T", "", None, 3, "fitted temperature; above 1 the network was overconfident"),
    "entropy": Measure("entropy", "nats", None, 3, "mean entropy of the predictions"),
    "off_label": Measure("off label", "%", None, 2, "mean probability of all classes but the right one"),
    "tv_reference": Measure(
        "TV to reference",
        "",
        "lower",
        4,
        "mean total variation distance to the known label distributions, 0 to 1",
        needs_reference=True,
    ),
    "kl_reference": Measure(
        "KL to reference",
        "nats",
        "lower",
        3,
        "mean KL(known label distribution || prediction)",
        needs_reference=True,
    ),
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
    "correlation_gap": Measure(
        "logit correlation gap",
        "",
        "lower",
        4,
        "mean absolute difference of teacher's and student's correlations between the logits of classes",
        needs_teacher=True,
    ),
    "best_test_top1": Measure(
        "best on test", "%", "higher", 2, "highest test accuracy of any epoch, picked on the test set itself"
    ),
    "train_top1": Measure(
        "train top-1",
        "%",
        "higher",
        2,
        "training images, not augmented, whose likeliest class is the right one",
        needs_features=True,
    ),
    "train_entropy": Measure(
        "train entropy",
        "nats",
        None,
        3,
        "mean entropy of the predictions for training images",
        needs_features=True,
    ),
    "train_off_label": Measure(
        "train off label",
        "%",
        None,
        2,
        "mean probability of all classes but the right one, for training images",
        needs_features=True,
    ),
    "train_agreement": Measure(
        "train agreement",
        "%",
        None,
        2,
        "training images on which student and teacher name one class",
        needs_teacher=True,
        needs_features=True,
    ),
    "train_kl_teacher": Measure(
        "train KL to teacher",
        "nats",
        "lower",
        3,
        "mean KL(teacher || student) at temperature 1 for training images",
        needs_teacher=True,
        needs_features=True,
    ),
    "d_intra": Measure(
        "d intra",
        "",
        None,
        4,
        "mean exp(cosine) of two images of one class, 0.37 to 2.72; higher means closer together",
        needs_features=True,
    ),
    "d_inter": Measure(
        "d inter",
        "",
        None,
        4,
        "mean exp(cosine) of two images of different classes, 0.37 to 2.72; higher means closer together",
        needs_features=True,
    ),
    "d_ratio": Measure(
        "d intra / d inter",
        "",
        None,
        4,
        "mean over images of the ratio of both; 1 without any class structure, at most 7.39",
        needs_features=True,
    ),
    "loss_ratio": Measure(
        "K exp(L intra - L inter)",
        "",
        None,
        4,
        "the same ratio from the intra- and inter-class contrastive losses; with many images both are one",
        needs_features=True,
    ),
    "train_d_intra": Measure(
        "train d intra", "", None, 4, "d intra of training images, not augmented", needs_features=True
    ),
    "train_d_inter": Measure(
        "train d inter", "", None, 4, "d inter of training images, not augmented", needs_features=True
    ),
    "train_d_ratio": Measure(
        "train d intra / d inter", "", None, 4, "d intra / d inter of training images", needs_features=True
    ),
    "train_loss_ratio": Measure(
        "train K exp(L intra - L inter)",
        "",
        None,
        4,
        "the same ratio from the contrastive losses of training images",
        needs_features=True,
    ),
    "nc1": Measure(
        "NC1",
        "",
        None,
        4,
        "scatter of training features within classes against that between, 0 when collapsed",
        needs_features=True,
    ),
    "nc2": Measure(
        "NC2",
        "",
        None,
        4,
        "mean distance of the cosines of class means from a simplex ETF's, 0 when collapsed",
        needs_features=True,
    ),
    "nc2_norms": Measure(
        "NC2 (norms)",
        "",
        None,
        4,
        "variation of the lengths of class means, 0 when collapsed",
        needs_features=True,
    ),
    "nc3": Measure(
        "NC3",
        "",
        None,
        4,
        "distance between classifier and class means up to scale, 0 (collapsed) to 2",
        needs_features=True,
    ),
    "nc4": Measure(
        "NC4",
        "%",
        None,
        2,
        "training images that the network does not give to the nearest class mean",
        needs_features=True,
    ),
    "etf_distance": Measure(
        "classifier to ETF",
        "",
        None,
        4,
        "distance of the classifier's products to those of a simplex ETF, 0 to 1.41",
        needs_features=True,
    ),
    "parameters": Measure("parameters", "", None, 0, "trainable parameters of the network", of_training=True),
    "extra_parameters": Measure(
        "extra parameters", "", "lower", 0, "parameters trained beside the network's own", of_training=True
    ),
    "multiply_adds": Measure(
        "multiply-adds", "", None, 0, "multiply-adds of one image's forward pass", of_training=True
    ),
    "ms_step": Measure(
        "step", "ms", "lower", 1, "time of a training step, all phases, on its machine", of_training=True
    ),
    "ms_data": Measure("data", "ms", "lower", 1, "time that a step waits for its batch", of_training=True),
    "ms_student": Measure(
        "student", "ms", "lower", 1, "time of a step's forward pass of the network", of_training=True
    ),
    "ms_teacher": Measure(
        "teacher",
        "ms",
        "lower",
        1,
        "time of a step's forward pass of the teacher",
        needs_teacher=True,
        of_training=True,
    ),
    "ms_loss": Measure("loss", "ms", "lower", 1, "time that a step takes for its loss", of_training=True),
    "ms_backward": Measure("backward", "ms", "lower", 1, "time of a step's backward pass", of_training=True),
    "ms_optimizer": Measure("optimiser", "ms", "lower", 1, "time of the optimiser's step", of_training=True),
    "ms_replay": Measure(
        "replay", "ms", "lower", 1, "time of a captured step, all but its data", of_training=True
    ),
    "memory_mib": Measure(
        "memory",
        "MiB",
        "lower",
        0,
        "peak memory of the training: of the device, else of the process",
        of_training=True,
    ),
}
