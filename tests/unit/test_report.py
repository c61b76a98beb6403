"""The report's pages: everything escaped, links with their files, runs with their settings, equal bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.core.errors import ResultsError
from kdpipe.core.plot import Verdict
from kdpipe.plan.plan import Plan, Printed
from kdpipe.tables import report as report_module
from kdpipe.tables.layout import Told, lay_out
from kdpipe.tables.pages import FOLDER, Site, embedded_json
from kdpipe.tables.render import render
from kdpipe.tables.report import FOLDERS, best_rows, report
from kdpipe.tables.report_plugins import plugin_page
from tests.unit.synthetic import Made, draw, files, put

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"'"


class Reader(HTMLParser):
    """The tags of a page with their attributes, and the text outside scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts = ""
        self.inside = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts += data
        else:
            self.text += f"{data} "

    def links(self) -> list[str]:
        """Every address that it loads or leads to."""
        return [a[key] for _, a in self.tags for key in ("href", "src") if a.get(key)]


@pytest.fixture
def made(tmp_path) -> Made:
    made = Made(tmp_path, skip=["fitnet"]).finish()
    made.collapse(made.run("dkd", "standard", 1), 8)
    made.lose(made.run("kd", "soteacher", 0))
    return made


def read(made: Made, name: str = "index.html", **settings) -> Reader:
    """A page of the freshly rendered report."""
    return Reader(report(made.plan, made.results, **settings).parent / name)


def data(made: Made, name: str):
    """The data of a script in the report's folder `data`."""
    text = (made.results.report.parent / "data" / name).read_text()
    return json.loads(re.fullmatch(r"var \w+ = (.*);\n", text)[1])


def pages(made: Made) -> list[Reader]:
    return [Reader(path) for path in sorted(made.results.report.parent.rglob("*.html"))]


def words(page: Reader) -> str:
    return " ".join(page.text.split())


# the overview


def test_the_overview_counts_the_runs_and_names_the_best(made):
    page = read(made)
    total = len(made.study.runs())
    assert f"{total - 2} of {total}" in page.text
    assert "kd and dkd (best in 1 of 2 columns)" in page.text
    assert "studies/demo.html" in page.links()
    assert f"1 of {total} runs are missing." in read(made, "studies/demo.html").text


def test_the_best_row_is_not_known_before_there_are_results(tmp_path):
    made = Made(tmp_path)
    assert best_rows(lay_out(made.study, made.plan, made.results).blocks[0]) == ""
    assert "not known yet" in read(made).text
    assert "No run is finished yet." in read(made).text
    assert "No run is finished yet." in read(made, "provenance.html").text
    run = read(made, f"runs/{made.run('dkd', 'standard', 0)}.html")
    assert "missing" in run.text


def test_verdicts_are_counted_and_shown(made, monkeypatch):
    told = (
        Verdict("dkd is better than kd", "Table 1", "holds", "97.5 against 96.0, n = 2"),
        Verdict("kd is better than dkd", "Table 1", "fails", "96.0 against 97.5, n = 2"),
        Verdict("fitnet is best", "Table 1", "undecided", "no number"),
        Verdict("scratch is worst", "Table 1", "holds", "95.0"),
    )
    real = report_module.lay_out

    def with_verdicts(*given):
        layout = real(*given)
        return replace(layout, told=(Told("claims", "Statements of the paper", "", told),))

    monkeypatch.setattr(report_module, "lay_out", with_verdicts)
    (row,) = [a for tag, a in read(made).tags if tag == "tr" and "data-verdict" in a]
    assert row["data-verdict"] == "some fail"
    page = read(made, "studies/demo.html")
    assert "Statements of the paper: 2 holds, 1 fails, 1 undecided." in words(page)
    assert "97.5 against 96.0, n = 2" in page.text


def test_several_studies_have_a_page_each(tmp_path):
    a, b = (Made(tmp_path, name=name, title=f"Study {name}").finish() for name in ("one", "two"))
    plan = Plan({**a.plan.runs, **b.plan.runs}, {**a.plan.studies, **b.plan.studies})
    report(plan, a.results)
    for name in ("one", "two"):
        assert f"Study {name}" in Reader(a.results.report.parent / "studies" / f"{name}.html").text


# a study


def test_the_data_hold_the_tables_numbers_and_runs(made):
    report(made.plan, made.results)
    tables = data(made, "demo.tables.js")
    own = [block["title"].split()[0] for block in tables["measures"] if ":" not in block["title"]]
    assert own == ["top-1", "NLL", "agreement"]
    assert len(tables["series"]) == 1
    block = tables["measures"][0]
    assert block["columns"] == [["resnet8x4 → resnet8", "standard"], ["resnet8x4 → resnet8", "soteacher"]]
    row = next(row for row in block["rows"] if row[0] == "dkd")
    text, value, runs, mark = row[2][1]
    assert (text, mark) == ("97.55 ± 0.07 (n=2)", "best")
    assert value == pytest.approx(97.55)
    assert [tables["runs"][i] for i in runs] == [made.run("dkd", "soteacher", s) for s in (0, 1)]


def test_every_run_is_listed_once_with_its_status(made):
    report(made.plan, made.results)
    names, listed = data(made, "demo.tables.js")["runs"], data(made, "demo.runs.js")
    assert sorted(names) == sorted(made.study.runs())
    status = {name: row[4] for name, row in zip(names, listed, strict=True)}
    assert status[made.run("dkd", "standard", 1)] == "collapsed (8)"
    assert status[made.run("kd", "soteacher", 0)] == "missing"
    from_checkpoints = {row[0] for row in listed if "epoch" in row[0]}
    assert from_checkpoints == {"kd from teacher epoch 5", "kd from teacher epoch 10"}


def test_printed_numbers_stand_beside_the_measured_ones(made):
    printed = Printed("dkd", "standard", "resnet8x4", "resnet8", "digits", "top1", 76.3, None, "")
    plan = Plan(made.plan.runs, {"demo": replace(made.study, printed=(printed,), scale="full")})
    report(plan, made.results)
    folder = made.results.report.parent
    assert any("data-printed" in a for _, a in Reader(folder / "studies" / "demo.html").tags)
    measures = data(made, "demo.tables.js")["measures"]
    row = next(row for row in measures[0]["rows"] if row[0] == "dkd")
    mean = row[2][0][1]
    said = f"printed 76.3; {mean - 76.3:+.2f}"
    assert row[2][0][5].startswith(said)
    below = [m for m in measures[1:] if "printed" in m["title"]]
    assert [len(m["rows"]) for m in below] == [1]
    assert said in Reader(folder / "methods" / "dkd.html").text


def test_intervals_and_differences_have_tables_of_their_own(made):
    study = made.study.study.model_copy(update={"baseline": "kd"})
    report(Plan(made.plan.runs, {"demo": replace(made.study, study=study)}), made.results)
    titles = [m["title"] for m in data(made, "demo.tables.js")["measures"]]
    assert any("95 % intervals" in title for title in titles)
    assert any("difference from kd" in title for title in titles)
    page = Reader(made.results.report.parent / "studies" / "demo.html")
    assert sum("data-block" in a for _, a in page.tags) == len(titles)


def test_assumptions_are_listed(made):
    study = made.study.study.model_copy(update={"assumptions": ("The batch size is 64.",)})
    plan = Plan(made.plan.runs, {"demo": replace(made.study, study=study)})
    report(plan, made.results)
    assert "The batch size is 64." in Reader(made.results.report.parent / "studies" / "demo.html").text


def test_figures_are_shown_with_their_files(made):
    draw(made)
    page = read(made, "studies/demo.html")
    images = [a for tag, a in page.tags if tag == "img"]
    assert [a["src"] for a in images] == [
        "../figures/demo/learning_curves.svg",
        "../figures/demo/sampling.svg",
    ]
    assert all(a["alt"] for a in images)
    for end in ("svg", "png", "csv"):
        assert f"../../studies/demo/learning_curves.{end}" in page.links()


# a run


def test_a_run_shows_where_its_settings_come_from(made):
    name = made.run("dkd", "standard", 0)
    page = read(made, f"runs/{name}.html")
    text = words(page)
    for told in ("beta 2.0 study demo", "warmup 20 default", "epochs 20 protocol quick", "torch 2.11.0"):
        assert told in text
    assert f"../../runs/{name}/history.csv" in page.links()
    assert f"{made.run('teacher', 'standard', 0)}.html" in page.links()
    assert "../methods/dkd.html" in page.links()
    assert "../studies/demo.html" in page.links()
    assert "finished" in text


def test_a_setting_of_the_protocol_that_a_study_changes_is_the_studys(made):
    methods = tuple(
        entry.model_copy(update={"protocol": {"lr": 0.1, "momentum": 0}}) if entry.name == "dkd" else entry
        for entry in made.study.study.methods
    )
    study = made.study.study.model_copy(update={"methods": methods})
    report(Plan(made.plan.runs, {"demo": replace(made.study, study=study)}), made.results)
    runs = made.results.report.parent / "runs"
    changed = words(Reader(runs / f"{made.run('dkd', 'standard', 0)}.html"))
    assert "lr 0.1 study demo" in changed
    assert "momentum 0.0 study demo" in changed
    assert "epochs 20 protocol quick" in changed
    assert "lr 0.1 protocol quick" in words(Reader(runs / f"{made.run('kd', 'standard', 0)}.html"))


def test_a_teacher_links_its_students_and_measures_its_checkpoints(made):
    page = read(made, f"runs/{made.run('teacher', 'standard', 0)}.html")
    assert f"{made.run('dkd', 'standard', 0)}.html" in page.links()
    assert "of its checkpoints" in page.text
    assert "5 top-1 96.50 %" in words(page)


def test_a_collapsed_run_says_when(made):
    page = read(made, f"runs/{made.run('dkd', 'standard', 1)}.html")
    assert "collapsed after epoch 8" in page.text


def test_a_learning_curve_is_cut_after_six_decimals(made):
    name = made.run("dkd", "standard", 0)
    path = made.results.run(name).history
    path.write_text("epoch,loss,test_top1\n1,0.000123456789,12.3456789123\n2,1.5e-07,100.0\n")
    page = read(made, f"runs/{name}.html")
    assert json.loads(page.scripts) == "epoch,loss,test_top1\n1,0.000123,12.345678\n2,1.5e-07,100.0\n"


def test_a_server_is_linked_where_a_sync_has_noted_the_run(made):
    name, other = made.run("dkd", "standard", 0), made.run("kd", "standard", 0)
    cursor = {"run_id": "abc", "uri": "https://***@tracking.example/ml/"}
    put(made.results.run(name).root / ".synced.json", {"7@1": cursor, "1@2": {"run_id": "x", "uri": ""}})
    put(made.results.run(other).root / ".synced.json", {"1@2": {"run_id": "x", "uri": "sqlite:///a"}})
    uri = "https://user:secret@tracking.example/ml/"
    page = read(made, f"runs/{name}.html", uri=uri)
    assert "https://tracking.example/ml/#/experiments/7/runs/abc" in page.links()
    assert "MLflow" not in read(made, f"runs/{other}.html", uri=uri).text
    assert "MLflow" not in read(made, f"runs/{name}.html", uri="sqlite:///a").text
    assert not [page for page in pages(made) if "secret" in page.path.read_text()]


# methods, recipes, provenance


def test_a_method_says_what_it_is_and_lists_its_numbers_across_studies(tmp_path):
    a = Made(tmp_path, name="one").finish()
    b = Made(tmp_path, name="two", methods=["kd", "dkd"]).finish()
    report(Plan({**a.plan.runs, **b.plan.runs}, {**a.plan.studies, **b.plan.studies}), a.results)
    page = Reader(a.results.report.parent / "methods" / "dkd.html")
    text = words(page)
    assert "Decoupled knowledge distillation. CVPR 2022." in text
    assert "beta 8.0 weight of the other classes' term mdistiller DKD.BETA" in text
    assert "beta 2 study demo" in text
    rows = [a for tag, a in page.tags if tag == "tr" and "data-study" in a]
    assert [row["data-study"] for row in rows] == ["one"] * 2 + ["two"] * 2
    assert {row["data-method"] for row in rows} == {"dkd"}


def test_a_recipe_lists_its_columns(made):
    page = read(made, "recipes/soteacher.html")
    rows = [a for tag, a in page.tags if tag == "tr" and "data-study" in a]
    assert {row["data-recipe"] for row in rows} == {"soteacher"}
    assert {row["data-method"] for row in rows} == {"teacher", "scratch", "kd", "dkd"}


def test_names_that_no_file_can_have_get_pages_of_their_own():
    assert plugin_page("method", "dkd") == "methods/dkd.html"
    odd = {plugin_page("method", name) for name in ("a/b", "a b", HOSTILE)}
    assert len(odd) == 3
    assert all(re.fullmatch(r"methods/[\w.-]+\.html", page) for page in odd)
    assert plugin_page("part", "x") is None


def test_environments_are_listed_with_their_runs(made):
    other = made.run("kd", "standard", 0)
    path = made.results.run(other).provenance
    put(path, {**json.loads(path.read_text()), "torch": "2.99.0"})
    page = read(made, "provenance.html")
    assert "made by 2 environments" in page.text
    assert "2.99.0" in page.text
    assert "0123456789ab, changed since" in page.text
    first, second = sorted(data(made, "made.js"), key=len)
    assert first == [other]
    assert len(second) == len(made.study.runs()) - 2


# the whole


def test_every_link_has_its_file_and_ids_are_unique(made):
    render(made.study, made.plan, made.results)
    draw(made)
    report(made.plan, made.results)
    found = pages(made)
    assert {page.path.parent.name for page in found} >= {"report", "studies", "runs", "methods", "recipes"}
    for page in found:
        ids = [a["id"] for _, a in page.tags if a.get("id")]
        assert len(ids) == len(set(ids)), page.path
        for _, attributes in page.tags:
            if "aria-labelledby" in attributes:
                assert attributes["aria-labelledby"] in ids, page.path
            if "data-filters" in attributes:
                assert attributes["data-filters"] in ids, page.path
        for link in page.links():
            if link.startswith("#"):
                assert link[1:] in ids, (page.path, link)
            else:
                assert (page.path.parent / unquote(link)).is_file(), (page.path, link)


def test_nothing_comes_from_elsewhere(made):
    draw(made)
    report(made.plan, made.results)
    for page in pages(made):
        for tag, attributes in page.tags:
            assert tag not in ("iframe", "object", "base", "style")
            assert not [key for key in attributes if key == "style" or key.startswith("on")]
        assert not [link for link in page.links() if re.match(r"\w+:|//", link)]
        policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy


def test_hostile_words_stay_words(tmp_path):
    made = Made(
        tmp_path,
        methods=["scratch", "kd", HOSTILE],
        recipes=["standard", HOSTILE],
        title=HOSTILE,
    ).finish()
    render(made.study, made.plan, made.results)
    report(made.plan, made.results)
    for page in pages(made):
        assert not [a for _, a in page.tags if "onerror" in a]
        assert "alert" not in page.scripts
    study = Reader(made.results.report.parent / "studies" / "demo.html")
    assert HOSTILE in study.text
    assert data(made, "demo.tables.js")["measures"][0]["rows"][-1][0] == HOSTILE
    assert "</script" not in (made.results.report.parent / "data" / "demo.tables.js").read_text()


def test_the_same_results_give_the_same_bytes(made):
    draw(made)
    first = files(report(made.plan, made.results).parent)
    assert files(report(made.plan, made.results).parent) == first


def test_stale_pages_go_and_other_files_stay(made):
    folder = report(made.plan, made.results).parent
    stale, other = folder / "runs" / "gone.html", folder / "workflow.html"
    stale.touch()
    other.touch()
    report(made.plan, made.results)
    assert not stale.exists()
    assert other.exists()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(FOLDERS)


def test_a_rendering_that_fails_leaves_the_old_pages(made):
    first = files(report(made.plan, made.results).parent)
    path = made.results.run(made.run("kd", "standard", 0)).provenance
    path.write_text("[]")
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        report(made.plan, made.results)
    assert files(made.results.report.parent) == first


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "report").touch()
    with pytest.raises(ResultsError, match="cannot write"), Site(tmp_path / "report", "index.html", ("a",)):
        pass


def test_a_thousand_runs_stay_small(tmp_path):
    pairs = [(f"t{i}", f"s{i}") for i in range(16)]
    made = Made(tmp_path, pairs=pairs, seeds=range(5)).finish()
    assert len(made.plan.runs) > 1000
    first = report(made.plan, made.results)
    assert first.stat().st_size < 30_000
    assert (first.parent / "studies" / "demo.html").stat().st_size < 60_000
    assert len(list((first.parent / "runs").iterdir())) == len(made.plan.runs)


texts = st.text() | st.sampled_from(["</script>", "<!--", "&amp;", "\u2028"])


@given(st.recursive(texts | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(texts, x)))
def test_embedded_json_is_safe_and_reads_back(value):
    text = embedded_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_the_scripts_stay_short():
    assert all(len(path.read_text().splitlines()) < 300 for path in FOLDER.glob("*.js"))


def test_the_workflow_names_the_folders_that_the_report_has():
    listed = re.search(r"REPORT_FOLDERS = (\[.*\])", Path("workflow/rules/common.smk").read_text())[1]
    assert json.loads(listed) == list(FOLDERS)
