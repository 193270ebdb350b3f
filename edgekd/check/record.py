"""What a check measured, as a file: raw samples that anyone can judge again, and the baselines kept from them."""

import dataclasses
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgekd.bench.records import RECORD_VERSION, Record
from edgekd.card import Budget
from edgekd.errors import ConfigError, InputError, did_you_mean, one_line
from edgekd.figures import Figure, Placement
from edgekd.files import atomic
from edgekd.spec import build
from edgekd.target import Target

__all__ = [
    "Answers",
    "Checked",
    "Sample",
    "as_baseline",
    "differences",
    "is_record",
    "may_be_replaced",
    "read_record",
    "record_of",
    "refuse_other_machine",
    "write_record",
]

# record history:
# 1 - sample, baseline, pairs, same, budget
SCHEMA_VERSION = 1
KIND = "edgekd check record"
KEPT_CALLS = 400
"""Calls of a process that a baseline keeps: enough for its p95, and small enough for a repository."""
AGAIN = "`edgekd baseline accept` writes it anew"
BEYOND = 1e18
"""No number of a record is this large."""
Count = Annotated[int, Field(gt=0)]
NOT_COMPARED = (
    *("model_sha256", "nodes_by_provider", "ops_elsewhere", "numpy", "python"),
    *("input_types", "batch_axes"),
)
"""Keys of a fingerprint that may differ between a model and its baseline; all others tell of another machine."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model said of labelled inputs."""

    data: str
    """SHA-256 of inputs and labels."""
    about: str
    """Which data, in words."""
    classes: tuple[int, ...]
    """The most likely class of each input."""
    labels: tuple[int, ...]
    teacher: tuple[int, ...] = ()
    """The teacher's most likely class of each input, where a run brings a teacher."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """All that was measured of one model on one target."""

    name: str
    sha256: str
    size_bytes: Count
    target: str
    provider: str
    """The target's execution provider."""
    at: str
    """When, ISO 8601 in UTC."""
    edgekd: str
    elsewhere: str = ""
    """Why this machine is not the target, so that times say nothing; empty where it is."""
    signature: str = ""
    """Inputs with type and shape."""
    latency: tuple[Record, ...] = ()
    memory_bytes: tuple[Count, ...] = ()
    """Peak memory of several processes."""
    placement: Placement | None = None
    answers: Answers | None = None
    estimate: Figure | None = None
    """Of the median latency, ms, on a target that is not here."""
    fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def stem(self) -> str:
        """What files about it are called after: the run's folder, or the model file without its suffix."""
        run, in_run, _ = self.name.partition("/")
        return run if in_run else Path(self.name).stem


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A model, and what it is held against."""

    sample: Sample
    baseline: Sample | None = None
    stored: bool = False
    """Whether the baseline was measured at another time."""
    pairs: tuple[Record, ...] = ()
    """Processes in which both took turns."""
    budget: dict[str, float] = dataclasses.field(default_factory=dict)
    """The limits it was judged by, by key."""
    same: tuple[Record, ...] = ()
    """Processes in which the baseline took turns with itself: how steady this machine is."""


def write_record(path: Path, checked: Checked) -> None:
    """Write a record, atomically."""
    content = {"schema_version": SCHEMA_VERSION, "kind": KIND, "records": RECORD_VERSION, **dataclasses.asdict(checked)}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def may_be_replaced(path: Path) -> bool:
    """Whether a file is a record, of whatever version and state, or is not there at all."""
    if not path.exists():
        return True
    with path.open("rb") as file:
        return KIND.encode() in file.read(200)


def read_record(path: Path) -> Checked:
    """The content of a record; InputError if it is none, or of a later edgekd."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_real)
    except FileNotFoundError:
        raise InputError(f"{path}: no such record; `edgekd baseline accept MODEL --target T` makes one") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    except ArithmeticError as error:
        raise InputError(f"{path}: is damaged: {error}; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {one_line(error)}; {AGAIN}") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise InputError(f"{path}: is no record of edgekd check; `edgekd baseline accept MODEL --target T` makes one")
    for key, known, oldest in (("schema_version", SCHEMA_VERSION, SCHEMA_VERSION), ("records", RECORD_VERSION, 1)):
        version = data.get(key)
        if isinstance(version, int) and oldest <= version <= known:
            continue
        later = isinstance(version, int) and version > known
        what = "update edgekd, or" if later else "run"
        raise InputError(
            f"{path}: {key} is {version!r}; this edgekd reads {known}; {what} `edgekd baseline accept` to write it anew"
        )
    try:
        return Checked(
            sample=_sample(data["sample"], "sample"),
            baseline=_sample(data["baseline"], "baseline") if data["baseline"] else None,
            stored=bool(data["stored"]),
            pairs=_records(data["pairs"], "pair"),
            same=_records(data["same"], "pair"),
            budget=build(Budget, data["budget"], "budget").limits(),
        )
    except KeyError as error:
        raise InputError(f"{path}: is damaged: {error} is missing; {AGAIN}") from error
    except (ConfigError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: is damaged: {one_line(error)}; {AGAIN}") from error


def _whole(text: str) -> int:
    _real(text)
    return int(text)


def _real(text: str) -> float:
    """The number; ArithmeticError for one so large that no measurement gives it, and no figure can be made of it."""
    value = float(text)
    if not abs(value) < BEYOND:
        raise ArithmeticError(f"a number in it is {text if len(text) <= 20 else text[:19] + '…'}")
    return value


def _sample(data: dict[str, Any], where: str) -> Sample:
    sample = build(Sample, {key: value for key, value in data.items() if key != "latency"}, where)
    if answers := sample.answers:
        lengths = {len(answers.classes), len(answers.labels), len(answers.teacher) or len(answers.labels)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"{where}: answers: classes, labels and teacher should be equally many")
    if "\0" in sample.name + sample.target or "/" in sample.target:
        raise ValueError(f"{where}: name and target should do as names of files")
    if (placed := sample.placement) and min(*placed.nodes.values(), placed.fused or 0, placed.unfused or 0, 0) < 0:
        raise ValueError(f"{where}: placement: the numbers of nodes should be at least 0")
    return dataclasses.replace(sample, latency=_records(data["latency"], "latency"))


def _records(entries: list[dict[str, Any]], mode: str) -> tuple[Record, ...]:
    records = tuple(Record.from_json(entry | {"schema_version": RECORD_VERSION}) for entry in entries)
    if any(record.mode != mode for record in records):
        raise ValueError(f"mode should be {mode}")
    return records


def as_baseline(sample: Sample) -> Checked:
    """A record to keep as a baseline: of each process, calls at even distances, at most KEPT_CALLS."""
    return Checked(sample=dataclasses.replace(sample, latency=tuple(map(_thinned, sample.latency))))


def _thinned(record: Record) -> Record:
    step = max(1, -(-len(record.latency_s) // KEPT_CALLS))
    kept = tuple(float(f"{seconds:.4g}") for seconds in record.latency_s[::step])
    return dataclasses.replace(record, latency_s=kept, warmup_s=(), kernels=(), assigned=())


def differences(old: Sample, new: Sample) -> dict[str, str]:
    """By key, how the machine or the session of two samples differ, in words."""
    before, now = _mark(old), _mark(new)
    if any((sample.latency or sample.memory_bytes) and not sample.fingerprint for sample in (old, new)):
        return {"fingerprint": "the record does not say where it was measured"}
    if not (before and now):  # nothing was measured that depends on the machine
        return {}
    if "shapes" not in before and ("sequence_length" in before or not _free_sizes(old.signature)):
        now.pop("shapes", None)  # an earlier edgekd did not write them, and there was no choice
    keys = [key for key in before | now if key not in NOT_COMPARED and before.get(key) != now.get(key)]
    found = {key: f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in keys}
    return found


def _free_sizes(signature: str) -> bool:
    """Whether inputs have free sizes beside the first one; those were fed as 1 before records said it."""
    return ",N" in signature


def _mark(sample: Sample) -> dict[str, Any]:
    """The fingerprint, and how many inputs a timed call takes."""
    if not (sample.fingerprint and sample.latency):
        return dict(sample.fingerprint)
    return sample.fingerprint | {"batch_size": sample.latency[0].batch_size}


def is_record(path: Path) -> bool:
    """Whether the path is meant to be a record; nothing is opened."""
    return path.suffix == ".json"


def record_of(path: Path, target: Target) -> Checked:
    """The record at a path; InputError for one of another target, or what `read_record` raises."""
    if not path.exists():
        make = f"`edgekd baseline accept MODEL --target {target.option} --to {path}` makes one"
        raise InputError(f"{path}: no such record; {make}")
    checked = read_record(path)
    if checked.sample.target != target.name:
        raise InputError(f"{path}: is a record of target {checked.sample.target}, not of {target.name}")
    return checked


def refuse_other_machine(stored: Sample, now: Sample, allowed: Collection[str]) -> list[str]:
    """What differs between a stored record and this measurement, as far as it is allowed, in words.

    Raises ConfigError for what is not.
    """
    known = stored.fingerprint.keys() | now.fingerprint.keys() | {"batch_size", "fingerprint"}
    for key in allowed:
        if now.fingerprint and key not in known:  # what was measured of neither is not compared
            raise ConfigError(f"--allow-difference {key}: {did_you_mean(key, known)}")
    found = differences(stored, now)
    if not now.latency:  # only calls that are timed are made with the user's data
        found = {key: text for key, text in found.items() if key not in ("inputs", "batch_size")}
    refused = {key: text for key, text in found.items() if key not in allowed}
    if refused:
        allow = " ".join(f"--allow-difference {key}" for key in refused)
        raise ConfigError(
            f"the record of {stored.name} was made elsewhere: {'; '.join(refused.values())}; measure a baseline here, "
            f"give the old model file as --baseline, or allow it: {allow}"
        )
    return [f"compared although {text}" for text in found.values()]
