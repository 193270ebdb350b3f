"""The worker in Node, for real: onnxruntime-web; its results are those of the Python worker."""

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench import worker
from edgekd.bench.records import Plan, Record
from edgekd.card import Export
from edgekd.data.images import in_memory
from edgekd.data.originals import keep_originals, keep_timed
from edgekd.devices.environments import environment_folder
from edgekd.export.suppress import with_suppression
from edgekd.tasks.known import load_card

FILE = Path(worker.__file__).with_name("worker.mjs")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder of the environment `wasm`; without it, or without Node, nothing here can be tested."""
    folder = environment_folder("wasm")
    if shutil.which("node") is None or not (folder / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("no onnxruntime-web here: edgekd doctor --install wasm")
    return folder


@pytest.fixture
def run(modules: Path, tmp_path: Path) -> Run:
    """Run the program with a plan; its result is in out.json."""

    def call(plan: dict[str, Any], model: Path) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        files = ["--plan", str(tmp_path / "plan.json"), "--model", str(model), "--out", str(tmp_path / "out.json")]
        command = ["node", str(FILE), "--modules", str(modules), *files]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture
def measure(run: Run, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The result of a plan that works."""

    def call(plan: dict[str, Any], model: Path) -> dict[str, Any]:
        done = run(plan, model)
        result: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        assert (done.returncode, done.stderr) == (0, ""), result
        return result

    return call


@pytest.fixture
def failure(run: Run, tmp_path: Path) -> Callable[..., str]:
    """The `error` of the result of a plan that does not."""

    def call(plan: dict[str, Any], model: Path) -> str:
        done = run(plan, model)
        assert (done.returncode, done.stderr) == (1, "")
        result = json.loads((tmp_path / "out.json").read_text())
        assert set(result) == {"schema_version", "error"}
        assert "\n" not in result["error"]
        return str(result["error"])

    return call


def write_model(path: Path, batch: str | int = "n", kind: int = TensorProto.UINT8, inputs: int = 1) -> Path:
    """A model (batch, 4, 4, 1) -> (batch, 3): the pixels as floats times a matrix."""
    matrix = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"], name="matmul"),
    ]
    given = [helper.make_tensor_value_info(name, kind, [batch, 4, 4, 1]) for name in ("image", "other")[:inputs]]
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph(nodes, "tiny", given, [taken], [numpy_helper.from_array(matrix, "matrix")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def write_nodes(
    path: Path, nodes: list[onnx.NodeProto], output: onnx.ValueInfoProto, kind: int = TensorProto.FLOAT, **values: Any
) -> Path:
    """A model of an input `image` (n, 3), constants by name, and these nodes."""
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    image = helper.make_tensor_value_info("image", kind, ["n", 3])
    graph = helper.make_graph(nodes, "nodes", [image], [output], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def write_inputs(path: Path, rows: int, dtype: type = np.uint8, shape: tuple[int, ...] = (4, 4, 1)) -> Path:
    np.save(path, np.random.default_rng(1).integers(0, 100, (rows, *shape)).astype(dtype))
    return path


def make_plan(**values: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "mode": "latency",
        "provider": "wasm",
        "warmup_s": 0.0,
        "min_calls": 5,
        "max_calls": 5,
        "max_s": 0.0,
    }
    return Plan(**given | values).as_json()


def of_python(plan: dict[str, Any], model: Path) -> dict[str, Any]:
    return worker.measure({**plan, "provider": "CPUExecutionProvider"}, str(model))


def predictions(measured: Callable[..., dict[str, Any]], model: Path, inputs: Path) -> NDArray[np.float32]:
    outputs = inputs.with_name("outputs.npy")
    plan = make_plan(mode="predict", inputs=str(inputs), outputs=str(outputs), batch_size=16)
    shape = measured(plan, model)["outputs_shape"]
    given: NDArray[np.float32] = np.load(outputs)
    assert list(given.shape) == shape
    assert given.dtype == np.float32
    return given


# --- measuring ---


@pytest.mark.parametrize("mode", ["latency", "memory", "throughput"])
def test_a_record_has_what_pythons_has(measure: Callable[..., dict[str, Any]], tmp_path: Path, mode: str) -> None:
    model = write_model(tmp_path / "m.onnx")
    plan = make_plan(mode=mode, inputs=str(write_inputs(tmp_path / "inputs.npy", 7)), batch_size=2, affinity=(0,))
    result, pythons = measure(plan, model), of_python(plan, model)
    assert list(tmp_path.glob("*.part")) == []
    assert result.keys() == pythons.keys()
    assert result["schema_version"] == pythons["schema_version"]
    for key in ("disturbance", "memory"):
        assert result[key].keys() == pythons[key].keys()
    assert result["fingerprint"].keys() == pythons["fingerprint"].keys() | {"node"}
    record = Record.from_json(result)
    assert (record.mode, record.batch_size, record.energy_j) == (mode, 2, None)
    assert record.load_s > 0
    if mode == "throughput":
        assert (record.sessions, record.calls) == (1, 5)
        assert record.elapsed_s > 0
    else:
        assert record.first_call_s and record.first_call_s > 0
        assert len(record.latency_s) == 5
        assert min(record.latency_s) > 0
    mark = record.fingerprint
    assert {key: mark[key] for key in ("affinity", "provider", "providers_assigned", "inputs")} == {
        "affinity": [0],
        "provider": "wasm",
        "providers_assigned": ["wasm"],
        "inputs": "data",
    }
    for key in ("model_sha256", "system", "architecture", "cpu", "graph_level", "binding"):
        assert mark[key] == pythons["fingerprint"][key], key
    assert mark["node"] and mark["onnxruntime"]
    assert mark["numpy"] is mark["python"] is None


@pytest.mark.parametrize("baseline_first", [True, False])
def test_a_pair_has_what_pythons_has(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, baseline_first: bool
) -> None:
    new, old = write_model(tmp_path / "new.onnx"), write_model(tmp_path / "old.onnx", batch=2)
    inputs = str(write_inputs(tmp_path / "inputs.npy", 7))
    plan = make_plan(mode="pair", baseline=str(old), baseline_first=baseline_first, inputs=inputs, batch_size=2)
    result, pythons = measure(plan, new), of_python(plan, new)
    assert result.keys() == pythons.keys()
    assert result["baseline"].keys() == pythons["baseline"].keys()
    record = Record.from_json(result)
    assert (record.mode, record.batch_size) == ("pair", 2)
    assert record.baseline is not None
    assert len(record.latency_s) >= 5
    for given, expected in ((result, pythons), (result["baseline"], pythons["baseline"])):
        assert given["fingerprint"].keys() == expected["fingerprint"].keys() | {"node"}
        assert given["fingerprint"]["model_sha256"] == expected["fingerprint"]["model_sha256"]
        assert given["fingerprint"]["inputs"] == "data"
    assert record.fingerprint["model_sha256"] != record.baseline["fingerprint"]["model_sha256"]


def write_gather(path: Path, rows: int) -> Path:
    """A model that looks its inputs (n, 3) up in a table, and fails for those beyond the table's end."""
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("Gather", ["table", "image"], ["logits"])
    return write_nodes(path, [node], logits, kind=TensorProto.INT64, table=np.zeros(rows, np.float32))


@pytest.mark.parametrize(
    ("row", "fail", "whose"),
    # With a first call of either model, and then blocks of three: o0–2 n0–2 n3–5 o3–5.
    [(1, "both", "old"), (4, "both", "new"), (4, "old", "old"), (4, "new", "new")],
)
def test_blocks_alternate_and_the_model_that_fails_is_named(
    run: Run, tmp_path: Path, row: int, fail: str, whose: str
) -> None:
    new, old = (write_gather(tmp_path / name, 5 if fail in (name, "both") else 50) for name in ("new", "old"))
    rows = np.zeros((6, 3), np.int64)
    rows[row] = 20
    np.save(tmp_path / "inputs.npy", rows)
    plan = make_plan(mode="pair", baseline=str(old), inputs=str(tmp_path / "inputs.npy"), block_s=0.0, min_calls=6)
    assert run(plan, new).returncode == 1
    error = json.loads((tmp_path / "out.json").read_text())["error"]
    assert error.startswith(("" if whose == "new" else f"baseline {old}: ") + "the model fails when it runs: ")


@pytest.mark.parametrize("whose", ["new", "old"])
def test_both_models_of_a_pair_are_warmed_up(run: Run, tmp_path: Path, whose: str) -> None:
    """The first block ends before the row for which one of them fails; only a warm-up gets there."""
    new, old = (write_gather(tmp_path / name, 5 if name == whose else 50) for name in ("new", "old"))
    rows = np.zeros((12, 3), np.int64)
    rows[9] = 20
    np.save(tmp_path / "inputs.npy", rows)
    plan = make_plan(mode="pair", baseline=str(old), inputs=str(tmp_path / "inputs.npy"), block_s=0.0, max_calls=3)
    assert run(plan, new).returncode == 0
    assert run({**plan, "warmup_s": 0.01}, new).returncode == 1
    error = json.loads((tmp_path / "out.json").read_text())["error"]
    assert error.startswith(("" if whose == "new" else f"baseline {old}: ") + "the model fails when it runs: ")


def test_peak_memory_grows(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    memory = Record.from_json(measure(make_plan(mode="memory"), write_model(tmp_path / "m.onnx"))).memory
    if memory["run_bytes"] is None:
        pytest.skip("this system has no /proc/self/status")
    assert 0 < (memory["import_bytes"] or 0) <= (memory["load_bytes"] or 0) <= memory["run_bytes"]


def test_warm_up_waits_for_the_compiler(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = measure(make_plan(warmup_s=0.01), write_model(tmp_path / "m.onnx"))
    assert len(result["warmup_s"]) >= 30
    assert 0.05 < sum(result["warmup_s"]) < 4.0
    # This model's calls are so short that each timing is the mean of several.
    typical = float(np.median(result["warmup_s"][-10:]))
    assert result["inner_calls"] == (int(np.ceil(50e-6 / typical)) if typical < 50e-6 else 1)


@pytest.mark.parametrize("bounds", [{"max_calls": 8, "max_s": 1e9}, {"max_calls": 50, "min_calls": 8, "max_s": 0.0}])
def test_the_number_of_calls_is_bounded(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, bounds: dict[str, float]
) -> None:
    assert len(measure(make_plan(**bounds), write_model(tmp_path / "m.onnx"))["latency_s"]) == 8


def test_two_threads(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = measure(make_plan(intra_op_threads=2), write_model(tmp_path / "m.onnx"))
    assert result["fingerprint"]["intra_op_threads"] == 2


def test_kernels_are_profiled(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    result = measure(make_plan(mode="profile", min_calls=6), model)
    pythons = of_python(make_plan(mode="profile", min_calls=6), model)
    assert result["assigned"] == []
    named = [(kernel["node"], kernel["op_type"]) for kernel in result["kernels"]]
    assert named == [(kernel["node"], kernel["op_type"]) for kernel in pythons["kernels"]]
    assert ("cast", "Cast") in named
    for kernel in Record.from_json(result).kernels:
        assert kernel["provider"] == "wasm"
        assert len(kernel["us"]) == 5


# --- inputs ---


@pytest.mark.parametrize("batch", ["n", 4])
def test_random_inputs(measure: Callable[..., dict[str, Any]], tmp_path: Path, batch: str | int) -> None:
    result = measure(make_plan(batch_size=3), write_model(tmp_path / "m.onnx", batch=batch, kind=TensorProto.FLOAT16))
    assert result["batch_size"] == (3 if batch == "n" else 4)
    assert result["fingerprint"]["inputs"] == "random"


def test_a_type_without_random_inputs_is_told(failure: Callable[..., str], tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", kind=TensorProto.UINT16)
    assert failure(make_plan(), model) == "input image is tensor(uint16); give real inputs for it"


@pytest.mark.parametrize(("batch", "kept"), [(1, 64), (16, 4), (20, 3), (40, 2), (100, 2)])
def test_few_inputs_are_kept_ready(run: Run, tmp_path: Path, batch: int, kept: int) -> None:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("Gather", ["table", "image"], ["logits"])
    table = np.zeros(2, np.float32)
    model = write_nodes(tmp_path / "m.onnx", [node], logits, kind=TensorProto.INT64, table=table)
    for wrong, code in ((kept - 1, 1), (kept, 0)):  # the model fails when it gets the batch of this number
        rows = np.zeros((batch * (kept + 1), 3), np.int64)
        rows[batch * wrong] = 99
        np.save(tmp_path / "inputs.npy", rows)
        plan = make_plan(inputs=str(tmp_path / "inputs.npy"), batch_size=batch, min_calls=70, max_calls=70)
        assert run(plan, model).returncode == code, wrong


# --- predicting ---


@pytest.mark.parametrize("batch", ["n", 4])
def test_predictions_are_those_of_the_python_worker(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, batch: str | int
) -> None:
    model, inputs = write_model(tmp_path / "m.onnx", batch=batch), write_inputs(tmp_path / "inputs.npy", 65)
    given, expected = predictions(measure, model, inputs), predictions(of_python, model, inputs)
    assert given.shape == (65, 3)
    assert np.allclose(given, expected, rtol=1e-5, atol=1e-3)
    assert np.abs(given).max() > 10


DTYPES = {
    "INT8": np.int8,
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "DOUBLE": np.float64,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@pytest.mark.parametrize("kind", DTYPES)
def test_data_of_every_known_type(measure: Callable[..., dict[str, Any]], tmp_path: Path, kind: str) -> None:
    model = write_model(tmp_path / "m.onnx", kind=getattr(TensorProto, kind))
    inputs = write_inputs(tmp_path / "inputs.npy", 3, dtype=DTYPES[kind])
    assert np.allclose(predictions(measure, model, inputs), predictions(of_python, model, inputs), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "INT64"])
def test_other_outputs_become_floats(measure: Callable[..., dict[str, Any]], tmp_path: Path, kind: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["logits"], to=getattr(TensorProto, kind))],
        "cast",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", getattr(TensorProto, kind), ["n", 2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    rows = np.array([[0.0, 1.0], [-2.0, 2.0**-13], [65504.0, 2.0**-20]], np.float32)
    np.save(tmp_path / "inputs.npy", rows)
    assert np.array_equal(
        predictions(measure, tmp_path / "m.onnx", tmp_path / "inputs.npy"),
        np.trunc(rows) if kind == "INT64" else rows,
    )


@pytest.mark.parametrize("batch", ["n", 4])
def test_axes_of_one_after_the_logits_are_dropped(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, batch: str | int
) -> None:
    model = onnx.load(write_model(tmp_path / "m.onnx", batch=batch))
    model.graph.node.append(helper.make_node("Reshape", ["logits", "shape"], ["wide"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 3, 1, 1]), "shape"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.FLOAT, [batch, 3, 1, 1]))
    onnx.save(model, tmp_path / "wide.onnx")
    inputs = write_inputs(tmp_path / "inputs.npy", 18)
    given = predictions(measure, tmp_path / "wide.onnx", inputs)
    assert given.shape == (18, 3)
    assert np.array_equal(given, predictions(measure, tmp_path / "m.onnx", inputs))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_class_maps_are_those_of_the_python_worker(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, kind: int
) -> None:
    image, logits = (helper.make_tensor_value_info(name, kind, ["n", 3, 2, 5]) for name in ("image", "logits"))
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "same", [image], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    drawn = np.random.default_rng(0).integers(0, 3, (6, 3, 2, 5))
    np.save(tmp_path / "inputs.npy", drawn.astype(np.float32 if kind == TensorProto.FLOAT else np.int64))
    plan = make_plan(mode="predict", inputs=str(tmp_path / "inputs.npy"), answers="classes", batch_size=4)
    found = []
    for run in (measure, of_python):
        shape = run({**plan, "outputs": str(tmp_path / "o.npy")}, tmp_path / "m.onnx")["outputs_shape"]
        found.append(np.load(tmp_path / "o.npy"))
        assert list(found[-1].shape) == shape
    assert found[0].dtype == np.uint8
    assert np.array_equal(*found)
    assert np.array_equal(found[0], drawn.argmax(axis=1) if kind == TensorProto.FLOAT else drawn)


@pytest.mark.parametrize(("classes", "places"), [(3, 30), (96, 6)])  # (96, 6): as large as finished detections
def test_detections_are_those_of_the_python_worker(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, classes: int, places: int
) -> None:
    shape: list[str | int | None] = ["n", 4 + classes, places]
    image, boxes = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "boxes"))
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["boxes"])], "same", [image], [boxes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, 60, (6, 2, places)), rng.uniform(5, 40, (6, 2, places))
    scores = rng.random((6, classes, places)) ** 4
    raw = np.concatenate([corners, corners + sides, scores], axis=1).astype(np.float32)
    raw[5, 4:] = 0  # an image without detections
    np.save(tmp_path / "inputs.npy", raw)
    plan = make_plan(mode="predict", inputs=str(tmp_path / "inputs.npy"), answers="boxes", batch_size=4)
    found = []
    for run in (measure, of_python):
        told = run({**plan, "outputs": str(tmp_path / "o.npy")}, tmp_path / "m.onnx")["outputs_shape"]
        found.append(np.load(tmp_path / "o.npy"))
        assert list(found[-1].shape) == told == [6, 100, 6]
    assert np.array_equal(*found)
    assert (found[0][5, :, 5] == -1).all() and (found[0][:5, 0, 5] >= 0).all()
    assert classes > 3 or (found[0][:5, 20:, 5] == -1).any()


def test_suppression_in_the_graph_finds_what_the_workers_find(
    measure: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shape: list[str | int | None] = ["n", 7, 60]
    image, boxes = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "boxes"))
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["boxes"])], "same", [image], [boxes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "plain.onnx")
    onnx.save(with_suppression(model, Export(nms=True, nms_boxes=9)), tmp_path / "suppressing.onnx")
    rng = np.random.default_rng(1)
    corners, sides = rng.uniform(0, 60, (5, 2, 60)), rng.uniform(5, 40, (5, 2, 60))
    scores = rng.integers(0, 8, (5, 3, 60)) / 8  # many are equal
    raw = np.concatenate([corners, corners + sides, scores], axis=1).astype(np.float32)
    raw[4, 4:] = 0
    np.save(tmp_path / "inputs.npy", raw)
    plan = make_plan(mode="predict", inputs=str(tmp_path / "inputs.npy"), answers="boxes", batch_size=2)
    found = {}
    for name in ("plain", "suppressing"):
        told = measure({**plan, "outputs": str(tmp_path / "o.npy")}, tmp_path / f"{name}.onnx")["outputs_shape"]
        found[name] = np.load(tmp_path / "o.npy")
        assert list(found[name].shape) == told == [5, 100, 6]
    assert np.array_equal(found["plain"][:, :9], found["suppressing"][:, :9])
    assert (found["suppressing"][:, 9:, 5] == -1).all() and (found["suppressing"][4, :, 5] == -1).all()


def test_progress_of_predictions_is_told(run: Run, tmp_path: Path) -> None:
    plan = make_plan(mode="predict", inputs=str(write_inputs(tmp_path / "inputs.npy", 40)), batch_size=16)
    done = run({**plan, "outputs": str(tmp_path / "o.npy")}, write_model(tmp_path / "m.onnx"))
    assert done.stdout.splitlines()[0] == "done 16 40"


# --- what cannot be measured ---


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"typo": 1}, "the plan has unknown keys: typo; known: mode, provider, "),
        ({"mode": "dance"}, 'the plan\'s mode is "dance"; known: latency, pair, throughput, memory, profile, predict'),
        ({"batch_size": "1"}, 'the plan\'s batch_size is "1"; it should be like 1'),
        ({"binding": "io"}, 'onnxruntime-web cannot bind inputs and outputs: binding "io"'),
        ({"mode": "throughput", "sessions": 2}, "JavaScript calls from one thread: sessions can only be 1"),
        ({"provider": "webgpu"}, "this onnxruntime offers wasm; webgpu is not among them"),
        ({"mode": "predict", "outputs": "o.npy"}, "mode predict needs `inputs`"),
        ({"mode": "pair"}, "mode pair needs `baseline`"),
        ({"mode": "pair", "baseline": ""}, "mode pair needs `baseline`"),
        ({"mode": "pair", "baseline": 5}, "mode pair needs `baseline`"),
        ({"baseline_first": 1}, "the plan's baseline_first is 1; it should be like true"),
        ({"block_s": "short"}, 'the plan\'s block_s is "short"; it should be like 0.005'),
        ({"inputs": "none.npy"}, "ENOENT: no such file or directory, open 'none.npy'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_plan_is_told(failure: Callable[..., str], tmp_path: Path, values: dict[str, Any], error: str) -> None:
    assert failure({**make_plan(), **values}, write_model(tmp_path / "m.onnx")).startswith(error)


@pytest.mark.parametrize(
    ("data", "got"),
    [({"dtype": np.float32}, "float32 [6, 4, 4, 1]"), ({"shape": (1, 4, 4)}, "uint8 [6, 1, 4, 4]")],
    ids=["type", "layout"],
)
def test_data_that_does_not_fit_is_told(
    failure: Callable[..., str], tmp_path: Path, data: dict[str, Any], got: str
) -> None:
    plan = make_plan(inputs=str(write_inputs(tmp_path / "inputs.npy", 6, **data)))
    error = failure(plan, write_model(tmp_path / "m.onnx"))
    assert error == f"the model takes tensor(uint8) ['n', 4, 4, 1]; the data is {got}"


def test_a_file_that_is_cut_short_is_told(failure: Callable[..., str], tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs.npy", 6)
    inputs.write_bytes(inputs.read_bytes()[:-1])
    assert failure(make_plan(inputs=str(inputs)), write_model(tmp_path / "m.onnx")) == f"{inputs}: ends early"


def test_what_is_wrong_with_a_file_is_not_cut_off(failure: Callable[..., str], tmp_path: Path) -> None:
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    model.ir_version = 99
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    error = failure(make_plan(mode="load"), tmp_path / "m.onnx")
    assert "Unsupported model IR version: 99, max supported IR version: " in error
    assert ".cc:" not in error


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_broken_model_is_told(failure: Callable[..., str], tmp_path: Path, share: float) -> None:
    whole = write_model(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: int(share * len(whole))])
    assert failure(make_plan(), tmp_path / "m.onnx").startswith("onnxruntime cannot load it: ")


@pytest.mark.parametrize("content", [None, b"no model"], ids=["missing", "broken"])
def test_a_baseline_that_cannot_be_loaded_is_told(
    failure: Callable[..., str], tmp_path: Path, content: bytes | None
) -> None:
    old = tmp_path / "old.onnx"
    if content is not None:
        old.write_bytes(content)
    error = failure(make_plan(mode="pair", baseline=str(old)), write_model(tmp_path / "m.onnx"))
    assert error.startswith(f"baseline {old}: onnxruntime cannot load it: ")


def test_models_of_different_batches_are_no_pair(failure: Callable[..., str], tmp_path: Path) -> None:
    new, old = write_model(tmp_path / "new", batch=4), write_model(tmp_path / "old", batch=2)
    error = failure(make_plan(mode="pair", baseline=str(old)), new)
    assert error == f"baseline {old}: it takes 2 inputs a call, the model 4"


def test_a_model_that_fails_when_it_runs_is_told(failure: Callable[..., str], tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "shape"], ["logits"])],
        "fails",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.UINT8, ["a", "b"])],
        [numpy_helper.from_array(np.array([7, 11], np.int64), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert failure(make_plan(), tmp_path / "m.onnx").startswith("the model fails when it runs: ")


def test_a_model_without_inputs_is_told(failure: Callable[..., str], tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.zeros((2, 2), np.float32), "value")
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph([helper.make_node("Constant", [], ["logits"], value=value)], "constant", [], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    inputs = str(write_inputs(tmp_path / "inputs.npy", 2))
    for plan in (make_plan(), make_plan(inputs=inputs), make_plan(mode="predict", inputs=inputs, outputs="o.npy")):
        assert failure(plan, tmp_path / "m.onnx") == "the model has no inputs"


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ([1, 4, 3], "float32 [1, 4, 3]"),
        ([2, 6], "float32 [2, 6]"),
        ([12, 1], "float32 [12, 1]"),
        ([4, 1, 3], "float32 [4, 1, 3]"),
        ([12], "float32 [12]"),
    ],
    ids=str,
)
def test_an_output_without_a_row_per_input_is_told(
    failure: Callable[..., str], tmp_path: Path, shape: list[int], got: str
) -> None:
    node = helper.make_node("Reshape", ["image", "shape"], ["logits"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * len(shape))
    model = write_nodes(tmp_path / "m.onnx", [node], logits, shape=shape)
    inputs = write_inputs(tmp_path / "inputs.npy", 6, dtype=np.float32, shape=(3,))
    plan = make_plan(mode="predict", inputs=str(inputs), outputs=str(tmp_path / "o.npy"), batch_size=4)
    assert failure(plan, model) == f"the first output is {got}; accuracy needs one row of logits per input"


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
MAPS = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, FLOATS))


@pytest.mark.parametrize(
    ("node", "output", "got"),
    [
        (
            helper.make_node("SequenceConstruct", ["image", "image"], ["logits"]),
            helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, ["n", 3]),
            "no tensor",
        ),
        (
            helper.make_node("ZipMap", ["image"], ["logits"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
            helper.make_value_info("logits", MAPS),
            "no tensor",
        ),
        (
            helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.STRING),
            helper.make_tensor_value_info("logits", TensorProto.STRING, ["n", 3]),
            "string [4, 3]",
        ),
    ],
    ids=["sequence", "maps", "text"],
)
def test_an_output_that_is_no_logits_is_told(
    failure: Callable[..., str], tmp_path: Path, node: onnx.NodeProto, output: onnx.ValueInfoProto, got: str
) -> None:
    model = write_nodes(tmp_path / "m.onnx", [node], output)
    inputs = write_inputs(tmp_path / "inputs.npy", 6, dtype=np.float32, shape=(3,))
    plan = make_plan(mode="predict", inputs=str(inputs), outputs=str(tmp_path / "o.npy"), batch_size=4)
    assert failure(plan, model) == f"the first output is {got}; accuracy needs one row of logits per input"


def test_a_model_beyond_32_bits_is_told(failure: Callable[..., str], tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Mul", ["shape", "many"], ["sizes"]),
            helper.make_node("ConstantOfShape", ["sizes"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["logits"]),
        ],
        "huge",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array([2_000, 1_000_000], np.int64), "many")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert failure(make_plan(), tmp_path / "m.onnx").startswith("out of memory (the model fails when it runs: ")


def test_a_folder_without_onnxruntime_web_is_told(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    files = ["--plan", "plan.json", "--model", "m.onnx", "--out", "out.json"]
    done = subprocess.run(["node", str(FILE), "--modules", str(tmp_path), *files], cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    error = json.loads((tmp_path / "out.json").read_text())["error"]
    assert error.startswith(f"no onnxruntime-web in {tmp_path}: ")


# --- sequences ---


def write_counter(path: Path) -> Path:
    """ids (batch, length) -> (batch, 2): the length of the input as it came, and the sum of the ids."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["float", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axis"], ["length"], keepdims=1),
        helper.make_node("Concat", ["length", "sum"], ["logits"], axis=1),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    given = helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", "length"])
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "counts", [given], [taken], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("size", [1, 2, 3])
def test_padding_is_left_out_as_the_python_worker_does(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, size: int
) -> None:
    ids = np.zeros((5, 9), dtype=np.int32)
    for row, length in enumerate((3, 9, 1, 4, 2)):
        ids[row, :length] = np.arange(1, length + 1)
    np.save(tmp_path / "ids.npy", ids)
    files = {"inputs": str(tmp_path / "ids.npy"), "outputs": str(tmp_path / "answers.npy")}
    plan = make_plan(mode="predict", batch_size=size, padding=0, **files)
    model = write_counter(tmp_path / "counts.onnx")
    measure(plan, model)
    mine = np.load(tmp_path / "answers.npy")
    of_python(plan, model)
    assert np.array_equal(mine, np.load(tmp_path / "answers.npy"))
    assert mine[:, 1].tolist() == [6, 45, 1, 10, 3]
    assert mine[0, 0] == {1: 3, 2: 9, 3: 9}[size]


@pytest.mark.parametrize(("asked", "given"), [(4, 4), (5, 4), (8, 9), (2, 2)])
def test_sequences_of_the_nearest_length_are_timed(
    measure: Callable[..., dict[str, Any]],
    failure: Callable[..., str],
    tmp_path: Path,
    asked: int,
    given: int,
) -> None:
    ids = np.zeros((4, 9), dtype=np.int32)
    for row, length in enumerate((2, 9, 4, 9)):
        ids[row, :length] = 7
    np.save(tmp_path / "ids.npy", ids)
    model = write_counter(tmp_path / "counts.onnx")
    plan = make_plan(inputs=str(tmp_path / "ids.npy"), sequence_length=asked, padding=0)
    assert measure(plan, model)["fingerprint"]["sequence_length"] == given
    assert of_python(plan, model)["fingerprint"]["sequence_length"] == given
    assert measure(make_plan(sequence_length=asked), model)["fingerprint"]["sequence_length"] == asked
    free = "input ids is int32 [batch,length], and the size of axis 1 (length) is free; give its shape, as --shape "
    assert failure(make_plan(), model) == free + "ids=1,LENGTH, or real inputs, by --data"
    shaped = make_plan(shapes={"ids": (2, 3)})
    for fingerprint in (measure(shaped, model)["fingerprint"], of_python(shaped, model)["fingerprint"]):
        assert fingerprint["shapes"] == {"ids": [2, 3]}
        assert "sequence_length" not in fingerprint


# --- several inputs, arrays by name, images of several sizes ---


def write_sum(path: Path, batch: str | int = "n") -> Path:
    """a (batch, 3), b (batch, 3) and a scalar k: the outputs `sum` = a + k b and `difference` = a - b."""
    nodes = [
        helper.make_node("Mul", ["b", "k"], ["scaled"]),
        helper.make_node("Add", ["a", "scaled"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in "ab"]
    given.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, []))
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("sum", "difference")]
    graph = helper.make_graph(nodes, "sum", given, taken)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def both(measured: Callable[..., dict[str, Any]], plan: dict[str, Any], model: Path) -> list[NDArray[np.float32]]:
    """The answers of this worker and of Python's."""
    found = []
    for call in (measured, of_python):
        call(plan, model)
        found.append(np.load(plan["outputs"]))
    return found


@pytest.mark.parametrize("output", [None, "difference"])
def test_arrays_by_name_are_fed_as_by_the_python_worker(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, output: str | None
) -> None:
    rng, model = np.random.default_rng(0), write_sum(tmp_path / "m.onnx")
    a, b = rng.standard_normal((2, 7, 3)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", a=a, b=b[0], k=np.float32(2))  # b is one example for all calls
    files = {"inputs": str(tmp_path / "inputs.npz"), "outputs": str(tmp_path / "o.npy")}
    plan = make_plan(mode="predict", batch_size=3, output=output, **files)
    own, pythons = both(measure, plan, model)
    assert np.allclose(own, a - b[0] if output else a + 2 * b[0], atol=1e-6)
    assert np.array_equal(own, pythons)
    mark = measure(make_plan(inputs=files["inputs"]), model)["fingerprint"]
    assert mark["shapes"] == {"a": [1, 3], "b": [1, 3], "k": []}
    assert mark["batch_axes"] == {"a": 0, "b": 0}


def test_a_constant_completes_the_data(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model = write_sum(tmp_path / "m.onnx")
    np.savez(tmp_path / "inputs.npz", a=np.ones((2, 3), np.float32), b=np.ones((2, 3), np.float32))
    files = {"inputs": str(tmp_path / "inputs.npz"), "outputs": str(tmp_path / "o.npy")}
    own, pythons = both(measure, make_plan(mode="predict", values={"k": 4}, **files), model)
    assert np.array_equal(own, np.full((2, 3), 5)) and np.array_equal(own, pythons)


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        (
            {"a": (2, 3), "b": (3, 3), "k": ()},
            "the data should have equally many examples for all inputs, at least one",
        ),
        ({"a": (2, 3), "k": ()}, "the data hold no array for input 'b'; add it, or give it by --input"),
        ({"a": (2, 3), "b": (2, 3), "k": (), "c": (1,)}, "the data hold an array 'c'; its inputs are a, b, k"),
        ({"a": (2, 4), "b": (2, 3), "k": ()}, "input a takes [n,3]; what is given for it is [2,4]"),
    ],
    ids=["counts", "missing", "unknown", "shape"],
)
def test_arrays_that_do_not_fit_are_told(
    failure: Callable[..., str], tmp_path: Path, arrays: dict[str, tuple[int, ...]], error: str
) -> None:
    given: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
    np.savez(tmp_path / "inputs.npz", **given)
    plan = make_plan(inputs=str(tmp_path / "inputs.npz"))
    assert failure(plan, write_sum(tmp_path / "m.onnx")).startswith(error)


def test_libraries_are_refused(failure: Callable[..., str], tmp_path: Path) -> None:
    plan = make_plan(custom_ops=("ops.so",))
    assert (
        failure(plan, write_model(tmp_path / "m.onnx")) == "onnxruntime-web loads no libraries; leave --custom-ops out"
    )


def write_state(path: Path) -> Path:
    """x (batch, 2) and a state (2, batch, 2), as recurrent networks have it: x + the sum of the state."""
    nodes = [
        helper.make_node("ReduceSum", ["state", "axis"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["logits"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])]
    given.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, "batch", 2]))
    taken = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    axis = numpy_helper.from_array(np.array([0]), "axis")
    graph = helper.make_graph(nodes, "state", given, taken, [axis])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_batch_along_another_axis(run: Run, measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    model, path = write_state(tmp_path / "m.onnx"), tmp_path / "inputs.npz"
    assert measure(make_plan(batch_size=3), model)["fingerprint"]["shapes"] == {"x": [3, 2], "state": [2, 3, 2]}
    x, state = np.arange(10, dtype=np.float32).reshape(5, 2), np.arange(4, dtype=np.float32).reshape(2, 1, 2)
    np.savez(path, x=x, state=state[:, 0])  # one example for all calls has no batch axis
    plan = make_plan(mode="predict", inputs=str(path), outputs=str(tmp_path / "o.npy"), batch_size=4)
    own, pythons = both(measure, plan, model)
    assert np.array_equal(own, x + np.array([2, 4])) and np.array_equal(own, pythons)
    np.savez(path, x=x, state=np.repeat(state, 5, axis=1))
    assert run(plan, model).returncode == 1
    error = json.loads((tmp_path / "out.json").read_text())["error"]
    assert error.startswith("5 examples of input state are along axis 1; here they can only be along the first axis")


def test_sizes_without_a_name_are_free(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given, taken = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "free", [given], [taken])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    mark = measure(make_plan(shapes={"x": (1, 5)}), tmp_path / "m.onnx")["fingerprint"]
    assert (mark["shapes"], mark["batch_axes"]) == ({"x": [1, 5]}, {"x": 0})


def test_examples_of_different_shapes(measure: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["logits"], axes=[1, 2], keepdims=0),
    ]
    given = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "means", [given], [taken])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, 9, 3), dtype=np.uint8) for height in (4, 7, 5)]
    card = dataclasses.replace(load_card("cifar10"), export=Export(resize=True, timed_size=(8, 8)))
    split = in_memory(np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, np.int64), lambda i: images[i])
    keep_originals(split, tmp_path / "packed.npy")
    keep_timed(split, card, tmp_path / "timed.npy")
    files = {"inputs": str(tmp_path / "packed.npy"), "outputs": str(tmp_path / "o.npy")}
    own, pythons = both(measure, make_plan(mode="predict", packed=True, batch_size=1, **files), tmp_path / "m.onnx")
    assert np.allclose(own, [image.mean(axis=(0, 1)) for image in images], atol=1e-3)
    assert np.allclose(own, pythons, atol=1e-3)
    assert np.load(tmp_path / "timed.npy").shape == (3, 8, 8, 3)
