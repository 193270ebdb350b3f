"""Files to figures: what each is made of, how it was obtained, and that nothing is measured twice."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.bench import measure as module
from edgekd.bench import runner
from edgekd.bench.measure import Effort, Subject, evaluate, file_sha256, logits_of, measure_speed
from edgekd.bench.records import Plan, Record
from edgekd.figures import Figure
from edgekd.target import Target, load_target

TARGET = load_target("cpu-x86")
EFFORT = Effort(processes=2, warmup_s=0.0, min_calls=10, max_calls=10, max_s=0.0)


@pytest.fixture
def subjects(tmp_path: Path) -> list[Subject]:
    given = []
    for name in ("teacher", "student int8"):
        graph = helper.make_graph(
            [
                helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
                helper.make_node("Flatten", ["float"], [name]),
            ],
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 1])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])],
        )
        path = tmp_path / f"{name.replace(' ', '-')}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        given.append(Subject(name=name, file=path, precision="fp32", params=12, macs=34))
    return given


class FakeWorkers:
    """Workers that answer at once: the first process is slower, and 250 calls are enough for p95, not for p99."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []

    def __call__(self, plan: Plan, model: Path, **_: Any) -> Record:
        number = sum(1 for mode, name in self.started if (mode, name) == (plan.mode, model.name))
        self.started.append((plan.mode, model.name))
        fingerprint = {"cpu": "fake", "nodes_by_provider": {"CPUExecutionProvider": 2}}
        memory: dict[str, int | None] = {"import_bytes": 1, "load_bytes": 2, "run_bytes": 50_000_000}
        calls = tuple((4e-3 if number == 0 else 2e-3) + 1e-6 * n for n in range(125))
        return Record(
            mode=plan.mode,
            load_s=0.1 * (number + 1),
            fingerprint=fingerprint,
            memory=memory,
            first_call_s=1.0,
            latency_s=calls,
            batch_size=plan.batch_size,
        )


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    fake = FakeWorkers()
    monkeypatch.setattr(runner, "run_worker", fake)
    return fake


def here(monkeypatch: pytest.MonkeyPatch, differences: Sequence[str] = ()) -> None:
    monkeypatch.setattr(Target, "differences", lambda self: list(differences))


def test_figures_of_a_measured_file(
    subjects: list[Subject], workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    figures = measure_speed(subjects, TARGET, None, None, EFFORT)
    assert [(f.name, f.file) for f in figures] == [("teacher", "teacher.onnx"), ("student int8", "student-int8.onnx")]
    first = figures[0]
    assert first.size_bytes == subjects[0].file.stat().st_size
    assert first.size_kb == Figure(subjects[0].file.stat().st_size / 1_000, "exact")
    assert first.sha256 == hashlib.sha256(subjects[0].file.read_bytes()).hexdigest()
    assert (first.params, first.macs, first.precision) == (12, 34, "fp32")
    calls = np.concatenate([4 + 1e-3 * np.arange(125), 2 + 1e-3 * np.arange(125)])
    p50 = first.latency_p50_ms
    assert p50.value == pytest.approx(np.median(calls))
    assert [p50.low, p50.high] == pytest.approx([2.062, 4.062])
    assert p50.provenance == "measured"
    assert first.latency_p95_ms.value == pytest.approx(np.percentile(calls, 95))
    assert first.latency_p99_ms == Figure(why="250 calls are too few for p99")
    assert first.throughput_per_s.value == pytest.approx(1_000 / np.median(calls))
    assert first.load_ms.value == pytest.approx(150)
    assert [first.load_ms.low, first.load_ms.high] == pytest.approx([100, 200])
    assert first.peak_memory_mb == Figure(50.0, "measured")
    assert first.fingerprint["cpu"] == "fake"
    assert first.accuracy.value is None
    # Latency of both in turns, then memory of each in a process of its own.
    assert [mode for mode, _ in workers.started] == ["latency"] * 4 + ["memory"] * 2


def test_elsewhere_time_is_unknown_and_memory_a_proxy(
    subjects: list[Subject], workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, ["another CPU", "no board"])
    (figures, _) = measure_speed(subjects, TARGET, None, None, EFFORT)
    for name in ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput_per_s", "load_ms"):
        figure = getattr(figures, name)
        assert (figure.value, figure.provenance) == (None, "unknown"), name
        assert figure.why.startswith("another CPU; no board"), name
    assert figures.peak_memory_mb == Figure(50.0, "proxy", why="another CPU; no board")
    assert [mode for mode, _ in workers.started] == ["memory"] * 2


def test_what_was_measured_is_kept(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    records = tmp_path / "records"
    first = measure_speed(subjects, TARGET, None, records, EFFORT)
    assert len(workers.started) == 6
    assert sorted(path.name for path in records.iterdir()) == [
        "student-int8@cpu-x86.latency.json",
        "student-int8@cpu-x86.memory.json",
        "teacher@cpu-x86.latency.json",
        "teacher@cpu-x86.memory.json",
    ]
    monkeypatch.setattr(runner, "run_worker", lambda *_, **__: pytest.fail("a worker was started"))
    monkeypatch.setattr(module, "measure_memory", lambda *_: pytest.fail("a worker was started"))
    assert measure_speed(subjects, TARGET, None, records, EFFORT) == first


def test_a_changed_file_is_measured_again(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    measure_speed(subjects, TARGET, None, tmp_path / "records", EFFORT)
    workers.started.clear()
    with subjects[1].file.open("ab") as file:
        file.write(b"\0")
    measure_speed(subjects, TARGET, None, tmp_path / "records", EFFORT)
    assert workers.started == [("latency", "student-int8.onnx")] * 2 + [("memory", "student-int8.onnx")]


def test_records_of_another_schema_are_made_again(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch)
    measure_speed(subjects[:1], TARGET, None, tmp_path / "records", EFFORT)
    for path in (tmp_path / "records").iterdir():
        content = json.loads(path.read_text())
        assert content["schema_version"] == 1
        path.write_text(json.dumps(content | {"schema_version": 0}))
    workers.started.clear()
    measure_speed(subjects[:1], TARGET, None, tmp_path / "records", EFFORT)
    assert [mode for mode, _ in workers.started] == ["latency", "latency", "memory"]


def test_one_file_for_real(subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    rows = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    np.save(tmp_path / "rows.npy", rows)
    (figures,) = measure_speed(
        subjects[:1], TARGET, tmp_path / "rows.npy", None, dataclasses.replace(EFFORT, processes=1)
    )
    assert figures.latency_p50_ms.value is not None
    assert 0 < figures.latency_p50_ms.value < 1_000
    assert figures.throughput_per_s.value == pytest.approx(1_000 / figures.latency_p50_ms.value)
    logits = logits_of(subjects[0], TARGET, tmp_path / "rows.npy", tmp_path / "logits")
    assert np.array_equal(logits, rows.reshape(10, 4))
    monkeypatch.setattr(runner, "run_worker", lambda *_, **__: pytest.fail("a worker was started"))
    assert np.array_equal(logits_of(subjects[0], TARGET, tmp_path / "rows.npy", tmp_path / "logits"), logits)


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(("differences", "provenance"), [([], "measured"), (["another CPU"], "proxy")])
def test_scores_and_their_provenance(
    subjects: list[Subject],
    workers: FakeWorkers,
    monkeypatch: pytest.MonkeyPatch,
    differences: list[str],
    provenance: str,
) -> None:
    here(monkeypatch, differences)
    figures = measure_speed(subjects, TARGET, None, None, EFFORT)
    labels = np.array([0, 1, 2, 3])
    teacher, student = (np.eye(4, dtype=np.float32)[given] for given in ([0, 1, 2, 0], [0, 1, 1, 0]))
    scored = evaluate(figures, [teacher, student], labels, teacher, TARGET)
    assert [model.accuracy.value for model in scored] == [0.75, 0.5]
    assert [model.agreement.value for model in scored] == [1.0, 0.75]
    # F1 of the student: 2/3 (one of two predicted 0 is right), 2/3, 0, 0.
    assert scored[1].macro_f1.value == pytest.approx((2 / 3 + 2 / 3) / 4)
    for model in scored:
        for figure in (model.accuracy, model.agreement, model.macro_f1):
            assert (figure.provenance, figure.why) == (provenance, "; ".join(differences))
    assert scored[1].latency_p50_ms == figures[1].latency_p50_ms
