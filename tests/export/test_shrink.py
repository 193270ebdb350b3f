"""A smaller file that computes the same numbers with the same kernels."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.bench.worker import DEFAULTS, make_session
from edgekd.export.onnx import export
from edgekd.export.quantize import quantize
from edgekd.export.shrink import save_model, shrink
from edgekd.nets.folding import folded
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card

CARD = load_card("cifar10")
TARGET = load_target("cpu-x86")
MLPERF_TINY_BYTES = 98_496
"""The size of MLPerf Tiny's int8 ResNet-8 for TensorFlow Lite."""


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer))


class Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inner, outer, stride), convolution(outer, outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride) if inner != outer else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet8(nn.Module):
    """The network of MLPerf Tiny's image classification."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def resnet8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shrink") / "fp32.onnx"
    torch.manual_seed(0)
    net = ResNet8().eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 77_946
    export(folded(net, CARD.data), CARD, TARGET, path, {"trained": "no"})
    return path


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


def run(model: onnx.ModelProto | Path, images: NDArray[np.uint8], optimized: Path | None = None) -> NDArray[np.float32]:
    """The outputs; without graph optimization unless the optimized graph is asked for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def kernels(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_an_int8_resnet8_is_smaller_than_mlperf_tinys(
    resnet8: Path, images: NDArray[np.uint8], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    quantize(resnet8, path, Quantization(form=form), images)  # type: ignore[arg-type]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert 77_946 < path.stat().st_size <= MLPERF_TINY_BYTES
    told = onnx.load(path).metadata_props
    assert sum(entry.ByteSize() for entry in told) <= 1_000
    assert {entry.key: entry.value for entry in told} == {e.key: e.value for e in onnx.load(resnet8).metadata_props}


def test_both_forms_run_the_same_kernels_with_the_same_answers(
    resnet8: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    quantize(resnet8, tmp_path / "qdq.onnx", Quantization(), images)
    quantize(resnet8, tmp_path / "qoperator.onnx", Quantization(form="qoperator"), images)
    answers = {
        form: run(tmp_path / f"{form}.onnx", images, tmp_path / f"{form}-optimized.onnx")
        for form in ("qdq", "qoperator")
    }
    found = {form: kernels(tmp_path / f"{form}-optimized.onnx") for form in answers}
    assert found["qdq"] == found["qoperator"]
    assert (found["qdq"]["QLinearConv"], found["qdq"]["QLinearAdd"], found["qdq"]["QGemm"]) == (9, 3, 1)
    assert np.array_equal(answers["qdq"], answers["qoperator"])
    assert (tmp_path / "qoperator.onnx").stat().st_size < (tmp_path / "qdq.onnx").stat().st_size


def test_layers_are_named_after_their_weights(resnet8: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    quantize(resnet8, tmp_path / "int8.onnx", Quantization(), images)
    names = [node.name for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type in ("Conv", "Gemm")]
    assert (names[0], names[-1]) == ("stem.0", "head")
    assert "blocks.1.shortcut" in names
    assert len(set(names)) == 10


def a_model() -> onnx.ModelProto:
    """Two int8 convolutions with equal weights, a branch that leads nowhere, and operator sets that nothing uses."""
    rng = np.random.default_rng(1)
    weights = rng.integers(-127, 128, (4, 4, 3, 3), dtype=np.int8)
    constants: dict[str, NDArray[Any]] = {
        "scale": np.array(0.02, np.float32),
        "scale_again": np.array(0.02, np.float32),
        "scale_row": np.array([0.02], np.float32),
        "three": np.array(3, np.uint8),
        "first_weight_quantized": weights,
        "second_weight_quantized": weights.copy(),
        "scales": np.full(4, 0.01, np.float32),
        "zeros": np.zeros(4, np.int8),
        "ones": np.ones(4, np.int8),
        "unused": rng.normal(size=500).astype(np.float32),
        "lost": rng.normal(size=(1, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "three"], ["x_quantized"], name="quantize"),
        helper.make_node("DequantizeLinear", ["x_quantized", "scale_again", "three"], ["x_dequantized"]),
        helper.make_node("DequantizeLinear", ["first_weight_quantized", "scales", "zeros"], ["w1"], axis=0),
        helper.make_node("DequantizeLinear", ["second_weight_quantized", "scales", "ones"], ["w2"], axis=0),
        helper.make_node("Conv", ["x_dequantized", "w1"], ["h"], name="a_long_name", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["h", "lost"], ["nowhere"]),
        helper.make_node("Conv", ["h", "w2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "a",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, 8])],
        # as the fields of numbers that some tools write, not as bytes
        [
            helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel().tolist())
            for name, array in constants.items()
        ],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft.nchwc", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=9)


def test_only_what_the_outputs_depend_on_stays() -> None:
    before, after = a_model(), a_model()
    shrink(after)
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(2).normal(size=(2, 4, 8, 8)).astype(np.float32)
    assert np.array_equal(run(before, x), run(after, x))  # type: ignore[arg-type]
    assert after.ByteSize() < 0.25 * before.ByteSize()
    assert [entry.domain for entry in after.opset_import] == [""]
    assert [node.op_type for node in after.graph.node] == [n.op_type for n in before.graph.node if n.op_type != "Mul"]
    kept = sorted(tuple(tensor.dims) for tensor in after.graph.initializer)
    # one scale, its zero point, the int8 weights of both layers, their scales, and the zero points that are not 0
    assert kept == sorted([(), (), (4, 4, 3, 3), (4, 4, 3, 3), (4,), (4,)])
    points = [len(node.input) for node in after.graph.node if node.op_type == "DequantizeLinear"]
    assert points == [3, 2, 3]
    assert [v.name for v in (*after.graph.input, *after.graph.output)] == ["x", "y"]
    assert max(len(t.name) for t in after.graph.initializer) == 1
    assert [node.name for node in after.graph.node if node.op_type == "Conv"] == ["first_weight", "second_weight"]


def test_a_scalar_and_a_row_are_different_constants() -> None:
    model = a_model()
    model.graph.node[0].input[1], model.graph.node[1].input[1] = "scale", "scale_row"
    shrink(model)
    used = {node.input[1] for node in model.graph.node[:2]}
    assert len(used) == 2


def test_a_constant_that_is_an_output_keeps_its_name() -> None:
    model = a_model()
    model.graph.output.append(helper.make_tensor_value_info("scale_again", TensorProto.FLOAT, []))
    shrink(model)
    onnx.checker.check_model(model)
    assert "scale_again" in {tensor.name for tensor in model.graph.initializer}


def test_a_graph_with_branches_is_left_as_it_is(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["out"])], "b", [], [helper.make_tensor_value_info("out", 1, [1])]
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    shrink(model)
    save_model(model, tmp_path / "branches.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "branches.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array(True)})[0] == [1.0]


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_of_equal_shape_run_on_exact_kernels(form: Any, per_channel: bool, tmp_path: Path) -> None:
    """x86 CPUs without VNNI need these kernels, and every x86 CPU has them."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(16, 16)).astype(np.float32), f"w{n}") for n in range(3)]
    nodes = [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(3)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in ("x0", "x3")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    x = rng.normal(size=(64, 16)).astype(np.float32)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", Quantization(per_channel=per_channel, form=form), x)
    answers = []
    for name in ("m.onnx", "q.onnx"):
        session = make_session(onnxruntime, {**DEFAULTS, "precise_int8": True}, str(tmp_path / name))
        answers.append(session.run(None, {"x0": x})[0])
    assert np.abs(answers[0] - answers[1]).max() < 0.05 * np.abs(answers[0]).max()
