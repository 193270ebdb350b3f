"""Temporary files. Each process has one folder, which is removed when it ends; folders of killed processes are removed
later."""

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from edgekd.errors import UnavailableError

__all__ = ["require_scratch", "scratch"]

LEAST_BYTES = 16_000_000
"""Free bytes that are needed to start: enough for a small model in all precisions, its plans and results."""
FULL_BYTES = 1_000_000
"""If fewer free bytes than this are left, an error is attributed to the full disk."""
_OWN = re.compile(r"edgekd-(\d+)-\w+")


def require_scratch() -> None:
    """Raise UnavailableError if temporary files cannot be written or have not enough space."""
    folder = _process_folder(os.getpid())
    if (room := _room(folder)) < LEAST_BYTES:
        raise UnavailableError(
            f"{folder.parent}: the folder of temporary files has {room / 1e6:.1f} MB free and {LEAST_BYTES / 1e6:.0f} "
            "MB are needed; free some, or set TMPDIR to another folder"
        )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for temporary files, which is removed after the block.

    Raises UnavailableError if no folder can be made. If the block raises an error while the disk is full, it is
    replaced by UnavailableError, because the error of code that reads a truncated file does not mention the full disk.
    """
    parent = _process_folder(os.getpid())
    try:
        made = tempfile.TemporaryDirectory(dir=parent, prefix="")
    except OSError as error:
        raise _unusable(parent.parent, error) from error
    with made as name:
        try:
            yield Path(name)
        except Exception as error:
            if _room(parent) >= FULL_BYTES:
                raise
            raise UnavailableError(
                f"{parent.parent}: the folder of temporary files is full; free some, or set TMPDIR to another folder"
            ) from error


@cache
def _process_folder(pid: int) -> Path:
    """The folder of this process, which is locked until the process ends. A forked child has its own folder."""
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # Python could not write to any of the usual folders
        raise UnavailableError(
            "no folder of temporary files can be written, neither $TMPDIR nor /tmp, /var/tmp and the current one; "
            "set TMPDIR to one with room"
        ) from None
    _remove_stale(parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"edgekd-{pid}-"))
        _lock(folder / "lock", os.O_CREAT)
    except OSError as error:
        raise _unusable(parent, error) from error
    atexit.register(_remove, folder, pid)
    return folder


def _unusable(parent: Path, error: OSError) -> UnavailableError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UnavailableError(
        f"{parent}: temporary files cannot be written there ({reason}); set TMPDIR to another folder"
    )


def _lock(path: Path, more: int = 0) -> int:
    """Lock the file and return its descriptor; BlockingIOError if another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | more, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not remove its parent's files when it ends
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Remove the folders of this user's killed processes. A folder that is still locked belongs to a living process,
    for example in another container, and is kept."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            found = _OWN.fullmatch(entry.name)
            if found and entry.is_dir(follow_symlinks=False) and not _lives(int(found[1])):
                with contextlib.suppress(OSError):
                    _remove_unlocked(Path(entry.path))


def _remove_unlocked(folder: Path) -> None:
    if folder.stat().st_uid != os.getuid():
        return
    descriptor = _lock(folder / "lock")
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # the process belongs to another user
    return True


def _room(folder: Path) -> int:
    """Number of free bytes; 0 if no file can be created any more."""
    status = os.statvfs(folder)
    return 0 if status.f_files and not status.f_favail else status.f_bavail * status.f_frsize
