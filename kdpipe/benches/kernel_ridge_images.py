"""Kernel ridge regression of images, distilled into itself: which alpha helps, and does it help networks?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial.distance import pdist
from scipy.special import stdtrit

from kdpipe.api import Arrays, Bench, Desk, Finding, Images, Line, Panel, Paper, Plot, Settings, Verdict, hp
from kdpipe.core.errors import ConfigError, DataError, UnknownNameError
from kdpipe.theory.judging import variants
from kdpipe.theory.kernel_ridge import Kernel, SelfDistillation, Spectrum

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Share = Annotated[float, Field(ge=0, le=1)]
Outcome = Literal["holds", "fails", "undecided"]

ENOUGH = 3  # seeds below which a difference decides nothing
RANGE = (0.5, 0.7)  # of the alphas that Section 5.2 finds suitable for its networks
PAPER = "Borup and Andersen 2021"
NONE = "assumption: the paper applies no kernel to images"


class KernelRidgeImages(Bench):
    """Accuracy of each step of self-distillation on images, for each alpha, by the closed form.

    `F(tau) = k(x, X) c(tau)` with an RBF kernel on pixel values; the greatest output is an image's class.
    Of the training images, `n_train` are fitted and `n_holdout` others held out; both are drawn per seed. The
    test images decide nothing: penalty and alpha are chosen on those held out.

    Kernel: `exp(-gamma |x - x'|^2)`, gamma by default 1 over the median squared distance of training images.
    Penalty: by default the one with the least mean squared error of the first fit on the images held out.
    Label noise: that share of the labels of fitted and held-out images is replaced by another class.

    Reference: Borup and Andersen 2021: Section 4 for the closed form, Section 5.2 for alphas and statements.

    Deviations: the paper's images are learned by networks, whose predictions are probabilities. Here outputs
    are those of kernel ridge regression on the same targets, and a chain has as many steps as wanted. At
    alpha = 0 the limit is the zero function and has no accuracy.
    """

    name = "kernel_ridge_images"
    paper = Paper(
        "Even your teacher needs guidance: ground-truth targets dampen regularization imposed by "
        "self-distillation",
        "K. Borup, L. N. Andersen",
        "NeurIPS",
        2021,
        "https://arxiv.org/abs/2102.13088",
    )
    needs_images = True
    plots: ClassVar[Mapping[str, str]] = {
        "accuracy": "Test accuracy of kernel ridge regression after each step of self-distillation",
        "best_alpha": "Test accuracy at the last step against alpha: kernel ridge regression and networks",
    }

    class Config(Settings):
        """Which images, which kernel, which chains."""

        n_train: int = hp(500, ge=2, doc="images that are fitted", source=NONE)
        n_holdout: int = hp(250, ge=1, doc="further training images, for choosing", source=NONE)
        n_test: int = hp(1000, ge=1, doc="test images; all where there are fewer", source=NONE)
        classes: tuple[int, ...] = hp((), doc="labels that are kept; empty keeps all", source=NONE)
        targets: Literal["onehot", "signs"] = hp(
            "onehot", doc="targets 1 for the class and 0 or -1 for others", source=f"{PAPER}, footnote 12"
        )
        label_noise: float = hp(0.0, ge=0, le=1, doc="share of wrong labels in training", source=NONE)
        gamma: float | None = hp(
            None, gt=0, doc="width of the kernel; None is one over the median squared distance", source=NONE
        )
        penalty: float | None = hp(
            None,
            gt=0,
            doc="penalty lambda; None chooses among `penalties` on the images held out",
            source=NONE,
        )
        penalties: tuple[Annotated[float, Field(gt=0)], ...] = hp(
            (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
            min_length=1,
            doc="penalties to choose from",
            source=NONE,
        )
        alphas: tuple[Share, ...] = hp(
            tuple(i / 10 for i in range(10)),
            min_length=1,
            doc="weights of the ground truth",
            source=f"{PAPER}, Section 5.2",
        )
        steps: int = hp(
            10,
            ge=2,
            doc="steps; the first is ordinary training",
            source=f"{PAPER}, Section 4.4 (as many as usually suffice)",
        )

    config: Config

    def run(self, seed: int, images: Images | None, desk: Desk) -> dict[str, pd.DataFrame]:
        """Scores per alpha, step and split; the choice of the penalty; what was set and drawn."""
        import pandas as pd

        c = self.config
        if images is None:
            raise DataError(f"the bench {self.name} sees no images", fix="name a data set in the study")
        drawn = draw(seed, images, c)
        width = c.gamma or 1 / _median(drawn.train)
        kernel = Kernel("rbf", {"gamma": width})

        def decompose() -> Arrays:
            found = Spectrum.of(kernel(drawn.train))
            return {"values": found.values, "vectors": found.vectors}

        desk.tell(0.1, f"eigendecomposition of {len(drawn.train)} images")
        targets = encoded(drawn.train_labels, drawn.classes, c.targets)
        kept = desk.once("spectrum", decompose)
        problem = SelfDistillation(drawn.train, targets, kernel, Spectrum(kept["values"], kept["vectors"]))
        desk.tell(0.6, "choice of the penalty, scores")
        bases = {split: problem.basis(points) for split, points, _ in drawn.splits}
        choice = _penalties(problem, bases["holdout"], drawn, c)
        penalty = c.penalty or min(choice, key=lambda row: row["mse"])["penalty"]
        rows = [
            row
            for alpha in sorted(set(c.alphas))
            for row in _scores(problem, bases, drawn, penalty, alpha, c)
        ]
        setup = {
            "gamma": width,
            "penalty": penalty,
            "classes": drawn.classes,
            **{split: len(points) for split, points, _ in drawn.splits},
            "flipped": float(np.mean(drawn.flipped)),
        }
        return {
            "scores": pd.DataFrame(rows),
            "penalties": pd.DataFrame(choice),
            "setup": pd.DataFrame([setup]),
        }

    def draw(self, name: str, found: Sequence[Finding]) -> Plot:
        """Accuracy against step and alpha, or against alpha beside a study's chains of networks."""
        if name not in self.plots:
            raise UnknownNameError.of("figure", name, self.plots)
        panels, caption = (_figure_accuracy if name == "accuracy" else _figure_alpha)(_variants(found))
        return Plot(name, self.plots[name], tuple(panels), caption=caption)

    def verdicts(self, name: str, found: Sequence[Finding]) -> list[Verdict]:
        """Whether self-distillation helps, which alpha is best, and whether that carries over to networks."""
        if name not in self.plots:
            raise UnknownNameError.of("figure", name, self.plots)
        judge = _judge_accuracy if name == "accuracy" else _judge_alpha
        return [verdict for variant in _variants(found) for verdict in judge(variant)]


# what a run measures


@dataclass(frozen=True)
class Drawn:
    """The images of one run.

    Attributes:
        train, holdout, test: images (n x d).
        train_labels, holdout_labels: class numbers from 0, with noise (n).
        test_labels: without.
        flipped: which labels of fitted and held-out images are wrong.
        classes: how many there are.
    """

    train: Array
    holdout: Array
    test: Array
    train_labels: Labels
    holdout_labels: Labels
    test_labels: Labels
    flipped: NDArray[np.bool_]
    classes: int

    @property
    def splits(self) -> list[tuple[str, Array, Labels]]:
        """Name, images and labels of each."""
        return [
            ("train", self.train, self.train_labels),
            ("holdout", self.holdout, self.holdout_labels),
            ("test", self.test, self.test_labels),
        ]


def draw(seed: int, images: Images, c: KernelRidgeImages.Config) -> Drawn:
    """The images that a seed fits, holds out and tests, with label noise in the first two.

    Args:
        seed: of the choice and the noise.
        images: the data set.
        c: the settings.

    Raises:
        ConfigError: the data set lacks a class or has too few images.
    """
    known = np.unique(images.train_labels)
    classes = np.unique(c.classes) if c.classes else known
    missing = sorted(set(classes.tolist()) - set(known.tolist()))
    if missing or len(classes) < 2:
        what = f"no class {missing[0]}" if missing else "fewer than two classes left"
        raise ConfigError(
            f"{images.name} has {what}",
            where="classes",
            fix=f"choose two or more of {', '.join(map(str, known))}",
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    fit = rng.permutation(np.flatnonzero(np.isin(images.train_labels, classes)))[: c.n_train + c.n_holdout]
    test = rng.permutation(np.flatnonzero(np.isin(images.test_labels, classes)))[: c.n_test]
    if len(fit) < c.n_train + c.n_holdout or not len(test):
        raise ConfigError(
            f"{images.name} has {len(fit)} training and {len(test)} test images of these classes, too few to "
            f"fit {c.n_train} and hold out {c.n_holdout}",
            where="n_train, n_holdout",
            fix="lower them, or keep more classes",
        )
    labels = np.searchsorted(classes, images.train_labels[fit])
    flipped = rng.random(len(fit)) < c.label_noise
    labels = np.where(flipped, (labels + rng.integers(1, len(classes), len(fit))) % len(classes), labels)
    chosen = images.train[fit]
    return Drawn(
        chosen[: c.n_train],
        chosen[c.n_train :],
        images.test[test],
        labels[: c.n_train],
        labels[c.n_train :],
        np.searchsorted(classes, images.test_labels[test]),
        flipped,
        len(classes),
    )


def encoded(labels: Labels, classes: int, targets: str) -> Array:
    """Labels as numbers: 1 for the class, and 0 (`onehot`) or -1 (`signs`) for the others (n x C)."""
    onehot: Array = np.eye(classes)[labels]
    return onehot if targets == "onehot" else 2 * onehot - 1


def _median(points: Array) -> float:
    """The median squared distance between two different points."""
    found = float(np.median(pdist(points, "sqeuclidean")))
    if not found > 0:
        raise ConfigError(
            "half of all pairs of training images are equal, so that their distances set no width",
            where="gamma",
            fix="give gamma",
        )
    return found


def _score(outputs: Array, labels: Labels, drawn: Drawn, c: KernelRidgeImages.Config) -> dict[str, float]:
    """Accuracy in % (not a number for the zero function) and mean squared error per output."""
    right = 100 * float(np.mean(outputs.argmax(1) == labels)) if outputs.any() else math.nan
    return {"top1": right, "mse": float(np.mean((outputs - encoded(labels, drawn.classes, c.targets)) ** 2))}


def _penalties(
    problem: SelfDistillation, basis: Array, drawn: Drawn, c: KernelRidgeImages.Config
) -> list[dict[str, float]]:
    """Scores of the first fit on the images held out, for each penalty that conditioning allows."""
    least = problem.spectrum.least_penalty()
    grid = sorted({p for p in (*c.penalties, *([c.penalty] if c.penalty else [])) if p >= least})
    if not grid:
        problem.spectrum.check(max(c.penalties))
    return [
        {"penalty": p, **_score(problem.through(basis, p, 1.0, [1])[0], drawn.holdout_labels, drawn, c)}
        for p in grid
    ]


def _scores(
    problem: SelfDistillation,
    bases: Mapping[str, Array],
    drawn: Drawn,
    penalty: float,
    alpha: float,
    c: KernelRidgeImages.Config,
) -> list[dict[str, float | str]]:
    steps = [*map(float, range(1, c.steps + 1)), math.inf]
    return [
        {"alpha": alpha, "step": step, "split": split, **_score(outputs, labels, drawn, c)}
        for split, _, labels in drawn.splits
        for step, outputs in zip(steps, problem.through(bases[split], penalty, alpha, steps), strict=True)
    ]


# a variant's runs


@dataclass(frozen=True)
class _Variant:
    """The runs of one variant, by seed."""

    label: str
    runs: list[Finding]

    @property
    def c(self) -> KernelRidgeImages.Config:
        config = self.runs[0].bench.config
        assert isinstance(config, KernelRidgeImages.Config)
        return config

    @property
    def alphas(self) -> list[float]:
        return sorted(set(self.c.alphas))

    def top1(self, step: float, split: str = "test") -> Array:
        """Accuracies in % at one step (seeds x alphas)."""
        tables = []
        for each in self.runs:
            table = each.tables["scores"]
            table = table[(table["split"] == split) & np.isclose(table["step"], step)]
            tables.append(table.sort_values("alpha")["top1"].to_numpy(dtype=np.float64))
        return np.stack(tables)

    @property
    def best(self) -> int:
        """Place of the alpha that is best at the last step on the images held out, over all seeds."""
        return int(_greatest(self.top1(self.c.steps, "holdout").mean(0)))

    @property
    def drawn(self) -> str:
        """What was fitted, for a caption."""
        setups = [each.tables["setup"].iloc[0] for each in self.runs]
        penalties = sorted({f"{setup['penalty']:g}" for setup in setups}, key=float)
        widths = [setup["gamma"] for setup in setups]
        width = f"{widths[0]:.3g}" if np.ptp(widths) == 0 else f"{min(widths):.3g} to {max(widths):.3g}"
        noise = f", {100 * self.c.label_noise:g} % of their labels wrong" if self.c.label_noise else ""
        return (
            f"{self.label}: {setups[0]['train']:.0f} images of {setups[0]['classes']:.0f} classes fitted"
            f"{noise}, {setups[0]['holdout']:.0f} held out, {setups[0]['test']:.0f} tested; γ = {width}, "
            f"λ = {', '.join(penalties)} {'as set' if self.c.penalty else 'chosen on the images held out'}; "
            f"{len(self.runs)} seed{'' if len(self.runs) == 1 else 's'}"
        )

    def chains(self) -> dict[str, pd.DataFrame]:
        """Chains of networks by model, where the study brought some."""
        import pandas as pd

        tables = [each.tables["chains"] for each in self.runs if "chains" in each.tables]
        if not tables:
            return {}
        table = pd.concat(tables).drop_duplicates()
        return {str(model): part for model, part in table.groupby("model", sort=True)}


def _variants(found: Sequence[Finding]) -> list[_Variant]:
    return [_Variant(label, runs) for label, runs in variants(found)]


def _greatest(values: Array) -> NDArray[np.intp]:
    """Place of the greatest value along the last axis; of equal ones the last, which is distilled least."""
    places: NDArray[np.intp] = values.shape[-1] - 1 - values[..., ::-1].argmax(-1)
    return places


def _last(chain: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of a chain's last step: one row per seed, one column per alpha."""
    last = chain[chain["step"] == chain["step"].max()]
    found: pd.DataFrame = last.pivot_table(index="seed", columns="alpha", values="top1")
    return found


def _undistilled(chain: pd.DataFrame) -> pd.Series[float]:
    """Accuracy of a chain's first step per seed; it is the same network for every alpha."""
    first: pd.Series[float] = chain[chain["step"] == chain["step"].min()].groupby("seed")["top1"].mean()
    return first


# figures


def _figure_accuracy(variants: Sequence[_Variant]) -> tuple[list[Panel], str]:
    panels = []
    for v in variants:
        steps = range(1, v.c.steps + 1)
        means = np.stack([v.top1(step).mean(0) for step in steps])
        lines = tuple(Line.of(f"α = {a:g}", steps, means[:, i], step=i) for i, a in enumerate(v.alphas))
        panels.append(Panel(v.label, "step", "test accuracy (%)", lines))
        first, limit = v.top1(1), v.top1(math.inf) - v.top1(1)
        known = ~np.isnan(limit).any(0)
        gains = (
            _level("step 1", v.alphas, 0.0),
            Line.over_seeds(f"step {v.c.steps}", v.alphas, list(v.top1(v.c.steps) - first)),
            Line.of("limit", np.array(v.alphas)[known], limit.mean(0)[known], role="limit"),
        )
        panels.append(Panel(f"{v.label}: gain over step 1", "α", "test accuracy (points)", gains))
    return panels, (
        "Means over seeds, each with other images; bands reach from the least to the greatest. Step 1 is "
        "ordinary training. "
        f"{'. '.join(v.drawn for v in variants)}."
    )


def _level(label: str, alphas: Sequence[float], value: float) -> Line:
    return Line.of(label, alphas, np.full(len(alphas), value), role="truth")


def _figure_alpha(variants: Sequence[_Variant]) -> tuple[list[Panel], str]:
    panels, seen = [], set()
    for v in variants:
        lines = [
            _level("step 1", v.alphas, v.top1(1).mean()),
            Line.over_seeds("last step", v.alphas, list(v.top1(v.c.steps))),
        ]
        panels.append(Panel(f"kernel, {v.label} (step {v.c.steps})", "α", "test accuracy (%)", tuple(lines)))
    for v in variants:
        for model, chain in v.chains().items():
            last = _last(chain).dropna()
            if model in seen or not len(last):
                continue
            seen.add(model)
            alphas = [float(alpha) for alpha in last.columns]
            lines = [
                _level("step 1", alphas, float(_undistilled(chain).mean())),
                Line.over_seeds("last step", alphas, list(last.to_numpy())),
            ]
            title = f"{model} (step {chain['step'].max():.0f})"
            panels.append(Panel(title, "α", "test accuracy (%)", tuple(lines)))
    networks = " Networks: chains of the same study." if seen else ""
    return panels, (
        f"Means over seeds, bands from the least to the greatest; step 1 is ordinary training. "
        f"{'. '.join(v.drawn for v in variants)}.{networks}"
    )


# verdicts


def _sign(differences: NDArray[np.floating]) -> bool | None:
    """Whether paired differences are above 0; None where seeds disagree, are too few, or noise could do it.

    Noise: the 95 % interval of Student's t for the mean over seeds.
    """
    n = len(differences)
    if n < ENOUGH or abs(differences.mean()) <= stdtrit(n - 1, 0.975) * differences.std(ddof=1) / math.sqrt(
        n
    ):
        return None
    if (differences > 0).all():
        return True
    return False if (differences < 0).all() else None


def _outcome(flag: bool | None) -> Outcome:
    return "undecided" if flag is None else "holds" if flag else "fails"


def _gain(differences: NDArray[np.floating]) -> str:
    """Mean, range and agreement of paired differences in percentage points."""
    mean, low, high = differences.mean(), differences.min(), differences.max()
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    return f"{mean:+.2f} points ({low:+.2f} to {high:+.2f}; of {len(differences)} seeds {up} up, {down} down)"


def _judge_accuracy(v: _Variant) -> list[Verdict]:
    last, first, held = v.top1(v.c.steps), v.top1(1)[:, :1], v.top1(v.c.steps, "holdout")
    chosen = _greatest(held)
    gains = np.take_along_axis(last, chosen[:, None], 1)[:, 0] - first[:, 0]
    after = int(last.mean(0).argmax())
    picked = ", ".join(f"{v.alphas[i]:g}" for i in chosen)
    said = [
        Verdict(
            "Some α makes the last step better than the first fit",
            f"{PAPER}, Section 5.2",
            _outcome(_sign(gains)),
            f"test accuracy at step {v.c.steps} less that at step 1 ({first.mean():.2f} %), α chosen per "
            f"seed on images held out ({picked}): {_gain(gains)}; best on test images, after the fact: α = "
            f"{v.alphas[after]:g} with {(last - first).mean(0)[after]:+.2f} points",
            v.label,
        )
    ]
    if v.alphas[0] == 0:
        loss = last[:, 0] - first[:, 0]
        worse = _sign(-loss)
        said.append(
            Verdict(
                "α = 0 regularises too much: its last step is worse than the first fit",
                f"{PAPER}, Section 5.2, Figures 5 and 8",
                _outcome(worse),
                f"test accuracy at step {v.c.steps} less that at step 1: {_gain(loss)}",
                v.label,
            )
        )
    if len(v.alphas) > 1:
        trained = np.stack([v.top1(step, "train") for step in range(2, v.c.steps + 1)])
        rises = np.diff(trained, axis=2)
        ordered = [bool((rises[:, i] >= 0).all() and rises[:, i].any()) for i in range(len(v.runs))]
        moved = rises != 0
        flag = all(ordered) if len(set(ordered)) == 1 and moved.any() else None
        ends = trained[-1].mean(0)
        said.append(
            Verdict(
                "Training accuracy is ordered by α at every step, least at the least α",
                f"{PAPER}, Supplement B.1, Figure 7",
                _outcome(flag),
                f"at step {v.c.steps}: {ends[0]:.1f} % at α = {v.alphas[0]:g}, {ends[-1]:.1f} % at α = "
                f"{v.alphas[-1]:g}; from one α to the next, over steps and seeds, {(rises > 0).sum()} rises "
                f"and {(rises < 0).sum()} falls of {rises.size}; ordered in {sum(ordered)} of {len(v.runs)} "
                "seeds",
                v.label,
            )
        )
    return said


def _judge_alpha(v: _Variant) -> list[Verdict]:
    said = []
    held, last = v.top1(v.c.steps, "holdout").mean(0), v.top1(v.c.steps)
    inside = np.array([RANGE[0] <= alpha <= RANGE[1] for alpha in v.alphas])
    if inside.any() and not inside.all():
        within, without = (int(_greatest(np.where(mask, held, -1.0))) for mask in (inside, ~inside))
        lead = last[:, within] - last[:, without]
        said.append(
            Verdict(
                f"The best α lies between {RANGE[0]:g} and {RANGE[1]:g}",
                f"{PAPER}, Section 5.2, Figure 5",
                _outcome(_sign(lead)),
                f"chosen on images held out at step {v.c.steps}: α = {v.alphas[v.best]:g}, test accuracy "
                f"{last.mean(0)[v.best]:.2f} % (step 1: {v.top1(1).mean():.2f} %); on test images, the best "
                f"inside, {v.alphas[within]:g}, less that outside, {v.alphas[without]:g}: {_gain(lead)}",
                v.label,
            )
        )
    return said + [_carries(v, model, chain) for model, chain in v.chains().items()]


def _carries(v: _Variant, model: str, chain: pd.DataFrame) -> Verdict:
    """Whether the kernel's best alpha is good for a chain of networks too.

    The network's own best alpha is chosen, for each seed, on the other seeds: chosen on the same numbers, it
    would look better than it is.
    """
    last = _last(chain).dropna()
    base = _undistilled(chain).reindex(last.index).to_numpy(dtype=np.float64)
    wanted = v.alphas[v.best]
    grid = np.array([float(alpha) for alpha in last.columns])
    outcome: Outcome = "undecided"
    numbers = "no seed has all of its chains"
    if len(last) and len(grid):
        table = last.to_numpy(dtype=np.float64)
        taken, own = int(np.abs(grid - wanted).argmin()), int(table.mean(0).argmax())
        rest = [np.delete(table, i, 0) if len(table) > 1 else table for i in range(len(table))]
        theirs = np.array([row[part.mean(0).argmax()] for row, part in zip(table, rest, strict=True)])
        gains, deficits = table[:, taken] - base, table[:, taken] - theirs
        better = _sign(gains)
        worse = _sign(deficits) is False
        outcome = _outcome(False if worse else better)
        near = "" if math.isclose(grid[taken], wanted) else f", for which its chains have {grid[taken]:g}"
        numbers = (
            f"the kernel's α is {wanted:g} (images held out){near}; there the last step's accuracy is "
            f"{table[:, taken].mean():.2f} %: against no distillation {_gain(gains)}; against the best α of "
            f"the other seeds' chains (of all: {grid[own]:g}), {_gain(deficits)}"
        )
    return Verdict(
        f"The kernel's best α carries over to {model}: better than no distillation, and not worse than any α",
        f"{PAPER}, Section 6",
        outcome,
        numbers,
        v.label,
    )
