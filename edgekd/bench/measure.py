"""Benching model files: workers' records to figures, each with its provenance."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import accuracy as score
from edgekd.bench.records import Record
from edgekd.bench.runner import measure_latency, measure_memory, predict
from edgekd.bench.statistics import Latency, latency_of
from edgekd.figures import Figure, ModelFigures, Provenance
from edgekd.run import read_json, write_json
from edgekd.target import Target

__all__ = ["Effort", "Subject", "evaluate", "file_sha256", "logits_of", "measure_speed"]

# records/*.json history:
# 1 - model, target, latency (one record a process), memory
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much time a model gets."""

    processes: int = 5
    warmup_s: float = 0.3
    min_calls: int = 100
    max_calls: int = 1_000
    max_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model file to bench, and what is known of it already."""

    name: str
    file: Path
    precision: str
    params: int | None = None
    macs: int | None = None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure_speed(
    subjects: Sequence[Subject], target: Target, inputs: Path | None, folder: Path | None, effort: Effort
) -> list[ModelFigures]:
    """Latency, throughput, load time and memory of each file; records found in `folder` are kept.

    On a machine that is not the target, time is unknown and memory a proxy.
    """
    taken = _latency_records(subjects, target, inputs, folder, effort) if target.measurable else [[] for _ in subjects]
    return [
        _figures(subject, target, records, _memory_record(subject, target, folder))
        for subject, records in zip(subjects, taken, strict=True)
    ]


def _latency_records(
    subjects: Sequence[Subject], target: Target, inputs: Path | None, folder: Path | None, effort: Effort
) -> list[list[Record]]:
    kept = [_kept(subject, "latency", target, folder) for subject in subjects]
    missing = [place for place, records in enumerate(kept) if not records]
    if missing:
        files = [subjects[place].file for place in missing]
        for place, records in zip(
            missing, measure_latency(files, target, inputs, **dataclasses.asdict(effort)), strict=True
        ):
            kept[place] = records
            _keep(subjects[place], "latency", target, folder, records)
    return kept


def _memory_record(subject: Subject, target: Target, folder: Path | None) -> Record:
    kept = _kept(subject, "memory", target, folder)
    if not kept:
        kept = [measure_memory(subject.file, target)]
        _keep(subject, "memory", target, folder, kept)
    return kept[0]


def _record_file(subject: Subject, kind: str, target: Target, folder: Path) -> Path:
    return folder / f"{subject.name.replace(' ', '-')}@{target.name}.{kind}.json"


def _kept(subject: Subject, kind: str, target: Target, folder: Path | None) -> list[Record]:
    """Records of exactly this file, measured before; none if the file has changed since."""
    path = _record_file(subject, kind, target, folder) if folder else None
    if path is None or not path.exists():
        return []
    data = read_json(path)
    if data["schema_version"] != SCHEMA_VERSION or data["model_sha256"] != file_sha256(subject.file):
        return []
    return [Record.from_json(entry | {"schema_version": 1}) for entry in data["records"]]


def _keep(subject: Subject, kind: str, target: Target, folder: Path | None, records: Sequence[Record]) -> None:
    if folder is not None:
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "model": subject.name,
            "model_sha256": file_sha256(subject.file),
            "target": target.name,
            "records": [dataclasses.asdict(record) for record in records],
        }
        write_json(_record_file(subject, kind, target, folder), content)


def _figures(subject: Subject, target: Target, latency: Sequence[Record], memory: Record) -> ModelFigures:
    elsewhere = "; ".join(target.differences())
    figures = ModelFigures(
        name=subject.name,
        file=subject.file.name,
        sha256=file_sha256(subject.file),
        size_bytes=subject.file.stat().st_size,
        precision=subject.precision,
        params=subject.params,
        macs=subject.macs,
        peak_memory_mb=_memory(memory, elsewhere),
        fingerprint=(latency[0] if latency else memory).fingerprint,
    )
    if not latency:
        unknown = Figure(why=f"{elsewhere}; only p50 can be estimated")
        return dataclasses.replace(
            figures,
            latency_p50_ms=Figure(why=f"{elsewhere}; not estimated"),
            latency_p95_ms=unknown,
            latency_p99_ms=unknown,
            throughput_per_s=unknown,
            load_ms=unknown,
        )
    stats = latency_of([record.latency_s for record in latency])
    loads = [1_000 * record.load_s for record in latency]
    return dataclasses.replace(
        figures,
        latency_p50_ms=Figure(1e3 * stats.p50_s, "measured", 1e3 * stats.p50_low_s, 1e3 * stats.p50_high_s),
        latency_p95_ms=_percentile(stats, stats.p95_s, 95),
        latency_p99_ms=_percentile(stats, stats.p99_s, 99),
        throughput_per_s=Figure(latency[0].batch_size / stats.p50_s, "measured"),
        load_ms=Figure(float(np.median(loads)), "measured", min(loads), max(loads)),
    )


def _percentile(stats: Latency, value_s: float | None, percentile: int) -> Figure:
    if value_s is None:
        return Figure(why=f"{stats.calls} calls are too few for p{percentile}")
    return Figure(1e3 * value_s, "measured")


def _memory(record: Record, elsewhere: str) -> Figure:
    peak = record.memory.get("run_bytes")
    if peak is None:
        return Figure(why="this system does not tell a process's peak memory")
    provenance: Provenance = "proxy" if elsewhere else "measured"
    return Figure(peak / 1e6, provenance, why=elsewhere)


def logits_of(subject: Subject, target: Target, inputs: Path, folder: Path) -> NDArray[np.float32]:
    """The logits (n, C) of a file for all `inputs` on the target's provider; kept in `folder` by file and inputs."""
    path = folder / f"{subject.name.replace(' ', '-')}@{target.name}.{inputs.stem}.{file_sha256(subject.file)[:12]}.npy"
    if not path.exists():
        predict(subject.file, target, inputs, path)
    logits: NDArray[np.float32] = np.load(path)
    return logits.reshape(len(logits), -1)


def evaluate(
    figures: Sequence[ModelFigures],
    logits: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    teacher_logits: NDArray[np.float32],
    target: Target,
) -> list[ModelFigures]:
    """The figures with accuracy, macro F1 and the agreement with the teacher, from each model's logits (n, C)."""
    elsewhere = "; ".join(target.differences())
    provenance: Provenance = "proxy" if elsewhere else "measured"

    def figure(value: float) -> Figure:
        return Figure(value, provenance, why=elsewhere)

    return [
        dataclasses.replace(
            model,
            accuracy=figure(score.top1(answer, labels)),
            macro_f1=figure(score.macro_f1(answer, labels)),
            agreement=figure(score.agreement(answer, teacher_logits)),
        )
        for model, answer in zip(figures, logits, strict=True)
    ]
