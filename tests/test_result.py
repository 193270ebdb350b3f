"""`result.json` and `bench.json`: what is written is read back, and older files stay readable."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgekd.card import Budget
from edgekd.errors import InputError
from edgekd.figures import FIGURES, Figure, ModelFigures, Placement
from edgekd.judge import budget_figures, judge
from edgekd.report.run.write import write_reports
from edgekd.result import Result, model_json, read_bench, read_models, read_verdict, write_bench, write_result
from edgekd.run import Run
from edgekd.target import load_target

TEACHER = ModelFigures(
    name="teacher",
    file="teacher-fp32.onnx",
    sha256="ab" * 32,
    size_bytes=374_500,
    precision="fp32",
    scores={"accuracy": Figure(0.9889, "measured")},
)
STUDENT = ModelFigures(
    name="student int8",
    file="student-int8.onnx",
    sha256="cd" * 32,
    size_bytes=30_100,
    precision="int8",
    params=12_345,
    macs=678_901,
    scores={
        "accuracy": Figure(0.98, "proxy", why="another CPU"),
        "top5": Figure(0.999, "proxy", why="another CPU"),
        "macro_f1": Figure(0.97, "proxy"),
        "ece": Figure(0.03, "measured"),
    },
    agreement=Figure(0.99, "measured"),
    torch_agreement=Figure(0.995, "measured"),
    max_logit_diff=Figure(0.25, "measured"),
    latency_p50_ms=Figure(0.5, "measured", 0.4, 0.6),
    latency_p95_ms=Figure(0.7, "measured", 0.4, 0.9),
    latency_p99_ms=Figure(why="96 calls are too few for p99, which needs 459"),
    throughput_per_s=Figure(2_000.0, "measured", 1_600.0, 2_500.0),
    load_ms=Figure(4.0, "measured", 3.0, 5.0),
    first_call_ms=Figure(1.0, "measured", 0.5, 2.0),
    instructions_m=Figure(0.5, "emulated", 0.4, 0.6),
    first_token_ms=Figure(0.2, "measured", 0.1, 0.3),
    tokens_per_s=Figure(9_000.0, "measured", 8_000.0, 9_500.0),
    peak_memory_mb=Figure(50.0, "measured"),
    energy_mj=Figure(1.5, "measured", 1.0, 2.0, "of the whole package, other programs included"),
    batches={"batch 8": Figure(3_000.0, "measured", 2_900.0, 3_100.0, "the model's batch is fixed to 1")},
    placement=Placement(
        nodes={"CPUExecutionProvider": 12},
        time_share={"CPUExecutionProvider": 1.0},
        fell_back={"Pad": 1},
        fused=9,
        unfused=2,
        blockers={"Pad": 1, "Slice": 1},
        costliest=({"node": "c", "op_type": "QLinearConv", "provider": "CPU", "us": 3.0, "share": 0.5},),
    ),
    details={"recall": [1.0, None, 0.5]},
    notes=("loaded machine: so it is",),
    fingerprint={"cpu": "a CPU", "affinity": [0]},
)


def result(*models: ModelFigures) -> Result:
    return Result(
        card="digits",
        target="cpu-x86",
        verdict=judge(budget_figures(models[-1]), Budget(size_kb=60)),
        chosen=models[-1].name,
        why_chosen="faster",
        models=models,
        shape={"hidden": 16},
        candidates=4,
        test_examples=359,
        test_reads=1,
        parity={"examples": 256, "max_abs": 1e-5, "relative": 1e-6, "same": 1.0, "same_words": "same class"},
    )


def test_a_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    write_result(result(TEACHER, STUDENT), tmp_path / "result.json")
    content, models = read_models(tmp_path / "result.json")
    assert content["schema_version"] == 3
    assert (content["verdict"], content["chosen"]) == ("pass", "student int8")
    assert models == [TEACHER, STUDENT]
    assert models[1].placement is not None
    assert models[1].placement.fused_share == pytest.approx(9 / 11)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "pass"},
        {"budget": []},
        {"budget": None},
        {"budget": [{"key": "size_kb"}]},
        {"budget": [{"key": "size_kb", "limit": 1, "value": 1, "provenance": "exact", "outcome": "?", "reason": ""}]},
        {"budget": [{"key": "size", "limit": 1, "value": 1, "provenance": "exact", "outcome": "pass", "reason": ""}]},
    ],
)
def test_a_verdict_that_is_not_that_of_its_lines_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "result.json"
    written = result(TEACHER, dataclasses.replace(STUDENT, size_bytes=61_000))
    write_result(written, path)
    content, _ = read_models(path)
    assert read_verdict(content, path).outcome == content["verdict"] == "fail"
    with pytest.raises(InputError, match=r"result\.json: its .*was it edited\?"):
        read_verdict(content | change, path)


def test_a_latency_that_an_earlier_edgekd_left_open_in_a_pass_is_inconclusive(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(result(TEACHER, STUDENT), path)
    content, _ = read_models(path)
    line = {"key": "latency_p50_ms", "limit": 1.0, "value": None, "provenance": "unknown", "reason": "another machine"}
    content["budget"].append(line | {"outcome": "not judged"})
    assert read_verdict(content, path).outcome == "inconclusive"


def test_every_figure_is_written(tmp_path: Path) -> None:
    names = {field.name for field in dataclasses.fields(ModelFigures) if field.type in (Figure, "Figure")}
    assert set(FIGURES) == names
    assert all(getattr(STUDENT, name) != Figure() for name in FIGURES)  # the test above tries them all
    entry = model_json(STUDENT)
    assert entry["latency_p50_ms"] == 0.5
    assert entry["intervals"]["latency_p50_ms"] == [0.4, 0.6]
    accuracy, top5, *_ = entry["scores"]
    assert (accuracy["name"], accuracy["words"], accuracy["better"]) == ("accuracy", "top-1 accuracy", "higher")
    assert (accuracy["value"], accuracy["provenance"], accuracy["why"]) == (0.98, "proxy", "another CPU")
    assert top5["value"] == 0.999
    assert "value" not in model_json(TEACHER)["scores"][1]  # what is not known has no value


OLD: dict[str, Any] = {
    "schema_version": 1,
    "edgekd": "0.1.0",
    "card": "digits",
    "chosen": "teacher",
    "models": [
        {
            "name": "teacher",
            "file": "teacher-fp32.onnx",
            "sha256": "ab",
            "precision": "fp32",
            "size_bytes": 374_500,
            "params": 93_000,
            "macs": None,
            "accuracy": 0.9889,
            "macro_f1": 0.9888,
            "agreement": 1.0,
            "latency_p50_ms": 0.1,
            "latency_p95_ms": None,
            "latency_p99_ms": None,
            "throughput_per_s": 10_000.0,
            "load_ms": 4.0,
            "peak_memory_mb": 60.0,
            "provenance": {
                "size_bytes": "exact", "accuracy": "measured", "macro_f1": "measured", "agreement": "measured",
                "latency_p50_ms": "measured", "latency_p95_ms": "unknown", "latency_p99_ms": "unknown",
                "throughput_per_s": "measured", "load_ms": "measured", "peak_memory_mb": "proxy",
            },
            "intervals": {"latency_p50_ms": [0.09, 0.12]},
            "notes": {"latency_p95_ms": "50 calls are too few for p95"},
            "fingerprint": {"cpu": "a CPU"},
        }
    ],
}  # fmt: skip


def test_a_result_of_schema_1_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(OLD))
    content, (teacher,) = read_models(tmp_path / "result.json")
    assert content["chosen"] == "teacher"
    assert teacher.latency_p50_ms == Figure(0.1, "measured", 0.09, 0.12)
    assert teacher.latency_p95_ms == Figure(why="50 calls are too few for p95")
    assert (teacher.params, teacher.macs, teacher.peak_memory_mb.provenance) == (93_000, None, "proxy")
    # What it did not have is unknown, not zero.
    assert list(teacher.scores) == ["accuracy", "macro_f1"]
    assert teacher.first_call_ms == teacher.energy_mj == Figure()
    assert (teacher.batches, teacher.placement, teacher.details, teacher.notes) == ({}, None, {}, ())


def test_a_bench_is_read_back_as_it_was(tmp_path: Path) -> None:
    target = load_target("cpu-x86")
    path = tmp_path / "bench" / "cpu-x86" / "bench.json"
    write_bench(path, target, [TEACHER, STUDENT], split="val", examples=7, command="edgekd bench")
    content, models = read_bench(path)
    assert models == [TEACHER, STUDENT]
    assert (content["target"], content["provider"]) == ("cpu-x86", "CPUExecutionProvider")
    assert (content["title"], content["split"], content["examples"]) == (target.title, "val", 7)


@pytest.mark.parametrize("version", [None, 0, 4, "1", [1]])
def test_another_schema_is_told(tmp_path: Path, version: object) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(OLD | {"schema_version": version}))
    with pytest.raises(InputError) as caught:
        read_models(path)
    assert str(caught.value) == f"{path}: schema_version is {version!r}; this edgekd reads 1, 2 and 3"
    with pytest.raises(InputError) as caught:
        read_bench(path)
    assert str(caught.value) == f"{path}: schema_version is {version!r}; this edgekd reads 1 and 2"


@pytest.mark.parametrize("text", ["[]", "5", '"schema_version"', "null"])
def test_json_that_is_no_result_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x.json: schema_version is None; this edgekd reads 1 and 2"):
        read_bench(tmp_path / "x.json")


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(OLD)[:100])
    with pytest.raises(InputError, match=r"x.json: not valid JSON: "):
        read_models(tmp_path / "x.json")


@pytest.mark.parametrize("exported", [[], ["student-int8.onnx"]])
def test_a_run_without_the_file_to_ship_is_not_finished(tmp_path: Path, exported: list[str]) -> None:
    run = Run(tmp_path)
    for name in exported:  # an encoder without its decoder
        graph = onnx.helper.make_graph([], "g", [], [])
        model = onnx.helper.make_model(graph)
        onnx.helper.set_model_props(model, {"edgekd": "1", "generation": "{}"})
        run.exported.mkdir()
        onnx.save(model, run.exported / name)
    with pytest.raises((InputError, FileNotFoundError), match=r"student-int8(\.decoder)?\.onnx"):
        write_reports(result(TEACHER, STUDENT), [], run)
    assert not run.result.exists() and not run.model.exists()
