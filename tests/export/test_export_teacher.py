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
from edgekd.errors import InputError
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


# --- old files, and files that give something else than logits ---


def write_old_teacher(path: Path, opset: int, ending: str = "", named_first: bool = False) -> NDArray[np.float32]:
    """A linear teacher of IR version 3, where weights are inputs as well; `ending` is its last node."""
    matrix = np.random.default_rng(0).normal(0, 0.3, (192, 10)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "W"], ["sums"])]
    if ending:
        nodes.append(helper.make_node(ending, ["sums"], ["answers"]))
    weights = helper.make_tensor_value_info("W", TensorProto.FLOAT, [192, 10])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    inputs = [weights, *inputs] if named_first else [*inputs, weights]
    graph = helper.make_graph(
        nodes,
        "old",
        inputs,
        [helper.make_tensor_value_info("answers" if ending else "sums", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(matrix, "W")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3), path)
    return matrix


@pytest.mark.parametrize("named_first", [False, True], ids=["weights last", "weights first"])
@pytest.mark.parametrize("opset", [5, 7, 8])
def test_a_teacher_whose_weights_are_inputs(tmp_path: Path, opset: int, named_first: bool) -> None:
    matrix = write_old_teacher(tmp_path / "t.onnx", opset, named_first=named_first)
    export_teacher(load_teacher_file(COLOUR, tmp_path / "t.onnx"), COLOUR, TARGET, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (len(model.graph.input), model.ir_version >= 4) == (1, True)
    expected = by_hand(matrix)
    assert np.abs(run(tmp_path / "out.onnx") - expected).max() < 1e-5 * np.abs(expected).max()


def test_an_old_teacher_that_onnx_cannot_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("edgekd.export.teacher.version_converter.convert_version", fail)
    write_old_teacher(tmp_path / "t.onnx", 5)
    teacher = load_teacher_file(COLOUR, tmp_path / "t.onnx")
    with pytest.raises(
        InputError, match=r"t\.onnx: is of opset 5, and onnx cannot convert it to opset 13 \(no adapter\)"
    ):
        export_teacher(teacher, COLOUR, TARGET, tmp_path / "out.onnx")


@pytest.mark.parametrize("opset", [7, 8])
def test_probabilities_become_logits(tmp_path: Path, opset: int, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = write_old_teacher(tmp_path / "t.onnx", opset, "Softmax")
    teacher = load_teacher_file(COLOUR, tmp_path / "t.onnx")
    assert capsys.readouterr().err.count("their logarithms are taken as its logits") == 1
    assert teacher.identity == {"outputs": "logarithms"}
    export_teacher(teacher, COLOUR, TARGET, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    sums = by_hand(matrix)
    expected = (
        sums - np.log(np.exp(sums - sums.max(1, keepdims=True)).sum(1, keepdims=True)) - sums.max(1, keepdims=True)
    )
    likely = expected > -80  # below, single precision has no normal number for the probability
    assert likely.any()
    for given in (run(tmp_path / "out.onnx"), teacher.module(torch.from_numpy(images())).numpy()):
        assert np.abs(given - expected)[likely].max() < 1e-3
        assert given.min() >= np.log(np.finfo(np.float32).tiny) - 1e-3


def test_logarithms_of_probabilities_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_old_teacher(tmp_path / "t.onnx", 8, "LogSoftmax")
    teacher = load_teacher_file(COLOUR, tmp_path / "t.onnx")
    assert (teacher.identity, capsys.readouterr().err) == ({}, "")
    export_teacher(teacher, COLOUR, TARGET, tmp_path / "out.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node][-1] == "LogSoftmax"
    given = teacher.module(torch.from_numpy(images())).numpy()
    assert np.allclose(given, run(tmp_path / "out.onnx"), atol=1e-4)
    assert given.max() <= 0


def test_sigmoids_are_refused(tmp_path: Path) -> None:
    write_old_teacher(tmp_path / "t.onnx", 8, "Sigmoid")
    with pytest.raises(
        InputError, match=r"t\.onnx: gives each class a probability of its own \(its last node is Sigmoid"
    ):
        load_teacher_file(COLOUR, tmp_path / "t.onnx")


def test_the_logits_among_several_outputs(tmp_path: Path) -> None:
    matrix = write_float_teacher(tmp_path / "t.onnx")
    model = onnx.load(tmp_path / "t.onnx")
    answers = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Neg", [answers], ["negative"]))
    model.graph.node.append(helper.make_node("ReduceSum", [answers], ["total"], keepdims=0))
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
        model.graph.output[0],
        helper.make_tensor_value_info("negative", TensorProto.FLOAT, ["n", 10]),
    ]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, tmp_path / "t.onnx")
    for name, sign in (("", 1), ("negative", -1)):
        card = dataclasses.replace(COLOUR, teacher=dataclasses.replace(COLOUR.teacher, output=name))
        export_teacher(load_teacher_file(card, tmp_path / "t.onnx"), card, TARGET, tmp_path / f"out{name}.onnx")
        expected = sign * by_hand(matrix)
        assert np.abs(run(tmp_path / f"out{name}.onnx") - expected).max() < 1e-5 * np.abs(expected).max()
    card = dataclasses.replace(COLOUR, teacher=dataclasses.replace(COLOUR.teacher, output="negativ"))
    with pytest.raises(InputError, match=r"teacher\.output: 'negativ' is unknown; did you mean 'negative'"):
        load_teacher_file(card, tmp_path / "t.onnx")


def test_for_fixed_shapes_a_given_model_takes_one_image(tmp_path: Path) -> None:
    matrix = write_float_teacher(tmp_path / "teacher.onnx")
    card = dataclasses.replace(COLOUR, teacher=Teacher(family="onnx"))
    teacher = load_teacher_file(card, tmp_path / "teacher.onnx")
    export_teacher(teacher, card, dataclasses.replace(TARGET, fixed_shapes=True), tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.shape, taken.shape) == ([1, 8, 8, 3], [1, 10])
    answers = np.concatenate([session.run(None, {given.name: images()[n : n + 1]})[0] for n in range(20)])
    assert np.allclose(answers, by_hand(matrix), atol=1e-4)
