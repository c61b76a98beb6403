"""The report's page: one file, everything escaped, every run with its settings, equal bytes."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.core.errors import ResultsError
from kdpipe.plan.plan import Plan
from kdpipe.tables.layout import lay_out
from kdpipe.tables.pages import FOLDER, embedded_json
from kdpipe.tables.render import render
from kdpipe.tables.report import best_rows, report
from tests.unit.synthetic import Made, draw, put

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"'"


class Reader(HTMLParser):
    """The tags of a page with their attributes, its JSON, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = ""

    def handle_data(self, data):
        if self.inside == "data":
            self.data += data
        elif not self.inside:
            self.text += data


@pytest.fixture
def made(tmp_path) -> Made:
    made = Made(tmp_path, skip=["fitnet"]).finish()
    made.collapse(made.run("dkd", "standard", 1), 8)
    made.lose(made.run("kd", "soteacher", 0))
    return made


def page_of(made: Made) -> Reader:
    return Reader(report(made.plan, made.results).read_text())


def test_the_overview_counts_the_runs_and_names_the_best(made):
    page = page_of(made)
    total = len(made.study.runs())
    assert f"{total - 2} of {total}" in page.text
    assert "kd and dkd (best in 1 of 2 columns)" in page.text
    assert f"1 of {total} runs are missing." in page.text


def test_the_best_row_is_not_known_before_there_are_results(tmp_path):
    made = Made(tmp_path)
    assert best_rows(lay_out(made.study, made.plan, made.results).blocks[0]) == ""
    assert "not known yet" in page_of(made).text
    assert "No run is finished yet." in page_of(made).text


def test_the_data_hold_the_tables_numbers_and_runs(made):
    data = json.loads(page_of(made).data)
    study = data["studies"]["demo"]
    assert list(study["tables"]) == list(made.metrics)
    row = next(r for r in study["tables"]["top1"]["rows"] if r["label"] == "dkd")
    cell = row["cells"][1]
    assert (cell["text"], cell["mark"]) == ("97.55 ± 0.07 (n=2)", "best")
    names = list(data["runs"])
    assert [names[i] for i in cell["runs"]] == [made.run("dkd", "soteacher", s) for s in (0, 1)]


def test_every_run_is_listed_once_with_its_status(made):
    data = json.loads(page_of(made).data)
    names = list(data["runs"])
    listed = data["studies"]["demo"]["runs"]
    assert sorted(names[r["run"]] for r in listed) == sorted(made.study.runs())
    status = {names[r["run"]]: r["status"] for r in listed}
    assert status[made.run("dkd", "standard", 1)] == "collapsed (8)"
    assert status[made.run("kd", "soteacher", 0)] == "missing"
    assert sorted({r["epoch"] for r in listed if r["epoch"]}) == [5, 10]


def test_a_run_shows_where_its_settings_come_from(made):
    data = json.loads(page_of(made).data)
    run = data["runs"][made.run("dkd", "standard", 0)]
    assert run["settings"] == [["beta", "2.0", "study demo"], ["warmup", "20", "default"]]
    assert ["epochs", "20"] in data["shared"][run["protocol"][1]]
    assert ["torch", "2.11.0"] in data["shared"][run["environment"]]
    assert run["link"] == f"../runs/{made.run('dkd', 'standard', 0)}/"


def test_environments_are_listed_with_their_runs(made):
    other = made.results.run(made.run("kd", "standard", 0)).provenance
    put(other, {**json.loads(other.read_text()), "torch": "2.99.0"})
    text = page_of(made).text
    assert "made by 2 environments" in text
    assert "2.99.0" in text
    assert "0123456789ab, changed since" in text


def test_nothing_is_fetched(made):
    draw(made)
    page = page_of(made)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert tag != "script" or "src" not in attributes
        if tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,")
            assert attributes["alt"]
        if tag == "a":
            assert re.match(r"#|\.\./", attributes["href"])
    assert len([t for t, _ in page.tags if t == "img"]) == 2
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_hostile_words_stay_words(tmp_path):
    made = Made(
        tmp_path,
        methods=["scratch", "kd", HOSTILE],
        recipes=["standard", HOSTILE],
        title=HOSTILE,
    ).finish()
    render(made.study, made.plan, made.results)
    page = page_of(made)
    assert [t for t, _ in page.tags].count("script") == 2
    assert not [a for _, a in page.tags if "onerror" in a]
    assert HOSTILE in page.text
    rows = json.loads(page.data)["studies"]["demo"]["tables"]["top1"]["rows"]
    assert rows[-1]["label"] == HOSTILE


def test_labels_and_controls_have_names(made):
    tags = page_of(made).tags
    ids = {a["id"] for _, a in tags if a.get("id")}
    assert len(ids) == len([a for _, a in tags if a.get("id")])
    for _, attributes in tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_the_same_results_give_the_same_bytes(made):
    first = report(made.plan, made.results).read_bytes()
    assert report(made.plan, made.results).read_bytes() == first


def test_several_studies_share_a_page(tmp_path):
    a, b = (Made(tmp_path, name=name, title=f"Study {name}").finish() for name in ("one", "two"))
    plan = Plan({**a.plan.runs, **b.plan.runs}, {**a.plan.studies, **b.plan.studies})
    page = Reader(report(plan, a.results).read_text())
    assert [x["data-study"] for _, x in page.tags if "data-study" in x] == ["one", "two"]
    assert set(json.loads(page.data)["studies"]) == {"one", "two"}


def test_a_damaged_provenance_is_one_clear_error(made):
    path = made.results.run(made.run("kd", "standard", 0)).provenance
    path.write_text("[]")
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        report(made.plan, made.results)


def test_a_thousand_runs_stay_small_and_quick(tmp_path):
    pairs = [(f"t{i}", f"s{i}") for i in range(16)]
    made = Made(tmp_path, pairs=pairs, seeds=range(5)).finish()
    assert len(made.plan.runs) > 1000
    started = time.monotonic()
    size = report(made.plan, made.results).stat().st_size
    assert time.monotonic() - started < 30
    assert size < 2_000_000


words = st.text() | st.sampled_from(["</script>", "<!--", "&amp;", "\u2028"])


@given(st.recursive(words | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(words, x)))
def test_embedded_json_is_safe_and_reads_back(value):
    text = embedded_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_the_script_stays_short():
    assert len((FOLDER / "report.js").read_text().splitlines()) < 300
