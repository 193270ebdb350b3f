"""The SHA-256 of every file a run has written, kept in `artefacts.json` and compared before a file is used."""

import ast
import contextlib
import functools
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import InputError, one_line, shown
from edgekd.files import file_sha256, listening, read_json, write_json

__all__ = [
    "LIST",
    "SHIPPED",
    "Damage",
    "Digests",
    "damaged",
    "keeping",
    "listed",
    "name_of",
    "own_files",
    "refuse_changed",
    "refuse_newer",
    "unreadable",
    "write_list",
]

LIST = "artefacts.json"

SHIPPED = ("model.onnx", "model.decoder.onnx", "model.ort")
"""The names that the files which a run ships may have, in each format."""

# artefacts.json history:
# 1 - files: path -> the SHA-256 it has, and, while it is being replaced, the one it had ("" for none); sha256 of that
SCHEMA_VERSION = 1

Digests = dict[str, list[str]]
"""Maps a path in the folder, with slashes, to the digests that the file may have, the newest first."""

LARGE_BYTES = 64_000_000
"""Files of this size or larger are read only once in each command."""

KEYS = {
    "run.json": ("card", "target", "budget", "files"),
    "candidates.json": ("candidates",),
    "pruning.json": ("ratio", "tried"),
    "student/pruned.json": ("widths",),
    "history.json": ("epochs",),
    "test_reads.json": ("test_reads",),
    "result.json": ("schema_version", "models"),
    "bench.json": ("schema_version", "models"),
    ".ort.json": ("onnx_sha256", "sha256"),
}
"""The keys that a JSON file of this name must contain."""

NEWEST = {
    "run.json": 2,
    "candidates.json": 6,
    "pruning.json": 1,
    "history.json": 1,
    "pruned.json": 1,
    "int8.json": 2,
    "result.json": 3,
    "bench.json": 2,
    ".ort.json": 1,
}
"""The newest schema_version of a JSON file whose name ends like this that this edgekd can read."""


@dataclass(frozen=True)
class Damage:
    """A file of a run whose content is no longer what the run wrote."""

    name: str
    """The path relative to the run folder, with slashes."""
    what: str
    """The problem, worded to follow the name of the file in a sentence."""


def listed(folder: Path) -> Digests | None:
    """Read the list of digests of the folder; None if there is no list, as in runs of earlier versions.

    Raises InputError if the list itself is damaged.
    """
    path = folder / LIST
    if not path.exists():
        return None
    advice = "use --fresh to start its run again"
    try:
        content = read_json(path)
        files = content["files"]
        whole = content["sha256"] == _digest(files) and content["schema_version"] == SCHEMA_VERSION
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged and no longer lists the files of the run; {advice}") from error
    if not whole:
        raise InputError(f"{path}: is damaged or of another edgekd, its own SHA-256 differs; {advice}")
    return dict(files)


def write_list(folder: Path, files: Digests | None = None) -> None:
    """Write the list of digests; by default it covers every file that is in the folder now."""
    if files is None:
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LIST)
        files = {path.relative_to(folder).as_posix(): [file_sha256(path)] for path in paths}
    content = {"schema_version": SCHEMA_VERSION, "files": files, "sha256": _digest(files)}
    write_json(folder / LIST, content)


def _digest(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def damaged(folder: Path, files: Digests, only: str = "") -> list[Damage]:
    """Find the files that differ from the list, that are missing, or that the list does not name and that cannot be
    read. If `only` names a file, only this file is examined."""
    found = []
    for name, digests in files.items():
        if only not in ("", name):
            continue
        path = folder / name
        if not path.is_file():
            if digests[-1]:  # without an earlier digest, the file was about to be written for the first time
                found.append(Damage(name, "is missing"))
        elif _sha256(path) not in digests:
            found.append(Damage(name, _difference(path)))
    for path in own_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files and only in ("", name) and (what := unreadable(path)):
            found.append(Damage(name, what))
    return found


def refuse_changed(folder: Path, files: Digests, advice: str) -> None:
    """Raise InputError for the first existing file whose content has changed. A missing file is no error here: the
    code that needs the file reports it."""
    for damage in damaged(folder, files):
        if damage.what != "is missing":
            raise InputError(f"{folder / damage.name}: {damage.what}; {advice}")


def refuse_newer(folder: Path) -> None:
    """Raise InputError for a JSON file of the run with a schema_version that this edgekd does not know."""
    for path in own_files(folder):
        newest = next((version for name, version in NEWEST.items() if path.name.endswith(name)), None)
        if newest is None or unreadable(path):
            continue
        version = read_json(path).get("schema_version")
        if version is not None and (type(version) is not int or version > newest):
            raise InputError(
                f"{path}: schema_version is {shown(version)}, and this edgekd knows {newest} and older; take a newer "
                "edgekd, or start the run again with --fresh"
            )


@contextlib.contextmanager
def keeping(folder: Path, files: Digests, differs: Callable[[str], None]) -> Iterator[None]:
    """Keep the list of digests up to date while files are written into the folder. The digest of a file is written
    before the file gets its final name.

    `differs(name)` is called for a file that was lost, is made again, and has another content than before.
    """

    def told(temporary: Path, path: Path) -> None:
        name = name_of(folder, path)
        if not name:
            return
        digest, there = file_sha256(temporary), path.exists()
        if name in files and not there and files[name][0] != digest:
            differs(name)
        files[name] = [digest, files[name][0] if there and name in files else ""]
        write_list(folder, files)
        files[name] = [digest]

    with listening(told):
        yield


def name_of(folder: Path, path: Path) -> str:
    """The path relative to the folder, with slashes. It is empty for logs, scratch files and checkpoints, which are
    not artefacts."""
    if not path.is_relative_to(folder):
        return ""
    parts = path.relative_to(folder).parts
    if parts[0] in ("bench", "scratch", "ranking") or parts == (LIST,):
        return ""
    return "" if any(map(_passing, parts)) else "/".join(parts)


def _passing(part: str) -> bool:
    """Whether a folder or file of this name holds no artefacts, because it is removed when a training ends, or
    because it only grows."""
    return part[0] == "." or part.endswith("log") or re.search(r"attempt-\d+|^assistant-\d+$", part) is not None


def own_files(folder: Path) -> list[Path]:
    """Every file that the run wrote and will read again, including checkpoints."""
    places = ("teacher", "student", "exported", "data", "records")
    inside = [path for place in places for path in sorted((folder / place).rglob("*"))]
    names = ("run.json", "candidates.json", "pruning.json", "tokenizer.json", "result.json")
    top = [folder / name for name in (*names, *SHIPPED)]
    return [path for path in [*top, *inside] if path.is_file() and path.name[0] != "."]


@functools.lru_cache
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def _sha256(path: Path) -> str:
    stat = path.stat()
    large = stat.st_size >= LARGE_BYTES
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns) if large else file_sha256(path)


def _difference(path: Path) -> str:
    return unreadable(path) or "is not the file that the run wrote (its SHA-256 differs)"


def unreadable(path: Path) -> str:
    """Describe what is wrong with a file, as far as its format shows it; empty if nothing is wrong."""
    if not path.stat().st_size:
        return "is empty"
    forms = {".json": _wrong_json, ".npy": _wrong_npy, ".safetensors": _wrong_safetensors, ".pt": _wrong_zip}
    return forms[path.suffix](path) if path.suffix in forms else ""


def _wrong_json(path: Path) -> str:
    try:
        content = read_json(path)
    except InputError as error:
        return f"is not valid JSON: {one_line(error.__cause__ or error, 80)}"
    wanted = next((keys for name, keys in KEYS.items() if path.name.endswith(name)), ())
    if not isinstance(content, dict) or not content:
        return "holds no JSON object with anything in it"
    missing = [key for key in wanted if key not in content]
    return f"has no {missing[0]!r}" if missing else ""


def _wrong_npy(path: Path) -> str:
    """Check an .npy file: after its header there must be as many bytes as the header says."""
    try:
        with path.open("rb") as file:
            start = file.read(10)
            if start[:6] != b"\x93NUMPY":
                return "is no .npy file"
            wide = start[6] > 1
            length = int.from_bytes(start[8:10] + (file.read(2) if wide else b""), "little")
            header = ast.literal_eval(file.read(length).decode("latin1").strip())
            begin = file.tell()
        item = int(re.sub(r"\D", "", header["descr"])) * (4 if "U" in header["descr"] else 1)  # of text: characters
        whole = begin + item * math.prod(header["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError):
        return "is no readable .npy file"
    size = path.stat().st_size
    return "" if size == whole else f"has {size} bytes where its header says {whole}"


def _wrong_safetensors(path: Path) -> str:
    """Check a safetensors file: it consists of the header's length, the header, and the bytes of the tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "is no readable safetensors file"
    size, whole = path.stat().st_size, 8 + length + max(ends, default=0)
    return "" if size == whole else f"has {size} bytes where its header says {whole}"


def _wrong_zip(path: Path) -> str:
    """Check a file saved by torch: it is a zip file, which holds a checksum of each of its parts."""
    try:
        with zipfile.ZipFile(path) as file:
            return "is damaged: a checksum inside differs" if file.testzip() else ""
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return "is no readable checkpoint"
