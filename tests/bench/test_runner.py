"""The parent of the workers: its plans, its order, and one clear line for every way a worker can end."""

import dataclasses
import stat
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.bench import runner
from edgekd.bench.records import Plan, Record
from edgekd.bench.runner import available_providers, make_plan, measure_latency, measure_memory, predict, run_worker
from edgekd.errors import InputError, ModelError, UnavailableError
from edgekd.target import Session, Target, load_target

PLAN = Plan(mode="latency", provider="CPUExecutionProvider", warmup_s=0.0, min_calls=3, max_calls=3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def target() -> Target:
    """The CPU target of any machine."""
    base = load_target("cpu-x86")
    return dataclasses.replace(base, session=Session(intra_op_threads=2, allow_spinning=False, graph_level="basic"))


def interpreter(folder: Path, body: str) -> tuple[str]:
    """A program that is started in place of Python: $4 is the plan, $8 the result."""
    path = folder / "interpreter"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path),)


def record(**values: Any) -> Record:
    fingerprint = {"cpu": "a", "nodes_by_provider": {"CPUExecutionProvider": 2}} | values.pop("fingerprint", {})
    return Record(**{"mode": "latency", "load_s": 0.1, "fingerprint": fingerprint, "memory": {}} | values)


# --- one worker ---


def test_a_real_worker(model: Path) -> None:
    taken = run_worker(PLAN, model)
    assert taken.mode == "latency"
    assert len(taken.latency_s) == 3
    assert taken.fingerprint["providers_assigned"] == ["CPUExecutionProvider"]


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run_worker(PLAN, tmp_path / "gone.onnx")
    assert str(caught.value) == f"{tmp_path / 'gone.onnx'}: no such model file"


def test_what_is_no_onnx_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "words.onnx"
    path.write_text("no model")
    with pytest.raises(InputError, match=rf"^{path}: onnxruntime cannot load it: .+") as caught:
        run_worker(PLAN, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("signal", ["SEGV", "ABRT", "KILL"])
def test_a_crash_is_told(model: Path, tmp_path: Path, signal: str) -> None:
    python = interpreter(tmp_path, f"echo one >&2\necho the last words >&2\nkill -{signal} $$")
    with pytest.raises(ModelError) as caught:
        run_worker(PLAN, model, python=python)
    assert str(caught.value) == f"{model}: the worker crashed with SIG{signal} while it ran the model (the last words)"


def test_a_crash_without_a_word_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"SIGSEGV while it ran the model \(no message\)$"):
        run_worker(PLAN, model, python=interpreter(tmp_path, "kill -SEGV $$"))


def test_a_hang_is_stopped_and_told(model: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ModelError) as caught:
        run_worker(PLAN, model, timeout_s=1.0, python=interpreter(tmp_path, "exec sleep 30"))
    assert str(caught.value) == f"{model}: still running after 1 s (exit 124); stopped"
    assert time.monotonic() - begin < 15


def test_an_end_without_a_result_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        run_worker(PLAN, model, python=interpreter(tmp_path, "echo no module >&2; exit 7"))
    assert str(caught.value) == f"{model}: the worker ended with exit code 7 and no result (no module)"


@pytest.mark.parametrize(
    "content",
    [
        "{ broken",
        "[]",
        "5",
        '{"schema_version": 2}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "surprise": 1}',
        "",
    ],
)
def test_a_result_that_is_none_is_told(model: Path, tmp_path: Path, content: str) -> None:
    python = interpreter(tmp_path, f"printf '%s' '{content}' > \"$8\"")
    with pytest.raises(ModelError, match=rf"^{model}: the worker's result cannot be read: ") as caught:
        run_worker(PLAN, model, python=python)
    assert "\n" not in str(caught.value)


def test_a_workers_error_is_the_models(model: Path, tmp_path: Path) -> None:
    python = interpreter(tmp_path, 'echo \'{"schema_version": 1, "error": "does not fit"}\' > "$8"; exit 1')
    with pytest.raises(InputError) as caught:
        run_worker(PLAN, model, python=python)
    assert str(caught.value) == f"{model}: does not fit"


def test_the_worker_gets_the_plan(model: Path, tmp_path: Path) -> None:
    python = interpreter(tmp_path, f'cp "$4" {tmp_path}/seen.json; exit 9')
    with pytest.raises(ModelError):
        run_worker(PLAN, model, python=python)
    seen = (tmp_path / "seen.json").read_text()
    assert '"min_calls": 3' in seen
    assert '"mode": "latency"' in seen


def test_providers_of_this_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CPUExecutionProvider" in available_providers()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r'^measuring needs onnxruntime; pip install "edgekd\[cpu\]"$'):
        available_providers()


# --- plans ---


def test_a_plan_takes_provider_and_session_of_the_target(target: Target) -> None:
    plan = make_plan(target, mode="memory", max_calls=7)
    assert plan == Plan(
        mode="memory",
        provider="CPUExecutionProvider",
        intra_op_threads=2,
        inter_op_threads=1,
        allow_spinning=False,
        graph_level="basic",
        max_calls=7,
    )


def test_pinning_is_for_the_device_alone(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = dataclasses.replace(target, session=Session(affinity=(2, 3)))
    for differences, affinity in (([], (2, 3)), (["another CPU"], ())):
        monkeypatch.setattr(Target, "differences", lambda self, given=differences: given)
        assert make_plan(pinned, mode="latency").affinity == affinity


# --- several workers ---


def test_models_take_turns_in_alternating_order(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [tmp_path / name for name in "abc"]
    started: list[str] = []

    def run(plan: Plan, file: Path) -> Record:
        started.append(file.name)
        assert (plan.mode, plan.inputs, plan.max_s, plan.intra_op_threads) == ("latency", "rows.npy", 0.5, 2)
        return record(load_s=float(len(started)))

    monkeypatch.setattr(runner, "run_worker", run)
    taken = measure_latency(models, target, Path("rows.npy"), processes=3, max_s=0.5)
    assert "".join(started) == "abccbaabc"
    assert [[one.load_s for one in records] for records in taken] == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]


def test_processes_that_cannot_be_compared_are_refused(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = iter(["one", "one", "two"])
    monkeypatch.setattr(runner, "run_worker", lambda plan, file: record(fingerprint={"cpu": next(cpus)}))
    with pytest.raises(ModelError) as caught:
        measure_latency([tmp_path / "m"], target, None, processes=3)
    assert str(caught.value) == (
        f"{tmp_path / 'm'}: its processes are not comparable: cpu is 'one' in one and 'two' in another"
    )


def test_two_models_need_not_be_alike(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_worker", lambda plan, file: record(fingerprint={"model_sha256": file.name}))
    taken = measure_latency([tmp_path / "a", tmp_path / "b"], target, None, processes=2)
    assert [len(records) for records in taken] == [2, 2]


def test_a_fallback_is_refused(target: Target, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = dataclasses.replace(
        load_target("cuda"), provider=dataclasses.replace(load_target("cuda").provider, allow_cpu_fallback=False)
    )
    nodes = {"CUDAExecutionProvider": 5, "CPUExecutionProvider": 2}
    monkeypatch.setattr(runner, "run_worker", lambda *_, **__: record(fingerprint={"nodes_by_provider": nodes}))
    message = rf"^{model}: 2 of 7 nodes on CPUExecutionProvider; target cuda asks for CUDAExecutionProvider alone$"
    with pytest.raises(ModelError, match=message):
        measure_latency([model], gpu, None)
    with pytest.raises(ModelError, match=message):
        measure_memory(model, gpu)
    with pytest.raises(ModelError, match=message):
        predict(model, gpu, tmp_path / "in.npy", tmp_path / "out.npy")


def test_memory_is_measured_without_a_data_set(target: Target, model: Path) -> None:
    taken = measure_memory(model, target)
    assert taken.mode == "memory"
    assert taken.fingerprint["inputs"] == "random"
    assert len(taken.latency_s) == 5
    peak = taken.memory["run_bytes"]
    assert peak is None or 10_000_000 < peak < 1_000_000_000


def test_predictions_arrive_whole_or_not_at_all(target: Target, model: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (130, 3), dtype=np.uint8)
    np.save(tmp_path / "in.npy", rows)
    out = tmp_path / "deep" / "out.npy"
    taken = predict(model, target, tmp_path / "in.npy", out)
    assert taken.outputs_shape == (130, 3)
    assert np.array_equal(np.load(out), rows.astype(np.float32))
    assert [path.name for path in out.parent.iterdir()] == ["out.npy"]

    np.save(tmp_path / "in.npy", rows.astype(np.float32))
    with pytest.raises(InputError, match=r"the data is float32 \[130, 3\]"):
        predict(model, target, tmp_path / "in.npy", tmp_path / "other" / "out.npy")
    assert list((tmp_path / "other").iterdir()) == []
