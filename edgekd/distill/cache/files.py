"""Files of the cache of teacher outputs: where they are, which keys are in use, and which are removed if it is full.

    ROOT/.lock                      locked while a key is opened, listed or removed
    ROOT/KEY/meta.json              the values that the key is the hash of
    ROOT/KEY/used                   modified at every use; locked (shared) while in use; holds planned sizes
    ROOT/KEY/view-003.layer3.npy    a finished file
    ROOT/KEY/.view-003.layer3.npy.part   a file that is being written

The locks are `flock`s, which the system releases when a process ends, even if it was killed.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from edgekd import units
from edgekd.console import say
from edgekd.devices.host import user_folder
from edgekd.errors import ConfigError, InputError, UnavailableError
from edgekd.files import read_json, write_json

__all__ = [
    "CacheEntry",
    "cache_folder",
    "cache_limit_bytes",
    "clear_key",
    "held_bytes",
    "hold",
    "list_entries",
    "output_file",
    "part_file",
    "require_cache",
    "shortage",
]

DEFAULT_LIMIT_GB = 20.0
_KEY = re.compile(r"[0-9a-f]{64}")
_OUTPUT = re.compile(r"(?P<hidden>\.?)view-(?P<view>\d+)\.(?P<name>.+)\.npy(?P<part>(\.part)?)")


def cache_folder() -> Path:
    """The folder of cached teacher outputs: `teacher` in $EDGEKD_CACHE_HOME if it is set, else in
    $XDG_CACHE_HOME/edgekd if that is set, else in ~/.cache/edgekd."""
    own, shared = os.environ.get("EDGEKD_CACHE_HOME"), os.environ.get("XDG_CACHE_HOME")
    default = Path(shared) if shared else user_folder("~/.cache", "XDG_CACHE_HOME")
    home = user_folder(own, "EDGEKD_CACHE_HOME") if own else default / "edgekd"
    return home.absolute() / "teacher"


def require_cache(hint: str = "") -> None:
    """Raise UnavailableError if the cache folder cannot be written, or if its disk is full.

    `hint` is appended to the message.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UnavailableError(
            f"{folder}: the cache of the teacher's outputs cannot be written there ({reason}); set EDGEKD_CACHE_HOME "
            f"to another folder{hint}"
        ) from error


def cache_limit_bytes() -> int:
    """$EDGEKD_CACHE_LIMIT_GB in bytes (1 GB is 10⁹ bytes); 20 GB if it is not set.

    Raises ConfigError if it is not a positive number.
    """
    text = os.environ.get("EDGEKD_CACHE_LIMIT_GB") or str(DEFAULT_LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ConfigError(
            f"EDGEKD_CACHE_LIMIT_GB: got {text!r}; it should be a positive number of GB, such as {DEFAULT_LIMIT_GB:g}"
        )
    return max(1, int(gigabytes * 1e9))


def output_file(folder: Path, k: int, name: str) -> Path:
    """The path of the finished output `name` of view k; slashes and bars in the name are percent-encoded."""
    return folder / f"view-{k:03d}.{quote(name, safe='')}.npy"


def part_file(path: Path) -> Path:
    """The path of the unfinished file, which is renamed to `path` when it is complete."""
    return path.with_name(f".{path.name}.part")


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One key of the cache."""

    key: str
    """SHA-256 of what the outputs depend on, 64 hex digits."""
    folder: Path
    meta: dict[str, Any]
    """Content of `meta.json`; empty if that file is damaged."""
    views: dict[str, int]
    """Number of finished views of each output."""
    unfinished: int
    """Number of unfinished files, which a process is writing or a killed process has left."""
    sizes: dict[str, int]
    """Bytes of each output's files, finished or not."""
    planned: dict[str, int]
    """Bytes that each output is planned to have, by the processes that use the key."""
    used_s: float
    """Time of the last use, in seconds since 1970-01-01 UTC."""
    in_use: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all outputs together."""
        return sum(self.sizes.values())

    def claim_bytes(self, wanted: Mapping[str, int]) -> int:
        """Bytes of all outputs together, if each has its largest size: the present, the planned or the `wanted` one."""
        names = self.sizes.keys() | self.planned.keys() | wanted.keys()
        return sum(max(sizes.get(name, 0) for sizes in (self.sizes, self.planned, wanted)) for name in names)


def list_entries(root: Path) -> list[CacheEntry]:
    """All keys in `root`, the most recently used first; an empty list if the folder does not exist."""
    if not root.is_dir():
        return []
    with _locked(root):
        return _entries(root)


def clear_key(root: Path, key: str) -> bool:
    """Remove a key; if a process is using it, do nothing and return False."""
    with _locked(root):
        folder = root / key
        if _in_use(folder):
            return False
        if folder.exists():
            _remove(folder)
        return True


def held_bytes(folder: Path, name: str, other_than: int) -> int:
    """Bytes of all views of the output `name`, finished or not, except view `other_than`."""
    return sum(size for one, k, size, _ in _outputs(folder) if one == name and k != other_than)


def hold(root: Path, key: str, meta: dict[str, Any]) -> int:
    """Create the key's folder if it does not exist, and mark it as in use until the returned descriptor is closed."""
    with _locked(root):
        folder = root / key
        folder.mkdir(exist_ok=True)
        for litter in folder.glob(".meta.json.*"):
            litter.unlink()
        if not _meta(folder):
            write_json(folder / "meta.json", meta)
        alone = not _in_use(folder)
        descriptor = os.open(folder / "used", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # does not block: others only lock it exclusively under the root's lock
        if alone:
            os.ftruncate(descriptor, 0)  # drop the planned sizes of processes that have ended
        return descriptor


def shortage(root: Path, key: str, wanted: Mapping[str, int], limit_bytes: int) -> str:
    """Make room for `wanted` bytes of each output (all views together). Returns the reason if impossible, else "".

    Keys in use, and the sizes that their users have planned, are kept; other keys are removed, the least recently used
    first. If there is not enough room, nothing is removed. The wanted sizes are stored as planned sizes of the key.
    """
    with _locked(root):
        entries = _entries(root)
        own = next(entry for entry in entries if entry.key == key)
        others = [entry for entry in entries if entry.key != key]
        busy = sum(entry.claim_bytes({}) for entry in others if entry.in_use)
        unused = [entry for entry in reversed(others) if not entry.in_use]
        removable = sum(entry.size_bytes for entry in unused)
        total, free = own.claim_bytes(wanted), shutil.disk_usage(root).free
        if total + busy > limit_bytes:
            return _over_limit(root, total, busy, limit_bytes)
        if total - own.size_bytes > free + removable:
            return (
                f"{root}: {units.bytes_(total - own.size_bytes)} of teacher outputs do not fit on its disk, "
                f"{units.bytes_(free)} are free; set EDGEKD_CACHE_HOME to a larger one"
            )
        _plan(own, wanted)
        for entry in unused:
            if total + busy + removable <= limit_bytes and total - own.size_bytes <= free:
                break
            _remove(entry.folder)
            removable, free = removable - entry.size_bytes, free + entry.size_bytes
            age = units.age(time.time() - entry.used_s)
            say(f"cache: removed {entry.key[:8]}, {units.bytes_(entry.size_bytes)}, last used {age}, to make room")
        return ""


def _over_limit(root: Path, total: int, busy: int, limit_bytes: int) -> str:
    others = f", of which others that run hold {units.bytes_(busy)}" if busy else ""
    return (
        f"{root}: {units.bytes_(total)} of teacher outputs do not fit in the cache of {units.bytes_(limit_bytes)}"
        f"{others}; raise EDGEKD_CACHE_LIMIT_GB, or ask for fewer views or layers"
    )


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the lock of `root`, so that no other process opens, lists or removes keys meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in root.glob(".removed-*"):  # left by a process that was killed while it removed a key
            shutil.rmtree(left)
        yield


def _remove(folder: Path) -> None:
    """Remove a key's folder. It is renamed first, so that a kill does not leave an incomplete key under its name."""
    gone = folder.rename(folder.with_name(f".removed-{folder.name}"))
    shutil.rmtree(gone)


def _in_use(folder: Path) -> bool:
    """Whether a process uses the key. Call this under the root's lock, because it locks the key for a moment."""
    try:
        descriptor = os.open(folder / "used", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _entries(root: Path) -> list[CacheEntry]:
    folders = [path for path in root.iterdir() if _KEY.fullmatch(path.name) and path.is_dir()]
    return sorted(map(_entry, folders), key=lambda entry: entry.used_s, reverse=True)


def _outputs(folder: Path) -> Iterator[tuple[str, int, int, bool]]:
    """Name, view, size in bytes, and whether the file is finished, for each output file."""
    for path in folder.iterdir():
        match = _OUTPUT.fullmatch(path.name)
        if match and bool(match["hidden"]) == bool(match["part"]):
            with contextlib.suppress(FileNotFoundError):  # renamed in this moment, because it is finished
                yield unquote(match["name"]), int(match["view"]), path.stat().st_size, not match["part"]


def _entry(folder: Path) -> CacheEntry:
    views, sizes, unfinished = dict[str, int](), dict[str, int](), 0
    for name, _, size, whole in sorted(_outputs(folder)):
        sizes[name] = sizes.get(name, 0) + size
        if whole:
            views[name] = views.get(name, 0) + 1
        else:
            unfinished += 1
    used = folder / "used"
    return CacheEntry(
        key=folder.name,
        folder=folder,
        meta=_meta(folder),
        views=views,
        unfinished=unfinished,
        sizes=sizes,
        planned=_planned(used),
        used_s=used.stat().st_mtime if used.exists() else 0.0,
        in_use=_in_use(folder),
    )


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = read_json(folder / "meta.json")
    except (InputError, FileNotFoundError):
        return {}
    whole = isinstance(meta, dict) and all(isinstance(meta.get(part), dict) for part in ("parts", "shown"))
    return meta if whole else {}


def _planned(used: Path) -> dict[str, int]:
    try:
        planned = read_json(used)
    except (InputError, FileNotFoundError):  # the file is empty at first
        return {}
    return {str(name): int(size) for name, size in planned.items()} if isinstance(planned, dict) else {}


def _plan(own: CacheEntry, wanted: Mapping[str, int]) -> None:
    planned = {name: max(size, own.planned.get(name, 0)) for name, size in wanted.items()}
    (own.folder / "used").write_text(json.dumps(own.planned | planned), encoding="utf-8")
