"""The pytest plugin as a user meets it: every test starts a pytest of its own, where warnings are errors."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.devices.local import Local

Run = Callable[..., pytest.RunResult]

HERE = """\
title = "this machine"
precisions = ["fp32"]
[hardware]
architecture = "{architecture}"
[provider]
name = "CPUExecutionProvider"
"""

QUICK = """
import functools
import pytest
from edgekd.bench.records import Effort
from edgekd.check import asked

EFFORT = Effort(processes=2, warmup_s=0.05, min_calls=50, max_calls=100, max_s=0.05)

@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(asked, "JobOptions", functools.partial(asked.JobOptions, effort=EFFORT))
    monkeypatch.setattr("edgekd.check.measure.PAIR", EFFORT)
"""

FAKED = """
import pytest
from edgekd.judge import Judged, Line, Verdict
from edgekd.figures import Figure

LINES = {
    "fast": Line("latency_p50_ms", 2.0, Figure(0.652, "measured", 0.64, 0.671), "pass", "", "95 % over 4 looks"),
    "near": Line("latency_p50_ms", 0.65, Figure(0.652, "measured", 0.64, 0.671), "inconclusive", "too close to tell"),
    "slower": Line("max_slowdown", 0.025, Figure(0.051, "measured", 0.048, 0.055), "fail", "", "95 %; 12 pairs"),
}

@pytest.fixture(autouse=True)
def jobs(monkeypatch):
    '''Jobs that were to run; the model's name says how they end.'''
    taken = []

    def run_job(job, options, estimate, on_status):
        taken.append(job)
        lines = tuple(LINES[word] for word in job.path.stem.split("-"))
        judged = Judged(
            name=job.path.name, target=job.target, verdict=Verdict(lines), file=str(job.path), sha256="ab" * 32,
            baseline="main.onnx (record)" if job.baseline else "", notes=("the machine was busy",), machine="a CPU",
            figures={"load_ms": Figure(9.6, "measured")},
        )
        return judged, None

    monkeypatch.setattr("edgekd.check.jobs.run_job", run_job)
    return taken
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest on a test file's text; `fast.onnx`, `near.onnx` and `slower.onnx` end as they are called."""

    def call(text: str, *arguments: str, conftest: str = FAKED) -> pytest.RunResult:
        pytester.makeconftest(conftest)
        pytester.makepyfile(test_it="import pytest\n\nbudget = pytest.mark.latency_budget\n\n" + text)
        return pytester.runpytest_subprocess("-W", "error", "--strict-markers", *arguments)

    return call


@pytest.fixture
def models(pytester: pytest.Pytester) -> Path:
    """Real ones, `tiny.onnx` and `other.onnx`, and `here.toml`, a target that any machine is."""
    folder = pytester.path
    (folder / "here.toml").write_text(HERE.format(architecture=Local().facts().architecture))
    for name in ("tiny", "other"):
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["logits"]),
        ]
        images = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 1])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
        graph = helper.make_graph(nodes, name, [images], [logits])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")
    return folder


def without_traceback(done: pytest.RunResult) -> str:
    """Everything the run said, and that none of it is a traceback or a warning."""
    text = done.stdout.str() + done.stderr.str()
    for sign in ("Traceback", "During handling", "direct cause", "raise ", "warnings summary", "INTERNALERROR"):
        assert sign not in text
    return text


def test_real_models_pass_and_fail(run: Run, models: Path) -> None:
    done = run(
        """
        @budget(target="here.toml", p50_ms=10_000, p95_ms=10_000)
        def test_pass(edgekd_check):
            judged = edgekd_check("tiny.onnx", budget={"size_kb": 100})
            assert (judged.outcome, judged.name, judged.target) == ("pass", "tiny.onnx", "here")
            assert {line.key for line in judged.verdict.lines} == {"latency_p50_ms", "latency_p95_ms", "size_kb"}

        def test_fail(edgekd_check):
            edgekd_check("tiny.onnx", "here.toml", budget={"size_kb": 0.001})

        def test_missing(edgekd_check):
            edgekd_check("missing.onnx", "here.toml", budget={"size_kb": 1})

        def test_target(edgekd_check):
            edgekd_check("tiny.onnx", "cpu-x68", budget={"size_kb": 1})

        def test_nothing_asked(edgekd_check):
            edgekd_check("tiny.onnx", "here.toml")

        def test_broken(edgekd_check, tmp_path):
            (tmp_path / "broken.onnx").write_bytes(b"no model")
            edgekd_check(tmp_path / "broken.onnx", "here.toml", budget={"p50_ms": 1})
        """.replace("\n        ", "\n"),
        conftest=QUICK,
    )
    done.assert_outcomes(passed=1, failed=5)
    text = without_traceback(done)
    size = (models / "tiny.onnx").stat().st_size
    done.stdout.fnmatch_lines(
        [
            f"edgekd: tiny.onnx on here: fail; file size {size} B ≤ 1 B: fail",
            f"  file size {size} B ≤ 1 B: fail",
            f"    how: exact; margin: −{size - 1} B; confidence: exact",
            "  sha256: *",
            "edgekd: missing.onnx: no such model file or run folder",
            "edgekd: unknown target 'cpu-x68'; did you mean 'cpu-x86' or *",
            "edgekd: tiny.onnx: no budget to judge it by; *",
            "  (in pytest, --budget is budget={key: value}, --baseline is baseline=FILE)",
            "edgekd: *broken.onnx*",
        ]
    )
    summary = text.partition("= edgekd =")[2].splitlines()
    assert summary[1].startswith("tiny.onnx on here: pass; latency p50 0.0")
    assert summary[1].endswith("; 1 more")
    assert summary[2] == f"tiny.onnx on here: fail; file size {size} B ≤ 1 B: fail"
    assert summary[3] == "missing.onnx on here: error; missing.onnx: no such model file or run folder"


def test_two_real_models_are_compared(run: Run, models: Path) -> None:
    done = run(
        """
        off = dict.fromkeys(
            ["max_slowdown_p95", "max_load_growth", "max_memory_growth", "max_coverage_loss", "max_fused_loss"], "off"
        )

        @budget(baseline="tiny.onnx", max_size_growth=0.5, **off)
        def test_no_slower(edgekd_check):
            judged = edgekd_check("other.onnx", tolerance={"max_slowdown": 10})
            keys = [line.key for line in judged.verdict.lines]
            assert {"max_slowdown", "max_size_growth"} <= set(keys), keys
            assert judged.baseline.startswith("tiny.onnx")
        """.replace("\n        ", "\n"),
        "--edgekd-target=./here.toml",
        "-rs",
        conftest=QUICK,
    )
    outcomes = done.parseoutcomes()
    assert outcomes in ({"passed": 1}, {"skipped": 1}), without_traceback(done)
    done.stdout.fnmatch_lines(["other.onnx on here: *; p50 slowdown * ≤ +1000.0 %: *"])


def test_the_text_of_a_failure(run: Run) -> None:
    done = run(
        """
def test_slower(edgekd_check):
    edgekd_check("fast-slower.onnx", "cpu-x86", baseline="main.onnx")
"""
    )
    done.assert_outcomes(failed=1)
    without_traceback(done)
    wanted = """\
edgekd: fast-slower.onnx on cpu-x86: fail; p50 slowdown +5.1 % ≤ +2.5 %: fail; latency p50 0.652 ms ≤ 2.00 ms: pass
  latency p50 0.652 ms ≤ 2.00 ms: pass
    how: measured; interval: 0.640 ms … 0.671 ms; margin: +1.35 ms; confidence: 95 % over 4 looks
  p50 slowdown +5.1 % ≤ +2.5 %: fail
    how: measured; interval: +4.8 % … +5.5 %; margin: −2.6 %; confidence: 95 %; 12 pairs
  note: the machine was busy
  machine: a CPU
  baseline: main.onnx (record)
  sha256: abababababababababababababababababababababababababababababababab
"""
    assert wanted in done.stdout.str()


NEAR = """
def test_near(edgekd_check):
    assert edgekd_check("near.onnx", "cpu-x86", budget={"p50_ms": 0.65}).outcome == "inconclusive"
"""


@pytest.mark.parametrize(
    ("arguments", "outcome", "line"),
    [
        ([], "skipped", "near.onnx on cpu-x86: inconclusive; latency p50 *"),
        (["-o", "edgekd_on_inconclusive=pass"], "passed", "near.onnx on cpu-x86: inconclusive (counted as pass); *"),
        (
            ["-o", "edgekd_on_inconclusive=pass", "--edgekd-on-inconclusive=fail"],
            "failed",
            "edgekd: near.onnx on cpu-x86: inconclusive (counted as fail); latency p50 *",
        ),
        (["-o", "edgekd_on_inconclusive=fail", "--edgekd-on-inconclusive=skip"], "skipped", "near.onnx on *"),
    ],
)
def test_inconclusive(run: Run, arguments: list[str], outcome: str, line: str) -> None:
    done = run(NEAR, "-rs", *arguments)
    assert done.parseoutcomes() == {outcome: 1}
    assert line.removesuffix("*") in without_traceback(done)
    if outcome == "skipped":
        reason = "inconclusive: near.onnx on cpu-x86: latency p50 0.652 ms ≤ 0.650 ms: inconclusive (too close to tell)"
        done.stdout.fnmatch_lines([f"SKIPPED [[]1[]] test_it.py:7: {reason}"])  # where the test asks, not in edgekd


def test_a_choice_that_is_none(run: Run) -> None:
    done = run(NEAR, "-o", "edgekd_on_inconclusive=maybe")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: edgekd_on_inconclusive: got 'maybe'; it should be one of skip, pass, fail" in without_traceback(done)
    assert run(NEAR, "--edgekd-on-inconclusive=maybe").ret == pytest.ExitCode.USAGE_ERROR


WRONG = """
@budget(p59_ms=3)
def test_key(edgekd_check): pass

@budget(p50_ms="fast")
def test_value(edgekd_check): pass

@budget(2)
def test_no_key(edgekd_check): pass

@budget(p50_ms=2, latency_p50_ms=3)
def test_twice(edgekd_check): pass

@budget(p50_ms=3)
def test_unread(): pass

@budget(max_slowdown=0.1)
def test_without_baseline(edgekd_check): edgekd_check("fast.onnx", "cpu-x86")

def test_budget_key(edgekd_check): edgekd_check("fast.onnx", "cpu-x86", budget={"size_kib": 3})

def test_tolerance_key(edgekd_check): edgekd_check("fast.onnx", "cpu-x86", tolerance={"max_slow_down": 3})

def test_no_mapping(edgekd_check): edgekd_check("fast.onnx", "cpu-x86", budget=["size_kb=3"])

def test_no_path(edgekd_check): edgekd_check(None, "cpu-x86", budget={"size_kb": 3})

def test_no_target(edgekd_check): edgekd_check("fast.onnx", budget={"size_kb": 3})

def test_others_go_on(edgekd_check): edgekd_check("fast.onnx", "cpu-x86", budget={"size_kb": 3})
"""


def test_mistakes_fail_their_own_test(run: Run) -> None:
    done = run(WRONG)
    done.assert_outcomes(passed=1, errors=5, failed=6)
    without_traceback(done)
    marker = "edgekd: @pytest.mark.latency_budget"
    done.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_key*",
            f"{marker}: p59_ms: unknown key; did you mean 'p*_ms' or 'p*_ms' or 'p*_ms'? Known: baseline, data, *",
            f'{marker}: latency_p50_ms: got "fast"; it should be a valid number',
            f"{marker}: got 2 without a key; write it as p50_ms=2 or size_kb=400",
            f"{marker}: latency_p50_ms: is given twice, once by its short form; leave one out",
            "*ERROR at setup of test_unread*",
            f"{marker} does nothing here: the test does not ask for the fixture edgekd_check; *",
            "edgekd: max_slowdown without a baseline: fast.onnx would be compared with nothing; give baseline=FILE",
            "edgekd: budget: size_kib: unknown key; did you mean 'size_kb'*",
            "edgekd: tolerance: max_slow_down: unknown key; did you mean 'max_slowdown' or *",
            "edgekd: budget: got [[]'size_kb=3'[]]; it should be a mapping, such as {\"latency_p50_ms\": 2}",
            "edgekd: model: got None; it should be a path",
            'edgekd: no target for fast.onnx; name one, as edgekd_check(model, "cpu-x86"), *',
        ]
    )


MERGED = """
pytestmark = budget(target="from-module", size_kb=1, p50_ms=1, data="module.npz")

def limits(job):
    return job.budget.limits()

def test_module(edgekd_check, jobs):
    edgekd_check("fast.onnx")
    assert (jobs[0].target, str(jobs[0].data)) == ("from-module", "module.npz")
    assert limits(jobs[0]) == {"size_kb": 1, "latency_p50_ms": 1}

def test_without_a_check_beside_marked_ones():
    pass

@budget(target="from-class", latency_p50_ms=2, max_slowdown=0.5)
class TestClass:
    @budget(p50_ms=4, min_accuracy=0.7)
    @budget(p50_ms=3, data=None)
    def test_function(self, edgekd_check, jobs):
        edgekd_check("fast.onnx", baseline="main.onnx")
        assert (jobs[0].target, jobs[0].data, str(jobs[0].baseline)) == ("from-class", None, "main.onnx")
        assert limits(jobs[0]) == {"size_kb": 1, "latency_p50_ms": 3, "min_accuracy": 0.7}
        assert (jobs[0].tolerance.max_slowdown, jobs[0].tolerance.max_size_growth) == (0.5, 0.01)

    @pytest.mark.parametrize("model", [pytest.param("fast.onnx", marks=budget(p50_ms=5))])
    @budget(p50_ms=3, max_slowdown="off")
    def test_parameter(self, edgekd_check, jobs, model, tmp_path):
        edgekd_check(model)
        assert limits(jobs[0])["latency_p50_ms"] == 5
        edgekd_check(
            tmp_path / "fast.onnx", "from-call", budget={"p50_ms": 6}, baseline="m.onnx", tolerance={"max_slowdown": 1}
        )
        assert (jobs[1].target, jobs[1].path) == ("from-call", tmp_path / "fast.onnx")
        assert limits(jobs[1]) == {"size_kb": 1, "latency_p50_ms": 6}
        assert jobs[1].tolerance.max_slowdown == 1
"""


def test_markers_are_merged_key_by_key(run: Run) -> None:
    run(MERGED, "--edgekd-target", "from-option").assert_outcomes(passed=4)
    run(MERGED.replace('target="from-module", ', ""), "--edgekd-target=from-module").assert_outcomes(passed=4)


SEVERAL = """
def test_several(edgekd_check):
    edgekd_check("fast.onnx", "cpu-x86", budget={"p50_ms": 2})
    edgekd_check("other/fast.onnx", "cpu-x86", budget={"p50_ms": 2})
    edgekd_check("fast.onnx", "wasm", budget={"p50_ms": 2})
    edgekd_check("slower.onnx", "cpu-x86", baseline="main.onnx")
    edgekd_check("fast.onnx", "cpu-x86")  # is not reached

@pytest.fixture
def checked(edgekd_check):
    return edgekd_check("fast.onnx", "cpu-arm")

def test_in_a_fixture(checked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

def test_unchecked(monkeypatch, tmp_path):
    pass
"""


def test_several_checks_their_history_and_their_properties(run: Run, pytester: pytest.Pytester) -> None:
    done = run(SEVERAL, "--edgekd-history=kept/history.jsonl", "--junitxml=junit.xml", "-p", "no:cacheprovider")
    done.assert_outcomes(failed=1, passed=2)
    fast = "latency p50 0.652 ms ≤ 2.00 ms: pass"
    assert done.stdout.str().partition("= edgekd =")[2].splitlines()[1:6] == [
        f"fast.onnx on cpu-x86: pass; {fast}",
        f"other/fast.onnx on cpu-x86: pass; {fast}",
        f"fast.onnx on wasm: pass; {fast}",
        "slower.onnx on cpu-x86: fail; p50 slowdown +5.1 % ≤ +2.5 %: fail",
        f"fast.onnx on cpu-arm: pass; {fast}",
    ]
    history = [json.loads(line) for line in (pytester.path / "kept/history.jsonl").read_text().splitlines()]
    assert [entry["target"] for entry in history] == ["cpu-x86", "cpu-x86", "wasm", "cpu-x86", "cpu-arm"]
    assert [entry["outcome"] for entry in history] == ["pass", "pass", "pass", "fail", "pass"]
    assert history[0]["figures"]["latency_p50_ms"] == [0.652, 0.64, 0.671]
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "junit.xml").iter("testcase")}
    properties = {one.get("name"): one.get("value") for one in cases["test_several"].iter("property")}
    assert properties["edgekd:fast.onnx@cpu-x86:outcome"] == "pass"
    assert properties["edgekd:fast.onnx@cpu-x86:latency_p50_ms"] == "0.652"
    assert properties["edgekd:fast.onnx@cpu-x86:latency_p50_ms.low"] == "0.64"
    assert properties["edgekd:fast.onnx@cpu-x86:latency_p50_ms.how"] == "measured"
    assert properties["edgekd:other/fast.onnx@cpu-x86:load_ms"] == "9.6"
    assert properties["edgekd:slower.onnx@cpu-x86:max_slowdown"] == "0.051"
    assert not list(cases["test_unchecked"].iter("property"))


def test_a_history_that_cannot_be_written_hides_no_verdict(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path / "kept").write_text("a file where a folder should be")
    done = run(NEAR + SEVERAL, "--edgekd-history=kept/history.jsonl", "-k", "near or fixture")
    done.assert_outcomes(failed=1, errors=1)
    without_traceback(done)
    text = "edgekd: --edgekd-history: *kept/history.jsonl: the history cannot be written: *"
    done.stdout.fnmatch_lines(["edgekd: fast.onnx on cpu-arm: pass; *", text])
    done.stdout.fnmatch_lines(["edgekd: near.onnx on cpu-x86: inconclusive; *", text])


def test_names_that_no_format_likes(run: Run, pytester: pytest.Pytester) -> None:
    text = r"""
def test_names(edgekd_check):
    edgekd_check("a\x1b[31m\udc80/slower.onnx", "b\x00\udc80", baseline="main.onnx")
"""
    done = run(text, "--junitxml=junit.xml")
    done.assert_outcomes(failed=1)
    without_traceback(done)
    names = [one.get("name", "") for one in ET.parse(pytester.path / "junit.xml").iter("property")]
    assert r"edgekd:slower.onnx@b\x00\udc80:max_slowdown" in names


COUNTING = """
import pathlib, sys

def pytest_sessionfinish():
    pathlib.Path("loaded.txt").write_text("\\n".join(sys.modules))
"""


def test_who_does_not_use_it_does_not_notice(run: Run, pytester: pytest.Pytester) -> None:
    done = run("def test_nothing(): pass", conftest=COUNTING)
    done.assert_outcomes(passed=1)
    assert "edgekd" not in without_traceback(done).partition("collected")[2]
    loaded = (pytester.path / "loaded.txt").read_text().splitlines()
    assert {name for name in loaded if name.split(".")[0] == "edgekd"} == {
        "edgekd",
        "edgekd.check",
        "edgekd.check.pytest_plugin",
    }
    assert {"numpy", "pydantic", "rich", "typer", "onnx", "onnxruntime", "torch"}.isdisjoint(loaded)


def test_the_import_adds_nothing_to_pytest() -> None:
    code = "import sys, pytest; old = {*sys.modules}; import edgekd.check.pytest_plugin; print(*{*sys.modules} - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(done.stdout.split())
    assert added == {"edgekd", "edgekd.check", "edgekd.check.pytest_plugin"}, added


def test_it_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass\n\ndef test_asks(edgekd_check): pass")
    done = pytester.runpytest_subprocess("-W", "error", "--strict-markers", "-p", "no:edgekd")
    done.assert_outcomes(passed=1, errors=1)
    assert "fixture 'edgekd_check' not found" in done.stdout.str()


def test_it_is_listed(run: Run) -> None:
    assert "@pytest.mark.latency_budget(target=…, p50_ms=…" in run("", "--markers").stdout.str()
    fixtures = run("", "--fixtures").stdout.str()
    assert "edgekd_check --" in fixtures and "_edgekd_settings" not in fixtures
    assert "--edgekd-on-inconclusive={skip,pass,fail}" in run("", "--help").stdout.str()


def test_distributed_tests_bring_their_lines(run: Run, pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed here")
    done = run(SEVERAL + NEAR, "-n", "2", "--edgekd-history=history.jsonl", "--junitxml=junit.xml")
    done.assert_outcomes(failed=1, passed=2, skipped=1)
    without_traceback(done)
    assert done.stdout.str().partition("= edgekd =")[2].count(" on cpu-x86: ") >= 4
    assert len((pytester.path / "history.jsonl").read_text().splitlines()) == 6
    assert 'name="edgekd:fast.onnx@wasm:latency_p50_ms"' in (pytester.path / "junit.xml").read_text()
