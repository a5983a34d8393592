"""The pages in a real browser without a network: they draw, they fit, they say no error, in both themes and on a phone.

Needs Chromium or Chrome with its chromedriver (Debian: chromium, chromium-driver); skipped where there is none.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.cli.comparison import compare, render
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.report import read_report, write_report
from tests.cli.report_run import make_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason=f"no browser: needs one of {', '.join(BROWSERS)} and chromedriver on the PATH",
)
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
DRAWN_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses to run as root
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(DRAWN_LIMIT_S)
    # a page that asked for anything on a network would log an error
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    write_report(make_run(root / "run"), root / "one", Silent())
    write_report(make_run(root / "other-run", seats=2), root / "two", Silent())
    one, two = read_report(root / "one"), read_report(root / "two")
    comparison = root / "compare.html"
    comparison.write_text(render(compare(one, two, (root / "one", root / "two")), one, two), encoding="utf-8")
    return {"report": root / "one" / "report.html", "compare": comparison}


def open_page(browser: Any, page: Path, size: str, theme: str) -> None:
    width, height = SIZES[size]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"},
    )
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    wait_until(browser, "return document.documentElement.dataset.drawn")


def wait_until(browser: Any, script: str) -> None:
    end = time.monotonic() + DRAWN_LIMIT_S
    while not browser.execute_script(script):
        assert time.monotonic() < end, f"never came true: {script}"
        time.sleep(0.05)


def luminance(browser: Any) -> float:
    """Of the page's background, from 0 (black) to 255."""
    value = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(part) for part in value.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.3 * red + 0.6 * green + 0.1 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_draws_and_fits(browser: Any, pages: dict[str, Path], name: str, size: str, theme: str) -> None:
    browser.get_log("browser")
    open_page(browser, pages[name], size, theme)
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "yes"
    assert browser.get_log("browser") == []
    wide = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == SIZES[size][0]
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map((chart) => [chart.id,"
        " chart.querySelectorAll('.trace path').length, chart.getBoundingClientRect().width,"
        " chart.querySelector('.main-svg')?.getBoundingClientRect().width ?? 0])"
    )
    assert len(drawn) >= 8
    for identifier, marks, width, svg_width in drawn:
        assert marks > 0, f"{identifier} is empty"
        assert abs(width - svg_width) <= 1, f"{identifier} does not fill its place"
    assert (luminance(browser) > 200) == (theme == "light")


def test_the_theme_can_be_changed_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages["report"], "desktop", "light")
    button = browser.find_element(By.ID, "theme")
    assert button.text == "Dark theme"
    button.send_keys(Keys.ENTER)
    assert button.text == "Light theme"
    assert luminance(browser) < 60
    assert browser.get_log("browser") == []
    browser.execute_script("localStorage.clear()")


def test_the_cumulative_view_is_chosen_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages["report"], "phone", "light")
    bars = "return document.querySelectorAll('#ttft .bars path').length"
    assert browser.execute_script(bars) > 5
    browser.find_element(By.ID, "view-histogram").send_keys(Keys.ARROW_RIGHT)
    wait_until(browser, "return document.querySelectorAll('#ttft .bars path').length === 0")
    wait_until(browser, "return document.querySelectorAll('#ttft .scatterlayer path').length > 0")
    assert browser.get_log("browser") == []


def test_every_control_and_every_chart_has_a_name(browser: Any, pages: dict[str, Path]) -> None:
    for page in pages.values():
        open_page(browser, page, "desktop", "light")
        unnamed = browser.execute_script(
            "return [...document.querySelectorAll('button, [role=img], [role=region], fieldset')]"
            ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
        )
        assert unnamed == 0
        levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((e) => +e.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1


def test_it_prints_on_white_paper(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["report"], "desktop", "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert luminance(browser) > 250
    hidden = browser.execute_script("return getComputedStyle(document.getElementById('theme')).display")
    assert hidden == "none"
    fill = browser.execute_script("return getComputedStyle(document.querySelector('#ttft .xtick text')).fill")
    assert fill == "rgb(68, 68, 68)", "dark on white, though the chart was drawn for a dark page"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    assert browser.get_log("browser") == []
