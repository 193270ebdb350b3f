"""Statistics of recorded samples, computed on reading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Latency", "latency_of", "min_calls_for"]


def min_calls_for(percentile: float) -> int:
    """Calls below which a percentile is not given.

    The largest of n calls lies above the percentile q with probability 1 − qⁿ; at least 99 % is asked:
    90 calls for p95, 459 for p99 (the order-statistic bound of a one-sided 99 % tolerance limit).
    """
    q = percentile / 100
    return math.ceil(math.log(0.01) / math.log(q))


@dataclass(frozen=True)
class Latency:
    """Percentiles over all processes (seconds), and how far the processes' own medians lie apart."""

    calls: int
    processes: int
    p50_s: float
    p95_s: float | None
    p99_s: float | None
    p50_low_s: float
    """Smallest and largest median of a process: calls of one process say little about the next."""
    p50_high_s: float


def latency_of(processes: Sequence[Sequence[float]]) -> Latency:
    """Percentiles of the pooled calls of several processes; None where there are too few calls."""
    calls = np.concatenate([np.asarray(samples, dtype=np.float64) for samples in processes])
    medians = [float(np.median(samples)) for samples in processes]

    def percentile(q: float) -> float | None:
        return float(np.percentile(calls, q)) if len(calls) >= min_calls_for(q) else None

    return Latency(
        calls=len(calls),
        processes=len(processes),
        p50_s=float(np.median(calls)),
        p95_s=percentile(95),
        p99_s=percentile(99),
        p50_low_s=min(medians),
        p50_high_s=max(medians),
    )
