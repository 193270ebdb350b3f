"""Dynamic int8 is chosen by measuring, too: here on a device whose products saturate."""

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

from edgekd.bench.records import Plan, Record
from edgekd.bench.statistics import Interval
from edgekd.bench.worker import DEFAULTS, make_session
from edgekd.budget import Budget
from edgekd.data.ready import Ready
from edgekd.devices.device import OnProgress, Site
from edgekd.errors import ModelError
from edgekd.search.int8 import settle_int8
from edgekd.search.material import Material
from edgekd.search.quantizing import Asked, quantize_file
from edgekd.search.schemes import Choice, choose_reaching, choose_scheme
from edgekd.target import Quantization, load_target
from edgekd.tasks.image_classification import IMAGE_CLASSIFICATION

CLASSES, WIDTH, COUNT = 4, 16, 300
TRIED = Quantization(schemes=("u8s8", "u8s8-7bit", "w8"))


def network(path: Path, weights: NDArray[np.float32]) -> None:
    """One matrix product (n, 16) · (16, 4)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def levels_of(file: Path) -> NDArray[np.int64] | None:
    """The int8 weights (16, 4) of a product that computes in 8 bits; None for other files."""
    graph = onnx.load(file).graph
    if not any(node.op_type == "MatMulInteger" for node in graph.node):
        return None
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    return next(array for array in arrays if array.dtype == np.int8 and array.ndim == 2).astype(np.int64)


def answers_of(file: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an x86 CPU without VNNI gives: pairs of products of 8 bits are added in 16 bits, which saturate."""
    levels = levels_of(file)
    if levels is None:
        session = make_session(onnxruntime, DEFAULTS, str(file))
        return np.asarray(session.run(None, {"x": x})[0])
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer]
    scales = next(array for array in arrays if array.dtype == np.float32)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255
    zero = round(-low / step)
    ids = np.clip(np.round(x / step) + zero, 0, 255).astype(np.int64)
    pairs = sum(ids[:, n::2, None] * levels[None, n::2] for n in (0, 1))
    total = np.clip(pairs, -32768, 32767).sum(axis=1) - zero * levels.sum(axis=0)
    return np.asarray(total * step * scales, np.float32)


def device(milliseconds: float = 0.5) -> Callable[..., Record]:
    """Its answers are those of `answers_of`; int8 takes so many milliseconds, and fp32 takes one."""

    def answer(plan: Plan, model: Path, target: Any, timeout_s: float, told: OnProgress | None = None) -> Record:
        taken: dict[str, Any] = {"mode": plan.mode, "load_s": 0.01, "fingerprint": {}, "memory": {}}
        if plan.mode == "predict":
            assert plan.inputs and plan.outputs
            with Path(plan.outputs).open("wb") as file:
                np.save(file, answers_of(model, np.load(plan.inputs)))
        if plan.mode == "pair":
            assert plan.baseline
            own = milliseconds / 1e3 if levels_of(model) is not None else 1e-3
            taken |= {"latency_s": (own,) * 40, "block_calls": 10}
            taken["baseline"] = {"latency_s": [1e-3] * 40, "load_s": 0.01, "first_call_s": 0.01, "fingerprint": {}}
        return Record(**taken)

    return answer


def examples() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Inputs (n, 16), their labels, and weights that find them. All are positive and large, so that pairs saturate."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    own = np.arange(WIDTH)[:, None] // (WIDTH // CLASSES) == np.arange(CLASSES)
    x = rng.uniform(0.6, 0.8, (COUNT, WIDTH)) + 0.2 * own.T[labels]
    return x.astype(np.float32), labels.astype(np.int64), (0.7 + 0.3 * own).astype(np.float32)


@pytest.fixture
def material(tmp_path: Path, place: Callable[..., Site]) -> Callable[..., Material]:
    x, labels, weights = examples()
    network(tmp_path / "fp32.onnx", weights)
    np.save(tmp_path / "inputs.npy", x)

    def make(tried: Quantization, answer: Callable[..., Record]) -> Material:
        target = dataclasses.replace(load_target("cpu-x86"), quantization=tried)
        folder = tmp_path / "trials"
        folder.mkdir(exist_ok=True)
        return Material(
            fp32=tmp_path / "fp32.onnx",
            calibration=None,
            inputs=tmp_path / "inputs.npy",
            targets=labels,
            task=IMAGE_CLASSIFICATION,
            site=place(target, answer=answer),
            folder=folder,
        )

    return make


def test_weights_get_7_bits_where_8_saturate(material: Callable[..., Material]) -> None:
    choice = choose_scheme(material(TRIED, device()))
    eight, seven = choice.trials
    assert eight.score < 0.5 < 0.97 < seven.score
    assert choice.best is seven
    assert choice.why.startswith("dynamic U8S8, 7-bit weights: 100.00 % on validation data, 0.50 of fp32's time")
    assert f"against dynamic U8S8 {100 * eight.score:.2f} %, 0.50" in choice.why
    levels = levels_of(seven.file)
    assert levels is not None and np.abs(levels).max() <= 64
    assert seven.as_json()["dynamic"] is True


def test_signed_activations_are_no_other_scheme_at_run_time(material: Callable[..., Material]) -> None:
    """ONNX Runtime scales them as unsigned numbers, whatever the target says."""
    own = Quantization(activation="int8", schemes=("u8s8", "s8s8"), calibrations=("entropy",), forms=("qoperator",))
    choice = choose_scheme(material(own, device()))
    assert [trial.words for trial in choice.trials] == ["dynamic U8S8, 8-bit weights"]


def test_weights_alone_are_taken_where_nothing_else_is_accurate(
    material: Callable[..., Material], tmp_path: Path
) -> None:
    """No layer is returned to float, because no layer can be calibrated."""
    tried = Quantization(schemes=("w8",))
    kept = settle_int8(material(tried, device()), tmp_path / "int8.onnx", Budget(max_accuracy_drop=1.0), None)
    assert kept["fallback"] is None
    assert [trial["name"] for trial in kept["trials"]] == ["dynamic U8S8, 8-bit weights", "W8, the weights alone"]
    assert kept["scheme"]["activation"] == "float"
    assert levels_of(tmp_path / "int8.onnx") is None


def test_a_scheme_that_reaches_the_budget_is_taken(material: Callable[..., Material]) -> None:
    """The other one may be as accurate for all that is known, but misses what is asked."""
    known = material(TRIED, device())
    choice = choose_scheme(known)
    eight, seven = choice.trials
    other = dataclasses.replace(choice, best=eight)
    assert choose_reaching(other, eight.score, IMAGE_CLASSIFICATION) is other
    assert choose_reaching(other, 1.01, IMAGE_CLASSIFICATION) is other
    found = choose_reaching(other, 0.9, IMAGE_CLASSIFICATION)
    assert found.best is seven
    assert "90.00 % asked" in found.why
    slow, slowest = Interval(1.5, 1.4, 1.6), Interval(1.9, 1.8, 2.0)

    def timed(first: Interval, second: Interval) -> Choice:
        trials = dataclasses.replace(eight, ratio=first), dataclasses.replace(seven, ratio=second)
        return dataclasses.replace(choice, best=trials[0], trials=trials)

    assert choose_reaching(timed(slow, slow), 0.9, IMAGE_CLASSIFICATION).best.score == seven.score
    assert choose_reaching(timed(slow, slowest), 0.9, IMAGE_CLASSIFICATION).best.score == eight.score


def test_of_those_that_reach_the_budget_the_first_counts_unless_a_later_one_is_faster(
    material: Callable[..., Material],
) -> None:
    choice = choose_scheme(material(TRIED, device()))
    low = dataclasses.replace(choice.trials[0], ratio=Interval(0.3, 0.2, 0.4))
    first, better, faster = (
        dataclasses.replace(choice.trials[1], each=each, ratio=ratio)
        for each, ratio in (
            (np.full(4, 0.95), Interval(0.5, 0.45, 0.55)),
            (np.full(4, 0.99), Interval(0.95, 0.9, 1.1)),
            (np.full(4, 0.95), Interval(0.4, 0.35, 0.44)),
        )
    )
    three = dataclasses.replace(choice, best=low, trials=(low, first, better, faster))
    assert choose_reaching(three, 0.9, IMAGE_CLASSIFICATION).best is faster
    two = dataclasses.replace(choice, best=low, trials=(low, first, better))
    assert choose_reaching(two, 0.9, IMAGE_CLASSIFICATION).best is first


def test_the_decision_makes_the_same_file_again(material: Callable[..., Material], tmp_path: Path) -> None:
    def nothing_measured(*_: object) -> Record:
        raise ModelError("nothing is measured again")

    file = tmp_path / "student-int8.onnx"
    kept = settle_int8(material(TRIED, device()), file, Budget(), None)
    assert kept == json.loads(file.with_suffix(".json").read_text())
    content = file.read_bytes()
    file.unlink()
    assert settle_int8(material(TRIED, nothing_measured), file, Budget(), None) == kept
    assert file.read_bytes() == content


def test_a_given_file_is_quantised_by_the_best_scheme(tmp_path: Path, place: Callable[..., Site]) -> None:
    x, labels, weights = examples()
    network(tmp_path / "model.onnx", weights)
    target = dataclasses.replace(load_target("cpu-x86"), quantization=TRIED)
    asked = Asked(
        model=tmp_path / "model.onnx",
        out=tmp_path / "out.onnx",
        site=place(target, answer=device()),
        examples=Ready(inputs={"x": x}, labels=labels, about="here"),
        folder=tmp_path,
        scheme=TRIED,
        precisions=("int8", "fp16"),
        dynamic=True,
    )
    done = quantize_file(asked)
    assert done.how.startswith("dynamic U8S8, 7-bit weights: ")
    assert "fp16" not in done.how
    assert done.comparison.after == 1.0
    levels = levels_of(tmp_path / "out.onnx")
    assert levels is not None and np.abs(levels).max() <= 64
