"""The int8 scheme is chosen by what a device gives: here one that answers as a CPU with or without VNNI does, and whose
times are made up."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgekd.bench.records import Plan, Record
from edgekd.bench.worker import DEFAULTS, make_session
from edgekd.budget import Budget
from edgekd.devices.device import OnProgress, Site
from edgekd.errors import InputError, ModelError
from edgekd.files import file_sha256, listening
from edgekd.machine import Machine
from edgekd.search.int8 import follow, score_floor, settle_int8
from edgekd.search.layers import sensitivity, sqnr_db
from edgekd.search.material import Material
from edgekd.search.schemes import choose_scheme, scheme_words
from edgekd.target import Quantization, Target, load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION

VNNI = Machine("x86_64", "a server", frozenset({"avx2", "avx512_vnni"}), "")
AVX2 = Machine("x86_64", "an old PC", frozenset({"avx2"}), "")
CLASSES, COUNT = 4, 400
TRIED = Quantization(schemes=("u8s8", "u8s8-7bit", "s8s8", "u8u8"), forms=("qoperator",))


# --- a network, its data, and how x86 computes it ---


def network(path: Path, x: NDArray[np.float32], labels: NDArray[np.int64], rng: np.random.Generator) -> None:
    """Convolution, ReLU, convolution, ReLU, pooling and a layer, which is fitted to the labels of x (n, 4, 6, 6).

    The convolutions' weights are positive and the data bright, so that sums are large and saturate.
    """
    own = [np.arange(8)[:, None] % CLASSES == np.arange(inputs)[None] % CLASSES for inputs in (4, 8)]
    shape = [rng.uniform(0.5, 1, (8, inputs, 3, 3)) for inputs in (4, 8)]
    weights = {
        "first.weight": (shape[0] * (0.15 + own[0][:, :, None, None])).astype(np.float32),
        "second.weight": (shape[1] * (0.15 + own[1][:, :, None, None])).astype(np.float32),
        "head.weight": np.zeros((CLASSES, 8), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["c1"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "second.weight"], ["c2"], name="c2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="r2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "head.weight"], ["y"], name="g", transB=1),
    ]

    def save(nodes: list[onnx.NodeProto], output: str, width: int) -> None:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        made.metadata_props.add(key="trained", value="here")
        onnx.save(made, path)

    save(nodes[:-1], "f", 8)
    features = exactly(path, x)
    weights["head.weight"] = np.linalg.lstsq(features, np.eye(CLASSES)[labels] - 0.25)[0].T.astype(np.float32)
    save(nodes, "y", CLASSES)


def examples(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Bright images (n, 4, 6, 6), in which the channel of the label is brighter than the others."""
    labels = rng.integers(0, CLASSES, count)
    x = rng.uniform(0.5, 1.5, (count, CLASSES, 6, 6)) * (1 + 1.2 * np.eye(CLASSES)[labels])[:, :, None, None]
    return x.astype(np.float32), labels.astype(np.int64)


def saturating(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int64]:
    """uint8 (m, k) times int8 (k, n) as VPMADDUBSW adds it: pairs of products in 16 bits, which saturate."""
    odd = left.shape[1] % 2
    left, right = np.pad(left, ((0, 0), (0, odd))), np.pad(right, ((0, odd), (0, 0)))
    first, second = (left[:, n::2, None].astype(np.int64) * right[None, n::2] for n in (0, 1))
    return np.asarray(np.clip(first + second, -32768, 32767).sum(axis=1), np.int64)


def patches(x: NDArray[Any], size: int, fill: int) -> NDArray[Any]:
    """The windows (n·h·w, size·size·c) of x (n, c, h, w), the channels last, as the kernels read them."""
    padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    return windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, size * size * x.shape[1])


def without_vnni(file: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The answers of a QDQ file of the network above on an x86 CPU without VNNI."""
    model = onnx.load(file)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sources = {node.output[0]: node for node in model.graph.node}
    values: dict[str, NDArray[Any]] = {model.graph.input[0].name: x}
    for node in model.graph.node:
        pairs = [sources[name].op_type for name in node.input[:2] if name in sources]
        if node.op_type in ("Conv", "Gemm") and pairs == ["DequantizeLinear"] * 2:
            values[node.output[0]] = _layer(node, sources, known | values)
        else:
            given = {name: (known | values)[name] for name in node.input if name}
            graph = helper.make_graph(
                [node],
                "one",
                [
                    helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                    for n, a in given.items()
                ],
                [onnx.ValueInfoProto(name=name) for name in node.output],
            )
            one = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
            values |= dict(zip(node.output, ReferenceEvaluator(one).run(None, given), strict=True))
    return values[model.graph.output[0].name].astype(np.float32)


def _layer(node: onnx.NodeProto, sources: dict[str, onnx.NodeProto], values: dict[str, NDArray[Any]]) -> NDArray[Any]:
    data, weights = (sources[name].input for name in node.input[:2])
    x, scale, point = (values[name] for name in data)
    w, scales = (values[name].astype(np.int64) if n == 0 else values[name] for n, name in enumerate(weights[:2]))
    if node.op_type == "Gemm":
        total = saturating(x, w.T) - int(point) * w.sum(axis=1)
        return np.asarray(total * scale * scales, np.float32)
    flat = w.transpose(0, 2, 3, 1).reshape(len(w), -1).T
    total = saturating(patches(x, 3, int(point)), flat) - int(point) * flat.sum(axis=0)
    shape = (len(x), *x.shape[2:], len(w))
    return np.asarray((total * scale * scales).reshape(shape).transpose(0, 3, 1, 2), np.float32)


def exactly(file: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The answers where nothing saturates, on whichever CPU the test runs."""
    session = make_session(onnxruntime, {**DEFAULTS, "precise_int8": True, "graph_level": "disable"}, str(file))
    return np.asarray(session.run(None, {"x": x})[0])


# --- devices ---


def kind_of(file: Path) -> str:
    """fp32, fp32 with int8 weights, or the types of the first quantised activation and of the weights: `uint8 int8`."""
    graph = onnx.load(file).graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next((node for node in graph.node if node.op_type == "QuantizeLinear"), None)
    if first is None:
        return "fp32 int8" if any(array.dtype == np.int8 for array in known.values()) else "fp32"
    weights = next(array for array in known.values() if array.ndim > 1 and array.itemsize == 1)
    activation = known[first.input[2]].dtype if len(first.input) > 2 else "uint8"
    return f"{activation} {weights.dtype}"


def eight_bits(file: Path) -> bool:
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer]
    return any(np.abs(array.astype(int)).max() > 64 for array in arrays if array.dtype == np.int8 and array.ndim > 1)


def int8_operators(file: Path) -> bool:
    """Whether the file has int8 operators, which saturate or not as the CPU does that runs the test. The answers are
    then those of its QDQ form, which was tried before."""
    return any(node.op_type.startswith("QLinear") for node in onnx.load(file).graph.node)


MILLISECONDS = {"fp32": 1.0, "fp32 int8": 1.0, "uint8 int8": 0.5, "int8 int8": 1.2, "uint8 uint8": 1.01}


def answering(vnni: bool, times: dict[str, float] = MILLISECONDS, refused: str = "") -> Callable[..., Record]:
    """What a worker gives there. `refused` is a kind of file that the runtime cannot load."""

    known: dict[tuple[str, bool], NDArray[np.float32]] = {}

    def answer(plan: Plan, model: Path, target: Target, timeout_s: float, told: OnProgress | None = None) -> Record:
        kind = kind_of(model)
        if refused and refused == kind:
            raise InputError(f"{model}: cannot be loaded there")
        taken: dict[str, Any] = {"mode": plan.mode, "load_s": 0.01, "fingerprint": {}, "memory": {}}
        if plan.mode == "predict":
            assert plan.inputs and plan.outputs
            x = np.load(plan.inputs)
            saturates = not vnni and kind == "uint8 int8" and eight_bits(model)
            if not int8_operators(model):
                known[kind, eight_bits(model)] = without_vnni(model, x) if saturates else exactly(model, x)
            with Path(plan.outputs).open("wb") as file:
                np.save(file, known[kind, eight_bits(model)])
        if plan.mode == "pair":
            assert plan.baseline
            own, other = (times[kind_of(Path(file))] / 1e3 for file in (model, plan.baseline))
            taken |= {"latency_s": (own,) * 40, "block_calls": 10}
            taken["baseline"] = {"latency_s": [other] * 40, "load_s": 0.01, "first_call_s": 0.01, "fingerprint": {}}
        return Record(**taken)

    return answer


@pytest.fixture
def material(tmp_path: Path, place: Callable[..., Site]) -> Callable[..., Material]:
    """`material(tried, machine, …)`: a network, and inputs that it classifies well."""
    rng = np.random.default_rng(0)
    x, labels = examples(COUNT, rng)
    network(tmp_path / "fp32.onnx", x, labels, rng)
    np.save(tmp_path / "inputs.npy", x)

    def make(tried: Quantization, machine: Machine, answer: Callable[..., Record]) -> Material:
        target = dataclasses.replace(load_target("cpu-x86"), quantization=tried)
        folder = tmp_path / "trials"
        folder.mkdir(exist_ok=True)
        return Material(
            fp32=tmp_path / "fp32.onnx",
            calibration=x[:64],
            inputs=tmp_path / "inputs.npy",
            targets=labels,
            task=IMAGE_CLASSIFICATION,
            site=place(target, machine, answer=answer),
            folder=folder,
        )

    return make


# --- the choice ---


def test_with_vnni_the_fastest_is_u8s8_with_8_bits(material: Callable[..., Material]) -> None:
    choice = choose_scheme(material(TRIED, VNNI, answering(vnni=True)))
    assert scheme_words(choice.best.scheme) == "U8S8, minmax, QOperator"
    assert [scheme_words(trial.scheme) for trial in choice.trials] == [
        "U8S8, minmax, QDQ",
        "U8S8, 7-bit weights, minmax, QDQ",
        "S8S8, minmax, QDQ",
        "U8U8, minmax, QDQ",
        "U8S8, minmax, QOperator",
    ]
    assert [round(trial.ratio.value, 3) for trial in choice.trials] == [0.5, 0.5, 1.2, 1.01, 0.5]
    assert choice.trials[0].score > 0.97
    assert choice.best.size_bytes < choice.trials[0].size_bytes
    assert choice.failed == {}


def test_without_vnni_the_weights_get_7_bits(
    material: Callable[..., Material], capsys: pytest.CaptureFixture[str]
) -> None:
    choice = choose_scheme(material(TRIED, AVX2, answering(vnni=False)))
    eight, seven = choice.trials[:2]
    assert eight.score < 0.85 < 0.97 < seven.score  # it saturates, and 7 bits do not
    assert choice.best.scheme.reduce_range
    assert choice.why.startswith("U8S8, 7-bit weights, minmax, QOperator: ")
    assert f"against U8S8 {100 * eight.score:.2f} %, 0.50" in choice.why


def test_where_signed_activations_are_fast_they_may_win(material: Callable[..., Material]) -> None:
    times = MILLISECONDS | {"int8 int8": 0.3}
    choice = choose_scheme(material(TRIED, VNNI, answering(vnni=True, times=times)))
    assert choice.best.scheme.activation == "int8"


def test_the_targets_own_scheme_stays_where_nothing_else_may_be_tried(material: Callable[..., Material]) -> None:
    choice = choose_scheme(material(Quantization(), AVX2, answering(vnni=False)))
    assert len(choice.trials) == 1
    assert choice.why == "U8S8, minmax, QDQ: the target's own settings, and nothing else may be tried"


def test_a_scheme_that_the_target_cannot_run_is_left_out(material: Callable[..., Material]) -> None:
    choice = choose_scheme(material(TRIED, VNNI, answering(vnni=True, refused="uint8 uint8")))
    assert list(choice.failed) == ["U8U8, minmax, QDQ"]
    assert "cannot be loaded there" in choice.failed["U8U8, minmax, QDQ"]
    with pytest.raises(InputError, match="cannot be loaded there"):
        choose_scheme(material(TRIED, VNNI, answering(vnni=True, refused="uint8 int8")))


def test_a_calibration_is_taken_only_if_it_is_surely_better(material: Callable[..., Material]) -> None:
    tried = Quantization(calibrations=("minmax", "entropy", "percentile"))
    choice = choose_scheme(material(tried, VNNI, answering(vnni=True)))
    assert [trial.scheme.calibration for trial in choice.trials] == ["minmax", "entropy", "percentile"]
    assert choice.best.scheme.calibration == "minmax"
    assert {trial.ratio for trial in choice.trials} == {choice.trials[0].ratio}


def test_corrections_are_kept_only_where_they_help(material: Callable[..., Material]) -> None:
    """The channels of the first layer differ by a factor of 1,000, and the weights have one scale."""
    tried = Quantization(per_channel=False, corrections=("equalize", "bias"))
    assert len(choose_scheme(material(tried, VNNI, answering(vnni=True))).trials) == 1  # nothing is lost: not tried
    choice = choose_scheme(skewed(material(tried, VNNI, answering(vnni=True))))
    assert [scheme_words(trial.scheme) for trial in choice.trials] == [
        "U8S8, minmax, QDQ",
        "U8S8, equalised, minmax, QDQ",
        "U8S8, biases corrected, minmax, QDQ",
        "U8S8, equalised and biases corrected, minmax, QDQ",
    ]
    plain, equal = choice.trials[:2]
    assert plain.score < 0.9 < 0.97 < equal.score
    assert choice.best.scheme.equalize
    assert "is kept" in choice.why
    assert {trial.ratio for trial in choice.trials} == {plain.ratio}


def skewed(material: Material) -> Material:
    """The same, with channels between its first layers whose sizes differ; that changes no output."""
    for old in material.folder.iterdir():
        old.unlink()
    model = onnx.load(material.fp32)
    factors = np.geomspace(0.03, 30, 8).astype(np.float32)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name == "first.weight":
            tensor.CopyFrom(numpy_helper.from_array(array * factors[:, None, None, None], tensor.name))
        if tensor.name == "second.weight":
            tensor.CopyFrom(numpy_helper.from_array(array / factors[None, :, None, None], tensor.name))
    onnx.save(model, material.fp32)
    return material


def test_each_combination_of_corrections_is_tried(material: Callable[..., Material]) -> None:
    tried = Quantization(per_channel=False, corrections=("clip", "equalize", "bias"))
    choice = choose_scheme(skewed(material(tried, VNNI, answering(vnni=True))))
    assert [scheme_words(trial.scheme) for trial in choice.trials] == [
        "U8S8, minmax, QDQ",
        "U8S8, weights clipped, minmax, QDQ",
        "U8S8, equalised, minmax, QDQ",
        "U8S8, biases corrected, minmax, QDQ",
        "U8S8, equalised and weights clipped, minmax, QDQ",
        "U8S8, weights clipped and biases corrected, minmax, QDQ",
        "U8S8, equalised and biases corrected, minmax, QDQ",
        "U8S8, equalised, weights clipped and biases corrected, minmax, QDQ",
    ]
    assert choice.trials[1].as_json()["clip_weights"] is True
    assert choice.best.scheme.equalize
    assert choice.best.score == max(trial.score for trial in choice.trials)


# --- what a run keeps, and layers in float ---


def nothing_measured(*_: object) -> Record:
    raise ModelError("nothing is measured again")


def test_the_choice_is_kept_and_not_made_again(material: Callable[..., Material], tmp_path: Path) -> None:
    file = tmp_path / "student-int8.onnx"
    written: list[str] = []
    with listening(lambda _, path: written.append(path.name)):
        kept = settle_int8(material(TRIED, AVX2, answering(vnni=False)), file, Budget(), None)
    settled = [name for name in written if name.startswith("student-int8")]
    assert settled == ["student-int8.json", "student-int8.onnx"]  # the decision first
    assert kept == json.loads((tmp_path / "student-int8.json").read_text())
    assert kept["scheme"]["reduce_range"] is kept["reduce_range"] is True
    assert kept["scheme"]["form"] == "qoperator"
    assert not eight_bits(file)
    assert [entry.value for entry in onnx.load(file).metadata_props] == ["here"]
    assert [trial["form"] for trial in kept["trials"]] == ["qdq", "qdq", "qdq", "qdq", "qoperator"]
    assert settle_int8(material(TRIED, AVX2, nothing_measured), file, Budget(), None) == kept


@pytest.mark.parametrize("left", [None, b"the file before the choice"])
def test_a_kill_after_the_decision_changes_nothing(
    material: Callable[..., Material], tmp_path: Path, left: bytes | None
) -> None:
    """The decision was written and the file was not, or it is the one that was there before."""
    file = tmp_path / "student-int8.onnx"
    kept = settle_int8(material(TRIED, AVX2, answering(vnni=False)), file, Budget(), None)
    content = file.read_bytes()
    file.unlink()
    if left:
        file.write_bytes(left)
    assert settle_int8(material(TRIED, AVX2, nothing_measured), file, Budget(), None) == kept
    assert file.read_bytes() == content


def test_another_network_of_the_run_follows_the_scheme(material: Callable[..., Material], tmp_path: Path) -> None:
    known = material(TRIED, AVX2, answering(vnni=False))
    settled = settle_int8(known, tmp_path / "student-int8.onnx", Budget(), None)
    follow(settled, known, known.fp32, tmp_path / "pruned-int8.onnx")
    assert (tmp_path / "pruned-int8.onnx").read_bytes() == (tmp_path / "student-int8.onnx").read_bytes()


def test_a_decision_about_another_network_is_made_again(material: Callable[..., Material], tmp_path: Path) -> None:
    file = tmp_path / "student-int8.onnx"
    settle_int8(material(Quantization(), AVX2, answering(vnni=False)), file, Budget(), None)
    other = onnx.load(tmp_path / "fp32.onnx")
    other.metadata_props[0].value = "there"
    onnx.save(other, tmp_path / "fp32.onnx")
    with pytest.raises(ModelError, match="nothing is measured again"):
        settle_int8(material(Quantization(), AVX2, nothing_measured), file, Budget(), None)


def test_a_record_of_version_1_holds_while_its_file_does(material: Callable[..., Material], tmp_path: Path) -> None:
    file, record = tmp_path / "student-int8.onnx", tmp_path / "student-int8.json"
    kept = settle_int8(material(Quantization(), AVX2, answering(vnni=False)), file, Budget(), None)
    added = ("scheme", "in_float", "fp32_sha256")
    before = {key: value for key, value in kept.items() if key not in added} | {"schema_version": 1}
    record.write_text(json.dumps(before))
    assert settle_int8(material(Quantization(), AVX2, nothing_measured), file, Budget(), None) == before
    file.write_bytes(b"another file")
    with pytest.raises(ModelError, match="nothing is measured again"):
        settle_int8(material(Quantization(), AVX2, nothing_measured), file, Budget(), None)


def test_layers_that_saturate_return_to_float(material: Callable[..., Material], tmp_path: Path) -> None:
    """No 7-bit weights may be tried, so that the fallback has to find the layers which saturate."""
    known = material(Quantization(), AVX2, answering(vnni=False))
    file = tmp_path / "student-int8.onnx"
    kept = settle_int8(known, file, Budget(max_accuracy_drop=3.0), None)
    fallback = kept["fallback"]
    assert fallback["used"] is True
    assert kept["trials"][0]["validation_score"] < 0.85
    assert fallback["validation_score"] >= 0.97
    returned = fallback["returned_to_float"]
    assert 0 < len(returned) < 3
    assert {layer["name"] for layer in fallback["layers"]} == {"first", "second", "head"}
    assert fallback["layers"][0]["name"] in returned
    graph = onnx.load(file).graph
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
    assert weights == {TensorProto.FLOAT, TensorProto.INT8} or returned == ["head"] or len(returned) == 2
    assert (exactly(file, np.load(known.inputs)).argmax(axis=1) == known.targets).mean() > 0.97
    file.unlink()
    unmeasured = material(Quantization(), AVX2, nothing_measured)
    assert settle_int8(unmeasured, file, Budget(max_accuracy_drop=3.0), None) == kept
    assert file_sha256(file) == kept["sha256"]


def test_a_fallback_that_saves_no_time_is_not_used(material: Callable[..., Material], tmp_path: Path) -> None:
    times = dict.fromkeys(MILLISECONDS, 1.0)
    file = tmp_path / "student-int8.onnx"
    kept = settle_int8(
        material(Quantization(), AVX2, answering(vnni=False, times=times)), file, Budget(max_accuracy_drop=3.0), None
    )
    assert kept["fallback"]["used"] is False
    assert kept["fallback"]["why"].endswith("not used")
    assert eight_bits(file)


@pytest.mark.parametrize("slower", [False, True])
def test_weights_alone_are_tried_where_int8_loses_too_much(
    material: Callable[..., Material], tmp_path: Path, capsys: pytest.CaptureFixture[str], slower: bool
) -> None:
    """Layers in float save no time here, because the fp32 file is as fast as all others."""
    times = dict.fromkeys(MILLISECONDS, 1.0) | {"fp32 int8": 1.1 if slower else 1.0}
    file = tmp_path / "student-int8.onnx"
    tried = Quantization(schemes=("w8",))
    device = answering(vnni=False, times=times)
    kept = settle_int8(material(tried, AVX2, device), file, Budget(max_accuracy_drop=3.0), None)
    words = "W8 100.00 %, 1.10, 97.00 % asked: not used" if slower else "W8 100.00 %, 1.00, 97.00 % asked\n"
    assert words in capsys.readouterr().err
    assert [trial["name"] for trial in kept["trials"]] == ["U8S8, minmax, QDQ", "W8, the weights alone"]
    assert kept["trials"][1]["fused"] is None
    assert kept["scheme"]["activation"] == ("uint8" if slower else "float")
    assert kind_of(file) == ("uint8 int8" if slower else "fp32 int8")
    unmeasured = material(tried, AVX2, nothing_measured)
    file.unlink()
    assert settle_int8(unmeasured, file, Budget(max_accuracy_drop=3.0), None) == kept


def test_sensitivity_is_the_error_of_one_layer_alone(material: Callable[..., Material]) -> None:
    known = material(Quantization(), VNNI, answering(vnni=True))
    found = sensitivity(known, Quantization())
    assert {layer.name for layer in found} == {"first", "second", "head"}
    assert [layer.sqnr_db for layer in found] == sorted(layer.sqnr_db for layer in found)
    assert all(3 < layer.sqnr_db < 80 for layer in found)
    nodes = {layer.name: layer.nodes for layer in found}
    assert nodes["head"] == ("g",)
    assert nodes["first"] == ("c1", "r1")
    assert sensitivity(known, Quantization(), limit_s=-1) == []


def test_sqnr() -> None:
    y = np.array([[3.0, 4.0]])
    assert sqnr_db(y, y + np.array([[0.3, 0.4]])) == pytest.approx(20)
    assert sqnr_db(y, y) == pytest.approx(200)


@pytest.mark.parametrize(
    ("budget", "fp32", "teacher", "expected"),
    [
        (Budget(), 0.9, 0.95, None),
        (Budget(min_accuracy=0.8), 0.9, 0.95, 0.8),
        (Budget(min_accuracy=0.8, max_accuracy_drop=10), 0.9, 0.95, 0.85),
        (Budget(max_accuracy_drop=10), 0.9, None, 0.8),
        (Budget(max_accuracy_drop=1), 0.9, 0.95, None),  # fp32 misses it, too
    ],
)
def test_the_accuracy_that_int8_needs(
    budget: Budget, fp32: float, teacher: float | None, expected: float | None
) -> None:
    assert score_floor(budget, fp32, teacher) == (None if expected is None else pytest.approx(expected))


def test_the_simulation_saturates_as_the_instruction_does() -> None:
    left = np.array([[255, 255, 1, 0]], np.uint8)
    right = np.array([[127, -128], [127, -128], [1, 1], [5, 5]], np.int8)
    assert saturating(left, right).tolist() == [[32767 + 1, -32768 + 1]]
