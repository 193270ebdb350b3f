"""The parent of the workers: it plans their work and has the device run them; it never times anything itself."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.bench.placement import fallback, placement_of
from edgekd.bench.records import Effort, Plan, Record, comparable
from edgekd.bench.sequences import sequence_of, steering_of
from edgekd.devices.device import Site, Told
from edgekd.errors import EdgekdError, ModelError
from edgekd.figures import Placement
from edgekd.files import move
from edgekd.scratch import scratch

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
    "sampled",
]

RESERVED_BYTES = 1_000_000_000
"""Addresses that runtimes and their threads reserve without using them."""
PAIR_TIMES = 4
"""How many times longer than others a worker may take that loads two models several times and calls both."""
PREDICT_TIMES = 12
"""The same for a worker that runs over a whole data set."""


def make_plan(site: Site, effort: Effort | None = None, **values: Any) -> Plan:
    """A plan with the target's provider and session options; `values` gives the rest."""
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
        # The pinning is the device's; another machine may not even have those CPUs.
        affinity=session.affinity if site.measurable else (),
        # A stand-in for a device that does not saturate must not do so either.
        precise_int8=not site.measurable and site.device.facts().saturates_int8,
        memory_limit_bytes=_limit_bytes(site, effort.memory_limit_mb, values.get("inputs")),
        **feeding | values,
    )


def _limit_bytes(site: Site, limit_mb: float | None, inputs: str | None) -> int | None:
    """Address space for a worker: as asked, else the free memory and RESERVED_BYTES; the mapped data set comes on top.

    Only where the CPU does the work: a GPU's driver reserves far more addresses than it uses.
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
    """For each model, the records of several fresh processes, or the error that ended its measurement.

    The models take turns, in alternating order, so that drift of the machine hits all of them alike.
    """
    plan = make_plan(site, effort, mode="latency", inputs=str(inputs) if inputs else None, **_bounds(effort))
    taken: list[list[Record] | EdgekdError] = [[] for _ in models]
    begin = time.monotonic()
    for turn in range(effort.processes):
        if turn >= effort.min_processes and time.monotonic() - begin > effort.budget_s * len(models):
            break
        order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
        for place in order:
            taken[place] = _one_more(taken[place], plan, models[place], site, effort)
    return taken


def _bounds(effort: Effort) -> dict[str, Any]:
    return {name: getattr(effort, name) for name in ("warmup_s", "min_calls", "max_calls", "max_s")}


def _one_more(
    before: list[Record] | EdgekdError, plan: Plan, model: Path, site: Site, effort: Effort
) -> list[Record] | EdgekdError:
    """The records with one more process; an error stays, and a new one takes their place."""
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
    """The calls of one fresh process."""
    source = str(inputs) if inputs else None
    return _measured(make_plan(site, effort, mode="latency", inputs=source, **_bounds(effort)), model, site, effort)


def measure_pair(model: Path, baseline: Path, site: Site, inputs: Path | None, effort: Effort, turn: int) -> Record:
    """One fresh process in which a model and its baseline take turns; every second `turn` the model is made first."""
    files: dict[str, Any] = {"inputs": str(inputs) if inputs else None, "baseline": str(baseline)}
    plan = make_plan(site, effort, mode="pair", baseline_first=turn % 2 == 0, **files, **_bounds(effort))
    return _measured(plan, model, site, effort, PAIR_TIMES)


def measure_load(model: Path, site: Site, effort: Effort) -> Record:
    """A worker that only makes the session: whether the target's runtime can load the file at all."""
    return _measured(make_plan(site, effort, mode="load"), model, site, effort)


def measure_memory(model: Path, site: Site, effort: Effort) -> Record:
    """Peak memory in a worker of its own that holds no data set, but at most one example of it."""
    sample = None if sequence_of(model) else effort.feeding.sample
    calls: dict[str, Any] = {"warmup_s": 0.0, "min_calls": 5, "max_calls": 5, "max_s": 0.0}
    return _measured(make_plan(site, effort, mode="memory", inputs=sample, **calls), model, site, effort)


def sampled(effort: Effort, inputs: Path | None) -> Effort:
    """The effort with the one example that lies beside `inputs`, where there is one."""
    sample = inputs and inputs.with_suffix(f".sample{inputs.suffix}")
    if sample is None or not sample.is_file():
        return effort
    return dataclasses.replace(effort, feeding=dataclasses.replace(effort.feeding, sample=str(sample)))


def measure_throughput(
    model: Path, site: Site, inputs: Path | None, effort: Effort, batch_size: int, sessions: int
) -> Record:
    """Calls that sessions side by side finish together, with this many inputs each."""
    sizes: dict[str, Any] = {"batch_size": batch_size, "sessions": sessions, "min_calls": 3, "max_s": effort.max_s}
    source = str(inputs) if inputs else None
    plan = make_plan(site, effort, mode="throughput", inputs=source, warmup_s=effort.warmup_s, **sizes)
    return _measured(plan, model, site, effort)


def measure_placement(model: Path, site: Site, inputs: Path | None, effort: Effort) -> Placement:
    """Which kernels ran where, from a profiled session in a worker of its own."""
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
    plan = make_plan(site, effort, mode="predict", **files)
    try:
        record = _measured(plan, model, site, effort, PREDICT_TIMES, told)
        move(temporary, outputs)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _measured(plan: Plan, model: Path, site: Site, effort: Effort, times: int = 1, told: Told | None = None) -> Record:
    found = sequence_of(model)
    plan = dataclasses.replace(
        plan,
        sequence_length=found.get("sequence_length"),
        padding=found.get("padding"),
        steered=bool(steering_of(model)),
    )
    record = site.device.run(plan, model, site.target, times * effort.timeout_s, told)
    if problem := fallback(record, site.target):
        raise ModelError(f"{model}: {problem}")
    if record.baseline is not None:
        other = dataclasses.replace(record, fingerprint=record.baseline["fingerprint"])
        if problem := fallback(other, site.target):
            raise ModelError(f"baseline {plan.baseline}: {problem}")
    return record
