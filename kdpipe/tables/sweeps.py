"""Figures of what accuracy depends on: a setting that a study varies, and what a training costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.core.paths import Results
from kdpipe.plan.plan import TEACHER, Plan, PlannedStudy
from kdpipe.plan.study import Entry, Pair
from kdpipe.tables.blocks import block_title
from kdpipe.tables.collect import collect, frame, read_provenance
from kdpipe.tables.figures import (
    GREY,
    INK,
    Look,
    draw_points,
    finish_axis,
    house_style,
    looks,
    palette,
    panelled,
    save,
    shared_legend,
)
from kdpipe.tables.layout import heading, site

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS, LETTERS = 8, 36  # of an axis, at most; of its ticks together before they are turned
WIDE = 20  # a ratio of settings from which their axis is logarithmic
STANDARD = "standard"  # the recipe of ordinary teachers
AGAINST, DOTTED = "with the standard recipe", (0, (1, 1.5))  # what a sweep is seen against, and its line
SMALLEST = 1000  # extra parameters up to which their axis is linear
COSTS = {"ms_step": "time of a step (ms)", "extra_parameters": "extra parameters"}
_PLACE = ["row", "recipe", "dataset", "teacher", "student"]


@dataclass(frozen=True)
class Sweep:
    """Entries of one recipe or method that differ in one setting and in nothing else.

    Attributes:
        kind: what they are.
        name: of the recipe or method.
        setting: the one that differs; `protocol.KEY` for one of the protocol.
        values: label of the entry -> its value.
        default: label of the entry that does not state it, if there is one.
    """

    kind: Literal["recipe", "method"]
    name: str
    setting: str
    values: Mapping[str, Any]
    default: str | None

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values.values())

    @property
    def scale(self) -> Literal["linear", "log", "names"]:
        """The axis: logarithmic where the values are far apart, evenly spaced where that cannot be."""
        numbers = [float(v) for v in self.values.values()] if self.numeric else []
        sizes = [n for n in numbers if n > 0]
        if not sizes:
            return "names"
        if max(sizes) < WIDE * min(sizes):
            return "linear"
        return "log" if len(sizes) == len(numbers) else "names"

    @property
    def places(self) -> dict[str, float]:
        """Where each entry stands on the axis."""
        values = self.values
        if self.scale != "names":
            return {label: float(value) for label, value in values.items()}
        ordered = sorted(values, key=lambda x: float(values[x])) if self.numeric else list(values)
        return {label: float(number) for number, label in enumerate(ordered)}


def sweeps(study: PlannedStudy, plan: Plan) -> list[Sweep]:
    """Every setting that a study varies while all others of the recipe or method stay.

    Among the entries of one recipe or method, the one that most others differ from in one setting only is
    where the sweeps cross.
    """
    found = []
    groups: tuple[tuple[Literal["recipe", "method"], tuple[Entry, ...]], ...] = (
        ("recipe", study.study.recipes),
        ("method", study.study.methods),
    )
    for kind, entries in groups:
        for name in dict.fromkeys(entry.name for entry in entries):
            own = [entry for entry in entries if entry.name == name]
            known = {entry.label: _settings(study, plan, kind, entry, own) for entry in own}
            found += _crossing(kind, name, own, {label: s for label, s in known.items() if s})
    return found


def draw_sensitivity(study: PlannedStudy, plan: Plan, results: Results, stem: Path) -> list[Path]:
    """Draw accuracy against each setting that the study varies, a panel per pair and setting.

    Returns:
        The files written: an SVG, a PNG and a CSV.
    """
    with house_style():
        found = sweeps(study, plan)
        data = sensitivity_data(study, plan, results, found)
        return save(_sensitivity_figure(study, found, data), data, stem)


def sensitivity_data(
    study: PlannedStudy, plan: Plan, results: Results, found: Iterable[Sweep]
) -> pd.DataFrame:
    """What a study's sweeps show, and what it is seen against.

    Beside the sweep of a recipe stand the teachers of the standard recipe and their students; beside that of
    a method the teachers, and the students without one.

    Returns:
        Columns kind, name, setting, entry, value, x (its place on the axis; empty beside a sweep), default
        (whether the entry does not state the setting), row, recipe, dataset, teacher, student, mean, std (of
        the study's first measure) and n (seeds).
    """
    import pandas as pd

    metric = study.study.metrics[0]
    known = _means(study, plan, results, (metric,))
    ordinary = [entry.label for entry in study.study.recipes if entry.name == STANDARD]
    tables = []
    for sweep in found:
        beside = known["recipe"].isin(ordinary)
        if sweep.kind == "method":
            beside = (known["row"] == TEACHER) | (known["recipe"] == "")
        about = {"kind": sweep.kind, "name": sweep.name, "setting": sweep.setting}
        against = known[beside & (sweep.name != STANDARD)]
        tables.append(against.assign(**about, entry="", value="", x=float("nan"), default=False))
        column = "recipe" if sweep.kind == "recipe" else "row"
        for label, value in sweep.values.items():
            fields: dict[str, Any] = {
                **about,
                "entry": label,
                "value": str(value),
                "x": sweep.places[label],
                "default": label == sweep.default,
            }
            tables.append(known[known[column] == label].assign(**fields))
    columns = ["kind", "name", "setting", "entry", "value", "x", "default", *_PLACE, "mean", "std", "n"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def draw_cost(study: PlannedStudy, plan: Plan, results: Results, stem: Path) -> list[Path]:
    """Draw the students' accuracy against what their training costs, two panels per pair and recipe.

    Returns:
        The files written: an SVG, a PNG and a CSV.
    """
    with house_style():
        data = cost_data(study, plan, results)
        return save(_cost_figure(study, data), data, stem)


def cost_data(study: PlannedStudy, plan: Plan, results: Results) -> pd.DataFrame:
    """Accuracy of each student and what its training cost.

    Returns:
        Columns row, recipe, dataset, teacher, student, mean and std of the study's first measure, n (seeds),
        ms_step (ms), extra_parameters, and devices, which the times hold for.
    """
    metric = study.study.metrics[0]
    known = _means(study, plan, results, tuple(dict.fromkeys((metric, *COSTS))))
    own = known[known["metric"] == metric].drop(columns="metric")
    for name in COSTS:
        cost = known[known["metric"] == name].rename(columns={"mean": name})
        own = own.merge(cost[[*_PLACE, name]], on=_PLACE, how="left")
    own = own[own["row"] != TEACHER].reset_index(drop=True)
    devices = _devices(study, results)
    return own.assign(
        devices=[devices.get(tuple(place), "") for place in own[_PLACE].itertuples(index=False)]
    )


def _means(study: PlannedStudy, plan: Plan, results: Results, metrics: tuple[str, ...]) -> pd.DataFrame:
    """Of each measure: mean, standard deviation and number of finished seeds of a study's tabled cells."""
    asked = replace(study, study=study.study.model_copy(update={"metrics": metrics}))
    table = frame(m for m in collect(asked, plan, results) if m.part == "table" and m.value is not None)
    table[_PLACE] = table[_PLACE].fillna("")
    grouped = table.groupby(["metric", *_PLACE], sort=False)["value"].agg(["mean", "std", "count"])
    return grouped.rename(columns={"count": "n"}).reset_index()


def _devices(study: PlannedStudy, results: Results) -> dict[tuple[str, ...], str]:
    """The machines that made each student."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for cell in study.cells:
        record = read_provenance(results, cell.run) if cell.run and cell.part == "table" else None
        if record and record.get("device"):
            place = (cell.row, cell.recipe or "", cell.dataset, cell.teacher or "", cell.student or "")
            found.setdefault(place, {})[str(record["device"])] = None
    return {place: "; ".join(names) for place, names in found.items()}


def _settings(study: PlannedStudy, plan: Plan, kind: str, entry: Entry, group: list[Entry]) -> dict[str, Any]:
    """Every setting of an entry as its runs have it, and what the group changes of the protocol."""
    run = next(
        (
            plan.runs[c.run].run
            for c in study.cells
            if c.run and c.part == "table" and (c.row, c.recipe)[kind == "recipe"] == entry.label
            if (c.row == TEACHER) == (kind == "recipe")
        ),
        None,
    )
    if run is None:
        return {}
    changed = dict.fromkeys(key for other in group for key in other.protocol)
    protocol = run.spec.protocol.model_dump(mode="json")
    own = {f"protocol.{key}": protocol[key] for key in changed}
    return dict(_flat(run.spec.objective.settings)) | own


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _crossing(
    kind: Literal["recipe", "method"], name: str, entries: list[Entry], known: Mapping[str, dict[str, Any]]
) -> list[Sweep]:
    """The sweeps through the entry that most others differ from in one setting only."""

    def differing(a: str, b: str) -> list[str]:
        keys = dict.fromkeys([*known[a], *known[b]])
        return [key for key in keys if known[a].get(key) != known[b].get(key)]

    centre = max(known, key=lambda a: sum(len(differing(a, b)) == 1 for b in known), default=None)
    if centre is None:
        return []
    stated = {
        e.label: {*dict(_flat(e.settings)), *(f"protocol.{key}" for key in e.protocol)} for e in entries
    }
    found = []
    for setting in dict.fromkeys(d[0] for label in known if len(d := differing(centre, label)) == 1):
        members = [label for label in known if differing(centre, label) in ([], [setting])]
        values = {label: known[label].get(setting) for label in members}
        default = next((label for label in members if setting not in stated[label]), None)
        found.append(Sweep(kind, name, setting, values, default))
    return found


def _sensitivity_figure(study: PlannedStudy, found: list[Sweep], data: pd.DataFrame) -> Figure:
    shown = [(pair, sweep) for pair in study.study.pairs for sweep in found]
    if not shown:
        figure, axes = panelled(1, 1)
        axes[0].text(0.5, 0.5, "no entries differ in one setting only", ha="center", va="center", color=GREY)
        axes[0].set_axis_off()
        return figure
    figure, axes = panelled(len(shown), max(2, min(len(found), 3)))
    for axis, (pair, sweep) in zip(axes, shown, strict=True):
        here = data[(data["dataset"] == site(study.study, pair)) & (data["setting"] == sweep.setting)]
        here = here[(here["kind"] == sweep.kind) & (here["name"] == sweep.name)]
        for label, look, line in _lines(study, pair, sweep, here):
            points = line.dropna(subset=["x"]).sort_values("x")
            if not points.empty:
                draw_points(axis, points, "x", label, look)
            for mean in line[line["x"].isna()]["mean"]:
                name = AGAINST if sweep.kind == "recipe" else label
                axis.axhline(mean, color=look.colour, linestyle=DOTTED, linewidth=1.1)
                axis.plot(
                    [], [], color=GREY if name == AGAINST else look.colour, linestyle=DOTTED, label=name
                )
        if sweep.default is not None:
            axis.axvline(sweep.places[sweep.default], color=GREY, linewidth=0.8, zorder=0, label="default")
        axis.set_title(f"{heading(study.study, pair)}\n{sweep.name}")
        finish_axis(axis, sweep.setting, empty=not axis.lines)
        _ticks(axis, sweep)
    figure.supylabel(block_title(study.study.metrics[0]).replace(", higher is better", ""), fontsize=9)
    shared_legend(figure, axes)
    return figure


def _lines(
    study: PlannedStudy, pair: Pair, sweep: Sweep, data: pd.DataFrame
) -> Iterator[tuple[str, Look, pd.DataFrame]]:
    """The lines of a panel: of a recipe's sweep, the teacher and each method; of a method's, each recipe."""
    own = data["teacher"] == pair.teacher
    if sweep.kind == "recipe":
        for row, look in looks(study).items():
            student = "" if row == TEACHER else pair.student
            shown = data[own & (data["row"] == row) & (data["student"] == student)]
            yield row if row == TEACHER else f"student, {row}", look, shown
        return
    yield TEACHER, Look(INK, "-", ""), data[own & (data["row"] == TEACHER)]
    yield (
        "student alone",
        Look(GREY, "-", ""),
        data[(data["student"] == pair.student) & (data["recipe"] == "")],
    )
    students = data[own & (data["student"] == pair.student)]
    for recipe, look in zip([r.label for r in study.study.recipes], palette(), strict=False):
        yield f"student of a {recipe} teacher", look, students[students["recipe"] == recipe]


def _ticks(axis: Axes, sweep: Sweep) -> None:
    """Ticks at the values themselves."""
    places = sweep.places
    if sweep.scale == "log":
        axis.set_xscale("log")
    if sweep.scale == "linear" and len(places) > TICKS:
        return
    axis.set_xticks(list(places.values()), [_short(sweep.values[label]) for label in places], minor=False)
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    if max(len(_short(value)) for value in sweep.values.values()) * len(places) > LETTERS:
        axis.tick_params(axis="x", labelrotation=30)


def _short(value: Any) -> str:
    """A setting as a tick says it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cost_figure(study: PlannedStudy, data: pd.DataFrame) -> Figure:
    recipes = [entry.label for entry in study.study.recipes]
    shown = [(pair, recipe, cost) for pair in study.study.pairs for recipe in recipes for cost in COSTS]
    figure, axes = panelled(len(shown), len(COSTS))
    styles = looks(study)
    for axis, (pair, recipe, cost) in zip(axes, shown, strict=True):
        here = data[(data["dataset"] == site(study.study, pair)) & (data["student"] == pair.student)]
        taught = (here["recipe"] == recipe) & (here["teacher"] == pair.teacher)
        here = here[taught | (here["recipe"] == "")].dropna(subset=[cost])
        for row in styles:
            points = here[here["row"] == row]
            if not points.empty:
                draw_points(axis, points, cost, row, replace(styles[row], line="none"))
        axis.set_title(f"{heading(study.study, pair)}\n{recipe} teacher")
        finish_axis(axis, COSTS[cost], empty=here.empty)
        _cost_axis(axis, cost, float(here[cost].max()) if len(here) else 0.0)
    machines = sorted({name for names in data["devices"] for name in names.split("; ") if name})
    if len(machines) > 1:
        figure.suptitle(f"times of {len(machines)} kinds of machine: do not compare", fontsize=9)
    figure.supylabel(block_title(study.study.metrics[0]).replace(", higher is better", ""), fontsize=9)
    shared_legend(figure, axes)
    return figure


def _cost_axis(axis: Axes, cost: str, largest: float) -> None:
    """From zero; parameters, which reach from none to millions, in powers of ten."""
    if cost != "extra_parameters":
        axis.set_xlim(0, 1.08 * largest or 1)
        return
    axis.set_xscale("symlog", linthresh=SMALLEST)
    axis.set_xlim(-0.2 * SMALLEST, max(2 * largest, 2 * SMALLEST))
    powers = [10**n for n in range(3, 13) if 10**n <= max(2 * largest, SMALLEST)]
    axis.set_xticks([0, *powers], ["0", *(f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}k" for n in powers)])
    axis.tick_params(axis="x", which="minor", bottom=False)
