"""Whether a student of some width moves as its linear system does, and what the poles say about its speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdpipe.api import Bench, Desk, Finding, Images, Line, Panel, Paper, Plot, Settings, Verdict, hp
from kdpipe.core.errors import ConfigError, DataError
from kdpipe.theory.judging import given, interval, rows_at, side, together, variants
from kdpipe.theory.linearised import System, train, two_classes
from kdpipe.theory.two_layer import ACTIVATIONS, Network

Array = NDArray[np.float64]
Runs = Sequence[Finding]

MARGIN = 0.1  # on the slope of -1/2, for a finite range of widths
NEAR = 0.05  # of the way from start to end: as good as arrived
CAPTIONS = {
    "trajectories": "Training loss of the narrowest and the widest student, and of their linear systems "
    "(dashed).",
    "width": (
        "Left: distance of training and linear system, integrated over time, over the linear system's own "
        "way. Right: how far from Theorem 1's f_inf training ends (lines), and how far the linear system's "
        "own limit is (dashed)."
    ),
    "poles": (
        "Left: the poles that are not zero, largest first; at λ = 0 there are as many as images. Right: time "
        "from which the trained student stays within a tenth of its way from start to end."
    ),
    "overlap": (
        "Each point is a training on other targets. Slow poles lie below the geometric mean of the extreme "
        "eigenvalues of H; times are those of the trained student."
    ),
}


class LinearisedDynamics(Bench):
    """Students of growing width against the linear systems of their starts.

    For each width m a teacher of m / share units is trained on the targets and stopped early; m of its units,
    drawn at random, are the student's start and its privileged features. The student is trained on Eq. 2 and
    followed by the linear system `d eta/dt = -H-bar eta` (Eq. 13), both at the same learning rate. Their
    distance is

        integral |f_trained - f_linear| dt  /  integral |f_linear - its limit| dt

    over the training: the norm in which Theorem 3 leaves a remainder of O(1 / sqrt(m)).

    Deviations: the teacher learns `y / q`, q = sqrt(m / m-bar), so that the student's
    sum_k a_k phi_k / sqrt(m) has the mean y (Sec. 2.5). It is an imperfect teacher (Sec. 4.2), and by default
    the student has all of its units: |y - sum_k a_k phi_k / sqrt(m)| is then the same for every width but for
    O(1 / sqrt(m)), where a random choice would blur the widths. The learning rate is a share of the largest
    stable one instead of 2e-4, and the linear system is that of gradient descent, (1 - rate H-bar)^r, instead
    of gradient flow, so that the rate plays no part in the distance. The paper shows no such figure.

    Reference: Rahbar et al. 2020, sections 2.5 to 2.7, 3 and 7.3.
    """

    name = "linearised_dynamics"
    paper = Paper(
        "On the unreasonable effectiveness of knowledge distillation: analysis in the kernel regime",
        "A. Rahbar, A. Panahi, C. Bhattacharyya, D. Dubhashi, M. Haghir Chehreghani",
        "arXiv preprint",
        2020,
        "https://arxiv.org/abs/2003.13438",
    )
    needs_images = True
    plots = {
        "trajectories": "Training loss of a narrow and a wide student, beside their linear systems",
        "width": "Distance of training and linear system against the width, and where trainings end",
        "poles": "Poles of the linear system by lambda, and the speed of the trainings",
        "overlap": "Speed of training against the overlap of the targets with slow poles",
    }

    class Config(Settings):
        """Data, networks and training."""

        images: int = hp(
            10, ge=4, doc="training images n, half of each class", source="assumption: few enough for H-bar"
        )
        activation: Literal["relu", "softplus", "tanh", "erf"] = hp(
            "softplus", doc="sigma", source="assumption: not stated; Assumption 3 asks for a smooth one"
        )
        widths: tuple[int, ...] = hp(
            (20, 40, 80, 160, 320, 640, 1280),
            doc="hidden units m of the students",
            source="assumption: from the 20 of Sec. 4 upwards",
        )
        weights: tuple[float, ...] = hp(
            (0.0, 0.01, 1.0),
            doc="lambda, ascending",
            source="Sec. 4.1 (0 and 0.01); assumption: 1 between 0.01 and infinity",
        )
        share: float = hp(
            1.0,
            gt=0,
            le=1,
            doc="units of the student over those of its teacher",
            source="assumption: all units, so that widths differ in nothing else (Sec. 4 has 20 of 100)",
        )
        teacher_time: float = hp(
            5.0,
            gt=0,
            doc="when the teacher stops, learning rate times iterations",
            source="assumption: Sec. 4.2 has an imperfect teacher and does not say when it stops",
        )
        spread: float = hp(
            1e-2, gt=0, doc="standard deviation k of a starting weight", source="Eq. 16, Sec. 4"
        )
        time: float = hp(
            600.0,
            gt=0,
            doc="length of a training, learning rate times iterations",
            source="assumption: not stated",
        )
        step: float = hp(
            0.5, gt=0, le=1, doc="learning rate times a bound of the largest pole",
            source="assumption: Sec. 4's rate of 2e-4 takes hundreds of times as many iterations",
        )  # fmt: skip
        units: int = hp(20, ge=2, doc="hidden units of the student whose poles are shown", source="Sec. 4")
        labellings: int = hp(
            12,
            ge=4,
            doc="random targets whose overlap with slow poles is measured",
            source="assumption: no such test in the paper",
        )

    config: Config

    def run(self, seed: int, images: Images | None, desk: Desk) -> dict[str, pd.DataFrame]:
        """Train teachers and students of all widths, and set up their linear systems.

        Raises:
            ConfigError: fewer than two widths or lambdas, or not in order.
            DataError: there are no images, or too few.
        """
        c = self.config
        for name in ("widths", "weights"):
            values = getattr(c, name)
            if len(values) < 2 or list(values) != sorted(set(values)) or values[0] < 0:
                raise ConfigError(
                    f"{values} is no ascending list of two or more", where=name, fix="list them in order"
                )
        if images is None:
            raise DataError("linearised_dynamics needs images", fix="name a data set in the study")
        data = two_classes(images.train, images.train_labels, c.images, np.random.default_rng([seed, 0]))
        parts: list[dict[str, pd.DataFrame]] = []
        work = sum(c.widths) + c.units
        for width in c.widths:
            desk.tell(sum(w for w in c.widths if w < width) / work, f"{width} units")
            parts.append(_tables(desk.once(f"width-{width}", partial(self._width, seed, width, *data))))
        desk.tell(1 - c.units / work, "poles")
        parts.append(_tables(desk.once("poles", partial(self._spectra, seed, *data))))
        desk.tell(1.0, "done")
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: pd.concat([p[name] for p in parts if name in p], ignore_index=True) for name in names}

    def _student(self, seed: int, width: int, pixels: Array, targets: Array) -> tuple[Network, Array, float]:
        """A student at its teacher's units, the Gram matrix, and the teacher's mean squared error."""
        c = self.config
        rng = np.random.default_rng([seed, 1, width])
        wide = round(width / c.share)
        gram, q = pixels @ pixels.T, np.sqrt(width / wide)
        start = Network.random(wide, c.spread, pixels, pixels[:0], rng)
        sigma = ACTIVATIONS[c.activation]
        teacher = train(System.of(start, gram, sigma, targets / q), start, sigma, c.teacher_time, c.step, 1)
        error = float(np.square(q * teacher.outputs[-1] - targets).mean())
        return teacher.network.units(rng.choice(wide, width, replace=False)), gram, error

    def _width(self, seed: int, width: int, pixels: Array, targets: Array) -> dict[str, Array]:
        """Everything measured at one width."""
        c, sigma = self.config, ACTIVATIONS[self.config.activation]
        student, gram, error = self._student(seed, width, pixels, targets)
        rows, curves = [], []
        for weight in c.weights:
            system = System.of(student, gram, sigma, targets, weight=weight)
            training = train(system, student, sigma, c.time, c.step, 200)
            times, linear = training.times, training.linear
            apart = np.trapezoid(np.linalg.norm(training.outputs - linear, axis=1), times)
            left = np.linalg.norm(linear - system.limit, axis=1)
            way = np.linalg.norm(training.outputs[0] - system.final)
            rows.append(
                {
                    "units": width,
                    "weight": weight,
                    "distance": apart,
                    "relative": apart / np.trapezoid(left, times),
                    "to_theorem": np.linalg.norm(training.outputs[-1] - system.final) / way,
                    "to_limit": np.linalg.norm(training.outputs[-1] - system.limit) / way,
                    "apart": np.linalg.norm(system.limit - system.final) / way,
                    "left": left[-1] / way,
                    "null": system.null_directions / system.start.size,
                    "tenth": training.tenth,
                    "teacher_error": error,
                }
            )
            shown = np.unique(np.linspace(0, len(times) - 1, 60).round().astype(int))
            curve = {
                "units": width,
                "weight": weight,
                "time": times[shown],
                "trained": np.square(training.outputs[shown] - targets).mean(1),
                "linear": np.square(linear[shown] - targets).mean(1),
            }
            curves.append(pd.DataFrame(curve))
        return _arrays(width=pd.DataFrame(rows), loss=pd.concat(curves))

    def _spectra(self, seed: int, pixels: Array, targets: Array) -> dict[str, Array]:
        """The poles at every lambda, and trainings on random targets at one lambda."""
        c, sigma = self.config, ACTIVATIONS[self.config.activation]
        student, gram, _ = self._student(seed, c.units, pixels, targets)
        poles = []
        for weight in c.weights:
            values = System.of(student, gram, sigma, targets, weight=weight).poles[::-1]
            values = values[values > 0]
            poles.append(pd.DataFrame({"weight": weight, "rank": 1 + np.arange(len(values)), "pole": values}))
        rng = np.random.default_rng([seed, 2])
        weight, rows = self.overlap_weight, []
        for labelling in range(c.labellings + 1):
            y = np.where(rng.random(len(targets)) < rng.random(), 1.0, -1.0) if labelling else targets
            system = System.of(student, gram, sigma, y, weight=weight)
            training = train(system, student, sigma, c.time, c.step, 200)
            rows.append({"labelling": labelling, "slow": _slow(system), "tenth": training.tenth})
        return _arrays(poles=pd.concat(poles), overlap=pd.DataFrame(rows))

    @property
    def overlap_weight(self) -> float:
        """The lambda at which random targets are learnt: the least above 0."""
        return min(weight for weight in self.config.weights if weight)

    def draw(self, name: str, found: Sequence[Finding]) -> Plot:
        """One of the figures; one panel or two per variant, or one per variant and lambda."""
        panels: dict[str, Callable[[LinearisedDynamics, str, Runs], list[Panel]]] = {
            "trajectories": LinearisedDynamics._draw_trajectories,
            "width": LinearisedDynamics._draw_width,
            "poles": LinearisedDynamics._draw_poles,
            "overlap": LinearisedDynamics._draw_overlap,
        }
        drawn = [
            panels[name](cast(LinearisedDynamics, runs[0].bench), label, runs)
            for label, runs in variants(found)
        ]
        several = len(drawn[0])
        return Plot(
            name,
            self.plots[name],
            tuple(panel for each in drawn for panel in each),
            columns=several if several > 1 else min(len(drawn), 2),
            caption=f"{CAPTIONS[name]} {_assumed(found)}",
        )

    def _draw_trajectories(self, label: str, runs: Runs) -> list[Panel]:
        panels = []
        ends = (self.config.widths[0], self.config.widths[-1])
        for weight in self.config.weights:
            lines = []
            for step, units in enumerate(ends):
                curves = [rows_at(run.tables["loss"], units=units, weight=weight) for run in runs]
                times = curves[0]["time"].to_numpy()[1:]  # the start has no place on a logarithmic axis
                trained, linear = (
                    [np.interp(times, curve["time"], curve[kind]) for curve in curves]
                    for kind in ("trained", "linear")
                )
                lines.append(Line.over_seeds(f"m = {units}, trained", times, trained, step=step))
                lines.append(Line.of(f"m = {units}, linear", times, np.mean(linear, 0), role="limit"))
            panels.append(
                Panel(
                    f"{label}, λ = {weight:g}",
                    "time (learning rate × iterations)",
                    "training loss (mean squared error)",
                    tuple(lines),
                    xscale="log",
                    yscale="log",
                    ylimits=_window(lines),
                )
            )
        return panels

    def _draw_width(self, label: str, runs: Runs) -> list[Panel]:
        units, distances, ends = np.array(self.config.widths), [], []
        top = 0.1
        for step, weight in enumerate(self.config.weights):
            chosen = [rows_at(run.tables["width"], weight=weight) for run in runs]
            legend = f"λ = {weight:g}"
            distances.append(Line.over_seeds(legend, units, [t["relative"] for t in chosen], step=step))
            if weight:
                predicted = np.mean([t["apart"] for t in chosen], 0)
                ends.append(Line.over_seeds(legend, units, [t["to_theorem"] for t in chosen], step=step))
                ends.append(Line.of(f"{legend}, predicted", units, predicted, role="limit"))
                top = max(top, *(t["to_theorem"].max() for t in chosen))
        guide = max(line.y[0] for line in distances) * np.sqrt(units[0] / units)
        distances.append(Line.of("1 / sqrt(m)", units, guide, role="limit"))
        return [
            Panel(
                f"{label}: distance from the linear system",
                "hidden units m",
                "relative L1 distance in time",
                tuple(distances),
                xscale="log",
                yscale="log",
            ),
            Panel(
                f"{label}: end of training",
                "hidden units m",
                "distance from f_inf / at the start",
                tuple(ends),
                xscale="log",
                ylimits=(0.0, 1.1 * top),
            ),
        ]

    def _draw_poles(self, label: str, runs: Runs) -> list[Panel]:
        lines, speeds = [], []
        for step, weight in enumerate(self.config.weights):
            chosen = [rows_at(run.tables["poles"], weight=weight)["pole"].to_numpy() for run in runs]
            ranks = np.arange(min(map(len, chosen)))
            legend = f"λ = {weight:g}"
            lines.append(Line.over_seeds(legend, 1 + ranks, [p[ranks] for p in chosen], step=step))
            times = [rows_at(run.tables["width"], weight=weight)["tenth"] for run in runs]
            speeds.append(Line.over_seeds(legend, self.config.widths, times, step=step))
        return [
            Panel(
                f"{label}: poles, m = {self.config.units}",
                "rank of the pole",
                "pole p_j (1 / time)",
                tuple(lines),
                xscale="log",
                yscale="log",
            ),
            Panel(
                f"{label}: speed",
                "hidden units m",
                "time to a tenth of the way left",
                tuple(speeds),
                xscale="log",
                yscale="log",
            ),
        ]

    def _draw_overlap(self, label: str, runs: Runs) -> list[Panel]:
        table = pd.concat([run.tables["overlap"] for run in runs])
        true, drawn = table[table["labelling"] == 0], table[table["labelling"] > 0]
        lines = (
            Line.of("random targets", drawn["slow"], drawn["tenth"], kind="points"),
            Line.of("true targets", true["slow"], true["tenth"], kind="points", role="data"),
        )
        title = f"{label}, m = {self.config.units}, λ = {self.overlap_weight:g}"
        share, time = "share of the way that lies on slow poles", "time to a tenth of the way left"
        return [Panel(title, share, time, lines, yscale="log")]

    def verdicts(self, name: str, found: Sequence[Finding]) -> list[Verdict]:
        """What the runs say, one verdict per variant and statement."""
        judges: dict[str, tuple[Callable[[LinearisedDynamics, str, Runs], Verdict], ...]] = {
            "trajectories": (),
            "width": (LinearisedDynamics._falls, LinearisedDynamics._ends),
            "poles": (LinearisedDynamics._grow, LinearisedDynamics._speed),
            "overlap": (LinearisedDynamics._overlaps,),
        }
        return [
            judge(cast(LinearisedDynamics, runs[0].bench), label, runs)
            for label, runs in variants(found)
            for judge in judges[name]
        ]

    def _falls(self, label: str, runs: Runs) -> Verdict:
        """Theorem 3's remainder, over the wider half of the widths: the statement is about large m."""
        says, numbers = [], []
        for weight in self.config.weights:
            chosen = [rows_at(run.tables["width"], weight=weight) for run in runs]
            slopes, wider = [], [table.iloc[(len(table) - 1) // 2 :] for table in chosen]
            for table in wider:
                slopes.append(np.polyfit(np.log(table["units"]), np.log(table["relative"]), 1)[0])
            middle, low, high = interval(slopes)
            says.append(side(high <= -0.5 + MARGIN, low > -0.5 + MARGIN))
            ends = [np.mean([table["relative"].iloc[row] for table in chosen]) for row in (0, -1)]
            numbers.append(
                f"λ = {weight:g}: slope {middle:.2f} [{low:.2f}, {high:.2f}], distance {ends[0]:.2g} to "
                f"{ends[1]:.2g}"
            )
        return Verdict(
            "the distance between a training and its linear system falls at least like 1 / sqrt(m)",
            "Theorem 3, Sec. 7.3",
            together(says),
            f"{'; '.join(numbers)} (narrowest to widest student; log-log slope over the wider half, 95 % "
            f"t-interval of its mean over {len(runs)} seeds; holds if it ends below -0.5 + {MARGIN:g})",
            label,
        )

    def _ends(self, label: str, runs: Runs) -> Verdict:
        """Theorem 1's limit."""
        says, numbers = [], []
        for weight in runs[0].tables["width"]["weight"].unique():
            rows = pd.DataFrame([rows_at(run.tables["width"], weight=weight).iloc[-1] for run in runs])
            away = rows["to_theorem"]
            done = rows["left"] < away / 2
            says.append(side(bool((away <= NEAR).all()), bool(((away > NEAR) & done).all())))
            numbers.append(
                f"λ = {weight:g}: {away.mean():.2g} of the way from it, {rows['to_limit'].mean():.2g} from "
                "the linear system's own limit"
            )
        null = np.mean([run.tables["width"]["null"].iloc[-1] for run in runs])
        return Verdict(
            "training ends at f_inf of Theorem 1",
            "Theorem 1, Eq. 5",
            together(says),
            f"{'; '.join(numbers)}; {100 * null:.0f} % of the directions of H-bar are null (Assumption 2 "
            f"allows none); widest student, {len(runs)} seeds, near is {NEAR:g} of the way in every seed",
            label,
        )

    def _grow(self, label: str, runs: Runs) -> Verdict:
        """The poles by lambda."""
        shares, slowest = [], []
        for run in runs:
            poles = [group["pole"].to_numpy() for _, group in run.tables["poles"].groupby("weight")]
            slowest.append([each[-1] for each in poles])
            for less, more in pairwise(poles):
                ranks = min(len(less), len(more))
                shares.append(float(np.mean(more[:ranks] > less[:ranks] * (1 + 1e-9))))
        middle = ", ".join(
            f"{value:.2g} at λ = {weight:g}"
            for weight, value in zip(self.config.weights, np.mean(slowest, 0), strict=True)
        )
        return Verdict(
            "a larger lambda shifts the poles to become larger",
            "Sec. 2.7",
            side(min(shares) == 1.0, max(shares) < 0.5),
            f"{100 * np.mean(shares):.1f} % of poles of equal rank grow from one lambda to the next; the "
            f"slowest is {middle} ({len(runs)} seeds; λ = 0 has no more poles than images, and lambda adds "
            "slower ones)",
            label,
        )

    def _speed(self, label: str, runs: Runs) -> Verdict:
        """How fast trainings are by lambda."""
        table = pd.concat([rows_at(run.tables["width"], units=self.config.widths[-1]) for run in runs])
        times = [group["tenth"].to_numpy() for _, group in table.groupby("weight")]
        faster = times[-1] < times[0]
        numbers = ", ".join(
            f"{each.mean():.3g} at λ = {weight:g}"
            for weight, each in zip(self.config.weights, times, strict=True)
        )
        return Verdict(
            "a larger lambda makes training converge faster",
            "Sec. 2.7",
            side(bool(faster.all()), not faster.any()),
            f"time to a tenth of the way: {numbers} (means, widest student); the largest lambda is faster "
            f"than the least in {faster.sum()} of {len(faster)} seeds",
            label,
        )

    def _overlaps(self, label: str, runs: Runs) -> Verdict:
        """Overlap with slow poles and speed."""
        ranks = []
        for run in runs:
            table = run.tables["overlap"].query("labelling > 0")
            varied = table["slow"].nunique() > 1 and table["tenth"].nunique() > 1
            ranks.append(float(table["slow"].corr(table["tenth"], "spearman")) if varied else 0.0)
        middle, low, high = interval(ranks)
        return Verdict(
            "a small overlap with slow poles speeds up training",
            "Sec. 2.7, Theorem 3",
            side(low > 0, high < 0),
            f"rank correlation of the share on slow poles and the time to a tenth of the way {middle:.2f} "
            f"[{low:.2f}, {high:.2f}] ({self.config.labellings} random targets per seed, {len(runs)} seeds, "
            "95 % t-interval)",
            label,
        )


def _slow(system: System) -> float:
    """Share of the way to the limit that lies on slow poles: |sum_slow alpha_j u^j| / |sum_j alpha_j u^j|."""
    values = np.linalg.eigvalsh(system.kernel)
    values = values[values > values[-1] * len(values) * np.finfo(float).eps]
    poles, parts = system.contributions()
    slow = parts[:, poles < np.sqrt(values[0] * values[-1])].sum(1)
    return float(np.linalg.norm(slow) / np.linalg.norm(parts.sum(1)))


def _assumed(found: Sequence[Finding]) -> str:
    """What holds for every panel."""
    seeds = max(len(runs) for _, runs in variants(found))
    bands = "; bands from least to greatest" if seeds > 1 else ""
    return (
        f"{seeds} seed(s){bands}. {given(found, 'images')} images, weights of spread "
        f"{given(found, 'spread')}; the student has a share of {given(found, 'share')} of its teacher's "
        f"units, which stopped at time {given(found, 'teacher_time')}. Trained to time "
        f"{given(found, 'time')}. Assumed: number of images, activation, widths, the teacher's width and "
        "end, learning rate."
    )


def _window(lines: Sequence[Line]) -> tuple[float, float]:
    """Vertical limits that leave out what is lost in rounding."""
    top = max(float(line.y.max()) for line in lines)
    least = min(float(line.y.min()) for line in lines)
    return max(least / 2, top * 1e-8), top * 2


def _arrays(**tables: pd.DataFrame) -> dict[str, Array]:
    """Tables as arrays that a desk can keep, named table.column."""
    return {
        f"{name}.{column}": table[column].to_numpy(dtype=np.float64)
        for name, table in tables.items()
        for column in table
    }


def _tables(arrays: dict[str, Array]) -> dict[str, pd.DataFrame]:
    """The tables that `_arrays` took apart."""
    tables: dict[str, dict[str, Array]] = {}
    for key, values in arrays.items():
        name, column = key.split(".")
        counts = column in ("units", "rank", "labelling")
        tables.setdefault(name, {})[column] = values.astype(np.int64) if counts else values
    return {name: pd.DataFrame(columns) for name, columns in tables.items()}
