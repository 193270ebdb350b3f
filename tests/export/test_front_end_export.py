"""Exported networks for sound: the front end is in every file, stays in float, and takes hardly any room."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.bench.worker import DEFAULTS, make_session
from edgekd.card import Card
from edgekd.errors import InputError
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.export.quantize import quantize, quantize_weights
from edgekd.export.teacher import export_teacher
from edgekd.export.untrained import export_untrained
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.families import make
from edgekd.nets.teachers import load_teacher_file
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card

CARD, TARGET = load_card("speech-commands"), load_target("cpu-x86")


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return make(CARD, CARD.student, {"channels": [8, 16]}, "student.knobs").eval()


@pytest.fixture(scope="module")
def samples() -> NDArray[np.int16]:
    loud = np.array([1.0, 0.1, 0.01, 0.001])[:, None]
    return np.asarray(noise_inputs(CARD.data, 4).numpy() * loud, np.int16)


@pytest.fixture(scope="module")
def fp32(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    export(net, CARD, TARGET, path, {})
    return path


def answers(path: Path, samples: NDArray[Any]) -> NDArray[np.float32]:
    exact = {**DEFAULTS, "precise_int8": True}  # 8-bit products saturate without VNNI
    session = make_session(onnxruntime, exact, str(path))
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("samples", ["batch", 16_000])
    found: NDArray[np.float32] = session.run(None, {"samples": samples})[0]
    return found


def test_fp32_answers_as_torch_does(net: torch.nn.Module, samples: NDArray[np.int16], fp32: Path) -> None:
    with torch.no_grad():
        expected = Deployed(net, CARD.data)(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(answers(fp32, samples), expected, atol=1e-4 * np.abs(expected).max())
    described = {entry.key: entry.value for entry in onnx.load(fp32).metadata_props}
    assert described["input"] == "int16 (batch, 16000), mono samples at 16000 Hz"
    assert described["features"] == "40 log-mel energies, 49 frames of 30 ms every 20 ms, in the graph"


def test_int8_has_the_formulas_and_close_answers(samples: NDArray[np.int16], fp32: Path, tmp_path: Path) -> None:
    make_variant(fp32, "int8", TARGET, np.repeat(samples, 8, axis=0), tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Range") == 3 and kinds.index("Log") < kinds.index("QuantizeLinear")
    assert (tmp_path / "int8.onnx").stat().st_size < 6_500  # 1,500 weights; the matrices would take 470 kB
    float_, int8 = answers(fp32, samples), answers(tmp_path / "int8.onnx", samples)
    assert np.abs(float_ - int8).max() < 0.1 * np.abs(float_).max()
    assert {entry.key for entry in model.metadata_props} == {entry.key for entry in onnx.load(fp32).metadata_props}


def test_weights_alone_leave_the_front_end_to_its_formulas(
    samples: NDArray[np.int16], fp32: Path, tmp_path: Path
) -> None:
    scheme = Quantization(activation="float")
    quantize_weights(fp32, tmp_path / "by_weights.onnx", scheme)
    quantize(fp32, tmp_path / "w8.onnx", scheme, samples)
    for name in ("by_weights.onnx", "w8.onnx"):
        model = onnx.load(tmp_path / name)
        stored = [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
        assert stored and not [one for one in stored if one.startswith("edgekd_front_")]
        assert [node.op_type for node in model.graph.node].count("Range") == 3
        assert (tmp_path / name).stat().st_size < 9_000  # the matrices would take 120 kB even in 8 bits
        float_, w8 = answers(fp32, samples), answers(tmp_path / name, samples)
        assert np.abs(float_ - w8).max() < 0.02 * np.abs(float_).max()


def test_fp16_keeps_the_front_end_in_float(samples: NDArray[np.int16], fp32: Path, tmp_path: Path) -> None:
    make_variant(fp32, "fp16", TARGET, None, tmp_path / "fp16.onnx")
    model = onnx.load(tmp_path / "fp16.onnx")
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    float_, half = answers(fp32, samples), answers(tmp_path / "fp16.onnx", samples)
    assert 0 < np.abs(float_ - half).max() < 0.01 * np.abs(float_).max()


@pytest.mark.parametrize(("family", "fast"), [("keyword-cnn", True), ("ds-cnn", True), ("bc-resnet", False)])
def test_untrained_networks_are_exported_fast(
    family: str, fast: bool, samples: NDArray[np.int16], tmp_path: Path
) -> None:
    card = dataclasses.replace(CARD, student=dataclasses.replace(CARD.student, family=family, knobs={}))
    net = make(card, card.student, {}, "student.knobs").eval()
    assert export_untrained(net, card, TARGET, samples, tmp_path / "net.onnx") in (fast, True)
    assert answers(tmp_path / "net.onnx", samples).shape == (4, 12)


@pytest.mark.parametrize("fast", [True, False])
def test_a_target_of_fixed_shapes_takes_one_clip(
    net: torch.nn.Module, samples: NDArray[np.int16], fp32: Path, tmp_path: Path, fast: bool
) -> None:
    fixed, path = dataclasses.replace(TARGET, fixed_shapes=True), tmp_path / "fixed.onnx"
    if fast:
        assert export_untrained(net, CARD, fixed, samples, path)
    else:
        export(net, CARD, fixed, path, {})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 16_000] and session.get_outputs()[0].shape == [1, 12]
    (found,) = session.run(None, {"samples": samples[1:2]})
    np.testing.assert_allclose(found, answers(fp32, samples)[1:2], rtol=1e-3, atol=1e-4)


def with_onnx_teacher(card: Card) -> Card:
    teacher = dataclasses.replace(card.teacher, family="onnx", shape={})
    return dataclasses.replace(card, teacher=teacher, augment=Augment())


def test_an_onnx_teacher_takes_samples_or_features(
    net: torch.nn.Module, samples: NDArray[np.int16], fp32: Path, tmp_path: Path
) -> None:
    card, features = with_onnx_teacher(CARD), tmp_path / "features.onnx"
    program = torch.onnx.export(
        net, (torch.zeros(2, 1, 40, 49),), dynamo=True, verbose=False, input_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert program is not None
    program.save(features)
    expected = answers(fp32, samples)
    for number, file in enumerate((fp32, features)):
        teacher = load_teacher_file(card, file)
        with torch.no_grad():
            given = teacher.module(torch.from_numpy(samples)).numpy()
        np.testing.assert_allclose(given, expected, atol=1e-3)
        export_teacher(teacher, card, TARGET, tmp_path / f"{number}.onnx")
        np.testing.assert_allclose(answers(tmp_path / f"{number}.onnx", samples), expected, atol=1e-3)
    with pytest.raises(InputError, match=r"takes samples, and augment\.time_mask and .+ mask features; drop both"):
        load_teacher_file(dataclasses.replace(card, augment=Augment(time_mask=4)), fp32)
    floats = dataclasses.replace(card, data=dataclasses.replace(card.data, input="float32"))
    with pytest.raises(InputError, match=r"net\.onnx: takes samples tensor\(int16\) .+; one input, .+ is needed"):
        load_teacher_file(floats, fp32)
