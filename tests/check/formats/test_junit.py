"""JUnit XML, as a reader of it sees it."""

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import pytest
from junitparser import Error, Failure, Skipped
from junitparser.xunit2 import JUnitXml

from edgekd.check.formats.junit import junit_xml
from edgekd.judge import Judged, Verdict


def read(judged: Sequence[Judged], on_inconclusive: str | None = None) -> Any:
    return JUnitXml.fromstring(junit_xml(judged, on_inconclusive).encode())


def cases(judged: Sequence[Judged], on_inconclusive: str | None = None) -> dict[str, Any]:
    return {case.name: case for suite in read(judged, on_inconclusive) for case in suite}


def test_a_suite_a_target_and_a_case_a_metric(mixed: Judged, slower: Judged) -> None:
    elsewhere = dataclasses.replace(mixed, target="wasm")
    report = read([mixed, slower, elsewhere])
    assert [(suite.name, suite.tests, suite.failures, suite.skipped, suite.time) for suite in report] == [
        ("cpu-x86", 6, 2, 2, 15.0),
        ("wasm", 5, 1, 2, 10.0),
    ]
    assert (report.tests, report.failures, report.errors, report.time) == (11, 3, 0, 25.0)
    keys = [(case.classname, case.name) for suite in report for case in suite]
    assert ("student.onnx on wasm", "file size") in keys
    assert len(set(keys)) == len(keys)


def test_models_of_one_name_are_told_apart(passed: Judged) -> None:
    judged = [dataclasses.replace(passed, file=file) for file in ("a/small.onnx", "b/small.onnx", "b/small.onnx")]
    (suite,) = read(judged)
    assert [case.classname for case in suite] == ["a/small.onnx", "b/small.onnx", "b/small.onnx (2)"]


def test_one_target_needs_no_naming(mixed: Judged) -> None:
    assert {case.classname for case in cases([mixed]).values()} == {"student.onnx"}


def test_results_of_every_outcome(mixed: Judged, slower: Judged) -> None:
    found = cases([mixed, slower])
    assert found["latency p50"].result == found["latency p99"].result == []
    (failure,) = found["file size"].result
    assert isinstance(failure, Failure)
    assert (failure.message, failure.type) == ("file size 27.7 kB ≤ 25.0 kB: fail", "budget")
    assert failure.text == "file size 27.7 kB ≤ 25.0 kB: fail\nhow: exact\nmargin: −2.7 kB\nconfidence: exact"
    (regression,) = found["p50 slowdown"].result
    assert (regression.type, regression.message) == ("regression", "p50 slowdown +5.1 % ≤ +2.5 %: fail")
    assert isinstance(found["latency p95"].result[0], Skipped)
    assert isinstance(found["peak memory"].result[0], Skipped)
    assert found["latency p50"].time == 2.0
    assert "fail, advisory" in found["latency p99"].system_out
    assert found["latency p50"].system_out.splitlines() == [
        "latency p50 0.652 ms ≤ 1.00 ms: pass",
        "how: measured",
        "interval: 0.640 ms … 0.671 ms",
        "margin: +0.348 ms",
        "confidence: 95 % over 4 planned looks",
        "the machine was busy",
    ]


@pytest.mark.parametrize(("policy", "expected"), [(None, [Skipped]), ("fail", [Failure]), ("pass", [])])
def test_inconclusive_is_what_was_asked_for(mixed: Judged, policy: str | None, expected: list[type]) -> None:
    found = cases([mixed], policy)
    assert [type(result) for result in found["latency p95"].result] == expected
    assert "too close to tell" in found["latency p95"].system_out
    assert [type(result) for result in found["peak memory"].result] == [Skipped]


def test_properties(mixed: Judged, slower: Judged) -> None:
    found = cases([mixed, slower])
    known = {entry.name: entry.value for entry in found["file size"].properties()}
    assert known == {"machine": mixed.machine, "sha256": mixed.sha256}
    assert [entry.value for entry in found["p50 slowdown"].properties()] == ["main.onnx"]
    (suite,) = read([mixed, slower])
    assert {entry.name: entry.value for entry in suite.properties()} == {"target": "cpu-x86", "machine": mixed.machine}


def test_a_problem_is_an_error_and_its_name_breaks_nothing(broken: Judged) -> None:
    (case,) = cases([broken]).values()
    (error,) = case.result
    assert isinstance(error, Error)
    assert case.classname == broken.name.replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace("\udc80", r"\udc80")
    assert error.message.endswith('second "line": crashed with signal 11')


def test_nothing_to_judge_is_skipped_and_nothing_at_all_is_a_report() -> None:
    (case,) = cases([Judged(name="m", target="t", verdict=Verdict(()))]).values()
    assert isinstance(case.result[0], Skipped)
    assert ET.fromstring(junit_xml([], None)).attrib["tests"] == "0"
