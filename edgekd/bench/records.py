"""The plan that a worker reads and the record that it returns; both are plain JSON."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["PAIR", "QUICK", "RECORD_VERSION", "THOROUGH", "Effort", "Feeding", "Plan", "Record", "comparable"]

RECORD_VERSION = 4
"""The `schema_version` that this edgekd's workers write; edgekd/bench/worker.py describes the history of versions."""


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """The user's options for a model's inputs and outputs; edgekd/bench/worker.py explains each field."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    batch_axes: dict[str, int | None] = field(default_factory=dict)
    output: str | None = None
    custom_ops: tuple[str, ...] = ()
    sample: str | None = None
    """A file with one example of the data, for workers that load no data set; edgekd sets it."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The time a model may be measured for, and the limits of its workers."""

    processes: int = 8
    min_processes: int = 3
    """This many processes run even if `budget_s` is exceeded."""
    budget_s: float = 13.0
    """Seconds of latency measurement per model; memory, placement and accuracy take additional time."""
    warmup_s: float = 0.3
    min_calls: int = 12
    """Minimum number of timed calls in each process: eight processes then give the 90 calls that a p95 needs."""
    max_calls: int = 5_000
    max_s: float = 0.8
    placement: bool = True
    """Whether to find with a profiled session which kernels ran where, and to time batches."""
    instructions: Literal["never", "untimed", "always"] = "untimed"
    """Whether to count instructions, in a process of its own, where an emulated board is at hand: never, only where no
    time is measured, or always."""
    memory: bool = True
    """Whether to measure peak memory, with a process of its own. Where no time is measured, it always is."""
    costliest: int = 0
    """How many of the costliest nodes to report."""
    sustained_s: float = 0.0
    """Seconds for which the device is kept busy before times are measured, so that it is as warm as in long use."""
    sessions: int = 1
    """If above 1, also measure the throughput of this many parallel sessions."""
    timeout_s: float = 300.0
    """A worker that runs longer than this is stopped and counts as hanging."""
    memory_limit_mb: float | None = None
    """Address space in MB that a worker may use; None for nearly all free memory of the machine."""
    feeding: Feeding = field(default_factory=Feeding)
    """What the workers feed the model, as far as the user specified it."""


QUICK = Effort(processes=3, budget_s=3.0, warmup_s=0.1, min_calls=30, max_s=0.2)
THOROUGH = Effort(processes=20, budget_s=90.0, warmup_s=1.0, min_calls=25, max_calls=20_000, max_s=2.0)

PAIR = Effort(warmup_s=0.1, min_calls=30, max_calls=1_500, max_s=0.6)
"""The effort of one process that alternates between two models; edgekd/check/looks.py plans the number of processes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The instructions for one worker process; edgekd/bench/worker.py explains the fields."""

    mode: Literal["latency", "pair", "throughput", "memory", "profile", "predict", "load", "count", "generate"]
    provider: str
    provider_options: dict[str, str] = field(default_factory=dict)
    intra_op_threads: int = 1
    inter_op_threads: int = 1
    allow_spinning: bool = True
    graph_level: str = "all"
    arena: bool = True
    affinity: tuple[int, ...] = ()
    precise_int8: bool = False
    binding: Literal["run", "io"] = "run"
    baseline: str | None = None
    baseline_first: bool = True
    block_s: float = 0.005
    inputs: str | None = None
    packed: bool = False
    outputs: str | None = None
    optimized: str | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    batch_axes: dict[str, int | None] = field(default_factory=dict)
    output: str | None = None
    answers: Literal["rows", "classes", "boxes"] = "rows"
    custom_ops: tuple[str, ...] = ()
    steered: bool = False
    sequence_length: int | None = None
    padding: int | None = None
    memory_limit_bytes: int | None = None
    batch_size: int = 1
    sessions: int = 1
    warmup_s: float = 0.5
    min_calls: int = 100
    max_calls: int = 1_000
    max_s: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Return the plan in the form that the worker reads."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The raw values that one worker process measured, in seconds, bytes and joules, without any statistics."""

    mode: str
    load_s: float
    fingerprint: dict[str, Any]
    memory: dict[str, int | None]
    batch_size: int = 1
    first_call_s: float | None = None
    warmup_s: tuple[float, ...] = ()
    warm: bool = True
    """Whether call times became stable before the warm-up time ended."""
    inner_calls: int = 1
    """Number of calls averaged in each entry of `latency_s`; above 1 for calls shorter than 50 µs."""
    latency_s: tuple[float, ...] = ()
    block_calls: int = 0
    """Mode pair: number of entries of `latency_s` in one block; after each block the process switches to the other
    model. Mode count: number of calls in one block.
    """
    baseline: dict[str, Any] | None = None
    """Mode pair: load_s, first_call_s, latency_s and fingerprint of the baseline; its blocks are in the same order."""
    energy_j: float | None = None
    """Joules of all timed calls together; None without an energy counter."""
    counts: tuple[int, ...] = ()
    """Mode count: the instructions that all threads have executed until the begin of the first block, and until the end
    of each; the emulator adds them."""
    calls: int = 0
    """Mode throughput: number of calls that all sessions finished together. Mode count: those of all blocks."""
    elapsed_s: float = 0.0
    sessions: int = 1
    kernels: tuple[dict[str, Any], ...] = ()
    """Mode profile: provider, op_type and node of each kernel, and the µs of each of its calls."""
    assigned: tuple[tuple[str, str, str], ...] = ()
    """Mode profile: provider, op type and name of each node before int8 fusion; empty if the build does not report it.
    """
    outputs_shape: tuple[int, ...] = ()
    first_token_s: tuple[float, ...] = ()
    """Mode generate: seconds from the beginning of each timed call to its first token."""
    tokens: int = 0
    """Mode generate: number of tokens of each call."""
    disturbance: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """Return the record in a worker's result. Raises ValueError or TypeError if it is not a valid record."""
        if data.get("schema_version") not in range(1, RECORD_VERSION + 1):
            raise ValueError(f"schema_version is {data.get('schema_version')!r}, {RECORD_VERSION} is known")
        _check(data)
        if data.get("mode") == "pair":
            _check_pair(data)
        values = {key: value for key, value in data.items() if key != "schema_version"}
        for key in ("warmup_s", "latency_s", "outputs_shape", "kernels", "counts", "first_token_s"):
            values[key] = tuple(values.get(key, ()))
        values["assigned"] = tuple((p, op, name) for p, op, name in values.get("assigned", ()))
        return cls(**values)


def _check_objects(data: dict[str, Any]) -> None:
    for key in ("fingerprint", "memory", "disturbance"):
        if not isinstance(data.get(key, {}), dict):
            raise ValueError(f"{key} should be an object")
    for key in ("memory", "disturbance"):
        if not all(value is None or isinstance(value, int | float) for value in data.get(key, {}).values()):
            raise ValueError(f"{key} should hold numbers")


SHORTEST_S, LONGEST_S = 1e-12, 1e6
"""Times outside these limits are invalid; a ratio of two such times might not fit into a float."""


def _check(data: dict[str, Any]) -> None:
    """Raise ValueError for values that cannot be used for figures: wrong types or invalid times."""
    times = [*data.get("latency_s", ()), data.get("load_s", 0.0), data.get("first_call_s") or 0.0]
    times += data.get("first_token_s", ())
    if not all(isinstance(t, int | float) and 0 <= t < LONGEST_S for t in times):
        raise ValueError("latency_s, load_s and first_call_s should be seconds")
    if not all(isinstance(data.get(key, 1), int) and data.get(key, 1) > 0 for key in ("inner_calls", "batch_size")):
        raise ValueError("inner_calls and batch_size should be whole numbers above 0")
    if data.get("mode") in ("latency", "generate") and not data.get("latency_s"):
        raise ValueError("latency_s holds no call")
    if data.get("mode") == "count" and not (isinstance(data.get("block_calls"), int) and data["block_calls"] > 0):
        raise ValueError("block_calls should be a whole number above 0")
    if data.get("mode") in ("throughput", "count") and not (data.get("calls", 0) > 0 and data.get("elapsed_s", 0) > 0):
        raise ValueError("calls and elapsed_s should be above 0")
    _check_objects(data)
    for kernel in data.get("kernels", ()):
        if not {"provider", "op_type", "node", "us"} <= set(kernel) or not kernel["us"]:
            raise ValueError("kernels should hold provider, op_type, node and us")


def _check_pair(data: dict[str, Any]) -> None:
    """Raise ValueError unless the block-wise ratios of a pair can be computed: all times must be above 0."""
    other, size = data.get("baseline"), data.get("block_calls", 0)
    if not isinstance(other, dict) or not isinstance(other.get("fingerprint"), dict):
        raise ValueError("baseline should be an object with a fingerprint")
    mine, theirs = (list(side.get("latency_s", ())) for side in (data, other))
    times = [*mine, *theirs, *(side.get(key) for side in (data, other) for key in ("load_s", "first_call_s"))]
    if not all(isinstance(t, int | float) and SHORTEST_S < t < LONGEST_S for t in times):
        raise ValueError("the times of a model and its baseline should be seconds above 0")
    if not mine or len(mine) != len(theirs):
        raise ValueError(f"a model and its baseline should have equally many calls, not {len(mine)} and {len(theirs)}")
    if not isinstance(size, int) or size <= 0 or len(mine) % size:
        raise ValueError(f"block_calls is {size!r}; {len(mine)} calls should be whole blocks")


def comparable(records: list[Record]) -> str:
    """Return the first fingerprint key in which the records differ, with both values; empty if they may be pooled."""
    first, *others = ({**record.fingerprint, "batch_size": record.batch_size} for record in records)
    for other in others:
        for key in first | other:
            if first.get(key) != other.get(key):
                return f"{key} is {first.get(key)!r} in one and {other.get(key)!r} in another"
    return ""
