"""Equalisation changes no output, and bias correction removes the mean error of each channel; both help where channels
have very different ranges."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgekd.export.equalize import correct_bias, equalize
from edgekd.export.quantize import prepare, quantize_prepared
from edgekd.target import Quantization

RNG = np.random.default_rng(0)
SKEW = np.geomspace(0.02, 50, 16).astype(np.float32)


def inverted(path: Path, activation: str = "Relu") -> ModelProto:
    """An inverted residual as in MobileNetV2: 1×1 to 16 channels, depthwise 3×3, 1×1 to 8, with a shortcut; then two
    matrix products. The inner channels differ by a factor of 2,500."""

    def normal(*shape: int) -> NDArray[np.float32]:
        return np.asarray(RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    wide = SKEW[:, None, None, None]
    made = {
        "expand": normal(16, 8, 1, 1) * wide,
        "expand.b": normal(16, 1)[:, 0] * SKEW,
        "deep": normal(16, 1, 3, 3),
        "project": normal(8, 16, 1, 1) / wide.reshape(1, 16, 1, 1),
        "first": normal(8, 12),
        "first.b": normal(12, 1)[:, 0],
        "last": normal(5, 12),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
    }
    between = [activation, *([] if activation != "Clip" else ["low", "high"])]
    nodes = [
        helper.make_node("Conv", ["x", "expand", "expand.b"], ["a"], name="n1"),
        helper.make_node(between[0], ["a", *between[1:]], ["b"], name="n2"),
        helper.make_node("Conv", ["b", "deep"], ["c"], name="n3", group=16, pads=[1, 1, 1, 1]),
        helper.make_node(between[0], ["c", *between[1:]], ["d"], name="n4"),
        helper.make_node("Conv", ["d", "project"], ["e"], name="n5"),
        helper.make_node("Add", ["x", "e"], ["s"], name="n6"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="n7"),
        helper.make_node("Flatten", ["p"], ["f"], name="n8"),
        helper.make_node("Gemm", ["f", "first", "first.b"], ["g"], name="n9"),
        helper.make_node("Relu", ["g"], ["h"], name="n10"),
        helper.make_node("Gemm", ["h", "last"], ["y"], name="n11", transB=1),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in made.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return model


def answers(model: ModelProto | Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    source = model if isinstance(model, Path) else model.SerializeToString()
    return np.asarray(onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])


def weights(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_it_changes_no_output_and_makes_ranges_alike(tmp_path: Path, activation: str) -> None:
    model = inverted(tmp_path / "fp32.onnx", activation)
    x = RNG.normal(size=(20, 8, 6, 6)).astype(np.float32)
    expected = answers(model, x)
    before = np.abs(weights(model)["expand"]).max(axis=(1, 2, 3))
    assert equalize(model) == 3  # not over the shortcut
    assert np.abs(answers(model, x) - expected).max() <= 1e-5 * np.abs(expected).max()
    found = {name: np.abs(array) for name, array in weights(model).items()}
    gives, reads = found["expand"].max(axis=(1, 2, 3)), found["deep"].max(axis=(1, 2, 3))
    assert gives == pytest.approx(reads, rel=0.01)
    assert found["deep"].max(axis=(1, 2, 3)) == pytest.approx(found["project"].max(axis=(0, 2, 3)), rel=0.01)
    assert before.max() / before.min() > 500 > 20 > gives.max() / gives.min()
    assert found["first"].max(axis=0) == pytest.approx(found["last"].max(axis=0), rel=0.01)


def test_what_cannot_be_scaled_stays(tmp_path: Path) -> None:
    """Over ReLU6, values that two layers read, and weights that two layers share."""
    model = inverted(tmp_path / "relu6.onnx", "Clip")
    assert equalize(model) == 1  # the matrix products
    model = inverted(tmp_path / "read.onnx")
    model.graph.output.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, None))
    assert equalize(model) == 2
    model = inverted(tmp_path / "shared.onnx")
    model.graph.node[2].input.append("expand.b")
    assert equalize(model) == 1


def test_bias_correction_removes_the_mean_error(tmp_path: Path) -> None:
    """Of one layer without padding, whose mean is what the paper's equation says exactly."""
    x = RNG.uniform(0.5, 1.5, (64, 4, 5, 5)).astype(np.float32)
    w = RNG.normal(size=(6, 2, 3, 3)).astype(np.float32)
    stored = {
        "w_quantized": np.rint(w / 0.4).astype(np.int8),
        "w_scale": np.array(0.4, np.float32),
        "w_zero_point": np.array(0, np.int8),
    }

    def layer(weight: NDArray[np.float32], name: str = "w") -> ModelProto:
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", name], ["y"], group=2)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 5, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, name)],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    model = layer(w)
    quantized = layer(w, "unused")
    quantized.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    x = np.broadcast_to(x.mean(axis=(0, 2, 3), keepdims=True), x.shape).astype(np.float32)  # no border effect
    assert correct_bias(model, quantized, [{"x": x[:32]}, {"x": x[32:]}]) == 1
    bias = weights(model)["w_corrected_bias"]
    assert model.graph.node[0].input[2] == "w_corrected_bias"
    expected = answers(layer(w), x).mean(axis=(0, 2, 3))
    rounded = answers(layer((stored["w_quantized"] * 0.4).astype(np.float32)), x).mean(axis=(0, 2, 3))
    assert np.abs(rounded - expected).max() > 0.05
    assert rounded + bias == pytest.approx(expected, abs=1e-4)


def test_both_help_where_ranges_are_skewed(tmp_path: Path) -> None:
    """The error of the outputs with one scale for each tensor, as some NPUs have it."""
    model = inverted(tmp_path / "fp32.onnx")
    prepare(tmp_path / "fp32.onnx", tmp_path / "prepared.onnx")
    x = RNG.normal(size=(256, 8, 6, 6)).astype(np.float32)
    expected = answers(model, x)

    def error(**changes: Any) -> float:
        scheme = Quantization(activation="int8", per_channel=False, **changes)
        file = tmp_path / "int8.onnx"
        quantize_prepared(tmp_path / "prepared.onnx", file, scheme, x[:64], tmp_path / "fp32.onnx")
        return float(np.square(answers(file, x) - expected).mean() / np.square(expected).mean())

    plain, equal, both = error(), error(equalize=True), error(equalize=True, correct_bias=True)
    assert equal < plain / 4
    assert both < plain / 4
    assert error(correct_bias=True) < plain
