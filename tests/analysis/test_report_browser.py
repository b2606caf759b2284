"""The report in headless Chromium: it is drawn and interactive, logs no errors, and needs no network."""

import json
import time
from pathlib import Path

import pytest

from analysis import front, outputs
from analysis.results import load_study
from tests.support.analysis.browser import BROWSER, browser, errors, wait
from tests.support.driven_study import Driver
from tests.support.example_study import rows, write_study, write_table
from tests.support.tune.live import best_points, measure_more, running_study, serving
from tune.commands.status import current_study

__all__ = ["browser"]

pytestmark = BROWSER
# centre of each marker of the trace with this legend name: [x, y] in the window
MARKERS = """
const plot = document.getElementById("pareto");
plot.scrollIntoView();
const index = plot.data.findIndex(trace => trace.name === arguments[0]);
const uid = plot._fullData[index].uid;
return [...plot.querySelectorAll(`.trace${uid} .points path`)].map(path => {
  const box = path.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
});
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("browser") / "study", rows())
    write_table(folder / "test.csv", [{"trial_id": "00002", "step": 2, "test_macro_avg_acc": 0.6123}])
    outputs.write_report(folder)
    return load_study(folder)


@pytest.fixture(scope="module")
def page(browser, study):
    """Return a browser that has opened and drawn the report."""
    browser.get("about:blank")
    browser.get_log("performance")  # drop the requests of the browser's start page
    browser.get((study.path / "report.html").as_uri())
    wait(browser, "return document.querySelectorAll('#pareto .point, #bytes .point').length")
    return browser


def move_mouse(browser, x, y):
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})


def test_no_request_leaves_the_machine_and_the_console_is_quiet(page):
    assert errors(page) == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert sum(url.startswith("file://") for url in sent) == 1  # the page itself: proof that the log works
    assert [url[:80] for url in sent if not url.startswith(("file://", "data:"))] == []
    buttons = "return [...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title).join()"
    assert "PNG" in page.execute_script(buttons) and "Share" not in page.execute_script(buttons)


def test_every_point_of_the_front_is_drawn_with_its_line(page, study):
    best = front.pareto_points(study)
    drawn = page.execute_script(MARKERS, "front")
    assert len(drawn) == len(best)
    assert drawn == sorted(drawn)  # MACs rise to the right
    box = page.execute_script("return document.querySelector('#pareto .nsewdrag').getBoundingClientRect().toJSON()")
    assert all(box["left"] < x < box["right"] and box["top"] < y < box["bottom"] for x, y in drawn)
    heights = [-y for _, y in drawn]
    assert heights == sorted(heights)  # the front's accuracy rises, too
    roles = ("dominated", "over a limit")
    others = sum(len(page.execute_script(MARKERS, role)) for role in roles)
    assert others + len(best) == study.points["val_macro_avg_acc"].notna().sum()


@pytest.mark.parametrize(("plot", "label"), [("pareto", "limit 30 M"), ("bytes", "limit 128 kB")])
def test_limit_baseline_and_trajectories_are_drawn(page, study, plot, label):
    drawn = page.execute_script(
        """
        const plot = document.getElementById(arguments[0]);
        const all = selector => [...plot.querySelectorAll(selector)];
        const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.right]; };
        const trace = plot._fullData.find(trace => trace.name === "prune trajectory");
        return {
          lines: all(".shapelayer path").map(box),
          texts: all(".annotation").map(e => [e.textContent, ...box(e.querySelector("text"))]),
          path: all(`.trace${trace.uid} .js-line`).map(e => e.getAttribute("d")).join(""),
        };
        """,
        plot,
    )
    assert [text for text, *_ in drawn["texts"]] == [label, "baseline 55.2 %"]
    assert len(drawn["lines"]) == 2
    assert 0 < drawn["lines"][0][0] - drawn["texts"][0][2] < 12  # pixels from the label's end to its line
    steps = study.points[study.points["val_macro_avg_acc"].notna()].groupby("trial_id").size()
    assert drawn["path"].count("M") == (steps > 1).sum()  # one stroke a pruned trial
    assert drawn["path"].count("L") == (steps[steps > 1] - 1).sum()


def test_hover_shows_the_configuration_and_traces_the_trial(page, study):
    best = front.pareto_points(study)
    index = len(best) - 1
    x, y = page.execute_script(MARKERS, "front")[index]
    move_mouse(page, x - 60, y + 120)
    move_mouse(page, x, y)
    script = "const h = document.querySelector('#pareto .hovertext'); return h && h.textContent"
    text = wait(page, script)
    point = best.iloc[index]
    assert f"trial {point['trial_id']}, step {point['step']}" in text
    assert f"{100 * point['val_macro_avg_acc']:.1f} % ± " in text and "test accuracy: 61.2 %" in text
    assert f"MACs: {point['macs'] / 1e6:.2f} M" in text and f"{point['bytes_fp16'] / 1e3:.1f} kB at fp16" in text
    for column in study.prefixed("config/"):
        assert f"{column.removeprefix('config/')}: " in text
    steps = (study.points["trial_id"] == point["trial_id"]).sum()
    traced = "return document.getElementById(arguments[0]).data.at(-1).x.length"
    assert [page.execute_script(traced, plot) for plot in ("pareto", "bytes")] == [steps, steps]
    assert page.execute_script(script) == text  # the label remains after the highlighting trace is drawn
    move_mouse(page, 5, 5)
    wait(page, "return document.getElementById('pareto').data.at(-1).x.length === 0")


def test_the_table_is_the_front_and_sorts(page, study):
    best = front.pareto_points(study)
    table = "[...document.querySelectorAll('#front tbody tr')]"
    read = f"return {table}.map(row => [row.dataset.trial, +row.dataset.step])"
    expected = [list(pair) for pair in zip(best["trial_id"], best["step"].tolist(), strict=True)]
    assert page.execute_script(read) == expected
    buttons = "[...document.querySelectorAll('#front th button')]"
    click = f"{buttons}.find(button => button.textContent === arguments[0]).click()"
    page.execute_script(click, "sparsity %")
    order = best.sort_values("sparsity", kind="stable")[["trial_id", "step"]].to_numpy().tolist()
    assert page.execute_script(read) == order
    page.execute_script(click, "val %")
    page.execute_script(click, "val %")
    assert page.execute_script(read) == expected[::-1]
    page.execute_script(click, "test %")  # one point has a test accuracy: it comes first, both ways
    assert page.execute_script(read)[0] == ["00002", 2]
    page.execute_script(click, "test %")
    assert page.execute_script(read)[0] == ["00002", 2]
    page.execute_script(click, "M MACs")
    assert page.execute_script(read) == expected


def click_legend(browser, name):
    x, y = browser.execute_script(
        "const item = [...document.querySelectorAll('#pareto .legend .traces')]"
        ".find(e => e.textContent.trim() === arguments[0]).querySelector('.legendtoggle');"
        "item.scrollIntoView({block: 'center'});"
        "const box = item.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]",
        name,
    )
    for kind in ("mousePressed", "mouseReleased"):
        place = {"x": x, "y": y, "button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})


def test_a_click_on_the_legend_hides_and_shows_a_group(page):
    shown = (
        "const plot = document.getElementById('pareto');"
        "const trace = plot._fullData.find(t => t.name === 'dominated');"
        "return (trace.visible === true) === arguments[0] &&"
        " (plot.querySelectorAll(`.trace${trace.uid} .points path`).length > 0) === arguments[0]"
    )
    assert page.execute_script(shown, True)
    for state in (False, True):
        click_legend(page, "dominated")
        wait(page, shown, state)
        time.sleep(0.5)  # two clicks in less are a double click, which isolates the group


@pytest.mark.parametrize("width", [1200, 800, 400])
def test_nothing_sticks_out_of_the_window(page, tmp_path, width):
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait(page, "return document.querySelector('#pareto .main-svg').clientWidth <= innerWidth")
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    plot = page.execute_script("return document.querySelector('#pareto .nsewdrag').getBoundingClientRect().width")
    assert plot > 0.7 * width - 60
    picture = Path(tmp_path) / "report.png"
    page.save_screenshot(str(picture))
    assert picture.stat().st_size > 20_000
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_empty_study_opens_quietly(browser, tmp_path):
    folder = write_study(tmp_path, [row for row in rows() if row["status"] == "failed"])
    outputs.write_report(folder)
    browser.get_log("browser")
    browser.get((folder / "report.html").as_uri())
    assert "No feasible point yet" in browser.find_element("css selector", ".lead").text
    assert errors(browser) == []


def test_a_live_page_shows_new_points_without_a_click_and_keeps_the_readers_place(tmp_path, browser):
    folder = running_study(tmp_path / "study")
    read = "return [...document.querySelectorAll('#front tbody tr')].map(r => [r.dataset.trial, +r.dataset.step])"
    strip_contains = "return document.getElementById('strip').textContent.includes(arguments[0])"
    browser.get_log("browser")
    with serving(folder) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        wait(browser, "return document.querySelectorAll('#pareto .point').length")
        best = best_points(folder)
        assert browser.execute_script(read) == best
        click_legend(browser, "front")
        wait(browser, "return document.getElementById('pareto')._fullData.some(t => t.visible === 'legendonly')")
        browser.execute_script(
            "window.kept = true;"  # lost if the page were loaded again
            "[...document.querySelectorAll('#front th button')].find(b => b.textContent === 'val %').click();"
            "window.scrollTo(0, 700)"
        )
        top = "document.getElementById('pareto').getBoundingClientRect().top"  # what the reader sees
        before = browser.execute_script(f"return {top}")
        driver = Driver(folder)
        measure_more(driver, 13, 18)
        grown = front.pareto_points(current_study(folder, driver.state))
        assert len(grown) > len(best)
        expected = grown.sort_values("val_macro_avg_acc")[["trial_id", "step"]].to_numpy().tolist()
        wait(
            browser,
            f"{read.replace('return', 'return JSON.stringify(')}) === arguments[0]",
            json.dumps(expected, separators=(",", ":")),
        )
        hidden = "document.getElementById('pareto')._fullData.filter(t => t.visible === 'legendonly').map(t => t.name)"
        # a new line above the plot scrolls the page, so that the plot keeps its position
        assert browser.execute_script(f"return [window.kept, {hidden}]") == [True, ["front"]]
        assert browser.execute_script(f"return {top}") == pytest.approx(before, abs=1)  # a pixel
        assert browser.execute_script("return window.scrollY") >= 700
        click_legend(browser, "front")
        wait(browser, f"return {hidden}.length === 0")
        assert len(browser.execute_script(MARKERS, "front")) == len(grown)
        wait(browser, strip_contains, "t0000 dense, epoch 3")
        driver.epoch("t0000", 5)
        wait(browser, strip_contains, "t0000 dense, epoch 5")
        whole = driver.path.read_bytes()
        driver.path.write_bytes(whole + b"damaged\n")
        wait(browser, strip_contains, "the study cannot be read")
        driver.path.write_bytes(whole)
        wait(browser, strip_contains, "t0000 dense, epoch 5")
        assert [message for message in errors(browser) if "503" not in message] == []
    wait(browser, strip_contains, "the server does not answer")


def test_a_live_page_of_a_study_without_points_fills_itself(tmp_path, browser):
    folder = running_study(tmp_path / "study", trials=0)
    with serving(folder) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        assert "No feasible point yet" in browser.find_element("css selector", ".lead").text
        measure_more(Driver(folder), 1, 12)
        wait(browser, "return document.querySelectorAll('#pareto .point, #front tbody tr').length > 10")
