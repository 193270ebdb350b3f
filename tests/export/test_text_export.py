"""Networks for text as ONNX: any length and padding, the same logits as torch, 8-bit weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from edgekd.card import Card, Student, TextData
from edgekd.errors import InputError
from edgekd.export.onnx import cpu_logits, export, parity, save_model
from edgekd.export.precisions import make_variant
from edgekd.export.teacher import export_teacher
from edgekd.export.variants import precision_of
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file
from edgekd.nets.weights import save_state
from edgekd.target import load_target
from edgekd.tasks.known import load_card
from edgekd.tasks.text_classification import TEXT_CLASSIFICATION

V = 300
TARGET = load_target("cpu-x86-avx2")
SHAPES: dict[str, dict[str, Any]] = {
    "bag-of-words": {"embedding": 16, "hidden": 8},
    "text-cnn": {"embedding": 16, "filters": 8, "kernels": [2, 3]},
    "lstm": {"embedding": 16, "hidden": 8},
    "transformer": {"width": 16, "layers": 1, "heads": 2},
}
LINEAR = {"bag-of-words": 2, "text-cnn": 3, "lstm": 1, "transformer": 5}
"""Layers nn.Linear; each is one product in 8 bits."""


def text_card() -> Card:
    base = load_card("sst2")
    assert isinstance(base.data, TextData)
    return dataclasses.replace(base, data=dataclasses.replace(base.data, vocabulary=V, timed_length=5))


CARD = text_card()


def network(family: str) -> nn.Module:
    torch.manual_seed(0)
    return make(CARD, Student(family=family), SHAPES[family], "student.knobs").eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def exported(folder: Path, family: str) -> Path:
    """The network as ONNX; an export takes seconds, so each is made once."""
    path = folder / f"{family}.onnx"
    if not path.exists():
        export(network(family), CARD, TARGET, path, {"trained": "no"})
    return path


def quantized(folder: Path, family: str) -> Path:
    path = folder / f"{family}-int8.onnx"
    if not path.exists():
        make_variant(exported(folder, family), "int8", TARGET, None, path)
    return path


def ids(rows: int, length: int) -> NDArray[np.int32]:
    return np.random.default_rng(length).integers(1, V, (rows, length)).astype(np.int32)


def run(path: Path, inputs: NDArray[np.int32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"ids": inputs})[0])


@pytest.mark.parametrize("family", SHAPES)
def test_it_takes_sentences_of_any_number_and_length(folder: Path, family: str) -> None:
    model = onnx.load(exported(folder, family))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(exported(folder, family), providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("ids", "tensor(int32)", ["batch", "length"])
    assert (taken.name, taken.shape) == ("logits", ["batch", 2])
    net = network(family)
    for rows, length in ((1, 1), (1, 5), (3, 2), (2, 64)):
        inputs = ids(rows, length)
        with torch.no_grad():
            expected = net(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(run(exported(folder, family), inputs), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", SHAPES)
def test_padding_and_neighbours_change_nothing(folder: Path, family: str) -> None:
    whole = ids(4, 30)
    for row, length in enumerate((30, 1, 8, 17)):
        whole[row, length:] = 0
    together = run(exported(folder, family), whole)
    alone = np.concatenate([run(exported(folder, family), row[None, : int((row != 0).sum())]) for row in whole])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(cpu_logits(exported(folder, family), TEXT_CLASSIFICATION, whole), alone)
    assert parity(network(family), CARD, whole, alone).relative < 1e-4


@pytest.mark.parametrize("family", SHAPES)
def test_int8_has_a_quarter_of_the_bytes_and_nearly_the_logits(folder: Path, family: str) -> None:
    fp32, int8 = exported(folder, family), quantized(folder, family)
    assert (precision_of(fp32), precision_of(int8)) == ("fp32", "int8")
    kinds = [node.op_type for node in onnx.load(int8).graph.node]
    assert kinds.count("MatMulInteger") == LINEAR[family]
    assert kinds.count("DynamicQuantizeLSTM") == (2 if family == "lstm" else 0)
    assert "LSTM" not in kinds
    tables = [t for t in onnx.load(int8).graph.initializer if list(t.dims) == [V, 16]]
    assert [t.data_type in (TensorProto.INT8, TensorProto.UINT8) for t in tables] == [True]
    inputs = [ids(1, length) for length in range(1, 40)]
    exact = np.concatenate([run(fp32, one) for one in inputs])
    rough = np.concatenate([run(int8, one) for one in inputs])
    difference = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 0 < difference < 0.05  # 7-bit weights: steps of 1/64 of the largest one


def test_the_file_says_how_it_is_fed(folder: Path) -> None:
    for path in (exported(folder, "lstm"), quantized(folder, "lstm")):
        found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(found["labels"]) == ["negative", "positive"]
        assert found["input"] == "int32 (batch, length), token ids of tokenizer.json, at most 64, padded with 0"
        assert (found["padding"], found["sequence_length"]) == ("0", "5")
        assert "normalization" not in found


def test_a_teacher_from_weights_or_onnx_gives_the_same(folder: Path, tmp_path: Path) -> None:
    card = dataclasses.replace(CARD, teacher=dataclasses.replace(CARD.teacher, shape=SHAPES["lstm"]))
    save_state(network("lstm"), tmp_path / "teacher.safetensors", {})
    inputs = ids(3, 11)
    expected = run(exported(folder, "lstm"), inputs)
    plain = load_teacher_file(card, tmp_path / "teacher.safetensors")
    with torch.no_grad():
        np.testing.assert_allclose(plain.module(torch.from_numpy(inputs)).numpy(), expected, rtol=1e-4, atol=1e-6)
    model = onnx.load(exported(folder, "lstm"))
    cast = onnx.helper.make_node("Cast", ["wide"], ["ids"], to=TensorProto.INT32)
    model.graph.node.insert(0, cast)
    model.graph.input[0].name, model.graph.input[0].type.tensor_type.elem_type = "wide", TensorProto.INT64
    save_model(model, tmp_path / "wide.onnx")  # int64 ids, as most models for text take
    wide = load_teacher_file(card, tmp_path / "wide.onnx")
    np.testing.assert_allclose(wide.module(torch.from_numpy(inputs)).numpy(), expected, rtol=1e-6)
    export_teacher(wide, card, TARGET, tmp_path / "narrow.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "narrow.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(int32)"
    np.testing.assert_allclose(session.run(None, {"wide": inputs})[0], expected, rtol=1e-6)
    assert isinstance(wide, LoadedTeacher)


def test_a_teacher_for_images_is_refused(tmp_path: Path) -> None:
    digits = load_card("digits")
    torch.manual_seed(0)
    export(make(digits, Student(family="mlp"), {"hidden": [4]}, "x"), digits, TARGET, tmp_path / "image.onnx", {})
    with pytest.raises(InputError, match=r"takes image tensor\(uint8\) .+; one input, int32 or int64 token ids .+$"):
        load_teacher_file(CARD, tmp_path / "image.onnx")
