"""The history of checks as a report: series that are never mixed, steps with their commits, names shown as they are."""

import csv
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgekd.card import Budget
from edgekd.cli.main import main
from edgekd.figures import Figure
from edgekd.history import HistoryEntry, append_history, read_history
from edgekd.judge import Judged, judge
from edgekd.report.checks.history import CSV_HEADER, history_csv, history_json, history_markdown, history_rows
from edgekd.report.checks.page import MOST, history_page
from edgekd.report.checks.plot import picture_name, plot_history
from edgekd.report.checks.series import Group, group_series
from edgekd.report.checks.slots import drawn_limits, drawn_steps, extent_of, slots_of
from edgekd.report.checks.timeline import timeline_chart

for package in ("ruptures", "plotly", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is not installed")

NAUGHTY = "<script>alert(\"x\")<\\/script> & </script><img src=x onerror=alert(1)> 'q' %{x} |` $x^2$"
BEGIN = datetime(2026, 9, 1, 8, tzinfo=UTC)
FAST, SLOW = "fast CPU, ORT 1.24", f"slow {NAUGHTY}"
CHECKS, STEP = 12, 7
"""Checks of each machine, and the number of the first at the new level."""


def commit(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def a_check(number: int, model: str, machine: str) -> Judged:
    latency = (0.2 if machine == FAST else 0.4) * (1.1 if number >= STEP else 1) * (1 + 0.002 * (number % 3))
    figures = {
        "latency_p50_ms": Figure(latency, "measured", 0.98 * latency, 1.02 * latency),
        "size_kb": Figure(30.0 if number < STEP else 33.0, "exact"),
        "peak_memory_mb": Figure(60.0, "measured"),
        "min_accuracy": Figure(0.92 if number < STEP else 0.93, "measured"),
        "max_accuracy_drop": Figure(-0.5 + number / 1000, "measured"),
        "max_slowdown": Figure(0.1, "measured"),
    }
    limits = Budget(latency_p50_ms=0.25 if number < 5 else 0.24, min_accuracy=0.9, peak_memory_mb=1_000)
    sha256 = hashlib.sha256(model.encode() + b"new" * (number >= STEP)).hexdigest()
    verdict = judge(figures, limits)
    return Judged(name=model, target="cpu-x86", verdict=verdict, sha256=sha256, machine=machine, figures=figures)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "history.jsonl"
    for number in range(CHECKS):
        when = BEGIN + timedelta(hours=number)
        append_history(path, [a_check(number, "small", FAST), a_check(number, NAUGHTY, FAST)], when, commit(number))
        append_history(path, [a_check(number, "small", SLOW)], when + timedelta(minutes=4), commit(number))
    return path


@pytest.fixture
def groups(history: Path) -> list[Group]:
    return group_series(read_history(history)[0])


def an_entry(minute: int, name: str, machine: str = FAST, value: float = 1.0) -> HistoryEntry:
    at = BEGIN + timedelta(minutes=minute)
    figures = {"latency_p50_ms": Figure(value)}
    return HistoryEntry(at=at, commit=name, model="m", sha256="", target="t", machine=machine, outcome="pass",
                 figures=figures, limits={}, edgekd="1")  # fmt: skip


def test_machines_are_never_mixed(groups) -> None:
    assert [(group.model, group.machines) for group in groups] == [("small", [FAST, SLOW]), (NAUGHTY, [FAST])]
    shown = {(one.key, one.machine) for one in groups[0].series}
    keys = ("latency_p50_ms", "size_kb", "peak_memory_mb", "min_accuracy", "max_accuracy_drop")
    assert shown == {(key, machine) for key in keys for machine in (FAST, SLOW)}  # no slowdown: it is relative
    assert all(len(one.entries) == CHECKS for one in groups[0].series)


def test_two_machines_in_turn_are_no_steps() -> None:
    entries = [an_entry(number, str(number), (FAST, SLOW)[number % 2], 1.0 + number % 2) for number in range(20)]
    assert group_series(entries)[0].stepped == []


def test_a_step_has_the_commit_at_which_it_begins(groups) -> None:
    rows = {(row[0]): row for row in history_rows([one for one in groups[0].series if one.machine == FAST])[1]}
    short = commit(STEP)[:9]
    levels = "0.200 ms → 0.220 ms"
    assert rows["latency p50"][1:4] == ["12", "0.221 ms", "≤ 0.240 ms"]
    assert re.fullmatch(rf"\+\d+\.\d % at {short} \(2026-09-01\): {levels}, new file", rows["latency p50"][5])
    assert rows["accuracy"][4:] == [
        "+0.00 points",
        f"+1.00 points at {short} (2026-09-01): 92.00 % → 93.00 %, new file",
    ]
    assert rows["peak memory"][4:] == ["+0.0 %", "none"]
    words = {one.word: one.is_better(step) for one, step in groups[0].stepped}
    assert words == {"latency p50": False, "file size": False, "accuracy": True}


def test_a_step_in_the_same_file_is_told_from_a_new_one() -> None:
    (group,) = group_series([an_entry(number, str(number), value=1.0 + (number > 4)) for number in range(10)])
    assert history_rows(group.series)[1][0][5].endswith(": 1.00 ms → 2.00 ms, same file")


def test_a_check_that_failed_has_an_outcome_and_no_figure(tmp_path) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, [Judged(name="m", target="t", problem="it crashed")], BEGIN, "abc")
    groups = group_series(read_history(path)[0])
    assert (groups[0].outcome, groups[0].series) == ("error", ())
    assert "None: every figure has kept its level." in history_page(groups, [])
    plot_history(groups[0], tmp_path / "a.png")


def test_the_verdict_is_the_worst_of_a_commit(groups) -> None:
    assert [group.outcome for group in groups] == ["fail", "pass"]  # the slow machine misses its latency


def test_a_matrix_of_machines_shares_its_places(groups) -> None:
    slots = slots_of(groups[0], 100)
    assert len(slots.labels) == CHECKS
    assert slots.labels[0] == f"2026-09-01\n{commit(0)[:9]}"
    assert len(slots_of(groups[0], 5).labels) == 5


def test_the_same_commit_again_has_a_place_of_its_own() -> None:
    entries = [an_entry(0, "a"), an_entry(1, "a"), an_entry(2, ""), an_entry(3, "", SLOW), an_entry(4, "a", SLOW)]
    labels = [label.split("\n")[1] for label in slots_of(group_series(entries)[0], 100).labels]
    assert labels == ["a", "a (2)", "no commit", "no commit (2)", "a (3)"]


def test_the_limit_is_drawn_where_it_was(groups) -> None:
    slots = slots_of(groups[0], 100)
    by_key = {key: [one for one in groups[0].series if one.key == key] for key in ("latency_p50_ms", "peak_memory_mb")}
    assert drawn_limits(by_key["latency_p50_ms"], slots) == (list(range(12)), [0.25] * 5 + [0.24] * 7)
    assert extent_of(by_key["latency_p50_ms"], slots).limit_shown
    memory = extent_of(by_key["peak_memory_mb"], slots)  # its limit of 1 GB would press it flat
    assert not memory.limit_shown
    assert memory.high < 65


def test_words_of_near_steps_do_not_cover_each_other(groups) -> None:
    series = [one for one in groups[0].series if one.key == "latency_p50_ms"]
    marks = drawn_steps(series, slots_of(groups[0], 100))
    assert [(mark.at, mark.row) for mark in marks] == [(STEP - 0.5, 0), (STEP - 0.5, 1)]


def test_the_chart_has_a_colour_for_each_machine(groups) -> None:
    series = [one for one in groups[0].series if one.key == "latency_p50_ms"]
    chart = timeline_chart(series, slots_of(groups[0], 100), {FAST: "#111111", SLOW: "#222222"})
    points = [trace for trace in chart["data"] if trace["mode"] == "lines+markers"]
    assert [trace["marker"]["color"] for trace in points] == ["#111111", "#222222"]
    assert points[0]["error_y"]["array"] == pytest.approx([0.02 * y for y in points[0]["y"]], rel=1e-3)
    assert points[0]["hovertext"][0] == (
        f"<b>0.200 ms</b> [0.196 ms … 0.204 ms]<br>2026-09-01 08:00 {commit(0)[:9]}, check: pass<br>{FAST}"
    )
    assert [shape["line"]["color"] for shape in chart["layout"]["shapes"]] == ["#111111", "#222222"]
    assert chart["data"][-1]["name"] == "limit, ≤ 0.240 ms"


def test_csv_and_json_hold_every_check(groups) -> None:
    rows = list(csv.DictReader(io.StringIO(history_csv(groups))))
    assert tuple(rows[0]) == CSV_HEADER
    assert len(rows) == 3 * 5 * CHECKS
    steps = [row for row in rows if row["step"]]
    assert {row["commit"] for row in steps} == {commit(STEP)}
    assert {row["figure"]: row["step_unit"] for row in steps} == {
        "latency_p50_ms": "%", "size_kb": "%", "min_accuracy": "points",
    }  # fmt: skip
    content = json.loads(history_json(groups, ["line 3"]))
    assert (content["schema_version"], content["warnings"]) == (1, ["line 3"])
    one = content["groups"][0]["series"][0]
    assert (one["figure"], len(one["points"])) == ("latency_p50_ms", CHECKS)
    assert one["steps"][0]["commit"] == commit(STEP)
    assert one["steps"][0]["previous_commit"] == commit(STEP - 1)


def test_markdown_keeps_its_tables_whole(groups) -> None:
    text = history_markdown(groups)
    assert text.count("| figure | checks |") == 3  # small on two machines, the other model on one


def test_the_page_is_self_contained_and_shows_names_as_they_are(groups) -> None:
    page = history_page(groups, [f"{NAUGHTY}: line 3 is skipped"])
    assert len(page.encode()) <= 6_000_000
    own = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)
    assert "<img" not in own
    assert "<script>alert" not in own
    assert own.count("</script>") == own.count("<script")
    assert not re.search(r'(src|href)="(?!#)', own)


def test_a_long_history_stays_a_small_page() -> None:
    entries = [an_entry(number, commit(number), value=1 + 0.01 * (number % 7)) for number in range(MOST + 500)]
    page = history_page(group_series(entries), [])
    assert len(page.encode()) <= 6_000_000
    assert "500 older checks are in what --json writes." in page


def test_a_picture_is_drawn_of_any_name(groups, tmp_path) -> None:
    assert picture_name(groups[0]) == "small@cpu-x86.history"
    assert re.fullmatch(r"[\w.@+-]+", picture_name(groups[1]))
    plot_history(groups[0], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgekd", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_the_command_prints_a_line_for_each_series(report, history) -> None:
    with history.open("a") as file:
        file.write('{"torn')
    code, out, err = report("--history", history)
    assert code == 0
    assert err == f"edgekd: {history}: line 37 is skipped: is torn or no JSON\n"
    assert out.startswith(f"small on cpu-x86, {FAST}: pass at {commit(11)[:9]} (2026-09-01)")
    assert out.count("latency p50") == 3
    assert out.count(f"+10.0 % at {commit(STEP)[:9]} (2026-09-01): 30.0 kB → 33.0 kB, new file") == 3


def test_the_command_writes_every_file_asked_for(report, history, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, _ = report(
        "--history", history, "--html", out / "a.html", "--markdown", out / "a.md", "--csv", out / "a.csv",
        "--json", out / "a.json", "--plots", out,
    )  # fmt: skip
    assert code == 0
    assert said.count(": written\n") == 6
    assert len(list(out.glob("*.history.png"))) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "report: Missing argument 'RUN...': name run folders, or a history of checks with --history"),
        (["run", "--history", "h"], "report: run and --history h are two reports; ask for one after the other"),
        (
            ["--history", "h"],
            "h: the history cannot be read: No such file or directory; `edgekd check --history` writes one",
        ),
    ],
)
def test_what_cannot_be_reported_is_one_line(report, tmp_path, monkeypatch, arguments, told) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(*arguments) == (2, "", f"edgekd: {told}\n")


def test_without_ruptures_it_is_one_line_with_the_command(report, history, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    assert report("--history", history) == (2, "", 'edgekd: --history needs ruptures; pip install "edgekd[report]"\n')


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture
def opened(groups, tmp_path) -> Iterator[Any]:
    """The page in a browser; nothing may go wrong there."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is here")
    file = tmp_path / "history.html"
    file.write_text(history_page(groups, [NAUGHTY]), encoding="utf-8")
    trouble: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--headless", "--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(180_000)  # on a busy machine a page of 5 MB takes its time
        page.on("request", lambda request: trouble.append(request.url) if request.url != file.as_uri() else None)
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.goto(file.as_uri())
        page.locator(".chart").last.locator(".main-svg").first.wait_for()
        yield page
        browser.close()
    assert trouble == []


def test_a_browser_draws_points_steps_and_names(opened) -> None:
    assert opened.locator(".chart").count() == 2 * 5
    latency = opened.locator(".chart").first
    assert latency.locator(".points path.point").count() == 2 * CHECKS
    assert latency.locator(".shapelayer path").count() == 2
    words = latency.locator(".annotation-text").all_text_contents()
    assert all(word.endswith(f" % {commit(STEP)[:9]}") for word in words)
    names = latency.locator(".legendtext").all_text_contents()
    assert names == [FAST, SLOW, "limit, ≤ 0.240 ms"]
    assert opened.locator("h2").nth(1).text_content() == f"{NAUGHTY} on cpu-x86"
    for width in (1200, 900):
        opened.set_viewport_size({"width": width, "height": 900})
        # Charts are drawn anew one after the other; the wait fails where one stays too wide.
        opened.wait_for_function("w => document.documentElement.scrollWidth <= w", arg=width)
