"""Plots: the files and their data, and what is drawn: looks, gaps, bars, scales, ticks and legend."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.font_manager import FontProperties, findfont, get_font

from kdpipe.core.errors import PluginError
from kdpipe.core.plot import Line, Panel, Plot
from kdpipe.tables import plots
from kdpipe.tables.figures import GREY, INK

PAGE = 17 / 2.54  # inches
SYMBOLS = "αβγδεηκλμνρσστφχψωΔΘΛΣΦΨΩ₀₁₂₉ₖₘₙᵢⱼ⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ−×·±≤≥≈∞→‖∇∂√∈ℓ…–—"


def panel(*lines, title="ReLU", **options):
    return Panel(title, "iteration", "loss", lines, **options)


def plot_of(*panels, **options):
    return Plot("some", "Some plot", panels, **options)


def drawn(*panels, **options):
    """The axes of a plot, after its layout."""
    with plots.plot_style():
        figure = plots.figure_of(plot_of(*panels, **options))
        figure.draw_without_rendering()
    return figure.axes


def lines_called(axis, label):
    return [line for line in axis.lines if line.get_label() == label]


def legend_of(axes):
    figure = axes[0].figure
    assert len(figure.legends) == 1
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lightness(colour):
    """CIE lightness, 0 (black) to 100 (white), of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * np.cbrt(luminance) - 16


# Plots of the kinds that benches draw


def curves():
    rng = np.random.default_rng(0)
    time = np.arange(0, 2001, 10)
    names = ("student without teacher", "student with teacher", "teacher")
    return Plot(
        "curves",
        "Learning curves",
        tuple(
            panel(
                *(
                    Line.over_seeds(
                        name, time, np.exp(-time / 500) + 0.1 * k + 0.01 * rng.normal(size=(5, 201))
                    )
                    for k, name in enumerate(names)
                ),
                title=f"ReLU, λ = {value}",
            )
            for value in ("0", "0.01", "∞")
        ),
        columns=3,
        shared=True,
    )


def family():
    x = np.linspace(0, 1, 101)
    rng = np.random.default_rng(1)

    def one(title, alpha):
        return Panel(
            title,
            "x",
            "prediction f(x)",
            (
                Line.of("truth", x, np.sin(6 * x), role="truth"),
                *(
                    Line.of(f"step {k + 1}", x, (alpha + (1 - alpha) * 0.7**k) * np.sin(6 * x), step=k)
                    for k in range(6)
                ),
                Line.of("limit", x, alpha * np.sin(6 * x), role="limit"),
                Line.of("data", x[::5], np.sin(6 * x[::5]) + rng.normal(size=21), role="data"),
            ),
        )

    return plot_of(*(one(f"α = {alpha}, γₖ = 2×10⁻²", alpha) for alpha in (0, 0.35, 0.6, 0.9)))


def histograms():
    rng = np.random.default_rng(2)
    bins = np.linspace(0, 1, 21)
    centres = (bins[1:] + bins[:-1]) / 2
    return plot_of(
        *(
            panel(
                *(
                    Line.of(name, centres, np.histogram(rng.beta(k, 3, 500), bins)[0], kind="bars")
                    for k, name in ((4, "fully trained"), (2, "partially trained"))
                ),
                title=f"width {width}",
            )
            for width in (64, 256, 1024, 4096)
        )
    )


def rates():
    width = 2 ** np.arange(4, 13)
    rng = np.random.default_rng(3)
    runs = [np.exp(0.2 * rng.normal(size=(5, 9))) / width / k for k in (1, 3)]
    return plot_of(
        *(
            panel(
                Line.over_seeds("ReLU", width, runs[0]),
                Line.over_seeds("erf", width, runs[1], kind="points"),
                Line.of("slope −1", [16, 4096], [0.5 / 16, 0.5 / 4096], role="limit"),
                title=title,
                xscale="log",
                yscale="log",
            )
            for title in ("training", "test")
        )
    )


def crowded():
    time = np.arange(241)
    return plot_of(
        *(
            panel(
                *(Line.of(f"method {k} and its options", time, 1e-4 * (k - time / 90)) for k in range(10)),
                title="WRN-40-2 teaches WRN-16-2 with label smoothing",
            )
            for _ in range(6)
        ),
        columns=3,
    )


def narrow():
    time = np.arange(0, 500001, 5000)
    line = Line.of("one", time, 1 + 1e6 * time)
    return plot_of(*(panel(line, title=f"number {k}") for k in range(8)), columns=9)


KINDS = [curves, family, histograms, rates, crowded, narrow]


# Files


@pytest.mark.parametrize("make", [curves, histograms])
def test_a_plot_its_data_and_the_same_bytes_again(tmp_path, make):
    paths = plots.draw_plot(make(), tmp_path / "one")
    assert [path.name for path in paths] == ["one.svg", "one.png", "one.csv"]
    again = plots.draw_plot(make(), tmp_path / "two")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert b"<dc:date>" not in paths[0].read_bytes()


def test_the_csv_holds_the_very_numbers(tmp_path):
    x, y = np.array([0.1, 1 / 3, 1e-17]), np.array([np.pi, np.nan, 0.0])
    plot = plot_of(
        panel(Line.of("a, with a comma", x, y, y - 1 / 7, y + 1 / 7), title="one", yscale="log"),
        panel(Line.of("b", [1], [2], kind="bars"), Line.of("c", [3], [4], role="limit"), title="two"),
    )
    path = plots.draw_plot(plot, tmp_path / "figure")[2]
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["panel", "line", "kind", "role", "x", "y", "low", "high"]
    assert rows[3:] == [
        ["two", "b", "bars", "main", "1.0", "2.0", "", ""],
        ["two", "c", "line", "limit", "3.0", "4.0", "", ""],
    ]
    assert [row[:4] for row in rows[:3]] == [["one", "a, with a comma", "line", "main"]] * 3
    numbers = np.array([[float(text or "nan") for text in row[4:]] for row in rows[:3]])
    np.testing.assert_array_equal(numbers.T, [x, y, y - 1 / 7, y + 1 / 7])


def test_panels_of_one_title_are_told_apart_in_the_data():
    line = Line.of("a", [1], [2])
    found = plots.tidy(plot_of(*(panel(line, title=t) for t in ("same", "other", "same", "", ""))))
    assert found["panel"].tolist() == ["same (1)", "other", "same (3)", "(4)", "(5)"]


def test_a_plot_without_a_point_has_data_of_no_rows():
    assert plots.tidy(plot_of(panel())).shape == (0, 8)


# Looks


def test_every_label_stands_once_in_the_legend_in_order_of_appearance():
    a, b, c = (Line.of(x, [1, 2], [1, 2]) for x in ("first", "_second", "third"))
    gone = Line.of("not there yet", [1, 2], [np.nan, np.nan])
    assert legend_of(drawn(panel(b, gone, a), panel(a, c, b))) == ["_second", "first", "third"]


def test_without_a_line_there_is_no_legend():
    assert not drawn(panel())[0].figure.legends


def test_lines_of_one_label_look_alike_in_every_panel():
    a, b, gone = (Line.of(x, [1, 2], [1, 2]) for x in "abc")
    axes = drawn(panel(gone, a, b), panel(b, a), panel(b))
    looks = [
        {
            (x.get_color(), x.get_linestyle(), x.get_marker())
            for axis in axes
            for x in lines_called(axis, label)
        }
        for label in "ab"
    ]
    assert [len(look) for look in looks] == [1, 1]
    assert not looks[0] & looks[1]


def test_a_look_does_not_depend_on_what_is_finished():
    full, empty = Line.of("a", [1], [1]), Line.of("a", [1], [np.nan])
    other = Line.of("b", [1], [1])
    assert plots.looks_of(plot_of(panel(full, other))) == plots.looks_of(plot_of(panel(empty, other)))


def test_a_label_keeps_the_look_it_had_first():
    first, later = Line.of("a", [1], [1], role="truth"), Line.of("a", [1], [1], step=2)
    looks = plots.looks_of(plot_of(panel(first), panel(later, Line.of("b", [1], [1], step=0))))
    assert looks["a"].colour == GREY
    assert lightness(looks["b"].colour) < 20


def test_ten_lines_differ_without_their_colour():
    looks = plots.looks_of(plot_of(panel(*(Line.of(str(k), [1], [1]) for k in range(10)))))
    assert len({(str(look.line), look.marker) for look in looks.values()}) == 10


def test_a_family_goes_from_dark_to_light_and_is_never_pale():
    steps = [3, 0, 5, 1, 9]
    looks = plots.looks_of(plot_of(panel(*(Line.of(f"step {k}", [1], [1], step=k) for k in steps))))
    shades = [lightness(looks[f"step {k}"].colour) for k in sorted(steps)]
    assert (np.diff(shades) > 8).all()
    assert shades[-1] < 78
    assert len({look.marker for look in looks.values()}) == 5


def test_two_families_share_shades_and_differ_in_dashes():
    lines = [Line.of(f"{name}, step {k}", [1], [1], step=k) for name in "ab" for k in range(3)]
    looks = plots.looks_of(plot_of(panel(*lines)))
    for k in range(3):
        one, other = looks[f"a, step {k}"], looks[f"b, step {k}"]
        assert one.colour == other.colour
        assert (one.line, one.marker) != (other.line, other.marker)


def test_roles_have_their_looks():
    x = np.linspace(0, 1, 30)
    (axis,) = drawn(
        panel(
            Line.of("limit", x, x, role="limit", step=3),
            Line.of("other limit", x, x, role="limit"),
            Line.of("data", x, x, role="data"),
            Line.of("truth", x, x, role="truth"),
            Line.of("main", x, x),
        )
    )
    (limit,), (other,), (data,), (truth,), (main,) = (
        lines_called(axis, x) for x in ("limit", "other limit", "data", "truth", "main")
    )
    assert same_color(limit.get_color(), INK)
    assert limit.is_dashed()
    assert limit.get_marker() == "none"
    assert other.is_dashed()
    assert other._dash_pattern != limit._dash_pattern
    assert (data.get_color(), data.get_marker(), data.get_linestyle()) == (INK, "x", "None")
    assert same_color(truth.get_color(), GREY)
    assert not truth.is_dashed()
    assert truth.get_linewidth() < main.get_linewidth()
    assert truth.get_zorder() < main.get_zorder() < limit.get_zorder()
    assert not main.is_dashed()


def test_few_points_are_all_marked_and_many_are_not():
    few, many = np.arange(1, 9), np.geomspace(1, 1000, 400)
    lines = [Line.of("few", few, few), Line.of("many", many, many), Line.of("more", many, many)]
    (axis,) = drawn(panel(*lines, xscale="log"))
    assert lines_called(axis, "few")[0].get_markevery() == list(range(8))
    one, other = (lines_called(axis, x)[0].get_markevery() for x in ("many", "more"))
    assert 4 <= len(one) <= 7
    assert not set(one) & set(other)
    assert np.ptp(np.diff(np.log(many[one]))) < 0.05  # evenly along the axis


@pytest.mark.parametrize(("points", "markers"), [(6, 3), (50, 0)])
def test_a_family_has_markers_only_where_points_are_few(points, markers):
    x = np.arange(points)
    (axis,) = drawn(panel(*(Line.of(str(k), x, x + k, step=k) for k in range(3))))
    found = {x.get_marker() for x in axis.lines}
    assert len(found - {"none"}) == markers
    shown = {handle.get_marker() for handle in axis.figure.legends[0].legend_handles}
    assert shown == found


# Points


def test_a_nan_leaves_a_gap_and_a_point_between_gaps_is_seen():
    x, y = np.arange(40.0), np.arange(40.0)
    y[[10, 12, 20]] = np.nan, np.inf, -np.inf
    (axis,) = drawn(panel(Line.of("a", x, y, y - 1, y + 1), Line.of("b", x, y, role="truth")))
    (line,) = lines_called(axis, "a")
    expected = np.where(np.isfinite(y), y, np.nan)
    np.testing.assert_array_equal(line.get_ydata(), expected)
    assert 11 in line.get_markevery()
    (dot,) = (x for x in axis.lines if x.get_linestyle() == "None")
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([11], [11])
    assert len(axis.collections[0].get_paths()) >= 3  # the band has the same gaps


def test_a_log_axis_leaves_out_what_is_not_positive():
    x = np.arange(6.0)
    y = np.array([5.0, 1.0, 0.1, 0.0, -1.0, 1e-3])
    line = Line.of("a", x, y, np.array([4, 0.5, 0, 0, -2, -1]), np.array([6, 2, 1, 0, 0, 2e-3]))
    (axis,) = drawn(panel(line, Line.of("gone", [0], [1]), xscale="log", yscale="log"))
    (shown,) = lines_called(axis, "a")
    np.testing.assert_array_equal(shown.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(shown.get_ydata(), [1, 0.1, np.nan, np.nan, 1e-3])
    assert legend_of([axis]) == ["a"]
    left, right = axis.get_xlim()
    low, high = axis.get_ylim()
    assert 0.5 < left < 1 < 5 < right < 10
    assert 1e-4 < low < 1e-3 < 2 < high < 10
    band = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
    assert 0 < band[:, 1].min() < low  # it goes on to the foot of the axes


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_panel_without_results_says_so(scale):
    empty, nan = panel(yscale=scale, xscale=scale), panel(Line.of("a", [1, 2], [np.nan, np.nan]))
    axes = drawn(empty, nan, panel(Line.of("a", [1, 2], [1, 2])))
    texts = [[text.get_text() for text in axis.texts] for axis in axes]
    assert texts == [["no results yet"], ["no results yet"], []]


def test_bands_and_error_bars_reach_from_low_to_high():
    x, y = np.array([1.0, 2, 3]), np.array([1.0, 2, 3])
    low, high = y - np.array([0.1, 0.2, 0.3]), y + np.array([0.4, 0.5, 0.6])
    (axis,) = drawn(
        panel(*(Line.of(kind, x, y, low, high, kind=kind) for kind in ("line", "points", "bars")))
    )
    band, *bars = axis.collections
    vertices = band.get_paths()[0].vertices
    for place, below, above in zip(x, low, high, strict=True):
        own = vertices[vertices[:, 0] == place][:, 1]
        assert {round(v, 9) for v in own} == {round(below, 9), round(above, 9)}
    ends = [np.array([segment[:, 1] for segment in part.get_segments()]) for part in bars]
    assert len(ends) == 2
    for found in ends:
        np.testing.assert_allclose(found, np.stack([low, high], 1))
    assert lines_called(axis, "points")[0].get_linestyle() == "None"


def test_a_mean_that_rounds_beyond_its_runs_is_drawn():
    runs = [[0.1], [0.1], [0.1]]
    line = Line.over_seeds("a", [1], runs, kind="points")
    assert line.y[0] > line.high[0]
    assert drawn(panel(line))


# Bars


def edges(axis, label):
    (bars,) = (found for found in axis.containers if found.get_label() == label)
    return np.array([(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars])


@pytest.mark.parametrize("labels", ["a", "ab", "abc"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_bars_stand_side_by_side_around_their_x(labels, scale):
    x = np.array([1.0, 2, 4, 8]) if scale == "log" else np.array([1.0, 1.5, 2, 3])
    near = x * (1 + 1e-15 * np.arange(4))  # the same bins, computed otherwise
    lines = [Line.of(k, near if k == "b" else x, [3, 1, 2, 4], kind="bars") for k in labels]
    (axis,) = drawn(panel(*lines, xscale=scale))
    scaled = np.log if scale == "log" else np.asarray
    groups = scaled(np.stack([edges(axis, k) for k in labels]))  # label, bar, side
    np.testing.assert_allclose(groups[0, :, 0] + groups[-1, :, 1], 2 * scaled(x), rtol=1e-9, atol=1e-9)
    every = sorted(map(tuple, groups.reshape(-1, 2)))
    assert all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(every))
    widths = groups[..., 1] - groups[..., 0]
    spacing = np.diff(scaled(x)).min()
    assert (widths > 0.7 * spacing / len(labels)).all()
    left, right = scaled(axis.get_xlim())
    assert left < groups.min() < groups.max() < right


def test_bars_stand_on_zero_and_one_bar_is_drawn():
    up, down = Line.of("a", [3], [2], kind="bars"), Line.of("a", [3], [-2], kind="bars")
    axes = drawn(panel(up), panel(down), panel(Line.of("a", [1, 2], [0, 0], kind="bars")))
    assert axes[0].get_ylim()[0] == 0
    assert axes[1].get_ylim()[1] == 0
    assert axes[2].get_ylim()[0] == 0 < axes[2].get_ylim()[1]
    assert edges(axes[0], "a").mean() == pytest.approx(3)


def test_bars_on_a_log_axis_end_at_their_values():
    (axis,) = drawn(panel(Line.of("a", range(5), [10, 0, np.inf, np.nan, 1000], kind="bars"), yscale="log"))
    (bars,) = axis.containers
    assert [bar.get_y() + bar.get_height() for bar in bars] == pytest.approx([10, 1000])
    low = axis.get_ylim()[0]
    assert all(0 < bar.get_y() < low < 10 for bar in bars)


def test_two_labels_of_bars_differ_in_grey_print():
    x = [1, 2]
    (axis,) = drawn(panel(*(Line.of(k, x, x, kind="bars") for k in "abc")))
    looks = [found.patches[0] for found in axis.containers]
    assert abs(lightness(looks[0].get_facecolor()) - lightness(looks[1].get_facecolor())) > 25
    assert len({bar.get_hatch() for bar in looks}) == 3


# Scales and ticks


def test_shared_panels_have_one_scale_and_one_label():
    short, tall = Line.of("a", [1, 2], [1, 2]), Line.of("a", [1, 2], [-5, 9])
    axes = drawn(panel(short), panel(tall), panel(), shared=True, columns=3)
    assert len({axis.get_ylim() for axis in axes}) == 1
    low, high = axes[0].get_ylim()
    assert low < -5 < 9 < high
    assert [axis.get_ylabel() for axis in axes] == ["", "", ""]
    assert axes[0].figure.get_supylabel() == "loss"
    shown = [any(label.get_visible() for label in axis.get_yticklabels()) for axis in axes]
    assert shown == [True, False, False]


def test_panels_are_scaled_alone_unless_shared():
    short, tall = Line.of("a", [1, 2], [1, 2]), Line.of("a", [1, 2], [-5, 9])
    axes = drawn(panel(short), panel(tall))
    assert axes[0].get_ylim()[0] > 0 > axes[1].get_ylim()[0]
    assert [axis.get_ylabel() for axis in axes] == ["loss", "loss"]
    assert axes[0].figure.get_supylabel() == ""


@pytest.mark.parametrize("shared", [False, True])
def test_limits_that_are_asked_for_are_kept(shared):
    line = Line.of("a", [1, 2], [1, 2])
    axes = drawn(panel(line, ylimits=(0, 50)), panel(line, ylimits=(-1, 20)), shared=shared)
    expected = [(-1, 50), (-1, 50)] if shared else [(0, 50), (-1, 20)]
    assert [axis.get_ylim() for axis in axes] == expected


def test_few_whole_x_have_a_tick_each():
    steps, alphas, widths = [1, 2, 3, 4, 5, 6], np.arange(10) / 10, 2 ** np.arange(4, 13)
    axes = drawn(
        panel(Line.of("a", steps, steps)),
        panel(Line.of("a", alphas, alphas)),
        panel(Line.of("a", widths, widths), xscale="log"),
        panel(Line.of("a", range(301), range(301))),
    )
    ticks = [[label.get_text() for label in axis.get_xticklabels()] for axis in axes]
    assert ticks[0] == ["1", "2", "3", "4", "5", "6"]
    assert ticks[1] == ["0.0", "0.2", "0.4", "0.6", "0.8"]
    assert ticks[2] == ["16", "64", "256", "1024", "4096"]
    assert all(float(tick).is_integer() for tick in ticks[3])
    assert 3 <= len(ticks[3]) <= 7


@pytest.mark.parametrize(
    ("ticks", "log", "labels"),
    [
        ([-1, -0.5, 0, 0.5], False, ["−1.0", "−0.5", "0.0", "0.5"]),
        ([0, 0.1 + 0.2, 0.6], False, ["0.0", "0.3", "0.6"]),
        ([0.99925, 0.9995], False, ["0.99925", "0.99950"]),
        ([0, 2000, 4000], False, ["0", "2000", "4000"]),
        ([0, 5e6, 1e7], False, ["0", "0.5×10⁷", "1.0×10⁷"]),
        ([-2e-5, -1e-5, 0], False, ["−2×10⁻⁵", "−1×10⁻⁵", "0"]),
        ([0.01, 0.1, 1, 10], True, ["0.01", "0.1", "1", "10"]),
        ([1e-10, 1e-5, 1], True, ["10⁻¹⁰", "10⁻⁵", "10⁰"]),
        ([2e-7, 5e-7, 1e-6, 2e-6], True, ["2×10⁻⁷", "5×10⁻⁷", "10⁻⁶", "2×10⁻⁶"]),
        ([0], False, ["0"]),
        ([], True, []),
    ],
)
def test_labels_of_ticks(ticks, log, labels):
    assert plots.number_labels(np.array(ticks, dtype=float), log) == labels


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(("low", "high"), [(1, 1.001), (3, 4), (0.5, 30), (1e-3, 1), (1e-16, 1e4), (7, 7)])
def test_any_range_has_ticks_within_it(low, high, scale):
    (axis,) = drawn(panel(Line.of("a", [1.5, 2.5], [low, high]), yscale=scale))
    bottom, top = axis.get_ylim()
    ticks = axis.get_yticks()
    assert bottom < low <= high < top
    assert 2 <= len(ticks) <= 9
    assert ((ticks >= bottom) & (ticks <= top)).all()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(set(labels)) == len(ticks)
    assert not any("$" in label for label in labels)


# The page


def extents(texts):
    return [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]


def apart(boxes):
    return not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("make", KINDS)
def test_a_figure_fits_the_page_and_no_text_touches_another(make):
    with plots.plot_style():
        figure = plots.figure_of(make())
        figure.draw_without_rendering()
    assert figure.get_figwidth() <= PAGE
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    for axis in figure.axes:
        for side in (axis.get_xticklabels(), axis.get_yticklabels()):
            assert apart(extents(side))
            assert len(extents(side)) >= 2 or make().shared
            texts += side
    labels = figure.legends[0].get_texts()
    every = extents(texts) + extents(labels)
    assert apart(every)
    page = figure.bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in every)
    assert min(text.get_fontsize() for text in (*texts, *labels)) >= 7
    assert not any(axis.bbox.overlaps(figure.legends[0].get_window_extent()) for axis in figure.axes)
    assert min(axis.bbox.height for axis in figure.axes) > 1.1 * figure.dpi


def test_panels_stand_in_columns():
    line = Line.of("a", [1, 2], [1, 2])
    axes = drawn(*(panel(line) for _ in range(5)), columns=3)
    rows = [round(axis.get_position().y0, 2) for axis in axes]
    assert rows[0] == rows[1] == rows[2] > rows[3] == rows[4]
    lefts = [round(axis.get_position().x0, 2) for axis in axes]
    assert lefts[0] == lefts[3] < lefts[1] == lefts[4] < lefts[2]


def test_a_long_legend_wraps():
    short = [Line.of(f"line {k}", [1, 2], [1, k]) for k in range(9)]
    long = Line.of("of a very long name " * 12, [1, 2], [3, 4])
    (axis,) = drawn(panel(*short, long), columns=1)
    box = axis.figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= axis.figure.bbox.width
    assert legend_of([axis])[-1].split() == long.label.split()


def test_a_legend_takes_no_height_from_the_axes():
    lines = [Line.of(f"a line of a rather long name {k}", [1, 2], [1, k]) for k in range(12)]
    heights = [drawn(panel(*lines[:count]))[0].bbox.height for count in (1, 12)]
    assert heights[1] == pytest.approx(heights[0], rel=0.05)


def test_letters_of_formulas_are_in_the_font():
    with plots.plot_style():
        font = get_font(findfont(FontProperties()))
        axes = plots.figure_of(plot_of(panel(Line.of(SYMBOLS, [1, 2], [1, 2]), title="$λ_k$ \\alpha{"))).axes
    assert "DejaVu Sans" in font.family_name
    assert [x for x in SYMBOLS if ord(x) not in font.get_charmap()] == []
    assert axes[0].get_title() == "$λ_k$ \\alpha{"


# Mistakes

LINE = Line.of("a", [1, 2], [1, 2])


@pytest.mark.parametrize(
    ("plot", "words"),
    [
        (plot_of(), "no panels"),
        (plot_of(panel(LINE), columns=0), "columns is 0"),
        (plot_of(panel(LINE), panel(LINE, yscale="log"), shared=True), "share a vertical scale"),
        (plot_of(panel(LINE, ylimits=(2, 1))), "ascend"),
        (plot_of(panel(LINE, ylimits=(0, np.nan))), "finite"),
        (plot_of(panel(LINE, ylimits=(0, 1), yscale="log")), "positive"),
        (plot_of(panel(Line.of("a", [1], [1], low=[0]))), "give both"),
        (plot_of(panel(Line("a", np.ones(2), np.ones(3)))), "differ in length"),
        (plot_of(panel(Line.of("a", [1], [1], kind="pie"))), "'pie' is none of line, points, bars"),
        (plot_of(panel(Line.of("a", [1], [1], role="guide"))), "'guide' is none of main"),
    ],
)
def test_a_plot_that_contradicts_itself_is_refused(tmp_path, plot, words):
    with pytest.raises(PluginError, match=words) as error:
        plots.draw_plot(plot, tmp_path / "figure")
    assert "plot 'some'" in str(error.value)
    assert not list(tmp_path.iterdir())
