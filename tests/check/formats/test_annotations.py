"""GitHub's workflow commands."""

import re

from edgekd.check.formats.annotations import github_annotations
from edgekd.judge import Judged


def unescaped(text: str) -> str:
    """As the runner reads it."""
    for code, character in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(code, character)
    return text


def commands(text: str) -> list[tuple[str, str, str]]:
    found = re.findall(r"^::(error|warning) title=([^:,]*)::(.*)$", text, re.MULTILINE)
    assert len(found) == len(text.splitlines())
    return [(command, unescaped(title), unescaped(message)) for command, title, message in found]


def test_failures_are_errors_and_doubts_are_warnings(mixed: Judged, slower: Judged) -> None:
    title = "student.onnx on cpu-x86: "
    assert commands(github_annotations([mixed, slower])) == [
        ("error", f"{title}file size", "file size 27.7 kB ≤ 25.0 kB: fail"),
        ("error", "big.onnx on cpu-x86: p50 slowdown", "p50 slowdown +5.1 % ≤ +2.5 %: fail"),
        ("warning", f"{title}latency p95", "latency p95 0.700 ms ≤ 0.700 ms: inconclusive (too close to tell)"),
        ("warning", f"{title}latency p99", "latency p99 0.900 ms ≤ 0.700 ms: fail, advisory"),
    ]


def test_what_passes_is_silent(passed: Judged) -> None:
    assert github_annotations([passed]) == ""
    assert github_annotations([]) == ""


def test_a_name_cannot_forge_a_command(broken: Judged) -> None:
    ((command, title, message),) = commands(github_annotations([broken]))
    name = broken.name.replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace("\udc80", r"\udc80")
    assert (command, title) == ("error", f"{name} on cpu-arm")
    assert message == f"{name}: crashed with signal 11"


def test_at_most_ten_of_a_kind(slower: Judged, mixed: Judged) -> None:
    shown = commands(github_annotations([slower] * 14 + [mixed] * 5))
    errors = [message for command, _, message in shown if command == "error"]
    warnings = [message for command, _, message in shown if command == "warning"]
    assert len(errors) == len(warnings) == 10
    assert errors[-1] == "10 more are left out here; the log has them all"
    assert "left out" not in warnings[-1]
    assert len(commands(github_annotations([slower] * 10))) == 10


def test_what_is_inconclusive_is_an_error_where_that_fails(mixed: Judged) -> None:
    def errors(on_inconclusive: str | None) -> list[str]:
        found = commands(github_annotations([mixed], on_inconclusive))
        return [title.partition(": ")[2] for command, title, _ in found if command == "error"]

    assert errors("pass") == errors(None) == ["file size"]
    assert errors("fail") == ["latency p95", "file size"]
