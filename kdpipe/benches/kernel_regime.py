"""The experiments on distillation in the kernel regime: two-layer networks on two classes of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import model_validator
from scipy.special import stdtrit

from kdpipe.api import Arrays, Bench, Desk, Finding, Images, Line, Panel, Paper, Plot, Settings, Verdict, hp
from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.embedding import Embedding, width_grid
from kdpipe.theory.overlap import Rule, expected_gram, overlaps, top_eigenvectors
from kdpipe.theory.two_layer import ACTIVATIONS, Array, Network, curvature, descend, log_spaced

Floats = NDArray[np.float64]
ActivationName = Literal["relu", "softplus", "tanh", "erf"]
Split = Literal["train", "test"]
Measure = Literal["final", "speed", "half", "overlap"]

SPLITS: Mapping[Split, str] = {"train": "training", "test": "test"}
RECORDS = 100  # iterations at which losses are kept, evenly spaced on a logarithmic axis
ROWS = 3  # variants that a figure of the paper shows
MIN_SEEDS = 5  # below, a verdict is undecided
TIE = 0.01  # losses (or iterations, or overlaps) that differ by less are equal
NO_OVERLAP = 1e-3  # a mean overlap below it counts as this one
AGREE = 0.9  # share of seeds that must be on one side
BINS = 20  # of the histograms
EIGENVECTORS = (1, 2, 5, 10, 20, 50)  # numbers of them for which the overlap is measured too

# Networks of a run, in the order of training, and what each is.
NETWORKS = {
    "teacher": "teacher",
    "alone": "student without teacher",
    "taught": "student with teacher",
    "lottery": "student from the teacher's units, λ = 0",
    "pure": "student from the teacher's units, λ = ∞",
    "imperfect": "student of the early teacher",
    "fresh": "student of the teacher from a random start",
    "kernel_teacher": "teacher on the kernel embedding",
    "kernel_student": "student on the kernel embedding",
}
EARLY = "early"  # the teacher at its early iteration: an overlap, no curve of its own
MEASURED = ("teacher", EARLY, "taught", "imperfect", "kernel_teacher", "kernel_student")  # for overlaps


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that compares one network with others.

    Attributes:
        figure: that it stands for.
        text: the statement, in our words.
        measure: `final` loss; `speed`, the iterations until the lowest loss that all of them reach; `half`,
            the iterations until half of a network's own initial loss; mean `overlap`.
        subject: the network said to be better.
        rivals: the networks it is compared with; the best of them counts.
        split: whose loss.
    """

    figure: str
    text: str
    measure: Measure
    subject: str
    rivals: tuple[str, ...]
    split: Split = "train"

    @property
    def source(self) -> str:
        """Section and figure of the paper."""
        return f"{SECTIONS[self.figure]}, Figure {self.figure.removeprefix('figure')}"


SECTIONS = {
    "figure1": "Section 4.1",
    "figure2": "Section 4.1",
    "figure3": "Section 4.2",
    "figure4": "Section 4.3",
    "figure5": "Section 4.4",
    "figure6": "Section 4.5",
}


STATEMENTS: tuple[tuple[str, Measure, str, str], ...] = (  # figure, measure, subject and rivals, text
    ("figure1", "final", "teacher taught alone", "the teacher ends with the lowest loss"),
    ("figure1", "final", "taught alone", "the student with a teacher ends below the one without"),
    ("figure1", "speed", "taught alone teacher", "the student with a teacher is first at a common loss"),
    ("figure1", "half", "taught alone teacher", "the student with a teacher is first to halve its own loss"),
    ("figure2", "final", "taught lottery pure", "the finite λ ends below λ = 0 and λ = ∞"),
    ("figure2", "speed", "taught lottery", "the finite λ is before λ = 0 at a common loss"),
    ("figure3", "final", "taught imperfect fresh", "trained teacher, its units as start: ends lowest"),
    (
        "figure3",
        "speed",
        "taught imperfect fresh",
        "trained teacher, its units as start: first at a common loss",
    ),
    ("figure4", "final", "kernel_teacher teacher", "the kernel embedding lowers the teacher's loss"),
    ("figure4", "final", "kernel_student taught", "the kernel embedding lowers the student's loss"),
    ("figure5", "overlap", f"teacher {EARLY}", "the overlap is larger for the fully trained teacher"),
    ("figure5", "overlap", "taught imperfect", "the trained teacher's gain in overlap passes to its student"),
    (
        "figure6",
        "overlap",
        "kernel_teacher teacher",
        "the overlap is larger for the teacher on the embedding",
    ),
    ("figure6", "overlap", "kernel_student taught", "the embedding's gain in overlap passes to the student"),
)


def _claims() -> Iterable[Claim]:
    for figure, measure, networks, text in STATEMENTS:
        subject, *rivals = networks.split()
        if measure == "overlap":
            yield Claim(figure, text, measure, subject, tuple(rivals))
            continue
        for split, name in SPLITS.items():
            if split == "train" or measure != "half":
                yield Claim(figure, f"{text} ({name} loss)", measure, subject, tuple(rivals), split)


CLAIMS = tuple(_claims())


class KernelRegime(Bench):
    """Teachers of 100 hidden units and students of 20, with and without what the teacher knows.

    One run trains, by full-batch gradient descent on Eq. 2 of the paper: a teacher; a student alone, from a
    random start; students from randomly chosen units of the teacher, with these units' features as privileged
    knowledge and lambda finite, 0 or infinite; a student of the early teacher (early units as start, early
    features); a student from a random start with the trained teacher's features; and a teacher and its
    student on a learnt kernel embedding. All of a run share images, units and iterations. Each output is
    divided by the root of the network's own number of units (Eq. 1): a unit weighs a / sqrt(20) in a student
    and a / sqrt(100) in the teacher.

    Tables: `losses` (network, iteration, split, loss), `overlap` (network, eigenvectors, unit, overlap) and
    `facts` (network, quantity, value: rate, largest stable rate at the start, distance that the weights
    moved; of the embedding the widths and weights of its kernels). The overlap of a unit that is 0 on every
    image is empty: a ReLU unit may be so from its start, as images without negative values point one way.

    Reference: Rahbar et al. 2020 (arXiv 2003.13438), section 4, Figures 1 to 6.

    Deviations: the paper states neither activation, images, iterations, which units a student gets, when the
    early teacher was taken, kernel widths, landmarks, eigenvectors nor lambda of Figures 4 to 6: all are
    settings. Its rate is that of a sum over its images, taken to be the 10,000 of the two classes (as in
    Arora et al. 2019, whose rate it adopts); a run with fewer images multiplies the rate so that a step
    is as long in the mean. Assumption 3 excludes ReLU, with which the paper was most likely run. "Converges
    fastest" is measured twice: a start below the others' is a lead to a common level, and none to
    half of a network's own initial loss.
    """

    name = "kernel_regime"
    paper = Paper(
        "On the unreasonable effectiveness of knowledge distillation: analysis in the kernel regime",
        "A. Rahbar, A. Panahi, C. Bhattacharyya, D. Dubhashi, M. Haghir Chehreghani",
        "arXiv",
        2020,
        "https://arxiv.org/abs/2003.13438",
    )
    needs_images = True
    plots = {
        "figure1": "loss of the teacher and of students with and without it (Figure 1)",
        "figure2": "loss of students with lambda = 0, finite and infinite (Figure 2)",
        "figure3": "loss of students of a perfect and an early teacher, and from a random start (Figure 3)",
        "figure4": "loss of teacher and student with and without the kernel embedding (Figure 4)",
        "figure5": "overlap parameter of early and trained teachers and of their students (Figure 5)",
        "figure6": "overlap parameter with and without the kernel embedding (Figure 6)",
        "dependence": "how far the statements hold, by iteration, variant, images and eigenvectors",
    }

    class Config(Settings):
        """What is trained, on which images, and what is measured."""

        activation: ActivationName = hp(
            "relu", doc="activation sigma", source="assumption: not stated; Arora et al. 2019 use ReLU"
        )
        classes: tuple[int, int] = hp(
            (0, 1),
            doc="class numbers that get the labels +1 and -1",
            source="Section 4: the first two classes",
        )
        n_train: int = hp(
            400,
            ge=4,
            multiple_of=2,
            doc="training images, half of each class, drawn anew for each seed",
            source="assumption: not stated; few enough for a minute on one core",
        )
        n_test: int = hp(
            1000,
            ge=2,
            multiple_of=2,
            doc="test images, half of each class, drawn anew for each seed",
            source="assumption: not stated",
        )
        teacher_hidden: int = hp(100, ge=1, doc="hidden units of a teacher", source="Section 4")
        student_hidden: int = hp(20, ge=1, doc="hidden units of a student", source="Section 4")
        spread: float = hp(
            1e-2, gt=0, doc="standard deviation of a random weight", source="Eq. 16, Section 4"
        )
        rate: float = hp(
            2e-4, gt=0, doc="learning rate of gradient descent on half of Eq. 2", source="Section 4"
        )
        rate_images: int = hp(
            10_000,
            ge=0,
            doc="images in the sum that the rate is for: it is multiplied by them / n_train; 0 leaves it",
            source="assumption: all training images of the two classes, as in Arora et al. 2019",
        )
        weight: float = hp(0.01, gt=0, doc="finite lambda, for all figures", source="Sections 4.1 and 4.2")
        iterations: int = hp(10_000, ge=2, doc="steps of every training", source="assumption: not stated")
        early: int = hp(
            100, ge=1, doc="step at which the imperfect teacher is taken", source="assumption: not stated"
        )
        checkpoints: tuple[int, ...] = hp(
            (100, 1000),
            doc="earlier steps at which the statements are checked too",
            source="assumption: the paper's figures do not say how long they are",
        )
        loss: Literal["mean", "sum"] = hp(
            "mean",
            doc="loss shown: mean squared error over images, or its sum (the first term of Eq. 2)",
            source="assumption: not stated",
        )
        kernels: int = hp(7, ge=1, doc="Gaussian base kernels", source="Section 4.3")
        width_ratio: float = hp(
            2.0,
            gt=1,
            doc="ratio of neighbouring kernel widths, in a grid around the median distance of two images",
            source="assumption: not stated",
        )
        rank: int = hp(
            200,
            ge=1,
            doc="landmarks of the Nystroem features",
            source="assumption: not stated; half of n_train",
        )
        unit_norm: bool = hp(
            False,
            doc="divide each image's kernel features by their 2-norm",
            source="assumption: not stated; scaled features would no longer have the kernel's inner products",
        )
        eigenvectors: int = hp(
            10, ge=1, doc="top eigenvectors of H_infinity in the overlap", source="assumption: not stated"
        )
        overlap: Rule = hp(
            "absolute",
            doc="mean over eigenvectors of the products' absolute values, of their squares, or of the "
            "products after each eigenvector is turned towards the labels",
            source="assumption: Section 4.4 averages, but an eigenvector has no sign",
        )
        precision: Literal["float32", "float64"] = hp(
            "float32",
            doc="of the descent",
            source="assumption: float64 moves final losses by up to 2 % with ReLU, by 1e-4 of them else",
        )

        @model_validator(mode="after")
        def _fits(self) -> KernelRegime.Config:
            if self.classes[0] == self.classes[1] or min(self.classes) < 0:
                raise ValueError(f"'classes' names two different classes from 0, not {self.classes}")
            if self.student_hidden > self.teacher_hidden:
                raise ValueError(
                    f"a student cannot get {self.student_hidden} of {self.teacher_hidden} units: "
                    "lower 'student_hidden'"
                )
            steps = (self.early, *self.checkpoints)
            if min(steps) < 1 or max(steps) >= self.iterations:
                raise ValueError(
                    f"'early' and 'checkpoints' lie between 1 and 'iterations' - 1 = {self.iterations - 1}"
                )
            for name in ("rank", "eigenvectors"):
                if getattr(self, name) > self.n_train:
                    raise ValueError(
                        f"'{name}' is {getattr(self, name)}, with {self.n_train} training images"
                    )
            return self

    config: Config

    @property
    def rate(self) -> float:
        """The rate of the descent: that of the settings, as long in the mean over the images of this run."""
        c = self.config
        return c.rate * c.rate_images / c.n_train if c.rate_images else c.rate

    def run(self, seed: int, images: Images | None, desk: Desk) -> dict[str, pd.DataFrame]:
        """Train all networks of one seed.

        Raises:
            DataError: there are no images, too few of a class, or one without a bright pixel.
            ConfigError: the rate is too large for a network, whose largest stable rate the message names.
        """
        if images is None:
            raise DataError("this bench needs images", where=self.name, fix="name a data set in the study")
        return _Run(self, seed, images, desk).tables()

    def draw(self, name: str, found: Sequence[Finding]) -> Plot:
        """One of the figures."""
        variants = _variants(found)
        if name == "dependence":
            return _dependence(self.plots[name], variants)
        shown = dict(list(variants.items())[:ROWS])
        panels = _overlap_panels if name in OVERLAP_GROUPS else _loss_panels
        caption = [_counted(shown), _shared_settings(shown)]
        caption.append(
            "Shares are of the hidden units of all seeds together, without those that are 0 on every image."
            if name in OVERLAP_GROUPS
            else "Lines are means over seeds, bands reach from the least to the greatest seed."
        )
        if left := list(variants)[ROWS:]:
            caption.append(f"Left out: {', '.join(left)}.")
        return Plot(
            name,
            self.plots[name],
            tuple(p for label, seen in shown.items() for p in panels(name, label, seen)),
            columns=2,
            caption=" ".join(caption),
        )

    def verdicts(self, name: str, found: Sequence[Finding]) -> list[Verdict]:
        """What the runs say about a figure's statements; none about `dependence`, which is ours."""
        verdicts = []
        for label, seen in _variants(found).items():
            verdicts += [_judge(claim, label, seen) for claim in CLAIMS if claim.figure == name]
            if name == "figure2":
                verdicts.append(_judge_constant(label, seen))
        return verdicts


@dataclass(frozen=True)
class _Space:
    """Images as the networks see them: rows, and inner products in the precision of the descent."""

    train: Array
    test: Array
    gram: Array
    gram_test: Array

    @classmethod
    def of(cls, train: Floats, test: Floats, precision: str) -> _Space:
        arrays = (train, test, train @ train.T, test @ train.T)
        return cls(*(array.astype(precision) for array in arrays))


@dataclass(frozen=True)
class _Trained:
    """A network after its training, and at the early iteration."""

    last: Network
    early: Network


class _Run:
    """One seed: its images, and the trainings that are done on them."""

    def __init__(self, bench: KernelRegime, seed: int, images: Images, desk: Desk) -> None:
        self.config, self.rate, self.seed, self.desk = bench.config, bench.rate, seed, desk
        c = self.config
        self.activation = ACTIVATIONS[c.activation]
        self.record = sorted({*log_spaced(c.iterations, RECORDS), *c.checkpoints})
        chooser = self.stream(0)
        train, y = self.chosen(images.train, images.train_labels, c.n_train, images.name, "train", chooser)
        test, y_test = self.chosen(images.test, images.test_labels, c.n_test, images.name, "test", chooser)
        self.y, self.y_test = y.astype(c.precision), y_test.astype(c.precision)
        self.plain = _Space.of(train, test, c.precision)
        widths = width_grid(train, c.kernels, c.width_ratio)
        self.embedding = Embedding.learn(train, y, widths, c.rank, c.unit_norm, self.stream(1))
        features = [self.embedding.features(part) for part in (train, test)]
        self.embedded = _Space.of(features[0], features[1], c.precision)
        self.units = np.sort(self.stream(2).choice(c.teacher_hidden, c.student_hidden, replace=False))
        self.losses: list[pd.DataFrame] = []
        self.facts: list[tuple[str, str, float]] = []
        self.work, self.done = 2 * c.teacher_hidden + 7 * c.student_hidden, 0

    def stream(self, place: int) -> np.random.Generator:
        """Randomness of its own for images, landmarks, units and each random start."""
        return np.random.default_rng([self.seed, place])

    def chosen(
        self,
        images: Floats,
        labels: NDArray[np.int64],
        count: int,
        name: str,
        split: Split,
        rng: np.random.Generator,
    ) -> tuple[Floats, Floats]:
        """Images of unit norm, half of them of each class, with labels +1 and -1."""
        c = self.config
        places = [rng.permutation(np.flatnonzero(labels == number)) for number in c.classes]
        for number, found in zip(c.classes, places, strict=True):
            if not len(found):
                raise ConfigError(
                    f"the data set '{name}' has no {split} images of class {number}",
                    where="classes",
                    fix=f"name two of its classes: {', '.join(map(str, np.unique(labels)))}",
                )
        fewest = min(map(len, places))
        if count // 2 > fewest:
            raise ConfigError(
                f"the data set '{name}' has {fewest} {split} images of a class; {count // 2} are asked for",
                where=f"n_{split}",
                fix=f"use at most {2 * fewest}",
            )
        rows = images[np.concatenate([found[: count // 2] for found in places])].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if not norms.all():
            raise DataError(
                f"the data set '{name}' has a {split} image without a bright pixel, which has no unit norm",
                where=name,
                fix="leave the image out of the data set",
            )
        return rows / norms, np.repeat([1.0, -1.0], count // 2)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All trainings, then what was measured on them."""
        c, plain, embedded = self.config, self.plain, self.embedded
        starts = {
            "teacher": self.random(c.teacher_hidden, plain, 3),
            "alone": self.random(c.student_hidden, plain, 4),
            "kernel_teacher": self.random(c.teacher_hidden, embedded, 5),
        }
        for name, start in starts.items():  # before anything is trained
            self.require_stable(name, start, embedded if name == "kernel_teacher" else plain, 0.0)
        teacher = self.train("teacher", starts["teacher"], plain)
        final, early = teacher.last.units(self.units), teacher.early.units(self.units)
        fresh = Network(final.signs, starts["alone"].train, starts["alone"].test)
        self.train("alone", starts["alone"], plain)
        taught = self.train("taught", final, plain, final, c.weight)
        self.train("lottery", final, plain)
        self.train("pure", final, plain, final, math.inf)
        imperfect = self.train("imperfect", early, plain, early, c.weight)
        self.train("fresh", fresh, plain, final, c.weight)
        kernel_teacher = self.train("kernel_teacher", starts["kernel_teacher"], embedded)
        kernel_final = kernel_teacher.last.units(self.units)
        kernel_student = self.train("kernel_student", kernel_final, embedded, kernel_final, c.weight)
        raw = [(network, plain) for network in (teacher.last, teacher.early, taught.last, imperfect.last)]
        learnt = [(network, embedded) for network in (kernel_teacher.last, kernel_student.last)]
        self.desk.tell(1.0, "done")
        for place, (width, share) in enumerate(
            zip(self.embedding.widths, self.embedding.weights, strict=True), start=1
        ):
            self.facts += [("embedding", f"width {place}", width), ("embedding", f"weight {place}", share)]
        return {
            "losses": pd.concat(self.losses, ignore_index=True),
            "overlap": self.overlap_table(dict(zip(MEASURED, [*raw, *learnt], strict=True))),
            "facts": pd.DataFrame(self.facts, columns=["network", "quantity", "value"]),
        }

    def random(self, hidden: int, space: _Space, place: int) -> Network:
        """A network at its random start."""
        return Network.random(hidden, self.config.spread, space.train, space.test, self.stream(place))

    def train(
        self,
        name: str,
        start: Network,
        space: _Space,
        teacher: Network | None = None,
        weight: float = 0.0,
    ) -> _Trained:
        """Train a network, or take it from the desk; its losses and facts join the tables."""
        self.desk.tell(self.done / self.work, NETWORKS[name])
        found = self.desk.once(name, lambda: self.descent(name, start, space, teacher, weight))
        for split in SPLITS:
            self.losses.append(
                pd.DataFrame(
                    {
                        "network": name,
                        "iteration": self.record,
                        "split": split,
                        "loss": found[f"{split}_loss"],
                    }
                )
            )
        self.facts.append((name, "rate", self.rate))
        self.facts.append((name, "moved", float(found["moved"][-1])))
        if not math.isinf(weight):
            self.facts.append((name, "largest stable rate at the start", float(found["stable_rate"][0])))
        self.done += len(start.signs)
        last, early = (
            Network(start.signs, *(found[f"{when}_{split}"].astype(space.gram.dtype) for split in SPLITS))
            for when in ("last", "early")
        )
        return _Trained(last, early)

    def descent(
        self, name: str, start: Network, space: _Space, teacher: Network | None, weight: float
    ) -> Arrays:
        """The training itself, as arrays that the desk can keep."""
        c = self.config
        stable = self.require_stable(name, start, space, weight)
        features = teacher.features(self.activation) if teacher else None
        try:
            done = descend(
                start,
                space.gram,
                space.gram_test,
                self.y,
                self.activation,
                self.rate,
                self.record,
                features=features,
                weight=weight,
                keep=(c.early,),
            )
        except FloatingPointError as error:
            raise self.too_fast(name, f"{error}", stable) from None
        if done.objective[-1] > 1.01 * done.objective[0]:
            raise self.too_fast(name, "the descent did not lower what it minimises", stable)
        arrays: dict[str, Array] = {
            "train_loss": self.loss(done.train, self.y),
            "test_loss": self.loss(done.test, self.y_test),
            "moved": done.moved,
            "stable_rate": np.array([stable]),
        }
        for when, network in (("last", done.last), ("early", done.kept[c.early])):
            arrays[f"{when}_train"], arrays[f"{when}_test"] = network.train, network.test
        return {key: array.astype(np.float64) for key, array in arrays.items()}

    def loss(self, outputs: Array, targets: Array) -> Floats:
        """The loss shown, at every recorded iteration."""
        squares = (outputs.astype(np.float64) - targets) ** 2
        shown: Floats = squares.mean(1) if self.config.loss == "mean" else squares.sum(1)
        return shown

    def require_stable(self, name: str, start: Network, space: _Space, weight: float) -> float:
        """The largest stable rate at the start, which the rate must be below.

        For lambda = infinity nothing moves, whatever the rate: the start has the features already.
        """
        if math.isinf(weight):
            return math.inf
        largest = curvature(start, space.gram, self.activation, weight)
        stable = 2 / largest if largest > 0 else math.inf
        if self.rate >= stable:
            raise self.too_fast(name, "a step overshoots", stable)
        return stable

    def too_fast(self, name: str, what: str, stable: float) -> ConfigError:
        """The error for a rate that is too large for a network."""
        c = self.config
        if c.rate_images:
            below = f"{stable * c.n_train / c.rate_images:.3g} (of 'rate_images' = {c.rate_images} images)"
        else:
            below = f"{stable:.3g}, or fewer images"
        return ConfigError(
            f"the rate is too large for the {NETWORKS[name]}: {what}. It is {self.rate:.3g} on {c.n_train} "
            f"images; the largest stable rate at the start is {stable:.3g}",
            where="rate",
            fix=f"use a rate well below {below}",
        )

    def overlap_table(self, measured: Mapping[str, tuple[Network, _Space]]) -> pd.DataFrame:
        """The overlap parameter of each hidden unit with the spectrum of the images that it sees."""
        c = self.config
        counts = sorted({c.eigenvectors, *(count for count in EIGENVECTORS if count <= c.n_train)})
        vectors = {
            id(space): top_eigenvectors(expected_gram(space.gram, c.activation, c.spread), counts[-1])
            for space in (self.plain, self.embedded)
        }
        parts = []
        for name, (network, space) in measured.items():
            features = network.features(self.activation)
            for count in counts:
                values = overlaps(features, vectors[id(space)][:, :count], c.overlap, self.y)
                columns = {"network": name, "eigenvectors": count, "unit": range(len(values))}
                parts.append(pd.DataFrame({**columns, "overlap": values}))
        return pd.concat(parts, ignore_index=True)


class _Seen:
    """A finding whose tables are looked up by network."""

    def __init__(self, finding: Finding) -> None:
        if not isinstance(finding.bench.config, KernelRegime.Config):
            raise DataError(f"'{finding.label}' is no run of the bench kernel_regime", where=finding.label)
        self.config = finding.bench.config
        losses = finding.tables["losses"]
        wide = losses.pivot(index="iteration", columns=["network", "split"], values="loss").sort_index()
        self.iterations = wide.index.to_numpy(dtype=np.float64)
        self.curves: dict[tuple[str, str], Floats] = {
            (network, split): wide[network, split].to_numpy(dtype=np.float64)
            for network in NETWORKS
            for split in SPLITS
        }
        units = finding.tables["overlap"]
        self.counts = sorted({int(count) for count in units["eigenvectors"].unique()})
        self.overlaps: dict[tuple[str, int], Floats] = {}
        for network in MEASURED:
            for count in self.counts:
                rows = units[(units["network"] == network) & (units["eigenvectors"] == count)]
                self.overlaps[network, count] = rows["overlap"].to_numpy(dtype=np.float64)
        facts = finding.tables["facts"]
        moved = facts[facts["quantity"] == "moved"]
        self.moved = dict(zip(moved["network"], moved["value"].astype(float), strict=True))

    def overlap(self, network: str, eigenvectors: int | None = None) -> Floats:
        """The overlap of each unit of a network that is not 0 on every image.

        With the number of eigenvectors of the settings, or another.
        """
        values = self.overlaps[network, eigenvectors or self.config.eigenvectors]
        return values[np.isfinite(values)]

    def dead(self, network: str) -> int:
        """Units of a network that are 0 on every training image."""
        return int(np.isnan(self.overlaps[network, self.config.eigenvectors]).sum())

    def value(self, claim: Claim, network: str, place: int = -1) -> float:
        """What a claim compares, of one network: a loss, iterations or an overlap.

        `place` is that of the recorded iteration, or of the number of eigenvectors if not negative.
        """
        if claim.measure == "overlap":
            values = self.overlap(network, self.counts[place] if place >= 0 else None)
            return float(values.mean()) if len(values) else 0.0
        curve = self.curves[network, claim.split]
        if claim.measure == "final":
            return float(curve[place])
        if claim.measure == "half":
            return self.first(network, claim.split, curve[0] / 2)
        level = max(self.curves[other, claim.split].min() for other in (claim.subject, *claim.rivals))
        return self.first(network, claim.split, float(level))

    def first(self, network: str, split: str, level: float) -> float:
        """The iteration at which a loss first is at a level; the last one where it never is.

        Between recorded iterations r the loss is taken to be linear in log(1 + r).
        """
        curve, times = self.curves[network, split], np.log1p(self.iterations)
        reached = np.flatnonzero(curve <= level)
        if not len(reached):
            return float(self.iterations[-1])
        after = int(reached[0])
        if after == 0:
            return 0.0
        above, below = curve[after - 1], curve[after]
        share = (above - level) / (above - below)
        return float(np.expm1(times[after - 1] + share * (times[after] - times[after - 1])))

    def margin(self, claim: Claim, place: int = -1) -> float:
        """How far a claim holds: the log of the ratio by which its subject is better than its best rival."""
        values = [self.value(claim, network, place) for network in (claim.subject, *claim.rivals)]
        if claim.measure == "overlap":
            return math.log(max(values[0], NO_OVERLAP) / max(*values[1:], NO_OVERLAP))
        more = 1.0 if claim.measure in ("speed", "half") else 1e-12  # iterations count from 1
        return math.log((min(values[1:]) + more) / (values[0] + more))

    def at(self, iteration: int) -> int:
        """The place of a recorded iteration."""
        return int(np.searchsorted(self.iterations, iteration))


Variants = Mapping[str, list[_Seen]]


def _variants(found: Sequence[Finding]) -> dict[str, list[_Seen]]:
    """The findings of each variant, in the study's order; labels name the data sets if there are several."""
    if not found:
        raise DataError("there are no runs to show", where="kernel_regime", fix="run the study first")
    several = len({finding.dataset for finding in found}) > 1
    variants: dict[str, list[_Seen]] = {}
    for finding in found:
        label = f"{finding.label}, {finding.dataset}" if several else finding.label
        variants.setdefault(label, []).append(_Seen(finding))
    return variants


def _decide(margins: Floats) -> Literal["holds", "fails", "undecided"]:
    """Whether the margins of the seeds are above 0, below 0, or neither.

    Above: the 95 % interval of their mean (Student's t) lies above 0, the mean is more than a tie, and nine
    of ten seeds are above 0; below alike. With fewer than five seeds it stays open.
    """
    count = len(margins)
    if count < MIN_SEEDS:
        return "undecided"
    mean = float(margins.mean())
    reach = float(stdtrit(count - 1, 0.975) * margins.std(ddof=1) / math.sqrt(count))
    for sign in (1, -1):
        if sign * mean > max(reach, math.log1p(TIE)) and np.mean(sign * margins > 0) >= AGREE:
            return "holds" if sign > 0 else "fails"
    return "undecided"


UNITS = {
    "final": "loss at the end",
    "speed": "iterations to the lowest loss that each reaches",
    "half": "iterations to half of its own initial loss",
    "overlap": "mean overlap",
}


def _judge(claim: Claim, label: str, seen: list[_Seen]) -> Verdict:
    margins = np.array([one.margin(claim) for one in seen])
    networks = (claim.subject, *claim.rivals)
    means = [float(np.mean([one.value(claim, network) for one in seen])) for network in networks]
    shown = [f"{mean:,.0f}" if claim.measure in ("speed", "half") else f"{mean:.4g}" for mean in means]
    ratios = np.exp(margins)
    parts = [
        f"{UNITS[claim.measure]}: "
        + ", ".join(f"{_called(n, seen[0])} {value}" for n, value in zip(networks, shown, strict=True)),
        f"factor in its favour {np.exp(margins.mean()):.3g} ({ratios.min():.3g} to {ratios.max():.3g})",
        f"{int((margins > 0).sum())} of {len(seen)} seeds agree",
    ]
    if claim.measure == "final":
        if claim.split == "test":
            lowest = [np.mean([one.curves[network, "test"].min() for one in seen]) for network in networks]
            parts.append(f"lowest on the way: {', '.join(f'{value:.4g}' for value in lowest)}")
        earlier = [
            f"{int(sum(one.margin(claim, one.at(step)) > 0 for one in seen))} at iteration {step:,}"
            for step in seen[0].config.checkpoints
        ]
        if earlier:
            parts.append(f"seeds that agree earlier: {', '.join(earlier)}")
    elif claim.measure == "overlap":
        others = [
            f"{sum(one.margin(claim, place) > 0 for one in seen)} with {count}"
            for place, count in enumerate(seen[0].counts)
            if count != seen[0].config.eigenvectors
        ]
        parts.append(f"seeds that agree with other numbers of eigenvectors: {', '.join(others)}")
        dead = [float(np.mean([one.dead(network) for one in seen])) for network in networks]
        if any(dead):
            told = ", ".join(
                f"{_called(n, seen[0])} {count:g}" for n, count in zip(networks, dead, strict=True)
            )
            parts.append(f"without units that are 0 on every image: {told} a seed")
    elif claim.measure == "half":
        never = sum(
            one.curves[claim.subject, "train"].min() > one.curves[claim.subject, "train"][0] / 2
            for one in seen
        )
        if never:
            parts.append(f"{never} seeds never get there and count with the last iteration")
    return Verdict(claim.text, claim.source, _decide(margins), "; ".join(parts), label)


def _judge_constant(label: str, seen: list[_Seen]) -> Verdict:
    """Whether lambda = infinity leaves weights and loss as they are: to the last digit, in every seed."""
    changes = [max(float(np.ptp(one.curves["pure", split])) for split in SPLITS) for one in seen]
    moved, other = max(one.moved["pure"] for one in seen), np.mean([one.moved["lottery"] for one in seen])
    level = np.mean([one.curves["pure", "train"][-1] for one in seen])
    constant = max(*changes, moved) == 0
    verdict: Literal["holds", "fails", "undecided"] = "holds" if constant else "fails"
    return Verdict(
        "λ = ∞ from the teacher's units leaves weights and loss as they are",
        "Section 4.1, Figure 2",
        verdict if len(seen) >= MIN_SEEDS else "undecided",
        f"largest change of a loss {max(changes):.2g} (at {level:.4g}), largest distance moved by the "
        f"weights {moved:.2g} (with λ = 0: {other:.3g}); {len(seen)} seeds",
        label,
    )


def _called(network: str, one: _Seen) -> str:
    if network == EARLY:
        return f"teacher at iteration {one.config.early:,}"
    return NETWORKS[network]


LOSS_LINES: Mapping[str, Mapping[str, str]] = {
    "figure1": {"alone": "student without teacher", "taught": "student with teacher", "teacher": "teacher"},
    "figure2": {
        "lottery": "student, λ = 0",
        "taught": "student, λ = {weight:g}",
        "pure": "student, λ = ∞",
        "teacher": "teacher",
    },
    "figure3": {
        "taught": "trained teacher, its units as start",
        "imperfect": "early teacher, its units as start",
        "fresh": "trained teacher, random start",
    },
    "figure4": {
        "teacher": "teacher",
        "kernel_teacher": "teacher, kernel embedding",
        "taught": "student",
        "kernel_student": "student, kernel embedding",
    },
}
OVERLAP_GROUPS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "figure5": {
        "teachers": {EARLY: "partially trained", "teacher": "fully trained"},
        "students": {"imperfect": "of the early teacher", "taught": "of the trained teacher"},
    },
    "figure6": {
        "teachers": {"teacher": "without kernel", "kernel_teacher": "with kernel"},
        "students": {"taught": "without kernel", "kernel_student": "with kernel"},
    },
}


def _loss_panels(name: str, label: str, seen: list[_Seen]) -> Iterable[Panel]:
    config = seen[0].config
    measure = "mean squared error" if config.loss == "mean" else "sum of squared errors"
    later = seen[0].iterations >= 1  # a logarithmic axis has no 0
    for split, title in SPLITS.items():
        lines = tuple(
            Line.over_seeds(
                text.format(weight=config.weight),
                seen[0].iterations[later],
                [one.curves[network, split][later] for one in seen],
            )
            for network, text in LOSS_LINES[name].items()
        )
        ylabel = f"{title} loss ({measure})"
        yield Panel(f"{label}: {title} loss", "iteration", ylabel, lines, "log", _scale(lines))


def _scale(lines: Iterable[Line]) -> Literal["linear", "log"]:
    """A logarithmic axis where lines span more than a factor of 5; a narrow one has too few labels."""
    values = np.concatenate([line.y for line in lines])
    return "log" if values.min() > 0 and values.max() > 5 * values.min() else "linear"


def _overlap_panels(name: str, label: str, seen: list[_Seen]) -> Iterable[Panel]:
    for title, networks in OVERLAP_GROUPS[name].items():
        values = {n: np.concatenate([one.overlap(n) for one in seen]) for n in networks}
        both = np.concatenate(list(values.values()))
        low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 0.0)
        room = 1e-3 if high == low else 0.0
        edges = np.linspace(low - room, high + room, BINS + 1)
        lines = tuple(
            Line.of(
                text,
                (edges[:-1] + edges[1:]) / 2,
                np.histogram(values[network], edges)[0] / max(len(values[network]), 1),
                kind="bars",
            )
            for network, text in networks.items()
        )
        yield Panel(f"{label}: {title}", "overlap parameter", "share of hidden units", lines)


COMPARED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("student without / with teacher", "taught", ("alone",)),
    ("better student / teacher", "teacher", ("taught", "alone")),
    ("better of λ = 0 and ∞ / finite λ", "taught", ("lottery", "pure")),
    ("best other student / trained teacher and start", "taught", ("imperfect", "fresh")),
    ("teacher without / with kernel", "kernel_teacher", ("teacher",)),
    ("student without / with kernel", "kernel_student", ("taught",)),
)


def _dependence(title: str, variants: Variants) -> Plot:
    """Ratios of losses over iterations, a line per variant; and at the end, over numbers of images."""
    panels = [
        _over_iterations(text, Claim("", "", "final", subject, rivals, split), variants)
        for text, subject, rivals in COMPARED
        for split in SPLITS
    ]
    panels += [_over_eigenvectors(claim, variants) for claim in CLAIMS if claim.measure == "overlap"]
    panels += _over_images(variants)
    caption = [
        "Loss of the best rival over that of the network said to be better (of overlaps, the other way "
        "round): above 1 the statement holds.",
        "Lines are means over seeds (of logarithms); bands, where shown, reach from the least seed to the "
        "greatest.",
        _counted(variants),
    ]
    return Plot("dependence", title, tuple(panels), columns=3, caption=" ".join(caption))


def _over_iterations(text: str, claim: Claim, variants: Variants) -> Panel:
    places = {label: np.flatnonzero(seen[0].iterations >= 1) for label, seen in variants.items()}
    values = {label: seen[0].iterations[places[label]] for label, seen in variants.items()}
    title = f"{text}: {SPLITS[claim.split]} loss"
    return _ratios(title, "iteration", "ratio of losses", claim, variants, places, values)


def _over_eigenvectors(claim: Claim, variants: Variants) -> Panel:
    values = {label: np.array(seen[0].counts) for label, seen in variants.items()}
    places = {label: np.arange(len(counts)) for label, counts in values.items()}
    one = next(iter(variants.values()))[0]
    title = f"overlap: {_called(claim.subject, one)} / {_called(claim.rivals[0], one)}"
    return _ratios(title, "eigenvectors", "ratio of mean overlaps", claim, variants, places, values)


def _ratios(
    title: str,
    xlabel: str,
    ylabel: str,
    claim: Claim,
    variants: Variants,
    places: Mapping[str, NDArray[np.intp]],
    values: Mapping[str, NDArray[np.floating] | NDArray[np.integer]],
) -> Panel:
    """How far a claim holds at several places of each variant, which stand for the values on the axis."""
    lines = []
    for label, seen in variants.items():
        logs = [[one.margin(claim, place) for place in places[label].tolist()] for one in seen]
        lines.append(Line.of(label, values[label], np.exp(np.mean(logs, axis=0))))
    ends = [min(line.x[0] for line in lines), max(line.x[-1] for line in lines)]
    lines.append(Line.of("equal", ends, [1.0, 1.0], role="limit"))
    return Panel(title, xlabel, ylabel, tuple(lines), "log", _scale(lines))


def _over_images(variants: Variants) -> list[Panel]:
    """For each activation with several numbers of images: the ratios at the end, a line per comparison."""
    panels = []
    for activation in get_args(ActivationName):
        groups = [seen for seen in variants.values() if seen[0].config.activation == activation]
        groups = sorted(_comparable(groups), key=lambda seen: seen[0].config.n_train)
        if len(groups) < 2:
            continue
        images = [seen[0].config.n_train for seen in groups]
        for split, name in SPLITS.items():
            lines = []
            for text, subject, rivals in COMPARED:
                claim = Claim("", "", "final", subject, rivals, split)
                ratios = [np.exp([one.margin(claim) for one in seen]) for seen in groups]
                middle = [float(np.exp(np.log(r).mean())) for r in ratios]
                low, high = [float(r.min()) for r in ratios], [float(r.max()) for r in ratios]
                lines.append(Line.of(text, images, middle, low, high))
            lines.append(Line.of("equal", [images[0], images[-1]], [1.0, 1.0], role="limit"))
            title = f"{activation}: {name} loss at the end"
            panels.append(
                Panel(title, "training images", "ratio of losses", tuple(lines), "log", _scale(lines))
            )
    return panels


def _comparable(groups: list[list[_Seen]]) -> list[list[_Seen]]:
    """The first group, and those that differ from it in the number of images and what follows from that."""

    def rest(seen: list[_Seen]) -> dict[str, object]:
        config = seen[0].config
        fixed = config.model_dump(exclude={"n_train", "n_test", "rank"})
        return {**fixed, "share of landmarks": config.rank / config.n_train}

    return [seen for seen in groups if rest(seen) == rest(groups[0])]


def _counted(variants: Variants) -> str:
    counts = {label: len(seen) for label, seen in variants.items()}
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} seeds."
    return "Seeds: " + ", ".join(f"{label} {count}" for label, count in counts.items()) + "."


def _shared_settings(variants: Variants) -> str:
    """The settings that make the figure what it is; values of several variants stand beside each other."""

    def of(get: Callable[[KernelRegime.Config], object]) -> str:
        return " / ".join(dict.fromkeys(str(get(seen[0].config)) for seen in variants.values()))

    return (
        f"{of(lambda c: c.n_train)} training and {of(lambda c: c.n_test)} test images, "
        f"{of(lambda c: c.teacher_hidden)} and {of(lambda c: c.student_hidden)} hidden units, "
        f"λ = {of(lambda c: c.weight)}, {of(lambda c: f'{c.iterations:,}')} iterations at the rate "
        f"{of(lambda c: f'{KernelRegime(c).rate:.2g}')}, early teacher at iteration {of(lambda c: c.early)}, "
        f"{of(lambda c: c.kernels)} kernels with {of(lambda c: c.rank)} landmarks, overlap with "
        f"{of(lambda c: c.eigenvectors)} eigenvectors: assumptions where the paper is silent."
    )
