"""Benches in the plan, at the desk, and on the page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kdpipe.api import ImageFiles, Split
from kdpipe.core import registry
from kdpipe.core.errors import ConfigError, Interrupted, ResultsError, UnknownNameError
from kdpipe.core.files import write_json
from kdpipe.core.paths import Results
from kdpipe.core.specs import BenchRun, BenchSpec, Part
from kdpipe.engine.bench import DeskOnDisk, images, run_bench
from kdpipe.engine.prepare import Prepared
from kdpipe.engine.stop import Stop
from kdpipe.plan.overview import overview
from kdpipe.plan.plan import Plan
from kdpipe.plan.resolve import resolve
from kdpipe.plan.verify import verify_results
from kdpipe.tables.gallery import draw_figure
from kdpipe.tables.layout import lay_out
from kdpipe.tables.render import html, latex, markdown, render, terminal_table
from kdpipe.tables.report import report

SINE = {"name": "kernel_ridge_sine", "label": "γ = 80", "settings": {"gamma": 80, "draws": 20}}


def study(*benches, **changes):
    """Changes that make a study of benches alone."""
    nothing = {
        "pairs": [],
        "recipes": [],
        "methods": [],
        "dataset": "",
        "protocol": {"teacher": "", "student": ""},
    }
    return {**nothing, "benches": list(benches), "seeds": [0], **changes}


def sine(**settings):
    return {**SINE, "settings": {**SINE["settings"], **settings}}


# In the plan


def test_a_run_per_variant_and_seed_shared_between_studies(config):
    other = {**SINE, "label": "printed", "settings": {"gamma": 0.0125, "draws": 20}}
    plan = resolve(config(a=study(SINE, other, seeds=[0, 1]), b=study(SINE, plots=["figure3"])))
    assert len(plan.benches) == 4
    assert not plan.runs
    shared = [b for b in plan.benches.values() if b.studies == ("a", "b")]
    assert [b.run.spec.bench.settings["gamma"] for b in shared] == [80]
    assert plan.studies["b"].plots == {"figure3": "kernel_ridge_sine"}
    assert set(plan.studies["a"].plots) == set(registry.benches.get("kernel_ridge_sine").plots)
    assert Plan.from_json(plan.to_json()) == plan


def test_settings_are_part_of_the_id_and_say_where_they_come_from(config):
    plan = resolve(config(a=study(SINE)))
    other = resolve(config(b=study(sine(noise=0.1))))
    told = resolve(config(settings={"kernel_ridge_sine": {"noise": 0.1}}, c=study(SINE)))
    assert not plan.benches.keys() & other.benches.keys()
    assert other.benches.keys() == told.benches.keys()
    (run,) = (b.run for b in told.benches.values())
    assert (run.sources["noise"], run.sources["gamma"], run.sources["penalty"]) == (
        "command line",
        "study c",
        "default",
    )


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"benches": [sine(gama=1)]}, ConfigError, "unknown key 'gama'"),
        ({"benches": [sine(gamma=-1)]}, ConfigError, "greater than 0"),
        ({"benches": ["kernel_ridge_sin"]}, UnknownNameError, "kernel_ridge_sine"),
        ({"plots": ["figure9"]}, UnknownNameError, "figure9"),
        ({"benches": ["kernel_ridge_images"]}, ConfigError, "needs images"),
        ({"benches": [SINE, SINE]}, ConfigError, "listed twice"),
        ({"benches": [], "settings": {}}, ConfigError, "asks for nothing"),
    ],
)
def test_a_wrong_bench_is_one_clear_message(config, changes, error, said):
    with pytest.raises(error, match=said):
        resolve(config(a={**study(SINE), **changes}))


def test_another_data_set_stands_in_where_the_files_are_absent(config, tmp_path):
    changes = {"dataset": "cifar10_two_class", "otherwise": "digits"}
    made = config(a=study("kernel_ridge_images", **changes)).model_copy(
        update={"data": str(tmp_path / "data")}
    )
    absent = resolve(made)
    assert {b.run.spec.data.name for b in absent.benches.values()} == {"digits"}
    assert absent.studies["a"].study.dataset == "digits"
    other = {"dataset": "digits", "settings": {"kernel_ridge_images": {"n_test": 100}}}
    fewer = resolve(
        config(b=study("kernel_ridge_images", dataset="cifar10_two_class", otherwise=other)).model_copy(
            update={"data": str(tmp_path / "data")}
        )
    )
    assert [b.run.spec.bench.settings["n_test"] for b in fewer.benches.values()] == [100]
    (tmp_path / "data" / "cifar10-two-class").mkdir(parents=True)
    there = resolve(made)
    assert {b.run.spec.data.name for b in there.benches.values()} == {"cifar10_two_class"}


def test_a_folder_that_appears_makes_a_new_plan(config, tmp_path):
    from kdpipe.plan.load import plan_path

    made = config(a=study(SINE)).model_copy(update={"data": str(tmp_path / "data")})
    before = plan_path(made)
    (tmp_path / "data" / "cifar10-two-class").mkdir(parents=True)
    assert plan_path(made) != before


# At the desk


def desk(folder: Path, code: str = "a", stop: Stop | None = None) -> DeskOnDisk:
    return DeskOnDisk(folder, code, "bench", stop or Stop(), io.StringIO())


def test_what_is_finished_is_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(3.0), "empty": np.zeros((0, 2)), "whole": np.array([1, 2])}

    first = desk(tmp_path / "state").once("part", make)
    again = desk(tmp_path / "state").once("part", make)
    assert made == [1]
    assert first.keys() == again.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(again[key], value)
        assert again[key].dtype == value.dtype


def test_parts_of_other_code_are_made_again(tmp_path):
    desk(tmp_path / "state", "a").once("part", lambda: {"x": np.zeros(1)})
    found = desk(tmp_path / "state", "b").once("part", lambda: {"x": np.ones(1)})
    assert found["x"] == 1


def test_a_stop_is_heeded_between_parts(tmp_path):
    stop = Stop()
    own = desk(tmp_path / "state", stop=stop)
    own.once("part", lambda: {"x": np.zeros(1)})
    stop.requested = True
    own.once("part", lambda: {"x": np.ones(1)})
    with pytest.raises(Interrupted, match="run it again"):
        own.once("next", lambda: {"x": np.zeros(1)})
    with pytest.raises(Interrupted):
        own.tell(0.5, "next")


# On the page


@pytest.fixture
def drawn(config):
    """A study of two seeds, run and drawn: its plan, results and name."""
    made = config(a=study(SINE, seeds=[0, 1], plots=["figure2", "figure4"]))
    plan, results = resolve(made), Results(Path(made.results))
    for name, bench in plan.benches.items():
        paths = results.run(name)
        write_json(paths.spec, {**bench.run.model_dump(mode="json"), "id": bench.run.id})
        run_bench(bench.run, paths, None, 1, Stop(), io.StringIO())
    for plot in plan.studies["a"].plots:
        draw_figure(plot, plan.studies["a"], plan, results)
    return plan, results


def test_figures_come_with_their_data_and_what_is_told_of_them(drawn):
    plan, results = drawn
    folder = results.study("a")
    for plot in ("figure2", "figure4"):
        assert all((folder / f"{plot}.{suffix}").stat().st_size for suffix in ("svg", "png", "csv", "json"))
    layout = lay_out(plan.studies["a"], plan, results)
    assert [t.name for t in layout.told] == ["figure2", "figure4"]
    assert all(t.verdicts for t in layout.told)
    assert (layout.total, layout.missing) == (2, 0)
    assert not any(results.run(name).state.exists() for name in plan.benches)


def test_every_format_shows_the_verdicts(drawn):
    plan, results = drawn
    planned = plan.studies["a"]
    layout = lay_out(planned, plan, results)
    words = {v.claim for t in layout.told for v in t.verdicts}
    render(planned, plan, results)
    table = pd.read_csv(results.study("a") / "verdicts.csv")
    assert set(table["claim"]) == words
    assert set(table["verdict"]) <= {"holds", "fails", "undecided"}
    assert pd.read_csv(results.study("a") / "table.csv").empty
    assert latex(layout, "a").count(r"\begin{table}") == 2
    page = html(layout)
    console = Console(file=io.StringIO(), width=160)
    terminal_table(planned, plan, results, console)
    shown = " ".join(console.file.getvalue().split())
    first = layout.told[0].verdicts[0]
    for text in (page, markdown(layout), shown):
        assert first.claim.split(",")[0].split("(")[0].strip()[:30] in text.replace("\\", "")
    text = (report(plan, results).parent / "studies" / "a.html").read_text()
    assert 'src="../figures/a/figure2.svg"' in text
    assert text.count('id="verdicts"') == text.count('href="#verdicts"') == 1
    assert first.verdict in text


def test_missing_runs_are_counted_and_a_figure_without_any_is_one_clear_error(config):
    made = config(a=study(SINE))
    plan, results = resolve(made), Results(Path(made.results))
    layout = lay_out(plan.studies["a"], plan, results)
    assert (layout.total, layout.missing) == (1, 1)
    with pytest.raises(ResultsError, match="no run of bench 'kernel_ridge_sine' is finished"):
        draw_figure("figure2", plan.studies["a"], plan, results)
    assert "1 missing" in overview(plan, results.root)


def test_a_changed_table_is_found(drawn):
    plan, results = drawn
    assert verify_results(plan, results) == []
    name = next(iter(plan.benches))
    table = next((results.run(name).root / "tables").glob("*.csv"))
    table.write_text(table.read_text() + "1\n")
    (found,) = verify_results(plan, results)
    assert f"{table.name} has changed" in found
    table.unlink()
    (found,) = verify_results(plan, results)
    assert f"lacks {table.name}" in found


def test_images_that_stay_in_their_files_are_refused(tmp_path):
    names = np.array([b"a.png"], dtype=np.bytes_)
    split = Split(ImageFiles(tmp_path, names, 8), np.zeros(1, dtype=np.int64))
    prepared = Prepared("huge", 2, (3, 8, 8), (0.5,) * 3, (0.5,) * 3, split, split, {})
    with pytest.raises(ConfigError, match="the images of huge stay in their files"):
        images(prepared)


def test_a_run_is_named_by_its_bench_and_seed():
    spec = BenchSpec(bench=Part(name="kernel_ridge_images", revision=1), seed=0)
    assert BenchRun(spec=spec).name.startswith("bench_kernel_ridge_images_s0-")
