"""The report in a real browser: no errors, no network; sorting, filters, figures and keys that work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

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


PAGES = (
    "index",
    "how-to-read",
    "provenance",
    "studies/demo",
    "methods/dkd",
    "recipes/soteacher",
    "runs/*dkd*_s0*",
)
PAPERS = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}


def opened(browser, made: Made, name: str):
    """A page of the report, freshly loaded; `name` may be a pattern."""
    browser.get_log("browser")
    browser.get_log("performance")
    browser.set_window_size(1200, 900)
    path = sorted(made.results.report.parent.glob(f"{name}.html"))[0]
    browser.get("about:blank")
    browser.get(path.as_uri())
    return browser


@pytest.fixture
def page(browser, made):
    """The study's page."""
    return opened(browser, made, "studies/demo")


@contextmanager
def screen(browser, width: int, scheme: str) -> Iterator[None]:
    """The page on a screen of that width whose owner prefers that scheme of colours."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def texts(page, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
        ".map((e) => e.textContent)",
        selector,
    )


def labels(page) -> list[str]:
    return texts(page, "[data-study] [data-table] tbody th")


def click(page, selector: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def put_in(page, selector: str, value: str) -> None:
    page.execute_script(
        "const e = document.querySelector(arguments[0]);"
        "e.value = arguments[1]; e.dispatchEvent(new Event('input', { bubbles: true }))",
        selector,
        value,
    )


def wait_for(page, selector: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10).until(lambda page: page.find_elements("css selector", selector))


def paper(page) -> str:
    return page.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("name", PAGES)
def test_no_errors_and_no_network(browser, made, name):
    page = opened(browser, made, name)
    page.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    if page.find_elements("css selector", "[data-runs-of]"):
        wait_for(page, "[data-runs] tbody tr")
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # what the browser's own first tab asks for, which may still be loading, is not the report's doing
    asked = [p["request"]["url"] for p in sent if not p["documentURL"].startswith("chrome:")]
    assert any(url.endswith("site.js") for url in asked)
    assert {url.split(":", 1)[0] for url in asked} <= {"file", "data", "about"}
    assert page.title.endswith("kdpipe report")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_no_page_scrolls_sideways(browser, made, name, width):
    page = opened(browser, made, name)
    with screen(page, width, "light"):
        page.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        if page.find_elements("css selector", "[data-runs-of]"):
            wait_for(page, "[data-runs] tbody tr")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_overview_filters_and_sorts(browser, made):
    page = opened(browser, made, "index")
    put_in(page, "[data-words]", "no such study")
    assert texts(page, "[data-status]") == ["0 of 1 shown"]
    assert texts(page, "#overview tbody tr") == []
    put_in(page, "[data-words]", "MADE digits")
    assert len(texts(page, "#overview tbody tr")) == 1
    click(page, "#overview th:nth-child(4) button")
    head = page.find_element("css selector", "#overview th:nth-child(4)")
    assert head.get_attribute("aria-sort") == "descending"
    click(page, "#overview tbody a")
    assert page.current_url.endswith("studies/demo.html")


def test_a_methods_numbers_sort_and_filter(browser, made):
    page = opened(browser, made, "recipes/soteacher")
    column = "#found tbody td:nth-child(5)"
    assert texts(page, column) == ["teacher", "scratch", "kd", "dkd", HOSTILE]
    click(page, "#found th:last-child button")
    assert texts(page, column) == ["teacher", "dkd", "kd", "scratch", HOSTILE]
    click(page, "#found th:last-child button")
    assert texts(page, column) == [HOSTILE, "scratch", "kd", "dkd", "teacher"]
    click(page, "#found th:last-child button")
    assert texts(page, column)[0] == "teacher"
    put_in(page, "[data-key=method]", "dkd")
    assert texts(page, column) == ["dkd"]


def test_the_table_is_there_and_labels_are_text(page):
    assert labels(page) == ["teacher", "scratch", "kd", "dkd", "fitnet", HOSTILE]
    cells = texts(page, "[data-study] [data-table] tbody tr:nth-child(4) td")
    assert cells == ["97.00 (n=1, N.A.(8))", "97.55 ± 0.07 (n=2)"]
    assert texts(page, "[data-study] td.best") == ["96.05 ± 0.07 (n=2)", "97.55 ± 0.07 (n=2)"]
    assert len(texts(page, "[data-series] tbody tr")) == 3
    assert "demo" in page.page_source
    assert "taken" not in page.title


def test_a_column_sorts_best_first_then_worst_first_then_as_listed(page):
    listed = labels(page)
    click(page, "[data-study] [data-sort='1']")
    assert labels(page) == ["teacher", "dkd", "kd", "scratch", HOSTILE, "fitnet"]
    assert page.execute_script("return document.activeElement.dataset.sort") == "1"
    head = page.find_element("css selector", "[data-study] th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    click(page, "[data-study] [data-sort='1']")
    assert labels(page) == [HOSTILE, "scratch", "kd", "dkd", "teacher", "fitnet"]
    click(page, "[data-study] [data-sort='1']")
    assert labels(page) == listed


def test_a_measure_that_is_better_low_sorts_low_first(page):
    number = texts(page, "[data-block]").index("NLL")
    click(page, f"[data-block='{number}']")
    assert texts(page, "[data-study] caption")[0].startswith("NLL (nats, lower is better)")
    click(page, "[data-study] [data-sort='1']")
    assert labels(page)[0] == "teacher"
    button = page.find_element("css selector", f"[data-block='{number}']")
    assert button.get_attribute("aria-pressed") == "true"


def test_filters_narrow_rows_and_columns(page):
    put_in(page, "[data-filter=method]", "KD")
    assert labels(page) == ["kd", "dkd"]
    put_in(page, "[data-filter=recipe]", "soteacher")
    assert texts(page, "[data-study] thead tr:last-child th") == ["method", "soteacher"]
    assert texts(page, "[data-study] [data-status]") == ["2 of 6 rows, 1 of 2 columns"]
    put_in(page, "[data-filter=pair]", "resnet8x4 → resnet8")
    assert len(texts(page, "[data-study] tbody td")) == 2


def test_a_cell_leads_to_its_runs(page, made):
    click(page, "[data-study] tbody tr:nth-child(4) td:nth-child(3) button")
    names = [made.run("dkd", "soteacher", seed) for seed in (0, 1)]
    assert texts(page, "[data-study] [data-behind] a") == names
    assert page.execute_script("return document.activeElement.textContent") == names[0]
    page.switch_to.active_element.send_keys("\ue007")  # Enter
    assert page.current_url.endswith(f"runs/{names[0]}.html")
    assert texts(page, "h1") == ["dkd: resnet8x4 → resnet8, seed 0"]
    assert "study demo" in texts(page, "td")


def test_a_cell_of_one_run_is_a_link(browser, tmp_path):
    made = Made(tmp_path, seeds=[0]).finish()
    report(made.plan, made.results)
    page = opened(browser, made, "studies/demo")
    click(page, "[data-study] tbody tr:nth-child(4) td:nth-child(3) a")
    assert page.current_url.endswith(f"runs/{made.run('dkd', 'soteacher', 0)}.html")


def test_the_runs_are_listed_when_asked_for(page, made):
    assert not page.find_elements("css selector", "script[src$='runs.js']")
    click(page, "[data-runs-of] summary")
    wait_for(page, "[data-runs] tbody tr")
    assert texts(page, "[data-runs-of] [data-status]") == [
        f"{len(made.study.runs())} of {len(made.study.runs())} runs shown"
    ]
    put_in(page, "[data-find]", "dkd seed 1 standard")
    assert len(texts(page, "[data-runs] tbody tr")) == 1
    assert texts(page, "[data-runs] tbody td.warn") == ["collapsed (8)"]
    click(page, "[data-runs] tbody a")
    assert page.current_url.endswith(f"runs/{made.run('dkd', 'standard', 1)}.html")


def test_the_runs_of_an_environment_are_listed_when_asked_for(browser, made):
    page = opened(browser, made, "provenance")
    click(page, "summary")
    wait_for(page, "details li")
    made_there = made.study.runs()
    assert set(texts(page, "details li")) == set(made_there) - {made.run("kd", "soteacher", 0)}


def test_a_run_draws_its_curve(browser, made):
    page = opened(browser, made, "runs/*dkd_soteacher_s0*")
    assert texts(page, ".curve figcaption") == ["Accuracy (top-1, %)", "Training loss"]
    assert texts(page, ".curve:first-child .keys li") == ["training", "test"]
    lengths = page.execute_script(
        "return [...document.querySelectorAll('.curve path')].map((p) => p.getTotalLength())"
    )
    assert len(lengths) == 3
    assert all(length > 300 for length in lengths)
    assert "at the end: training 97.388644, test 97.5" in page.execute_script(
        "return document.querySelector('.curve title').textContent"
    )


def test_the_figures_are_drawn(page):
    sizes = page.execute_script(
        "return Promise.all([...document.querySelectorAll('img.figure')].map("
        "async (i) => { i.loading = 'eager'; await i.decode(); return i.naturalWidth }))"
    )
    assert len(sizes) == 2
    assert all(size > 100 for size in sizes)


def test_every_drawn_link_leads_somewhere(page, made):
    page.execute_script("document.querySelectorAll('[data-study] td button').forEach((b) => b.click())")
    click(page, "[data-runs-of] summary")
    wait_for(page, "[data-runs] tbody tr")
    hrefs = page.execute_script(
        "return [...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"
    )
    assert len([href for href in hrefs if href.startswith("../runs/")]) > 20
    for href in hrefs:
        if href.startswith("#"):
            assert page.find_elements("css selector", href), href
        else:
            assert (made.results.report.parent / "studies" / href).is_file(), href


def test_it_follows_a_dark_theme_and_can_be_told_otherwise(browser, made):
    page = opened(browser, made, "index")
    with screen(page, 1200, "dark"):
        assert paper(page) == PAPERS["dark"]
        page.find_element("css selector", "[data-theme-button]").send_keys(" ")
        assert paper(page) == PAPERS["light"]
    opened(browser, made, "studies/demo")  # the choice is kept
    with screen(page, 1200, "dark"):
        assert paper(page) == PAPERS["light"]
        click(page, "[data-theme-button]")
        assert paper(page) == PAPERS["dark"]
    page.execute_script("localStorage.clear()")


CONTRAST = """
const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
const paper = (e) => {
  for (let at = e; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility())
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((e) => {
    const style = getComputedStyle(e);
    const ink = rgba(e.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(paper(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.tagName, e.textContent.slice(0, 30)];
  })
  .filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("scheme", PAPERS)
@pytest.mark.parametrize("name", PAGES)
def test_text_is_easy_to_tell_from_its_ground(browser, made, name, scheme):
    page = opened(browser, made, name)
    with screen(page, 1200, scheme):
        assert paper(page) == PAPERS[scheme]
        assert page.execute_script(CONTRAST) == []


def test_it_works_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("css selector", "body").send_keys(Keys.TAB)
    assert page.execute_script("return document.activeElement.className") == "skip"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.execute_script("return document.activeElement.id") == "main"
    page.find_element("css selector", "[data-study] [data-sort='0']").send_keys(" ")
    assert labels(page)[0] == "teacher"
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.find_element("css selector", "summary").send_keys(Keys.ENTER)
    assert page.find_element("css selector", "details").get_attribute("open")
    page.find_element("css selector", "[data-study] tbody tr:nth-child(3) td button").send_keys(Keys.ENTER)
    page.find_element("css selector", "[data-study] [data-behind] button").send_keys(Keys.ENTER)
    assert page.execute_script("return document.activeElement.closest('td') !== null")


def test_controls_have_names(page):
    nameless = page.execute_script(
        "return [...document.querySelectorAll('button, input, select, a, [role=region]')].filter((e) =>"
        " !(e.textContent.trim() || e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby')))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []
