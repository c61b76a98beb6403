"""What stands beside the numbers: intervals, differences from the baseline, printed numbers."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from kdpipe.cli import app
from kdpipe.core.errors import ResultsError
from kdpipe.plan.load import write_plan
from kdpipe.plan.plan import Printed
from kdpipe.tables.beside import printed_text
from kdpipe.tables.layout import lay_out
from kdpipe.tables.render import aggregated, html, latex, markdown, render, terminal_table
from kdpipe.tables.statistics import compare, holm
from tests.unit.synthetic import Made, files, put

NOISE = {
    ("kd", 0): 70.0,
    ("kd", 1): 70.4,
    ("kd", 2): 70.5,
    ("dkd", 0): 70.9,
    ("dkd", 1): 71.1,
    ("dkd", 2): 71.6,
    ("scratch", 0): 68.0,
    ("scratch", 1): 69.0,
    ("scratch", 2): 68.2,
}


def values(row: str, recipe: str, seed: int) -> float:
    return NOISE.get((row, seed), 75.0 + 0.1 * seed)


def printed(
    row: str, value: float | None, std: float | None = None, note: str = "", recipe="standard"
) -> Printed:
    alone, own = row == "scratch", row == "teacher"
    networks = (None if alone else "resnet8x4", None if own else "resnet8")
    return Printed(row, None if alone else recipe, *networks, "digits", "top1", value, std, note)


PRINTED = (
    printed("teacher", 75.1),
    printed("scratch", 68.4, 0.3),
    printed("kd", 70.3, 0.4),
    printed("dkd", 71.0, None, "doubtful: smudged"),
    printed("kd", None, None, "collapsed at epoch 8", "soteacher"),
)


def made_of(tmp_path, seeds=(0, 1, 2), **more) -> Made:
    study = {"baseline": "kd", "paper": "some2020", **more.pop("more", {})}
    known = {"metrics": ["top1"], "curve": (), "values": values, **more}
    return Made(tmp_path, methods=("scratch", "kd", "dkd"), seeds=seeds, more=study, **known)


def layout_of(made: Made):
    return lay_out(made.study, made.plan, made.results)


def below(made: Made, word: str):
    """The table below the first one whose title has that word."""
    return next(b for b in layout_of(made).blocks[0].beside if word in b.title)


def cells(block) -> dict[str, list[str]]:
    return {line.label: [e.text for e in line.entries] for line in block.lines}


# Intervals and differences


def test_intervals_stand_below(tmp_path):
    made = made_of(tmp_path).finish()
    spread = np.std([70.0, 70.4, 70.5], ddof=1) / math.sqrt(3) * 4.302653
    expected = f"[{70.3 - spread:.2f}, {70.3 + spread:.2f}]"
    assert cells(below(made, "intervals"))["kd"] == [expected] * 2


def test_differences_are_paired_and_corrected_over_the_rows(tmp_path):
    made = made_of(tmp_path).finish()
    kd, dkd, scratch = ({s: NOISE[row, s] for s in range(3)} for row in ("kd", "dkd", "scratch"))
    found = {"dkd": compare(dkd, kd), "scratch": compare(scratch, kd)}
    corrected = holm({row: c.p for row, c in found.items()})
    entries = {line.label: line.entries[0].comparison for line in layout_of(made).blocks[0].lines}
    assert entries["teacher"] is None
    assert entries["kd"] is None
    for row, c in found.items():
        assert entries[row].p == c.p
        assert entries[row].p_holm == corrected[row]
    block = below(made, "difference from kd")
    assert [line.label for line in block.lines] == ["scratch", "dkd"]
    low, high = found["dkd"].interval
    p = corrected["dkd"]
    assert (
        cells(block)["dkd"][0] == f"+0.90 [{low:+.2f}, {high:+.2f}], d {found['dkd'].effect:.1f}, p {p:.3f}"
    )


@pytest.mark.parametrize(
    ("seeds", "text", "said"),
    [
        ((0,), "+0.90 (1 pair)", "too few for an interval or a test"),
        ((0, 1), "(2 pairs)", "2 pairs of seeds: too few"),
    ],
)
def test_too_few_seeds_are_said_in_words(tmp_path, seeds, text, said):
    made = made_of(tmp_path, seeds).finish()
    block = below(made, "difference")
    assert text in cells(block)["dkd"][0]
    assert said in " ".join(block.notes)
    assert "p " not in cells(block)["dkd"][0]
    assert ("One seed: nothing can be said" in " ".join(layout_of(made).notes)) == (len(seeds) == 1)
    assert any("intervals" in b.title for b in layout_of(made).blocks[0].beside) == (len(seeds) > 1)


def test_only_seeds_that_both_have_are_paired(tmp_path):
    made = made_of(tmp_path).finish()
    made.lose(made.run("dkd", "standard", 0))
    made.collapse(made.run("kd", "standard", 2), 8)
    entry = next(x for x in layout_of(made).blocks[0].lines if x.label == "dkd").entries[0]
    assert entry.comparison == compare({1: 71.1}, {1: 70.4})
    assert cells(below(made, "difference"))["dkd"][0] == "+0.70 (1 pair)"


def test_differences_that_do_not_vary_are_said(tmp_path):
    made = made_of(tmp_path, values=lambda row, recipe, seed: 70.0 + (row == "dkd") + seed / 7).finish()
    assert cells(below(made, "difference"))["dkd"][0] == "+1.00 (in all 3 pairs)"


def test_without_a_baseline_and_printed_numbers_there_are_only_intervals(tmp_path):
    made = made_of(tmp_path, more={"baseline": ""}).finish()
    assert [b.title.rpartition(": ")[2] for b in layout_of(made).blocks[0].beside] == ["95 % intervals"]


def test_a_baseline_that_cannot_be_made_leaves_nothing_to_compare(tmp_path):
    made = made_of(tmp_path, skip=["kd"]).finish()
    assert not [b for b in layout_of(made).blocks[0].beside if "difference" in b.title]
    assert set(aggregated(made.study, layout_of(made))["n_pairs"].dropna()) == {0}


# Printed numbers


def test_printed_numbers_stand_beside_with_their_difference(tmp_path):
    made = made_of(tmp_path, printed=PRINTED).finish()
    block = below(made, "printed in some2020")
    shown = cells(block)
    assert shown["kd"] == ["70.3 ± 0.4; 0.00 (0.0 s)", "N.A.(8)"]
    assert shown["scratch"] == ["68.4 ± 0.3; 0.00 (0.0 s)"] * 2
    assert shown["teacher"][0].startswith("75.1; 0.00")
    assert shown["dkd"][0].startswith("71.0 ?; +0.20 (+")
    assert shown["dkd"][1] == "–"
    note = next(line for line in block.lines if line.label == "dkd").entries[0].note
    assert layout_of(made).footnotes[note - 1] == "doubtful: smudged"


def test_the_difference_in_standard_deviations_combines_both(tmp_path):
    made = made_of(tmp_path, printed=[printed("dkd", 70.0, 0.5), printed("scratch", 68.0)]).finish()
    lines = {x.label: x.entries[0].printed for x in layout_of(made).blocks[0].lines}
    own = np.std([70.9, 71.1, 71.6], ddof=1)
    assert lines["dkd"].in_std == pytest.approx(1.2 / math.sqrt(own**2 + 0.5**2))
    assert lines["scratch"].in_std == pytest.approx(0.4 / np.std([68.0, 69.0, 68.2], ddof=1))
    alone = made_of(
        tmp_path / "one", (0,), printed=[printed("dkd", 70.0, 0.5), printed("scratch", 68.0)]
    ).finish()
    lines = {x.label: x.entries[0].printed for x in layout_of(alone).blocks[0].lines}
    assert lines["dkd"].in_std == pytest.approx(0.9 / 0.5)
    assert lines["scratch"].in_std is None


@pytest.mark.parametrize("reduced", [{"scale": "smoke"}, {"ran_on": "mnist"}])
def test_a_reduced_run_is_not_compared_with_the_paper(tmp_path, reduced):
    made = made_of(tmp_path, printed=PRINTED, **reduced).finish()
    block = below(made, "printed in some2020, at full scale")
    assert block.pale
    assert cells(block)["kd"][0] == "70.3 ± 0.4"
    assert "no difference is given" in block.notes[0]
    table = aggregated(made.study, layout_of(made))
    assert table["printed"].notna().any()
    assert table["difference"].isna().all()
    assert "not to be compared" in markdown(layout_of(made))
    assert ("run on mnist instead of digits" in markdown(layout_of(made))) == ("ran_on" in reduced)


@pytest.mark.parametrize(
    ("value", "std", "note", "text"),
    [
        (73.4, 0.13, "", "73.40 ± 0.13"),
        (73.4, None, "doubtful: blurred", "73.40 ?"),
        (None, None, "collapsed at epoch 126", "N.A.(126)"),
        (None, None, "doubtful: label inferred; N.A. (collapsed; epoch not given)", "N.A. ?"),
        (None, None, "doubtful: no cell; collapse expected from Sec. 3.1", "– ?"),
        (None, None, "not reported (printed as -)", "–"),
    ],
)
def test_how_a_printed_number_reads(value, std, note, text):
    assert printed_text(printed("kd", value, std, note), 2) == text


# Files


def test_csv_has_every_statistic(tmp_path):
    made = made_of(tmp_path, printed=PRINTED).finish()
    render(made.study, made.plan, made.results)
    table = pd.read_csv(made.results.study("demo") / "table.csv")
    row = table.query("row == 'dkd' and recipe == 'standard'").iloc[0]
    found = compare(*({s: NOISE[r, s] for s in range(3)} for r in ("dkd", "kd")))
    assert (row["baseline"], row["n_pairs"], row["rank"]) == ("kd", 3, 1)
    assert row[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([found.mean, *found.interval])
    assert row[["effect", "p"]].tolist() == pytest.approx([found.effect, found.p])
    assert row["p_holm"] >= row["p"]
    assert row[["printed", "difference"]].tolist() == pytest.approx([71.0, 0.2])
    low, high = row[["ci_low", "ci_high"]]
    assert (low + high) / 2 == pytest.approx(row["mean"])
    base = table.query("row == 'kd'")
    assert base["n_pairs"].isna().all()


def test_every_format_shows_what_stands_beside(tmp_path):
    more = {"assumptions": ["the batch size is 64"]}
    made = made_of(tmp_path, printed=PRINTED, more=more).finish()
    layout = layout_of(made)
    console = Console(file=io.StringIO(), width=200)
    terminal_table(made.study, made.plan, made.results, console)
    for text in (markdown(layout), latex(layout, "demo"), html(layout), console.file.getvalue()):
        for words in ("difference from kd", "printed in some2020", "N.A.(8)", "doubtful: smudged", "Holm"):
            assert words in text
        assert "Assumption: the batch size is 64" in text


def test_every_latex_table_names_the_scale(tmp_path):
    made = made_of(tmp_path, printed=PRINTED, scale="smoke").finish()
    tables = latex(layout_of(made), "demo").split(r"\begin{table}")[1:]
    assert len(tables) == 4
    assert all("Scale: smoke" in table for table in tables)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.found.append(dict(attrs)["href"])


def test_html_links_every_run(tmp_path):
    made = made_of(tmp_path).finish()
    links = Links()
    links.feed(html(layout_of(made)))
    assert set(links.found) == {f"../../report/runs/{run}.html" for run in made.study.runs()}


def test_best_on_test_is_named_as_such(tmp_path):
    made = made_of(tmp_path, metrics=["top1", "best_test_top1"])
    layout = layout_of(made)
    assert "picked on the test set" in layout.blocks[1].title
    assert any("the test set itself picks" in note for note in layout.notes)


@pytest.mark.parametrize(
    ("form", "start"), [("csv", "study,"), ("markdown", "# "), ("latex", "% needs"), ("html", "\n<!doctype")]
)
def test_one_format_is_printed_alone(tmp_path, form, start):
    made = made_of(tmp_path).finish()
    write_plan(made.plan, tmp_path / "plans" / "plan.json")
    before = files(made.results.root)
    options = ["--plan", str(tmp_path / "plans" / "plan.json"), "--results", str(made.results.root)]
    done = CliRunner().invoke(app, ["table", "--format", form, "demo", *options])
    assert done.exit_code == 0, done.output
    assert done.stdout.lstrip().startswith(start.strip())
    assert files(made.results.root) == before


# Resampled test images


def predict(made: Made, run: str, right: float, images: int = 200) -> np.ndarray:
    """Store predictions of which a share is right; gives which."""
    labels = np.arange(images) % 10
    hits = np.random.default_rng(len(run) + int(100 * right)).random(images) < right
    logits = np.eye(10, dtype=np.float32)[np.where(hits, labels, (labels + 1) % 10)]
    shuffled = np.random.default_rng(1).permutation(images)
    np.savez(
        made.results.run(run).predictions,
        test_logits=logits[shuffled],
        test_labels=labels[shuffled],
        test_index=np.arange(images)[shuffled],
    )
    return hits


def test_a_bootstrap_over_images_stands_beside_the_interval_over_seeds(tmp_path):
    made = made_of(
        tmp_path, more={"bootstrap": 2000}, recipes=("standard",), metrics=["top1", "agreement"]
    ).finish()
    hits = {run: predict(made, run, 0.7) for run in made.study.runs()}
    layout = layout_of(made)
    entry = next(x for x in layout.blocks[0].lines if x.label == "kd").entries[0]
    mean = np.mean([hits[run] for run in entry.summary.runs], axis=0)
    error = 100 * np.std(mean) / math.sqrt(200)
    low, high = entry.summary.resampled
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert low < 100 * mean.mean() < high
    assert re.search(r"\]; images \[", cells(below(made, "intervals"))["kd"][0])
    agreement = {x.label: x.entries[0].summary.resampled for x in layout.blocks[1].lines}
    assert agreement["kd"] is not None
    assert agreement["scratch"] is None
    table = aggregated(made.study, layout)
    assert (table["images_low"].dropna() < table["images_high"].dropna()).all()
    assert layout_of(made).blocks == layout.blocks


def test_seeds_with_other_images_cannot_be_resampled(tmp_path):
    made = made_of(tmp_path, more={"bootstrap": 100}, recipes=("standard",)).finish()
    for run in made.study.runs():
        predict(made, run, 0.7)
    predict(made, made.run("kd", "standard", 0), 0.7, images=100)
    with pytest.raises(ResultsError, match="different test images"):
        layout_of(made)


def test_a_study_without_bootstrap_reads_no_predictions(tmp_path):
    made = made_of(tmp_path).finish()
    put(made.results.run(made.run("kd", "standard", 0)).predictions, "no archive")
    assert layout_of(made).blocks
