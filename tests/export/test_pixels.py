"""Images normalised row by row are the same numbers, and other models stay as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd.card import Student
from edgekd.export.onnx import export
from edgekd.export.pixels import PREFIX, normalize_rows
from edgekd.export.precisions import make_variant
from edgekd.nets.families import make
from edgekd.target import load_target
from edgekd.tasks.known import load_card

SCALE, SHIFT = np.array([0.017, 0.0175, 0.0171], np.float32), np.array([-2.1, -2.0, -1.8], np.float32)


def model(size: tuple[Any, Any, Any] = (6, 5, 3), shape: tuple[int, ...] = (1, 3, 1, 1), last: str = "Add") -> Any:
    """Transpose, Cast, Mul and Add (or another last step) before a pooling."""
    channels = size[2] if isinstance(size[2], int) else 3
    scale, shift = (np.resize(one, channels).reshape(shape) for one in (SCALE, SHIFT))
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["m"]),
        helper.make_node(last, ["m", "shift"], ["n"]),
        helper.make_node("MaxPool", ["n"], ["out"], kernel_shape=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *size])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", channels, None, None])],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(shift, "shift")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(one: onnx.ModelProto, images: Any, optimised: bool) -> Any:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("optimised", [False, True])
def test_all_numbers_stay_the_same(channels: int, optimised: bool) -> None:
    before, after = model((6, 5, channels), (1, channels, 1, 1)), model((6, 5, channels), (1, channels, 1, 1))
    normalize_rows(after)
    assert [node.op_type for node in after.graph.node] == [
        "Cast", "Reshape", "Tile", "Mul", "Tile", "Add", "Reshape", "Transpose", "MaxPool",
    ]  # fmt: skip
    onnx.checker.check_model(after, full_check=True)
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 5, channels), np.uint8)
    assert np.array_equal(answers(before, images, optimised), answers(after, images, optimised))


def shown(name: str) -> onnx.ModelProto:
    """A model of which a value between the image and the network is an output, too."""
    made: onnx.ModelProto = model()
    made.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return made


def branching() -> onnx.ModelProto:
    """A model with a branch that reads the images in float."""
    made: onnx.ModelProto = model()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["f"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    made.graph.node.append(helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch))
    return made


@pytest.mark.parametrize(
    "other",
    [
        model((6, 5, 1), (1, 1, 1, 1)),
        model(("height", "width", 3)),
        model((6, 3, 3), (1, 1, 1, 3)),
        model(last="Sub"),
        shown("m"),
        branching(),
    ],
    ids=["one channel", "free sizes", "other axis", "other steps", "an output", "a branch"],
)
def test_others_stay_as_they_are(other: onnx.ModelProto) -> None:
    before = other.SerializeToString()
    normalize_rows(other)
    assert other.SerializeToString() == before
    assert PREFIX not in str(other)


@pytest.mark.parametrize(("target", "first"), [("cpu-x86", "Cast"), ("openvino-cpu", "Transpose")])
def test_the_target_says_whether_its_int8_files_do_it(target: str, first: str, tmp_path: Path) -> None:
    card, known = load_card("cifar10"), load_target(target)
    torch.manual_seed(0)
    net = make(card, Student(family="cifar-resnet"), {"depth": 8, "width": 4}, "student.knobs").eval()
    export(net, card, known, tmp_path / "fp32.onnx", {})
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    make_variant(tmp_path / "fp32.onnx", "int8", known, images, tmp_path / "int8.onnx")
    assert onnx.load(tmp_path / "int8.onnx").graph.node[0].op_type == first
    assert onnx.load(tmp_path / "fp32.onnx").graph.node[0].op_type == "Transpose"
