"""The page in a real browser: no error, no request, every figure drawn, nothing wider than the screen, keys suffice."""

import shutil
from itertools import pairwise

import pytest

from grasp_lora.report import write_report
from report.synthetic import SYSTEMS, rows, write_lines, write_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
WIDTHS, THEMES = (380, 1400), ("light", "dark")
LONG = "Donaudampfschifffahrtsgesellschaftskapitänsmützenband" * 3
ARABIC = "في البيت الكبير ٢٠٢٦ (ABC)، ثم عاد"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (packages chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def pages(kept_run, tmp_path_factory):
    """A report of one run, and one of two runs with long and right-to-left texts and names."""
    folder = tmp_path_factory.mktemp("pages")
    texts = {"prediction": f"{ARABIC} {LONG}", "gold": ARABIC}
    second = write_run(folder / f"مشروع {LONG}", varied=True, seed=2, policy="ratio_strength", **texts)
    write_lines(second / "stages/evaluate_zero_shot/predictions.jsonl", rows(SYSTEMS["zero_shot"], prediction=""))
    one = write_report([kept_run], folder / "one.html").html
    two = write_report([kept_run, second], folder / "two.html").html
    return {"one": one, "two": two}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def opened(browser, path, width=1400, theme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; });")
    return browser


def errors(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_figures_are_drawn_and_nothing_is_wider_than_the_screen(name, width, theme, pages, browser):
    opened(browser, pages[name], width, theme)
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    drawn = browser.execute_script("""
        return [...document.querySelectorAll('figure')].map((figure) => {
          const seen = [...figure.querySelectorAll('.still svg')].filter((svg) => svg.getClientRects().length);
          const box = seen[0].getBoundingClientRect(), frame = figure.getBoundingClientRect();
          const marks = [...seen[0].querySelectorAll('path, use, text')].filter((mark) => {
            const size = mark.getBoundingClientRect();
            return size.width > 0 || size.height > 0;
          });
          return {key: figure.id, seen: seen.length, width: box.width, height: box.height, marks: marks.length,
                  inside: box.left >= frame.left && box.right <= frame.right + 0.5};
        });""")
    assert len(drawn) > 8
    for figure in drawn:
        assert (figure["seen"], figure["inside"]) == (1, True), figure
        assert figure["width"] > 250, figure
        assert figure["height"] > 60, figure
        assert figure["marks"] > 5, figure
    assert errors(browser) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_words_in_figures_are_large_enough_to_read(width, pages, browser):
    opened(browser, pages["one"], width)
    sizes = browser.execute_script("""
        return [...document.querySelectorAll('.still svg')].filter((svg) => svg.getClientRects().length).map((svg) =>
          svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * 11);""")
    assert min(sizes) > 9.5


@pytest.mark.parametrize("theme", THEMES)
def test_the_theme_colours_page_and_figures(theme, pages, browser):
    from grasp_lora.report.palette import DARK, LIGHT

    opened(browser, pages["one"], theme=theme)
    colours = DARK if theme == "dark" else LIGHT
    seen = browser.execute_script("""
        const line = document.querySelector('#run1-trajectory-1 .large path[style*="--accent"]');
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(line).stroke || '',
                getComputedStyle(line).fill];""")
    assert seen[0] == rgb(colours["page"])
    assert rgb(colours["accent"]) in seen[1:]


def rgb(colour):
    return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))


def test_right_to_left_text_runs_from_the_right(pages, browser):
    opened(browser, pages["two"])
    directions = browser.execute_script("""
        return [...document.querySelectorAll('.question, .gold dd p')].map((p) => getComputedStyle(p).direction);""")
    assert directions
    assert set(directions) == {"rtl"}


def test_every_figure_can_be_zoomed_and_put_back(pages, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, pages["one"])
    count = browser.execute_script("""
        const buttons = [...document.querySelectorAll('figure .head button')];
        buttons.forEach((button) => button.click());
        return buttons.length;""")
    drawn = "return document.querySelectorAll('figure .live:not([hidden]) .main-svg .xaxislayer-above').length"
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(drawn) >= count)
    assert count == browser.execute_script("return document.querySelectorAll('figure').length")
    shown = browser.execute_script("""
        return [...document.querySelectorAll('figure .live')].map((live) =>
          [live.data.length > 0, live.getBoundingClientRect().width <= live.parentElement.clientWidth]);""")
    assert shown == [[True, True]] * count
    assert browser.execute_script("return document.documentElement.scrollWidth") == 1400
    still = browser.execute_script("""
        document.querySelectorAll('figure .head button').forEach((button) => button.click());
        return [...document.querySelectorAll('figure .still')].every((still) => still.getClientRects().length > 0);""")
    assert still
    assert errors(browser) == []


def test_keys_reach_everything_in_the_order_of_the_page(pages, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    opened(browser, pages["one"])
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = false; });")
    expected = browser.execute_script("""
        const all = [...document.querySelectorAll('a[href], button, summary, .scroll')].filter(
          (item) => !item.closest('details:not([open])') || item.tagName === 'SUMMARY');
        all.forEach((item, index) => { item.dataset.place = index; });
        return all.length;""")
    focused = []
    for _ in range(expected):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused.append(browser.execute_script("return document.activeElement.dataset.place"))
    assert focused == [str(place) for place in range(expected)]
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    summary = browser.execute_script("const s = document.querySelector('summary'); s.focus(); return s.textContent")
    assert summary
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.querySelector('summary').parentElement.open")


def test_everything_that_can_be_used_has_a_name(pages, browser):
    opened(browser, pages["two"])
    nameless = browser.execute_script("""
        return [...document.querySelectorAll('a, button, summary, [role=region], svg[role=img]')].filter((item) =>
          !(item.getAttribute('aria-label') || item.textContent).trim()).length;""")
    assert nameless == 0
    levels = browser.execute_script("""
        return [...document.querySelectorAll('h1, h2, h3, h4')].map((heading) => Number(heading.tagName[1]));""")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_without_script_every_figure_is_there(pages, browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages["one"].as_uri())
        seen = browser.find_elements("css selector", "figure .still .large svg")
        assert len(seen) > 8
        assert all(svg.is_displayed() for svg in seen)
        assert browser.find_elements("css selector", "figure .head button") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
