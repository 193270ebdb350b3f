"""Files to figures: what each is made of, how it was obtained, and that nothing is measured twice."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.measure import References, Subject, evaluate, logits_of, measure_each, measure_speed
from edgekd.bench.records import Effort, Plan, Record
from edgekd.devices.device import Site
from edgekd.devices.local import Local
from edgekd.errors import ModelError
from edgekd.figures import Figure, ModelFigures, Placement
from edgekd.files import file_sha256
from edgekd.machine import Machine
from edgekd.target import Session, load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION as CLASSES

Place = Callable[..., Site]

TARGET = load_target("cpu-x86")
EFFORT = Effort(processes=2, warmup_s=0.0, min_calls=10, max_calls=10, max_s=0.0, placement=False)


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
        self.failing = ""
        self.energy: float | None = None
        self.inner_calls = 1
        self.fixed_batch: int | None = None

    def __call__(self, plan: Plan, model: Path, *_: Any) -> Record:
        number = sum(1 for mode, name in self.started if (mode, name) == (plan.mode, model.name))
        self.started.append((plan.mode, model.name))
        if f"{plan.mode} {model.name}" == self.failing:
            raise ModelError(f"{model.name}: the worker crashed")
        fingerprint = {"cpu": "fake", "nodes_by_provider": {"CPUExecutionProvider": 2}, "inputs": "data"}
        memory: dict[str, int | None] = {"import_bytes": 1, "load_bytes": 2, "run_bytes": 50_000_000}
        calls = tuple((4e-3 if number == 0 else 2e-3) + 1e-6 * n for n in range(125))
        return Record(
            mode=plan.mode,
            load_s=0.1 * (number + 1),
            fingerprint=fingerprint,
            memory=memory,
            first_call_s=1.0,
            latency_s=calls,
            batch_size=self.fixed_batch or plan.batch_size,
            warm=plan.warmup_s > 0 or plan.mode == "latency",
            energy_j=self.energy,
            inner_calls=self.inner_calls,
            calls=100 * plan.sessions,
            elapsed_s=0.5 * 2 ** (number % 3),
            sessions=plan.sessions,
            kernels=({"provider": "CPUExecutionProvider", "op_type": "Conv", "node": "c", "us": [3, 1, 2]},),
        )


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers()


ANOTHER = Machine("riscv64", "a board", frozenset(), "")
"""A machine that is not the target."""
WHY = "this machine is riscv64, the target x86_64"
OTHER = Site(TARGET, Local())
"""What is evaluated does not depend on where."""


@pytest.fixture
def site(place: Place, workers: FakeWorkers) -> Site:
    """The target on a device that it describes, with those workers."""
    return place(TARGET, answer=workers)


def no_worker(*_: Any) -> Record:
    raise AssertionError("a worker was started")


def test_figures_of_a_measured_file(subjects: list[Subject], workers: FakeWorkers, site: Site) -> None:
    figures = measure_speed(subjects, site, None, None, EFFORT)
    assert [(f.name, f.file) for f in figures] == [("teacher", "teacher.onnx"), ("student int8", "student-int8.onnx")]
    first = figures[0]
    assert first.size_bytes == subjects[0].file.stat().st_size
    assert first.size_kb == Figure(subjects[0].file.stat().st_size / 1_000, "exact")
    assert first.sha256 == hashlib.sha256(subjects[0].file.read_bytes()).hexdigest()
    assert (first.params, first.macs, first.precision) == (12, 34, "fp32")
    calls = np.concatenate([4 + 1e-3 * np.arange(125), 2 + 1e-3 * np.arange(125)])
    p50 = first.latency_p50_ms
    assert p50.value == pytest.approx(np.median(calls))
    # Two processes whose medians differ by a factor of two: t with one degree of freedom is 12.7, so the interval
    # spans a factor 1.97 ** 6.35 on either side.
    medians = np.log([4.062, 2.062])
    half = 12.7062 * np.std(medians, ddof=1) / np.sqrt(2)
    assert [p50.low, p50.high] == pytest.approx(list(np.exp(medians.mean() + np.array([-half, half]))), rel=1e-5)
    assert p50.provenance == "measured"
    assert first.latency_p95_ms.value == pytest.approx(np.percentile(calls, 95))
    assert first.latency_p99_ms == Figure(why="250 calls are too few for p99, which needs 459")
    assert first.throughput_per_s.value == pytest.approx(1_000 / np.median(calls))
    assert p50.low is not None and p50.high is not None
    assert first.throughput_per_s.low == pytest.approx(1_000 / p50.high)
    assert first.throughput_per_s.high == pytest.approx(1_000 / p50.low)
    assert first.load_ms.value == pytest.approx(100 * np.sqrt(2))  # the geometric mean of 100 and 200
    assert first.first_call_ms.value == pytest.approx(1_000)
    assert first.energy_mj == Figure(why="no counter here")
    assert first.peak_memory_mb == Figure(50.0, "measured")
    assert (first.batches, first.placement, first.notes) == ({}, None, ())
    assert first.fingerprint["cpu"] == "fake"
    assert first.score.value is None
    # Latency of both in turns, then memory of each in a process of its own.
    assert [mode for mode, _ in workers.started] == ["latency"] * 4 + ["memory"] * 2


def test_elsewhere_time_is_unknown_and_memory_a_proxy(
    subjects: list[Subject], workers: FakeWorkers, place: Place
) -> None:
    site = place(dataclasses.replace(TARGET, session=Session(batch_sizes=(8,))), ANOTHER, answer=workers)
    (figures, _) = measure_speed(subjects, site, None, None, EFFORT)
    timed = ["latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput_per_s", "load_ms", "first_call_ms"]
    for name in [*timed, "energy_mj"]:
        figure = getattr(figures, name)
        assert (figure.value, figure.provenance) == (None, "unknown"), name
        assert figure.why.startswith(WHY), name
    assert figures.peak_memory_mb == Figure(50.0, "proxy", why=WHY)
    assert figures.batches == {}
    assert figures.notes == ()  # nothing was timed, so nothing about warm-up or inputs
    assert [mode for mode, _ in workers.started] == ["memory"] * 2


def test_an_error_of_one_keeps_the_other(subjects: list[Subject], workers: FakeWorkers, site: Site) -> None:
    for mode in ("latency", "memory"):
        workers.failing = f"{mode} teacher.onnx"
        first, second = measure_each(subjects, site, None, None, EFFORT)
        assert isinstance(first, ModelError)
        assert str(first) == "teacher.onnx: the worker crashed"
        assert isinstance(second, ModelFigures)
        assert second.latency_p50_ms.value is not None
        with pytest.raises(ModelError, match=r"^teacher.onnx: the worker crashed$"):
            measure_speed(subjects, site, None, None, EFFORT)


def test_energy_is_that_of_one_call(subjects: list[Subject], workers: FakeWorkers, site: Site) -> None:
    workers.energy = 0.25  # joules for 125 calls
    (figures,) = measure_speed(subjects[:1], site, None, None, EFFORT)
    assert figures.energy_mj.value == pytest.approx(2.0)
    assert figures.energy_mj.provenance == "measured"
    assert figures.energy_mj.why == "of the whole package, other programs included"
    workers.inner_calls = 4  # behind each of the 125 timings
    (figures,) = measure_speed(subjects[:1], site, None, None, EFFORT)
    assert figures.energy_mj.value == pytest.approx(0.5)


def test_batches_and_sessions_are_in_inputs_per_second(
    subjects: list[Subject], workers: FakeWorkers, site: Site
) -> None:
    site = dataclasses.replace(site, target=dataclasses.replace(TARGET, session=Session(batch_sizes=(4, 8))))
    effort = dataclasses.replace(EFFORT, sessions=3, placement=True)
    (figures,) = measure_speed(subjects[:1], site, None, None, effort)
    assert set(figures.batches) == {"batch 4", "batch 8", "1 session", "3 sessions"}
    # A hundred calls a session in 0.5, 1 and 2 s: on the (geometric) mean in one second.
    values = {name: figure.value for name, figure in figures.batches.items()}
    assert values == {
        "batch 4": pytest.approx(400),
        "batch 8": pytest.approx(800),
        "1 session": pytest.approx(100),
        "3 sessions": pytest.approx(300),
    }
    one = figures.batches["batch 4"]
    assert one.low is not None and one.high is not None
    assert one.low < 400 < one.high
    assert (one.provenance, one.why) == ("measured", "")
    assert [mode for mode, _ in workers.started].count("throughput") == 12

    workers.fixed_batch = 1
    (figures,) = measure_speed(subjects[:1], site, None, None, dataclasses.replace(EFFORT, placement=True))
    assert figures.batches["batch 4"].why == "the model's batch is fixed to 1"


def test_placement_is_part_of_the_figures(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, place: Place
) -> None:
    site = place(TARGET, ANOTHER, answer=workers)  # where it runs is known there as well
    effort = dataclasses.replace(EFFORT, placement=True, costliest=3)
    for _ in range(2):  # the second time from what was kept
        (figures,) = measure_speed(subjects[:1], site, None, tmp_path / "records", effort)
        assert figures.placement == Placement(
            nodes={"CPUExecutionProvider": 1},
            time_share={},  # this machine's times say nothing of the target's
            provenance="proxy",
        )
        assert [mode for mode, _ in workers.started] == ["memory", "profile"]


def test_what_was_measured_is_kept(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, site: Site, place: Place
) -> None:
    records = tmp_path / "records"
    site = dataclasses.replace(site, target=dataclasses.replace(TARGET, session=Session(batch_sizes=(8,))))
    effort = dataclasses.replace(EFFORT, placement=True)
    first = measure_speed(subjects, site, None, records, effort)
    assert len(workers.started) == 2 * (2 + 1 + 1 + 3)
    assert sorted(path.name for path in records.iterdir()) == [
        f"{model}@cpu-x86.{kind}.json"
        for model in ("student-int8", "teacher")
        for kind in ("latency", "memory", "placement", "throughput-batch-8")
    ]
    again = place(site.target, answer=no_worker)
    assert measure_speed(subjects, again, None, records, effort) == first


def test_a_changed_file_is_measured_again(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, site: Site
) -> None:
    measure_speed(subjects, site, None, tmp_path / "records", EFFORT)
    workers.started.clear()
    with subjects[1].file.open("ab") as file:
        file.write(b"\0")
    measure_speed(subjects, site, None, tmp_path / "records", EFFORT)
    assert workers.started == [("latency", "student-int8.onnx")] * 2 + [("memory", "student-int8.onnx")]


def test_records_of_another_schema_are_made_again(
    subjects: list[Subject], workers: FakeWorkers, tmp_path: Path, site: Site
) -> None:
    measure_speed(subjects[:1], site, None, tmp_path / "records", EFFORT)
    for path in (tmp_path / "records").iterdir():
        content = json.loads(path.read_text())
        assert content["schema_version"] == 2
        path.write_text(json.dumps(content | {"schema_version": 1}))
    workers.started.clear()
    measure_speed(subjects[:1], site, None, tmp_path / "records", EFFORT)
    assert [mode for mode, _ in workers.started] == ["latency", "latency", "memory"]


def test_one_file_for_real(subjects: list[Subject], tmp_path: Path, place: Place) -> None:
    site = place(TARGET)
    rows = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    np.save(tmp_path / "rows.npy", rows)
    (figures,) = measure_speed(
        subjects[:1], site, tmp_path / "rows.npy", None, dataclasses.replace(EFFORT, processes=1, placement=True)
    )
    assert figures.placement is not None
    assert sum(figures.placement.nodes.values()) == 2
    assert figures.latency_p50_ms.value is not None
    assert 0 < figures.latency_p50_ms.value < 1_000
    assert figures.throughput_per_s.value == pytest.approx(1_000 / figures.latency_p50_ms.value)
    logits = logits_of(subjects[0], site, tmp_path / "rows.npy", tmp_path / "logits", CLASSES)
    assert np.array_equal(logits, rows.reshape(10, 4))
    site = place(TARGET, answer=no_worker)
    assert np.array_equal(logits_of(subjects[0], site, tmp_path / "rows.npy", tmp_path / "logits", CLASSES), logits)


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(("machine", "provenance", "why"), [(None, "measured", ""), (ANOTHER, "proxy", WHY)])
def test_scores_and_their_provenance(
    subjects: list[Subject],
    workers: FakeWorkers,
    place: Place,
    machine: Machine | None,
    provenance: str,
    why: str,
) -> None:
    site = place(TARGET, machine, answer=workers)
    figures = measure_speed(subjects, site, None, None, EFFORT)
    labels = np.array([0, 1, 2, 3])
    teacher, student = (np.eye(4, dtype=np.float32)[given] for given in ([0, 1, 2, 0], [0, 1, 1, 0]))
    scored = evaluate(figures, [teacher, student], References(task=CLASSES, targets=labels, teacher=teacher), site)
    assert [model.score.value for model in scored] == [0.75, 0.5]
    assert [model.agreement.value for model in scored] == [1.0, 0.75]
    # F1 of the student: 2/3 (one of two predicted 0 is right), 2/3, 0, 0.
    assert scored[1].scores["macro_f1"].value == pytest.approx((2 / 3 + 2 / 3) / 4)
    for model in scored:
        for figure in (model.score, model.agreement, model.scores["macro_f1"]):
            assert (figure.provenance, figure.why) == (provenance, why)
        assert "top5" not in model.scores  # of four classes
        assert model.torch_agreement == model.max_logit_diff == Figure()  # there was nothing to compare with
    assert scored[0].details["recall"] == [1.0, 1.0, 1.0, 0.0]
    assert scored[1].details["recall"] == [1.0, 1.0, 0.0, 0.0]
    assert scored[1].latency_p50_ms == figures[1].latency_p50_ms


def a_model(name: str) -> ModelFigures:
    return ModelFigures(name, f"{name}.onnx", "", 1, "fp32")


def test_top5_is_for_more_than_five_classes() -> None:
    rng = np.random.default_rng(0)
    for classes in (5, 6):
        logits = rng.standard_normal((50, classes)).astype(np.float32)
        labels = rng.integers(0, classes, 50)
        (scored,) = evaluate([a_model("student")], [logits], References(task=CLASSES, targets=labels), OTHER)
        ranks = [int((row > row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
        assert scored.scores.get("top5", Figure()).value == (np.mean([r < 5 for r in ranks]) if classes == 6 else None)
        assert scored.scores["ece"].value is not None and 0 < scored.scores["ece"].value < 1


def test_the_student_in_torch_is_for_what_was_exported_from_it() -> None:
    rng = np.random.default_rng(0)
    torch = rng.standard_normal((50, 4)).astype(np.float32)
    int8 = torch + (0.25 * (rng.random((50, 4)) > 0.5)).astype(np.float32)
    answers = References(task=CLASSES, targets=np.zeros(50, np.int64), teacher=-torch, torch=torch)
    teacher, student = evaluate([a_model("teacher"), a_model("student int8")], [-torch, int8], answers, OTHER)
    assert (teacher.torch_agreement, teacher.max_logit_diff) == (Figure(), Figure())
    assert teacher.agreement.value == 1
    assert student.max_logit_diff.value == pytest.approx(0.25, rel=1e-6)
    assert student.torch_agreement.value == np.mean(int8.argmax(1) == torch.argmax(1))
    assert student.agreement.value == np.mean(int8.argmax(1) == torch.argmin(1))


def test_answers_of_other_classes_are_not_compared() -> None:
    other = np.zeros((3, 7), np.float32)
    answers = References(task=CLASSES, targets=np.array([0, 1, 1]), teacher=other, torch=other)
    (scored,) = evaluate([a_model("student")], [np.eye(3, 4, dtype=np.float32)], answers, OTHER)
    assert (scored.agreement, scored.torch_agreement, scored.max_logit_diff) == (Figure(), Figure(), Figure())
    assert scored.score.value == pytest.approx(2 / 3)
    assert scored.details["recall"] == [1.0, 0.5, None, None]


def test_weights_in_other_files_count(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "shift"], ["logits"])],
        "external",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 400])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 400])],
        [numpy_helper.from_array(np.ones(400, np.float32), "shift")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    subject, weights = Subject(name="m", file=path, precision="fp32"), tmp_path / "weights.bin"
    (figures,) = measure_each([subject], OTHER, None, None, EFFORT)
    assert isinstance(figures, ModelFigures)
    assert figures.size_bytes == path.stat().st_size + weights.stat().st_size
    weights.write_bytes(b"\0" * 1_600)
    (changed,) = measure_each([subject], OTHER, None, None, EFFORT)
    assert isinstance(changed, ModelFigures) and changed.sha256 != figures.sha256
    (refused,) = measure_each([subject], Site(load_target("wasm"), Local()), None, None, EFFORT)
    assert str(refused) == f"{path}: keeps weights in weights.bin, and onnxruntime-web reads one file; save it as one"
    weights.unlink()
    (problem,) = measure_each([subject], OTHER, None, None, EFFORT)
    assert str(problem).startswith(f"{path}: keeps weights in 'weights.bin', which cannot be read (No such file")


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Div", ["image", "image"], ["logits"])],
        "nan",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
    )
    path = tmp_path / "nan.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.save(tmp_path / "rows.npy", np.array([[1, 1], [0, 1], [2, 2]], np.float32))
    with pytest.raises(ModelError, match=r"gives NaN or infinite outputs for 1 of 3 inputs$"):
        logits_of(Subject(name="m", file=path, precision="fp32"), OTHER, tmp_path / "rows.npy", tmp_path, CLASSES)
