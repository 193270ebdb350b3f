"""Tables: ratios to the teacher, provenance of every row, nothing unknown made to look known."""

import dataclasses
import io
from typing import Any

from rich.console import Console

from edgekd.card import Budget
from edgekd.figures import Figure, ModelFigures
from edgekd.judge import judge
from edgekd.result import Result, read_models, write_result
from edgekd.tables import (
    comparison_rows,
    figure_rows,
    headline,
    markdown_report,
    markdown_table,
    notes,
    parity_rows,
    rich_table,
    terminal_table,
)

TEACHER = ModelFigures(
    name="teacher",
    file="t.onnx",
    sha256="00",
    size_bytes=1_000_000,
    precision="fp32",
    params=853_018,
    scores={"accuracy": Figure(0.9339, "measured")},
    latency_p50_ms=Figure(4.0, "measured", 3.9, 4.1),
)
STUDENT = ModelFigures(
    name="student int8",
    file="s.onnx",
    sha256="01",
    size_bytes=85_000,
    precision="int8",
    params=78_000,
    scores={"accuracy": Figure(0.88, "measured")},
    latency_p50_ms=Figure(1.0, "estimated", 0.5, 2.0, "from a page"),
    latency_p95_ms=Figure(why="50 calls are too few for p95"),
)


def a_result(**values) -> Result:
    verdict = judge({"size_kb": STUDENT.size_kb, "latency_p50_ms": STUDENT.latency_p50_ms},
                    Budget(size_kb=100, latency_p50_ms=3), allow_estimated=True)  # fmt: skip
    defaults: dict[str, Any] = {
        "card": "cifar10", "target": "cpu-arm", "verdict": verdict, "chosen": "student int8", "why_chosen": "fast",
        "models": (TEACHER, STUDENT), "shape": {"depth": 8}, "candidates": 3, "test_examples": 10_000, "test_reads": 1,
        "parity": {"examples": 5, "max_abs": 1e-6, "relative": 1e-7, "same": 1.0, "same_words": "same class"},
    }  # fmt: skip
    return Result(**(defaults | values))


def test_rows_show_ratios_to_the_teacher_and_how_each_was_obtained() -> None:
    header, rows = figure_rows([TEACHER, STUDENT])
    cells = {row[0]: row[1:] for row in rows}
    assert header == ["", "teacher", "student int8", "how"]
    assert cells["file size"] == ["1.0 MB", "85.0 kB (÷12)", "exact"]
    assert cells["top-1 accuracy"] == ["93.39 %", "88.00 %", "measured"]
    assert cells["latency p50"] == ["4.00 ms ±2.5 %", "1.00 ms [0.500 ms … 2.00 ms] (÷4.0)", "estimated, measured"]
    assert cells["latency p95"] == ["–", "–", "unknown"]
    assert "load time" not in cells  # nobody asked for it


def drawn(table, width: int = 80) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


def test_a_terminal_of_80_columns_shows_whole_figures_and_one_line_for_what_is_not_known() -> None:
    table, lines = terminal_table([TEACHER, STUDENT], "cifar10 on cpu-arm")
    text = drawn(table)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "85.0 kB (÷12)" in text
    assert "latency p95" not in text
    assert lines == [
        "  how: exact; measured: top-1 accuracy; estimated, measured: latency p50",
        "  not known: latency p95",
    ]


def test_instructions_have_a_column_where_they_were_counted() -> None:
    header, rows = comparison_rows([("cpu-x86", TEACHER)])
    assert "instructions" not in header and len(rows[0]) == len(header)
    counted = dataclasses.replace(STUDENT, instructions_m=Figure(0.263, "emulated", 0.263, 0.263))
    header, rows = comparison_rows([("cpu-x86", TEACHER), ("cpu-arm", counted)])
    assert [row[header.index("instructions")] for row in rows] == ["–", "263 k ±0.0 %"]
    assert len(rows[0]) == len(header)


def test_columns_of_words_are_aligned_at_the_left_and_numbers_at_the_right() -> None:
    text = drawn(
        rich_table(["", "device", "ms", "here"], [["a", "pi", "1.5", "no"], ["b", "board", "10.25", "yes"]], "")
    )
    lines = [line for line in text.splitlines() if "pi" in line or "board" in line]
    assert lines[0].index("pi") == lines[1].index("board")
    assert lines[0].index("1.5") > lines[1].index("10.25")


def test_remarks_that_differ_in_their_numbers_are_one_note_with_the_largest() -> None:
    busy = [dataclasses.replace(STUDENT, name=name, latency_p95_ms=Figure(), latency_p50_ms=Figure(), notes=(text,))
            for name, text in (("a", "busy up to 1.4 of 2 CPUs"), ("b", "busy up to 1.8 of 2 CPUs"))]  # fmt: skip
    assert notes(busy) == ["a, b – busy up to 1.8 of 2 CPUs"]


def test_markdown_escapes_what_would_break_the_table() -> None:
    assert markdown_table(["", "a|b"], [["x", "1"]]).splitlines()[0] == "|  | a\\|b |"


def test_headline_says_when_latency_was_estimated_or_is_not_known() -> None:
    assert headline(a_result()) == "cifar10 on cpu-arm: pass (latency estimated; accuracy not asked)"
    unknown = ModelFigures("student int8", "", "", 1, "int8", latency_p50_ms=Figure(why="no reference"))
    only_size = judge({"size_kb": Figure(1, "exact")}, Budget(size_kb=2))
    result = a_result(models=(TEACHER, unknown), verdict=only_size)
    assert headline(result) == "cifar10 on cpu-arm: pass (latency not asked, not known; accuracy not asked)"


def test_the_report_holds_verdict_budget_table_and_remarks() -> None:
    text = markdown_report(a_result(notes=("mind the gap",)), "figures.png")
    assert text.startswith(
        "# cifar10 on cpu-arm: pass (latency estimated; accuracy not asked)\n\n- latency p50 1.00 ms ≤"
    )
    assert "depth = 8" in text
    assert "- latency p95 – unknown: 50 calls are too few for p95" in text
    assert "- mind the gap" in text
    assert "![" in text
    assert "| latency p95 |" not in text
    assert "Not known: latency p95." in text


def test_agreement_with_torch_is_one_table_of_every_file_on_every_provider() -> None:
    compared = dataclasses.replace(
        STUDENT, torch_agreement=Figure(0.995, "proxy"), max_logit_diff=Figure(0.31, "proxy")
    )
    places = [("CPU (cpu-arm)", "9 test images", [TEACHER, compared]), ("Web (wasm)", "8 test images", [compared])]
    header, rows = parity_rows(a_result().parity, "images", places)
    assert header[3:5] == ["same answer as torch", "largest difference"]
    assert rows == [
        ["fp32, as exported", "CPU, before measuring", "5 validation images", "100.00 %", "1e-06", "this machine"],
        ["student int8", "CPU (cpu-arm)", "9 test images", "99.50 %", "0.31", "proxy"],
        ["student int8", "Web (wasm)", "8 test images", "99.50 %", "0.31", "proxy"],
    ]
    assert "| student int8 | cpu-arm | 10000 test images | 99.50 % |" in markdown_report(
        a_result(models=(TEACHER, compared)), None
    )
    assert parity_rows({}, "images", [("CPU", "", [TEACHER])])[1] == []


def test_result_json_is_read_back(tmp_path) -> None:
    write_result(a_result(), tmp_path / "result.json")
    content, models = read_models(tmp_path / "result.json")
    assert models == [TEACHER, STUDENT]
    assert content["verdict"] == "pass"
    assert content["budget"][0]["outcome"] == "pass"


def test_a_note_names_the_models_where_their_reasons_differ() -> None:
    first = dataclasses.replace(TEACHER, latency_p50_ms=Figure(why="too small"), energy_mj=Figure(why="no counter"))
    second = dataclasses.replace(STUDENT, latency_p50_ms=Figure(why="no reference"), energy_mj=Figure(why="no counter"))
    found = notes([first, dataclasses.replace(second, latency_p95_ms=Figure())])
    assert found == [
        "latency p50 of teacher – unknown: too small",
        "latency p50 of student int8 – unknown: no reference",
        "energy per call – unknown: no counter",
    ]
