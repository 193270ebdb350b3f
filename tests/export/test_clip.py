"""Weights with one scale are clipped where a few large ones, which change nothing, would round all others to 0."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from edgekd.errors import ModelError
from edgekd.export.clip import clip_weights
from edgekd.export.quantize import prepare, quantize_prepared
from edgekd.target import Quantization

PER_TENSOR = Quantization(per_channel=False)
DEAD, HUGE = 3, 80.0


def network(path: Path) -> ModelProto:
    """Two convolutions and a matrix product. Channel DEAD of the first gives zeros, and the weights of the others that
    read it are huge: the folded batch normalisation of a dead channel."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return np.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    first, deep, last = normal(8, 4, 3, 3), normal(8, 1, 3, 3), normal(5, 8)
    first[DEAD] = 0
    deep[DEAD] = HUGE
    last[:, DEAD] = HUGE
    text = """<ir_version: 9, opset_import: ["" : 20]>
        agraph (float[n, 4, 6, 6] x) => (float[n, 5] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, first)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1], group = 8>(b, deep)
            d = Relu(c)
            e = GlobalAveragePool(d)
            f = Flatten(e)
            y = Gemm<transB = 1>(f, last, bias)
        }"""
    model = onnx.parser.parse_model(text)
    made = {"first": first, "deep": deep, "last": last, "bias": normal(5, 1)[:, 0]}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in made.items())
    onnx.save(model, path)
    return model


def examples() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(96, 4, 6, 6)).astype(np.float32)


def weights(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def answers(model: ModelProto | Path) -> NDArray[np.float32]:
    source = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": examples()})[0])


def test_weights_that_multiply_zeros_do_not_count(tmp_path: Path) -> None:
    model = network(tmp_path / "fp32.onnx")
    before, expected = weights(model), answers(model)
    assert clip_weights(model, PER_TENSOR, [{"x": examples()}]) == 2
    found = weights(model)
    for name in ("deep", "last"):
        others = np.delete(before[name], DEAD, axis=0 if name == "deep" else 1)
        assert 0.8 * np.abs(others).max() < np.abs(found[name]).max() < 1.3 * np.abs(others).max()
    np.testing.assert_array_equal(found["first"], before["first"])
    np.testing.assert_allclose(answers(model), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("scheme", "top"),
    [
        (PER_TENSOR, 127),
        (dataclasses.replace(PER_TENSOR, reduce_range=True), 64),
        (dataclasses.replace(PER_TENSOR, weight="uint8"), None),
    ],
)
def test_the_bound_has_the_smallest_error_of_all(scheme: Quantization, top: int | None) -> None:
    """Against a search of a thousand bounds for one convolution, whose inputs differ in power."""
    rng = np.random.default_rng(2)
    weight = (rng.standard_t(2, (6, 4, 1, 1)) / 10).astype(np.float32)
    strength = np.array([1, 0.5, 2, 0.1], np.float32).reshape(1, 4, 1, 1)
    x = rng.normal(size=(64, 4, 2, 2)).astype(np.float32) * strength
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, 2, 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    clip_weights(model, scheme, [{"x": x[:32]}, {"x": x[32:]}])
    power = np.square(x).mean(axis=(0, 2, 3)).reshape(1, 4, 1, 1)

    def error(bound: float) -> float:
        clipped = np.clip(weight, -bound, bound)
        if top is None:
            levels = np.linspace(clipped.min(), clipped.max(), 256)
            levels -= levels[np.abs(levels).argmin()]  # 0 is one of the levels
        else:
            levels = np.linspace(-bound, bound, 2 * top + 1)
        rounded = levels[np.abs(clipped[..., None] - levels).argmin(-1)]
        return float((power * np.square(rounded - weight)).sum())

    bound = float(np.abs(weights(model)["w"]).max())
    largest = float(np.abs(weight).max())
    least = min(error(largest * step) for step in np.linspace(0.001, 1, 1_000))
    assert error(bound) <= 1.6 * least  # bounds 10 % apart are tried
    assert error(bound) <= error(largest)


def test_what_stays_in_float_or_is_read_twice_stays(tmp_path: Path) -> None:
    model = network(tmp_path / "fp32.onnx")
    for node in model.graph.node:
        node.name = node.output[0]
    before = weights(model)
    assert clip_weights(model, PER_TENSOR, [{"x": examples()}], in_float=["y"]) == 1
    np.testing.assert_array_equal(weights(model)["last"], before["last"])
    model = network(tmp_path / "fp32.onnx")
    model.graph.node.append(helper.make_node("Identity", ["deep"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    assert clip_weights(model, PER_TENSOR, [{"x": examples()}]) == 1
    np.testing.assert_array_equal(weights(model)["deep"], before["deep"])


def error_of(folder: Path, scheme: Quantization, in_float: tuple[str, ...] = ()) -> float:
    file = folder / "int8.onnx"
    quantize_prepared(folder / "prepared.onnx", file, scheme, examples()[:64], folder / "fp32.onnx", in_float)
    expected = answers(folder / "fp32.onnx")
    return float(np.square(answers(file) - expected).mean() / np.square(expected - expected.mean(0)).mean())


def test_it_saves_int8_with_one_scale(tmp_path: Path) -> None:
    network(tmp_path / "fp32.onnx")
    prepare(tmp_path / "fp32.onnx", tmp_path / "prepared.onnx")
    for scheme in (PER_TENSOR, dataclasses.replace(PER_TENSOR, weight="uint8")):
        plain, clipped = (error_of(tmp_path, dataclasses.replace(scheme, clip_weights=clip)) for clip in (False, True))
        assert plain > 0.5 and clipped < 0.02
    every = dataclasses.replace(PER_TENSOR, equalize=True, clip_weights=True, correct_bias=True)
    assert error_of(tmp_path, every) < 0.02


def test_layers_in_float_are_not_clipped(tmp_path: Path) -> None:
    network(tmp_path / "fp32.onnx")
    prepare(tmp_path / "fp32.onnx", tmp_path / "prepared.onnx")
    graph = onnx.load(tmp_path / "prepared.onnx").graph
    last = next(node.name for node in graph.node if node.op_type == "Gemm")
    scheme = dataclasses.replace(PER_TENSOR, clip_weights=True)
    error_of(tmp_path, scheme)
    error_of(tmp_path, scheme, (last,))
    kept = [t for t in onnx.load(tmp_path / "int8.onnx").graph.initializer if tuple(t.dims) == (5, 8)]
    assert [float(numpy_helper.to_array(t).max()) for t in kept] == [HUGE]


def test_one_scale_for_each_channel_is_refused() -> None:
    told = "clip_weights, and clip among the corrections, need per_channel = false"
    with pytest.raises(ValueError, match=told):
        Quantization(clip_weights=True)
    with pytest.raises(ValueError, match=told):
        Quantization(corrections=("clip",))


def test_an_unreadable_model_is_told(tmp_path: Path) -> None:
    network(tmp_path / "fp32.onnx")
    prepare(tmp_path / "fp32.onnx", tmp_path / "prepared.onnx")
    scheme = dataclasses.replace(PER_TENSOR, clip_weights=True)
    wrong = {"z": examples()}
    with pytest.raises(ModelError, match=r"fp32\.onnx: ONNX Runtime cannot quantise it"):
        quantize_prepared(tmp_path / "prepared.onnx", tmp_path / "int8.onnx", scheme, wrong, tmp_path / "fp32.onnx")
