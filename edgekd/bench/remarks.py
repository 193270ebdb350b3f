"""Remarks that a reader of measured figures needs: a busy machine, inner loops, random inputs."""

import os
from collections.abc import Sequence
from typing import Any

from edgekd.bench.records import Record

__all__ = ["fed", "remarks", "steering_remarks"]

WAITED, STEAL, OTHERS, HOT_C = 0.02, 0.02, 0.2, 70.0
"""Shares of the time (OTHERS: a number of busy cores, HOT_C: °C) above which a remark is made."""


def remarks(records: Sequence[Record]) -> list[str]:
    """Return one line for each thing that disturbed or limits the figures of these processes, most severe first."""
    return [*_disturbances(records), *_limits(records)]


def _disturbances(records: Sequence[Record]) -> list[str]:
    found = []
    if cores := _beyond(records, "others_cores", OTHERS):
        busy = f"{max(cores):.1f} of {os.cpu_count()} CPUs busy"
        found.append(f"other programs kept up to {busy} ({_of(cores, records)})")
    if waited := _beyond(records, "waited", WAITED):
        found.append(f"waiting for a CPU took up to {100 * max(waited):.0f} % of the time ({_of(waited, records)})")
    if steal := _beyond(records, "steal", STEAL):
        found.append(f"the hypervisor took up to {100 * max(steal):.0f} % for others ({_of(steal, records)})")
    speeds = [mhz for record in records if (mhz := record.disturbance.get("mhz"))]
    if speeds and min(speeds) < 0.9 * max(speeds):
        found.append(f"the CPU's frequency lay between {min(speeds):.0f} and {max(speeds):.0f} MHz")
    loaded = [f"loaded machine: {'; '.join(found)}; times may be too long"] if found else []
    return [*_heat(records), *loaded]


def _heat(records: Sequence[Record]) -> list[str]:
    """Return a line if a device was throttled or hot around a process, as devices that are reached by ssh report it."""
    found = []
    if throttled := _beyond(records, "throttled", 0):
        found.append(f"the device was throttled ({_of(throttled, records)})")
    if degrees := _beyond(records, "temperature_c", HOT_C):
        found.append(f"the device had up to {max(degrees):.0f} °C ({_of(degrees, records)})")
    return [f"hot device: {'; '.join(found)}; times may be too long"] if found else []


def _beyond(records: Sequence[Record], key: str, limit: float) -> list[float]:
    """Return the values above the limit, from the processes that recorded this value."""
    return [value for record in records if (value := record.disturbance.get(key)) is not None and value > limit]


def _of(values: Sequence[float], records: Sequence[Record]) -> str:
    return f"in {len(values)} of {len(records)} processes"


def _limits(records: Sequence[Record]) -> list[str]:
    lines = [text] if (text := fed(records[0].fingerprint)) else []
    unstable = sum(not record.warm for record in records)
    if unstable:
        lines.append(f"not yet stable when the warm-up time was over: {unstable} of {len(records)} processes")
    inner = max(record.inner_calls for record in records)
    if inner > 1:
        lines.append(
            f"calls are shorter than 50 µs: each timing is the mean of up to {inner} calls, "
            "and p95 and p99 are of such means"
        )
    if (length := records[0].fingerprint.get("sequence_length")) and records[0].latency_s:
        lines.append(f"timed with sequences of {length}")
    if records[0].fingerprint.get("inputs") == "random" and records[0].latency_s:
        lines.append("seeded random inputs, for no data was given")
    return lines


def fed(fingerprint: dict[str, Any]) -> str:
    """Return text such as `inputs: x float 1×3×224×224 (batch: axis 0), sr int64 scalar = 16000`; empty if unknown."""
    shapes, types = fingerprint.get("shapes"), fingerprint.get("input_types")
    if not isinstance(shapes, dict) or not isinstance(types, dict):
        return ""
    axes, values = fingerprint.get("batch_axes") or {}, fingerprint.get("values") or {}
    return "inputs: " + ", ".join(
        " ".join(filter(None, [name, str(types.get(name, "")), "×".join(map(str, shape)) or "scalar"]))
        + (f" (batch: axis {axes[name]})" if axes.get(name) is not None else "")
        + (f" = {str(values[name])[:40]}" if name in values else "")
        for name, shape in shapes.items()
    )


def steering_remarks(record: Record, steering: Sequence[str]) -> list[str]:
    """Return a line if a model whose time depends on its inputs was fed random ones, see `steering_of`."""
    if not steering or record.fingerprint.get("inputs") != "random":
        return []
    values, types = record.fingerprint.get("values") or {}, record.fingerprint.get("input_types") or {}
    drawn = [name for name in record.fingerprint.get("shapes") or {} if name not in values]
    steers = [name for name in drawn if not str(types.get(name)).startswith(("float", "double"))]
    branches = set(steering) - {"NonMaxSuppression"}  # which needs real images: one of a single value shows no objects
    value = f", or a value, such as --input {steers[0]}=1" if steers and branches else ""
    which = ", ".join(steers or drawn)
    return [
        f"the model has {' and '.join(steering)}, and its inputs are drawn at random ({which}): how long a call takes "
        f"may depend on what they say; give real ones by --data{value}"
    ]
