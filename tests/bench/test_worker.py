"""The worker: a program of its own that measures one model; what it reports, refuses and needs."""

import ast
import json
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
    keys = "schema_version mode load_s first_call_s warmup_s latency_s batch_size memory fingerprint"
    assert set(result) == set(keys.split())
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
    for key in (
        "provider",
        "provider_options",
        "intra_op_threads",
        "inter_op_threads",
        "allow_spinning",
        "graph_level",
    ):
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
    assert result["latency_s"] == [TICK] * 5
    steps = [1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 4.0, 1.0, 5.0, 1.0, 6.0, 1.0, 7.0, 1.0, 8.0, 1.0]
    # Readings: two for loading, two for the first call, one where counting begins, two for each call, one at the end.
    result = worker.measure(make_plan(), str(tmp_path / "m.onnx"), clock=ticking(iter(steps)))
    assert (result["load_s"], result["first_call_s"]) == (2.0, 3.0)
    assert result["latency_s"] == [4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("bounds", "calls"),
    [
        ({"min_calls": 5, "max_calls": 50, "max_s": 0.0}, 5),
        ({"min_calls": 5, "max_calls": 50, "max_s": 1e9}, 50),
        # After n calls the clock was read 2n times, and once for each question whether it is enough: 3n − 4 ≥ 30.
        ({"min_calls": 5, "max_calls": 50, "max_s": 30 * TICK}, 12),
        ({"min_calls": 20, "max_calls": 50, "max_s": 30 * TICK}, 20),
        ({"min_calls": 20, "max_calls": 8, "max_s": 1e9}, 8),
    ],
)
def test_the_number_of_calls_is_bounded(tmp_path: Path, bounds: dict[str, float], calls: int) -> None:
    result = worker.measure(make_plan(**bounds), str(write_model(tmp_path / "m.onnx")), clock=ticking())
    assert len(result["latency_s"]) == calls


def test_warm_up_ends_when_two_blocks_agree(tmp_path: Path) -> None:
    plan = make_plan(warmup_s=1_000.0)
    model = str(write_model(tmp_path / "m.onnx"))
    assert worker.measure(plan, model, clock=ticking())["warmup_s"] == [TICK] * 20
    # Blocks of ten calls of 8, 4, 2, 2 seconds: the fourth agrees with the third.
    blocks = [seconds for seconds in (8.0, 4.0, 2.0, 2.0) for _ in range(10)]
    steps = [1.0] * 4 + [reading for seconds in blocks for reading in (1.0, seconds)] + [1.0] * 12
    assert worker.measure(plan, model, clock=ticking(iter(steps)))["warmup_s"] == blocks


def test_warm_up_is_bounded(tmp_path: Path) -> None:
    # Each block is half as fast again; the limit of 100 s is reached in the fourth: 10 × (1 + 2 + 4 + 8).
    blocks = [2.0**n for n in range(4) for _ in range(10)]
    steps = [1.0] * 4 + [reading for seconds in blocks for reading in (1.0, seconds)] + [1.0] * 12
    result = worker.measure(
        make_plan(warmup_s=100.0), str(write_model(tmp_path / "m.onnx")), clock=ticking(iter(steps))
    )
    assert result["warmup_s"] == blocks


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
        failure(make_plan(), tmp_path / "m.onnx", tmp_path) == "input words is tensor(string); give real inputs for it"
    )


def test_data_is_fed_in_turn_and_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.load(write_inputs(tmp_path / "inputs.npy", 5))
    fed: list[NDArray[np.uint8]] = []
    call = worker.Feeds.call

    def spy(self: worker.Feeds, number: int) -> dict[str, Any]:
        given = call(self, number)
        fed.append(given["image"])
        return given

    monkeypatch.setattr(worker.Feeds, "call", spy)
    plan = make_plan(inputs=str(tmp_path / "inputs.npy"), batch_size=2)
    worker.measure(plan, str(write_model(tmp_path / "m.onnx")))
    expected = [rows[[0, 1]], rows[[0, 1]], rows[[2, 3]], rows[[4, 0]], rows[[1, 2]], rows[[3, 4]]]
    assert len(fed) == 6  # the first call, then five
    assert all(np.array_equal(one, two) for one, two in zip(fed, expected, strict=True))


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


# --- what cannot be measured ---


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


def matrix_of(model: Path) -> NDArray[np.float32]:
    return numpy_helper.to_array(onnx.load(model).graph.initializer[0])


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
