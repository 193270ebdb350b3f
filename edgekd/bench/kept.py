"""What workers measured of a model file, kept beside a run so that it is not measured again."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.bench.records import RECORD_VERSION, Effort, Feeding, Record
from edgekd.external import file_digest
from edgekd.files import read_json, write_json
from edgekd.target import Target

__all__ = ["Subject", "is_of", "keep_records", "kept_records", "mark_of", "record_file"]

# History of the format of records/*.json:
# 1 - model, target, latency (one record per process), memory
# 2 - records of version 2
#     feeding, if the user set options for the inputs
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model file to bench, and what is already known about it."""

    name: str
    file: Path
    precision: str
    params: int | None = None
    macs: int | None = None


def record_file(subject: Subject, kind: str, target: Target, folder: Path) -> Path:
    """Return the file in which records of that kind are kept."""
    return folder / f"{subject.name.replace(' ', '-')}@{target.name}.{kind}.json"


def mark_of(subject: Subject, effort: Effort) -> dict[str, Any]:
    """Return the key of a stored record: the digest of the model file, and how the model is fed."""
    feeding = dataclasses.replace(effort.feeding, sample=None)
    mark = {"schema_version": SCHEMA_VERSION, "model_sha256": file_digest(subject.file)}
    return mark if feeding == Feeding() else mark | {"feeding": json.loads(json.dumps(dataclasses.asdict(feeding)))}


def is_of(kept: object, mark: dict[str, Any]) -> bool:
    """Whether the content of a stored file belongs to that key."""
    return isinstance(kept, dict) and mark.items() <= kept.items() and kept.get("feeding") == mark.get("feeding")


def kept_records(subject: Subject, kind: str, target: Target, folder: Path | None, effort: Effort) -> list[Record]:
    """Return the stored records of exactly this file; none if the file or its inputs have changed since."""
    path = record_file(subject, kind, target, folder) if folder else None
    if path is None or not path.exists():
        return []
    data = read_json(path)
    if not is_of(data, mark_of(subject, effort)):
        return []
    return [Record.from_json(entry | {"schema_version": RECORD_VERSION}) for entry in data["records"]]


def keep_records(
    subject: Subject, kind: str, target: Target, folder: Path | None, effort: Effort, records: Sequence[Record]
) -> None:
    """Write records to `folder`, if there is one."""
    if folder is not None:
        content: dict[str, Any] = {
            **mark_of(subject, effort),
            "model": subject.name,
            "target": target.name,
            "records": [dataclasses.asdict(record) for record in records],
        }
        write_json(record_file(subject, kind, target, folder), content)
