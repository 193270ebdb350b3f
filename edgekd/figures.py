"""A figure and how it was obtained; what is known of one model file."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BUDGETED", "COMPARED", "Figure", "ModelFigures", "Placement", "Provenance"]

Provenance = Literal["measured", "emulated", "proxy", "estimated", "exact", "unknown"]

BUDGETED = {
    "latency_p50_ms": "latency p50",
    "latency_p95_ms": "latency p95",
    "latency_p99_ms": "latency p99",
    "load_ms": "load time",
    "size_kb": "file size",
    "peak_memory_mb": "peak memory",
    "min_accuracy": "accuracy",
    "max_accuracy_drop": "accuracy drop",
    "teacher_min_accuracy": "teacher's accuracy",
    "min_agreement": "agreement with the teacher",
    "min_coverage": "nodes on the provider",
    "min_fused_share": "fused in int8",
}
"""Budget keys in the order they are shown, with the words for them."""

COMPARED = {
    "max_slowdown": "p50 slowdown",
    "max_slowdown_p95": "p95 slowdown",
    "max_load_growth": "load time growth",
    "max_size_growth": "file size growth",
    "max_memory_growth": "peak memory growth",
    "max_accuracy_loss": "accuracy loss",
    "min_same_answers": "same answers",
    "max_coverage_loss": "fewer nodes on the provider",
    "max_fused_loss": "less fused in int8",
}
"""Tolerance keys, by which a model is held against a baseline, in the order they are shown."""


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


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the nodes of a model ran, and in which arithmetic; plain data, as it is written to JSON."""

    nodes: dict[str, int]
    """Nodes by provider, as ONNX Runtime assigned them before fusing; where it does not tell, kernels that ran."""
    time_share: dict[str, float]
    """Share of the kernels' time by provider; adds up to 1. Empty on a machine that is not the target."""
    provenance: Provenance = "measured"
    fell_back: dict[str, int] = field(default_factory=dict)
    """Op types on another provider than the one asked for, with their number."""
    fused: int | None = None
    """Kernels that compute in 8 bits (QLinearConv …); None where the provider compiles the graph itself."""
    unfused: int | None = None
    """Nodes that compute in float between DequantizeLinear and QuantizeLinear; None as above."""
    qdq: int | None = None
    """QuantizeLinear and DequantizeLinear kernels that still ran; None as above."""
    blockers: dict[str, int] = field(default_factory=dict)
    """Op types of those nodes, with their number."""
    costliest: tuple[dict[str, Any], ...] = ()
    """With --profile: node, op_type, provider, us (median) and share of the time, the costliest first."""

    @property
    def fused_share(self) -> float | None:
        """Of the nodes that could compute in 8 bits, the share that does; None for a model without any."""
        if self.fused is None or self.unfused is None or not self.fused + self.unfused:
            return None
        return self.fused / (self.fused + self.unfused)


@dataclass(frozen=True)
class ModelFigures:
    """All figures of one model file. Latencies in ms, memory in MB, energy in mJ, accuracy 0–1."""

    name: str
    file: str
    sha256: str
    size_bytes: int
    precision: str
    params: int | None = None
    macs: int | None = None
    accuracy: Figure = UNKNOWN
    top5: Figure = UNKNOWN
    macro_f1: Figure = UNKNOWN
    ece: Figure = UNKNOWN
    """Expected calibration error, 15 bins."""
    agreement: Figure = UNKNOWN
    """Share of the inputs on which it says what the teacher says."""
    torch_agreement: Figure = UNKNOWN
    """The same against the student in torch that it was exported from."""
    max_logit_diff: Figure = UNKNOWN
    """Largest absolute difference of a logit from that of the student in torch."""
    latency_p50_ms: Figure = UNKNOWN
    latency_p95_ms: Figure = UNKNOWN
    latency_p99_ms: Figure = UNKNOWN
    throughput_per_s: Figure = UNKNOWN
    load_ms: Figure = UNKNOWN
    """Making the session."""
    first_call_ms: Figure = UNKNOWN
    peak_memory_mb: Figure = UNKNOWN
    energy_mj: Figure = UNKNOWN
    """Energy of a call, of the whole CPU package or GPU."""
    batches: dict[str, Figure] = field(default_factory=dict)
    """Inputs per second by «batch 8» or «2 sessions»."""
    placement: Placement | None = None
    recall: tuple[float | None, ...] = ()
    """Per class; None for one that the data does not hold."""
    notes: tuple[str, ...] = ()
    """What disturbed or limits the figures: a loaded machine, inner loops, random inputs."""
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def size_kb(self) -> Figure:
        """File size, always exact."""
        return Figure(self.size_bytes / 1_000, "exact")
