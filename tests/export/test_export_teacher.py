"""The teacher as a file that takes what the student takes: exported from torch, or an ONNX model as it came."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.card import Teacher
from edgekd.export.teacher import export_teacher
from edgekd.nets.teachers import load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.target import load_target
from edgekd.tasks.known import load_card

CARD = load_card("cifar10")
COLOUR = dataclasses.replace(
    CARD,
    data=dataclasses.replace(CARD.data, size=8),
    teacher=Teacher(family="mlp", shape={"hidden": [6]}),
)
TARGET = load_target("cpu-x86")


def images(count: int = 20) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def by_hand(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    normal = (images() / 255 - CARD.data.mean) / CARD.data.std
    return np.asarray(normal.transpose(0, 3, 1, 2).reshape(20, -1) @ matrix)


def write_float_teacher(
    path: Path, name: str = "input", opset: int = 17, inside: str = "scaled"
) -> NDArray[np.float32]:
    """A linear teacher on normalised float NCHW; returns its matrix."""
    matrix = np.random.default_rng(1).standard_normal((192, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", [name], [inside]), helper.make_node("MatMul", [inside, "scale"], ["answers"])],
        "teacher",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(matrix, "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return matrix


def write_bytes_teacher(path: Path) -> NDArray[np.float32]:
    """A linear teacher on raw uint8 NHWC."""
    matrix = np.random.default_rng(2).standard_normal((192, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["answers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return matrix


def run(path: Path) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.type == "tensor(uint8)"
    assert given.shape[1:] == [8, 8, 3]
    assert not isinstance(given.shape[0], int)
    return np.asarray(session.run(None, {given.name: images()})[0])


@pytest.mark.parametrize("name", ["input", "image", "normalized", "nchw"])
def test_a_float_teacher_gets_its_preprocessing(tmp_path: Path, name: str) -> None:
    matrix = write_float_teacher(tmp_path / "t.onnx", name)
    teacher = load_teacher_file(COLOUR, tmp_path / "t.onnx")
    export_teacher(teacher, COLOUR, TARGET, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    expected = by_hand(matrix)
    assert np.abs(run(tmp_path / "out.onnx") - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("inside", ["normalized", "image"])
def test_names_inside_the_teacher_do_not_matter(tmp_path: Path, inside: str) -> None:
    matrix = write_float_teacher(tmp_path / "t.onnx", inside=inside)
    export_teacher(load_teacher_file(COLOUR, tmp_path / "t.onnx"), COLOUR, TARGET, tmp_path / "out.onnx")
    expected = by_hand(matrix)
    assert np.abs(run(tmp_path / "out.onnx") - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", [11, 13, 20])
def test_teachers_of_other_opsets(tmp_path: Path, opset: int) -> None:
    matrix = write_float_teacher(tmp_path / "t.onnx", opset=opset)
    export_teacher(load_teacher_file(COLOUR, tmp_path / "t.onnx"), COLOUR, TARGET, tmp_path / "out.onnx")
    expected = by_hand(matrix)
    assert np.abs(run(tmp_path / "out.onnx") - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_teacher_on_bytes_stays_as_it_is(tmp_path: Path) -> None:
    matrix = write_bytes_teacher(tmp_path / "t.onnx")
    export_teacher(load_teacher_file(COLOUR, tmp_path / "t.onnx"), COLOUR, TARGET, tmp_path / "out.onnx")
    expected = images().reshape(20, -1).astype(np.float64) @ matrix
    assert np.abs(run(tmp_path / "out.onnx") - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_torch_teacher_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make_teacher_net(COLOUR)
    save_state(net, tmp_path / "t.safetensors", {})
    export_teacher(load_teacher_file(COLOUR, tmp_path / "t.safetensors"), COLOUR, TARGET, tmp_path / "out.onnx")
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    normal = ((images() / 255 - CARD.data.mean) / CARD.data.std).transpose(0, 3, 1, 2).reshape(20, -1)
    hidden = np.maximum(normal @ weights["1.weight"].T + weights["1.bias"], 0)
    expected = hidden @ weights["3.weight"].T + weights["3.bias"]
    assert np.allclose(run(tmp_path / "out.onnx"), expected, atol=1e-5)
    told = onnxruntime.InferenceSession(tmp_path / "out.onnx").get_modelmeta().custom_metadata_map
    assert told["trained"] == "t.safetensors"
    assert told["input"] == "uint8 (batch, 8, 8, 3), RGB"


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    write_float_teacher(tmp_path / "t.onnx")
    teacher = load_teacher_file(COLOUR, tmp_path / "t.onnx")
    (tmp_path / "out.onnx").write_bytes(b"made before")
    export_teacher(teacher, COLOUR, TARGET, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"made before"
