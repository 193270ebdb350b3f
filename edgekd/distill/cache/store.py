"""The cache of teacher outputs, which are computed once for each view of the data and reused by later runs.

A key is a folder whose name is the SHA-256 of everything that its values depend on. It contains one .npy file for each
view and output, which training maps into memory. The module `files` has the file names, the size limit, and the removal
of old keys when the cache is full.

A view is computed in blocks. Each block is written to a temporary file, and marked there once it is on the disk. After
a kill or a power cut, the next process only computes the blocks without a mark. The file gets its final name when all
blocks are there.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.console import progress, say
from edgekd.distill.cache.blocks import Grid, PartFile, damage, file_bytes, finish, open_part
from edgekd.distill.cache.files import held_bytes, hold, output_file, part_file, shortage
from edgekd.errors import ConfigError, InputError, UnavailableError

__all__ = ["Cache", "Compute", "fits", "open_cache", "outputs"]

# meta.json history; the number is part of every key:
# 1 - parts, count, block, shown; outputs as .npy 1.0
SCHEMA_VERSION = 1

Compute = Callable[[NDArray[np.int64]], Mapping[str, NDArray[Any]]]
"""Maps positions in the data (n,) to the outputs by name, each (n, …)."""


@dataclass(frozen=True)
class Cache:
    """One open key of the cache, which is in use until it is closed; `with open_cache(…) as cache:` closes it."""

    root: Path
    key: str
    grid: Grid
    limit_bytes: int
    descriptor: int
    """File descriptor that holds the lock, which prevents the removal of the key."""

    @property
    def folder(self) -> Path:
        """The folder of the key's files."""
        return self.root / self.key

    def close(self) -> None:
        """Release the lock, so that the key may be removed when room is needed; mapped arrays stay valid."""
        os.close(self.descriptor)

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_cache(
    root: Path,
    parts: Mapping[str, Any],
    count: int,
    limit_bytes: int,
    *,
    block: int = 500,
    shown: Mapping[str, str] | None = None,
) -> Cache:
    """Open the key in `root` (see `cache_folder`) for outputs of `count` examples that depend on `parts`: JSON values
    such as digests of teacher and data, preprocessing, augmentation, seed and precision.

    `block`, the number of examples that are computed together, is also part of the key, because the last bits of an
    example's outputs depend on the batch size. `shown`, the file of the `teacher` and the name of the `data`, is not
    part of the key: `edgekd cache` displays it.
    """
    assert count > 0 and block > 0, (count, block)
    identity = {"schema_version": SCHEMA_VERSION, "parts": dict(parts), "count": count, "block": block}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()
    return Cache(root, key, Grid(count, block), limit_bytes, hold(root, key, identity | {"shown": dict(shown or {})}))


def fits(cache: Cache, wanted: Mapping[str, int]) -> bool:
    """Whether the cache limit and the disk have room for `wanted` bytes of each output, all views together. If not,
    print the reason. (`file_bytes` gives the size of one view.)

    If so, remove keys that are not in use as needed, the least recently used first, and reserve the room for this key.
    """
    if why := shortage(cache.root, cache.key, wanted, cache.limit_bytes):
        say(f"cache: {why}")
    return not why


def outputs(
    cache: Cache,
    k: int,
    names: Sequence[str],
    compute: Compute,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], object] = lambda: None,
) -> dict[str, NDArray[Any]]:
    """The outputs `names` of view k for all examples, each (count, …), as read-only memory maps of their files.

    Missing outputs are computed block by block. `compute` returns all `names`, but only missing outputs are written.
    If two processes need the same view, one waits for the other. The ranks of a distributed training share the work:
    all of them must call this function, with a folder that all of them can access, and `barrier` must return when every
    rank has called it. If a rank fails, the others keep waiting at the barrier.

    Raises InputError for a value that is not finite, ConfigError if the outputs exceed the cache limit or if not all
    ranks can access the folder, and UnavailableError on a full disk, after removing the unfinished files.
    """
    paths = {name: output_file(cache.folder, k, name) for name in names}
    os.utime(cache.descriptor)
    if world > 1 or any(damage(path, cache.grid) for path in paths.values()):
        with _turn(cache, k) if rank == 0 else nullcontext():
            if rank == 0:
                _remove_damaged(cache, paths.values())
            barrier()
            missing = {name: path for name, path in paths.items() if not path.exists()}
            _fill(cache, k, missing, compute, rank, world)
            barrier()
            if rank == 0:
                _finish(cache, missing.values())
            barrier()
    return {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


@contextmanager
def _turn(cache: Cache, k: int) -> Iterator[None]:
    """Hold the lock of view k, so that no other process writes it meanwhile."""
    with (cache.folder / f".view-{k:03d}.lock").open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"teacher: another process computes view {k + 1}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_damaged(cache: Cache, paths: Iterable[Path]) -> None:
    for path in paths:
        for file in (path, part_file(path)):
            if file.exists() and (what := damage(file, cache.grid)):
                say(f"cache: {file}: {what}; computed again")
                file.unlink()


def _fill(cache: Cache, k: int, missing: Mapping[str, Path], compute: Compute, rank: int, world: int) -> None:
    """Compute and write this rank's blocks of the missing outputs."""
    own = range(rank * cache.grid.blocks // world, (rank + 1) * cache.grid.blocks // world)
    with _parts(cache, k, missing) as parts:
        todo = [b for b in own if any(name not in parts or not parts[name].has(b) for name in missing)]
        if todo and len(todo) < len(own):
            say(f"teacher: view {k + 1} goes on after {len(own) - len(todo)} of {len(own)} blocks")
        begin = time.perf_counter()
        with progress() as bar:
            for b in bar.track(todo, description=f"teacher's outputs, view {k + 1}"):
                values = compute(cache.grid.rows(b))
                for name, path in missing.items():
                    if name not in parts:
                        parts[name] = _begin(cache, k, name, path, values[name])
                    if not parts[name].has(b):
                        _refuse_infinite(values[name], name, k, int(cache.grid.rows(b)[0]))
                        parts[name].write(b, values[name])
        if rank == 0 and (seconds := time.perf_counter() - begin) > 5:
            say(f"teacher: {', '.join(missing)} of view {k + 1} in {units.duration(seconds)}")


@contextmanager
def _parts(cache: Cache, k: int, missing: Mapping[str, Path]) -> Iterator[dict[str, PartFile]]:
    """The unfinished files of missing outputs, by name; the caller may add more, and all are closed at the end.

    On a full disk, the unfinished files are removed and UnavailableError is raised.
    """
    parts = dict[str, PartFile]()
    try:
        for name, path in missing.items():
            with suppress(FileNotFoundError):
                parts[name] = open_part(path, cache.grid)
        yield parts
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        for path in missing.values():
            part_file(path).unlink(missing_ok=True)
        raise UnavailableError(
            f"{cache.root}: no space left on the device for view {k + 1} of the teacher's outputs; nothing of it was "
            "kept. Free some, `edgekd cache --clear` what nobody uses, or set EDGEKD_CACHE_HOME to another disk"
        ) from error
    finally:
        for part in parts.values():
            part.close()


def _begin(cache: Cache, k: int, name: str, path: Path, values: NDArray[Any]) -> PartFile:
    """Make room for an output with rows like `values` and create its unfinished file; ConfigError without room."""
    if not part_file(path).exists():
        size = file_bytes((cache.grid.count, *values.shape[1:]), values.dtype)
        wanted = {name: held_bytes(cache.folder, name, other_than=k) + size}
        if why := shortage(cache.root, cache.key, wanted, cache.limit_bytes):
            raise ConfigError(why)
    return open_part(path, cache.grid, like=values)


def _refuse_infinite(values: NDArray[Any], name: str, k: int, start: int) -> None:
    """Raise InputError if a value is not finite: in the cache it would spoil all later trainings."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise InputError(
            f"the teacher's {name} is not finite for example {start + int(finite.argmin())} in view {k + 1}; check its "
            f"weights and the normalization, or name another layer ({values.dtype} ends at "
            f"{np.finfo(values.dtype).max:g})"
        )


def _finish(cache: Cache, paths: Iterable[Path]) -> None:
    for path in paths:
        if not finish(path, cache.grid):
            raise ConfigError(
                f"{cache.root}: blocks of other ranks are missing in it; set EDGEKD_CACHE_HOME to a folder that all "
                "machines of the training share"
            )
