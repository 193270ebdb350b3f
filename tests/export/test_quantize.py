"""int8 as the target says it, read from the file's own tensors; fp16; and that both still answer right."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgekd.augmentation import Augment
from edgekd.card import Student, Training
from edgekd.data.images import Split
from edgekd.data.sources import load_test, load_train_and_validation
from edgekd.distill.loop import TrainingJob, train
from edgekd.distill.objective import plain
from edgekd.distill.tasks.classification import accuracy as accuracy_of_net
from edgekd.distill.tasks.known import examples_of
from edgekd.distill.terms.losses import cross_entropy
from edgekd.errors import ModelError
from edgekd.export.onnx import export
from edgekd.export.precisions import make_variant
from edgekd.export.quantize import quantize
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.target import Quantization, load_target
from edgekd.tasks.known import load_card

CARD = load_card("digits")
TARGET = load_target("cpu-x86")
CHANNELS = [8, 16]


@dataclasses.dataclass(frozen=True)
class Made:
    """A trained network's fp32 file, images to calibrate on, and images to test it on."""

    fp32: Path
    calibration: NDArray[np.uint8]
    test: NDArray[np.uint8]
    labels: NDArray[np.int64]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("quantize")
    train_split, validation = load_train_and_validation(CARD, None)
    plainly = dataclasses.replace(CARD, augment=Augment())
    training = Training(epochs=4, batch_size=32, learning_rate=0.05)
    torch.manual_seed(0)
    net = make(CARD, Student(family="convnet"), {"channels": CHANNELS, "hidden": 32, "grid": 4}, "student.knobs")
    job = TrainingJob(
        name="student",
        train=examples_of(plainly, train_split.subset(np.arange(600))),
        validation=examples_of(CARD, validation),
        training=training,
        score=accuracy_of_net,
        objective=plain(training, cross_entropy),
        checkpoint=folder / "checkpoint.pt",
    )
    train(Deployed(net, CARD.data), job)
    export(net, CARD, TARGET, folder / "fp32.onnx", {"trained": "here"})
    test: Split = load_test(CARD, None)
    everything = np.arange(len(test))
    return Made(folder / "fp32.onnx", train_split.read(np.arange(128)), test.read(everything), test.labels)


def run(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def accuracy(path: Path, made: Made) -> float:
    return float((run(path, made.test).argmax(1) == made.labels).mean())


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def weights(model: onnx.ModelProto) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Quantised weight and scale of every convolution and layer, in the order of the network."""
    known = arrays(model)
    behind = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    sources = [behind[node.input[1]] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [(known[node.input[0]], known[node.input[1]]) for node in sources]


def activation_types(model: onnx.ModelProto) -> set[np.dtype[np.generic]]:
    known = arrays(model)
    return {known[node.input[2]].dtype for node in model.graph.node if node.op_type == "QuantizeLinear"}


@pytest.fixture(scope="module")
def default(made: Made) -> Path:
    path = made.fp32.with_name("default.onnx")
    quantize(made.fp32, path, Quantization(), made.calibration)
    return path


def test_it_is_qdq_with_unsigned_activations_and_signed_weights_per_channel(default: Path) -> None:
    model = onnx.load(default)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") >= 4
    assert kinds.count("DequantizeLinear") > kinds.count("QuantizeLinear")
    assert kinds.count("Conv") == 2
    assert activation_types(model) == {np.dtype(np.uint8)}
    found = weights(model)
    # Two convolutions and two layers; one scale for each output.
    assert [weight.size for weight, _ in found] == [8 * 9, 16 * 8 * 9, 16 * 16 * 32, 32 * 10]
    assert {weight.dtype for weight, _ in found} == {np.dtype(np.int8)}
    assert [scale.size for _, scale in found] == [8, 16, 32, 10]
    assert max(np.abs(weight.astype(int)).max() for weight, _ in found) == 127


def test_its_weights_are_those_of_the_fp32_file(default: Path, made: Made) -> None:
    source = onnx.load(made.fp32)
    known = arrays(source)
    originals = [known[node.input[1]] for node in source.graph.node if node.op_type in ("Conv", "Gemm")]
    quantized = weights(onnx.load(default))
    assert len(originals) == len(quantized) == 4
    for original, (weight, scale) in zip(originals, quantized, strict=True):
        flat = original.reshape(len(original), -1).astype(np.float64)
        # Symmetric: the largest weight of each output becomes ±127, every other is rounded to the nearest step.
        assert np.allclose(scale, np.abs(flat).max(axis=1) / 127, rtol=1e-5)
        restored = weight.reshape(len(original), -1) * scale[:, None].astype(np.float64)
        assert np.all(np.abs(restored - flat) <= 0.501 * scale[:, None])


def test_its_metadata_is_kept(default: Path, made: Made) -> None:
    def told(path: Path) -> dict[str, str]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)

    assert told(default) == told(made.fp32)
    assert told(default)["trained"] == "here"


def test_it_is_as_accurate_and_smaller(default: Path, made: Made) -> None:
    expected = accuracy(made.fp32, made)
    assert expected > 0.85
    assert accuracy(default, made) == pytest.approx(expected, abs=0.015)
    assert default.stat().st_size < 0.6 * made.fp32.stat().st_size
    difference = np.abs(run(default, made.test) - run(made.fp32, made.test)).max()
    assert 0 < difference < 0.2 * np.abs(run(made.fp32, made.test)).max()


def test_it_takes_bytes_and_any_number_of_images(default: Path, made: Made) -> None:
    session = onnxruntime.InferenceSession(default, providers=["CPUExecutionProvider"])
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape) == ("tensor(uint8)", ["batch", 8, 8, 1])
    assert np.allclose(run(default, made.test[:1]), run(default, made.test[:7])[:1], atol=1e-5)


def test_reduced_range_keeps_weights_to_seven_bits(default: Path, made: Made, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize(made.fp32, path, Quantization(reduce_range=True), made.calibration)
    largest = max(np.abs(weight.astype(int)).max() for weight, _ in weights(onnx.load(path)))
    assert 32 < largest <= 64
    assert accuracy(path, made) == pytest.approx(accuracy(made.fp32, made), abs=0.03)


def test_one_scale_for_a_whole_tensor(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize(made.fp32, path, Quantization(per_channel=False), made.calibration)
    found = weights(onnx.load(path))
    assert len(found) == 4
    assert {scale.size for _, scale in found} == {1}


def test_signed_and_symmetric_activations(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    scheme = Quantization(activation="int8", symmetric_activation=True)
    quantize(made.fp32, path, scheme, made.calibration)
    model = onnx.load(path)
    assert activation_types(model) == {np.dtype(np.int8)}
    known = arrays(model)
    points = [known[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all((point == 0).all() for point in points)
    assert accuracy(path, made) == pytest.approx(accuracy(made.fp32, made), abs=0.03)


def test_unsigned_weights(made: Made, tmp_path: Path) -> None:
    quantize(made.fp32, tmp_path / "int8.onnx", Quantization(weight="uint8"), made.calibration)
    found = weights(onnx.load(tmp_path / "int8.onnx"))
    assert {weight.dtype for weight, _ in found} == {np.dtype(np.uint8)}
    assert accuracy(tmp_path / "int8.onnx", made) == pytest.approx(accuracy(made.fp32, made), abs=0.03)


def activation_scales(path: Path) -> dict[str, float]:
    model = onnx.load(path)
    known = arrays(model)
    return {n.input[1]: float(known[n.input[1]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}


def test_percentile_cuts_the_ranges(
    default: Path, made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(made.fp32, tmp_path / "int8.onnx", Quantization(calibration="percentile"), made.calibration)
    assert capfd.readouterr() == ("", "")
    whole, cut = activation_scales(default), activation_scales(tmp_path / "int8.onnx")
    assert whole.keys() == cut.keys()
    # 99.999 % of few images is nearly everything: the ranges shrink a little, and none grows.
    assert any(cut[name] < whole[name] for name in whole)
    assert all(cut[name] <= whole[name] * 1.001 for name in whole)
    assert accuracy(tmp_path / "int8.onnx", made) > accuracy(made.fp32, made) - 0.1


def test_entropy_calibration_runs(made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # ONNX Runtime counts in as many bins as it then quantises to, so that entropy seldom differs from minmax.
    quantize(made.fp32, tmp_path / "int8.onnx", Quantization(calibration="entropy"), made.calibration)
    assert capfd.readouterr() == ("", "")
    assert accuracy(tmp_path / "int8.onnx", made) == pytest.approx(accuracy(made.fp32, made), abs=0.03)


def test_a_file_that_cannot_be_quantised_is_told(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(made.fp32)
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=rf"^{tmp_path / 'odd.onnx'}: ONNX Runtime cannot quantise it: .+") as caught:
        quantize(tmp_path / "odd.onnx", tmp_path / "int8.onnx", Quantization(), made.calibration)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


# --- variants ---


def test_variants_follow_the_target(made: Made, default: Path, tmp_path: Path) -> None:
    make_variant(made.fp32, "int8", TARGET, made.calibration, tmp_path / "int8.onnx")
    to_try: dict[str, Any] = dict.fromkeys(("schemes", "calibrations", "forms", "corrections"), ())
    assert dataclasses.replace(TARGET.quantization, **to_try) == Quantization(normalize_rows=True)
    assert (tmp_path / "int8.onnx").read_bytes() == default.read_bytes()
    make_variant(made.fp32, "fp32", TARGET, made.calibration, tmp_path / "fp32.onnx")
    assert (tmp_path / "fp32.onnx").read_bytes() == made.fp32.read_bytes()


def test_fp16_takes_bytes_and_answers_in_fp32(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "fp16.onnx"
    make_variant(made.fp32, "fp16", TARGET, made.calibration, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_outputs()[0].type == "tensor(float)"
    assert session.get_modelmeta().custom_metadata_map["trained"] == "here"
    model = onnx.load(path)
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 8]
    assert len(large) >= 4
    assert {tensor.data_type for tensor in large} - {TensorProto.INT64} == {TensorProto.FLOAT16}
    expected = run(made.fp32, made.test)
    assert np.abs(run(path, made.test) - expected).max() < 1e-2 * np.abs(expected).max()
    assert path.stat().st_size < 0.65 * made.fp32.stat().st_size
