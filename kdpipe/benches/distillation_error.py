"""The final error of students made of randomly chosen teacher units: size, lambda, lottery, two stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdpipe.api import Bench, Desk, Finding, Images, Line, Panel, Paper, Plot, Settings, Verdict, hp
from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.judging import Judgement, given, interval, rows_at, side, together, variants
from kdpipe.theory.linearised import (
    System,
    chained,
    expected_deviation,
    selection_bound,
    stages,
    train,
    two_classes,
)
from kdpipe.theory.two_layer import ACTIVATIONS, Network

Array = NDArray[np.float64]
Runs = Sequence[Finding]

MARGIN = 0.2  # of a slope of 1, and of a factor of 1
ZERO = 1e-3  # of the error before training: as good as none
CAPTIONS = {
    "error": (
        "Left: error of the linear system's limit (lines) and after training (crosses, which take the luck "
        "of the few choices trained out by the linear system's error for the same). Right: share of the "
        "error before training that is left, over all sizes; dashed is Theorem 2's factor."
    ),
    "two_stage": (
        "Ratio of the mean errors over random choices of units; the direct student has the same units. "
        "Crosses are trainings, the luck of the few choices trained taken out by the linear system's ratio "
        "for the same. Dashed: (1 - α)(1 - β) / (1 - αβ). Grey: both choices' errors added, the first passed "
        "on in part."
    ),
}


class DistillationError(Bench):
    """Students of m out of m-bar teacher units, trained to the end: their error on the training images.

    Theorem 2 bounds it by a multiple of

        (1 - m / m-bar) (lambda / (1 + lambda))^2 sum_il a_l^2 / m-bar sigma^2(w_l . x_i)

    and says that at lambda = 0 nothing is left of it (Sec. 2.5.1). Section 7.4.1 concludes that a detour over
    an intermediate network has (1 - alpha)(1 - beta) of the error instead of 1 - alpha beta, with
    alpha = m / m_1 and beta = m_1 / m-bar. Each is measured twice: at the limit of the linear system, over
    many random choices, and by gradient descent, over a few of them.

    Scale: of `sum_k a_k phi_k / sqrt(m)` over a random choice the mean is m / sqrt(m m-bar) = q times the
    teacher's own output `sum_l a_l phi_l / sqrt(m-bar)`. The paper's teacher therefore has output weights
    q a_l / sqrt(m-bar); here it is the network of Eq. 1 trained on y / q, which is the same, and there is one
    teacher per m. In two stages the intermediate network learns y sqrt(m_1 / m), so that the teacher is the
    one of the direct student.

    Deviations: exactly m units are drawn without replacement, as the theorem says; its proof keeps each unit
    with probability m / m-bar. The direct student has the same units as the second stage, so that the two are
    compared in pairs. The learning rate is a share of the largest stable one instead of 2e-4. At lambda the
    training lasts 1 / (1 + lambda) as long, since the poles that matter are that much larger.

    Reference: Rahbar et al. 2020, sections 2.5, 2.5.1, 7.4 and 7.4.1.
    """

    name = "distillation_error"
    paper = Paper(
        "On the unreasonable effectiveness of knowledge distillation: analysis in the kernel regime",
        "A. Rahbar, A. Panahi, C. Bhattacharyya, D. Dubhashi, M. Haghir Chehreghani",
        "arXiv preprint",
        2020,
        "https://arxiv.org/abs/2003.13438",
    )
    needs_images = True
    plots = {
        "error": "Final error of the student against its size and against lambda",
        "two_stage": "Error of two-stage over direct distillation, by lambda",
    }

    class Config(Settings):
        """Data, networks and training."""

        images: int = hp(
            10, ge=4, doc="training images n, half of each class", source="assumption: not stated"
        )
        activation: Literal["relu", "softplus", "tanh", "erf"] = hp(
            "softplus", doc="sigma", source="assumption: not stated; Assumption 3 asks for a smooth one"
        )
        teacher: int = hp(100, ge=4, doc="hidden units m-bar of the teacher", source="Sec. 4")
        shares: tuple[float, ...] = hp(
            (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9),
            doc="units of the student over those of the teacher, m / m-bar, ascending",
            source="Sec. 4 (0.2); assumption: a grid around it",
        )
        weights: tuple[float, ...] = hp(
            (0.0, 0.01, 0.1, 1.0, 10.0),
            doc="lambda, ascending",
            source="Sec. 4.1 (0 and 0.01); assumption: a grid beyond",
        )
        student: int = hp(20, ge=1, doc="units m of the student after two stages", source="Sec. 4")
        middle: int = hp(
            50, ge=2, doc="units m_1 of the intermediate network", source="assumption: between m and m-bar"
        )
        spread: float = hp(
            1e-2, gt=0, doc="standard deviation k of a starting weight", source="Eq. 16, Sec. 4"
        )
        time: float = hp(
            700.0,
            gt=0,
            doc="length of a training at lambda = 0, learning rate times iterations",
            source="assumption: not stated; the teacher's error must be near zero",
        )
        step: float = hp(
            0.5,
            gt=0,
            le=1,
            doc="learning rate times a bound of the largest pole",
            source="assumption: Sec. 4's rate of 2e-4 takes hundreds of times as many iterations",
        )
        draws: int = hp(100, ge=2, doc="random choices of units", source="assumption: not stated")
        trained: int = hp(
            2, ge=1, doc="how many of these choices are also trained", source="assumption: not stated"
        )

    config: Config

    def run(self, seed: int, images: Images | None, desk: Desk) -> dict[str, pd.DataFrame]:
        """Train the teachers, choose students, and measure their errors.

        Raises:
            ConfigError: sizes, shares or lambdas make no sense together.
            DataError: there are no images, or too few.
        """
        c = self.config
        self._check()
        if images is None:
            raise DataError("distillation_error needs images", fix="name a data set in the study")
        data = two_classes(images.train, images.train_labels, c.images, np.random.default_rng([seed, 0]))
        parts: dict[str, list[pd.DataFrame]] = {"error": [], "stages": []}
        for number, units in enumerate(self.units):
            desk.tell(number / (len(c.shares) + 1), f"{units} of {c.teacher} units")
            parts["error"].append(
                pd.DataFrame(desk.once(f"units-{units}", partial(self._errors, seed, units, *data)))
            )
        desk.tell(1 - 1 / (len(c.shares) + 1), "two stages")
        parts["stages"].append(pd.DataFrame(desk.once("stages", partial(self._stages, seed, *data))))
        desk.tell(1.0, "done")
        counts = {"units": np.int64, "draw": np.int64}
        tables = {name: pd.concat(each, ignore_index=True) for name, each in parts.items()}
        return {
            name: table.astype({key: kind for key, kind in counts.items() if key in table})
            for name, table in tables.items()
        }

    @property
    def units(self) -> list[int]:
        """Units of the students."""
        return [round(share * self.config.teacher) for share in self.config.shares]

    def _check(self) -> None:
        c = self.config
        for name in ("shares", "weights"):
            values = getattr(c, name)
            if len(values) < 2 or list(values) != sorted(set(values)) or values[0] < 0:
                raise ConfigError(
                    f"{values} is no ascending list of two or more", where=name, fix="list them in order"
                )
        if self.units[0] < 1 or self.units[-1] >= c.teacher or len(set(self.units)) < len(self.units):
            raise ConfigError(
                f"students of {self.units} units cannot be told apart from each other or their teacher",
                where="shares",
                fix="choose shares between 0 and 1, further apart, or a wider teacher",
            )
        if not c.student < c.middle < c.teacher:
            raise ConfigError(
                f"two stages need {c.student} < {c.middle} < {c.teacher} units",
                where="student, middle, teacher",
                fix="let the sizes grow from student to teacher",
            )
        if c.trained > c.draws:
            raise ConfigError(
                f"{c.trained} of {c.draws} choices cannot be trained", where="trained", fix="raise draws"
            )

    def _teacher(
        self, units: int, pixels: Array, targets: Array, rng: np.random.Generator
    ) -> tuple[Network, Array]:
        """A teacher whose student of this many units has the mean y, and the Gram matrix."""
        c, sigma = self.config, ACTIVATIONS[self.config.activation]
        gram = pixels @ pixels.T
        start = Network.random(c.teacher, c.spread, pixels, pixels[:0], rng)
        system = System.of(start, gram, sigma, targets * np.sqrt(c.teacher / units))
        return train(system, start, sigma, c.time, c.step, 1).network, gram

    def _trained(self, system: System, network: Network) -> Network:
        """The network after gradient descent."""
        c, sigma = self.config, ACTIVATIONS[self.config.activation]
        return train(system, network, sigma, c.time / (1 + system.weight), c.step, 1).network

    def _errors(self, seed: int, units: int, pixels: Array, targets: Array) -> dict[str, Array]:
        """Errors of students of one size, over random choices and lambdas."""
        c, sigma = self.config, ACTIVATIONS[self.config.activation]
        rng = np.random.default_rng([seed, 1, units])
        teacher, gram = self._teacher(units, pixels, targets, rng)
        features, q = teacher.features(sigma), np.sqrt(units / c.teacher)
        fixed = {
            "units": units,
            "missing": 1 - units / c.teacher,
            "teacher_error": _square(q * teacher.outputs(sigma) - targets),
            "expected": expected_deviation(teacher.signs, features, units),
            "expected_proof": expected_deviation(teacher.signs, features, units, fixed=False),
        }
        rows = []
        for draw in range(c.draws):
            student = teacher.units(rng.choice(c.teacher, units, replace=False))
            for weight in c.weights:
                system = System.of(student, gram, sigma, targets, weight=weight)
                measured = {
                    "weight": weight,
                    "draw": draw,
                    "start": _square(system.taught - targets),
                    "theorem": system.final_error**2,
                    "limit": _square(system.limit - targets),
                    "trained": np.nan,
                    "bound": selection_bound(teacher.signs, features, units, weight),
                    "bound_printed": selection_bound(teacher.signs, features, units, weight, printed=True),
                }
                if draw < c.trained:
                    measured["trained"] = _square(self._trained(system, student).outputs(sigma) - targets)
                rows.append(fixed | measured)
        return _columns(rows)

    def _stages(self, seed: int, pixels: Array, targets: Array) -> dict[str, Array]:
        """Errors of direct and of two-stage distillation, over random choices and lambdas."""
        c, sigma = self.config, ACTIVATIONS[self.config.activation]
        rng = np.random.default_rng([seed, 2])
        teacher, gram = self._teacher(c.student, pixels, targets, rng)
        aim = targets * np.sqrt(c.middle / c.student)
        rows = []
        for draw in range(c.draws):
            middle = teacher.units(rng.choice(c.teacher, c.middle, replace=False))
            chosen = rng.choice(c.middle, c.student, replace=False)
            direct = middle.units(chosen)
            for weight in c.weights:
                first = System.of(middle, gram, sigma, aim, weight=weight)
                learnt = first.limit_hidden[:, chosen]
                second = System(
                    direct.signs,
                    sigma.slope(direct.train),
                    gram,
                    learnt,
                    targets,
                    learnt,
                    weight,
                    sigma.smooth,
                )
                alone = System.of(direct, gram, sigma, targets, weight=weight)
                measured = {
                    "weight": weight,
                    "draw": draw,
                    "direct": _square(alone.limit - targets),
                    "two_stage": _square(second.limit - targets),
                    "direct_trained": np.nan,
                    "two_stage_trained": np.nan,
                }
                if draw < c.trained:
                    measured["direct_trained"] = _square(
                        self._trained(alone, direct).outputs(sigma) - targets
                    )
                    student = self._trained(first, middle).units(chosen)
                    system = System.of(student, gram, sigma, targets, weight=weight)
                    measured["two_stage_trained"] = _square(
                        self._trained(system, student).outputs(sigma) - targets
                    )
                rows.append(measured)
        return _columns(rows)

    def draw(self, name: str, found: Sequence[Finding]) -> Plot:
        """One of the figures; one panel or two per variant."""
        panels: dict[str, Callable[[DistillationError, str, Runs], list[Panel]]] = {
            "error": DistillationError._draw_error,
            "two_stage": DistillationError._draw_stages,
        }
        drawn = [
            panels[name](cast(DistillationError, runs[0].bench), label, runs)
            for label, runs in variants(found)
        ]
        return Plot(
            name,
            self.plots[name],
            tuple(panel for each in drawn for panel in each),
            columns=2 if len(drawn) > 1 else len(drawn[0]),
            caption=f"{CAPTIONS[name]} {_assumed(found)}",
        )

    def _draw_error(self, label: str, runs: Runs) -> list[Panel]:
        n, weights = self.config.images, self._positive
        means = [_means(run.tables["error"]) for run in runs]
        missing = rows_at(means[0], weight=weights[0])["missing"].to_numpy()
        lines, crosses = [], []
        for step, weight in enumerate(weights):
            chosen = [rows_at(each, weight=weight) for each in means]
            limits = [each["limit"] / n for each in chosen]
            lines.append(Line.over_seeds(f"λ = {weight:g}", missing, limits, step=step))
            crosses.append(np.mean([_trained(each) / n for each in chosen], 0))
        guide = lines[-1].y[0] / missing[0] * missing
        crossed = np.concatenate(crosses)
        lines.append(Line.of("trained", np.tile(missing, len(weights)), crossed, kind="points", role="data"))
        lines.append(Line.of("proportional to 1 - m / m̄", missing, guide, role="limit"))
        trained = [[_left(rows_at(m, weight=weight), trained=True) for weight in weights] for m in means]
        linear = [[_left(rows_at(m, weight=weight)) for weight in weights] for m in means]
        left = (
            Line.over_seeds("trained", weights, trained, kind="points"),
            Line.of("linear system", weights, np.mean(linear, 0), role="truth"),
            Line.of("(λ / (1 + λ))²", weights, [_factor(weight) for weight in weights], role="limit"),
        )
        return [
            Panel(
                f"{label}: size",
                "share of units left out, 1 - m / m̄",
                "final training error (mean squared)",
                tuple(lines),
                xscale="log",
                yscale="log",
            ),
            Panel(
                f"{label}: lambda",
                "λ",
                "final error / error before training",
                left,
                xscale="log",
                yscale="log",
            ),
        ]

    def _draw_stages(self, label: str, runs: Runs) -> list[Panel]:
        c, weights = self.config, self._positive
        product, added = self._predicted()
        linear = [[_ratio(run, weight) for weight in weights] for run in runs]
        trained = [[_ratio(run, weight, trained=True) for weight in weights] for run in runs]
        lines = (
            Line.over_seeds("linear system", weights, linear),
            Line.of("trained", weights, np.mean(trained, 0), kind="points", role="data"),
            Line.of("factors multiplied (Sec. 7.4.1)", weights, [product] * len(weights), role="limit"),
            Line.of("errors added", weights, [added[weight] for weight in weights], role="truth"),
        )
        title = f"{label}: {c.teacher} to {c.middle} to {c.student} units"
        return [Panel(title, "λ", "error of two-stage / of direct", lines, xscale="log")]

    @property
    def _positive(self) -> list[float]:
        return [weight for weight in self.config.weights if weight]

    def verdicts(self, name: str, found: Sequence[Finding]) -> list[Verdict]:
        """What the runs say, one verdict per variant and statement."""
        kind = DistillationError
        judges: dict[str, tuple[Callable[[DistillationError, str, Runs], Verdict], ...]] = {
            "error": (kind._size, kind._lambda, kind._ticket, kind._bound),
            "two_stage": (kind._better, kind._product),
        }
        return [
            judge(cast(DistillationError, runs[0].bench), label, runs)
            for label, runs in variants(found)
            for judge in judges[name]
        ]

    def _size(self, label: str, runs: Runs) -> Verdict:
        """The error by size."""
        weight = self.config.weights[-1]
        slopes, fits, shapes, spread = [], [], [], []
        for run in runs:
            table = rows_at(_means(run.tables["error"]), weight=weight)
            x = np.log(table["missing"])
            slopes.append(float(np.polyfit(x, np.log(table["limit"]), 1)[0]))
            spread.append(float(np.polyfit(x, np.log(table["expected"] / table["missing"]), 1)[0]))
            fits.append(float(np.corrcoef(table["missing"], table["limit"])[0, 1]))
            shapes.append(float((table["start"] / table["expected"]).mean()))
        middle, low, high = interval(slopes)
        return Verdict(
            "the final error is proportional to 1 - m / m-bar",
            "Theorem 2, Sec. 2.5",
            _within(low, high, 1.0, MARGIN),
            f"log-log slope {middle:.2f} [{low:.2f}, {high:.2f}], correlation {np.mean(fits):.2f}, at λ = "
            f"{weight:g}; the spread of the teacher's units makes up {np.mean(spread):.2f} of the slope, "
            "since every size has a teacher of its own that learns y / q; the error before training is "
            f"{np.mean(shapes):.2f} of the variance of the choice ({len(runs)} seeds, 95 % t-interval, near "
            f"is 1 ± {MARGIN:g})",
            label,
        )

    def _lambda(self, label: str, runs: Runs) -> Verdict:
        """The error by lambda."""
        says, numbers = [], []
        for weight in self._positive:
            left = [_left(rows_at(_means(run.tables["error"]), weight=weight), trained=True) for run in runs]
            middle, low, high = np.exp(interval(np.log(left) - np.log(_factor(weight))))
            linear = [_left(rows_at(_means(run.tables["error"]), weight=weight)) for run in runs]
            predicted = np.exp(np.mean(np.log(linear))) / _factor(weight)
            says.append(_within(low, high, 1.0, MARGIN))
            numbers.append(
                f"λ = {weight:g}: {middle:.2f} [{low:.2f}, {high:.2f}], linear system {predicted:.2f}"
            )
        return Verdict(
            "training leaves (lambda / (1 + lambda))^2 of the error",
            "Theorems 1 and 2",
            together(says),
            f"error after training over error before, divided by that factor: {'; '.join(numbers)} (all "
            f"sizes, geometric mean over {len(runs)} seeds, 95 % t-interval of its logarithm, near is 1 ± "
            f"{MARGIN:g})",
            label,
        )

    def _ticket(self, label: str, runs: Runs) -> Verdict:
        """What lambda = 0 leaves."""
        claim = "at lambda = 0, retraining randomly chosen units of the teacher leaves no training error"
        tables = [rows_at(run.tables["error"], weight=0.0) for run in runs]
        if not all(map(len, tables)):
            return Verdict(claim, "Sec. 2.5.1", "undecided", "the study has no lambda of 0", label)
        trained = [table[table["trained"].notna()] for table in tables]
        left = [(table["trained"] / table["start"]).to_numpy() for table in trained]
        missed = [table["units"][each > ZERO] for table, each in zip(trained, left, strict=True)]
        every = np.concatenate(left)
        stuck = np.concatenate([table["limit"] > ZERO * table["start"] for table in tables])
        widest = max((int(each.max()) for each in missed if len(each)), default=0)
        among = f" (students of up to {widest} units)" if widest else ""
        return Verdict(
            claim,
            "Sec. 2.5.1",
            side(bool((every <= ZERO).all()), all(map(len, missed))),
            f"{(every > ZERO).sum()} of {len(every)} trained students keep more than {ZERO:g} of their "
            f"error{among}; median {np.median(every):.1e}; the linear system leaves {stuck.sum()} of all "
            f"{len(stuck)} choices stuck, with an image that no unit reaches ({len(runs)} seeds; holds if no "
            "trained student is left, fails if some are in every seed)",
            label,
        )

    def _bound(self, label: str, runs: Runs) -> Verdict:
        """The constant of Eq. 6, with and without q^2.

        The brackets hold |phi_l|^2, common part included. A draw of exactly m units feels their spread alone;
        where that is the smaller part the brackets say little about the error, and q^2 cannot be told.
        """
        spreads: dict[str, list[float]] = {"bound": [], "bound_printed": []}
        largest, felt = [], []
        for run in runs:
            table = rows_at(_means(run.tables["error"]), weight=self.config.weights[-1])
            for kind, values in spreads.items():
                constant = table["limit"] / table[kind]
                values.append(float(constant.max() / constant.min()))
            largest.append(float((table["limit"] / table["bound"]).max()))
            felt.append(float((table["expected"] / table["expected_proof"]).mean()))
        with_q, without = (np.array(spreads[kind]) for kind in ("bound_printed", "bound"))
        clear = min(felt) > 0.5
        return Verdict(
            "the error follows Eq. 6 with its factor q^2 = m / m-bar, by one constant C for all sizes",
            "Theorem 2, Eq. 6 against Sec. 7.4",
            side(clear and bool((with_q <= without).all()), clear and bool((with_q > without).all())),
            f"the C that makes Eq. 6 exact varies {with_q.mean():.1f}-fold over the sizes with q^2, "
            f"{without.mean():.1f}-fold without (the proof gives none); without it C is at most "
            f"{max(largest):.2g}; {100 * np.mean(felt):.0f} % of the brackets is spread that a draw of "
            f"exactly m units feels ({len(runs)} seeds, mean errors; undecided where it is not most of them)",
            label,
        )

    def _better(self, label: str, runs: Runs) -> Verdict:
        """Two stages against one."""
        says, numbers = [], []
        for weight in self._positive:
            middle, low, high = interval([_ratio(run, weight) for run in runs])
            trained = np.mean([_ratio(run, weight, trained=True) for run in runs])
            says.append(side(bool(high < 1 and trained < 1), bool(low > 1 and trained > 1)))
            numbers.append(f"λ = {weight:g}: {middle:.2f} [{low:.2f}, {high:.2f}], trained {trained:.2f}")
        return Verdict(
            "two-stage distillation ends with a smaller error than direct distillation",
            "Sec. 7.4.1",
            together(says),
            f"error of two-stage over direct: {'; '.join(numbers)} ({len(runs)} seeds, 95 % t-interval of "
            "the linear system; holds if that and the mean over trained students are below 1)",
            label,
        )

    def _product(self, label: str, runs: Runs) -> Verdict:
        """By how much."""
        product, added = self._predicted()
        says, numbers = [], []
        for weight in self._positive:
            middle, low, high = interval([_ratio(run, weight) for run in runs])
            says.append(_within(low, high, product, MARGIN * product))
            numbers.append(f"λ = {weight:g}: {middle:.2f} [{low:.2f}, {high:.2f}], added {added[weight]:.2f}")
        return Verdict(
            "two stages have (1 - alpha)(1 - beta) of the error where one has 1 - alpha beta",
            "Sec. 7.4.1",
            together(says),
            f"claimed ratio {product:.2f}; measured {'; '.join(numbers)}; added is ((1 - α) + α (1 - β) (λ / "
            f"(1 + λ))²) / (1 - αβ) ({len(runs)} seeds, 95 % t-interval, near is the claim ± "
            f"{100 * MARGIN:g} %)",
            label,
        )

    def _predicted(self) -> tuple[float, dict[float, float]]:
        """The ratio of two-stage and direct error: Sec. 7.4.1's, and that of errors added, by lambda."""
        alpha, beta = self.config.student / self.config.middle, self.config.middle / self.config.teacher
        two, one = stages(alpha, beta)
        return two / one, {weight: chained(alpha, beta, weight) / one for weight in self.config.weights}


def _assumed(found: Sequence[Finding]) -> str:
    """What holds for every panel."""
    seeds = max(len(runs) for _, runs in variants(found))
    bands = "; bands from least to greatest" if seeds > 1 else ""
    return (
        f"{seeds} seed(s){bands}; {given(found, 'draws')} choices each, {given(found, 'trained')} of "
        f"them trained. {given(found, 'images')} images, teacher of {given(found, 'teacher')} units, "
        f"weights of spread {given(found, 'spread')}. Assumed: number of images, activation, learning "
        "rate, sizes other than 20 of 100 units, lambdas other than 0 and 0.01."
    )


def _means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over choices; `paired` is the linear system's error for those that were trained."""
    paired = table["limit"].where(table["trained"].notna())
    return table.assign(paired=paired).groupby(["weight", "units"], as_index=False).mean()


def _trained(means: pd.DataFrame) -> pd.Series:
    """Mean error after training, as if every choice were trained: the linear system's, times their ratio."""
    return means["limit"] * means["trained"] / means["paired"]


def _left(means: pd.DataFrame, trained: bool = False) -> float:
    """What is left of the error before training, over all sizes."""
    after = _trained(means) if trained else means["limit"]
    return float(after.sum() / means["start"].sum())


def _ratio(run: Finding, weight: float, trained: bool = False) -> float:
    """Mean error of two-stage over that of direct distillation; if trained, as of `_trained`."""
    table = rows_at(run.tables["stages"], weight=weight)
    ratio = float(table["two_stage"].mean() / table["direct"].mean())
    if not trained:
        return ratio
    some = table[table["direct_trained"].notna()].mean()
    paired = some["two_stage"] / some["direct"]
    return ratio * float(some["two_stage_trained"] / some["direct_trained"] / paired)


def _factor(weight: float) -> float:
    return (weight / (1 + weight)) ** 2


def _square(values: Array) -> float:
    return float(np.square(values).sum())


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, Array]:
    return {key: np.array([row[key] for row in rows], dtype=np.float64) for key in rows[0]}


def _within(low: float, high: float, aim: float, margin: float) -> Judgement:
    """Holds when the whole interval lies near the aim, fails when none of it does."""
    return side(aim - margin <= low and high <= aim + margin, high < aim - margin or low > aim + margin)
