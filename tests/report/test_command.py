"""`edgekd report`: a summary, or the files asked for; nothing at all if a folder is no run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.main import main

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `edgekd report ARGS`: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgekd", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_without_options_it_prints_a_summary_and_writes_nothing(report, make_run, tmp_path) -> None:
    run = make_run(benched=("cpu-arm",))
    before = files(tmp_path)
    code, out, err = report(run)
    assert (code, err) == (0, "")
    assert out.startswith("digits on cpu-x86: fail\n  The shipped file is 13 × smaller and 5.0 × faster")
    assert "  file size 30.0 kB ≤ 20.0 kB: fail\n" in out
    assert "digits on cpu-arm, 200 test images" in out
    assert "  shipped: student int8, because fast <script>" in out
    assert files(tmp_path) == before


def test_the_page_is_shown_in_the_users_browser(make_run, tmp_path) -> None:
    run = make_run()
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\necho "$1" > {asked}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "edgekd", "report", str(run), "--open"]
    ended = subprocess.run(command, env=os.environ | {"BROWSER": str(browser)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert asked.read_text().strip() == (run / "report.html").as_uri()
    assert "<h2>All figures</h2>" in (run / "report.html").read_text(encoding="utf-8")


def test_without_a_folder_for_the_page_a_name_is_asked_for(report, make_run) -> None:
    code, out, err = report(make_run(), make_run(name="again"), "--open")
    assert (code, out) == (2, "")
    assert err.endswith("have no folder of their own; name --html FILE\n")


def test_nothing_in_a_name_is_obeyed(report, make_run, tmp_path, nasty, harmless) -> None:
    run, out = make_run(student=nasty), tmp_path / "out"
    _, said, _ = report(run)
    harmless(said)
    code, said, err = report(
        run, "--html", out / "a.html", "--markdown", out / "a.md", "--csv", out / "a.csv", "--json", out / "a.json",
        "--plots", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    for name in ("a.md", "a.csv", "a.json"):
        harmless((out / name).read_text(encoding="utf-8"))
    page = (out / "a.html").read_text(encoding="utf-8")
    harmless(re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    charts = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert charts
    for chart in charts:
        harmless(str(json.loads(chart)))
    rows = (out / "a.md").read_text(encoding="utf-8")
    assert r"\|c" in rows  # one cell, not two
    models = {model["name"] for model in json.loads((out / "a.json").read_text())["runs"][0]["targets"][0]["models"]}
    assert nasty in models  # programs get the name as it is


@pytest.mark.parametrize(
    ("outcome", "counted", "expected"),
    [
        ("inconclusive", None, 0),
        ("inconclusive", "pass", 0),
        ("inconclusive", "fail", 1),
        ("fail", "pass", 1),
        ("pass", "fail", 0),
    ],
)
def test_what_is_inconclusive_counts_as_asked(report, make_run, outcome, counted, expected) -> None:
    run = make_run()
    result = json.loads((run / "result.json").read_text())
    result["verdict"] = outcome
    result["budget"] = [line | {"outcome": outcome} for line in result["budget"]]
    (run / "result.json").write_text(json.dumps(result))
    code, out, err = report(run, *([] if counted is None else ["--on-inconclusive", counted]))
    assert (code, err) == (expected, "")
    assert out.startswith(f"digits on cpu-x86: {outcome}\n")  # the words stay


def test_several_runs_begin_with_an_overview(report, make_run) -> None:
    _, out, _ = report(make_run(), make_run(name="again"))
    assert out.startswith("2 runs")


def test_it_writes_every_file_asked_for(report, make_run, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, _ = report(
        make_run(benched=("cpu-arm",)), "--html", out / "a.html", "--markdown", out / "a.md", "--csv", out / "a.csv",
        "--json", out / "a.json", "--plots", out,
    )  # fmt: skip
    assert code == 0
    pictures = {"digits@cpu-x86.png", "digits@cpu-x86.bench-cpu-arm.png"}
    assert files(out) == {"a.html", "a.md", "a.csv", "a.json", *pictures}
    assert said.count(": written\n") == 6
    assert json.loads((out / "a.json").read_text())["runs"][0]["card"] == "digits"
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_pictures_of_runs_of_the_same_name_lie_side_by_side(report, make_run, tmp_path) -> None:
    run = make_run()
    report(run, run, "--plots", tmp_path / "out")
    assert files(tmp_path / "out") == {"digits@cpu-x86.png", "digits@cpu-x86-2.png"}


def test_a_folder_that_is_no_run_is_one_line_and_nothing_is_written(report, make_run, tmp_path) -> None:
    code, out, err = report(make_run(), tmp_path / "nothing", "--html", tmp_path / "a.html")
    assert (code, out) == (2, "")
    assert err == f"edgekd: {tmp_path / 'nothing'}: is no run folder\n"
    assert not (tmp_path / "a.html").exists()


def test_without_plotly_it_is_one_line_with_the_command(report, make_run, tmp_path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    code, _, err = report(make_run(), "--html", tmp_path / "a.html")
    assert code == 2
    assert err == 'edgekd: the HTML report needs plotly; pip install "edgekd[report]"\n'


def damaged(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "images in words": ("result.json", lambda content: content.update(test_examples="many")),
    "an empty model": ("result.json", lambda content: content.update(models=[{}])),
    "no models": ("result.json", lambda content: content.update(models=[])),
    "a size of nothing": ("result.json", lambda content: content["models"][2].update(size_bytes=0)),
    "a size in words": ("result.json", lambda content: content["models"][2].update(size_bytes="small")),
    "another limit": ("result.json", lambda content: content["budget"][0].update(key="beauty")),
    "a limit in words": ("result.json", lambda content: content["budget"][0].update(limit="fast")),
    "a share in words": (
        "result.json",
        lambda content: content["models"][2]["placement"].update(time_share={"CPUExecutionProvider": "most"}),
    ),
    "images in words on a target": ("bench/cpu-arm/bench.json", lambda content: content.update(images="many")),
    "a latency in words": ("bench/cpu-arm/bench.json", lambda content: content["models"][1].update(latency_p50_ms="x")),
    "no candidates": ("candidates.json", lambda content: content.clear()),
    "an empty candidate": ("candidates.json", lambda content: content.update(candidates=[{}])),
    "no records": ("records/teacher@cpu-x86.latency.json", lambda content: content.clear()),
    "calls in words": (
        "records/teacher@cpu-x86.latency.json",
        lambda content: content.update(records=[{"latency_s": "x"}]),
    ),
}


@pytest.mark.parametrize(("name", "change"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("option", ["", "--markdown"])
def test_a_damaged_run_is_one_line_and_nothing_else(report, make_run, tmp_path, name, change, option) -> None:
    good, run = make_run(), make_run(name="damaged", benched=("cpu-arm",))
    damaged(run / name, change)
    place = tmp_path / "report"
    code, out, err = report(good, run, *([option, place] if option else []))
    assert (code, out) == (2, "")
    assert err.startswith(f"edgekd: {run}")
    assert err.count("\n") == 1
    assert not place.exists()


def test_what_only_one_form_shows_is_found_before_anything_is_written(report, make_run, tmp_path) -> None:
    run = make_run()
    damaged(run / "result.json", lambda content: content["models"][2]["placement"]["costliest"][0].pop("share"))
    code, out, err = report(run, "--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html", "--json", tmp_path / "j")
    assert (code, out) == (2, "")
    assert err == f"edgekd: {run}: holds what edgekd did not write there: no 'share'\n"
    assert not {"a.csv", "a.html", "j"} & files(tmp_path)
