"""Measures one ONNX model in this process; an ordinary program that a person can copy to a device.

    python worker.py --plan plan.json --model model.onnx --out result.json

It needs Python 3.9, numpy and onnxruntime 1.17, and nothing of edgekd. The plan says what to do:

    mode      "latency": time single calls; "memory": peak memory without a data set;
              "predict": write the outputs for all inputs to `outputs` (.npy)
    provider, provider_options, intra_op_threads, inter_op_threads, allow_spinning,
    graph_level, affinity, precise_int8      how the session is made; all of it goes into the fingerprint
    inputs    a .npy file with inputs along the first axis, memory-mapped; null: seeded random ones
    batch_size, warmup_s, min_calls, max_calls, max_s      bounds of the measurement

The result is one JSON object: raw seconds per call and a fingerprint, or `error` with one line. Statistics
are the reader's business. Exit code 0, or 1 with an error in the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from typing import Any, Callable

import numpy as np

__all__ = ["main", "measure"]

# result history:
# 1 - latency_s, first_call_s, load_s, memory, fingerprint
SCHEMA_VERSION = 1

LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class WorkerError(Exception):
    """One line for the result's `error`."""


def main(argv: list[str] | None = None) -> int:
    """Run the plan; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure one ONNX model in this process.")
    parser.add_argument("--plan", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    with open(args.plan, encoding="utf-8") as file:  # noqa: PTH123 - runs where pathlib costs start-up time
        plan = json.load(file)
    try:
        result, code = measure(plan, args.model), 0
    except (WorkerError, OSError) as error:
        result, code = {"schema_version": SCHEMA_VERSION, "error": str(error)}, 1
    temporary = args.out + ".part"
    with open(temporary, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(result, file)
    os.replace(temporary, args.out)  # noqa: PTH105
    return code


def measure(plan: dict[str, Any], model: str, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """The result of a plan for one model file; `clock` gives seconds."""
    if plan["affinity"]:
        os.sched_setaffinity(0, plan["affinity"])
    import onnxruntime

    memory = {"import_bytes": peak_memory()}
    with open(model, "rb") as file:  # noqa: PTH123
        digest = hashlib.sha256(file.read()).hexdigest()
    begin = clock()
    session = make_session(onnxruntime, plan, model)
    load_s = clock() - begin
    memory["load_bytes"] = peak_memory()
    feeds = Feeds(session, plan)
    result = {"schema_version": SCHEMA_VERSION, "mode": plan["mode"], "load_s": load_s}
    if plan["mode"] == "predict":
        result["outputs_shape"] = predict(session, feeds, plan)
    else:
        result.update(time_calls(session, feeds, plan, clock))
    memory["run_bytes"] = peak_memory()
    result["memory"] = memory
    result["fingerprint"] = fingerprint(onnxruntime, session, plan, digest, feeds)
    return result


def make_session(onnxruntime: Any, plan: dict[str, Any], model: str) -> Any:
    """A session on the plan's provider; WorkerError if the provider is not here or did not take the model."""
    offered = onnxruntime.get_available_providers()
    provider = plan["provider"]
    if provider not in offered:
        raise WorkerError("this onnxruntime offers " + ", ".join(offered) + "; " + provider + " is not among them")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = plan["intra_op_threads"]
    options.inter_op_num_threads = plan["inter_op_threads"]
    options.log_severity_level = 3  # errors; warnings would mix with other programs' output
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[plan["graph_level"]])
    spinning = "1" if plan["allow_spinning"] else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    if plan.get("precise_int8"):  # x86 without VNNI: slower kernels in place of those that saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=[(provider, plan["provider_options"])], enable_fallback=False
        )
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise WorkerError("onnxruntime cannot load it: " + " ".join(str(error).split())[:300]) from error
    if session.get_providers()[0] != provider:
        raise WorkerError(provider + " was asked for, onnxruntime assigned " + ", ".join(session.get_providers()))
    return session


class Feeds:
    """Inputs for the calls: rows of the plan's file in turn, or seeded random ones."""

    def __init__(self, session: Any, plan: dict[str, Any]) -> None:
        self.inputs = session.get_inputs()
        self.batch = plan["batch_size"]
        self.random = plan["inputs"] is None
        if self.random:
            rng = np.random.Generator(np.random.PCG64(0))
            self.fixed = [{i.name: random_input(i, self.batch, rng) for i in self.inputs} for _ in range(8)]
            first = next(iter(self.fixed[0].values()))
            self.batch = first.shape[0] if first.ndim else 1  # a fixed batch is the model's
            return
        self.rows = np.load(plan["inputs"], mmap_mode="r")
        first = self.inputs[0]
        wanted = list(first.shape[1:])
        fits = len(wanted) == self.rows.ndim - 1 and all(
            not isinstance(d, int) or d == have for d, have in zip(wanted, self.rows.shape[1:])
        )
        if len(self.inputs) != 1 or not fits or DTYPES.get(first.type) != self.rows.dtype:
            takes = ", ".join(i.type + " " + str(list(i.shape)) for i in self.inputs)
            raise WorkerError(
                "the model takes " + takes + "; the data is " + str(self.rows.dtype) + " " + str(list(self.rows.shape))
            )
        if isinstance(first.shape[0], int) and first.shape[0] != self.batch:
            self.batch = first.shape[0]

    def call(self, number: int) -> dict[str, Any]:
        """The inputs of call `number`."""
        if self.random:
            return self.fixed[number % len(self.fixed)]
        chosen = np.arange(number * self.batch, (number + 1) * self.batch) % len(self.rows)
        return {self.inputs[0].name: np.ascontiguousarray(self.rows[chosen])}


def random_input(spec: Any, batch: int, rng: np.random.Generator) -> Any:
    """A random array of the input's type; unknown sizes are the batch for the first axis, else 1."""
    if spec.type not in DTYPES:
        raise WorkerError("input " + spec.name + " is " + spec.type + "; give real inputs for it")
    shape = [d if isinstance(d, int) and d > 0 else (batch if axis == 0 else 1) for axis, d in enumerate(spec.shape)]
    dtype = np.dtype(DTYPES[spec.type])
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    high = 256 if dtype == np.uint8 else 128 if dtype == np.int8 else 2  # wide integers are often indices
    return rng.integers(0, high, shape).astype(dtype)


def time_calls(session: Any, feeds: Feeds, plan: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """First call, warm-up until stable (bounded), then one timing per call."""

    def once(number: int) -> float:
        inputs = feeds.call(number)
        begin = clock()
        try:
            session.run(None, inputs)
        except Exception as error:
            raise WorkerError("the model fails when it runs: " + " ".join(str(error).split())[:300]) from error
        return clock() - begin

    first = once(0)
    warmup = warm_up(once, plan["warmup_s"])
    latency: list[float] = []
    begin = clock()
    while len(latency) < plan["max_calls"]:
        if len(latency) >= plan["min_calls"] and clock() - begin >= plan["max_s"]:
            break
        latency.append(once(len(latency)))
    return {"first_call_s": first, "warmup_s": warmup, "latency_s": latency, "batch_size": feeds.batch}


def warm_up(once: Callable[[int], float], limit_s: float) -> list[float]:
    """Call until two blocks of ten calls have medians within 2 %, or `limit_s` of calls have passed."""
    spent: list[float] = []
    before: float | None = None
    while sum(spent) < limit_s:
        block = [once(len(spent) + n) for n in range(10)]
        spent += block
        now = float(np.median(block))
        if before is not None and abs(now - before) <= 0.02 * before:
            break
        before = now
    return spent


def predict(session: Any, feeds: Feeds, plan: dict[str, Any]) -> list[int]:
    """Write the first output for every row to plan["outputs"] (.npy, float32); returns its shape."""
    rows, size = feeds.rows, plan["batch_size"]
    name, first = feeds.inputs[0].name, feeds.inputs[0].shape[0]
    size = first if isinstance(first, int) else size
    shape: list[int] = []
    with open(plan["outputs"], "wb") as file:  # noqa: PTH123
        for start in range(0, len(rows), size):
            chunk = np.ascontiguousarray(rows[start : start + size])
            short = size - len(chunk) if isinstance(first, int) else 0
            if short:  # a fixed batch: fill up, and drop the surplus answers
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], short, axis=0)])
            try:
                answer = session.run(None, {name: chunk})[0][: len(chunk) - short]
            except Exception as error:
                raise WorkerError("the model fails when it runs: " + " ".join(str(error).split())[:300]) from error
            if not shape:
                shape = [len(rows), *answer.shape[1:]]
                header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
                np.lib.format.write_array_header_1_0(file, header)
            # A plain write: on a full disk it fails with a reason, where a memory map kills the process.
            file.write(np.ascontiguousarray(answer, dtype="<f4").tobytes())
    return shape


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes (VmHWM); null where /proc does not tell.

    ru_maxrss will not do: a child inherits its parent's value.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def fingerprint(onnxruntime: Any, session: Any, plan: dict[str, Any], digest: str, feeds: Feeds) -> dict[str, Any]:
    """What must be equal for two records to be comparable."""
    assignment: dict[str, int] = {}
    if hasattr(session, "get_provider_graph_assignment_info"):
        for graph in session.get_provider_graph_assignment_info():
            assignment[graph.ep_name] = assignment.get(graph.ep_name, 0) + len(list(graph.get_nodes()))
    keys = (
        "provider",
        "provider_options",
        "intra_op_threads",
        "inter_op_threads",
        "allow_spinning",
        "graph_level",
        "affinity",
        "precise_int8",
    )
    mark = {key: plan.get(key) for key in keys}
    mark.update(
        model_sha256=digest,
        providers_assigned=session.get_providers(),
        nodes_by_provider=assignment,
        onnxruntime=onnxruntime.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        system=platform.system(),
        architecture=platform.machine(),
        cpu=cpu_model(),
        inputs="random" if feeds.random else "data",
    )
    return mark


def cpu_model() -> str:
    """The CPU's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                key, _, value = line.partition(":")
                if key.strip().lower() in ("model name", "hardware"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
