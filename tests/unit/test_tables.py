"""From made-up results to tables and figures: numbers, marks, gaps, escaping, equal bytes."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdpipe.core.errors import ResultsError, UnknownNameError
from kdpipe.core.measures import METRICS
from kdpipe.core.paths import RunPaths
from kdpipe.plan.plan import Cell
from kdpipe.plan.study import Curve
from kdpipe.tables.blocks import block_title, measure
from kdpipe.tables.collect import collect, frame
from kdpipe.tables.figures import COLOURS, learning_data, looks, sampling_data
from kdpipe.tables.layout import lay_out
from kdpipe.tables.render import (
    latex,
    latex_escape,
    latex_label,
    markdown,
    markdown_escape,
    render,
    terminal_table,
)
from tests.unit.synthetic import EPOCHS, SKIPPED, Made, draw, files

HOSTILE = '<script>alert(1)</script> 50% & $x_1$ | #{y} \\z~^"*`[q]'
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def made(tmp_path) -> Made:
    """Two seeds of two recipes: one run diverged, one is missing, one method is skipped."""
    made = Made(tmp_path, skip=["fitnet"]).finish()
    made.collapse(made.run("dkd", "standard", 1), 8)
    made.lose(made.run("kd", "soteacher", 0))
    return made


def layout_of(made: Made):
    return lay_out(made.study, made.plan, made.results)


def texts(made: Made, block: int = 0) -> dict[str, list[str]]:
    return {line.label: [e.text for e in line.entries] for line in layout_of(made).blocks[block].lines}


def marks(made: Made, block: int = 0) -> dict[str, list[str | None]]:
    return {line.label: [e.mark for e in line.entries] for line in layout_of(made).blocks[block].lines}


# Collecting


def test_every_cell_and_measure_has_one_row_and_its_status(made):
    table = frame(collect(made.study, made.plan, made.results))
    assert len(table) == len(made.study.cells) * len(made.metrics)
    assert not table.duplicated(["part", "row", "recipe", "seed", "epoch", "metric"]).any()
    top1 = table[(table["metric"] == "top1") & (table["part"] == "table")]
    assert top1["status"].value_counts().to_dict() == {
        "finished": 4 + 2 + 3 + 3,  # teachers, scratch students, kd and dkd
        "collapsed": 1,
        "missing": 1,
        "skipped": 4,
    }
    lost = top1[top1["status"] == "collapsed"].iloc[0]
    assert (lost["row"], lost["seed"], lost["collapsed_epoch"]) == ("dkd", 1, 8)
    assert set(top1[top1["status"] == "skipped"]["reason"]) == {SKIPPED}
    assert top1[top1["status"] != "finished"]["value"].isna().all()


def test_a_row_names_the_run_it_comes_from(made):
    table = frame(collect(made.study, made.plan, made.results)).dropna(subset="run")
    for run, run_id in zip(table["run"], table["run_id"], strict=True):
        assert made.plan.runs[run].run.id == run_id


def test_a_sampled_teacher_has_its_own_measures(made):
    table = frame(collect(made.study, made.plan, made.results))
    own = table.query("part == 'curve' and row == 'teacher' and seed == 0 and metric == 'top1'")
    own = own[own["recipe"] == "standard"].set_index("epoch")["value"]
    assert own.to_dict() == pytest.approx({5: 96.5, 10: 97.0, EPOCHS: 98.0})


def test_a_measure_that_a_run_lacks_is_unmeasured(made):
    table = frame(collect(made.study, made.plan, made.results))
    alone = table[(table["row"] == "scratch") & (table["metric"] == "agreement")]
    assert set(alone["status"]) == {"unmeasured"}


@pytest.mark.parametrize("content", ["{", "[]", '{"status": "odd"}'])
def test_a_damaged_metrics_file_is_one_clear_error(made, content):
    path = made.results.run(made.run("kd", "standard", 0)).metrics
    path.write_text(content)
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        collect(made.study, made.plan, made.results)


# The table


def test_numbers_stand_where_they_belong(made):
    assert texts(made) == {
        "teacher": ["98.05 ± 0.07 (n=2)", "98.55 ± 0.07 (n=2)"],
        "scratch": ["95.05 ± 0.07 (n=2)"] * 2,
        "kd": ["96.05 ± 0.07 (n=2)", "96.60 (n=1, …)"],
        "dkd": ["97.00 (n=1, N.A.(8))", "97.55 ± 0.07 (n=2)"],
        "fitnet": ["–", "–"],
    }


def test_the_teacher_and_incomplete_cells_take_no_mark(made):
    assert marks(made) == {
        "teacher": [None, None],
        "scratch": ["second", "second"],
        "kd": ["best", None],
        "dkd": [None, "best"],
        "fitnet": [None, None],
    }


def test_the_direction_of_a_measure_decides_the_mark(tmp_path):
    made = Made(tmp_path, metrics=["nll", "agreement"], curve=()).finish()
    nll = marks(made, 0)
    assert (nll["dkd"], nll["fitnet"], nll["scratch"]) == (["best"] * 2, ["second"] * 2, [None] * 2)
    assert {m for row in marks(made, 1).values() for m in row} == {None}


def test_columns_are_recipes_within_pairs(tmp_path):
    made = Made(tmp_path, pairs=[("big", "small"), ("big", "tiny")], curve=()).finish()
    block = layout_of(made).blocks[0]
    assert block.groups == [("big → small", 2), ("big → tiny", 2)]
    assert [c.label for c in block.columns] == ["standard", "soteacher"] * 2
    scratch = next(line for line in block.lines if line.label == "scratch")
    runs = [entry.summary.runs for entry in scratch.entries]
    assert runs[0] == runs[1] != runs[2] == runs[3]


def test_a_wide_table_is_printed_on_its_side_with_the_same_numbers_and_marks(tmp_path):
    recipes = [f"recipe{i}" for i in range(12)]
    made = Made(tmp_path, recipes=recipes).finish()
    block = layout_of(made).blocks[0]
    printed = block.printed()
    assert (printed.corner, [line.label for line in printed.lines]) == ("recipe", recipes)
    assert [c.label for c in printed.columns] == [line.label for line in block.lines]
    turned = zip(*(line.entries for line in block.lines), strict=True)
    assert [line.entries for line in printed.lines] == list(turned)
    narrow = layout_of(Made(tmp_path / "narrow").finish()).blocks[0]
    assert narrow.printed() is narrow


def test_gaps_are_counted_and_explained(made):
    layout = layout_of(made)
    assert (layout.missing, layout.collapsed, layout.total) == (1, 1, len(made.study.runs()))
    assert layout.footnotes == (SKIPPED, "the measure does not apply")
    assert layout.notes[0].startswith(f"1 of {layout.total} runs missing")
    fitnet = layout.blocks[0].lines[-1]
    assert [entry.note for entry in fitnet.entries] == [1, 1]


def test_a_whole_table_says_nothing_of_gaps(tmp_path):
    notes = " ".join(layout_of(Made(tmp_path).finish()).notes)
    assert "missing" not in notes
    assert "diverged" not in notes


def test_a_table_without_any_result_still_renders(tmp_path):
    made = Made(tmp_path)
    render(made.study, made.plan, made.results)
    assert {t for row in texts(made).values() for t in row} == {"…"}
    text = (made.results.study("demo") / "table.md").read_text()
    assert f"{layout_of(made).total} of {layout_of(made).total} runs missing" in text


@pytest.mark.parametrize(("scale", "said"), [("full", "Scale: full."), ("smoke", "not to be compared")])
def test_the_scale_is_printed(tmp_path, scale, said):
    made = Made(tmp_path, scale=scale).finish()
    assert said in markdown(layout_of(made))


def test_the_curve_has_a_row_per_teacher_epoch(made):
    curve = layout_of(made).blocks[-1]
    assert [line.label for line in curve.lines] == ["5", "10", str(EPOCHS)]
    assert [c.label for c in curve.columns] == ["teacher", "kd"] * 2
    assert [e.text for e in curve.lines[0].entries[:2]] == ["96.55 ± 0.07 (n=2)", "94.55 ± 0.07 (n=2)"]
    assert "not part of the study" not in layout_of(made).footnotes


def test_a_skipped_curve_keeps_its_rows_and_its_reason(tmp_path):
    made = Made(tmp_path)
    cells = [c if c.row != "kd" else type(c)(**{**vars(c), "run": None, "skipped": "no"}) for c in made.cells]
    study = type(made.study)("demo", made.study.study, "full", tuple(dict.fromkeys(cells)))
    layout = lay_out(study, made.plan, made.results)
    assert [line.label for line in layout.blocks[-1].lines] == ["5", "10", str(EPOCHS)]
    assert {line.entries[1].text for line in layout.blocks[-1].lines} == {"–"}
    assert layout.footnotes == ("no",)


def test_every_measure_has_a_heading():
    for name in METRICS:
        assert measure(name).title in block_title(name)
    assert block_title("top1") == "top-1 (%, higher is better)"
    assert block_title("temperature") == "T"
    with pytest.raises(UnknownNameError, match="did you mean 'agreement'"):
        measure("agrement")


# Files


def test_files_are_written_and_listed(made):
    paths = render(made.study, made.plan, made.results)
    assert sorted(p.name for p in paths) == sorted(files(made.results.study("demo")))
    assert {p.name for p in paths} == {
        *(f"table.{s}" for s in ("csv", "md", "tex", "html")),
        "seeds.csv",
    }
    assert {p.name for p in draw(made)} == {
        f"{n}.{s}" for n in ("learning_curves", "sampling") for s in ("svg", "png", "csv")
    }


def test_the_same_results_give_the_same_bytes(made, tmp_path_factory):
    render(made.study, made.plan, made.results)
    first = files(made.results.study("demo"))
    render(made.study, made.plan, made.results)
    assert files(made.results.study("demo")) == first
    other = Made(tmp_path_factory.mktemp("other"), skip=["fitnet"]).finish()
    other.collapse(other.run("dkd", "standard", 1), 8)
    other.lose(other.run("kd", "soteacher", 0))
    render(other.study, other.plan, other.results)
    assert files(other.results.study("demo")) == first


def test_csv_holds_the_numbers_and_their_runs(made):
    render(made.study, made.plan, made.results)
    table = pd.read_csv(made.results.study("demo") / "table.csv", keep_default_na=False)
    cell = table.query("part == 'table' and row == 'dkd' and recipe == 'soteacher' and metric == 'top1'")
    row = cell.iloc[0]
    assert float(row["mean"]) == pytest.approx(97.55)
    assert float(row["std"]) == pytest.approx(0.1 / 2**0.5)
    assert (row["n"], row["planned"], row["mark"]) == (2, 2, "best")
    assert row["runs"].split() == [made.run("dkd", "soteacher", seed) for seed in (0, 1)]
    assert [run.rsplit("-", 1)[1] for run in row["runs"].split()] == row["ids"].split()
    seeds = pd.read_csv(made.results.study("demo") / "seeds.csv")
    collected = frame(collect(made.study, made.plan, made.results))
    a, b = (table.dropna(axis="columns", how="all") for table in (seeds, collected))  # those have no type
    pd.testing.assert_frame_equal(a, b, check_dtype=False)


def test_a_render_after_the_missing_run_is_made_is_whole(made):
    render(made.study, made.plan, made.results)
    missing = made.run("kd", "soteacher", 0)
    for cell in made.study.cells:
        if cell.run == missing:
            made.write(cell)
    render(made.study, made.plan, made.results)
    assert "missing" not in (made.results.study("demo") / "table.md").read_text()


def test_markdown_rows_have_equally_many_cells(tmp_path):
    made = Made(tmp_path, methods=["scratch", "kd", HOSTILE], title=HOSTILE).finish()
    rows = [r for r in markdown(layout_of(made)).splitlines() if r.startswith("|")]
    widths = {len(re.split(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {2 + 3, 2 + 5}  # a measure's table, the curve
    assert "<script" not in "".join(rows)


class Reader(HTMLParser):
    """The tags of a page, and its table rows as text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_data(self, data):
        if self.rows:
            self.rows[-1] += data


def test_html_shows_hostile_labels_as_text(tmp_path):
    made = Made(tmp_path, methods=["scratch", "kd", HOSTILE], title=HOSTILE, recipes=[HOSTILE]).finish()
    render(made.study, made.plan, made.results)
    text = (made.results.study("demo") / "table.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("script") == 1  # the page's own
    assert any(row.startswith(HOSTILE) for row in reader.rows)
    assert "http" not in text.replace("http-equiv", "")


def test_latex_marks_best_and_second(made):
    text = latex(layout_of(made), "demo")
    assert r"kd & \textbf{96.05 $\pm$ 0.07 (n=2)} & 96.60 (n=1, \dots{}) \\" in text
    assert r"scratch & \underline{95.05 $\pm$ 0.07 (n=2)}" in text
    assert r"\multicolumn{2}{c}{resnet8x4 $\rightarrow$ resnet8}" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"\label{tab:demo-1}" in text


def test_latex_rows_fill_their_columns_and_braces_close(tmp_path):
    methods = ["scratch", "[kd]", "*dkd", HOSTILE]
    made = Made(tmp_path, methods=methods, title=HOSTILE, more={"baseline": "[kd]"}, curve=()).finish()
    text = latex(layout_of(made), "demo")
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    for columns, body in re.findall(r"\\begin{tabular}{(l*r*)}(.*?)\\end{tabular}", text, flags=re.DOTALL):
        rows = [row for row in body.splitlines() if row.endswith(r"\\") and "multicolumn" not in row]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
        assert not [row for row in rows if row.startswith(("[", "*"))]


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_latex_escaping_can_be_undone(text):
    escaped = latex_escape(text)
    assert not re.search(r"(?<!\\)[&%$#_]", escaped)
    words = {
        "textbackslash": "\\",
        "textasciitilde": "~",
        "textasciicircum": "^",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "textquotedbl": '"',
    }
    back = re.sub(r"\\(?:([a-z]+)\{\}|([&%$#_{}]))", lambda m: words[m[1]] if m[1] else m[2], escaped)
    assert back == text


@given(st.text())
def test_markdown_escaping_leaves_no_cell_border_and_no_tag(text):
    escaped = markdown_escape(text)
    assert not re.search(r"(?<!\\)(\\\\)*\|", escaped)
    assert "<" not in escaped
    assert "\n" not in escaped


def test_latex_labels_are_plain():
    assert latex_label("tab:a b_{c}1") == "tab:a-b-c-1"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    made = Made(tmp_path / "made", methods=["scratch", "kd", HOSTILE], title=HOSTILE).finish()
    made.lose(made.run("kd", "standard", 0))
    body = latex(layout_of(made), "demo_1")
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{body}\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_columns_without_a_group_have_one_line_of_heading(tmp_path):
    made = Made(tmp_path, methods=["scratch", "kd"]).finish()
    layout = layout_of(made)
    assert r"\multicolumn" in latex(layout, "t")
    block = layout.blocks[0]
    plain = replace(block, columns=tuple(replace(column, group="") for column in block.columns), beside=())
    assert r"\multicolumn" not in latex(replace(layout, blocks=(plain,)), "t")
    assert "| <br>" not in markdown(replace(layout, blocks=(plain,)))
    assert "<br>" in markdown(layout)


def test_the_terminal_shows_the_same_numbers(made):
    console = Console(file=io.StringIO(), width=100, highlight=False)
    terminal_table(made.study, made.plan, made.results, console)
    printed = console.file.getvalue()
    for line in layout_of(made).blocks[0].lines:
        row = next(r for r in printed.splitlines() if r.split()[:1] == [line.label])
        assert all(entry.text in row for entry in line.entries)
    assert f"[1] {SKIPPED}" in printed
    assert "runs missing" in printed


def test_a_label_is_not_markup_on_the_terminal(tmp_path):
    made = Made(tmp_path, methods=["scratch", "[bold]kd[/bold]"], curve=()).finish()
    console = Console(file=io.StringIO(), width=100)
    terminal_table(made.study, made.plan, made.results, console)
    assert "[bold]kd[/bold]" in console.file.getvalue()


# Figures


def test_learning_curves_are_means_with_their_range(made):
    data = learning_data(made.study, made.results)
    last = data[(data["row"] == "dkd") & (data["recipe"] == "soteacher") & (data["epoch"] == EPOCHS)].iloc[0]
    assert (last["mean"], last["min"], last["max"], last["n"]) == pytest.approx((97.55, 97.5, 97.6, 2))
    waiting = data[(data["row"] == "kd") & (data["recipe"] == "soteacher")]
    assert set(waiting["n"]) == {1}
    assert len(data[data["row"] == "scratch"]) == EPOCHS


def test_a_study_that_holds_out_watches_the_validation_set(tmp_path):
    made = Made(tmp_path, split="train-val").finish()
    data = learning_data(made.study, made.results)
    assert data[(data["row"] == "teacher") & (data["epoch"] == EPOCHS)]["mean"].min() == pytest.approx(98.05)
    render(made.study, made.plan, made.results)


def test_a_run_that_collapsed_before_its_first_epoch_ended_has_no_curve(made):
    run = made.run("dkd", "standard", 0)
    made.results.run(run).history.write_text("epoch\n")
    data = learning_data(made.study, made.results)
    assert set(data[(data["row"] == "dkd") & (data["recipe"] == "standard")]["n"]) == {1}


def test_a_history_without_the_score_is_one_clear_error(made):
    path = made.results.run(made.run("dkd", "standard", 0)).history
    path.write_text("epoch,loss\n1,2.0\n")
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        learning_data(made.study, made.results)


def test_sampling_data_is_that_of_the_curve(made):
    data = sampling_data(layout_of(made)).set_index(["row", "recipe", "epoch"])
    assert data.loc[("kd", "standard", 5), "mean"] == pytest.approx(94.55)
    assert data.loc[("kd", "soteacher", EPOCHS), "n"] == 1
    assert len(data) == 2 * 2 * 3


def test_figures_are_images_without_a_date(made):
    folder = made.results.study("demo")
    draw(made)
    for name in ("learning_curves", "sampling"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
        svg = (folder / f"{name}.svg").read_text()
        assert "<svg" in svg
        assert "<dc:date>" not in svg


def test_figures_take_any_label(tmp_path):
    made = Made(tmp_path, methods=["scratch", "kd", HOSTILE, "$\\bad{"], recipes=["$x", "b"]).finish()
    assert render(made.study, made.plan, made.results)
    assert draw(made)


def test_every_row_has_its_own_look(tmp_path):
    methods = ["scratch", "kd", *(f"m{i}" for i in range(20))]
    styles = looks(Made(tmp_path, methods=methods, curve=()).study)
    assert list(styles) == ["teacher", *methods]
    drawn = [json.dumps([s.colour, s.line, s.marker]) for s in styles.values()]
    assert len(set(drawn)) == len(drawn)
    assert {s.colour for s in list(styles.values())[2:]} == set(COLOURS)


# Checkpoints that rules pick, and kept ones


@pytest.fixture
def ruled(tmp_path) -> Made:
    """A curve with one epoch and one rule, whose choice differs between the seeds; one kept epoch."""
    made = Made(tmp_path, curve=(5,))
    for recipe in made.recipes:
        for seed in made.seeds:
            own, kd = (made.run(row, recipe, seed) for row in ("teacher", "kd"))
            who = {"recipe": recipe, "teacher": "resnet8x4", "seed": seed, "choice": "lowest_nll-0a1b2c3d"}
            who |= {"dataset": "digits"}
            made.cells += [
                Cell("curve", "kd", student="resnet8", run=kd, **who),
                Cell("curve", "teacher", student=None, run=own, **who),
                Cell(
                    "kept",
                    "teacher",
                    recipe,
                    "resnet8x4",
                    None,
                    seed,
                    10,
                    own,
                    precision="float16",
                    dataset="digits",
                ),
            ]
    study = made.study.study.model_copy(
        update={"curves": (Curve(method="kd", epochs=(5,), checkpoints=({"rule": "lowest_nll"},)),)}
    )
    made.study = replace(made.study, study=study, cells=tuple(dict.fromkeys(made.cells)))
    made.finish()
    for cell in made.study.cells:
        if cell.rule:
            file = RunPaths(made.results.root / cell.place).metrics
            chosen = {"epoch" if cell.row == "teacher" else "teacher_epoch": 7 + cell.seed}
            file.write_text(json.dumps({**json.loads(file.read_text()), **chosen}))
    return made


def test_a_rule_has_a_row_and_says_what_it_picked(ruled):
    layout = layout_of(ruled)
    curve, kept = layout.blocks[-2:]
    assert [line.label for line in curve.lines] == ["5", "lowest_nll"]
    assert [e.summary.n for e in curve.lines[1].entries] == [2, 2, 2, 2]
    assert [line.label for line in kept.lines] == ["10"]
    assert [e.text for e in kept.lines[0].entries] == ["97.05 ± 0.07 (n=2)", "97.55 ± 0.07 (n=2)"]
    assert layout.notes[0] == (
        "lowest_nll picked, seed by seed, the epochs standard resnet8x4 7, 8; soteacher resnet8x4 7, 8 "
        "(by validation images)."
    )
    assert any("kept in float16" in note for note in layout.notes)


def test_files_tell_rules_and_choices(ruled):
    render(ruled.study, ruled.plan, ruled.results)
    draw(ruled)
    folder = ruled.results.study("demo")
    seeds = pd.read_csv(folder / "seeds.csv").query("rule == 'lowest_nll' and metric == 'top1'")
    assert sorted(set(seeds["chosen"])) == [7, 8]
    assert seeds["epoch"].isna().all()
    table = pd.read_csv(folder / "table.csv")
    assert set(table[table["rule"] == "lowest_nll"]["n"]) == {2}
    sampling = pd.read_csv(folder / "sampling.csv")
    assert set(sampling[sampling["rule"].notna()]["row"]) == {"teacher", "kd"}
    assert "lowest" in (folder / "table.md").read_text()
    assert set(learning_data(ruled.study, ruled.results)["row"]) == {
        "teacher",
        "scratch",
        "kd",
        "dkd",
        "fitnet",
    }


def test_a_curve_of_rules_alone_needs_no_figure(ruled):
    curve = Curve(method="kd", checkpoints=({"rule": "lowest_nll"},))
    study = ruled.study.study.model_copy(update={"curves": (curve,)})
    ruled.study = replace(ruled.study, study=study)
    written = render(ruled.study, ruled.plan, ruled.results)
    assert not [file for file in written if file.stem == "sampling"]
