"""A study's table page in a real browser: its own script alone runs, headings sort, filters hide."""

from __future__ import annotations

import pytest

from kdpipe.tables.render import render
from tests.browser.test_report import HOSTILE, browser
from tests.unit.synthetic import Made

__all__ = ["browser"]
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    more = {"baseline": "kd"}
    pairs = (("resnet8x4", "resnet8"), ("resnet32x4", "resnet8"))
    methods = ["scratch", "kd", "dkd", "fitnet", HOSTILE]
    made = Made(tmp_path_factory.mktemp("table"), methods=methods, pairs=pairs, skip=["fitnet"], more=more)
    made.finish()
    render(made.study, made.plan, made.results)
    return (made.results.study("demo") / "table.html").as_uri()


@pytest.fixture
def page(browser, address):
    browser.get_log("browser")
    browser.get(address)
    return browser


def shown(page, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelector('table.grid').querySelectorAll(arguments[0])]"
        ".filter((e) => e.checkVisibility()).map((e) => e.textContent)",
        selector,
    )


def choose(page, name: str, value: str) -> None:
    page.execute_script(
        "const e = document.querySelector(`select[name=${arguments[0]}]`);"
        "e.value = arguments[1]; e.dispatchEvent(new Event('change', { bubbles: true }))",
        name,
        value,
    )


def test_only_the_pages_own_script_runs(page):
    assert page.get_log("browser") == []
    assert page.title == "A made-up study"
    assert shown(page, "tbody th") == ["teacher", "scratch", "kd", "dkd", "fitnet", HOSTILE]


def test_a_heading_sorts_and_what_has_no_number_stays_below(page):
    click = "document.querySelectorAll('table.grid thead tr:last-child button')[arguments[0]].click()"
    page.execute_script(click, 1)
    assert shown(page, "tbody th") == ["teacher", "dkd", "kd", "scratch", HOSTILE, "fitnet"]
    page.execute_script(click, 1)
    assert shown(page, "tbody th") == [HOSTILE, "scratch", "kd", "dkd", "teacher", "fitnet"]
    page.execute_script(click, 0)
    assert shown(page, "tbody th")[1:3] == ["dkd", "fitnet"]


def test_filters_hide_rows_columns_and_their_headings(page):
    choose(page, "recipe", "soteacher")
    assert shown(page, "thead tr:last-child th") == ["method", "soteacher", "soteacher"]
    choose(page, "pair", "digits: resnet32x4 → resnet8")
    assert shown(page, "thead th.group") == ["resnet32x4 → resnet8"]
    choose(page, "method", "dkd")
    assert shown(page, "tbody th") == ["dkd"]
    assert len(shown(page, "tbody td")) == 1
    for name in ("recipe", "pair", "method"):
        choose(page, name, "")
    assert len(shown(page, "tbody td")) == 6 * 4


def test_every_number_links_to_its_runs(page):
    links = page.execute_script("return [...document.querySelectorAll('table.grid td a')].map((a) => a.href)")
    assert links
    assert all("/report/runs/" in link and link.endswith(".html") for link in links)
    assert shown(page, "tbody tr:nth-child(3) td:nth-child(2) a") == ["1", "2"]
