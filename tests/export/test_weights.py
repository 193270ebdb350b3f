"""Weights alone in 8 bits: rounded to their own scales, small in the file, and computed once at loading."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import ConfigError
from edgekd.export.quantize import quantize, quantize_weights
from edgekd.export.shrink import layer_names
from edgekd.export.variants import precision_of
from edgekd.export.weights import store_weights
from edgekd.spec import build
from edgekd.target import Quantization

RNG = np.random.default_rng(0)
ALONE = Quantization(activation="float")
SHAPES = {
    "table": (50, 8),
    "net.wide.weight": (16, 8, 3, 3),
    "net.deep.weight": (16, 1, 3, 3),
    "up": (16, 12, 2, 2),
    "head": (12, 20),
    "turned": (30, 20),
    "bias": (1, 30),
}
KEPT = {"table": 0, "net.wide.weight": 0, "net.deep.weight": 0, "up": 1, "head": 1, "turned": 0}
"""The axis of each weight along which the scales differ."""


def network(path: Path) -> dict[str, NDArray[np.float32]]:
    """An embedding, four kinds of layers, and channels of very different size."""
    made = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    made["net.wide.weight"] *= np.geomspace(0.01, 10, 16, dtype=np.float32)[:, None, None, None]
    made["head"][:, 3] = 0
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["t"]),
        helper.make_node("Transpose", ["t"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["c", "net.wide.weight"], ["w"]),
        helper.make_node("Conv", ["w", "net.deep.weight"], ["d"], group=16),
        helper.make_node("ConvTranspose", ["d", "up"], ["u"]),
        helper.make_node("GlobalAveragePool", ["u"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["h"]),
        helper.make_node("Gemm", ["h", "turned", "bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["n", 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 30])],
        [numpy_helper.from_array(array, name) for name, array in made.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return made


def answers(file: Path, ids: NDArray[Any], optimized: Path | None = None) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    if optimized:
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids})[0])


def test_each_channel_is_rounded_to_127_levels(tmp_path: Path) -> None:
    weights = network(tmp_path / "fp32.onnx")
    model = onnx.load(tmp_path / "fp32.onnx")
    assert store_weights(model) == len(KEPT)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, axis in KEPT.items():
        levels, scale = found[f"{name}_quantized"], found[f"{name}_scale"]
        others = tuple(place for place in range(levels.ndim) if place != axis)
        assert levels.dtype == np.int8
        largest = np.abs(weights[name]).max(axis=others)
        assert scale.ravel() == pytest.approx(np.where(largest > 0, largest / 127, 1))
        assert np.abs(levels.astype(int)).max() == 127
        assert (np.abs(levels * scale - weights[name]) <= scale * 0.5001).all()
    assert "bias" in found  # one row of 30 numbers would not become smaller
    assert layer_names(model.graph)[next(n for n, x in enumerate(model.graph.node) if x.op_type == "Conv")] == "wide"


def test_per_tensor_there_is_one_scale(tmp_path: Path) -> None:
    network(tmp_path / "fp32.onnx")
    model = onnx.load(tmp_path / "fp32.onnx")
    store_weights(model, per_channel=False)
    scales = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_scale")]
    assert {tuple(numpy_helper.to_array(tensor).ravel().shape) for tensor in scales} == {(1,)}


def test_the_file_is_small_and_computes_in_float(tmp_path: Path) -> None:
    network(tmp_path / "fp32.onnx")
    ids = RNG.integers(0, 50, (20, 6, 6)).astype(np.int32)
    quantize(tmp_path / "fp32.onnx", tmp_path / "w8.onnx", ALONE, ids)
    quantize_weights(tmp_path / "fp32.onnx", tmp_path / "dynamic.onnx", ALONE)
    assert (tmp_path / "w8.onnx").read_bytes() == (tmp_path / "dynamic.onnx").read_bytes()
    onnx.checker.check_model(onnx.load(tmp_path / "w8.onnx"), full_check=True)
    assert (tmp_path / "w8.onnx").stat().st_size < 0.45 * (tmp_path / "fp32.onnx").stat().st_size
    assert precision_of(tmp_path / "w8.onnx") == "int8"
    assert precision_of(tmp_path / "fp32.onnx") == "fp32"
    expected = answers(tmp_path / "fp32.onnx", ids)
    found = answers(tmp_path / "w8.onnx", ids, tmp_path / "optimized.onnx")
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not kinds & {"Cast", "Mul", "DequantizeLinear"}  # the weights are computed once, at loading


def test_weights_that_a_subgraph_reads_stay_as_they_are(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["b"])], "then", [], [onnx.ValueInfoProto(name="b")]
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 40])],
        [numpy_helper.from_array(np.ones((40, 40), np.float32), "w"), numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert store_weights(model) == 0
    assert [tensor.name for tensor in model.graph.initializer] == ["w", "yes"]


@pytest.mark.parametrize("wrong", [{"weight": "uint8"}, {"form": "qoperator"}])
def test_other_settings_do_not_suit_weights_alone(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match='with activation = "float", weight must be "int8" and form "qdq"'):
        build(Quantization, {"activation": "float", **wrong}, "here")
