"""The file of a network that was trained for int8: ONNX Runtime fuses all of it and gives the answers of torch."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from edgekd.card import Student
from edgekd.export.onnx import export
from edgekd.export.pixels import normalize_rows
from edgekd.nets.deployed import Deployed, noise_inputs
from edgekd.nets.fakequant import calibrated, deployable, fake_quantized
from edgekd.nets.families import make
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card

CARD = load_card("digits")
WIDE = dataclasses.replace(
    CARD, data=dataclasses.replace(CARD.data, size=16, channels=3, mean=(0.4,) * 3, std=(0.3,) * 3)
)
TARGET = load_target("cpu-x86")
PREPROCESSING = {"Transpose", "Cast", "Mul", "Add", "QuantizeLinear"}
FUSED = {
    "QLinearConv", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat",
    "NhwcMaxPool", "MaxPool", "Reshape", "Slice", "Pad", "Transpose",
}  # fmt: skip


def made(card: Any, family: str, shape: dict[str, Any], scheme: Quantization, folder: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    net = make(card, Student(family=family), shape, "student.knobs").eval()
    whole = Deployed(fake_quantized(net, card.data, scheme), card.data)
    calibrated(whole, iter([noise_inputs(card.data, 32)]))
    file = folder / "int8.onnx"
    export(deployable(whole.net), card, TARGET, file, {})  # type: ignore[arg-type]
    return whole.eval(), file


def run(file: Path, images: torch.Tensor, level: Any) -> tuple[np.ndarray, Counter[str]]:
    """The answers for `images`, and the nodes of the graph that ONNX Runtime runs."""
    options, path = onnxruntime.SessionOptions(), file.with_name("optimised.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"image": images.numpy()})
    return answers, Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("family", "shape", "kernels"),
    [
        ("mlp", {"hidden": [16]}, {"QGemm": 2}),
        ("convnet", {"channels": [8, 16], "hidden": 16}, {"QLinearConv": 2, "QGemm": 2}),
        ("cifar-resnet", {"depth": 8, "width": 8}, {"QLinearConv": 7, "QLinearAdd": 3, "QGemm": 1}),
        ("mobilenet-v2", {"width": 0.1}, {"QLinearConv": 52, "QGemm": 1}),
    ],
)
def test_everything_is_fused(family: str, shape: dict[str, Any], kernels: dict[str, int], tmp_path: Path) -> None:
    _, file = made(WIDE, family, shape, Quantization(), tmp_path)
    images = noise_inputs(WIDE.data, 64)
    _, nodes = run(file, images, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert nodes.keys() <= FUSED | PREPROCESSING
    assert "DequantizeLinear" not in nodes and nodes["QuantizeLinear"] == 1  # that of the image
    assert kernels.items() <= nodes.items()


@pytest.mark.parametrize("scheme", [Quantization(), Quantization(activation="int8", symmetric_activation=True)])
@pytest.mark.parametrize(
    ("family", "shape"),
    [("convnet", {"channels": [8, 16], "hidden": 16}), ("cifar-resnet", {"depth": 8, "width": 8})],
)
def test_the_file_answers_as_torch_does(
    family: str, shape: dict[str, Any], scheme: Quantization, tmp_path: Path
) -> None:
    """Without graph optimisation, so that no CPU's int8 kernels take part: the file itself says the same."""
    whole, file = made(WIDE, family, shape, scheme, tmp_path)
    images = noise_inputs(WIDE.data, 64)
    answers, _ = run(file, images, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    with torch.no_grad():
        expected = whole(images).numpy()
    assert np.mean(answers.argmax(1) == expected.argmax(1)) >= 0.98  # of 64 answers of an untrained network
    assert np.abs(answers - expected).max() <= 0.05 * np.abs(expected).max()


def test_images_normalized_by_rows_give_the_same_answers(tmp_path: Path) -> None:
    _, file = made(WIDE, "cifar-resnet", {"depth": 8, "width": 8}, Quantization(), tmp_path)
    images, level = noise_inputs(WIDE.data, 64), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    before, kernels = run(file, images, level)
    model = onnx.load(file)
    normalize_rows(model)
    onnx.save(model, file)
    after, now = run(file, images, level)
    assert np.array_equal(before, after)
    assert now["Reshape"] == kernels["Reshape"] + 2 and now["QLinearConv"] == kernels["QLinearConv"]


def test_weights_are_stored_as_int8_and_biases_as_int32(tmp_path: Path) -> None:
    _, file = made(CARD, "mlp", {"hidden": [16]}, Quantization(), tmp_path)
    kept = [(list(one.dims), one.data_type, numpy_helper.to_array(one)) for one in onnx.load(file).graph.initializer]
    assert [kind for dims, kind, _ in kept if dims == [16, 64]] == [TensorProto.INT8]
    biases = [dims for dims, kind, values in kept if kind == TensorProto.INT32 and values.any()]
    assert sorted(biases) == [[10], [16]]
    stored = sum(len(one.raw_data) for one in onnx.load(file).graph.initializer)
    assert stored < 2_000  # 1,184 weights; in fp32 they alone take 4,736 bytes
