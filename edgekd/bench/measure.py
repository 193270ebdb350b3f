"""Bench model files: turn the workers' records into figures, each with its provenance."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.instructions import count_instructions
from edgekd.bench.kept import Subject, is_of, keep_records, kept_records, mark_of, record_file
from edgekd.bench.records import Effort, Record
from edgekd.bench.remarks import remarks, steering_remarks
from edgekd.bench.runner import (
    measure_latency,
    measure_memory,
    measure_placement,
    measure_throughput,
    predict,
    sampled,
)
from edgekd.bench.sequences import generates_of, steering_of
from edgekd.bench.statistics import Interval, Latency, between, bootstrap, latency_of, min_calls_for
from edgekd.devices.device import OnProgress, Site
from edgekd.errors import EdgekdError, InputError, ModelError, UnavailableError
from edgekd.external import file_digest, model_bytes, model_files
from edgekd.figures import WHOLE, Figure, ModelFigures, Placement
from edgekd.files import read_json, write_json
from edgekd.target import Target
from edgekd.tasks.task import Outputs, Targets, Task

__all__ = [
    "References",
    "Subject",
    "evaluate",
    "logits_of",
    "measure_each",
    "measure_speed",
    "weights_problem",
]


def measure_speed(
    subjects: Sequence[Subject], site: Site, inputs: Path | None, folder: Path | None, effort: Effort
) -> list[ModelFigures]:
    """Return the figures of `measure_each`. Raises the first error among them."""
    figures = []
    for taken in measure_each(subjects, site, inputs, folder, effort):
        if isinstance(taken, EdgekdError):
            raise taken
        figures.append(taken)
    return figures


def measure_each(
    subjects: Sequence[Subject], site: Site, inputs: Path | None, folder: Path | None, effort: Effort
) -> list[ModelFigures | EdgekdError]:
    """Measure latency, throughput, load time, memory and placement of each file; an error ends the measurement of its
    file.

    Records of the same file that are already in `folder` are reused, and new records are written there. On a device
    that is not the target's hardware, time is unknown and memory is a proxy.
    """
    refused = [weights_problem(subject.file, site.target) for subject in subjects]
    whole = [subject for subject, problem in zip(subjects, refused, strict=True) if problem is None]
    timed = iter(_latency_records(whole, site, inputs, folder, effort) if site.measurable else [[] for _ in whole])
    figures: list[ModelFigures | EdgekdError] = []
    for subject, problem in zip(subjects, refused, strict=True):
        records: list[Record] | EdgekdError = problem if problem is not None else next(timed)
        try:
            figures.append(_measure_one(subject, site, records, inputs, folder, effort))
        except EdgekdError as error:
            figures.append(error)
    return figures


def weights_problem(file: Path, target: Target) -> InputError | None:
    """Return an error if the external weights of a model cannot be used; None if they can, or if it has none."""
    if not file.is_file():
        return None  # the session that loads the file reports this error
    try:
        files = model_files(file)
    except InputError as error:
        return error
    if target.provider.name == "wasm" and generates_of(file):
        return InputError(f"{file}: generates token by token, which target {target.name} cannot; take another target")
    if len(files) > 1 and target.provider.name == "wasm":
        where = ", ".join(part.name for part in files[1:])
        return InputError(f"{file}: keeps weights in {where}, and onnxruntime-web reads one file; save it as one")
    return None


def _measure_one(
    subject: Subject,
    site: Site,
    records: list[Record] | EdgekdError,
    inputs: Path | None,
    folder: Path | None,
    effort: Effort,
) -> ModelFigures:
    if isinstance(records, EdgekdError):
        raise records
    memory = None
    if effort.memory or not records:
        memory = _memory_record(subject, site, folder, sampled(effort, inputs))
    placement = _placement(subject, site, inputs, folder, effort) if effort.placement else None
    figures = _figures(subject, site, records, memory, placement)
    if effort.instructions == "always" or (effort.instructions == "untimed" and not site.measurable):
        counted = count_instructions(subject, site, inputs, folder, effort)
        figures = dataclasses.replace(figures, instructions_m=counted)
    if not (records and effort.placement):
        return figures
    return dataclasses.replace(figures, batches=_batches(subject, site, inputs, folder, effort))


def _latency_records(
    subjects: Sequence[Subject], site: Site, inputs: Path | None, folder: Path | None, effort: Effort
) -> list[list[Record] | EdgekdError]:
    kept: list[list[Record] | EdgekdError] = [
        list(kept_records(subject, "latency", site.target, folder, effort)) for subject in subjects
    ]
    missing = [place for place, records in enumerate(kept) if not records]
    if missing:
        files = [subjects[place].file for place in missing]
        for place, records in zip(missing, measure_latency(files, site, inputs, effort), strict=True):
            kept[place] = records
            if not isinstance(records, EdgekdError):
                keep_records(subjects[place], "latency", site.target, folder, effort, records)
    return kept


def _memory_record(subject: Subject, site: Site, folder: Path | None, effort: Effort) -> Record:
    kept = kept_records(subject, "memory", site.target, folder, effort)
    if not kept:
        kept = [measure_memory(subject.file, site, effort)]
        keep_records(subject, "memory", site.target, folder, effort, kept)
    return kept[0]


def _placement(subject: Subject, site: Site, inputs: Path | None, folder: Path | None, effort: Effort) -> Placement:
    path = record_file(subject, "placement", site.target, folder) if folder else None
    mark = mark_of(subject, effort)
    if path and path.exists():
        kept = read_json(path)
        if is_of(kept, mark):
            return Placement(**kept["placement"] | {"costliest": tuple(kept["placement"]["costliest"])})
    placement = measure_placement(subject.file, site, inputs, effort)
    if path:
        write_json(path, mark | {"placement": dataclasses.asdict(placement)})
    return placement


def _batches(
    subject: Subject, site: Site, inputs: Path | None, folder: Path | None, effort: Effort
) -> dict[str, Figure]:
    """Measure inputs per second for each of the target's batch sizes and, if the effort asks for it, for parallel
    sessions.
    """
    asked = {f"batch {size}": (size, 1) for size in site.target.session.batch_sizes}
    if effort.sessions > 1:  # one session in the same mode, as a reference
        asked |= {"1 session": (1, 1), f"{effort.sessions} sessions": (1, effort.sessions)}
    rates = {}
    for name, (size, sessions) in asked.items():
        kind = f"throughput-{name.replace(' ', '-')}"
        records = kept_records(subject, kind, site.target, folder, effort)
        try:
            while len(records) < 3:
                records.append(measure_throughput(subject.file, site, inputs, effort, size, sessions))
        except UnavailableError:  # the device is gone, and with it all other figures
            raise
        except EdgekdError as error:  # an error here does not affect the other figures
            rates[name] = Figure(why=str(error).removeprefix(f"{subject.file}: "))
            continue
        keep_records(subject, kind, site.target, folder, effort, records)
        rate = between([record.calls * record.batch_size / record.elapsed_s for record in records])
        fixed = f"the model's batch is fixed to {records[0].batch_size}" if records[0].batch_size != size else ""
        rates[name] = Figure(rate.value, "measured", rate.low, rate.high, fixed)
    return rates


def _figures(
    subject: Subject, site: Site, latency: Sequence[Record], memory: Record | None, placement: Placement | None
) -> ModelFigures:
    elsewhere = site.elsewhere
    first = memory if memory is not None and not latency else latency[0]
    figures = ModelFigures(
        name=subject.name,
        file=subject.file.name,
        sha256=file_digest(subject.file),
        size_bytes=model_bytes(subject.file),
        precision=subject.precision,
        params=subject.params,
        macs=subject.macs,
        peak_memory_mb=_memory(memory, site) if memory is not None else Figure(why="not measured, no limit"),
        placement=placement,
        fingerprint=first.fingerprint,
        notes=(*remarks(latency), *steering_remarks(latency[0], steering_of(subject.file))) if latency else (),
    )
    if not latency:
        unknown = Figure(why=f"{elsewhere}; only p50 can be estimated")
        names = ("latency_p95_ms", "latency_p99_ms", "throughput_per_s", "load_ms", "first_call_ms", "energy_mj")
        p50 = Figure(why=f"{elsewhere}; not estimated")
        others: dict[str, Any] = dict.fromkeys(names, unknown)
        return dataclasses.replace(figures, latency_p50_ms=p50, **others)
    stats = latency_of([record.latency_s for record in latency])
    p50 = _ms(stats.p50)
    assert p50.value and p50.low and p50.high
    batch = latency[0].batch_size
    return dataclasses.replace(
        figures,
        latency_p50_ms=p50,
        latency_p95_ms=_percentile(stats, stats.p95, 95),
        latency_p99_ms=_percentile(stats, stats.p99, 99),
        throughput_per_s=Figure(1e3 * batch / p50.value, "measured", 1e3 * batch / p50.high, 1e3 * batch / p50.low),
        load_ms=_ms(between([record.load_s for record in latency])),
        first_call_ms=_ms(between([record.first_call_s or 0.0 for record in latency])),
        energy_mj=_energy(latency),
        **_generation(latency),
    )


def _generation(latency: Sequence[Record]) -> dict[str, Any]:
    """Return the figures that only models that generate have."""
    if not latency[0].tokens:
        return {}
    firsts = latency_of([record.first_token_s for record in latency]).p50
    rates = between([record.tokens / float(np.median(record.latency_s)) for record in latency])
    return {
        "first_token_ms": _ms(firsts),
        "tokens_per_s": Figure(rates.value, "measured", rates.low, rates.high),
    }


def _ms(seconds: Interval) -> Figure:
    return Figure(1e3 * seconds.value, "measured", 1e3 * seconds.low, 1e3 * seconds.high)


def _percentile(stats: Latency, seconds: Interval | None, percentile: int) -> Figure:
    if seconds is None:
        return Figure(why=f"{stats.calls} calls are too few for p{percentile}, which needs {min_calls_for(percentile)}")
    return _ms(seconds)


def _energy(latency: Sequence[Record]) -> Figure:
    """Return millijoules per call for the whole CPU package or GPU, including other programs' consumption."""
    counted = [
        1e3 * record.energy_j / (len(record.latency_s) * record.inner_calls)
        for record in latency
        if record.energy_j is not None
    ]
    if not counted:
        return Figure(why="no counter here")
    energy = between(counted)
    return Figure(energy.value, "measured", energy.low, energy.high, "of the whole package, other programs included")


def _memory(record: Record, site: Site) -> Figure:
    peak = record.memory.get("run_bytes")
    if peak is None:
        return Figure(why="this system does not tell a process's peak memory")
    if site.provenance == "emulated":
        return Figure(why=f"{site.elsewhere}, nor the memory of a process")
    return Figure(peak / 1e6, site.provenance, why=site.elsewhere)


def logits_of(
    subject: Subject,
    site: Site,
    inputs: Path,
    folder: Path,
    task: Task,
    effort: Effort | None = None,
    on_progress: OnProgress | None = None,
) -> Outputs:
    """Return the outputs of a file for all `inputs` on the target's provider, as `task.read` gives them.

    They are stored in `folder` under a name made from the digest of the model file and the name of the input file.
    Raises ModelError for outputs that are NaN or infinite.
    """
    which = (effort.feeding.output or "") if effort else ""
    mark = hashlib.sha256(f"{file_digest(subject.file)} {which}".encode()).hexdigest() if which else None
    mark = (mark or file_digest(subject.file))[:12]
    name = subject.name.replace(" ", "-").replace("/", "-")
    path = folder / f"{name}@{site.target.name}.{inputs.stem}.{mark}.npy"
    if not path.exists():
        predict(subject.file, site, inputs, path, effort, min(64, task.together), on_progress, task.writes)
    logits: NDArray[np.float32] = np.load(path)
    broken = int((~np.isfinite(logits)).any(axis=tuple(range(1, logits.ndim))).sum())
    if broken:
        raise ModelError(f"{subject.file}: gives NaN or infinite outputs for {broken} of {len(logits)} inputs")
    return task.read_from(logits, subject.file)


@dataclass(frozen=True, kw_only=True)
class References:
    """The values with which a model's outputs are compared; all of them are for the same inputs."""

    task: Task
    targets: Targets
    """What is right for each input."""
    teacher: Outputs | None = None
    """The teacher's outputs on the same provider."""
    torch: Outputs | None = None
    """Outputs of the PyTorch student from which the files were exported."""


def evaluate(
    figures: Sequence[ModelFigures], outputs: Sequence[Outputs], references: References, site: Site
) -> list[ModelFigures]:
    """Add scores and agreement to the figures, computed from each model's outputs.

    Every model except the first one of a run, see `WHOLE`, was exported from the PyTorch student and is also compared
    with it.
    """
    return [_scored(model, answer, references, site) for model, answer in zip(figures, outputs, strict=True)]


def _scored(model: ModelFigures, outputs: Outputs, references: References, site: Site) -> ModelFigures:
    place, task, targets = site.answering, references.task, references.targets
    provenance, elsewhere = place.provenance, "; ".join(place.proxies)

    def figure(value: float) -> Figure:
        return Figure(value, provenance, why=elsewhere)

    found: dict[str, Any] = {}
    teacher, torch = references.teacher, references.torch
    if task.same is not None and teacher is not None and teacher.shape == outputs.shape:
        found["agreement"] = figure(task.same(outputs, teacher))
    if torch is not None and torch.shape == outputs.shape and model.name not in WHOLE:
        if task.same is not None:
            found["torch_agreement"] = figure(task.same(outputs, torch))
        if task.writes == "rows" and outputs.dtype.kind in "fiu":  # texts have no differences
            found["max_logit_diff"] = figure(float(np.abs(outputs.astype(np.float64) - torch).max()))
    scores = {name: figure(value) for name, value in task.score(outputs, targets).items()}
    first = task.scores[0]
    if not first.counted and first.name in scores:
        interval = bootstrap(task.each(outputs, targets), scores[first.name].value)
        scores[first.name] = dataclasses.replace(scores[first.name], low=interval.low, high=interval.high)
    details = task.details(outputs, targets)
    return dataclasses.replace(model, scores=scores, kinds=task.scores, details=details, **found)
