"""A figure and how it was obtained; what is known of one model file."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BUDGETED", "Figure", "ModelFigures", "Provenance"]

Provenance = Literal["measured", "emulated", "proxy", "estimated", "exact", "unknown"]

BUDGETED = {
    "latency_p50_ms": "latency p50",
    "latency_p95_ms": "latency p95",
    "size_kb": "file size",
    "peak_memory_mb": "peak memory",
    "min_accuracy": "accuracy",
    "max_accuracy_drop": "accuracy drop",
    "teacher_min_accuracy": "teacher's accuracy",
}
"""Budget keys in the order they are shown, with the words for them."""


@dataclass(frozen=True)
class Figure:
    """One figure: its value, how it was obtained and, where it is known, the interval it lies in."""

    value: float | None = None
    provenance: Provenance = "unknown"
    low: float | None = None
    high: float | None = None
    why: str = ""
    """What a reader must know: why it is unknown, what it was estimated from."""


UNKNOWN = Figure()


@dataclass(frozen=True)
class ModelFigures:
    """All figures of one model file. Latencies in ms, load in ms, memory in MB, accuracy 0–1."""

    name: str
    file: str
    sha256: str
    size_bytes: int
    precision: str
    params: int | None = None
    macs: int | None = None
    accuracy: Figure = UNKNOWN
    macro_f1: Figure = UNKNOWN
    agreement: Figure = UNKNOWN
    latency_p50_ms: Figure = UNKNOWN
    latency_p95_ms: Figure = UNKNOWN
    latency_p99_ms: Figure = UNKNOWN
    throughput_per_s: Figure = UNKNOWN
    load_ms: Figure = UNKNOWN
    peak_memory_mb: Figure = UNKNOWN
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def size_kb(self) -> Figure:
        """File size, always exact."""
        return Figure(self.size_bytes / 1_000, "exact")
