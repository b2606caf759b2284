"""Headless Chromium for tests of pages: the fixture `browser`, and what a page draws and logs."""

import json
import re
import shutil
import time

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"),
]
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --window-size=1200,1000"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a browser whose logs of messages and requests are kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in [*SWITCHES.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(browser, script, *arguments):
    """Return the script's first truthy result; fail after 30 s, as tests may share a small machine."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if answer := browser.execute_script(script, *arguments):
            return answer
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def errors(browser):
    """Return the messages in the console since the last call, except those of the graphics driver about its speed."""
    found = [entry["message"] for entry in browser.get_log("browser")]
    return [text for text in found if "GL Driver Message" not in text and "software WebGL" not in text]


def set_window(browser, width, scheme):
    """Set the width of the page in pixels, and the colour scheme that the user prefers ("light" or "dark")."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def reset_window(browser):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def drag(browser, start, end):
    """Press the mouse at `start` (x, y in the window), move it to `end` and release it."""
    for kind, (x, y) in (
        *(("mouseMoved", start), ("mousePressed", start), ("mouseMoved", end)),
        ("mouseReleased", end),
    ):
        place = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", place)


NETWORKS = "const plot = document.getElementById('pareto'); const shown = plot.data.filter(t => t.meta === 'networks');"
BRUSH = "#parameters .axis-brush .background"
# the place of the axis of MACs, the third one from the right: x, top and bottom in the window
AXIS = f"""
const plot = document.getElementById("parameters");
plot.scrollIntoView({{block: "center"}});
plot.parentNode.scrollLeft = 10000;
const box = [...document.querySelectorAll("{BRUSH}")].at(-3).getBoundingClientRect();
return [box.x + box.width / 2, box.top, box.bottom]
"""


def check_report(browser, file, n_networks, scheme):
    """Open the report `file` of a study with `n_networks` measured networks, and use it as a reader does.

    An axis is brushed, a network opened and a table sorted. Nothing may leave the machine or be logged as an error.
    """
    errors(browser)
    browser.get_log("performance")
    browser.get(file.as_uri())
    wait(browser, f"{NETWORKS} return plot.querySelectorAll('.point').length >= shown.length")
    colors = "return [getComputedStyle(document.querySelector('#pareto text')).fill, getComputedStyle(document.body)"
    ink, paper = (
        sum(map(int, re.findall(r"\d+", color)[:3])) / 3
        for color in browser.execute_script(f"{colors}.backgroundColor]")
    )
    assert (ink < 80 and paper == 255) if scheme == "light" else (ink > 180 and paper < 40)
    wait(browser, f"return document.querySelectorAll('{BRUSH}').length > 3")
    x, top, bottom = browser.execute_script(AXIS)
    for i in range(20):  # over the lines
        place = {"type": "mouseMoved", "x": x - 40, "y": top + (bottom - top) * i / 20}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", place)
    drag(browser, (x, (top + bottom) / 2), (x, bottom - 1))
    text = wait(browser, "return document.getElementById('brushed').textContent")
    chosen, n = map(int, re.findall(r"\d+", text)[:2])
    assert 0 < chosen < n == n_networks
    selected = f"{NETWORKS} return shown.map(t => (t.selectedpoints ?? t.customdata).length).reduce((a, b) => a + b)"
    assert browser.execute_script(selected) == chosen
    browser.execute_script("document.querySelector('#front tbody tr').click()")
    wait(browser, "return document.querySelectorAll('#network-curve .scatterlayer .point').length > 1")
    wait(browser, "return document.querySelector('#network-confusion .heatmaplayer image')")
    wait(browser, "return document.querySelectorAll('#network-accuracy .bars .point').length > 10")
    browser.execute_script("document.querySelector('#front th button').click()")
    assert browser.execute_script("return document.querySelector('#front th').ariaSort") == "ascending"
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert errors(browser) == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert sent and all(url.startswith(("file://", "data:", "blob:")) for url in sent)
