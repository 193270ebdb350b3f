"""fp16 is taken where a device gains by it: here one whose times are made up."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.records import Plan, Record
from edgekd.data.ready import Ready
from edgekd.devices.device import OnProgress, Site
from edgekd.errors import InputError, ModelError
from edgekd.export.variants import precision_of
from edgekd.search.quantizing import Asked, Quantized, in_range, quantize_file
from edgekd.target import Precision, Quantization, Target, load_target

CLASSES, COUNT = 4, 120


def network(path: Path) -> Path:
    """Pooling and a layer, whose answer is the brightest channel."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CLASSES, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(np.eye(CLASSES, dtype=np.float32)[:, :, None, None], "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def device(milliseconds: dict[Precision, float]) -> Callable[..., Record]:
    """Answers are this machine's, times are the given ones."""

    def answer(plan: Plan, model: Path, target: Target, timeout_s: float, told: OnProgress | None = None) -> Record:
        taken: dict[str, Any] = {"mode": plan.mode, "load_s": 0.01, "fingerprint": {}, "memory": {}}
        if plan.mode == "predict":
            assert plan.inputs and plan.outputs
            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            with Path(plan.outputs).open("wb") as file:
                np.save(file, np.asarray(session.run(None, {"x": np.load(plan.inputs)})[0]))
        if plan.mode == "pair":
            assert plan.baseline
            own, other = (milliseconds[precision_of(Path(file))] / 1e3 for file in (model, plan.baseline))
            taken |= {"latency_s": (own,) * 40, "block_calls": 10}
            taken["baseline"] = {"latency_s": [other] * 40, "load_s": 0.01, "first_call_s": 0.01, "fingerprint": {}}
        return Record(**taken)

    return answer


@pytest.fixture
def made(tmp_path: Path, place: Callable[..., Site]) -> Callable[..., Quantized]:
    def make(precisions: tuple[Precision, ...], int8: float = 0.5, fp16: float = 0.7) -> Quantized:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, CLASSES, COUNT)
        x = rng.uniform(0, 1, (COUNT, CLASSES, 4, 4)) + np.eye(CLASSES)[labels][:, :, None, None]
        target = dataclasses.replace(load_target("cpu-x86"), precisions=precisions, quantization=Quantization())
        asked = Asked(
            model=network(tmp_path / "model.onnx"),
            out=tmp_path / "out.onnx",
            out_half=tmp_path / "half-out.onnx",
            site=place(target, answer=device({"fp32": 1.0, "fp16": fp16, "int8": int8})),
            examples=Ready(inputs={"x": x.astype(np.float32)}, labels=labels, about="here"),
            folder=tmp_path,
            scheme=target.quantization,
            precisions=precisions,
        )
        return quantize_file(asked)

    return make


def test_fp16_is_taken_where_it_is_faster_than_int8(made: Callable[..., Quantized], tmp_path: Path) -> None:
    done = made(("int8", "fp16", "fp32"), int8=0.5, fp16=0.3)
    assert done.file == tmp_path / "half-out.onnx" and not (tmp_path / "out.onnx").exists()
    assert precision_of(done.file) == "fp16"
    assert done.how.startswith("fp16: fp16 100.00 % in 0.60 (0.60 … 0.60) of int8's time")
    done = made(("int8", "fp16", "fp32"), int8=0.5, fp16=0.7)
    assert precision_of(tmp_path / "out.onnx") == "int8"
    assert done.how.endswith("fp16 100.00 % in 1.40 (1.40 … 1.40) of int8's time: not used")
    assert "fp16" not in made(("int8", "fp32"), fp16=0.1).how


def test_without_int8_the_file_is_fp16(made: Callable[..., Quantized], tmp_path: Path) -> None:
    assert made(("fp16", "fp32")).how == "fp16, because int8 is not among the target's precisions"
    assert precision_of(tmp_path / "out.onnx") == "fp16"
    with pytest.raises(InputError, match="neither int8 nor fp16"):
        made(("fp32",))


def test_fp16_that_cannot_be_made_leaves_int8(
    made: Callable[..., Quantized], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(source: Path, path: Path) -> None:
        raise ModelError(f"{source}: cannot be fp16")

    monkeypatch.setattr("edgekd.search.quantizing.to_half", fails)
    done = made(("int8", "fp16", "fp32"))
    assert done.how.endswith("fp16 is left out: model.onnx: cannot be fp16")
    assert precision_of(tmp_path / "out.onnx") == "int8"


def test_another_opset_must_not_change_the_answers(
    tmp_path: Path, place: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrongly(model: onnx.ModelProto, path: Path, target: Target) -> onnx.ModelProto:
        other: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
        weights = np.eye(CLASSES, dtype=np.float32)[::-1, :, None, None]
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights.copy(), "w"))
        return other

    target = load_target("cpu-x86")
    x = np.random.default_rng(0).uniform(0, 1, (COUNT, CLASSES, 4, 4)).astype(np.float32)
    asked = Asked(
        model=network(tmp_path / "model.onnx"),
        out=tmp_path / "out.onnx",
        site=place(target),
        examples=Ready(inputs={"x": x}, labels=None, about="here"),
        folder=tmp_path / "folder",
        scheme=target.quantization,
        precisions=("int8",),
    )
    asked.folder.mkdir()
    assert in_range(asked) is asked
    monkeypatch.setattr("edgekd.search.quantizing.within_range", wrongly)
    with pytest.raises(ModelError, match=r"model\.onnx: its answers change when its opset becomes 18 \(by "):
        in_range(asked)
