"""The parent of the workers: its plans, its order, and one clear line for every way a worker can end."""

import dataclasses
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench.records import Effort, Plan, Record
from edgekd.bench.runner import (
    make_plan,
    measure_latency,
    measure_memory,
    measure_pair,
    measure_placement,
    measure_throughput,
    predict,
)
from edgekd.devices.device import Site
from edgekd.devices.environments import Runtime
from edgekd.devices.local import Local, run_worker, runtime_of
from edgekd.errors import EdgekdError, InputError, ModelError
from edgekd.machine import Machine
from edgekd.target import Provider, Session, Target, load_target

PLAN = Plan(mode="latency", provider="CPUExecutionProvider", warmup_s=0.0, min_calls=3, max_calls=3)
QUICK = Effort(processes=2, warmup_s=0.0, min_calls=3, max_calls=3, max_s=0.0)
OWN = runtime_of(load_target("cpu-x86"))
"""The Python the tests run in."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def write_model(path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def target() -> Target:
    """The CPU target of any machine."""
    base = load_target("cpu-x86")
    return dataclasses.replace(base, session=Session(intra_op_threads=2, allow_spinning=False, graph_level="basic"))


Interpreter = Callable[[str], Target]
Place = Callable[..., Site]


def here(target: Target) -> Site:
    """The target, whose workers run on this machine."""
    return Site(target, Local())


@pytest.fixture
def interpreter(tmp_path: Path, target: Target) -> Interpreter:
    """A target whose environment has a shell script in place of Python: $PLAN, $MODEL and $OUT are its arguments."""

    def write(body: str) -> Target:
        path = tmp_path / "environment" / "bin" / "python"
        path.parent.mkdir(parents=True, exist_ok=True)
        # bin/python -I worker.py --plan P --model M --out R
        path.write_text(f'#!/bin/sh\n[ "$1 $3 $5 $7" = "-I --plan --model --out" ] || exit 99\n'
                        f'PLAN="$4" MODEL="$6" OUT="$8"\n{body}\n')  # fmt: skip
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return dataclasses.replace(target, environment=f"{tmp_path}/environment")

    return write


def record(**values: Any) -> Record:
    fingerprint = {"cpu": "a", "nodes_by_provider": {"CPUExecutionProvider": 2}} | values.pop("fingerprint", {})
    return Record(**{"mode": "latency", "load_s": 0.1, "fingerprint": fingerprint, "memory": {}} | values)


# --- one worker ---


def test_a_real_worker(model: Path) -> None:
    taken = run_worker(PLAN, model, OWN)
    assert taken.mode == "latency"
    assert len(taken.latency_s) == 3
    assert taken.fingerprint["providers_assigned"] == ["CPUExecutionProvider"]


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run_worker(PLAN, tmp_path / "gone.onnx", OWN)
    assert str(caught.value) == f"{tmp_path / 'gone.onnx'}: no such model file"


def test_what_is_no_onnx_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "words.onnx"
    path.write_text("no model")
    with pytest.raises(InputError, match=rf"^{path}: onnxruntime cannot load it: .+") as caught:
        run_worker(PLAN, path, OWN)
    assert "\n" not in str(caught.value)


def told_by(target: Target, model: Path, timeout_s: float = 60.0) -> str:
    """The line about what the target's fake interpreter does to the model."""
    with pytest.raises(ModelError) as caught:
        run_worker(PLAN, model, runtime_of(target), timeout_s)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{model}: ")


@pytest.mark.parametrize("signal", ["SEGV", "ABRT"])
def test_a_crash_is_told(model: Path, interpreter: Interpreter, signal: str) -> None:
    target = interpreter(f"echo one >&2\necho the last words >&2\nkill -{signal} $$")
    assert told_by(target, model) == f"the worker crashed with SIG{signal} while it ran the model (the last words)"


def test_a_crash_without_a_word_is_told(model: Path, interpreter: Interpreter) -> None:
    assert told_by(interpreter("kill -SEGV $$"), model).endswith("SIGSEGV while it ran the model (no message)")


def test_a_kill_is_told_as_lack_of_memory(model: Path, interpreter: Interpreter) -> None:
    assert told_by(interpreter("kill -KILL $$"), model) == (
        "the worker was killed while it ran the model, as the system does when memory runs out (no message)"
    )


def test_a_hang_is_stopped_with_all_it_started(model: Path, interpreter: Interpreter, tmp_path: Path) -> None:
    target = interpreter(f"sleep 60 &\necho $! > {tmp_path}/child\nwait")
    begin = time.monotonic()
    assert told_by(target, model, timeout_s=1.0) == "still running after 1 s (exit 124); stopped"
    assert time.monotonic() - begin < 15
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return  # dead; it waits for the system to take it away
        time.sleep(0.05)
    pytest.fail("the worker's child is still there")


def test_an_end_without_a_result_is_told(model: Path, interpreter: Interpreter) -> None:
    target = interpreter("echo no module >&2; exit 7")
    assert told_by(target, model) == "the worker ended with exit code 7 and no result (no module)"


def test_an_interpreter_that_cannot_be_started_is_told(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "python"
    file.write_text("no program")
    with pytest.raises(ModelError, match=rf"^{file}: cannot be started: Permission denied$"):
        run_worker(PLAN, model, Runtime("python", (str(file),)))


@pytest.mark.parametrize(
    "content",
    [
        "{ broken",
        "[]",
        "5",
        '"error"',
        '{"schema_version": 2}',
        '{"schema_version": 9, "mode": "latency", "load_s": 1, "fingerprint": {}, "memory": {}}',
        '{"schema_version": 2, "surprise": 1}',
        '{"schema_version": 2, "latency_s": 7}',
        "",
    ],
)
def test_a_result_that_is_none_is_told(model: Path, interpreter: Interpreter, content: str) -> None:
    target = interpreter(f"printf '%s' '{content}' > \"$OUT\"")
    assert told_by(target, model).startswith("the worker's result cannot be read: ")


def test_a_workers_error_is_the_models(model: Path, interpreter: Interpreter) -> None:
    target = interpreter('echo \'{"schema_version": 2, "error": "does not fit"}\' > "$OUT"; exit 1')
    with pytest.raises(InputError) as caught:
        run_worker(PLAN, model, runtime_of(target))
    assert str(caught.value) == f"{model}: does not fit"


def test_lack_of_memory_is_a_failure_of_the_model(model: Path, interpreter: Interpreter) -> None:
    told = "out of memory, with a limit of 50 MB (the model fails when it runs)"
    target = interpreter(f'echo \'{{"schema_version": 2, "error": "{told}"}}\' > "$OUT"; exit 1')
    assert told_by(target, model) == told  # a ModelError: exit code 1


def test_a_model_above_the_limit_for_real(tmp_path: Path, target: Target) -> None:
    shape = numpy_helper.from_array(np.array([400_000_000, 1], np.int64), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["logits"], keepdims=0),
        ],
        "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])],
        [shape],
    )
    path = tmp_path / "huge.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (taken,) = measure_latency([path], here(target), None, dataclasses.replace(QUICK, memory_limit_mb=1_000))
    assert isinstance(taken, ModelError)
    assert str(taken) == f"{path}: out of memory, with a limit of 1000 MB (the model fails when it runs)"


def test_the_worker_gets_the_plan(model: Path, interpreter: Interpreter, tmp_path: Path) -> None:
    told_by(interpreter(f'cp "$PLAN" {tmp_path}/seen.json; echo "$MODEL" > {tmp_path}/model; exit 9'), model)
    assert json.loads((tmp_path / "seen.json").read_text()) == json.loads(json.dumps(PLAN.as_json()))
    assert (tmp_path / "model").read_text().strip() == str(model)


def test_progress_is_heard_and_other_words_are_not(model: Path, interpreter: Interpreter) -> None:
    words = [
        "echo done 64 130",
        "echo loading",
        "echo done with it",
        "echo done",
        "printf '\\377\\n'",
        "echo done 130 130",
    ]
    target = interpreter("\n".join([*words, "exit 1"]))
    heard: list[tuple[int, int]] = []
    with pytest.raises(ModelError, match="exit code 1"):
        run_worker(PLAN, model, runtime_of(target), on_progress=lambda done, total: heard.append((done, total)))
    assert heard == [(64, 130), (130, 130)]


# --- plans ---


def test_a_plan_takes_provider_and_session_of_the_target(target: Target) -> None:
    given = dataclasses.replace(target, session=dataclasses.replace(target.session, arena=False, binding="io"))
    plan = make_plan(Site(given, Local()), mode="memory", max_calls=7)
    assert dataclasses.replace(plan, memory_limit_bytes=None, precise_int8=False) == Plan(
        mode="memory",
        provider="CPUExecutionProvider",
        intra_op_threads=2,
        inter_op_threads=1,
        allow_spinning=False,
        graph_level="basic",
        arena=False,
        binding="io",
        max_calls=7,
    )


def test_memory_is_limited_to_what_is_free_and_some_addresses(target: Target, place: Place) -> None:
    def limit(target: Target, effort: Effort | None = None, free: int | None = 1_000_000_000) -> int | None:
        return make_plan(place(target, free=free), effort, mode="latency").memory_limit_bytes

    assert limit(target) == 2_000_000_000
    assert limit(target, Effort(memory_limit_mb=50)) == 50_000_000
    gpu = dataclasses.replace(target, provider=Provider(name="CUDAExecutionProvider"))
    assert limit(gpu) is None  # its driver reserves far more addresses than it uses
    assert limit(gpu, Effort(memory_limit_mb=50)) == 50_000_000
    assert limit(target, free=None) is None


OLD_PC, NEW_PC = (Machine("x86_64", "a PC", frozenset({"avx2", *more}), "") for more in ((), ("avx512_vnni",)))


def test_a_stand_in_for_a_device_does_not_saturate(target: Target, place: Place) -> None:
    arm = load_target("cpu-arm")
    for given, machine, precise in ((target, OLD_PC, False), (arm, OLD_PC, True), (arm, NEW_PC, False)):
        assert make_plan(place(given, machine), mode="latency").precise_int8 is precise


def test_pinning_is_for_the_device_alone(target: Target, place: Place) -> None:
    pinned = dataclasses.replace(target, session=Session(affinity=(2, 3)))
    for machine, affinity in ((OLD_PC, (2, 3)), (Machine("aarch64", "a board", frozenset(), ""), ())):
        assert make_plan(place(pinned, machine), mode="latency").affinity == affinity


# --- several workers ---


class FakeWorkers:
    """In place of a device's workers: each model's answer, or the error it ends in."""

    def __init__(self, answer: Callable[[Plan, str], Record]) -> None:
        self.answer = answer
        self.started: list[str] = []
        self.plans: list[Plan] = []
        self.timeouts: list[float] = []

    def __call__(self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: Any = None) -> Record:
        self.started.append(model.name)
        self.plans.append(plan)
        self.timeouts.append(timeout_s)
        return self.answer(plan, model.name)


def test_models_take_turns_in_alternating_order(target: Target, tmp_path: Path, place: Place) -> None:
    models = [tmp_path / name for name in "abc"]
    fake = FakeWorkers(lambda plan, name: record(load_s=float(len(fake.started))))
    site = place(target, answer=fake)
    effort = Effort(processes=3, max_s=0.5, min_calls=7, max_calls=70, warmup_s=0.25, timeout_s=11)
    taken = measure_latency(models, site, Path("rows.npy"), effort)
    assert "".join(fake.started) == "abccbaabc"
    assert [[one.load_s for one in records] for records in taken if isinstance(records, list)] == [
        [1, 6, 7],
        [2, 5, 8],
        [3, 4, 9],
    ]
    for plan in fake.plans:
        assert (plan.mode, plan.inputs, plan.intra_op_threads) == ("latency", "rows.npy", 2)
        assert (plan.max_s, plan.min_calls, plan.max_calls, plan.warmup_s) == (0.5, 7, 70, 0.25)
    assert set(fake.timeouts) == {11}


def test_what_fails_keeps_the_others(target: Target, tmp_path: Path, place: Place) -> None:
    def answer(plan: Plan, name: str) -> Record:
        if name == "b" and fake.started.count("b") == 2:
            raise ModelError("b: the worker crashed")
        return record(load_s=1.0)

    fake = FakeWorkers(answer)
    site = place(target, answer=fake)
    a, b, c = measure_latency([tmp_path / name for name in "abc"], site, None, Effort(processes=3))
    assert "".join(fake.started) == "abccbaac"  # b is not tried again
    assert isinstance(a, list) and isinstance(c, list)
    assert (len(a), len(c)) == (3, 3)
    assert isinstance(b, ModelError)
    assert str(b) == "b: the worker crashed"


def test_real_workers_of_which_one_crashes(model: Path, interpreter: Interpreter, tmp_path: Path) -> None:
    """The fake Python ends the worker of one model, and is the real one for the other."""
    bad = tmp_path / "bad.onnx"
    shutil.copy(model, bad)
    python = OWN.command[0]
    target = interpreter(f'case "$MODEL" in *bad*) kill -SEGV $$;; esac\nshift\nexec {python} -P "$@"')
    first, second = measure_latency([bad, model], here(target), None, QUICK)
    assert isinstance(first, ModelError)
    assert "crashed with SIGSEGV" in str(first)
    assert isinstance(second, list)
    assert [len(one.latency_s) for one in second] == [3, 3]


@pytest.mark.parametrize(
    ("seconds", "models", "processes"),
    # Begun is what begins within 5 s a model: a single one at 0, 1, … 5 s, and two at 0, 2, … 10 s.
    [(0.0, 1, 8), (1.0, 1, 6), (1.0, 2, 6), (2.0, 1, 3), (100.0, 1, 3)],
)
def test_the_time_of_a_model_is_bounded_but_not_below_the_least(
    target: Target,
    tmp_path: Path,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    models: int,
    processes: int,
) -> None:
    now = 0.0

    def answer(plan: Plan, name: str) -> Record:
        nonlocal now
        now += seconds
        return record()

    fake = FakeWorkers(answer)
    site = place(target, answer=fake)
    monkeypatch.setattr("edgekd.bench.runner.time.monotonic", lambda: now)
    effort = Effort(processes=8, min_processes=3, budget_s=5.0)
    taken = measure_latency([tmp_path / str(n) for n in range(models)], site, None, effort)
    assert [len(records) for records in taken if isinstance(records, list)] == [processes] * models


def test_processes_that_cannot_be_compared_are_refused(target: Target, tmp_path: Path, place: Place) -> None:
    cpus = iter(["one", "one", "two"])
    fake = FakeWorkers(lambda plan, name: record(fingerprint={"cpu": next(cpus)}))
    site = place(target, answer=fake)
    (taken,) = measure_latency([tmp_path / "m"], site, None, Effort(processes=3))
    assert isinstance(taken, ModelError)
    assert str(taken) == (
        f"{tmp_path / 'm'}: its processes are not comparable: cpu is 'one' in one and 'two' in another"
    )


def test_two_models_need_not_be_alike(target: Target, tmp_path: Path, place: Place) -> None:
    fake = FakeWorkers(lambda plan, name: record(fingerprint={"model_sha256": name}))
    site = place(target, answer=fake)
    taken = measure_latency([tmp_path / "a", tmp_path / "b"], site, None, Effort(processes=2))
    assert [len(records) for records in taken if isinstance(records, list)] == [2, 2]


def test_a_fallback_is_refused(target: Target, model: Path, tmp_path: Path, place: Place) -> None:
    strict = dataclasses.replace(target, provider=Provider(name="OpenVINOExecutionProvider"), environment="")
    nodes = {"OpenVINOExecutionProvider": 5, "CPUExecutionProvider": 2}
    fake = FakeWorkers(lambda plan, name: record(fingerprint={"nodes_by_provider": nodes, "ops_elsewhere": {"Pad": 2}}))
    site = place(strict, answer=fake)
    message = (
        f"{model}: 2 of 7 nodes on CPUExecutionProvider (2 Pad); "
        f"target cpu-x86 asks for OpenVINOExecutionProvider alone"
    )
    (taken,) = measure_latency([model], site, None, Effort())
    assert isinstance(taken, ModelError)
    assert str(taken) == message
    calls: list[Callable[[], object]] = [
        lambda: measure_memory(model, site, Effort()),
        lambda: measure_throughput(model, site, None, Effort(), 1, 2),
        lambda: measure_placement(model, site, None, Effort()),
        lambda: predict(model, site, tmp_path / "in.npy", tmp_path / "out.npy"),
    ]
    for call in calls:
        with pytest.raises(EdgekdError) as caught:
            call()
        assert str(caught.value) == message
    assert not list(tmp_path.glob("*.npy"))


# --- a model and its baseline ---


def test_a_pair_for_real(target: Target, model: Path, tmp_path: Path) -> None:
    old = tmp_path / os.fsdecode(b"old\xff.onnx")  # ONNX Runtime itself opens no such name
    other = onnx.load(write_model(old))
    other.graph.node.append(helper.make_node("Identity", ["logits"], ["same"]))
    other.graph.output[0].name = "same"
    onnx.save(other, old)
    np.save(tmp_path / "in.npy", np.zeros((5, 3), np.uint8))
    effort = dataclasses.replace(QUICK, min_calls=7, max_calls=50)
    taken = measure_pair(model, old, here(target), tmp_path / "in.npy", effort, 0)
    assert (taken.mode, taken.fingerprint["inputs"]) == ("pair", "data")
    assert taken.baseline is not None
    assert 7 <= len(taken.latency_s) == len(taken.baseline["latency_s"])
    turned = measure_pair(old, model, here(target), None, effort, 1)
    assert turned.baseline is not None
    assert turned.fingerprint["inputs"] == "random"
    assert turned.baseline["fingerprint"]["model_sha256"] == taken.fingerprint["model_sha256"]
    assert taken.baseline["fingerprint"]["model_sha256"] == turned.fingerprint["model_sha256"]
    assert taken.fingerprint["model_sha256"] != turned.fingerprint["model_sha256"]


def test_every_second_pair_makes_the_model_first(target: Target, tmp_path: Path, place: Place) -> None:
    fake = FakeWorkers(lambda plan, name: record(mode="pair"))
    site = place(target, answer=fake)
    effort = Effort(max_s=0.5, min_calls=7, max_calls=70, warmup_s=0.25, timeout_s=11)
    for turn in range(4):
        measure_pair(tmp_path / "new", tmp_path / "old", site, Path("rows.npy"), effort, turn)
    assert [plan.baseline_first for plan in fake.plans] == [True, False, True, False]
    assert fake.started == ["new"] * 4
    for plan in fake.plans:
        assert (plan.mode, plan.baseline, plan.inputs) == ("pair", str(tmp_path / "old"), "rows.npy")
        assert (plan.max_s, plan.min_calls, plan.max_calls, plan.warmup_s) == (0.5, 7, 70, 0.25)
    assert set(fake.timeouts) == {44}  # four times as long: two models, loaded several times


@pytest.mark.parametrize("baseline", [None, {"CPUExecutionProvider": 2}], ids=["model", "baseline"])
def test_a_fallback_in_a_pair_is_refused(
    target: Target, model: Path, place: Place, baseline: dict[str, int] | None
) -> None:
    strict = dataclasses.replace(target, provider=Provider(name="OpenVINOExecutionProvider"), environment="")
    good = {"nodes_by_provider": {"OpenVINOExecutionProvider": 5}, "ops_elsewhere": {}}
    bad = {
        "nodes_by_provider": {"OpenVINOExecutionProvider": 5, "CPUExecutionProvider": 2},
        "ops_elsewhere": {"Pad": 2},
    }
    mine, other = (good, bad) if baseline else (bad, good)
    fake = FakeWorkers(lambda plan, name: record(mode="pair", fingerprint=mine, baseline={"fingerprint": other}))
    site = place(strict, answer=fake)
    with pytest.raises(ModelError) as caught:
        measure_pair(model, Path("old.onnx"), site, None, QUICK, 0)
    assert str(caught.value) == (
        ("baseline old.onnx" if baseline else f"{model}") + ": 2 of 7 nodes on CPUExecutionProvider (2 Pad); "
        "target cpu-x86 asks for OpenVINOExecutionProvider alone"
    )
    lenient = Provider(name="OpenVINOExecutionProvider", allow_cpu_fallback=True)
    measure_pair(
        model, Path("old.onnx"), place(dataclasses.replace(strict, provider=lenient), answer=fake), None, QUICK, 0
    )


def test_a_missing_or_broken_baseline_is_told(target: Target, model: Path, tmp_path: Path) -> None:
    old = tmp_path / os.fsdecode(b"old\xff.onnx")
    with pytest.raises(InputError) as caught:
        measure_pair(model, old, here(target), None, QUICK, 0)
    assert str(caught.value) == f"baseline {old}: no such model file"
    old.write_text("no model")
    with pytest.raises(InputError, match=rf"^baseline {old}: onnxruntime cannot load it: "):
        measure_pair(model, old, here(target), None, QUICK, 0)
    with pytest.raises(InputError, match=rf"^{old}: onnxruntime cannot load it: "):
        measure_pair(old, model, here(target), None, QUICK, 0)


def test_a_baseline_that_wants_too_much_memory_is_a_failure(
    model: Path, interpreter: Interpreter, tmp_path: Path
) -> None:
    old = write_model(tmp_path / "old.onnx")
    told = f"baseline {old}: out of memory, with a limit of 50 MB (the model fails when it runs)"
    target = interpreter(f'echo \'{{"schema_version": 3, "error": "{told}"}}\' > "$OUT"; exit 1')
    with pytest.raises(ModelError) as caught:
        measure_pair(model, old, here(target), None, QUICK, 0)
    assert str(caught.value) == told


def test_a_crash_of_a_pair_names_both(model: Path, interpreter: Interpreter, tmp_path: Path) -> None:
    """The fake Python ends the worker that is to load the bad baseline, and is the real one for the other."""
    bad, good = write_model(tmp_path / "bad.onnx"), write_model(tmp_path / "good.onnx")
    python = OWN.command[0]
    target = interpreter(f'grep -q bad.onnx "$PLAN" && kill -SEGV $$\nshift\nexec {python} -P "$@"')
    with pytest.raises(ModelError) as caught:
        measure_pair(model, bad, here(target), None, QUICK, 0)
    ending = "the worker crashed with SIGSEGV while it ran the model (no message)"
    assert str(caught.value) == f"{model} or baseline {bad}: {ending}"
    assert measure_pair(model, good, here(target), None, QUICK, 0).mode == "pair"


def test_a_hang_of_a_pair_names_both(model: Path, interpreter: Interpreter) -> None:
    with pytest.raises(ModelError, match=rf"^{model} or baseline {model}: still running after 1\.2 s"):
        measure_pair(model, model, here(interpreter("sleep 60")), None, dataclasses.replace(QUICK, timeout_s=0.3), 0)


# --- memory, throughput, placement, predictions ---


def test_memory_is_measured_without_a_data_set(target: Target, model: Path) -> None:
    taken = measure_memory(model, here(target), QUICK)
    assert taken.mode == "memory"
    assert taken.fingerprint["inputs"] == "random"
    assert len(taken.latency_s) == 5
    peak = taken.memory["run_bytes"]
    assert peak is None or 10_000_000 < peak < 1_000_000_000


def test_throughput_of_a_batch_in_two_sessions(target: Target, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((5, 3), np.uint8))
    taken = measure_throughput(model, here(target), tmp_path / "in.npy", QUICK, batch_size=4, sessions=2)
    assert (taken.batch_size, taken.sessions, taken.fingerprint["inputs"]) == (4, 2, "data")
    assert taken.calls >= 6
    assert taken.elapsed_s > 0


def test_where_the_nodes_ran_for_real(target: Target, model: Path) -> None:
    taken = measure_placement(model, here(target), None, dataclasses.replace(QUICK, costliest=5))
    assert taken.nodes == {"CPUExecutionProvider": 1}
    assert taken.time_share == {"CPUExecutionProvider": pytest.approx(1.0)} or taken.time_share == {
        "CPUExecutionProvider": 0.0  # the one kernel took less than a microsecond
    }
    assert [entry["op_type"] for entry in taken.costliest] == ["Cast"]
    assert (taken.fused, taken.unfused, taken.fell_back) == (None, None, {})


def test_predictions_arrive_whole_or_not_at_all(target: Target, model: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (130, 3), dtype=np.uint8)
    np.save(tmp_path / "in.npy", rows)
    out = tmp_path / "deep" / "out.npy"
    heard: list[tuple[int, int]] = []
    taken = predict(
        model, here(target), tmp_path / "in.npy", out, on_progress=lambda done, total: heard.append((done, total))
    )
    assert taken.outputs_shape == (130, 3)
    assert np.array_equal(np.load(out), rows.astype(np.float32))
    assert [path.name for path in out.parent.iterdir()] == ["out.npy"]
    assert heard and all(0 < done <= total == 130 for done, total in heard)

    np.save(tmp_path / "in.npy", rows.astype(np.float32))
    with pytest.raises(InputError, match=r"the data is float32 \[130, 3\]"):
        predict(model, here(target), tmp_path / "in.npy", tmp_path / "other" / "out.npy")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_whole_data_set_may_take_longer(target: Target, model: Path, tmp_path: Path, place: Place) -> None:
    def answer(plan: Plan, name: str) -> Record:
        if plan.outputs:
            Path(plan.outputs).touch()
        return record(mode=plan.mode)

    fake = FakeWorkers(answer)
    site = place(target, answer=fake)
    effort = Effort(timeout_s=10)
    predict(model, site, tmp_path / "in.npy", tmp_path / "out.npy", effort)
    measure_memory(model, site, effort)
    assert fake.timeouts == [120, 10]
