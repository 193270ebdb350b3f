"""The parent of the workers: plans, starts them, reads their JSON; it never times anything itself."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd import host
from edgekd.bench.placement import fallback
from edgekd.bench.records import Plan, Record, comparable
from edgekd.errors import InputError, ModelError, UnavailableError
from edgekd.target import Target

__all__ = ["available_providers", "make_plan", "measure_latency", "measure_memory", "predict", "run_worker"]

TIMEOUT_S = 300.0
TIMEOUT_EXIT = 124
"""What `timeout(1)` and a worker that was stopped for its time exit with."""


def available_providers() -> list[str]:
    """Execution providers of the onnxruntime installed here; UnavailableError if there is none."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UnavailableError('measuring needs onnxruntime; pip install "edgekd[cpu]"') from None
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def make_plan(target: Target, **values: Any) -> Plan:
    """A plan with the target's provider and session options; `values` gives the rest."""
    session = target.session
    return Plan(
        provider=target.provider.name,
        provider_options=dict(target.provider.options),
        intra_op_threads=session.intra_op_threads,
        inter_op_threads=session.inter_op_threads,
        allow_spinning=session.allow_spinning,
        graph_level=session.graph_level,
        # The pinning is the device's; another machine may not even have those CPUs.
        affinity=session.affinity if target.measurable else (),
        # A stand-in for a device that does not saturate must not do so either.
        precise_int8=not target.measurable and host.machine().saturates_int8,
        **values,
    )


def run_worker(plan: Plan, model: Path, timeout_s: float = TIMEOUT_S, python: Sequence[str] = ()) -> Record:
    """One fresh worker process; `python` is the interpreter's command, by default this one's.

    Raises InputError if the model cannot be loaded, ModelError if it crashes or hangs the worker.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such model file")
    command = [*(python or (sys.executable, "-P")), "-m", "edgekd.bench.worker"]
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        plan_file, out = Path(folder, "plan.json"), Path(folder, "result.json")
        plan_file.write_text(json.dumps(plan.as_json()), encoding="utf-8")
        command += ["--plan", str(plan_file), "--model", str(model), "--out", str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, errors="replace")
        except subprocess.TimeoutExpired:
            raise ModelError(f"{model}: still running after {timeout_s:.0f} s (exit {TIMEOUT_EXIT}); stopped") from None
        if not out.exists():
            raise ModelError(f"{model}: the worker {_ending(done)}")
        return _read(out, model)


def _ending(done: "subprocess.CompletedProcess[str]") -> str:
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"crashed with {name} while it ran the model ({last[0][:200]})"
    return f"ended with exit code {done.returncode} and no result ({last[0][:200]})"


def _read(out: Path, model: Path) -> Record:
    try:
        data = json.loads(out.read_text(encoding="utf-8"))
        if "error" in data:
            raise InputError(f"{model}: {data['error']}")
        return Record.from_json(data)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{model}: the worker's result cannot be read: {error}") from error


def measure_latency(
    models: Sequence[Path], target: Target, inputs: Path | None, processes: int = 5, **bounds: Any
) -> list[list[Record]]:
    """Records of each model over several fresh processes.

    The models take turns, in alternating order, so that drift of the machine hits all of them alike.
    """
    plan = make_plan(target, mode="latency", inputs=str(inputs) if inputs else None, **bounds)
    records: list[list[Record]] = [[] for _ in models]
    for turn in range(processes):
        order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
        for place in order:
            records[place].append(_checked(run_worker(plan, models[place]), models[place], target))
    for model, taken in zip(models, records, strict=True):
        if problem := comparable(taken):
            raise ModelError(f"{model}: its processes are not comparable: {problem}")
    return records


def measure_memory(model: Path, target: Target) -> Record:
    """Peak memory in a worker of its own that holds no data set."""
    plan = make_plan(target, mode="memory", inputs=None, warmup_s=0.0, min_calls=5, max_calls=5, max_s=0.0)
    return _checked(run_worker(plan, model), model, target)


def predict(model: Path, target: Target, inputs: Path, outputs: Path, batch_size: int = 64) -> Record:
    """Run the model over all inputs on the target's provider; the logits go to `outputs` (.npy)."""
    outputs.parent.mkdir(parents=True, exist_ok=True)
    temporary = outputs.with_name(f".{os.getpid()}.{outputs.name}")
    plan = make_plan(target, mode="predict", inputs=str(inputs), outputs=str(temporary), batch_size=batch_size)
    try:
        record = _checked(run_worker(plan, model, timeout_s=3_600.0), model, target)
        temporary.replace(outputs)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _checked(record: Record, model: Path, target: Target) -> Record:
    if problem := fallback(record, target):
        raise ModelError(f"{model}: {problem}")
    return record
