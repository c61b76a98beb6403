"""The report in a real browser: no errors, no network, and sorting, filters and figures that work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kdpipe.tables.render import render
from kdpipe.tables.report import report
from tests.unit.synthetic import Made, draw

pytestmark = [pytest.mark.browser, pytest.mark.slow]
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
HOSTILE = "<script>document.title = 'taken'</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    root = tmp_path_factory.mktemp("results")
    made = Made(root, methods=["scratch", "kd", "dkd", "fitnet", HOSTILE], skip=["fitnet"]).finish()
    made.collapse(made.run("dkd", "standard", 1), 8)
    made.lose(made.run("kd", "soteacher", 0))
    render(made.study, made.plan, made.results)
    draw(made)
    report(made.plan, made.results)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        message = "chromium and chromedriver are not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, made):
    """The report, freshly loaded."""
    browser.get_log("browser")
    browser.get_log("performance")
    browser.set_window_size(1200, 900)
    browser.get(made.results.report.as_uri())
    return browser


def texts(page, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
    )


def labels(page) -> list[str]:
    return texts(page, "[data-table] tbody th")


def click(page, selector: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(page, name: str, value: str) -> None:
    page.execute_script(
        "const e = document.querySelector(`[data-filter=${arguments[0]}]`);"
        "e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def test_no_errors_and_no_network(page):
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {url.split(":", 1)[0] for url in asked} <= {"file", "data"}
    assert page.title == "kdpipe report"


def test_the_table_is_there_and_labels_are_text(page):
    assert labels(page) == ["teacher", "scratch", "kd", "dkd", "fitnet", HOSTILE]
    cells = texts(page, "[data-table] tbody tr:nth-child(4) td")
    assert cells == ["97.00 (n=1, N.A.(8))", "97.55 ± 0.07 (n=2)"]
    assert texts(page, "[data-table] td.best") == ["96.05 ± 0.07 (n=2)", "97.55 ± 0.07 (n=2)"]


def test_a_column_sorts_best_first_then_worst_first_then_as_listed(page):
    listed = labels(page)
    click(page, "[data-sort='1']")
    assert labels(page) == ["teacher", "dkd", "kd", "scratch", HOSTILE, "fitnet"]
    assert page.execute_script("return document.activeElement.dataset.sort") == "1"
    head = page.find_element("css selector", "[data-table] th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    click(page, "[data-sort='1']")
    assert labels(page) == [HOSTILE, "scratch", "kd", "dkd", "teacher", "fitnet"]
    click(page, "[data-sort='1']")
    assert labels(page) == listed


def test_a_measure_that_is_better_low_sorts_low_first(page):
    click(page, "[data-metric=nll]")
    assert "NLL" in texts(page, "[data-table] caption")[0]
    click(page, "[data-sort='1']")
    assert labels(page)[0] == "teacher"
    assert page.find_element("css selector", "[data-metric=nll]").get_attribute("aria-pressed") == "true"


def test_filters_narrow_rows_and_columns(page):
    choose(page, "method", "KD")
    assert labels(page) == ["kd", "dkd"]
    choose(page, "recipe", "soteacher")
    assert texts(page, "[data-table] thead tr:last-child th") == ["method", "soteacher"]
    assert texts(page, "[data-status]") == ["2 of 6 rows, 1 of 2 columns"]


def test_a_cell_shows_its_runs_and_a_run_its_settings(page, made):
    click(page, "[data-table] tbody tr:nth-child(4) td:nth-child(2) button")
    assert texts(page, "[data-run-status]") == ["2 of 2 runs shown"]
    assert texts(page, "[data-runs] tbody td:nth-child(5)") == ["finished", "collapsed (8)"]
    click(page, "[data-runs] tbody tr:first-child button")
    assert "2.0 (study demo)" in texts(page, "[data-runs] dl.settings dd")
    link = page.find_element("css selector", "[data-runs] a").get_attribute("href")
    assert Path(link.removeprefix("file://")) == made.results.run(made.run("dkd", "standard", 0)).root
    click(page, "[data-all]")
    assert "all" not in texts(page, "[data-run-status]")[0]
    choose(page, "run", "dkd seed 1 standard")
    assert len(texts(page, "[data-runs] tbody tr")) == 1


def test_the_figures_are_drawn(page):
    sizes = page.execute_script(
        "return Promise.all([...document.querySelectorAll('img.figure')].map("
        "async (i) => { i.loading = 'eager'; await i.decode(); return i.naturalWidth }))"
    )
    assert len(sizes) == 2
    assert all(size > 100 for size in sizes)


def test_every_relative_link_leads_somewhere(page, made):
    click(page, "summary")
    hrefs = page.execute_script(
        "return [...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"
    )
    assert len(hrefs) > 20
    for href in hrefs:
        if href.startswith("#"):
            assert page.find_elements("css selector", href), href
        else:
            assert (made.results.report.parent / href).exists(), href


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")], ids=["phone", "dark"])
def test_it_fits_a_phone_and_follows_a_dark_theme(page, width, scheme):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[scheme]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_works_by_keyboard_alone(page):
    page.find_element("css selector", "[data-sort='0']").send_keys(" ")
    assert labels(page)[0] == "teacher"
    page.find_element("css selector", "summary").send_keys("\ue007")  # Enter
    assert page.find_element("css selector", "details").get_attribute("open")
