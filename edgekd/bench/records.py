"""The plan a worker gets and the record it gives back; both are plain JSON."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Plan", "Record", "comparable"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one worker process does; the fields are explained in edgekd/bench/worker.py."""

    mode: Literal["latency", "memory", "predict"]
    provider: str
    provider_options: dict[str, str] = field(default_factory=dict)
    intra_op_threads: int = 1
    inter_op_threads: int = 1
    allow_spinning: bool = True
    graph_level: str = "all"
    affinity: tuple[int, ...] = ()
    precise_int8: bool = False
    inputs: str | None = None
    outputs: str | None = None
    batch_size: int = 1
    warmup_s: float = 0.5
    min_calls: int = 100
    max_calls: int = 1_000
    max_s: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """The plan as the worker reads it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one worker process measured; seconds and bytes, nothing summarised."""

    mode: str
    load_s: float
    fingerprint: dict[str, Any]
    memory: dict[str, int | None]
    first_call_s: float | None = None
    warmup_s: tuple[float, ...] = ()
    latency_s: tuple[float, ...] = ()
    batch_size: int = 1
    outputs_shape: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """The record in a worker's result; ValueError or TypeError if it is none."""
        if data.get("schema_version") != 1:
            raise ValueError(f"schema_version is {data.get('schema_version')!r}, 1 is known")
        values = {key: value for key, value in data.items() if key != "schema_version"}
        for key in ("warmup_s", "latency_s", "outputs_shape"):
            values[key] = tuple(values.get(key, ()))
        return cls(**values)


def comparable(records: list[Record]) -> str:
    """Why records may not be pooled: the first key that differs, with both values; empty if they may."""
    first, *others = ({**record.fingerprint, "batch_size": record.batch_size} for record in records)
    for other in others:
        for key in first | other:
            if first.get(key) != other.get(key):
                return f"{key} is {first.get(key)!r} in one and {other.get(key)!r} in another"
    return ""
