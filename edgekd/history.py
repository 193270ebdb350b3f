"""The history of checks. Every CI job appends one line of JSON for each judged model; `edgekd report` reads it."""

import dataclasses
import fcntl
import json
import math
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekd import __version__
from edgekd.errors import InputError, one_line
from edgekd.figures import Figure
from edgekd.judge import Judged
from edgekd.scores import ACCURACY, ScoreKind

__all__ = ["HistoryEntry", "append_history", "read_history", "this_commit"]

# history history:
# 1 - at (ISO 8601, UTC), commit, model, sha256, target, machine, outcome, figures: key -> [value, low, high],
#     limits: key -> limit, edgekd: version; units as in the budget
# 2 - score: the score that decides, as in result.json 3; before it was accuracy
SCHEMA_VERSION = 2
READABLE = (1, 2)

_TEXTS = ("commit", "model", "sha256", "target", "machine", "outcome", "edgekd")


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """The result of one check of one model; figures and limits are by budget key, in the budget's units."""

    at: datetime
    """The time of the check, with its time zone (UTC)."""
    commit: str
    """The commit, as `this_commit` returns it; empty if it was unknown."""
    model: str
    sha256: str
    target: str
    machine: str
    """CPU and runtime of the measurement; empty if nothing was measured."""
    outcome: str
    """pass, fail, inconclusive or error."""
    figures: dict[str, Figure]
    """The figures that had a value; their provenance is not kept."""
    limits: dict[str, float]
    edgekd: str
    kind: ScoreKind = ACCURACY
    """The score that decides for the model's task."""


def append_history(path: Path, judged: Sequence[Judged], when: datetime, commit: str) -> None:
    """Append a line for each of `judged`; several processes may do this at the same time.

    Each line is written with one call at the end of the file, under a lock. An incomplete line from an earlier crash
    stays on a line of its own. Raises InputError if the file cannot be written; then no incomplete line remains.
    """
    lines = [_line(one, when, commit) for one in judged]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as file:
            for line in lines:
                _append(file, line)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise InputError(f"{path}: the history cannot be written: {reason}; name another file") from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    # O_NONBLOCK: opening a pipe without a reader must not block.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(path, flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InputError(f"{path}: the history cannot be written: it is no ordinary file; name another file")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)  # this also releases the lock


def _append(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    line = b"\n" * torn + line
    try:
        if os.write(file, line) != len(line):
            raise OSError("only a part of the line was written; the disk may be full")
    except OSError:
        os.ftruncate(file, size)  # this process holds the lock, so no other process writes
        raise


def _line(judged: Judged, when: datetime, commit: str) -> bytes:
    judged_figures = {line.key: line.figure for line in judged.verdict.lines} if judged.verdict else {}
    figures = judged_figures | judged.figures
    content = {
        "schema_version": SCHEMA_VERSION,
        "at": when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit,
        "model": judged.name,
        "sha256": judged.sha256,
        "target": judged.target,
        "machine": judged.machine,
        "outcome": judged.outcome,
        "score": dataclasses.asdict(judged.kind),
        "figures": {key: _numbers(figure) for key, figure in figures.items() if _finite(figure.value)},
        "limits": {line.key: line.limit for line in judged.verdict.lines} if judged.verdict else {},
        "edgekd": __version__,
    }
    # ASCII output: no character in a name can break the line.
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _numbers(figure: Figure) -> list[float | None]:
    return [value if _finite(value) else None for value in (figure.value, figure.low, figure.high)]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_history(path: Path) -> tuple[list[HistoryEntry], list[str]]:
    """The checks of a history in the order of time, and a warning for each line that had to be skipped.

    Raises InputError if the file is missing, if no line is readable, or if a newer edgekd wrote some of it.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise InputError(
            f"{path}: the history cannot be read: {reason}; `edgekd check --history` writes one"
        ) from error
    entries, warnings = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(_content(line), f"{path}: line {number}"))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            kind = (
                "is torn or no JSON"
                if isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
                else one_line(error, 90)
            )
            warnings.append(f"{path}: line {number} is skipped: {kind}")
    if not entries:
        found = f"none of its {len(warnings)} lines is readable" if warnings else "it is empty"
        raise InputError(f"{path}: holds no check: {found}; name a file that `edgekd check --history` wrote")
    return sorted(entries, key=lambda entry: entry.at), warnings


def _content(line: bytes) -> dict[str, Any]:
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _entry(content: dict[str, Any], where: str) -> HistoryEntry:
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{where}: schema_version {version} is newer than this edgekd ({__version__}) knows: {SCHEMA_VERSION}; "
            "update edgekd"
        )
    if version not in READABLE:
        raise ValueError(f"schema_version is {version!r}, not {' or '.join(map(str, READABLE))}")
    texts = {key: _word(key, content.get(key)) for key in _TEXTS}
    at = datetime.fromisoformat(content["at"])
    if at.tzinfo is None:
        raise ValueError("at has no time zone")
    figures = {str(key): _figure(key, numbers) for key, numbers in content["figures"].items()}
    limits = {str(key): _number(key, limit) for key, limit in content["limits"].items()}
    kind = ScoreKind(**content["score"]) if version > 1 else ACCURACY
    return HistoryEntry(at=at.astimezone(UTC), figures=figures, limits=limits, kind=kind, **texts)


def _figure(key: str, numbers: Any) -> Figure:
    value, low, high = numbers
    first, last = (None if end is None else _number(key, end) for end in (low, high))
    return Figure(_number(key, value), "unknown", first, last)


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _number(key: str, value: Any) -> float:
    if not _finite(value):
        raise ValueError(f"{key} is no number")
    return float(value)


def this_commit() -> str:
    """The commit that is checked: from the variables of GitHub or GitLab, or else from the working folder; empty if it
    is unknown."""
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA"):
        if commit := os.environ.get(name, "").strip():
            return commit
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""
