"""What the worker feeds: free sizes, the batch, constants, arrays by name; and what a user writes to say so."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench import worker
from edgekd.bench.feeding import feedings, merged, shape_words
from edgekd.bench.records import Feeding, Plan, Record
from edgekd.bench.remarks import fed, steering_remarks
from edgekd.bench.sequences import steering_of
from edgekd.errors import ConfigError

Shape = list[str | int | None]


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def value(name: str, kind: int, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def write_mean(path: Path, shape: Shape, output: Shape | None, kind: int = TensorProto.FLOAT) -> Path:
    """x of a shape to the mean over all axes but the first, at least two of them."""
    axes = list(range(1, len(shape)))
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["y"], axes=axes, keepdims=0),
    ]
    return save(path, nodes, [value("x", kind, shape)], [value("y", TensorProto.FLOAT, output)])


def write_sum(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """a and b (n, 3) and the scalar s to (a + b) s."""
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Mul", ["c", "s"], ["y"])]
    inputs = [value("a", kind, ["n", 3]), value("b", kind, ["n", 3]), value("s", kind, [])]
    return save(path, nodes, inputs, [value("y", kind, ["n", 3])])


def write_if(path: Path) -> Path:
    """x (b, 4) and cond to x, or twice x."""
    branches = {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Sub")):
        node = helper.make_node(op, ["x", "x"], [name])
        branches[name] = helper.make_graph([node], name, [], [value(name, TensorProto.FLOAT, ["b", 4])])
    node = helper.make_node("If", ["cond"], ["y"], **branches)
    inputs = [value("x", TensorProto.FLOAT, ["b", 4]), value("cond", TensorProto.BOOL, [])]
    return save(path, [node], inputs, [value("y", TensorProto.FLOAT, ["b", 4])])


def make_plan(**values: Any) -> dict[str, Any]:
    bounds: dict[str, Any] = {"warmup_s": 0.0, "min_calls": 2, "max_calls": 2, "max_s": 0.0}
    return Plan(**{"mode": "latency", "provider": "CPUExecutionProvider", **bounds, **values}).as_json()


def feeds(model: Path, **values: Any) -> worker.Feeds:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return worker.Feeds(session, make_plan(**values))


def refused(model: Path, **values: Any) -> str:
    with pytest.raises(worker.WorkerError) as caught:
        worker.measure(make_plan(**values), str(model))
    return str(caught.value)


# --- free sizes and the batch ---


@pytest.mark.parametrize(
    ("shape", "output", "axis"),
    [
        (["batch", 3], ["batch"], 0),
        (["batch_size", 3], ["whatever"], 0),
        (["N", 3], ["N"], 0),
        (["bs", 3], [1], 0),
        ([None, 3], [None], 0),
        ([None, 3], None, 0),
        (["unk__0", 3], ["unk__7"], 0),
        (["s0", 3], ["s0"], 0),
        ([1, 3], [1], 0),
        ([8, 3], [8], 0),
        ([3, 7], [10], None),
        ([2, "batch", 3], [2], 1),
        ([1, "batch", 3], [1], 1),
    ],
)
def test_the_batch_is_asked_of_names_and_of_the_other_shapes(
    tmp_path: Path, shape: Shape, output: Shape | None, axis: int | None
) -> None:
    spec, taken = FakeSpec("x", shape), [FakeSpec("y", output or [])]
    assert worker.batch_axis(spec, [spec], taken) == axis


class FakeSpec:
    def __init__(self, name: str, shape: Shape) -> None:
        self.name, self.shape = name, shape


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([["seq_len", 3]], [["seq_len"]]),
        ([["length", 3]], [["length"]]),
        ([["s0", 3], ["s1", 3]], [["s0"]]),
        ([[None, 3], [2, None]], [[None]]),
        ([["height", "width"]], [["height"]]),
        ([[]], [["n"]]),
    ],
)
def test_what_is_no_batch(inputs: list[Shape], outputs: list[Shape]) -> None:
    given, taken = ([FakeSpec("x", shape) for shape in shapes] for shapes in (inputs, outputs))
    assert worker.batch_axis(given[0], given, taken) is None


def test_free_sizes_must_be_given(tmp_path: Path) -> None:
    model = write_mean(tmp_path / "m.onnx", ["batch", 3, "height", None], ["batch"])
    assert refused(model) == (
        "input x is float [batch,3,height,?], and the sizes of axes 2 (height), 3 are free; give its shape, as "
        "--shape x=1,3,HEIGHT,SIZE, or real inputs, by --data"
    )
    for mode in ("memory", "profile", "throughput"):
        assert "are free; give its shape" in refused(model, mode=mode)
    result = worker.measure(make_plan(shapes={"x": [2, 3, 5, 7]}), str(model))
    assert (result["batch_size"], result["fingerprint"]["shapes"]) == (2, {"x": [2, 3, 5, 7]})
    assert fed(result["fingerprint"]) == "inputs: x float 2×3×5×7 (batch: axis 0)"
    batched = worker.measure(make_plan(mode="throughput", batch_size=4, shapes={"x": [2, 3, 5, 7]}), str(model))
    assert (batched["batch_size"], batched["fingerprint"]["shapes"]) == (4, {"x": [4, 3, 5, 7]})


def test_an_unbatched_input_may_be_all_free(tmp_path: Path) -> None:
    model = write_mean(tmp_path / "m.onnx", ["height", "width"], ["height"])
    assert refused(model).endswith("or real inputs, by --data, or say with --batch-axis which one is the batch")
    assert feeds(model, shapes={"x": [6, 5]}).ready[0]["x"].shape == (6, 5)
    assert feeds(model, shapes={"x": [6, 5]}).batch == 1
    assert feeds(model, shapes={"x": [6, 5]}, batch_axes={"x": 0}).batch == 6


@pytest.mark.parametrize("said", [{"x": None}, {"": None}])
def test_a_batch_that_is_said_to_be_none(tmp_path: Path, said: dict[str, Any]) -> None:
    model = write_mean(tmp_path / "m.onnx", ["n", 3], ["n"])
    assert "the size of axis 0 (n) is free" in refused(model, batch_axes=said)
    assert feeds(model, batch_axes=said, shapes={"x": [9, 3]}).batch == 1


def test_sizes_of_one_name_are_given_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    inputs = [value(name, TensorProto.FLOAT, ["batch", "time"]) for name in ("x", "mask")]
    model = save(tmp_path / "m.onnx", nodes, inputs, [value("y", TensorProto.FLOAT, ["batch", "time"])])
    assert {array.shape for array in feeds(model, shapes={"x": [2, 7]}).ready[0].values()} == {(2, 7)}


def test_an_axis_of_size_0_is_fed_as_declared(tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["x", "past"], ["y"], axis=1)]
    inputs = [value("x", TensorProto.FLOAT, ["batch", 2]), value("past", TensorProto.FLOAT, ["batch", 0])]
    model = save(tmp_path / "m.onnx", nodes, inputs, [value("y", TensorProto.FLOAT, ["batch", 2])])
    assert feeds(model).ready[0]["past"].shape == (1, 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shapes": {"x": [1, 3]}}, "input x takes [batch,3,height,width]; the shape given is [1,3]"),
        ({"shapes": {"x": [1, 4, 2, 2]}}, "input x takes [batch,3,height,width]; the shape given is [1,4,2,2]"),
        ({"shapes": {"z": [1]}}, "it has no input 'z'; its inputs are x"),
        ({"batch_axes": {"x": 4}}, "axis 4 of x cannot be its batch; it has the axes [batch,3,height,width]"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    assert refused(write_mean(tmp_path / "m.onnx", ["batch", 3, "height", "width"], ["batch"]), **values) == said


def test_a_model_and_its_baseline_get_the_same_shapes(tmp_path: Path) -> None:
    new = write_mean(tmp_path / "new.onnx", ["batch", 3, "h", "w"], ["batch"])
    old = write_mean(tmp_path / "old.onnx", ["batch", 3, 8, 8], ["batch"])
    error = refused(new, mode="pair", baseline=str(old), shapes={"x": [1, 3, 9, 9]})
    assert error == f"baseline {old}: input x takes [batch,3,8,8]; the shape given is [1,3,9,9]"
    small = write_mean(tmp_path / "small.onnx", ["batch", 3, 4, 4], ["batch"])
    error = refused(small, mode="pair", baseline=str(old))
    assert error == f"baseline {old}: it is fed x float 1×3×8×8, the model x float 1×3×4×4; give both the same"


# --- values ---


@pytest.mark.parametrize(
    "kind", ["INT64", "INT32", "INT16", "UINT16", "UINT32", "UINT64", "FLOAT", "FLOAT16", "DOUBLE"]
)
def test_a_constant_has_the_inputs_type(tmp_path: Path, kind: str) -> None:
    model = write_mean(tmp_path / "m.onnx", ["n", 3], ["n"], kind=getattr(TensorProto, kind))
    (feed,) = feeds(model, values={"x": 7}).ready
    assert feed["x"].tolist() == [[7, 7, 7]]
    assert feeds(model, values={"x": [[1, 2, 3], [4, 5, 6]]}).ready[0]["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_constants_are_said_and_the_rest_is_drawn(tmp_path: Path) -> None:
    result = worker.measure(make_plan(values={"s": 2}), str(write_sum(tmp_path / "m.onnx")))
    assert fed(result["fingerprint"]).endswith("b float 1×3 (batch: axis 0), s float scalar = 2")
    assert result["fingerprint"]["values"] == {"s": 2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cond": 2}, "input cond is bool; it cannot be 2"),
        ({"cond": "yes"}, 'input cond is bool; it cannot be "yes"'),
        ({"cond": [True, False]}, "input cond takes []; the value given is [2]"),
        ({"none": 1}, "it has no input 'none'; its inputs are x, cond"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    assert refused(write_if(tmp_path / "m.onnx"), values=given) == said


def test_whole_numbers_are_not_rounded(tmp_path: Path) -> None:
    model = write_mean(tmp_path / "m.onnx", ["n", 3], ["n"], kind=TensorProto.UINT8)
    assert refused(model, values={"x": 300}) == "input x is uint8; it cannot be 300"
    assert refused(model, values={"x": 0.5}) == "input x is uint8; it cannot be 0.5"


def test_strings(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["words"], ["same"])]
    words = value("words", TensorProto.STRING, ["n"])
    model = save(tmp_path / "m.onnx", nodes, [words], [value("same", TensorProto.STRING, ["n"])])
    assert feeds(model, values={"words": ["a", "b"]}).ready[0]["words"].tolist() == ["a", "b"]
    np.savez(tmp_path / "d.npz", words=np.array(["a", "bc", "d"]))
    found = feeds(model, inputs=str(tmp_path / "d.npz"))
    assert [feed["words"].tolist() for feed in found.ready] == [["a"], ["bc"], ["d"]]
    assert len(worker.measure(make_plan(inputs=str(tmp_path / "d.npz")), str(model))["latency_s"]) == 2


# --- inputs that steer ---


def test_a_model_with_if_is_known_and_told(tmp_path: Path) -> None:
    model = write_if(tmp_path / "m.onnx")
    assert steering_of(model) == ("If",)
    assert steering_of(write_sum(tmp_path / "s.onnx")) == ()
    record = Record.from_json(worker.measure(make_plan(steered=True), str(model)))
    (told,) = steering_remarks(record, steering_of(model))
    assert told.startswith(
        "the model has If, and its inputs are drawn at random (cond): how long a call takes may depend"
    )
    assert told.endswith("give real ones by --data, or a value, such as --input cond=1")
    assert steering_remarks(record, ()) == []
    (told,) = steering_remarks(record, ("NonMaxSuppression",))
    assert told.endswith("may depend on what they say; give real ones by --data")
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 4), np.float32), cond=np.array(True))
    record = Record.from_json(worker.measure(make_plan(inputs=str(tmp_path / "d.npz")), str(model)))
    assert steering_remarks(record, ("If",)) == []


@pytest.mark.parametrize("steered", [True, False])
def test_an_inner_loop_repeats_calls_that_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steered: bool
) -> None:
    called: list[int] = []
    monkeypatch.setattr(worker.Caller, "__call__", lambda self, number: called.append(number))
    now = iter(np.arange(0, 1e-2, 1e-5).tolist())
    worker.measure(
        make_plan(steered=steered, values={"cond": True}), str(write_if(tmp_path / "m.onnx")), lambda: next(now)
    )
    inner = (len(called) - 1) // 2
    assert inner > 1
    assert called[1:] == ([0] * inner + [1] * inner if steered else list(range(2 * inner)))


# --- arrays by the inputs' names ---


def summed(tmp_path: Path, batch: int = 4, **arrays: Any) -> NDArray[Any]:
    np.savez(tmp_path / "d.npz", **arrays)
    plan = make_plan(mode="predict", inputs=str(tmp_path / "d.npz"), outputs=str(tmp_path / "o.npy"), batch_size=batch)
    worker.measure(plan, str(write_sum(tmp_path / "m.onnx")))
    answers: NDArray[Any] = np.load(tmp_path / "o.npy")
    return answers


ROWS = np.arange(18, dtype=np.float32).reshape(6, 3)
ONE = np.array([1, 2, 3], np.float32)
S = np.array(2, np.float32)


@pytest.mark.parametrize("batch", [1, 4])
def test_rows_of_several_inputs(tmp_path: Path, batch: int) -> None:
    assert np.array_equal(summed(tmp_path, batch, a=ROWS, b=ROWS[::-1], s=S), 2 * (ROWS + ROWS[::-1]))
    assert np.array_equal(summed(tmp_path, batch, a=ROWS, b=ONE, s=S), 2 * (ROWS + ONE))  # without the batch's axis


def test_one_value_for_each_example(tmp_path: Path) -> None:
    scale = np.arange(6, dtype=np.float32)
    assert np.array_equal(summed(tmp_path, 4, a=ROWS, b=ONE, s=scale), scale[:, None] * (ROWS + ONE))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": ROWS, "b": ROWS[:2], "s": S}, "equally many examples for all inputs, at least one; got a 6, b 2"),
        ({"a": ROWS, "b": ROWS}, "the data hold no array for input 's'; add it, or give it by --input"),
        ({"a": ROWS, "b": ROWS, "s": S, "c": S}, "the data hold an array 'c'; its inputs are a, b, s"),
        ({"a": ROWS, "b": ROWS.astype(int), "s": S}, "input b is float; the data's is int64"),
        ({"a": ROWS, "b": ROWS[:, :2], "s": S}, "input b takes [n,3]; what is given for it is [6,2]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(worker.WorkerError) as caught:
        summed(tmp_path, **arrays)
    assert said in str(caught.value)


def test_a_batch_on_another_axis(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)]
    axis = numpy_helper.from_array(np.array([0], np.int64), "axis")
    x, y = value("x", TensorProto.FLOAT, [5, "batch", 3]), value("y", TensorProto.FLOAT, ["batch", 3])
    model = save(tmp_path / "m.onnx", nodes, [x], [y], [axis])
    data = np.arange(5 * 7 * 3, dtype=np.float32).reshape(5, 7, 3)
    np.savez(tmp_path / "d.npz", x=data)
    plan = make_plan(mode="predict", inputs=str(tmp_path / "d.npz"), outputs=str(tmp_path / "o.npy"), batch_size=4)
    worker.measure(plan, str(model))
    assert np.array_equal(np.load(tmp_path / "o.npy"), data.sum(axis=0))


# --- outputs ---


def write_classifier(path: Path, kind: int = TensorProto.INT64) -> Path:
    """As scikit-learn's exports: the class of x (n, 4) as a number, then what each class has."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["class"], axis=1, keepdims=0),
        helper.make_node("Cast", ["class"], ["label"], to=kind),
        helper.make_node("Softmax", ["x"], ["probabilities"], axis=1),
    ]
    outputs = [value("label", kind, ["n"]), value("probabilities", TensorProto.FLOAT, ["n", 4])]
    return save(path, nodes, [value("x", TensorProto.FLOAT, ["n", 4])], outputs)


@pytest.mark.parametrize(("output", "shape"), [(None, [6]), ("label", [6]), ("probabilities", [6, 4])])
def test_the_output_that_answers(tmp_path: Path, output: str | None, shape: list[int]) -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 1]]
    np.save(tmp_path / "rows.npy", rows)
    files = {"inputs": str(tmp_path / "rows.npy"), "outputs": str(tmp_path / "o.npy")}
    plan = make_plan(mode="predict", batch_size=4, output=output, **files)
    result = worker.measure(plan, str(write_classifier(tmp_path / "m.onnx")))
    assert result["outputs_shape"] == shape
    found = np.load(tmp_path / "o.npy")
    assert (found if found.ndim == 1 else found.argmax(axis=1)).tolist() == [0, 1, 2, 3, 1, 1]


def test_an_output_that_is_not_there_or_is_no_answer(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "m.onnx", TensorProto.STRING)
    np.save(tmp_path / "rows.npy", np.eye(4, dtype=np.float32))
    plan = {
        "mode": "predict",
        "inputs": str(tmp_path / "rows.npy"),
        "outputs": str(tmp_path / "o.npy"),
        "batch_size": 4,
    }
    assert refused(model, **plan, output="p") == "it has no output 'p'; its outputs are label, probabilities"
    assert refused(model, **plan).endswith("one class label; --output chooses another one: label, probabilities")


@pytest.mark.parametrize("mode", ["latency", "memory", "pair"])
def test_outputs_that_are_no_numbers_fail(tmp_path: Path, mode: str) -> None:
    nodes = [helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("Div", ["x", "zero"], ["y"])]
    x, y = value("x", TensorProto.FLOAT, ["n", 4]), value("y", TensorProto.FLOAT, ["n", 4])
    model = save(tmp_path / "m.onnx", nodes, [x], [y])
    error = refused(model, mode=mode, baseline=str(model) if mode == "pair" else None)
    assert "gives NaN or infinite outputs (y) for seeded random inputs; give it real ones, by --data or" in error


# --- errors of ONNX Runtime, and operators of one's own ---


def test_an_error_keeps_its_reason() -> None:
    signature = "/src/core/graph/model.cc:256 onnx::Model::Model(onnx::ModelProto&&, const std::map<int, f(*)(int)>&)"
    told = worker.explain(
        RuntimeError(f"\x1b[1;31mfailed:{signature} IR version 99\x1b[0m\n" + "x" * 900 + " why"), {}, "no"
    )
    assert str(told).startswith("no: failed: IR version 99 xxx")
    assert str(told).endswith("xx why") and len(str(told)) < 700


def test_what_was_fed_stands_beside_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["x", "w"], ["y"], axis=1, name="the-neck")]
    weights = [numpy_helper.from_array(np.zeros((1, 2, 4), np.float32), "w")]
    x, y = value("x", TensorProto.FLOAT, ["batch", 2, "width"]), value("y", TensorProto.FLOAT, None)
    model = save(tmp_path / "m.onnx", nodes, [x], [y], weights)
    error = refused(model, shapes={"x": [1, 2, 5]})
    assert "the-neck" in error and error.endswith("; it was fed x float 1×2×5")


def test_a_library_of_operators_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "ops.c").write_text("void *RegisterCustomOps(void *options, const void *api) { return 0; }")
    try:
        command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "ops.so"), str(tmp_path / "ops.c")]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler here")
    model = write_sum(tmp_path / "m.onnx")
    result = worker.measure(make_plan(custom_ops=(str(tmp_path / "ops.so"),)), str(model))
    assert result["fingerprint"]["custom_ops"] == {"ops.so": worker.sha256_of(str(tmp_path / "ops.so"))}
    (tmp_path / "none.so").write_text("no library")
    assert refused(model, custom_ops=(str(tmp_path / "none.so"),)).startswith("onnxruntime cannot load it: ")


# --- what a user writes ---


def test_options_become_a_feeding(tmp_path: Path) -> None:
    (tmp_path / "ops.so").touch()
    (found,) = feedings(
        ["x=1,3,224,224", "scalar="],
        ["sr=16000", "flag=true", "ids=1,2", "m=[[1],[2]]", "word=ab", "words=a,b", "e=a=b", "i=Infinity"],
        ["x=0", "y=none", "none"],
        "y",
        [tmp_path / "ops.so"],
    )
    values = {"sr": 16000, "flag": True, "ids": [1, 2], "m": [[1], [2]], "word": "ab", "words": ["a", "b"], "e": "a=b"}
    assert found == Feeding(
        shapes={"x": (1, 3, 224, 224), "scalar": ()},
        values=values | {"i": "Infinity"},
        batch_axes={"x": 0, "y": None, "": None},
        output="y",
        custom_ops=(str(tmp_path / "ops.so"),),
    )
    assert feedings() == [Feeding()]


def test_several_shapes_give_several() -> None:
    found = feedings(["x=1,2", "x=1,3", "y=5"])
    assert [one.shapes for one in found] == [{"x": (1, 2), "y": (5,)}, {"x": (1, 3), "y": (5,)}]
    assert shape_words(found[1]) == "x 1×3, y 5"
    one, two = Feeding(shapes={"x": (1,)}, output="a"), Feeding(shapes={"x": (2,), "y": (3,)})
    assert merged(one, two) == Feeding(shapes={"x": (2,), "y": (3,)}, output="a")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shapes": ["x"]}, "--shape 'x': it should be like --shape x=1,3,224,224"),
        ({"shapes": ["x=1,b"]}, "--shape 'x=1,b': sizes should be whole numbers, as in --shape x=1,3,224,224"),
        ({"shapes": ["x=-1"]}, "sizes should be whole numbers"),
        ({"shapes": ["x=99999999999"]}, "sizes should be whole numbers"),
        ({"shapes": ["x=1", "x=2", "y=1", "y=2", "y=3"]}, "--shape x: has 2 shapes where another input has 3"),
        ({"values": ["sr"]}, "--input 'sr': it should be like --input sr=16000"),
        ({"shapes": ["x=1"], "values": ["x=1"]}, "--input x: its shape is given as well; leave out --shape x"),
        ({"batch_axes": ["x=a"]}, "--batch-axis 'x=a': the axis should be a number from 0 on, or none"),
        ({"batch_axes": ["x"]}, "--batch-axis 'x': it should be like --batch-axis x=0"),
        ({"custom_ops": [Path("gone.so")]}, "--custom-ops gone.so: no such file"),
    ],
)
def test_options_that_are_none(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        feedings(**values)
    assert said in str(caught.value)
