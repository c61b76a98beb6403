"""Kernel ridge regression of a noisy sine, distilled into itself: Borup and Andersen 2021, Figures 2 to 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdpipe.api import Bench, Desk, Finding, Images, Line, Panel, Paper, Plot, Settings, Verdict, hp
from kdpipe.core.errors import ConfigError, UnknownNameError
from kdpipe.theory.judging import variants
from kdpipe.theory.kernel_ridge import (
    Kernel,
    SelfDistillation,
    diagonal,
    diagonals,
    ratio_test,
    ratios,
    shrinkage,
)

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]
Scale = Literal["linear", "log"]
Flags = Sequence[bool | None]
Rows = list[dict[str, float]]
Maker = TypeVar("Maker")

SAMPLES = 11
PRINTED = 1 / 80  # the width that Section 4.4 states
CONSECUTIVE = [float(step) for step in range(1, 21)]
FAR = [30.0, 50.0, 100.0, 200.0, 500.0, 1000.0]  # later steps at which the way to the limit is measured
RELATIVE = 1e-12  # share of a number below which a change of it may be rounding
SECTION = "Borup and Andersen 2021, Section 4.4"
NONE = "assumption: the paper states none"
INDEX = "index k, by ascending eigenvalue"


class KernelRidgeSine(Bench):
    """Six steps of self-distillation on eleven noisy points of a sine, for each alpha.

    Data: `y_i = sin(2 pi x_i) + e_i`, `x_i = i / 10`, as the data set `sine` draws them: the first draw of a
    seed is the same. Further draws of that seed serve the statistics, which the paper does not give.

    Reference: Borup and Andersen 2021, Section 4.4, Figures 2 to 4, and Section C.1 for `constrained`.

    Deviations: the paper draws one set of noise and states no seed; statistics over many draws decide the
    verdicts. `constrained` has no counterpart there. Ratios of eigenvalues below rounding are left out.
    """

    name = "kernel_ridge_sine"
    paper = Paper(
        "Even your teacher needs guidance: ground-truth targets dampen regularization imposed by "
        "self-distillation",
        "K. Borup, L. N. Andersen",
        "NeurIPS",
        2021,
        "https://arxiv.org/abs/2102.13088",
    )
    plots: ClassVar[Mapping[str, str]] = {
        "figure2": "Fits of a noisy sine after each step of self-distillation, and their limit",
        "figure3": "Diagonal of B after each step: what is left of each eigenvector's part of the targets",
        "figure4": "Ratios of consecutive entries of that diagonal after each step",
        "constrained": "Penalty and norm per step when a loss tolerance sets the penalty",
    }

    class Config(Settings):
        """Kernel, penalty, steps, and what the statistics are taken over."""

        gamma: float = hp(PRINTED, gt=0, doc="width of the kernel exp(-gamma (x - x')^2)", source=SECTION)
        penalty: float = hp(0.2, gt=0, doc="penalty lambda", source=SECTION)
        alphas: tuple[Share, ...] = hp(
            (0.0, 0.35), min_length=1, doc="weights of the ground truth that are drawn", source=SECTION
        )
        steps: int = hp(
            6, ge=2, le=20, doc="steps that are drawn; the first is ordinary training", source=SECTION
        )
        noise: float = hp(0.5, ge=0, doc="standard deviation of the noise", source=SECTION)
        draws: int = hp(2000, ge=2, doc="noise draws per seed for the statistics", source=NONE)
        sweep: tuple[Share, ...] = hp(
            tuple(i / 10 for i in range(10)),
            doc="further alphas for the statement on larger alphas",
            source="Borup and Andersen 2021, Section 5.2 (the grid of their networks)",
        )
        grid: int = hp(201, ge=2, doc="points x of a drawn curve", source=NONE)
        iterations: int = hp(10, ge=2, le=20, doc="steps before which a chain is to converge", source=SECTION)
        within: float = hp(
            0.01, gt=0, lt=1, doc="share of the first fit below which a distance counts as none", source=NONE
        )
        tolerance: float = hp(
            0.2, gt=0, doc="loss tolerance epsilon as a share of the targets' mean square", source=NONE
        )
        constrained_alphas: tuple[Share, ...] = hp(
            (0.0, 0.1, 0.35),
            doc="weights of the ground truth of the constrained problem",
            source="assumption: below and above the tolerance, which decides the case of Section C.1",
        )
        constrained_steps: int = hp(12, ge=1, doc="steps of the constrained problem", source=NONE)

    config: Config

    def run(self, seed: int, images: Images | None, desk: Desk) -> dict[str, pd.DataFrame]:
        """Data, curves, statistics over draws, diagonals and ratios of B, and the constrained problem."""
        import pandas as pd

        c = self.config
        x, clean, drawn = draw(seed, c.noise, c.draws)
        kernel = Kernel("rbf", {"gamma": c.gamma})
        many = SelfDistillation(x[:, None], drawn.T, kernel)
        shown = SelfDistillation(x[:, None], drawn[0], kernel, many.spectrum)
        desk.tell(0.1, "statistics over noise draws")
        rows = [row for alpha in sorted({*c.alphas, *c.sweep}) for row in _statistics(many, clean, alpha, c)]
        desk.tell(0.8, "curves and the constrained problem")
        return {
            "data": pd.DataFrame({"x": x, "y": drawn[0], "clean": clean}),
            "curves": pd.DataFrame([row for alpha in c.alphas for row in _curves(shown, alpha, c)]),
            "statistics": pd.DataFrame(rows),
            "diagonal": pd.DataFrame([row for alpha in c.alphas for row in _diagonal(shown, alpha, c)]),
            "ratios": pd.DataFrame([row for alpha in c.alphas for row in _ratios(shown, alpha, c)]),
            "constrained": pd.DataFrame(
                [row for a in c.constrained_alphas for row in _constrained(shown, a, c)]
            ),
        }

    def draw(self, name: str, found: Sequence[Finding]) -> Plot:
        """One of the figures; those of one draw show the first seed."""
        panels, caption = _known(FIGURES, name)(_variants(found))
        return Plot(
            name, self.plots[name], tuple(panels), caption=caption, shared=name in ("figure2", "figure3")
        )

    def verdicts(self, name: str, found: Sequence[Finding]) -> list[Verdict]:
        """The section's statements about a figure, per variant; for Figure 2 also which gamma they fit."""
        variants = _variants(found)
        said = [verdict for variant in variants for verdict in _known(JUDGES, name)(variant)]
        return said + (_judge_width(variants) if name == "figure2" else [])


# what a run measures


def draw(seed: int, noise: float, draws: int) -> tuple[Array, Array, Array]:
    """Noisy sines: `y = sin(2 pi x) + e`, `e ~ N(0, noise^2)`, at x = 0, 0.1, ..., 1.

    Args:
        seed: of the noise; the first draw is that of the data set `sine`, where the noise is 0.5.
        noise: standard deviation.
        draws: how many sets of noise.

    Returns:
        x (11), the clean sine (11), the noisy ones (draws x 11).
    """
    x = np.arange(SAMPLES) / (SAMPLES - 1)
    clean = np.sin(2 * np.pi * x)
    return x, clean, clean + np.random.Generator(np.random.PCG64(seed)).normal(0, noise, (draws, SAMPLES))


def _statistics(many: SelfDistillation, clean: Array, alpha: float, c: KernelRidgeSine.Config) -> Rows:
    """Distances of the fits of all draws, per step: to the sine, the targets, the last step and the limit.

    `error` is the mean over draws of the mean squared distance to the clean sine; `exact` is its expectation,
    |(V B V^T - I) s|^2 / n + noise^2 tr(B^2) / n.
    """
    steps = [*CONSECUTIVE, *FAR, math.inf]
    fits = many.predict(many.inputs, c.penalty, alpha, steps)  # steps x n x draws
    errors = ((fits - clean[:, None]) ** 2).mean(1)
    best = errors[: c.steps].argmin(0)
    first, limit = fits[0], fits[-1]
    near = np.linalg.norm(fits - limit, axis=1) <= c.within * np.linalg.norm(first, axis=0)
    rows = []
    for i, step in enumerate(steps):
        next_to = i > 0 and step == steps[i - 1] + 1
        change = errors[i] - errors[i - 1]
        scale = diagonal(many.spectrum.values, c.penalty, alpha, step)
        bias = many.spectrum.vectors @ (scale * (many.spectrum.vectors.T @ clean)) - clean
        rows.append(
            {
                "alpha": alpha,
                "step": step,
                "error": errors[i].mean(),
                "exact": float(np.mean(bias**2) + c.noise**2 * np.mean(scale**2)),
                "change": change.mean() if next_to else math.nan,
                "change_error": change.std(ddof=1) / math.sqrt(c.draws) if next_to else math.nan,
                "best": float(np.mean(best == i)) if i < c.steps else math.nan,
                "training": float(np.mean((fits[i] - many.targets) ** 2)),
                "size": _rms(fits[i]),
                "moved": _rms(fits[i] - fits[i - 1]) if next_to else math.nan,
                "away": _rms(fits[i] - limit),
                "near": float(near[i].mean()),
            }
        )
    return rows


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _curves(shown: SelfDistillation, alpha: float, c: KernelRidgeSine.Config) -> Rows:
    x = np.linspace(0, 1, c.grid)
    steps = [*range(1, c.steps + 1), math.inf]
    curves = shown.predict(x[:, None], c.penalty, alpha, steps)
    return [
        {"alpha": alpha, "step": step, "x": at, "value": value}
        for step, curve in zip(steps, curves, strict=True)
        for at, value in zip(x, curve, strict=True)
    ]


def _diagonal(shown: SelfDistillation, alpha: float, c: KernelRidgeSine.Config) -> Rows:
    """B by ascending eigenvalue; `sure` where the eigenvalue is above what rounding may make of 0."""
    values, floor = shown.spectrum.values, shown.spectrum.floor
    return [
        {"alpha": alpha, "step": step, "index": k + 1, "eigenvalue": d, "sure": float(d > floor), "value": b}
        for step in [*CONSECUTIVE, *FAR, math.inf]
        for k, (d, b) in enumerate(zip(values, diagonal(values, c.penalty, alpha, step), strict=True))
    ]


def _ratios(shown: SelfDistillation, alpha: float, c: KernelRidgeSine.Config) -> Rows:
    """R_k per step, and for consecutive k both sides of Theorem 4.3 on the way to that step."""
    values, floor = shown.spectrum.values, shown.spectrum.floor
    shrunk = shrinkage(values, c.penalty)
    table = diagonals(np.tile(shrunk, (c.steps, 1)), alpha)
    rows = []
    for step, (before, after) in enumerate(
        zip(np.vstack([np.ones_like(shrunk), table]), table, strict=False), 1
    ):
        left, right = ratio_test(before, shrunk, alpha)
        for k, ratio in enumerate(ratios(after)):
            row = {
                "alpha": alpha,
                "step": step,
                "index": k + 1,
                "ratio": ratio,
                "sure": float(values[k] > floor),
            }
            rows.append({**row, "left": left[k + 1, k], "right": right[k + 1, k]})
    return rows


def _constrained(shown: SelfDistillation, alpha: float, c: KernelRidgeSine.Config) -> Rows:
    """The constrained problem per step; not a number where rounding forbids so small a loss."""
    mean_square = float(np.mean(shown.targets**2))
    steps = range(1, c.constrained_steps + 1)
    try:
        found = shown.constrained(c.tolerance * mean_square, alpha, c.constrained_steps)
    except ConfigError as error:
        if error.where != "tolerance":
            raise
        lost = {"penalty": math.nan, "norm": math.nan, "size": math.nan, "loss": math.nan, "case": math.nan}
        return [{"alpha": alpha, "step": step, **lost} for step in steps]
    return [
        {
            "alpha": alpha,
            "step": step,
            "penalty": found.penalties[i],
            "norm": found.norms[i],
            "size": _rms(found.fits[i]),
            "loss": found.losses[i] / mean_square,
            "case": found.case,
        }
        for i, step in enumerate(steps)
    ]


# a variant's runs


@dataclass(frozen=True)
class _Variant:
    """The runs of one variant, by seed."""

    label: str
    runs: list[Finding]

    @property
    def c(self) -> KernelRidgeSine.Config:
        config = self.runs[0].bench.config
        assert isinstance(config, KernelRidgeSine.Config)
        return config

    @property
    def guided(self) -> list[float]:
        """The alphas that mix targets and predictions."""
        return [alpha for alpha in self.c.alphas if 0 < alpha < 1]

    @property
    def steps(self) -> list[float]:
        return [float(step) for step in range(1, self.c.steps + 1)]

    def first(self, table: str, **where: float) -> pd.DataFrame:
        """Rows of the first seed's table."""
        return _part(self.runs[0].tables[table], **where)

    def course(self, column: str, alpha: float, steps: Sequence[float]) -> Array:
        """Statistics at some steps (seeds x steps)."""
        tables = [_part(each.tables["statistics"], alpha=alpha).set_index("step") for each in self.runs]
        return np.stack([table.loc[list(steps), column].to_numpy(dtype=np.float64) for table in tables])

    def say(self, claim: str, where: str, flags: Flags, numbers: str, of: str = "seeds") -> Verdict:
        """A verdict from one flag per seed, None for undecided; from one alone where seeds do not matter."""
        if len(flags) > 1:
            numbers += f"; holds in {sum(flag is True for flag in flags)} of {len(flags)} {of}"
        return Verdict(claim, f"Borup and Andersen 2021, {where}", _outcome(flags), numbers, self.label)


def _variants(found: Sequence[Finding]) -> list[_Variant]:
    return [_Variant(label, runs) for label, runs in variants(found)]


def _outcome(flags: Sequence[bool | None]) -> Literal["holds", "fails", "undecided"]:
    """What seeds say together: undecided where they disagree, or where one cannot tell."""
    if flags and all(flags):
        return "holds"
    return "fails" if flags and all(flag is False for flag in flags) else "undecided"


def _part(table: pd.DataFrame, **values: float) -> pd.DataFrame:
    for column, value in values.items():
        table = table[np.isclose(table[column], value)]
    return table


def _known(functions: Mapping[str, Maker], name: str) -> Maker:
    if name not in functions:
        raise UnknownNameError.of("figure", name, functions)
    return functions[name]


# figures


def _each(variants: Sequence[_Variant]) -> Iterator[tuple[_Variant, float, str]]:
    """Every variant with every alpha, and the title of its panel."""
    for variant in variants:
        for alpha in variant.c.alphas:
            yield variant, alpha, f"{variant.label}, α = {alpha:g}"


def _family(
    variant: _Variant, table: str, x: str, y: str, kind: Literal["line", "points"], **where: float
) -> list[Line]:
    """One line per step, and the limit where the table has it."""
    lines = []
    for i, step in enumerate(variant.steps):
        part = variant.first(table, step=step, **where)
        lines.append(Line.of(f"step {step:.0f}", part[x], part[y], kind=kind, step=i))
    limit = variant.first(table, step=math.inf, **where)
    return [*lines, Line.of("limit", limit[x], limit[y], role="limit")] if len(limit) else lines


def _figure2(variants: Sequence[_Variant]) -> tuple[list[Panel], str]:
    panels = []
    for variant, alpha, title in _each(variants):
        data, x = variant.first("data"), np.linspace(0, 1, variant.c.grid)
        truth = Line.of("sin 2πx", x, np.sin(2 * np.pi * x), role="truth")
        crosses = Line.of("data", data["x"], data["y"], kind="points", role="data")
        curves = _family(variant, "curves", "x", "value", "line", alpha=alpha)
        panels.append(Panel(title, "x", "f(x)", (truth, *curves, crosses)))
    c, seeds = variants[0].c, sorted({variant.runs[0].seed for variant in variants})
    return panels, (
        f"λ = {c.penalty:g}; noise of standard deviation {c.noise:g}, drawn once (seed "
        f"{', '.join(map(str, seeds))}; the paper states none). Step 1 is ordinary training."
    )


def _figure3(variants: Sequence[_Variant]) -> tuple[list[Panel], str]:
    panels = []
    for variant, alpha, title in _each(variants):
        lines = _family(variant, "diagonal", "index", "value", "points", alpha=alpha)
        panels.append(Panel(title, INDEX, "entry of B", tuple(lines), ylimits=(-0.02, 1.02)))
    return panels, "B depends on kernel and penalty alone, not on the noise: every seed gives the same."


def _figure4(variants: Sequence[_Variant]) -> tuple[list[Panel], str]:
    panels, missing = [], {}
    for variant, alpha, title in _each(variants):
        table = variant.first("ratios", alpha=alpha)
        known = table[table["sure"] == 1]["ratio"]
        scale: Scale = "log" if known.max() > 30 * known.min() else "linear"
        lines = _family(variant, "ratios", "index", "ratio", "line", alpha=alpha, sure=1.0)
        panels.append(Panel(title, INDEX, "R_k = B_(k+1) / B_k", tuple(lines), yscale=scale))
        if len(known) < len(table):
            missing[variant.label] = (
                f"k up to {table[table['sure'] == 0]['index'].max():.0f} at {variant.label}"
            )
    note = f" Left out, as eigenvalues are below rounding: {', '.join(missing.values())}." if missing else ""
    return panels, f"R_k depends on kernel and penalty alone: every seed gives the same.{note}"


def _figure_constrained(variants: Sequence[_Variant]) -> tuple[list[Panel], str]:
    panels, shown = [], []
    for variant in variants:
        solved = [each for each in variant.runs if each.tables["constrained"]["loss"].notna().all()]
        lost = len(variant.runs) - len(solved)
        which = f"{variant.label}: seed {solved[0].seed}" if solved else f"{variant.label}: none"
        note = f" (rounding forbids so small a loss in {lost} of {len(variant.runs)} seeds)"
        shown.append(which + (note if lost else ""))
        for column, unit in (("penalty", "penalty λ"), ("size", "root mean square of the fit")):
            lines = []
            for i, alpha in enumerate(variant.c.constrained_alphas):
                for each in solved[:1]:
                    part = _part(each.tables["constrained"], alpha=alpha)
                    part = part[np.isfinite(part[column])]
                    lines += (
                        [Line.of(f"α = {alpha:g}", part["step"], part[column], step=i)] if len(part) else []
                    )
            scale: Scale = "log" if column == "penalty" else "linear"
            panels += [Panel(variant.label, "step", unit, tuple(lines), yscale=scale)] if lines else []
    return panels, (
        f"Tolerance ε: {variants[0].c.tolerance:g} of the targets' mean square. λ is that of Eq. 23; it ends "
        f"where the solution is zero. One draw each, {'; '.join(shown)}."
    )


# verdicts


def _told(values: Array, digits: str = ".3f") -> str:
    """Means over seeds, one after the other."""
    return " ".join(f"{value:{digits}}" for value in values.mean(0))


def _turns(variant: _Variant) -> list[bool | None]:
    """Per seed: at alpha = 0, is step 2 nearer to the sine than step 1, and a later one farther off again?

    A change counts when it is beyond two standard errors over draws; None where that cannot be told.
    """
    change = variant.course("change", 0.0, variant.steps[1:])
    noise = 2 * variant.course("change_error", 0.0, variant.steps[1:])
    better, worse = change < -noise, change > noise
    return [
        True if up[1:].any() and down[0] else False if up[0] or down.all() else None
        for down, up in zip(better, worse, strict=True)
    ]


def _judge_fits(v: _Variant) -> list[Verdict]:
    c, said = v.c, []
    amount = f"{len(v.runs)} x {c.draws} draws"
    if 0 in c.alphas:
        inside = 100 * v.course("best", 0.0, v.steps[1:-1]).sum(1).mean()
        said.append(
            v.say(
                "At α = 0, self-distillation first improves the fit and then regularises too much",
                "Section 4.4, Figure 2a",
                _turns(v),
                f"mean squared distance to the clean sine at steps 1 to {c.steps}: "
                f"{_told(v.course('error', 0.0, v.steps))} ({amount}); the best is neither the first nor the "
                f"last in {inside:.0f} % of draws",
            )
        )
        sizes = v.course("size", 0.0, CONSECUTIVE + FAR)
        share = sizes / sizes[:, :1]
        said.append(
            v.say(
                "At α = 0, the solutions tend to zero",
                "Section 4.4, Figure 2a",
                [bool((np.diff(s) <= 0).all() and s[-1] < c.within) for s in share],
                f"size of the fit, of that at step 1, at steps {c.steps}, 20, 100 and {FAR[-1]:.0f}: "
                f"{_told(share[:, [c.steps - 1, 19, -4, -1]], '.3g')}",
            )
        )
    for alpha in v.guided:
        said += _judge_guided(v, alpha)
    if len(c.sweep) > 1:
        alphas = sorted(c.sweep)
        moved, away = (
            np.hstack([v.course(column, alpha, [step]) for alpha in alphas])
            for column, step in (("moved", 2), ("away", 1))
        )
        ends = [0, len(alphas) // 2, -1]
        said.append(
            v.say(
                "With larger α, consecutive steps differ less and the limit is nearer to the first fit",
                "Section 4.4, Figure 2",
                [
                    bool((np.diff(m) < 0).all() and (np.diff(a) < 0).all())
                    for m, a in zip(moved, away, strict=True)
                ],
                f"of {len(alphas)} α, at {', '.join(f'{alphas[i]:g}' for i in ends)}: root mean square of "
                f"step 2 less step 1 {_told(moved[:, ends])}, of limit less step 1 {_told(away[:, ends])}",
            )
        )
    return said


def _judge_guided(v: _Variant, alpha: float) -> list[Verdict]:
    c, said = v.c, []
    if 0 in c.alphas:
        less = v.course("moved", alpha, v.steps[1:]) / v.course("moved", 0.0, v.steps[1:])
        said.append(
            v.say(
                f"At α = {alpha:g}, consecutive steps differ less than at α = 0",
                "Section 4.4, Figure 2b",
                [bool((share < 1).all()) for share in less],
                f"difference of a step to the one before, over that at α = 0, steps 2 to {c.steps}: "
                f"{_told(less, '.2f')}",
            )
        )
    first, limit = v.course("size", alpha, [1, math.inf]).T
    said.append(
        v.say(
            f"At α = {alpha:g}, the limit is not zero",
            "Section 4.4, Figure 2b",
            [bool(share > c.within) for share in limit / first],
            f"size of the limit over that of the first fit: {np.mean(limit / first):.3f}",
        )
    )
    last = [float(c.iterations - 1)]
    near, away = v.course("near", alpha, last)[:, 0], v.course("away", alpha, last)[:, 0] / first
    said.append(
        v.say(
            f"At α = {alpha:g}, fewer than {c.iterations} steps usually suffice to converge",
            "Section 4.4, Theorem 4.4",
            [bool(share > 0.5) for share in near],
            f"after step {last[0]:.0f}, {100 * near.mean():.0f} % of draws are within {100 * c.within:g} % "
            f"of the first fit's size from their limit; root mean square distance {100 * away.mean():.2f} %",
        )
    )
    return said


def _judge_width(variants: Sequence[_Variant]) -> list[Verdict]:
    """Which width gamma shows what the text says of alpha = 0."""
    free = [v for v in variants if 0 in v.c.alphas]
    printed = [v for v in free if math.isclose(v.c.gamma, PRINTED)]
    if not printed:
        return []
    turns = {v.label: _outcome(_turns(v)) for v in free}
    fitting = [label for label, outcome in turns.items() if outcome == "holds"]
    told = [f"{v.label}: {_told(v.course('error', 0.0, v.steps))} ({turns[v.label]})" for v in free]
    return [
        Verdict(
            "The printed γ = 1/80 is the one of Figure 2: at α = 0, better at first and worse later",
            SECTION,
            turns[printed[0].label],
            f"the text fits {', '.join(fitting) or 'no variant here'}; mean squared distance to the clean "
            f"sine, step after step: {'; '.join(told)}",
            ", ".join(turns),
        )
    ]


def _signs(values: Array) -> NDArray[np.int64]:
    """Signs of the changes from row to row; 0 where a change may be rounding."""
    change = np.diff(values, axis=0)
    return np.where(np.abs(change) > RELATIVE * values[:-1], np.sign(change), 0).astype(np.int64)


def _counted(signs: NDArray[np.int64]) -> str:
    return (
        f"{(signs < 0).sum()} falls, {(signs > 0).sum()} rises, {(signs == 0).sum()} changes within rounding"
    )


def _entries(v: _Variant, alpha: float) -> pd.DataFrame:
    """Entries of B whose eigenvalues are above rounding: one row per step, one column per index."""
    return v.first("diagonal", alpha=alpha, sure=1.0).pivot(index="step", columns="index", values="value")


def _judge_diagonals(v: _Variant) -> list[Verdict]:
    c, said = v.c, []
    for alpha in c.alphas:
        table = _entries(v, alpha)
        drawn, limit = table.loc[v.steps].to_numpy(), table.loc[math.inf].to_numpy()
        signs = _signs(np.vstack([np.ones_like(limit), drawn]))
        kept = drawn[-1] / drawn[0]
        rises = np.diff(kept) > 0
        said += [
            v.say(
                f"At α = {alpha:g}, every entry of B falls with every step",
                "Section 4.4, Figure 3; Lemma 4.2",
                [bool((signs <= 0).all()) if signs.any() else None],
                f"{_counted(signs)} ({len(limit)} eigenvalues above rounding)",
            ),
            v.say(
                f"At α = {alpha:g}, entries of smaller eigenvalues shrink faster",
                "Section 4.4, Figure 3; Theorem 4.3",
                [bool(rises.all())],
                f"step {c.steps} keeps {kept[0]:.3g} of step 1 for the least eigenvalue, {kept[-1]:.3g} for "
                f"the greatest, and more from one to the next in {rises.sum()} of {len(rises)} pairs",
            ),
        ]
        if alpha == 0:
            far = table.loc[FAR[-1]].to_numpy().max()
            said.append(
                v.say(
                    "At α = 0, the diagonal of B collapses to zero",
                    "Section 4.4, Figure 3a",
                    [bool(far <= c.within and not limit.any())],
                    f"greatest entry: {drawn[-1].max():.3f} at step {c.steps}, {far:.2g} at {FAR[-1]:.0f}",
                )
            )
        elif alpha < 1:
            gaps = np.abs(drawn - limit).max(1)
            said.append(
                v.say(
                    f"At α = {alpha:g}, B has nearly converged after {c.steps} steps, and not to zero",
                    "Section 4.4, Figure 3b",
                    [bool(gaps[-1] <= c.within < limit.max())],
                    f"greatest distance to the limit: {gaps[0]:.4f} at step 1, {gaps[-1]:.4f} at step "
                    f"{c.steps} ({c.within:g} counts as none); the limit's entries reach {limit.max():.3f}",
                )
            )
    return said + [_judge_smaller(v, alpha) for alpha in v.guided if 0 in c.alphas]


def _judge_smaller(v: _Variant, alpha: float) -> Verdict:
    """Whether B is smaller at alpha = 0 than at another alpha, where the training errors are equal.

    At alpha = 0, log B is linear in the step; between whole steps it is interpolated to the equal error.
    """
    steps = np.array(CONSECUTIVE)
    tiny = np.finfo(float).tiny
    plain, guided = (
        np.log(np.maximum(_entries(v, a).loc[CONSECUTIVE].to_numpy(), tiny)) for a in (0.0, alpha)
    )
    there, here = (v.course("training", a, CONSECUTIVE).mean(0) for a in (0.0, alpha))
    shares, told = [], []
    for i in range(1, v.c.steps):
        if here[i] > there[-1]:
            continue
        place = float(np.interp(here[i], there, steps))
        same = np.array([np.interp(place, steps, column) for column in plain.T])
        shares.append(float((same < guided[i]).mean()))
        told.append(f"step {i + 1} with {place:.2f}, {100 * shares[-1]:.0f} %")
    most = {share > 0.5 for share in shares}
    return v.say(
        f"At equal training error, entries of B are usually smaller at α = 0 than at α = {alpha:g}",
        "Section 4.4, Figure 3",
        [most == {True} if len(most) == 1 else None],
        f"entries that are smaller, steps at α = {alpha:g} with the (interpolated) step at α = 0 of the same "
        f"error: {'; '.join(told) or 'none is the same'}. The paper says `similar quality of fit`",
    )


def _judge_ratios(v: _Variant) -> list[Verdict]:
    said = []
    for alpha in v.c.alphas:
        table = v.first("ratios", alpha=alpha, sure=1.0)
        signs = _signs(table.pivot(index="step", columns="index", values="ratio").to_numpy())
        told = f"{_counted(signs)} ({signs.shape[1]} ratios)"
        if alpha == 0:
            claim = "At α = 0, every ratio R_k rises with every step"
            said.append(v.say(claim, "Section 4.4, Figure 4a", [bool((signs > 0).all())], told))
        elif alpha < 1:
            claim = f"At α = {alpha:g}, ratios R_k need not rise with every step"
            said.append(v.say(claim, "Section 4.4, Figure 4b", [bool((signs < 0).any()) or None], told))
        later = table[(table["step"] > 1) & (table["left"].abs() > RELATIVE * table["ratio"])]
        right = np.sign(later["left"]) == np.sign(later["right"])
        said.append(
            v.say(
                f"At α = {alpha:g}, the sign test of Theorem 4.3 tells whether a ratio rises",
                "Theorem 4.3",
                [bool(right.all()) if len(later) else None],
                f"right in {right.sum()} of {len(later)} changes after step 1, of which "
                f"{(later['left'] < 0).sum()} are falls",
            )
        )
    return said


def _judge_constrained(v: _Variant) -> list[Verdict]:
    c, told = v.c, []
    expected: list[bool | None] = []
    rising: list[bool | None] = []
    paths: list[str] = []
    for alpha in c.constrained_alphas:
        parts = [_part(each.tables["constrained"], alpha=alpha) for each in v.runs]
        expected += [_as_predicted(part) for part in parts]
        told.append(f"α = {alpha:g}: {', '.join(_collapse(part) for part in parts)}")
        if alpha == 0:
            rising += [_rises(part) for part in parts]
            paths = [
                " ".join(f"{value:.3g}" for value in part["penalty"] if value < math.inf) for part in parts
            ]
    known = [flag for flag in expected if flag is not None]
    said = [
        v.say(
            "The mean square of the targets tells whether a constrained chain collapses to zero",
            "Section C.1",
            [all(known)] if known else [],
            f"ε is {c.tolerance:g} of it, so that zero is reached where α is less. Zero within "
            f"{c.constrained_steps} steps, seed after seed: {'; '.join(told)}; so in {sum(known)} of "
            f"{len(known)} chains that can be told",
        )
    ]
    if 0 in c.constrained_alphas:
        said.append(
            v.say(
                "At α = 0, the constrained chain is penalised more at every step, until it is zero",
                "Supplement C",
                [flag for flag in rising if flag is not None],
                f"λ per step, first seeds: {'; '.join([path for path in paths if path][:3])}",
                "chains with two such steps",
            )
        )
    return said


def _gone(part: pd.DataFrame) -> int | None:
    """The first step whose solution is zero."""
    steps = part["step"][np.isinf(part["penalty"])]
    return int(steps.min()) if len(steps) else None


def _collapse(part: pd.DataFrame) -> str:
    if part["loss"].isna().any():
        return "lost in rounding"
    step = _gone(part)
    return f"at step {step}" if step else "never"


def _as_predicted(part: pd.DataFrame) -> bool | None:
    """Whether zero is reached as the case of Section C.1 says; None where that cannot be told."""
    if part["loss"].isna().any():
        return None
    case, step = int(part["case"].iloc[0]), _gone(part)
    if case == 2:
        return None if step is None else step > 1
    return step == 1 if case == 1 else step is None


def _rises(part: pd.DataFrame) -> bool | None:
    """Whether the penalty rises from step to step; None where only one step has a penalty."""
    finite = part["penalty"][np.isfinite(part["penalty"])].to_numpy()
    return bool((np.diff(finite) > 0).all()) if len(finite) > 1 else None


Figure = Callable[[Sequence[_Variant]], tuple[list[Panel], str]]
FIGURES: Mapping[str, Figure] = {
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "constrained": _figure_constrained,
}
JUDGES: Mapping[str, Callable[[_Variant], list[Verdict]]] = {
    "figure2": _judge_fits,
    "figure3": _judge_diagonals,
    "figure4": _judge_ratios,
    "constrained": _judge_constrained,
}
