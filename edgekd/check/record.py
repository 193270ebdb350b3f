"""Check records as files: raw samples that can be judged again, and the baselines made from them."""

import dataclasses
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekd.bench.records import RECORD_VERSION, Record
from edgekd.budget import read_budget
from edgekd.errors import ConfigError, InputError, did_you_mean, one_line
from edgekd.figures import Figure, Placement, Provenance
from edgekd.files import atomic
from edgekd.scores import ACCURACY, ScoreKind
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

# History of the format of records:
# 1 - sample, baseline, pairs, same, budget
# 2 - sample: kind, the score that decides; answers: score, each, answers, teacher_score, agreement and paired in place
#     of classes, labels and teacher
#     sample: instructions, if they were counted
SCHEMA_VERSION = 2
KIND = "edgekd check record"
KEPT_CALLS = 400
"""Number of calls per process that a baseline keeps: enough for its p95, and few enough for a repository."""
AGAIN = "`edgekd baseline accept` writes it anew"
BEYOND = 1e18
"""Upper bound for the numbers in a record."""
Count = Annotated[int, Field(gt=0)]
NOT_COMPARED = (
    *("model_sha256", "nodes_by_provider", "ops_elsewhere", "numpy", "python"),
    *("input_types", "batch_axes"),
)
"""Fingerprint keys that may differ between a model and its baseline; a difference in any other key means another
machine.
"""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How well a model answers inputs for which the right answer is known."""

    data: str
    """SHA-256 digest of inputs and targets."""
    about: str
    """Description of the data."""
    score: float
    """The score that decides."""
    each: tuple[float, ...]
    """One figure of each example, for paired tests; see `edgekd.tasks.task.Task.each`."""
    paired: Literal["mcnemar", "bootstrap"]
    """The paired test on `each`."""
    answers: tuple[int, ...] = ()
    """An integer for each answer, which is equal exactly if the answer is; empty if answers are never equal."""
    teacher_score: float | None = None
    """The teacher's score, if the run has a teacher."""
    agreement: float | None = None
    """The share of the inputs on which model and teacher agree, if that is known."""
    interval: tuple[float, float] | None = None
    """The 95 % interval of the score, if it is not a share of examples."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """All values that were measured for one model on one target."""

    name: str
    sha256: str
    size_bytes: Count
    target: str
    provider: str
    """The target's execution provider."""
    at: str
    """Time of the measurement, ISO 8601 in UTC."""
    edgekd: str
    elsewhere: str = ""
    """The reasons why this machine is not the target, so that times do not apply; empty if it is the target."""
    how: Provenance | Literal[""] = ""
    """How memory and placement were obtained; empty in records that tell it by `elsewhere` alone."""
    answered: Provenance | Literal[""] = ""
    """How the answers were obtained, if not as the rest."""
    signature: str = ""
    """The inputs with type and shape."""
    latency: tuple[Record, ...] = ()
    memory_bytes: tuple[Count, ...] = ()
    """Peak memory of several processes, in bytes."""
    placement: Placement | None = None
    instructions: Figure | None = None
    """Millions of instructions of one call, counted on an emulated board; None if that was not asked."""
    kind: ScoreKind = ACCURACY
    """The score that decides for the model's task."""
    answers: Answers | None = None
    estimate: Figure | None = None
    """Estimate of the median latency in ms, for a target that is not this machine."""
    fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def provenance(self) -> Provenance:
        """How memory and placement were obtained."""
        return self.how or ("proxy" if self.elsewhere else "measured")

    @property
    def answers_provenance(self) -> Provenance:
        """How the answers were obtained."""
        return self.answered or self.provenance

    @property
    def stem(self) -> str:
        """The base name for files about this model: the run's folder, or the model file without its suffix."""
        run, in_run, _ = self.name.partition("/")
        return run if in_run else Path(self.name).stem


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A model, and the baseline and budget with which it is compared."""

    sample: Sample
    baseline: Sample | None = None
    stored: bool = False
    """Whether the baseline was measured at another time."""
    pairs: tuple[Record, ...] = ()
    """Records of processes in which the model and the baseline took turns."""
    budget: dict[str, float] = dataclasses.field(default_factory=dict)
    """The limits by which the model was judged, by key."""
    same: tuple[Record, ...] = ()
    """Records of processes in which the baseline took turns with itself, to find out how steady this machine is."""


def write_record(path: Path, checked: Checked) -> None:
    """Write a record atomically."""
    content = {"schema_version": SCHEMA_VERSION, "kind": KIND, "records": RECORD_VERSION, **dataclasses.asdict(checked)}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def may_be_replaced(path: Path) -> bool:
    """Whether the file is a record (of any version and state) or does not exist."""
    if not path.exists():
        return True
    with path.open("rb") as file:
        return KIND.encode() in file.read(200)


def read_record(path: Path) -> Checked:
    """Read a record. Raises InputError if the file is not a record or is from a later edgekd."""
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
    for key, known, oldest in (("schema_version", SCHEMA_VERSION, 1), ("records", RECORD_VERSION, 1)):
        version = data.get(key)
        if isinstance(version, int) and oldest <= version <= known:
            continue
        later = isinstance(version, int) and version > known
        what = "update edgekd, or" if later else "run"
        raise InputError(
            f"{path}: {key} is {version!r}; this edgekd reads {known}; {what} `edgekd baseline accept` to write it anew"
        )
    try:
        kind = _kind_in(data["sample"])
        return Checked(
            sample=_sample(data["sample"], "sample"),
            baseline=_sample(data["baseline"], "baseline") if data["baseline"] else None,
            stored=bool(data["stored"]),
            pairs=_records(data["pairs"], "pair"),
            same=_records(data["same"], "pair"),
            budget=read_budget(data["budget"], "budget", [kind]).limits(),
        )
    except KeyError as error:
        raise InputError(f"{path}: is damaged: {error} is missing; {AGAIN}") from error
    except (ConfigError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: is damaged: {one_line(error)}; {AGAIN}") from error


def _whole(text: str) -> int:
    _real(text)
    return int(text)


def _real(text: str) -> float:
    """Return the number. Raises ArithmeticError if it is too large for a measured value."""
    value = float(text)
    if not abs(value) < BEYOND:
        raise ArithmeticError(f"a number in it is {text if len(text) <= 20 else text[:19] + '…'}")
    return value


def _sample(data: dict[str, Any], where: str) -> Sample:
    plain = {key: value for key, value in data.items() if key != "latency"}
    if isinstance(plain.get("answers"), dict) and "classes" in plain["answers"]:
        plain["answers"] = _of_classes(plain["answers"], where)
    sample = build(Sample, plain, where)
    if (answers := sample.answers) and not len(answers.each) == (len(answers.answers) or len(answers.each)) > 0:
        raise ValueError(f"{where}: answers: each and answers should be equally many")
    if "\0" in sample.name + sample.target or "/" in sample.target:
        raise ValueError(f"{where}: name and target should do as names of files")
    if (placed := sample.placement) and min(*placed.nodes.values(), placed.fused or 0, placed.unfused or 0, 0) < 0:
        raise ValueError(f"{where}: placement: the numbers of nodes should be at least 0")
    return dataclasses.replace(sample, latency=_records(data["latency"], "latency"))


def _kind_in(sample: dict[str, Any]) -> ScoreKind:
    return build(ScoreKind, sample["kind"], "sample: kind") if "kind" in sample else ACCURACY


def _of_classes(old: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert the answers of version 1, which only knew classification."""
    classes, labels, teacher = old["classes"], old["labels"], old.get("teacher") or []
    if len({len(classes), len(labels), len(teacher) or len(labels)}) != 1 or not labels:
        raise ValueError(f"{where}: answers: classes, labels and teacher should be equally many")
    count = len(labels)

    def hits(one: list[int], other: list[int]) -> list[float]:
        return [float(a == b) for a, b in zip(one, other, strict=True)]

    return {
        **{key: value for key, value in old.items() if key not in ("classes", "labels", "teacher")},
        "score": sum(hits(classes, labels)) / count,
        "each": hits(classes, labels),
        "paired": "mcnemar",
        "answers": classes,
        "teacher_score": sum(hits(teacher, labels)) / count if teacher else None,
        "agreement": sum(hits(classes, teacher)) / count if teacher else None,
    }


def _records(entries: list[dict[str, Any]], mode: str) -> tuple[Record, ...]:
    records = tuple(Record.from_json(entry | {"schema_version": RECORD_VERSION}) for entry in entries)
    if any(record.mode != mode for record in records):
        raise ValueError(f"mode should be {mode}")
    return records


def as_baseline(sample: Sample) -> Checked:
    """Return a record for a baseline: from each process, at most KEPT_CALLS calls at regular intervals."""
    return Checked(sample=dataclasses.replace(sample, latency=tuple(map(_thinned, sample.latency))))


def _thinned(record: Record) -> Record:
    step = max(1, -(-len(record.latency_s) // KEPT_CALLS))
    kept = tuple(float(f"{seconds:.4g}") for seconds in record.latency_s[::step])
    return dataclasses.replace(record, latency_s=kept, warmup_s=(), kernels=(), assigned=())


def differences(old: Sample, new: Sample) -> dict[str, str]:
    """Describe by key how the machine or the session of two samples differ."""
    before, now = _mark(old), _mark(new)
    if any((sample.latency or sample.memory_bytes) and not sample.fingerprint for sample in (old, new)):
        return {"fingerprint": "the record does not say where it was measured"}
    if not (before and now):  # nothing that was measured depends on the machine
        return {}
    if "shapes" not in before and ("sequence_length" in before or not _free_sizes(old.signature)):
        now.pop("shapes", None)  # an earlier edgekd did not write them, and the shapes had no dynamic dimensions
    keys = [key for key in before | now if key not in NOT_COMPARED and before.get(key) != now.get(key)]
    found = {key: f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in keys}
    return found


def _free_sizes(signature: str) -> bool:
    """Whether inputs have dynamic dimensions besides the first; older records omit these, which were fed as 1."""
    return ",N" in signature


def _mark(sample: Sample) -> dict[str, Any]:
    """Return the fingerprint with the batch size of a timed call."""
    if not (sample.fingerprint and sample.latency):
        return dict(sample.fingerprint)
    return sample.fingerprint | {"batch_size": sample.latency[0].batch_size}


def is_record(path: Path) -> bool:
    """Whether the path names a record, judged by its suffix only."""
    return path.suffix == ".json"


def record_of(path: Path, target: Target) -> Checked:
    """Read the record at a path. Raises InputError for a record of another target, and as `read_record` does."""
    if not path.exists():
        make = f"`edgekd baseline accept MODEL --target {target.option} --to {path}` makes one"
        raise InputError(f"{path}: no such record; {make}")
    checked = read_record(path)
    if checked.sample.target != target.name:
        raise InputError(f"{path}: is a record of target {checked.sample.target}, not of {target.name}")
    return checked


def refuse_other_machine(stored: Sample, now: Sample, allowed: Collection[str]) -> list[str]:
    """Describe the allowed differences between a stored record and this measurement.

    Raises ConfigError for differences that are not allowed.
    """
    known = stored.fingerprint.keys() | now.fingerprint.keys() | {"batch_size", "fingerprint"}
    for key in allowed:
        if now.fingerprint and key not in known:  # values that were measured for neither are not compared
            raise ConfigError(f"--allow-difference {key}: {did_you_mean(key, known)}")
    found = differences(stored, now)
    if not now.latency:  # only timed calls use the user's data
        found = {key: text for key, text in found.items() if key not in ("inputs", "batch_size")}
    refused = {key: text for key, text in found.items() if key not in allowed}
    if refused:
        allow = " ".join(f"--allow-difference {key}" for key in refused)
        raise ConfigError(
            f"the record of {stored.name} was made elsewhere: {'; '.join(refused.values())}; measure a baseline here, "
            f"give the old model file as --baseline, or allow it: {allow}"
        )
    return [f"compared although {text}" for text in found.values()]
