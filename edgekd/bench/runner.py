"""The parent of the workers: plans, starts them, reads their JSON; it never times anything itself."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd.bench.placement import fallback, placement_of
from edgekd.bench.records import Effort, Plan, Record, comparable
from edgekd.bench.sequences import sequence_of
from edgekd.devices import host
from edgekd.devices.environments import Runtime, runtime_of
from edgekd.errors import EdgekdError, InputError, ModelError
from edgekd.figures import Placement
from edgekd.files import move
from edgekd.scratch import scratch
from edgekd.target import Target

__all__ = [
    "make_plan",
    "measure_latency",
    "measure_load",
    "measure_memory",
    "measure_pair",
    "measure_placement",
    "measure_process",
    "measure_throughput",
    "predict",
    "run_worker",
]

TIMEOUT_EXIT = 124
"""What `timeout(1)` and a worker that was stopped for its time exit with."""
RESERVED_BYTES = 1_000_000_000
"""Addresses that runtimes and their threads reserve without using them."""
PAIR_TIMES = 4
"""The same for one that loads two models several times and calls both."""
PREDICT_TIMES = 12
"""How many times longer than others a worker may take that runs over a whole data set."""
Told = Callable[[int, int], None]


def make_plan(target: Target, effort: Effort | None = None, **values: Any) -> Plan:
    """A plan with the target's provider and session options; `values` gives the rest."""
    session, limit = target.session, (effort or Effort()).memory_limit_mb
    return Plan(
        provider=target.provider.name,
        provider_options=dict(target.provider.options),
        intra_op_threads=session.intra_op_threads,
        inter_op_threads=session.inter_op_threads,
        allow_spinning=session.allow_spinning,
        graph_level=session.graph_level,
        arena=session.arena,
        binding=session.binding,
        # The pinning is the device's; another machine may not even have those CPUs.
        affinity=session.affinity if target.measurable else (),
        # A stand-in for a device that does not saturate must not do so either.
        precise_int8=not target.measurable and host.machine().saturates_int8,
        memory_limit_bytes=_limit_bytes(target, limit, values.get("inputs")),
        **values,
    )


def _limit_bytes(target: Target, limit_mb: float | None, inputs: str | None) -> int | None:
    """Address space for a worker: as asked, else the free memory and RESERVED_BYTES; the mapped data set comes on top.

    Only where the CPU does the work: a GPU's driver reserves far more addresses than it uses.
    """
    mapped = Path(inputs).stat().st_size if inputs and Path(inputs).exists() else 0
    if limit_mb is not None:
        return int(limit_mb * 1_000_000) + mapped
    free = host.free_memory()
    on_cpu = target.provider.name in ("CPUExecutionProvider", "OpenVINOExecutionProvider")
    return free + RESERVED_BYTES + mapped if on_cpu and free else None


def run_worker(
    plan: Plan, model: Path, runtime: Runtime, timeout_s: float = Effort.timeout_s, told: Told | None = None
) -> Record:
    """One fresh worker process of the target's runtime; `told(done, total)` hears of its progress.

    Raises InputError if the model cannot be loaded, ModelError if it crashes or hangs the worker; so also for the
    plan's baseline.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such model file")
    if plan.baseline is not None and not Path(plan.baseline).is_file():
        raise InputError(f"baseline {plan.baseline}: no such model file")
    # Which of two models ended their process, nobody can tell.
    culprit = f"{model}" if plan.baseline is None else f"{model} or baseline {plan.baseline}"
    with scratch() as folder:
        plan_file, out, errors = Path(folder, "plan.json"), Path(folder, "result.json"), Path(folder, "stderr")
        baseline = plan.baseline and _as_text(Path(plan.baseline), Path(folder, "baseline.onnx"))
        plan_file.write_text(json.dumps(plan.as_json() | {"baseline": baseline}), encoding="utf-8")
        file = _as_text(model, Path(folder, "model.onnx"))
        command = [*runtime.command, "--plan", str(plan_file), "--model", file, "--out", str(out)]
        if runtime.kind == "python":
            command.append("--die-with-parent")
        code = _wait(command, errors, timeout_s, told)
        if code is None:
            raise ModelError(f"{culprit}: still running after {timeout_s:g} s (exit {TIMEOUT_EXIT}); stopped")
        if not out.exists():
            raise ModelError(f"{culprit}: the worker {_ending(code, errors)}")
        return _read(out, model, f"baseline {baseline}: ", f"baseline {plan.baseline}: ")


def _as_text(file: Path, link: Path) -> str:
    """The path as a runtime can open it, which takes UTF-8 alone: where a name is bytes, a link to the file."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        link.symlink_to(file.resolve())
        return str(link)
    return str(file)


def _wait(command: list[str], errors: Path, timeout_s: float, told: Told | None) -> int | None:
    """The exit code; None if it had to be stopped, with all that it had started."""
    with errors.open("wb") as stderr:
        try:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env=os.environ | {"TMPDIR": str(errors.parent)},  # one that is stopped leaves nothing behind
            )
        except OSError as error:
            raise ModelError(f"{command[0]}: cannot be started: {error.strerror}") from error
    reader = threading.Thread(target=_listen, args=(worker, told), daemon=True)
    reader.start()
    try:
        code = worker.wait(timeout_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # and what it left behind; also on an interrupt
        worker.wait()
    reader.join(timeout=5)
    return code


def _listen(worker: "subprocess.Popen[bytes]", told: Told | None) -> None:
    assert worker.stdout is not None
    with worker.stdout as lines:
        for line in lines:
            words = line.split()
            if told and len(words) == 3 and words[0] == b"done" and words[1].isdigit() and words[2].isdigit():
                told(int(words[1]), int(words[2]))


def _ending(code: int, errors: Path) -> str:
    text = errors.read_text(encoding="utf-8", errors="replace").strip()
    last = (text.splitlines()[-1:] or ["no message"])[0][:200]
    if code == -signal.SIGKILL:
        return f"was killed while it ran the model, as the system does when memory runs out ({last})"
    if code < 0:
        return f"crashed with {signal.Signals(-code).name} while it ran the model ({last})"
    return f"ended with exit code {code} and no result ({last})"


def _read(out: Path, model: Path, blamed: str, baseline: str) -> Record:
    """The record; the worker's error is the model's, or the `baseline`'s where it begins with `blamed`."""
    try:
        data = json.loads(out.read_text(encoding="utf-8"))
        if "error" in data:
            text = str(data["error"])
            whose, what = (baseline, text.removeprefix(blamed)) if text.startswith(blamed) else (f"{model}: ", text)
            kind = ModelError if what.startswith("out of memory") else InputError
            raise kind(whose + what)
        return Record.from_json(data)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{model}: the worker's result cannot be read: {error}") from error


def measure_latency(
    models: Sequence[Path], target: Target, inputs: Path | None, effort: Effort
) -> list[list[Record] | EdgekdError]:
    """For each model, the records of several fresh processes, or the error that ended its measurement.

    The models take turns, in alternating order, so that drift of the machine hits all of them alike.
    """
    plan = make_plan(target, effort, mode="latency", inputs=str(inputs) if inputs else None, **_bounds(effort))
    taken: list[list[Record] | EdgekdError] = [[] for _ in models]
    begin = time.monotonic()
    for turn in range(effort.processes):
        if turn >= effort.min_processes and time.monotonic() - begin > effort.budget_s * len(models):
            break
        order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
        for place in order:
            taken[place] = _one_more(taken[place], plan, models[place], target, effort)
    return taken


def _bounds(effort: Effort) -> dict[str, Any]:
    return {name: getattr(effort, name) for name in ("warmup_s", "min_calls", "max_calls", "max_s")}


def _one_more(
    before: list[Record] | EdgekdError, plan: Plan, model: Path, target: Target, effort: Effort
) -> list[Record] | EdgekdError:
    """The records with one more process; an error stays, and a new one takes their place."""
    if isinstance(before, EdgekdError):
        return before
    try:
        records = [*before, _measured(plan, model, target, effort)]
    except EdgekdError as error:
        return error
    if problem := comparable(records):
        return ModelError(f"{model}: its processes are not comparable: {problem}")
    return records


def measure_process(model: Path, target: Target, inputs: Path | None, effort: Effort) -> Record:
    """The calls of one fresh process."""
    source = str(inputs) if inputs else None
    return _measured(make_plan(target, effort, mode="latency", inputs=source, **_bounds(effort)), model, target, effort)


def measure_pair(model: Path, baseline: Path, target: Target, inputs: Path | None, effort: Effort, turn: int) -> Record:
    """One fresh process in which a model and its baseline take turns; every second `turn` the model is made first."""
    files: dict[str, Any] = {"inputs": str(inputs) if inputs else None, "baseline": str(baseline)}
    plan = make_plan(target, effort, mode="pair", baseline_first=turn % 2 == 0, **files, **_bounds(effort))
    return _measured(plan, model, target, effort, PAIR_TIMES)


def measure_load(model: Path, target: Target, effort: Effort) -> Record:
    """A worker that only makes the session: whether the target's runtime can load the file at all."""
    return _measured(make_plan(target, effort, mode="load"), model, target, effort)


def measure_memory(model: Path, target: Target, effort: Effort) -> Record:
    """Peak memory in a worker of its own that holds no data set."""
    calls: dict[str, Any] = {"warmup_s": 0.0, "min_calls": 5, "max_calls": 5, "max_s": 0.0}
    return _measured(make_plan(target, effort, mode="memory", **calls), model, target, effort)


def measure_throughput(
    model: Path, target: Target, inputs: Path | None, effort: Effort, batch_size: int, sessions: int
) -> Record:
    """Calls that sessions side by side finish together, with this many inputs each."""
    sizes: dict[str, Any] = {"batch_size": batch_size, "sessions": sessions, "min_calls": 3, "max_s": effort.max_s}
    source = str(inputs) if inputs else None
    plan = make_plan(target, effort, mode="throughput", inputs=source, warmup_s=effort.warmup_s, **sizes)
    return _measured(plan, model, target, effort)


def measure_placement(model: Path, target: Target, inputs: Path | None, effort: Effort) -> Placement:
    """Which kernels ran where, from a profiled session in a worker of its own."""
    with scratch() as folder:
        # Other providers compile the graph themselves; ONNX Runtime then has no optimized graph to write.
        native = target.provider.name == "CPUExecutionProvider"
        optimized = Path(folder, "optimized.onnx") if native else None
        plan = make_plan(
            target,
            effort,
            mode="profile",
            inputs=str(inputs) if inputs else None,
            optimized=str(optimized) if optimized else None,
            min_calls=20,
        )
        record = _measured(plan, model, target, effort)
        return placement_of(record, optimized, target, effort.costliest)


def predict(
    model: Path,
    target: Target,
    inputs: Path,
    outputs: Path,
    effort: Effort | None = None,
    batch_size: int = 64,
    told: Told | None = None,
) -> Record:
    """Run the model over all inputs on the target's provider; the logits go to `outputs` (.npy).

    Sequences go one by one: int8 that is scaled by what comes gives answers that depend on the rest of a batch.
    """
    effort = effort or Effort()
    batch_size = 1 if sequence_of(model) else batch_size
    outputs.parent.mkdir(parents=True, exist_ok=True)
    temporary = outputs.with_name(f".{os.getpid()}.{outputs.name}")
    files: dict[str, Any] = {"inputs": str(inputs), "outputs": str(temporary), "batch_size": batch_size}
    plan = make_plan(target, effort, mode="predict", **files)
    try:
        record = _measured(plan, model, target, effort, PREDICT_TIMES, told)
        move(temporary, outputs)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _measured(
    plan: Plan, model: Path, target: Target, effort: Effort, times: int = 1, told: Told | None = None
) -> Record:
    found = sequence_of(model)
    plan = dataclasses.replace(plan, sequence_length=found.get("sequence_length"), padding=found.get("padding"))
    record = run_worker(plan, model, runtime_of(target), times * effort.timeout_s, told)
    if problem := fallback(record, target):
        raise ModelError(f"{model}: {problem}")
    if record.baseline is not None:
        other = dataclasses.replace(record, fingerprint=record.baseline["fingerprint"])
        if problem := fallback(other, target):
            raise ModelError(f"baseline {plan.baseline}: {problem}")
    return record
