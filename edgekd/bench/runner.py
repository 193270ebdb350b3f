"""The parent process of the workers: it plans their work and starts them on the device, and never times anything
itself.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edgekd.bench.placement import fallback, placement_of
from edgekd.bench.records import Effort, Plan, Record, comparable
from edgekd.bench.sequences import generates_of, sequence_of, steering_of, timed_shape_of
from edgekd.devices.device import OnProgress, Site
from edgekd.errors import EdgekdError, ModelError
from edgekd.figures import Placement
from edgekd.files import move
from edgekd.scratch import scratch

__all__ = [
    "make_plan",
    "measure_instructions",
    "measure_latency",
    "measure_load",
    "measure_memory",
    "measure_pair",
    "measure_placement",
    "measure_process",
    "measure_throughput",
    "predict",
    "sampled",
]

RESERVED_BYTES = 1_000_000_000
"""Address space that runtimes and their threads reserve without using it."""
PAIR_TIMES = 4
"""Factor on the time limit of a worker in mode pair, which loads two models several times and calls both."""
COUNTED: dict[str, Any] = {"max_calls": 200, "max_s": 5.0}
"""Bounds for counting instructions: the calls of a block, and the emulator's seconds for all blocks."""
PREDICT_TIMES = 12
"""Factor on the time limit of a worker that runs the model on a whole data set."""


def make_plan(site: Site, effort: Effort | None = None, **values: Any) -> Plan:
    """Make a plan with the target's provider and session options; `values` sets the other fields."""
    target, session, effort = site.target, site.target.session, effort or Effort()
    feeding = {field.name: getattr(effort.feeding, field.name) for field in dataclasses.fields(effort.feeding)}
    del feeding["sample"]
    return Plan(
        provider=target.provider.name,
        provider_options=dict(target.provider.options),
        intra_op_threads=session.intra_op_threads,
        inter_op_threads=session.inter_op_threads,
        allow_spinning=session.allow_spinning,
        graph_level=session.graph_level,
        arena=session.arena,
        binding=session.binding,
        # CPU affinity applies to the target's hardware; another machine may not have these CPUs.
        affinity=session.affinity if site.measurable else (),
        # If the target's int8 arithmetic does not saturate, a machine in its place must not saturate either.
        precise_int8=not site.measurable and site.device.facts().saturates_int8,
        memory_limit_bytes=_limit_bytes(site, effort.memory_limit_mb, values.get("inputs")),
        **feeding | values | _fed(values),
    )


def _fed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the changes of a plan if the run's models resize in the graph.

    Beside its `inputs`, such a run keeps the images in their own sizes, which are given to the model one by one for its
    answers, and images of one size for measurements of time.
    """
    inputs = Path(values["inputs"]) if values.get("inputs") else None
    originals = inputs and inputs.with_suffix(".originals.npy")
    if inputs is None or originals is None or not originals.is_file():
        return {}
    if values["mode"] == "predict":
        return {"inputs": str(originals), "packed": True, "batch_size": 1}
    return {"inputs": str(inputs.with_name("timed.npy"))}


def _limit_bytes(site: Site, limit_mb: float | None, inputs: str | None) -> int | None:
    """Return the address space for a worker: the given limit, or the free memory plus RESERVED_BYTES; mapped data are
    added.

    A limit is derived from free memory only where the CPU does the work: a GPU's driver reserves far more address space
    than it uses.
    """
    mapped = Path(inputs).stat().st_size if inputs and Path(inputs).exists() else 0
    if limit_mb is not None:
        return int(limit_mb * 1_000_000) + mapped
    free = site.device.free_memory()
    on_cpu = site.target.provider.name in ("CPUExecutionProvider", "OpenVINOExecutionProvider")
    return free + RESERVED_BYTES + mapped if on_cpu and free else None


def measure_latency(
    models: Sequence[Path], site: Site, inputs: Path | None, effort: Effort
) -> list[list[Record] | EdgekdError]:
    """Return for each model the records of several fresh processes, or the error that ended its measurement.

    The models take turns, in alternating order, so that drift of the machine affects all of them equally.
    """
    plan = make_plan(site, effort, mode="latency", inputs=str(inputs) if inputs else None, **_bounds(effort))
    taken: list[list[Record] | EdgekdError] = [[] for _ in models]
    _keep_busy(models[0], site, inputs, effort)
    begin = time.monotonic()
    for turn in range(effort.processes):
        if turn >= effort.min_processes and time.monotonic() - begin > effort.budget_s * len(models):
            break
        order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
        for place in order:
            taken[place] = _one_more(taken[place], plan, models[place], site, effort)
    return taken


def _keep_busy(model: Path, site: Site, inputs: Path | None, effort: Effort) -> None:
    """Call the model for `effort.sustained_s`, in pieces of a minute, so that the device reaches its lasting state."""
    until = time.monotonic() + effort.sustained_s
    while (rest := until - time.monotonic()) > 0:
        bounds: dict[str, Any] = {"min_calls": 1, "max_s": min(60.0, rest), "warmup_s": 0.0}
        source = str(inputs) if inputs else None
        _measured(make_plan(site, effort, mode="throughput", inputs=source, **bounds), model, site, effort)


def _bounds(effort: Effort) -> dict[str, Any]:
    return {name: getattr(effort, name) for name in ("warmup_s", "min_calls", "max_calls", "max_s")}


def _one_more(
    before: list[Record] | EdgekdError, plan: Plan, model: Path, site: Site, effort: Effort
) -> list[Record] | EdgekdError:
    """Add the record of one more process. An earlier error is kept, and a new error replaces the records."""
    if isinstance(before, EdgekdError):
        return before
    try:
        records = [*before, _measured(plan, model, site, effort)]
    except EdgekdError as error:
        return error
    if problem := comparable(records):
        return ModelError(f"{model}: its processes are not comparable: {problem}")
    return records


def measure_process(model: Path, site: Site, inputs: Path | None, effort: Effort) -> Record:
    """Measure the latency of the calls in one fresh process."""
    source = str(inputs) if inputs else None
    return _measured(make_plan(site, effort, mode="latency", inputs=source, **_bounds(effort)), model, site, effort)


def measure_pair(model: Path, baseline: Path, site: Site, inputs: Path | None, effort: Effort, turn: int) -> Record:
    """Measure a model and its baseline by turns in one fresh process; in odd turns, the model is loaded first."""
    files: dict[str, Any] = {"inputs": str(inputs) if inputs else None, "baseline": str(baseline)}
    plan = make_plan(site, effort, mode="pair", baseline_first=turn % 2 == 0, **files, **_bounds(effort))
    return _measured(plan, model, site, effort, PAIR_TIMES)


def measure_load(model: Path, site: Site, effort: Effort) -> Record:
    """Only create the session in a worker, to find out whether the target's runtime can load the file."""
    return _measured(make_plan(site, effort, mode="load"), model, site, effort)


def measure_memory(model: Path, site: Site, effort: Effort) -> Record:
    """Measure peak memory in a separate worker, which loads at most one example and no data set."""
    sample = None if sequence_of(model) else effort.feeding.sample
    calls: dict[str, Any] = {"warmup_s": 0.0, "min_calls": 5, "max_calls": 5, "max_s": 0.0}
    return _measured(make_plan(site, effort, mode="memory", inputs=sample, **calls), model, site, effort)


def sampled(effort: Effort, inputs: Path | None) -> Effort:
    """Return the effort with the single example that is stored beside `inputs`, if that file exists."""
    sample = inputs and inputs.with_suffix(f".sample{inputs.suffix}")
    if sample is None or not sample.is_file():
        return effort
    return dataclasses.replace(effort, feeding=dataclasses.replace(effort.feeding, sample=str(sample)))


def measure_throughput(
    model: Path, site: Site, inputs: Path | None, effort: Effort, batch_size: int, sessions: int
) -> Record:
    """Measure how many calls parallel sessions finish together, with `batch_size` inputs in each call."""
    sizes: dict[str, Any] = {"batch_size": batch_size, "sessions": sessions, "min_calls": 3, "max_s": effort.max_s}
    source = str(inputs) if inputs else None
    plan = make_plan(site, effort, mode="throughput", inputs=source, warmup_s=effort.warmup_s, **sizes)
    return _measured(plan, model, site, effort)


def measure_instructions(model: Path, board: Site, inputs: Path | None, effort: Effort) -> Record:
    """Count the instructions of calls in a worker on an emulated board, with one thread: threads that wait would be
    counted, too.
    """
    source = str(inputs) if inputs else None
    plan = make_plan(board, effort, mode="count", inputs=source, **COUNTED)
    return _measured(dataclasses.replace(plan, intra_op_threads=1, inter_op_threads=1), model, board, effort)


def measure_placement(model: Path, site: Site, inputs: Path | None, effort: Effort) -> Placement:
    """Find which kernels ran where, with a profiled session in a separate worker."""
    with scratch() as folder:
        # Other providers compile the graph themselves; ONNX Runtime then has no optimized graph to write.
        native = site.target.provider.name == "CPUExecutionProvider"
        optimized = Path(folder, "optimized.onnx") if native else None
        plan = make_plan(
            site,
            effort,
            mode="profile",
            inputs=str(inputs) if inputs else None,
            optimized=str(optimized) if optimized else None,
            min_calls=20,
        )
        record = _measured(plan, model, site, effort)
        return placement_of(record, optimized, site, effort.costliest)


def predict(
    model: Path,
    site: Site,
    inputs: Path,
    outputs: Path,
    effort: Effort | None = None,
    batch_size: int = 64,
    on_progress: OnProgress | None = None,
    answers: Literal["rows", "classes", "boxes"] = "rows",
) -> Record:
    """Run the model on all inputs with the target's provider and write the logits to `outputs` (.npy), or the class
    maps or the boxes, if these are asked for as `answers`.

    Sequences are run one by one: dynamic int8 quantization scales by the values of the whole batch, so that an answer
    would depend on the other rows.
    """
    effort, site = effort or Effort(), site.answering
    batch_size = 1 if sequence_of(model) else batch_size
    outputs.parent.mkdir(parents=True, exist_ok=True)
    temporary = outputs.with_name(f".{os.getpid()}.{outputs.name}")
    files: dict[str, Any] = {"inputs": str(inputs), "outputs": str(temporary), "batch_size": batch_size}
    files["answers"] = answers
    plan = make_plan(site, effort, mode="predict", **files)
    try:
        record = _measured(plan, model, site, effort, PREDICT_TIMES, on_progress)
        move(temporary, outputs)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _measured(
    plan: Plan, model: Path, site: Site, effort: Effort, times: int = 1, on_progress: OnProgress | None = None
) -> Record:
    found = sequence_of(model)
    generates = generates_of(model)
    plan = dataclasses.replace(
        plan,
        mode="generate" if generates and plan.mode == "latency" else plan.mode,
        optimized=None if generates else plan.optimized,  # it would be the graph of one of two files
        sequence_length=found.get("sequence_length"),
        padding=found.get("padding"),
        steered=bool(steering_of(model)),
        shapes=dict(plan.shapes) if plan.inputs else timed_shape_of(model) | plan.shapes,
    )
    record = site.device.run(plan, model, site.target, times * effort.timeout_s, on_progress)
    if problem := fallback(record, site.target):
        raise ModelError(f"{model}: {problem}")
    if record.baseline is not None:
        other = dataclasses.replace(record, fingerprint=record.baseline["fingerprint"])
        if problem := fallback(other, site.target):
            raise ModelError(f"baseline {plan.baseline}: {problem}")
    return record
