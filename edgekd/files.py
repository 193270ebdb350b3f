"""Files: atomic writes, JSON, SHA-256, and locks between processes."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from edgekd.console import say
from edgekd.errors import InputError, one_line
from edgekd.units import json_text

__all__ = [
    "FileLock",
    "at_home",
    "atomic",
    "file_sha256",
    "held",
    "listening",
    "locked",
    "move",
    "read_json",
    "real",
    "told_apart",
    "write_json",
]


_listeners: list[Callable[[Path, Path], None]] = []


@contextlib.contextmanager
def listening(told: Callable[[Path, Path], None]) -> Iterator[None]:
    """Until the block ends, call `told(temporary, path)` for every file, just before the file gets its final name."""
    _listeners.append(told)
    try:
        yield
    finally:
        _listeners.remove(told)


def move(temporary: Path, path: Path) -> None:
    """Give a completely written file its final name."""
    for told in _listeners:
        told(temporary, path)
    temporary.replace(path)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp gives 0600
        move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """`data` as indented JSON, written atomically; NaN is refused."""
    # ensure_ascii=False keeps names readable; json_text then escapes bytes of file names that are not UTF-8.
    text = json_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, advice: str = "delete it to have it made again") -> Any:
    """The content of a JSON file, with or without a byte order mark; InputError, which ends in `advice`, if the file is
    not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {one_line(error)}; {advice}") from error


def at_home(path: str) -> str:
    """Replace `~` (or `~USER`) at the start of a path by the user's home folder; unchanged if there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises an error if there is no such user


def real(path: Path) -> Path:
    """The absolute path without symbolic links. Links that form a cycle are kept; opening such a path raises an
    error."""
    return Path(os.path.realpath(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock of that file, which is created if it does not exist. If another process holds the lock, print
    `waiting` and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def held(path: Path) -> bool:
    """Whether a living process holds the lock of that file."""
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class FileLock:
    """The same lock, with the two methods that Optuna's journal needs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Release the lock."""
        assert self._file is not None
        self._file.close()


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Short and distinct names for the files: the last part of each path, and as many parts before it as are needed to
    distinguish files of the same name."""
    names = [path.name for path in paths]
    for depth in range(2, 1 + max((len(path.parts) for path in paths), default=0)):
        alike = [place for place, name in enumerate(names) if names.count(name) > 1]
        same = [place for place in alike if any(names[place] == names[i] and paths[place] != paths[i] for i in alike)]
        for place in same:
            names[place] = str(Path(*paths[place].parts[-depth:]))
    return names
