"""Markdown for a pull request, CSV and JSON, all from the same story."""

import csv
import io
import json

import pytest

from edgekd.figures import FIGURES, Figure, ModelFigures
from edgekd.judge import Line
from edgekd.report.run.export import as_csv, as_json, as_markdown, entries, margin
from edgekd.report.run.gather import gather
from edgekd.tables import figure_rows

OTHERS = ("cpu-arm", "cpu-x86-avx2", "cuda", "wasm", "coreml")


def test_markdown_fits_a_comment_and_folds_the_details(make_run) -> None:
    text = as_markdown([gather(make_run(benched=OTHERS))])
    assert len(text.splitlines()) <= 60
    assert text.startswith("### ❌ digits on cpu-x86: fail\n\nThe shipped file is 13 × smaller")
    assert "| file size | ≤ 20.0 kB | 30.0 kB | 50 % above | fail | exact |" in text
    assert text.count("<details>") == text.count("</details>") == 1
    assert "edgekd distill digits --target cpu-x86" in text
    assert "| cpu-arm | 92.00 % | 0.200 ms |" in text
    assert "| 1 more, in the HTML report |" in text


def test_markdown_shows_names_as_they_are(make_run) -> None:
    text = as_markdown([gather(make_run(student="student|int8<b>&"))])
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script>alert" in text
    assert "student\\|int8&lt;b>&amp;" in text
    tables = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(tables) == {7, 6}  # the budget has six columns, the figures have five


def test_markdown_of_several_runs_begins_with_an_overview(make_run) -> None:
    text = as_markdown([gather(make_run()), gather(make_run(name="again"))])
    assert text.startswith("| run | target | verdict |")
    assert text.count("| digits | cpu-x86 | fail | student int8 | 30.0 kB | 0.200 ms | 92.00 % | 95.00 % |") == 2


def test_csv_has_a_row_for_each_figure(make_run) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([gather(make_run(benched=("cpu-arm",)))]))))
    by_key = {(row["target"], row["model"], row["figure"]): row for row in rows}
    assert len(by_key) == len(rows)
    latency = by_key["cpu-x86", "student int8", "latency_p50_ms"]
    assert (latency["value"], latency["unit"], latency["provenance"]) == ("0.2", "ms", "measured")
    assert (float(latency["low"]), float(latency["high"])) == pytest.approx((0.19, 0.22))
    accuracy = by_key["cpu-arm", "teacher", "accuracy"]
    assert (accuracy["value"], accuracy["unit"], accuracy["examples"]) == ("0.95", "share", "200")
    assert float(accuracy["low"]) < 0.95 < float(accuracy["high"])
    assert by_key["cpu-x86", "teacher", "energy_mj"]["note"] == "no counter here"
    assert by_key["cpu-x86", "student int8", "throughput batch 8"]["value"] == "9000"
    assert {row["shipped"] for row in rows if row["model"] == "student int8"} == {"yes"}


def test_json_holds_what_the_page_shows(make_run) -> None:
    content = json.loads(as_json([gather(make_run(benched=("cpu-arm",)))]))
    assert content["schema_version"] == 2
    (run,) = content["runs"]
    assert run["budget"][1] | {"why": ""} == {
        "key": "size_kb", "limit": 20.0, "value": 30.0, "provenance": "exact", "low": None, "high": None, "why": "",
        "margin": "50 % above", "outcome": "fail", "reason": "",
    }  # fmt: skip
    assert [target["target"] for target in run["targets"]] == ["cpu-x86", "cpu-arm"]
    model = run["targets"][0]["models"][2]
    assert [process["calls"] for process in model["processes"]] == [120, 120, 120]
    assert len(model["details"]["confusion"]) == len(model["details"]["recall"]) == 3
    assert model["placement"]["fell_back"] == {"Pad": 1}
    assert len(run["candidates"]) == 4


@pytest.mark.parametrize(
    ("key", "limit", "value", "text"),
    [
        ("latency_p50_ms", 1.0, 0.68, "32 % below"),
        ("size_kb", 20, 30, "50 % above"),
        ("size_kb", 20, 20, "within 0.5 % of it"),
        ("min_accuracy", 0.9, 0.8675, "3.25 points below"),
        ("min_accuracy", 0.9, 0.9, "exactly on it"),
        ("max_accuracy_drop", 3, 6.64, "3.64 points above"),
        ("latency_p95_ms", 1.0, None, ""),
    ],
)
def test_margins_are_in_the_words_of_the_budget(key, limit, value, text) -> None:
    assert margin(Line(key, limit, Figure(value, "measured"), "pass")) == text


def test_accuracy_gets_its_interval_and_unknown_figures_their_reason(make_run) -> None:
    shown = {entry.key: entry for entry in entries(gather(make_run()).shipped, 200)}
    assert shown["accuracy"].interval == "87.40 % … 95.02 %"
    assert shown["energy_mj"].text == "–"
    assert "load_ms" not in shown  # nobody asked for it


def test_figures_have_the_words_of_the_tables() -> None:
    exact = {"size_bytes": 1, "params": 1, "macs": 1}
    every = {name: Figure(0.5, "measured") for name in FIGURES}
    model = ModelFigures(name="m", file="m.onnx", sha256="0", precision="fp32", **exact, **every)  # type: ignore[arg-type]
    shown = [(entry.word, entry.text) for entry in entries(model, 0)]
    assert shown == [(row[0], row[1]) for row in figure_rows([model])[1]]
