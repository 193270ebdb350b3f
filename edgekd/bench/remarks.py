"""What a reader of measured figures must know beside them: a busy machine, inner loops, random inputs."""

import os
from collections.abc import Sequence
from statistics import median

from edgekd.bench.records import Record

__all__ = ["remarks"]

WAITED, STEAL, OTHERS = 0.01, 0.01, 0.15
"""From here on a share of the time (or a number of busy cores) is told."""


def remarks(records: Sequence[Record]) -> list[str]:
    """One line for each thing that disturbed or limits the figures of these processes; the gravest first."""
    return [*_disturbances(records), *_limits(records)]


def _disturbances(records: Sequence[Record]) -> list[str]:
    def typical(key: str) -> float:
        known = [value for record in records if (value := record.disturbance.get(key)) is not None]
        return median(known) if known else 0.0

    found = []
    if (cores := typical("others_cores")) > OTHERS:
        found.append(f"other programs kept {cores:.1f} of {os.cpu_count()} CPUs busy")
    if (waited := typical("waited")) > WAITED:
        found.append(f"the processes waited {100 * waited:.0f} % of their time for a CPU")
    if (steal := typical("steal")) > STEAL:
        found.append(f"the hypervisor took {100 * steal:.0f} % of the time for others")
    speeds = [mhz for record in records if (mhz := record.disturbance.get("mhz"))]
    if speeds and min(speeds) < 0.9 * max(speeds):
        found.append(f"the CPU's frequency lay between {min(speeds):.0f} and {max(speeds):.0f} MHz")
    return [f"loaded machine: {'; '.join(found)}; times may be too long"] if found else []


def _limits(records: Sequence[Record]) -> list[str]:
    lines = []
    unstable = sum(not record.warm for record in records)
    if unstable:
        lines.append(f"{unstable} of {len(records)} processes were not yet stable when their warm-up time was over")
    inner = max(record.inner_calls for record in records)
    if inner > 1:
        lines.append(
            f"calls are shorter than 50 µs: each timing is the mean of up to {inner} calls, "
            "and p95 and p99 are of such means"
        )
    if records[0].fingerprint.get("inputs") == "random" and records[0].latency_s:
        lines.append("seeded random inputs, for no data was given")
    return lines
