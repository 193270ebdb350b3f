"""The page in a real browser: nothing is loaded, nothing complains, a hover shows the figures, it prints."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.report.run.gather import gather
from edgekd.report.run.html import html_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is here")

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip

POINT = """([trace, point]) => {
  const chart = document.querySelector(".chart");
  const drawn = chart._fullData.find((entry) => entry.name === trace);
  const [x, y] = [chart._fullLayout.xaxis, chart._fullLayout.yaxis];
  chart.scrollIntoView({block: "center"});
  const box = chart.getBoundingClientRect();
  return [box.left + x._offset + x.d2p(drawn.x[point]), box.top + y._offset + y.d2p(drawn.y[point])];
}"""
"""Where a point of a trace of the left panel lies in the window, by plotly's own axes."""

CELL = """([row, column]) => {
  const chart = document.querySelector(".choice .chart");
  const [x, y] = [chart._fullLayout.xaxis2, chart._fullLayout.yaxis];
  chart.scrollIntoView({block: "center"});
  const box = chart.getBoundingClientRect();
  return [box.left + x._offset + x.d2p(column), box.top + y._offset + y.d2p(row)];
}"""
"""The same of a cell of the confusion matrix."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, make_run, tmp_path) -> Iterator[tuple[Any, list[str]]]:
    """The page in the browser, and what went wrong there until the test's end."""
    file = tmp_path / "report.html"
    file.write_text(html_report([gather(make_run(benched=("cpu-x86-avx2",)))]), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(180_000)  # on a busy machine a page of 5 MB takes its time
    trouble: list[str] = []
    page.route("**/*", lambda route: only(route, file, trouble))
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", lambda dialog: trouble.append(f"a dialog: {dialog.message}"))
    page.goto(file.as_uri())
    page.locator(".chart").last.locator(".main-svg").first.wait_for()
    yield page, trouble
    assert trouble == []
    page.close()


def only(route: Any, file: Path, trouble: list[str]) -> None:
    if route.request.url == file.as_uri():
        route.continue_()
    else:
        trouble.append(f"asked for {route.request.url}")
        route.abort()


def test_every_point_is_drawn(opened) -> None:
    page, _ = opened
    chart = page.locator(".chart").first
    assert chart.locator(".subplot.xy .points path.point").count() == 4 * 2 + 3 + 1  # the ring around what is shipped
    assert chart.locator(".subplot.x2y2 .points path.point").count() == 3 + 1
    assert page.locator(".chart").count() == 4  # cost and accuracy, latency on two targets, classes


def test_a_hover_shows_the_figures_with_their_units(opened) -> None:
    page, _ = opened
    page.mouse.move(*page.evaluate(POINT, ["student int8", 0]))
    label = page.locator(".chart").first.locator(".hoverlayer .hovertext")
    label.wait_for()
    text = label.text_content()
    for figure in (
        "student int8 (shipped)",
        "top-1 accuracy 92.00 % [87.40 % … 95.02 %] measured",
        "latency p50 0.200 ms [0.190 ms … 0.220 ms] measured",
        "file size 30.0 kB exact",
        "peak memory 60.0 MB measured",
    ):
        assert figure in text


def test_a_hover_shows_a_candidate_by_its_name_as_it_is(opened) -> None:
    page, _ = opened
    page.mouse.move(*page.evaluate(POINT, ["int8 candidates", 3]))
    label = page.locator(".chart").first.locator(".hoverlayer .hovertext")
    label.wait_for()
    text = label.text_content()
    assert 'width=32 kind=<script>alert("x")<\\/script> & </script><img src=x onerror=alert(1)>' in text
    assert "int8, not trained" in text
    assert "latency p50 0.640 ms [0.576 ms … 0.768 ms] measured" in text


def test_another_model_can_be_chosen(opened) -> None:
    page, _ = opened
    classes = page.locator(".choice")
    numbers = "chart => chart.data[1].text.map((row) => row.join(' ')).join(' | ')"
    shipped = classes.locator(".chart").evaluate(numbers)
    assert classes.locator("select option").count() == 6
    assert classes.locator("select").input_value() == "student int8 on cpu-x86, test data"
    classes.locator("select").select_option("teacher on cpu-x86, test data")
    page.wait_for_function("(before) => document.querySelector('.choice .chart').data[1].text[0][0] !== before", arg="")
    assert classes.locator(".chart").evaluate(numbers) != shipped


def test_zooming_a_log_axis_gives_new_ticks(opened) -> None:
    page, _ = opened
    page.evaluate(
        "Plotly.relayout(document.querySelector('.chart'), {'xaxis.range[0]': -0.71, 'xaxis.range[1]': -0.69})"
    )
    page.wait_for_function("() => document.querySelector('.chart')._fullLayout.xaxis.tickmode === 'auto'")
    assert page.locator(".chart").first.locator(".xtick").count() >= 2


def test_nothing_overflows_at_900_pixels(opened) -> None:
    page, _ = opened
    page.set_viewport_size({"width": 900, "height": 900})
    page.wait_for_function("() => document.documentElement.scrollWidth <= 900")  # fails where a chart stays too wide


def test_a_phone_shows_panels_below_one_another_and_tables_as_lists(opened) -> None:
    page, _ = opened
    page.set_viewport_size({"width": 390, "height": 800})
    panels = "() => ['xaxis', 'xaxis2'].map((axis) => document.querySelector('.chart')._fullLayout[axis].domain)"
    page.wait_for_function(f"() => JSON.stringify(({panels})()) === '[[0,1],[0,1]]'")
    tops = page.evaluate("() => ['yaxis', 'yaxis2'].map((a) => document.querySelector('.chart')._fullLayout[a].domain)")
    assert tops[1][1] < tops[0][0]  # one panel ends where the other has not begun
    page.wait_for_function("() => document.documentElement.scrollWidth <= 390")
    wide = "[...document.querySelectorAll('table')].filter((t) => t.getBoundingClientRect().right > 390).length"
    assert page.evaluate(wide) == 0
    outcome = page.locator("td[data-of=outcome]").first
    assert outcome.evaluate("(cell) => getComputedStyle(cell, '::before').content").startswith('"outcome: ')


def test_it_prints(opened) -> None:
    page, _ = opened
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 30_000
    assert page.evaluate("[...document.querySelectorAll('details')].every((folded) => folded.open)")


def test_a_hover_tells_who_was_taken_for_whom(opened) -> None:
    page, _ = opened
    page.mouse.move(*page.evaluate(CELL, [0, 1]))
    label = page.locator(".choice .hoverlayer .hovertext")
    label.wait_for()
    text = label.text_content()
    assert text.startswith('true class zeroanswer <script>alert("x")')
    assert text.endswith("5 images, 7.5 % of the class")


def test_no_button_sends_anything_anywhere(opened) -> None:
    page, _ = opened
    buttons = page.locator(".chart").first.locator(".modebar-btn")
    titles = [button.get_attribute("data-title") for button in buttons.all()]
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]


def test_a_chart_can_be_saved_as_a_picture(opened) -> None:
    page, _ = opened
    with page.expect_download() as saved:
        page.locator(".chart").first.locator(".modebar-btn").first.evaluate("(button) => button.click()")
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")
