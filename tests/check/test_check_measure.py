"""What `check` measures, and by which budget it is judged."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.bench.measure import Subject, file_sha256
from edgekd.bench.paths import Inputs, Measured
from edgekd.card import Budget
from edgekd.check import measure
from edgekd.check.measure import measure_for_check
from edgekd.errors import ConfigError, InputError, ModelError
from edgekd.figures import Figure, ModelFigures
from edgekd.result import model_json
from edgekd.run import Run
from edgekd.target import Target, load_target

TARGET = load_target("cpu-x86")
NO_BUDGET = Budget()


def as_they_are(figures: Sequence[ModelFigures], subjects: Sequence[Subject], target: Target) -> list[ModelFigures]:
    return list(figures)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A finished run, made up, whose files are all the same one."""
    folder = tmp_path / "run"
    (folder / "exported").mkdir(parents=True)
    figures = [ModelFigures(name, f"{name}.onnx", file_sha256(model), 1_000, "fp32") for name in ("teacher", "student")]
    for entry in figures:
        (folder / "exported" / entry.file).write_bytes(model.read_bytes())
    (folder / "model.onnx").write_bytes(model.read_bytes())
    content = {"schema_version": 2, "chosen": "student", "target": "cpu-x86", "models": list(map(model_json, figures))}
    (folder / "result.json").write_text(json.dumps(content))
    budget = {"size_kb": 60.0, "latency_p50_ms": 2.0, "min_accuracy": 0.5}
    (folder / "run.json").write_text(json.dumps({"budget": budget}))
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """In place of measuring: p50 1 ms, accuracy 90 % of the teacher, 80 % of the student."""
    asked: list[list[str]] = []

    def take(run: Run, subjects: Sequence[Subject], *_: Any) -> tuple[list[Measured], list[Any]]:
        asked.append([str(subject.file.relative_to(run.folder)) for subject in subjects])
        teacher = Figure(0.9, "measured")
        return [
            Measured(
                ModelFigures(
                    subject.name, subject.file.name, "", subject.file.stat().st_size, "fp32",
                    accuracy=Figure(accuracy, "measured"), latency_p50_ms=Figure(1.0, "measured", 0.9, 1.1),
                ),
                teacher_accuracy=teacher,
            )
            for subject, accuracy in zip(subjects, (0.9, 0.8), strict=True)
        ], []  # fmt: skip

    monkeypatch.setattr(measure, "measure_run", take)
    monkeypatch.setattr(measure, "run_inputs", lambda run, split: Inputs(Path(split), None, split))  # type: ignore[arg-type]
    return asked


def test_a_run_is_judged_by_its_budget(run: Path, measured: list[list[str]]) -> None:
    taken, verdict = measure_for_check(run, TARGET, NO_BUDGET, False, as_they_are)
    assert measured == [["exported/teacher.onnx", "model.onnx"]]
    assert taken.figures.name == "student"
    assert {line.key: line.outcome for line in verdict.lines} == {
        "latency_p50_ms": "pass",
        "size_kb": "pass",
        "min_accuracy": "pass",
    }
    _, verdict = measure_for_check(run, TARGET, Budget(min_accuracy=0.85, max_accuracy_drop=20.0), False, as_they_are)
    outcomes = {line.key: line.outcome for line in verdict.lines}
    assert (outcomes["min_accuracy"], outcomes["max_accuracy_drop"], verdict.outcome) == ("fail", "pass", "fail")


def test_its_latency_counts_on_its_own_target_alone(run: Path, measured: list[list[str]]) -> None:
    _, verdict = measure_for_check(run, load_target("wasm"), NO_BUDGET, False, as_they_are)
    assert "latency_p50_ms" not in {line.key for line in verdict.lines}
    assert "peak_memory_mb" in {line.key for line in verdict.lines}  # wasm's own ceiling
    _, verdict = measure_for_check(run, load_target("wasm"), Budget(latency_p50_ms=0.5), False, as_they_are)
    assert {line.key: line.outcome for line in verdict.lines}["latency_p50_ms"] == "fail"


def test_the_teachers_minimum_is_not_this_files(run: Path, measured: list[list[str]]) -> None:
    _, verdict = measure_for_check(run, TARGET, Budget(teacher_min_accuracy=1.0), False, as_they_are)
    assert "teacher_min_accuracy" not in {line.key for line in verdict.lines}


def test_a_file_that_is_not_the_runs_is_told(run: Path, measured: list[list[str]]) -> None:
    with (run / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"model.onnx: is not the file the run made \(its SHA-256 differs\)"):
        measure_for_check(run, TARGET, NO_BUDGET, False, as_they_are)
    (run / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model.onnx: is missing; run its `edgekd distill` with --fresh$"):
        measure_for_check(run, TARGET, NO_BUDGET, False, as_they_are)


def test_a_model_that_cannot_be_measured_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_run", lambda *_: ([], [ModelError("model.onnx: the worker crashed")]))
    monkeypatch.setattr(measure, "run_inputs", lambda *_: None)
    with pytest.raises(ModelError, match=r"^model.onnx: the worker crashed$"):
        measure_for_check(run, TARGET, NO_BUDGET, False, as_they_are)


def test_a_bare_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ModelFigures("model.onnx", "model.onnx", "", 1_000, "as it is", latency_p50_ms=Figure(1.0, "measured"))
    monkeypatch.setattr(measure, "measure_file", lambda *_: Measured(figures))
    _, verdict = measure_for_check(model, TARGET, Budget(latency_p50_ms=2.0), False, as_they_are)
    assert verdict.outcome == "pass"
    _, verdict = measure_for_check(model, TARGET, Budget(min_accuracy=0.5), False, as_they_are)
    assert verdict.outcome == "inconclusive"
    with pytest.raises(ConfigError, match=r"no budget to judge it by; give one or more --budget key=value"):
        measure_for_check(model, TARGET, NO_BUDGET, False, as_they_are)
