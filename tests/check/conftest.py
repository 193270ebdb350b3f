"""What the tests of checks share: one check of each kind, and samples made by hand."""

from collections.abc import Sequence
from statistics import fmean as mean
from typing import Any

import pytest

from edgekd.bench.records import Record
from edgekd.check.record import Answers, Sample
from edgekd.figures import Figure
from edgekd.judge import Judged, Line, Verdict

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


MACHINE = {"cpu": "a CPU", "onnxruntime": "1.24.1", "python": "3.11.9", "numpy": "2.1.0", "inputs": "random"}


def hits(one: Sequence[int], other: Sequence[int]) -> list[float]:
    """1 where two lists of classes are equal, else 0."""
    return [float(a == b) for a, b in zip(one, other, strict=False)]


class Make:
    """Samples as a worker would have measured them, from the figures they should have."""

    machine = MACHINE

    @staticmethod
    def alone(p50_s: float = 1e-3, p95_s: float | None = None, calls: int = 100, load_s: float = 0.01) -> Record:
        """A process of the model alone; nine in ten calls take `p50_s`, the others `p95_s`."""
        slow = calls // 10
        times = (p50_s,) * (calls - slow) + (p95_s or p50_s,) * slow
        return Record(mode="latency", load_s=load_s, fingerprint=dict(MACHINE), memory={}, latency_s=times)

    @staticmethod
    def pair(ratio: float = 1.0, p95: float | None = None, load: float = 1.0, calls: int = 100) -> Record:
        """A process in which a model and its baseline took turns, with these ratios between them."""
        slow = calls // 10
        p95 = ratio if p95 is None else p95
        other = {"load_s": 0.5, "first_call_s": 0.01, "latency_s": [1e-3] * calls, "fingerprint": dict(MACHINE)}
        return Record(
            mode="pair",
            load_s=0.5 * load,
            first_call_s=0.01,
            fingerprint=dict(MACHINE),
            memory={},
            latency_s=(1e-3 * ratio,) * (calls - slow) + (1e-3 * p95,) * slow,
            block_calls=calls // 10,
            baseline=other,
        )

    @staticmethod
    def answers(
        classes: Sequence[int], labels: Sequence[int], data: str = "d" * 64, teacher: Sequence[int] = ()
    ) -> Answers:
        """How well a classifier answered: its classes, and those that are right."""
        each, other = hits(classes, labels), hits(teacher, labels)
        more: dict[str, Any] = (
            {"teacher_score": mean(other), "agreement": mean(hits(classes, teacher))} if teacher else {}
        )
        about: Any = {"data": data, "about": "set.npz", "paired": "mcnemar", "answers": tuple(classes)}
        return Answers(score=mean(each), each=tuple(each), **about, **more)

    @staticmethod
    def sample(name: str = "new.onnx", **values: Any) -> Sample:
        """A sample of 100 kB; the first letter of the name stands for its content."""
        plain: dict[str, Any] = {
            "sha256": name[0] * 64, "size_bytes": 100_000, "target": "cpu-x86", "provider": "CPUExecutionProvider",
            "at": "2026-11-02T14:05:09+00:00", "edgekd": "0.1.0", "signature": "uint8 [N,3]", "fingerprint": MACHINE,
        }  # fmt: skip
        return Sample(name=name, **plain | values)


@pytest.fixture
def make() -> Make:
    """What makes samples by hand."""
    return Make()
