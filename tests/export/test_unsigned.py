"""int8 activations become uint8, and every output stays the same bit for bit."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgekd.errors import ModelError
from edgekd.export.shrink import shrink
from edgekd.export.unsigned import to_unsigned

RNG = np.random.default_rng(0)
INT8, UINT8, FLOAT = TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT
X = RNG.normal(size=(3, 4, 8, 8)).astype(np.float32)
CONSTANTS: dict[str, NDArray[Any]] = {
    "scale": np.array(0.03, np.float32),
    "point": np.array(-7, np.int8),
    "weight": RNG.integers(-127, 128, (4, 4, 3, 3), dtype=np.int8),
    "weight_scale": RNG.uniform(0.005, 0.02, 4).astype(np.float32),
    "weight_point": np.zeros(4, np.int8),
    "beside": RNG.integers(-128, 128, (3, 4, 8, 8), dtype=np.int8),
    "shape": np.array([3, 8, 4, 8], np.int64),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "filler": np.array(5, np.int8),
    "places": np.array([3, 0, 1], np.int64),
    "starts": np.array([1], np.int64),
    "ends": np.array([4], np.int64),
    "axes": np.array([2], np.int64),
    "sizes": np.array([1, 1, 2, 2], np.float32),
}


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.replace("-", "").split(), outputs.split(), **attributes)


def model(
    nodes: list[NodeProto],
    input_type: int = FLOAT,
    outputs: dict[str, int] | None = None,
    opset: int = 20,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", input_type, [3, 4, 8, 8])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (outputs or {"y": FLOAT}).items()],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    made = onnx.shape_inference.infer_shapes(made)  # for the outputs' shapes
    shrink(made)
    onnx.checker.check_model(made)
    return made


def run(made: ModelProto, x: NDArray[Any], optimized: Path | None = None) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, {made.graph.input[0].name: x})]


def activation_types(made: ModelProto) -> set[int]:
    """The types of all QuantizeLinear outputs, as ONNX's own shape inference finds them."""
    known = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*known.value_info, *known.output)}
    return {types[node.output[0]] for node in made.graph.node if node.op_type == "QuantizeLinear"}


def the_same(before: ModelProto, x: NDArray[Any] = X, kinds: set[int] | None = None) -> ModelProto:
    after = ModelProto()
    after.CopyFrom(before)
    assert to_unsigned(after) > 0
    onnx.checker.check_model(after, full_check=True)
    first, second = run(before, x), run(after, x)
    assert [array.dtype for array in first] == [array.dtype for array in second]
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(len(np.unique(array)) > 20 for array in first)  # the comparison says something
    assert activation_types(before) >= {INT8}
    assert activation_types(after) == (kinds or {UINT8})
    return after


QUANTIZE = node("QuantizeLinear", "x scale point", "q")
BACK = node("DequantizeLinear", "r scale point", "y")


@pytest.mark.parametrize(
    "between",
    [
        [node("MaxPool", "q", "r", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        [node("Reshape", "q shape", "r")],
        [node("Concat", "q beside", "r", axis=1)],
        [node("MaxPool", "q", "p", kernel_shape=[1, 1]), node("Concat", "q p beside q", "r", axis=0)],
        [node("Transpose", "q", "r", perm=[0, 2, 3, 1])],
        [node("Flatten", "q", "r")],
        [node("Unsqueeze", "q starts", "u"), node("Squeeze", "u starts", "r")],
        [node("Gather", "q places", "r", axis=1)],
        [node("Slice", "q starts ends axes", "r")],
        [node("Split", "q", "r s", axis=1, num_outputs=2)],
        [node("Pad", "q pads", "r")],
        [node("Pad", "q pads filler", "r")],
        [node("Pad", "q pads", "r", mode="reflect")],
        [node("DepthToSpace", "q", "r", blocksize=2)],
        [node("Identity", "q", "i"), node("Identity", "i", "r")],
        [helper.make_node("Resize", ["q", "", "sizes"], ["r"], mode="nearest")],
    ],
    ids=lambda nodes: "-".join(node.op_type for node in nodes),
)
def test_values_that_are_only_moved(between: list[NodeProto]) -> None:
    after = the_same(model([QUANTIZE, *between, BACK]))
    assert [n.op_type for n in after.graph.node] == [
        "QuantizeLinear",
        *[n.op_type for n in between],
        "DequantizeLinear",
    ]


def test_a_second_output_of_a_pool_holds_places_and_stays() -> None:
    pool = node("MaxPool", "q", "r places_of", kernel_shape=[2, 2], strides=[2, 2])
    the_same(model([QUANTIZE, pool, BACK], outputs={"y": FLOAT, "places_of": TensorProto.INT64}))


def convolution(source: str, target: str) -> list[NodeProto]:
    return [
        node("DequantizeLinear", "weight weight_scale weight_point", f"{target}_w", axis=0),
        node("Conv", f"{source} {target}_w", target, pads=[1, 1, 1, 1]),
    ]


def test_weights_stay_int8_and_the_layers_fuse(tmp_path: Path) -> None:
    nodes = [
        QUANTIZE,
        node("DequantizeLinear", "q scale point", "d"),
        *convolution("d", "c"),
        node("QuantizeLinear", "c scale point", "r"),
        BACK,
    ]
    before = model(nodes)
    after = the_same(before)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert sum(np.array_equal(array, CONSTANTS["weight"]) for array in arrays.values()) == 1
    run(after, X, tmp_path / "optimized.onnx")
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 1
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    (fused,) = [n for n in optimized.node if n.op_type == "QLinearConv"]
    points = {tensor.name: tensor.data_type for tensor in optimized.initializer}
    assert [points[fused.input[place]] for place in (2, 5, 7)] == [UINT8, INT8, UINT8]


def test_weights_that_are_quantized_in_the_graph_stay_int8() -> None:
    nodes = [
        node("DequantizeLinear", "beside scale point", "real"),  # a float constant
        node("QuantizeLinear", "real scale point", "constant"),
        node("DequantizeLinear", "constant scale point", "there"),
        QUANTIZE,
        node("DequantizeLinear", "q scale point", "d"),
        node("Add", "d there", "y"),
    ]
    the_same(model(nodes), kinds={INT8, UINT8})


def test_zero_points_that_are_missing_are_zero() -> None:
    first = node("QuantizeLinear", "x scale", "q", output_dtype=INT8)
    the_same(model([first, node("DequantizeLinear", "q scale", "y")], opset=21))


def test_an_output_type_beside_a_zero_point() -> None:
    first = node("QuantizeLinear", "x scale point", "q", output_dtype=INT8)
    after = the_same(model([first, node("DequantizeLinear", "q scale point", "y")], opset=21))
    assert [a.i for a in after.graph.node[0].attribute if a.name == "output_dtype"] == [UINT8]


def test_a_scale_for_each_channel() -> None:
    first = node("QuantizeLinear", "x weight_scale weight_point", "q", axis=1)
    the_same(model([first, node("DequantizeLinear", "q weight_scale weight_point", "y", axis=1)]))


def test_int8_inputs_and_outputs_keep_their_type() -> None:
    nodes = [
        node("DequantizeLinear", "x scale point", "d"),
        *convolution("d", "c"),
        node("QuantizeLinear", "c scale point", "y"),
        node("DequantizeLinear", "y scale point", "again"),
    ]
    before = model(nodes, INT8, {"y": INT8, "again": FLOAT})
    x = RNG.integers(-128, 128, X.shape, dtype=np.int8)
    after = ModelProto()
    after.CopyFrom(before)
    assert to_unsigned(after) == 2
    assert all(np.array_equal(a, b) for a, b in zip(run(before, x), run(after, x), strict=True))
    assert [v.type.tensor_type.elem_type for v in (*after.graph.input, *after.graph.output)] == [INT8, INT8, FLOAT]


def test_an_int8_input_that_is_also_moved_to_an_int8_output() -> None:
    before = model([node("MaxPool", "x", "y", kernel_shape=[2, 2])], INT8, {"y": INT8})
    x = RNG.integers(-128, 128, X.shape, dtype=np.int8)
    after = ModelProto()
    after.CopyFrom(before)
    assert to_unsigned(after) == 1
    assert np.array_equal(run(before, x)[0], run(after, x)[0])


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([QUANTIZE, node("Relu", "q", "r"), BACK], r"'r' \(Relu\): it computes with int8 values"),
        ([QUANTIZE, node("Cast", "q", "y", to=FLOAT)], r"\(Cast\): it computes with int8 values"),
        (
            [
                node("Cast", "x", "made", to=INT8),
                QUANTIZE,
                node("Concat", "q made", "r", axis=0),
                BACK,
            ],
            r"\(Concat\): its input 'x?\w*' is int8 and neither an activation nor a stored constant",
        ),
        (
            [
                node("ReduceMax", "x", "largest", keepdims=0),
                node("Cast", "largest", "moving", to=INT8),
                node("QuantizeLinear", "x scale moving", "q"),
                node("DequantizeLinear", "q scale moving", "y"),
            ],
            r"\(QuantizeLinear\): its zero point is not constant",
        ),
        ([QUANTIZE, helper.make_node("Resize", ["q", "", "sizes"], ["r"], mode="linear"), BACK], r"\(Resize\): "),
    ],
)
def test_what_cannot_be_rewritten_is_refused_and_left_alone(nodes: list[NodeProto], why: str) -> None:
    made = model(nodes)
    for one in made.graph.node:
        one.name = "r" if one.op_type == "Relu" else ""
    before = made.SerializeToString(deterministic=True)
    with pytest.raises(ModelError, match=rf"^its int8 activations cannot be made uint8: node .*{why}"):
        to_unsigned(made)
    assert made.SerializeToString(deterministic=True) == before


def test_uint8_and_float_models_are_left_alone() -> None:
    unsigned = model([node("QuantizeLinear", "x scale", "q"), node("DequantizeLinear", "q scale", "y")])
    for made in (unsigned, model([node("Relu", "x", "y")])):
        before = made.SerializeToString(deterministic=True)
        assert to_unsigned(made) == 0
        assert made.SerializeToString(deterministic=True) == before


class _Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([{"x": X}])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self.batches, None)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_onnx_runtimes_quantizer(tmp_path: Path) -> None:
    """Two convolutions, an addition, a pool and a layer; S8S8 of another tool, whose graph edgekd did not choose."""
    rng = np.random.default_rng(3)
    weights: dict[str, NDArray[Any]] = {
        "w1": rng.normal(size=(8, 4, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
        "w3": rng.normal(size=(10, 128)).astype(np.float32),
    }
    nodes = [
        node("Conv", "x w1 b", "c1", name="c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1", name="r1"),
        node("Conv", "r1 w2", "c2", name="c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "a", name="a"),
        node("MaxPool", "a", "m", name="m", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "m", "f", name="f"),
        node("Gemm", "f w3", "y", name="g", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(made), tmp_path / "fp32.onnx")
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "s8s8.onnx",
        _Once(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    after = the_same(onnx.load(tmp_path / "s8s8.onnx"))
    run(after, X, tmp_path / "optimized.onnx")
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QGemm"]) == (2, 1, 1)
