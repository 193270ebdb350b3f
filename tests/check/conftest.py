"""What the tests of the reports share: one check of each kind."""

import pytest

from edgekd.check.judge import Judged, Line, Verdict
from edgekd.figures import Figure

P50 = Line("latency_p50_ms", 1.0, Figure(0.652, "measured", 0.64, 0.671), "pass", "", "95 % over 4 planned looks")
P95 = Line("latency_p95_ms", 0.7, Figure(0.7, "measured", 0.69, 0.71), "inconclusive", "too close to tell")
P99 = Line("latency_p99_ms", 0.7, Figure(0.9, "measured"), "fail")
SIZE = Line("size_kb", 25.0, Figure(27.7, "exact"), "fail", "", "exact")
MEMORY = Line("peak_memory_mb", 60, Figure(None, why="not measured here"), "not judged", "not measured here")
SLOWER = Line("max_slowdown", 0.025, Figure(0.051, "measured", 0.048, 0.055), "fail", "", "95 %; 12 process pairs")

NASTY = 'a|b`c`<img src=x onerror=alert(1)>&"\'#%:,\\\x00\x1b[31m\udc80\nsecond "line"'
"""A name with all that one of the formats obeys."""


@pytest.fixture
def mixed() -> Judged:
    """A model with a line of every outcome."""
    return Judged(
        name="student.onnx",
        target="cpu-x86",
        verdict=Verdict((P50, P95, P99, SIZE, MEMORY)),
        sha256="ab" * 32,
        notes=("the machine was busy",),
        seconds=10.0,
        machine="AMD EPYC, ONNX Runtime 1.31",
        figures={"latency_p50_ms": P50.figure, "size_kb": SIZE.figure, "load_ms": Figure(9.6, "measured")},
    )


@pytest.fixture
def slower() -> Judged:
    """A model that is slower than its baseline."""
    return Judged(name="big.onnx", target="cpu-x86", verdict=Verdict((SLOWER,)), baseline="main.onnx", seconds=5.0)


@pytest.fixture
def passed() -> Judged:
    """A model that passes."""
    return Judged(name="small.onnx", target="cpu-x86", verdict=Verdict((P50,)), seconds=1.0)


@pytest.fixture
def broken() -> Judged:
    """A model that could not be checked, with a name that no format likes."""
    return Judged(name=NASTY, target="cpu-arm", problem=f"{NASTY}: crashed with signal 11")
