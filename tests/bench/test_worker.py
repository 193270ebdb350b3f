"""The worker: a program of its own that measures one model; what it reports, refuses and needs."""

import ast
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench import worker
from edgekd.bench.records import Plan, Record
from edgekd.bench.worker import WorkerError, detections

FILE = Path(worker.__file__)
TICK = 2.0**-10
"""Seconds between two readings of the test's clock; a power of two, so that sums are exact."""


def write_model(
    path: Path,
    batch: str | int = "n",
    kind: int = TensorProto.UINT8,
    shape: tuple[int, ...] = (4, 4, 1),
    inputs: int = 1,
) -> Path:
    """A model (batch, 4, 4, 1) -> (batch, 3): the pixels as floats times a matrix."""
    pixels = int(np.prod(shape))
    matrix = np.random.default_rng(0).standard_normal((pixels, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    given = [helper.make_tensor_value_info(name, kind, [batch, *shape]) for name in ("image", "other")[:inputs]]
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph(nodes, "tiny", given, [taken], [numpy_helper.from_array(matrix, "matrix")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def write_inputs(path: Path, rows: int, dtype: type = np.uint8, shape: tuple[int, ...] = (4, 4, 1)) -> Path:
    np.save(path, np.random.default_rng(1).integers(0, 256, (rows, *shape)).astype(dtype))
    return path


def make_plan(**values: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "mode": "latency",
        "provider": "CPUExecutionProvider",
        "warmup_s": 0.0,
        "min_calls": 5,
        "max_calls": 5,
        "max_s": 0.0,
    }
    return Plan(**given | values).as_json()


def answers(model: Path, inputs: NDArray[Any]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": inputs})[0])


def failure(plan: dict[str, Any], model: Path, folder: Path) -> str:
    """The `error` of the result that the program writes."""
    (folder / "plan.json").write_text(json.dumps(plan))
    out = folder / "out.json"
    code = worker.main(["--plan", str(folder / "plan.json"), "--model", str(model), "--out", str(out)])
    result = json.loads(out.read_text())
    assert code == 1
    assert set(result) == {"schema_version", "error"}
    assert "\n" not in result["error"]
    return str(result["error"])


def ticking(steps: Iterator[float] | None = None) -> Callable[[], float]:
    """A clock that goes on by one tick, or by the next of `steps`, at each reading."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += TICK if steps is None else next(steps)
        return now

    return clock


# --- the program ---


def test_the_program_writes_one_json(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx")
    inputs = write_inputs(tmp_path / "inputs.npy", 7)
    plan = make_plan(inputs=str(inputs), min_calls=12, max_calls=12, warmup_s=0.001, affinity=(0,))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-P", "-m", "edgekd.bench.worker"]
    files = ["--plan", "plan.json", "--model", "model.onnx", "--out", "out.json"]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = json.loads((tmp_path / "out.json").read_text())
    keys = "schema_version mode load_s first_call_s warmup_s warm inner_calls latency_s energy_j batch_size"
    assert set(result) == {*keys.split(), "memory", "disturbance", "fingerprint"}
    assert len(result["latency_s"]) == 12
    assert len(result["warmup_s"]) >= 10
    assert all(value > 0 for value in (result["load_s"], result["first_call_s"], *result["latency_s"]))
    memory = result["memory"]
    assert 0 < memory["import_bytes"] <= memory["load_bytes"] <= memory["run_bytes"]
    mark = result["fingerprint"]
    assert mark["providers_assigned"] == ["CPUExecutionProvider"]
    assert mark["nodes_by_provider"].keys() == {"CPUExecutionProvider"}
    assert mark["nodes_by_provider"]["CPUExecutionProvider"] >= 1
    assert mark["onnxruntime"] == onnxruntime.__version__
    assert mark["numpy"] == np.__version__
    assert mark["affinity"] == [0]
    assert mark["inputs"] == "data"
    for key in set(worker.SESSION_KEYS) - {"affinity"}:
        assert mark[key] == plan[key]
    digest = subprocess.run(["sha256sum", str(model)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert mark["model_sha256"] == digest
    assert Record.from_json(result).latency_s == tuple(result["latency_s"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inputs.npy", "model.onnx", "out.json", "plan.json"]


# --- timing ---


def test_latencies_are_differences_of_the_clock(tmp_path: Path) -> None:
    result = worker.measure(make_plan(), str(write_model(tmp_path / "m.onnx")), clock=ticking())
    assert result["load_s"] == TICK
    assert result["first_call_s"] == TICK
    assert result["warmup_s"] == []
    assert result["latency_s"] == pytest.approx([TICK] * 5, rel=1e-6)
    steps = [1.0, 2.0, 1.0, 3.0, 1.0, *(step for call in range(4, 9) for step in (1.0, 1.0, float(call))), 1.0]
    # Readings: two for loading, two for the first call, one where counting begins; then three for each call: whether
    # it is enough, begin and end.
    result = worker.measure(make_plan(), str(tmp_path / "m.onnx"), clock=ticking(iter(steps)))
    assert (result["load_s"], result["first_call_s"]) == (2.0, 3.0)
    assert result["latency_s"] == [4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("bounds", "calls"),
    [
        ({"min_calls": 5, "max_calls": 50, "max_s": 0.0}, 5),
        ({"min_calls": 5, "max_calls": 50, "max_s": 1e9}, 50),
        # After n calls the clock was read 3n times, and once more for the question whether it is enough: 3n + 1 ≥ 30.
        ({"min_calls": 5, "max_calls": 50, "max_s": 30 * TICK}, 10),
        ({"min_calls": 20, "max_calls": 50, "max_s": 30 * TICK}, 20),
        ({"min_calls": 20, "max_calls": 8, "max_s": 1e9}, 8),
    ],
)
def test_the_number_of_calls_is_bounded(tmp_path: Path, bounds: dict[str, float], calls: int) -> None:
    result = worker.measure(make_plan(**bounds), str(write_model(tmp_path / "m.onnx")), clock=ticking())
    assert len(result["latency_s"]) == calls


def test_warm_up_ends_when_three_blocks_agree(tmp_path: Path) -> None:
    plan = make_plan(warmup_s=1_000.0)
    model = str(write_model(tmp_path / "m.onnx"))
    result = worker.measure(plan, model, clock=ticking())
    assert (result["warmup_s"], result["warm"]) == ([TICK] * 31, True)  # one tells how long a call takes
    # Blocks of ten calls of 8, 4, 4, 2, 2, 2 seconds: only the last three agree.
    blocks = [8.0, *(seconds for seconds in (8.0, 4.0, 4.0, 2.0, 2.0, 2.0) for _ in range(10))]
    steps = [1.0] * 4 + [reading for seconds in blocks for reading in (1.0, seconds)] + [1.0] * 30
    result = worker.measure(plan, model, clock=ticking(iter(steps)))
    assert (result["warmup_s"], result["warm"]) == (blocks, True)


def test_blocks_within_two_percent_agree() -> None:
    def calls(*medians: float) -> Callable[[int], float]:
        return lambda number: medians[min(max(number - 1, 0) // 10, len(medians) - 1)]

    assert worker.warm_up(calls(1.0, 1.02, 1.01), 1_000.0) == ([1.0] * 11 + [1.02] * 10 + [1.01] * 10, True)
    spent, warm = worker.warm_up(calls(1.0, 1.03, 1.01, 1.02), 1_000.0)
    assert (len(spent), warm) == (41, True)


def test_warm_up_is_bounded(tmp_path: Path) -> None:
    # Each block is half as fast again; the limit of 100 s is reached in the fourth, with 71 + 4 × 8 s.
    blocks = [1.0, *(2.0**n for n in range(4) for _ in range(10))][:35]
    steps = [1.0] * 4 + [reading for seconds in blocks for reading in (1.0, seconds)] + [1.0] * 30
    result = worker.measure(
        make_plan(warmup_s=100.0), str(write_model(tmp_path / "m.onnx")), clock=ticking(iter(steps))
    )
    assert (result["warmup_s"], result["warm"]) == (blocks, False)
    assert worker.warm_up(lambda _: pytest.fail("a call was made"), 0.0) == ([], False)


def test_slow_calls_are_warmed_up_in_short_blocks() -> None:
    assert worker.warm_up(lambda _: 1.0, 10.0) == ([1.0] * 7, True)  # blocks of two calls
    assert worker.warm_up(lambda _: 1.0, 2.0) == ([1.0] * 2, True)  # no three blocks fit: the calls are alike
    assert worker.warm_up(lambda number: 3.0 - number, 4.0) == ([3.0, 2.0], False)


@pytest.mark.parametrize(
    ("call_s", "inner"),  # 50 µs through 0.95, 3.8, 30.5 and 61 µs
    [(2.0**-20, 53), (2.0**-18, 14), (2.0**-15, 2), (2.0**-14, 1), (1.0, 1)],
    ids=["1 µs", "4 µs", "31 µs", "61 µs", "1 s"],
)
def test_short_calls_are_timed_in_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_s: float, inner: int
) -> None:
    """The clock goes on by the same for each call, and stands still meanwhile."""
    now = 0.0
    called: list[int] = []

    def call(self: worker.Caller, number: int) -> None:
        nonlocal now
        now += call_s
        called.append(number)

    monkeypatch.setattr(worker.Caller, "__call__", call)
    plan = make_plan(warmup_s=1e-9, min_calls=4, max_calls=4)
    result = worker.measure(plan, str(write_model(tmp_path / "m.onnx")), clock=lambda: now)
    assert result["inner_calls"] == inner
    assert result["latency_s"] == pytest.approx([call_s] * 4, abs=1e-9)  # the mean of the loop, for each timing
    assert called == [0, 0, *range(4 * inner)]  # first call, one of warm-up, then each call with the next input


def test_very_short_calls_for_real(tmp_path: Path) -> None:
    result = worker.measure(make_plan(warmup_s=0.02, min_calls=20), str(write_model(tmp_path / "m.onnx")))
    typical = float(np.median(result["warmup_s"][-10:]))
    assert result["inner_calls"] == (math.ceil(50e-6 / typical) if typical < 50e-6 else 1)
    assert len(result["latency_s"]) == 5


# --- inputs ---


@pytest.mark.parametrize("kind", ["UINT8", "INT8", "FLOAT", "FLOAT16", "DOUBLE", "INT32", "INT64", "BOOL"])
def test_random_inputs_of_every_known_type(tmp_path: Path, kind: str) -> None:
    model = write_model(tmp_path / "m.onnx", kind=getattr(TensorProto, kind))
    result = worker.measure(make_plan(batch_size=3), str(model))
    assert len(result["latency_s"]) == 5
    assert result["batch_size"] == 3
    assert result["fingerprint"]["inputs"] == "random"


def test_a_type_without_random_inputs_is_told(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["words"], ["same"])],
        "words",
        [helper.make_tensor_value_info("words", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("same", TensorProto.STRING, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert (
        failure(make_plan(), tmp_path / "m.onnx", tmp_path)
        == "input words is tensor(string); give real inputs for it, by --input or --data"
    )


class Session:
    """A session that only notes what it is given."""

    def __init__(self, session: Any, name: str = "") -> None:
        self.session = session
        self.name = name
        self.fed: list[NDArray[np.uint8]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        self.fed.append(feed["image"])
        return []


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that workers make."""
    made: list[Session] = []
    make = worker.make_session

    def note(*arguments: Any) -> Session:
        made.append(Session(make(*arguments)))
        return made[-1]

    monkeypatch.setattr(worker, "make_session", note)
    return made


def test_data_is_fed_in_turn_and_begins_anew(tmp_path: Path, spied: list[Session]) -> None:
    rows = np.load(write_inputs(tmp_path / "inputs.npy", 5))
    plan = make_plan(inputs=str(tmp_path / "inputs.npy"), batch_size=2)
    worker.measure(plan, str(write_model(tmp_path / "m.onnx")), clock=ticking())
    # Three batches hold the five rows; the last one begins anew.
    expected = [rows[[0, 1]], rows[[0, 1]], rows[[2, 3]], rows[[4, 0]], rows[[0, 1]], rows[[2, 3]]]
    assert len(spied[0].fed) == 7  # the first call, then five, and one whose outputs are looked at
    assert all(np.array_equal(one, two) for one, two in zip(spied[0].fed[:-1], expected, strict=True))
    assert all(one.flags.c_contiguous for one in spied[0].fed)


def test_no_more_than_64_inputs_are_kept_ready(tmp_path: Path, spied: list[Session]) -> None:
    rows = np.load(write_inputs(tmp_path / "inputs.npy", 100))
    plan = make_plan(inputs=str(tmp_path / "inputs.npy"), min_calls=70, max_calls=70)
    worker.measure(plan, str(write_model(tmp_path / "m.onnx")), clock=ticking())
    fed = spied[0].fed[1:-1]
    assert all(np.array_equal(one[0], rows[place % 64]) for place, one in enumerate(fed))
    assert len({one.tobytes() for one in fed}) == 64


def test_random_inputs_are_seeded_and_rotated(tmp_path: Path, spied: list[Session]) -> None:
    model = str(write_model(tmp_path / "m.onnx"))
    for _ in range(2):
        worker.measure(make_plan(min_calls=10, max_calls=10), model, clock=ticking())
    one, two = ([array.tobytes() for array in session.fed] for session in spied)
    assert one == two
    assert len(set(one)) == 8


@pytest.mark.parametrize("inputs", ["data", "random"])
def test_a_fixed_batch_is_the_models(tmp_path: Path, inputs: str) -> None:
    model = write_model(tmp_path / "m.onnx", batch=4)
    file = str(write_inputs(tmp_path / "inputs.npy", 7)) if inputs == "data" else None
    result = worker.measure(make_plan(inputs=file), str(model))
    assert len(result["latency_s"]) == 5
    assert result["batch_size"] == 4


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ({"dtype": np.float32}, "float32 [6, 4, 4, 1]"),
        ({"shape": (1, 4, 4)}, "uint8 [6, 1, 4, 4]"),
        ({"shape": (16,)}, "uint8 [6, 16]"),
    ],
    ids=["type", "layout", "rank"],
)
def test_data_that_does_not_fit_is_told(tmp_path: Path, data: dict[str, Any], got: str) -> None:
    plan = make_plan(inputs=str(write_inputs(tmp_path / "inputs.npy", 6, **data)))
    model = write_model(tmp_path / "m.onnx")
    assert failure(plan, model, tmp_path) == f"the model takes tensor(uint8) ['n', 4, 4, 1]; the data is {got}"


def test_data_for_a_model_of_two_inputs_is_told(tmp_path: Path) -> None:
    plan = make_plan(inputs=str(write_inputs(tmp_path / "inputs.npy", 6)))
    model = write_model(tmp_path / "m.onnx", inputs=2)
    assert failure(plan, model, tmp_path).startswith("the model takes tensor(uint8) ['n', 4, 4, 1], tensor(uint8) [")


# --- modes ---


@pytest.mark.parametrize("mode", ["latency", "throughput", "memory", "profile"])
@pytest.mark.parametrize("inputs", ["data", "random"])
def test_bound_inputs_and_outputs(tmp_path: Path, mode: str, inputs: str) -> None:
    file = str(write_inputs(tmp_path / "inputs.npy", 7)) if inputs == "data" else None
    plan = make_plan(mode=mode, binding="io", inputs=file)
    result = worker.measure(plan, str(write_model(tmp_path / "m.onnx")))
    assert result["fingerprint"]["binding"] == "io"
    assert Record.from_json(json.loads(json.dumps(result))).mode == mode


def test_bound_calls_do_not_go_through_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[Any] = []
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *_: pytest.fail("session.run was called"))
    run = onnxruntime.InferenceSession.run_with_iobinding

    def note(self: Any, binding: Any) -> None:
        bound.append(binding)
        run(self, binding)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", note)
    write_inputs(tmp_path / "inputs.npy", 3)
    plan = make_plan(binding="io", inputs=str(tmp_path / "inputs.npy"))
    worker.measure(plan, str(write_model(tmp_path / "m.onnx")), clock=ticking())
    assert len(bound) == 7  # the last one for its outputs
    assert len(set(map(id, bound))) == 3  # one a row, in turn
    assert bound[1] is bound[4]


@pytest.mark.parametrize("sessions", [1, 2])
def test_throughput_of_sessions_side_by_side(tmp_path: Path, sessions: int, spied: list[Session]) -> None:
    plan = make_plan(mode="throughput", sessions=sessions, batch_size=4, min_calls=3, max_s=0.02, warmup_s=0.001)
    result = worker.measure(plan, str(write_model(tmp_path / "m.onnx")))
    record = Record.from_json(json.loads(json.dumps(result)))
    assert (record.sessions, record.batch_size) == (sessions, 4)
    assert record.elapsed_s >= 0.02
    assert len(spied) == sessions
    assert record.calls >= 3 * sessions
    # Every session was warmed up and then called; all calls but the warm-up's are counted.
    assert all(len(session.fed) >= 3 for session in spied)
    assert record.calls < sum(len(session.fed) for session in spied)


def test_throughput_goes_on_until_each_session_had_its_calls(tmp_path: Path) -> None:
    plan = make_plan(mode="throughput", sessions=3, min_calls=4, max_s=0.0)
    result = worker.measure(plan, str(write_model(tmp_path / "m.onnx")))
    assert result["calls"] == 12
    assert result["elapsed_s"] > 0


def write_int8_model(path: Path) -> Path:
    """A convolution between QuantizeLinear and DequantizeLinear, as a quantizer writes it."""
    constants: dict[str, NDArray[Any]] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "w": np.random.default_rng(0).integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "ws": np.array(0.01, np.float32),
        "wz": np.array(0, np.int8),
    }
    given = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="enter"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="float"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights"),
        helper.make_node("Conv", ["d", "wd"], ["c"], name="convolution"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["r"], name="back"),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["logits"], name="leave"),
    ]
    images = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 12, 12])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8, 10, 10])
    graph = helper.make_graph(nodes, "int8", [images], [logits], given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_profile_tells_kernels_and_assigned_nodes(tmp_path: Path) -> None:
    model = write_int8_model(tmp_path / "m.onnx")
    plan = make_plan(mode="profile", min_calls=6, optimized=str(tmp_path / "optimized.onnx"))
    record = Record.from_json(json.loads(json.dumps(worker.measure(plan, str(model)))))
    kinds = [kernel["op_type"] for kernel in record.kernels]
    assert kinds.count("QLinearConv") == 1
    assert "Conv" not in kinds
    assert all(kernel["provider"] == "CPUExecutionProvider" for kernel in record.kernels)
    assert all(len(kernel["us"]) == 5 for kernel in record.kernels)  # the first of the six sets things up
    assert all(value >= 0 for kernel in record.kernels for value in kernel["us"])
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert sorted(kinds) == sorted(optimized)
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):  # as it was before any fusion
        names = {"enter", "float", "weights", "convolution", "back", "leave"}
        assert {name for _, _, name in record.assigned} == names
        assert {provider for provider, _, _ in record.assigned} == {"CPUExecutionProvider"}
        assert ("CPUExecutionProvider", "Conv", "convolution") in record.assigned
        assert record.fingerprint["nodes_by_provider"] == {"CPUExecutionProvider": 6}
        assert record.fingerprint["ops_elsewhere"] == {}
    assert record.latency_s == ()  # nothing is timed while it is profiled


def test_kernels_of_a_profile_by_hand() -> None:
    def event(node: str, index: str, microseconds: int, **values: Any) -> dict[str, Any]:
        args = {"provider": "P", "op_name": "Conv", "node_index": index}
        return {"cat": "Node", "name": f"{node}_kernel_time", "dur": microseconds, "args": args} | values

    events = [
        {"cat": "Session", "name": "model_run", "dur": 9, "args": {}},
        event("a", "1", 100),
        event("b", "2", 50),
        event("a", "1", 10),
        event("a", "1", 12),
        event("a", "3", 7),  # another node of the same name
        {"cat": "Node", "name": "a_fence_before", "dur": 1, "args": {}},
    ]
    assert worker.kernels_of(events) == [
        {"provider": "P", "op_type": "Conv", "node": "a", "us": [10, 12]},
        {"provider": "P", "op_type": "Conv", "node": "b", "us": [50]},
        {"provider": "P", "op_type": "Conv", "node": "a", "us": [7]},
    ]


def test_memory_of_a_model_shows_its_size(tmp_path: Path) -> None:
    """In a process of its own: here the peak is that of the whole test run."""
    big = numpy_helper.from_array(np.ones((2_000, 5_000), np.float32), "big")  # 40 MB
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "big"], ["logits"])],
        "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2_000])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5_000])],
        [big],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    memory = as_program(make_plan(mode="memory"), tmp_path / "m.onnx", tmp_path)["memory"]
    if memory["run_bytes"] is not None:  # Linux
        assert memory["import_bytes"] <= memory["load_bytes"] - 40_000_000
        assert memory["load_bytes"] <= memory["run_bytes"] < memory["import_bytes"] + 400_000_000


def as_program(plan: dict[str, Any], model: Path, folder: Path) -> dict[str, Any]:
    """What a process of its own writes."""
    (folder / "plan.json").write_text(json.dumps(plan))
    files = ["--plan", str(folder / "plan.json"), "--model", str(model), "--out", str(folder / "out.json")]
    subprocess.run([sys.executable, "-P", str(FILE), *files], capture_output=True, timeout=60)
    return json.loads((folder / "out.json").read_text())  # type: ignore[no-any-return]


# --- pairs ---


class Pair:
    """Models `new` and `old`, whose loads and calls take as long as a test says, on a clock that nothing else moves."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = {name: str(write_model(folder / name)) for name in ("new", "old")}
        self.now = 0.0
        self.load_s: dict[str, list[float]] = {"new": [0.0], "old": [0.0]}
        """Of each load; the last one is also that of all after it."""
        self.call_s: dict[str, float] = {"new": 1.0, "old": 1.0}
        self.first_s = 0.0
        """What the first call of each takes longer."""
        self.loaded: list[str] = []
        self.called: list[tuple[str, int]] = []
        make = worker.make_session

        def load(onnxruntime: Any, plan: dict[str, Any], model: str) -> Session:
            name = Path(model).name
            seconds = self.load_s[name]
            self.now += seconds[min(self.loaded.count(name), len(seconds) - 1)]
            self.loaded.append(name)
            return Session(make(onnxruntime, plan, model), name)

        def call(caller: worker.Caller, number: int) -> None:
            name = caller.session.name
            self.now += self.call_s[name] + (0.0 if name in dict(self.called) else self.first_s)
            self.called.append((name, number))

        monkeypatch.setattr(worker, "make_session", load)
        monkeypatch.setattr(worker.Caller, "__call__", call)

    def measure(self, **values: Any) -> dict[str, Any]:
        plan = make_plan(mode="pair", baseline=self.files["old"], **values)
        return worker.measure(plan, self.files["new"], clock=lambda: self.now)


@pytest.fixture
def paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(tmp_path, monkeypatch)


def initials(names: list[str]) -> str:
    return "".join(name[0] for name in names)


@pytest.mark.parametrize("baseline_first", [True, False])
def test_blocks_of_both_models_alternate(paired: Pair, baseline_first: bool) -> None:
    paired.call_s = {"new": 2.0, "old": 1.0}
    result = paired.measure(block_s=9.0, min_calls=20, max_calls=20, baseline_first=baseline_first)
    assert (result["block_calls"], result["inner_calls"]) == (5, 1)  # five calls of the slower take 10 s
    blocks = ["old", "new", "new", "old", "old", "new", "new", "old"]
    numbers = [(name, range(5 * (place // 2), 5 * (place // 2) + 5)) for place, name in enumerate(blocks)]
    firsts = [("old", 0), ("new", 0)]
    assert paired.called == firsts + [(name, number) for name, block in numbers for number in block]
    assert (result["first_call_s"], result["latency_s"]) == (2.0, [2.0] * 20)
    assert (result["baseline"]["first_call_s"], result["baseline"]["latency_s"]) == (1.0, [1.0] * 20)


@pytest.mark.parametrize(
    ("block_s", "new_s", "old_s", "max_calls", "size"),
    [
        (10.0, 1.0, 1.0, 100, 10),
        (10.0, 3.0, 1.0, 100, 4),
        (10.0, 1.0, 3.0, 100, 4),
        (10.0, 9.0, 9.0, 100, 3),  # not fewer than three
        (10.0, 1.0, 1.0, 7, 7),
        (math.inf, 1.0, 1.0, 7, 7),
        (10.0, 0.0, 0.0, 7, 7),  # shorter than the clock can tell
        (0.0, 1.0, 1.0, 7, 3),
    ],
)
def test_a_block_is_as_long_as_asked(
    paired: Pair, block_s: float, new_s: float, old_s: float, max_calls: int, size: int
) -> None:
    paired.call_s = {"new": new_s, "old": old_s}
    assert paired.measure(block_s=block_s, min_calls=1, max_calls=max_calls)["block_calls"] == size


@pytest.mark.parametrize(
    ("bounds", "calls"),
    [
        ({"min_calls": 5, "max_calls": 100, "max_s": 0.0}, 8),  # whole blocks
        ({"min_calls": 8, "max_calls": 100, "max_s": 0.0}, 8),
        ({"min_calls": 5, "max_calls": 10, "max_s": 1e9}, 12),
        ({"min_calls": 5, "max_calls": 100, "max_s": 33.0}, 20),  # two blocks take 8 s
    ],
)
def test_the_calls_of_a_pair_are_bounded(paired: Pair, bounds: dict[str, float], calls: int) -> None:
    result = paired.measure(block_s=4.0, **bounds)
    assert result["block_calls"] == 4
    assert len(result["latency_s"]) == len(result["baseline"]["latency_s"]) == calls


@pytest.mark.parametrize("quick", ["new", "old"])
def test_short_calls_of_a_pair_are_timed_in_loops(paired: Pair, quick: str) -> None:
    """As many calls in a loop for both, so that the quicker one's loop is long enough."""
    slow = "old" if quick == "new" else "new"
    paired.call_s = {quick: 2.0**-18, slow: 2.0**-17}
    result = paired.measure(block_s=0.0004, min_calls=8, max_calls=8)
    # 50 µs through 3.8; a loop of 14 slow calls takes 107 µs.
    assert (result["inner_calls"], result["block_calls"]) == (14, 4)
    assert result["latency_s"] == pytest.approx([paired.call_s["new"]] * 8, abs=1e-9)
    assert result["baseline"]["latency_s"] == pytest.approx([paired.call_s["old"]] * 8, abs=1e-9)
    for name in ("new", "old"):
        assert [number for who, number in paired.called if who == name] == [0, *range(8 * 14)]
    assert initials([who for who, _ in paired.called[2:]]) == 56 * "o" + 112 * "n" + 56 * "o"


def test_both_are_warmed_up_before_the_first_block(paired: Pair) -> None:
    paired.first_s = 9.0
    result = paired.measure(warmup_s=100.0, block_s=4.0, min_calls=4, max_calls=4)
    assert (
        initials([who for who, _ in paired.called]) == 32 * "o" + 32 * "n" + "oooonnnn"
    )  # a first call, 31 of warm-up
    assert (result["first_call_s"], result["baseline"]["first_call_s"]) == (10.0, 10.0)
    assert (result["block_calls"], result["latency_s"]) == (4, [1.0] * 4)  # its length is that of warm calls


@pytest.mark.parametrize(
    ("baseline_first", "order"), [(True, "o" + "onnoonnoon" + "on"), (False, "n" + "noonnoonno" + "no")]
)
def test_loads_take_turns(paired: Pair, baseline_first: bool, order: str) -> None:
    """The first one pays for the process and the last two are called; between them lie five of each."""
    milliseconds = {"old": [50, 7, 1, 3, 9, 5, 70] if baseline_first else [7, 1, 3, 9, 5, 70],
                    "new": [2, 8, 4, 6, 12, 70] if baseline_first else [50, 2, 8, 4, 6, 12, 70]}  # fmt: skip
    paired.load_s = {name: [number / 1000 for number in numbers] for name, numbers in milliseconds.items()}
    result = paired.measure(baseline_first=baseline_first)
    assert initials(paired.loaded) == order
    assert (result["load_s"], result["baseline"]["load_s"]) == (pytest.approx(0.006), pytest.approx(0.005))


@pytest.mark.parametrize(("seconds", "order"), [(0.3, "o" + "on" + "on"), (0.2, "o" + "onno" + "on")])
def test_slow_loads_are_not_repeated(paired: Pair, seconds: float, order: str) -> None:
    paired.load_s = {"new": [seconds], "old": [seconds]}
    result = paired.measure()
    assert initials(paired.loaded) == order
    assert (result["load_s"], result["baseline"]["load_s"]) == (pytest.approx(seconds), pytest.approx(seconds))


@pytest.mark.parametrize("inputs", ["data", "random"])
def test_both_models_get_the_same_inputs(tmp_path: Path, spied: list[Session], inputs: str) -> None:
    file = str(write_inputs(tmp_path / "inputs.npy", 5)) if inputs == "data" else None
    models = [str(write_model(tmp_path / name)) for name in ("new", "old")]
    plan = make_plan(mode="pair", baseline=models[1], inputs=file, block_s=0.0, min_calls=9, max_calls=9)
    result = worker.measure(plan, models[0], clock=ticking())
    old, new = ([array.tobytes() for array in session.fed] for session in spied[-2:])
    assert len(old) == 11
    assert old == new
    assert len(set(old)) == (5 if inputs == "data" else 8)
    assert result["fingerprint"]["inputs"] == result["baseline"]["fingerprint"]["inputs"] == inputs
    assert not any(session.fed for session in spied[:-2])


@pytest.mark.parametrize("binding", ["run", "io"])
def test_a_pair_of_real_models(tmp_path: Path, binding: str) -> None:
    new = write_model(tmp_path / "new.onnx", kind=TensorProto.FLOAT, shape=(3, 12, 12))
    old = write_int8_model(tmp_path / "old.onnx")
    plan = make_plan(mode="pair", baseline=str(old), binding=binding, warmup_s=0.01, min_calls=6, max_calls=6)
    result = as_program(plan, new, tmp_path)
    keys = "schema_version mode load_s batch_size first_call_s inner_calls block_calls latency_s baseline"
    assert set(result) == {*keys.split(), "memory", "disturbance", "fingerprint"}
    assert set(result["baseline"]) == {"load_s", "first_call_s", "latency_s", "fingerprint"}
    record = Record.from_json(result)
    assert record.baseline is not None
    assert len(record.latency_s) >= 6
    mine, other = record.fingerprint, record.baseline["fingerprint"]
    assert (mine["model_sha256"], other["model_sha256"]) == (worker.sha256_of(str(new)), worker.sha256_of(str(old)))
    differing = {key for key in mine | other if mine.get(key) != other.get(key)}
    assert "model_sha256" in differing
    assert differing <= {"model_sha256", "nodes_by_provider"}


def write_gather(path: Path, rows: int) -> Path:
    """A model that looks its inputs up in a table, and fails for those beyond the table's end."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "image"], ["logits"])],
        "gather",
        [helper.make_tensor_value_info("image", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.zeros(rows, np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("row", [0, 4], ids=["first call", "second block"])
@pytest.mark.parametrize("whose", ["new", "old"])
def test_the_model_of_a_pair_that_fails_is_named(tmp_path: Path, whose: str, row: int) -> None:
    new, old = (write_gather(tmp_path / name, rows=5 if name == whose else 50) for name in ("new", "old"))
    rows = np.zeros((6, 1), np.int64)
    rows[row] = 20
    np.save(tmp_path / "inputs.npy", rows)
    plan = make_plan(mode="pair", baseline=str(old), inputs=str(tmp_path / "inputs.npy"), block_s=0.0, min_calls=6)
    error = failure(plan, new, tmp_path)
    assert error.startswith(("" if whose == "new" else f"baseline {old}: ") + "the model fails when it runs: ")


@pytest.mark.parametrize("baseline_first", [True, False])
@pytest.mark.parametrize("content", [None, b"no model"], ids=["missing", "broken"])
@pytest.mark.parametrize("whose", ["new", "old"])
def test_the_model_of_a_pair_that_cannot_be_loaded_is_named(
    tmp_path: Path, whose: str, content: bytes | None, baseline_first: bool
) -> None:
    new, old = (write_model(tmp_path / name) for name in ("new", "old"))
    bad = new if whose == "new" else old
    if content is None:
        bad.unlink()
    else:
        bad.write_bytes(content)
    error = failure(make_plan(mode="pair", baseline=str(old), baseline_first=baseline_first), new, tmp_path)
    assert error.startswith(("" if whose == "new" else f"baseline {old}: ") + "onnxruntime cannot load it: ")


def test_inputs_that_only_the_baseline_does_not_take_are_told(tmp_path: Path) -> None:
    new, old = write_model(tmp_path / "new"), write_model(tmp_path / "old", kind=TensorProto.FLOAT)
    plan = make_plan(mode="pair", baseline=str(old), inputs=str(write_inputs(tmp_path / "inputs.npy", 6)))
    assert failure(plan, new, tmp_path) == (
        f"baseline {old}: the model takes tensor(float) ['n', 4, 4, 1]; the data is uint8 [6, 4, 4, 1]"
    )
    plan = make_plan(mode="pair", baseline=str(new), inputs=str(tmp_path / "inputs.npy"))
    assert failure(plan, old, tmp_path).startswith("the model takes tensor(float)")
    gone = make_plan(mode="pair", baseline=str(new), inputs=str(tmp_path / "gone.npy"))
    assert failure(gone, new, tmp_path).endswith(f"No such file or directory: '{tmp_path / 'gone.npy'}'")


@pytest.mark.parametrize("inputs", ["data", "random"])
def test_models_of_different_batches_are_no_pair(tmp_path: Path, inputs: str) -> None:
    new, old = write_model(tmp_path / "new", batch=4), write_model(tmp_path / "old", batch=2)
    file = str(write_inputs(tmp_path / "inputs.npy", 8)) if inputs == "data" else None
    error = failure(make_plan(mode="pair", baseline=str(old), inputs=file), new, tmp_path)
    assert error == f"baseline {old}: it takes 2 inputs a call, the model 4"


def test_a_provider_that_is_not_here_is_no_fault_of_the_baseline(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    plan = make_plan(mode="pair", baseline=str(model), provider="CUDAExecutionProvider")
    assert failure(plan, model, tmp_path).startswith("this onnxruntime offers ")


# --- what surrounds the figures ---


def test_what_the_plan_leaves_out_is_the_default(tmp_path: Path) -> None:
    plan = {"max_calls": 3, "min_calls": 3, "warmup_s": 0}
    result = worker.measure(plan, str(write_model(tmp_path / "m.onnx")))
    assert result["mode"] == "latency"
    assert {key: result["fingerprint"][key] for key in worker.SESSION_KEYS} == {
        key: worker.DEFAULTS[key] for key in worker.SESSION_KEYS
    }
    assert plan == {"max_calls": 3, "min_calls": 3, "warmup_s": 0}


def test_session_options_are_in_the_fingerprint(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "intra_op_threads": 2,
        "inter_op_threads": 2,
        "allow_spinning": False,
        "graph_level": "basic",
        "arena": False,
        "precise_int8": True,
        "binding": "io",
    }
    result = worker.measure(make_plan(**given), str(write_model(tmp_path / "m.onnx")))
    assert {key: result["fingerprint"][key] for key in given} == given


def test_disturbance_is_told_in_shares(tmp_path: Path) -> None:
    told = worker.measure(make_plan(), str(write_model(tmp_path / "m.onnx")))["disturbance"]
    assert set(told) == {"waited", "steal", "others_cores", "mhz", "load_1min"}
    assert all(value is None or value >= 0 for value in told.values())


def test_disturbance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    before = {
        "time_s": 10.0, "waited_s": 1.0, "busy_ticks": 1_000, "own_s": 2.0, "ticks": 5_000, "steal_ticks": 50,
        "mhz": 3_000.0, "load_1min": 0.5,
    }  # fmt: skip
    after = {
        "time_s": 14.0, "waited_s": 1.2, "busy_ticks": 1_900, "own_s": 5.0, "ticks": 5_800, "steal_ticks": 130,
        "mhz": 2_500.0, "load_1min": 9.0,
    }  # fmt: skip
    # In 4 s: waited 0.2 s; 9 s of CPU time, 3 of them our own; 80 of 800 ticks stolen.
    told = worker.disturbance(before, after)
    assert told == {
        "waited": pytest.approx(0.05),
        "steal": pytest.approx(0.1),
        "others_cores": pytest.approx(1.5),
        "mhz": 2_500.0,
        "load_1min": 0.5,  # as it was before this process added to it
    }
    silent = dict.fromkeys(before) | {"time_s": 1.0, "own_s": 0.0}
    told = worker.disturbance(silent, silent)
    assert told == dict.fromkeys(told)


@pytest.mark.parametrize("text", [None, "", "12 mJ"])
def test_no_energy_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    if text is not None:
        (tmp_path / "intel-rapl:0").mkdir()
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(text)
    assert worker.energy_counter(powercap=str(tmp_path)) is None
    assert worker.energy_counter("CUDAExecutionProvider", "0", str(tmp_path)) is None


def test_the_energy_counter_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    file.write_text("2500000\n")
    counter = worker.energy_counter(powercap=str(tmp_path))
    assert counter is not None
    assert counter() == 2.5
    file.write_text("4000000\n")
    assert counter() == 4.0


@pytest.mark.parametrize(("readings", "joules"), [([2.5, 4.0], 1.5), ([4.0, 0.5], None)], ids=["plain", "began anew"])
def test_energy_of_the_timed_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: list[float], joules: float | None
) -> None:
    given = iter(readings)
    monkeypatch.setattr(worker, "energy_counter", lambda *_: lambda: next(given))
    result = worker.measure(make_plan(), str(write_model(tmp_path / "m.onnx")))
    assert result["energy_j"] == joules


# --- what cannot be measured ---


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"mood": "good", "max": 3}, ["the plan has unknown keys: max, mood; known: mode, provider, "]),
        (
            {"mode": "latancy"},
            ["the plan's mode is 'latancy'; known: latency, pair, throughput, memory, profile, predict"],
        ),
        ({"graph_level": "most"}, ["graph_level is 'most'; known: disable, basic, extended, all"]),
        ({"binding": "iobinding"}, ["binding is 'iobinding'; known: run, io"]),
        ({"min_calls": "many"}, ["min_calls is 'many'; it should be like 100"]),
        ({"affinity": 3}, ["affinity is 3; it should be like []"]),
        ([], ["the plan should be a JSON object, got []"]),
        ({"mode": "predict"}, ["mode predict needs `inputs`"]),
        ({"mode": "pair"}, ["mode pair needs `baseline`"]),
        ({"mode": "pair", "baseline": ""}, ["mode pair needs `baseline`"]),
        ({"mode": "pair", "baseline": 5}, ["mode pair needs `baseline`"]),
        ({"baseline_first": 1}, ["baseline_first is 1; it should be like True"]),
        ({"block_s": "short"}, ["block_s is 'short'; it should be like 0.005"]),
        ({"inputs": "gone.npy"}, ["gone.npy"]),
    ],
)
def test_a_plan_that_is_none_is_told(tmp_path: Path, plan: Any, words: list[str]) -> None:
    error = failure(plan, write_model(tmp_path / "m.onnx"), tmp_path)
    assert all(word in error for word in words), error


def test_a_plan_that_is_no_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{ broken")
    out = tmp_path / "out.json"
    assert worker.main(["--plan", str(tmp_path / "plan.json"), "--model", "m.onnx", "--out", str(out)]) == 1
    assert "Expecting property name" in json.loads(out.read_text())["error"]


def test_a_model_that_wants_more_memory_than_it_may_have(tmp_path: Path) -> None:
    """A limit of the process, so in one of its own. The tensor has 1.2 GB, the limit is below."""
    small = write_model(tmp_path / "small.onnx")
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["logits"], keepdims=0),
        ],
        "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array([300_000_000, 1], np.int64), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    told = as_program(make_plan(memory_limit_bytes=1_000_000_000), tmp_path / "m.onnx", tmp_path)
    assert told["error"] == "out of memory, with a limit of 1000 MB (the model fails when it runs)"
    plan = make_plan(mode="pair", baseline=str(tmp_path / "m.onnx"), memory_limit_bytes=1_000_000_000)
    whose = f"baseline {tmp_path / 'm.onnx'}: "
    assert as_program(plan, tmp_path / "m.onnx", tmp_path)["error"] == whose + told["error"]
    # Too little for onnxruntime itself.
    told = as_program(make_plan(memory_limit_bytes=40_000_000), small, tmp_path)
    assert told["error"] == "out of memory, with a limit of 40 MB"


def test_the_worker_is_the_first_to_go_when_memory_runs_out(tmp_path: Path) -> None:
    if not Path("/proc/self/oom_score_adj").exists():
        pytest.skip("no /proc here")
    code = (
        "import sys; from edgekd.bench import worker\n"
        "worker.confine({'affinity': [], 'memory_limit_bytes': 2 * 10**9})\n"
        "import resource; print(open('/proc/self/oom_score_adj').read(), resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1000", "2000000000"]


def test_a_provider_that_is_not_here_is_told(tmp_path: Path) -> None:
    error = failure(make_plan(provider="CUDAExecutionProvider"), write_model(tmp_path / "m.onnx"), tmp_path)
    assert error.startswith("this onnxruntime offers ")
    assert "CPUExecutionProvider" in error
    assert error.endswith("; CUDAExecutionProvider is not among them")


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.onnx").read_bytes()
    for content in (b"no model", whole[: len(whole) // 2]):
        (tmp_path / "m.onnx").write_bytes(content)
        assert failure(make_plan(), tmp_path / "m.onnx", tmp_path).startswith("onnxruntime cannot load it: ")


def test_the_limit_of_the_shell_is_named_where_it_is_the_lower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "hard_limit", lambda: 900_000_000)
    told = "out of memory, with a limit of 900 MB (`ulimit -v` where edgekd was started)"
    assert worker.out_of_memory({"memory_limit_bytes": 10**12}) == told
    assert worker.out_of_memory({}) == told
    assert worker.out_of_memory({"memory_limit_bytes": 10**8}) == "out of memory, with a limit of 100 MB"


def test_to_load_a_model_is_to_call_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Feeds", None)  # nor are inputs made
    result = worker.measure(make_plan(mode="load"), str(write_model(tmp_path / "m.onnx")))
    assert set(result) == {"schema_version", "mode", "load_s", "memory", "fingerprint"}
    assert result["fingerprint"]["inputs"] == "none"
    assert Record.from_json(result).load_s > 0


def test_what_is_wrong_with_a_file_is_not_cut_off(tmp_path: Path) -> None:
    """onnxruntime puts a place in its source and a long signature before it."""
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    model.ir_version = 99
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    error = failure(make_plan(mode="load"), tmp_path / "m.onnx", tmp_path)
    assert "failed: Unsupported model IR version: 99, max supported IR version: " in error
    assert ".cc:" not in error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all is well", "all is well"),
        ("failed:/a/model.cc:1 A::B(std::function<void(int)>) const wrong", "failed: const wrong"),
        ("/a/b.h:12 no signature", ": no signature"),
        ("/a/b.h:12 f(never closed", ": f(never closed"),
        ("a" * 200 + "b" * 200, "a" * 150 + " … " + "b" * 150),
    ],
)
def test_signatures_are_left_out(text: str, shown: str) -> None:
    assert worker.without_signature(text) == shown


@pytest.mark.parametrize("mode", ["latency", "memory", "predict"])
def test_a_model_that_fails_when_it_runs_is_told(tmp_path: Path, mode: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "shape"], ["logits"])],
        "fails",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.UINT8, ["a", "b"])],
        [numpy_helper.from_array(np.array([7, 11], np.int64), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    inputs = write_inputs(tmp_path / "inputs.npy", 6)
    plan = make_plan(mode=mode, inputs=str(inputs), outputs=str(tmp_path / "o.npy"))
    assert failure(plan, tmp_path / "m.onnx", tmp_path).startswith("the model fails when it runs: ")


# --- predicting ---


@pytest.mark.parametrize("rows", [64, 65, 1], ids=["whole batches", "a rest", "one"])
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_predictions_are_those_of_onnx_runtime(tmp_path: Path, rows: int, batch: str | int) -> None:
    model = write_model(tmp_path / "m.onnx", batch=batch)
    inputs = np.load(write_inputs(tmp_path / "inputs.npy", rows))
    plan = make_plan(
        mode="predict", inputs=str(tmp_path / "inputs.npy"), outputs=str(tmp_path / "o.npy"), batch_size=16
    )
    result = worker.measure(plan, str(model))
    given = np.load(tmp_path / "o.npy")
    expected = answers(write_model(tmp_path / "dynamic.onnx"), inputs)
    assert given.dtype == np.float32
    assert result["outputs_shape"] == [rows, 3]
    assert np.allclose(given, expected, rtol=1e-5, atol=1e-3)
    assert np.allclose(given, inputs.reshape(rows, 16) @ matrix_of(model), rtol=1e-5, atol=1e-3)
    assert np.abs(given).max() > 10


def same_output(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """A model that gives its input, n × 3 × 2 × 2."""
    image, logits = (helper.make_tensor_value_info(name, kind, ["n", 3, 2, 2]) for name in ("image", "logits"))
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "same", [image], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def maps_plan(folder: Path, array: NDArray[Any], **values: Any) -> dict[str, Any]:
    np.save(folder / "maps.npy", array)
    files = {"inputs": str(folder / "maps.npy"), "outputs": str(folder / "o.npy"), "batch_size": 4}
    return make_plan(**{"mode": "predict", "answers": "classes"} | files | values)


def test_class_maps_are_written_in_place_of_logits(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).standard_normal((6, 3, 2, 2)).astype(np.float32)
    logits[5] = 0  # the first class of several equal ones
    result = worker.measure(maps_plan(tmp_path, logits), str(same_output(tmp_path / "m.onnx")))
    given = np.load(tmp_path / "o.npy")
    assert given.dtype == np.uint8 and list(given.shape) == result["outputs_shape"] == [6, 2, 2]
    assert np.array_equal(given, logits.argmax(axis=1))
    assert set(given.flat) == {0, 1, 2}
    classes = np.arange(72).reshape(6, 3, 2, 2)
    worker.measure(maps_plan(tmp_path, classes), str(same_output(tmp_path / "m.onnx", TensorProto.INT64)))
    assert np.array_equal(np.load(tmp_path / "o.npy"), classes)


def test_what_is_no_class_map_is_told(tmp_path: Path) -> None:
    same, logits = same_output(tmp_path / "same.onnx"), np.zeros((6, 3, 2, 2), np.float32)
    told = failure(maps_plan(tmp_path, np.full_like(logits, np.nan)), same, tmp_path)
    assert told == "gives NaN or infinite outputs"
    whole = same_output(tmp_path / "whole.onnx", TensorProto.INT64)
    told = failure(maps_plan(tmp_path, np.full(logits.shape, 256)), whole, tmp_path)
    assert told.startswith("the first output holds classes from 256 to 256; a class map needs")
    rows = write_inputs(tmp_path / "inputs.npy", 6)
    told = failure(maps_plan(tmp_path, logits, inputs=str(rows)), write_model(tmp_path / "m.onnx"), tmp_path)
    assert told.startswith("the first output is float32 [4, 3]; a class map needs one number for each class of each")


def matrix_of(model: Path) -> NDArray[np.float32]:
    return numpy_helper.to_array(onnx.load(model).graph.initializer[0])


def test_progress_of_predictions_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(1, 100))
    monkeypatch.setattr("edgekd.bench.worker.time.monotonic", lambda: float(next(now)))
    write_inputs(tmp_path / "inputs.npy", 10)
    plan = make_plan(mode="predict", inputs=str(tmp_path / "inputs.npy"), outputs=str(tmp_path / "o.npy"), batch_size=4)
    worker.measure(plan, str(write_model(tmp_path / "m.onnx")))
    assert capsys.readouterr().out == "done 4 10\ndone 8 10\ndone 10 10\n"


# --- the file alone ---


def test_it_is_python_3_9() -> None:
    ast.parse(FILE.read_text(encoding="utf-8"), feature_version=(3, 9))
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass\n", feature_version=(3, 9))  # the check can fail


HEAVY = ["torch", "torchvision", "onnx", "pydantic", "rich", "typer", "sklearn", "PIL", "pyarrow"]


def test_it_needs_nothing_of_edgekd(tmp_path: Path) -> None:
    shutil.copy(FILE, tmp_path / "worker.py")
    write_model(tmp_path / "model.onnx")
    write_inputs(tmp_path / "inputs.npy", 5)
    plan = make_plan(mode="predict", inputs="inputs.npy", outputs="outputs.npy")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code = (
        "import runpy, sys\n"
        f"for name in {['edgekd', *HEAVY]!r}: sys.modules[name] = None\n"
        "sys.argv = 'worker.py --plan plan.json --model model.onnx --out out.json'.split()\n"
        "runpy.run_path('worker.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    expected = answers(tmp_path / "model.onnx", np.load(tmp_path / "inputs.npy"))
    assert np.allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-5)


def test_the_package_around_it_brings_nothing_heavy() -> None:
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "import edgekd.bench.worker\n"
        "print(sorted(name for name in sys.modules if name.startswith('edgekd')), 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == "['edgekd', 'edgekd.bench', 'edgekd.bench.worker'] False\n"


# --- boxes ---


def boxes_and_scores(seed: int, classes: int = 3, places: int = 80) -> NDArray[np.float32]:
    """Outputs (4 + C, L) of a detector: many overlapping boxes, few high scores."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, 60, (2, places)), rng.uniform(5, 40, (2, places))
    return np.concatenate([corners, corners + sides, rng.random((classes, places)) ** 4]).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_detections_are_those_of_torchvision(seed: int) -> None:
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    raw = boxes_and_scores(seed)
    (found,) = detections(raw[None], 1)
    classes, places = np.nonzero(raw[4:] > 0.01)
    boxes, scores = raw[:4, places].T, raw[4 + classes, places]
    kept = ops.batched_nms(*(torch.from_numpy(one) for one in (boxes, scores, classes)), 0.6).numpy()[:100]
    used = found[found[:, 5] >= 0]
    assert np.array_equal(used[:, :4], boxes[kept])
    assert np.array_equal(used[:, 4], scores[kept]) and np.array_equal(used[:, 5], classes[kept])


def test_detections_by_hand() -> None:
    raw = np.zeros((6, 4), np.float32)
    raw[:4] = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]]).T
    raw[4], raw[5, 2] = (0.9, 0.8, 0, 0.005), 0.7
    (found,) = detections(raw[None], 1)
    assert found.shape == (100, 6) and found.dtype == np.float32
    assert found[:2] == pytest.approx(np.array([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.7, 1]]))
    assert (found[2:, 5] == -1).all()  # the second one overlaps, the last one has no score
    assert np.array_equal(detections(found[None], 1)[0], found)
    many = boxes_and_scores(0, 96, 6)[None]  # as large as finished detections
    assert many.shape == (1, 100, 6) and set(detections(many, 1)[0, :, 5]) <= set(range(-1, 96))
    assert (detections(np.zeros((2, 7, 0), np.float32), 2)[..., 5] == -1).all()  # a network without places


def test_outputs_that_are_no_boxes_are_refused() -> None:
    for answer, told in (
        (np.zeros((2, 7), np.float32), "corners and scores"),
        (np.zeros((2, 4, 9), np.float32), "no scores behind four corners"),
        (np.zeros((2, 7, 9), np.int64), "int64"),
        (np.full((2, 7, 9), np.inf, np.float32), "NaN or infinite"),
        ([1, 2], "no tensor"),
    ):
        with pytest.raises(WorkerError, match=told):
            detections(answer, 2)
