"""Teacher outputs, computed once for each view of the data and kept for every run that asks for the same.

A key is a folder named by the SHA-256 of what its values depend on; in it is one .npy file for each view and output,
which training maps into memory. edgekd/distill/cache/files.py has the files, the limit and who goes when it is full.

A view is computed in blocks. Each is written to a file beside the final one, and marked there once it is on the disk:
after a kill or a power cut the next process computes the blocks without a mark. The file gets its name when it is
whole.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.console import progress, say
from edgekd.distill.cache.blocks import Grid, Part, damage, file_bytes, finish, open_part
from edgekd.distill.cache.files import held_bytes, hold, output_file, part_file, shortage
from edgekd.errors import ConfigError, InputError, UnavailableError

__all__ = ["Cache", "Compute", "fits", "open_cache", "outputs"]

# meta.json history; the number is part of every key:
# 1 - parts, count, block, shown; outputs as .npy 1.0
SCHEMA_VERSION = 1

Compute = Callable[[NDArray[np.int64]], Mapping[str, NDArray[Any]]]
"""Places in the data (n,) -> each output by name, (n, …)."""


@dataclass(frozen=True)
class Cache:
    """One key, in use until it is closed; `with open_cache(…) as cache:` closes it."""

    root: Path
    key: str
    grid: Grid
    limit_bytes: int
    descriptor: int
    """Of the lock that keeps the key from being removed."""

    @property
    def folder(self) -> Path:
        """Where the key's files are."""
        return self.root / self.key

    def close(self) -> None:
        """Let the key be removed when room is needed; arrays that are still mapped stay valid."""
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
    """The cache in `root` (see `cache_folder`) of outputs for `count` examples that depend on `parts`: plain JSON
    values, such as digests of teacher and data, preprocessing, augmentation, seed and precision.

    `block`, how many examples are computed together, belongs to the key, too: in another batch the same example gives
    other last bits. What `edgekd cache` shows does not: `shown`, the file of the `teacher` and the name of the `data`.
    """
    assert count > 0 and block > 0, (count, block)
    identity = {"schema_version": SCHEMA_VERSION, "parts": dict(parts), "count": count, "block": block}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()
    return Cache(root, key, Grid(count, block), limit_bytes, hold(root, key, identity | {"shown": dict(shown or {})}))


def fits(cache: Cache, wanted: Mapping[str, int]) -> bool:
    """Whether the limit and the disk hold `wanted` bytes of each output, all its views together (`file_bytes` gives
    those of one); if not, says why.

    If so, keys that nobody uses are removed as needed, the least recently used first, and the room is kept for this
    key against others that ask.
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
    """Outputs `names` of view k of all examples, each (count, …), mapped from their files, read-only.

    What is missing is computed a block at a time; `compute` gives all `names`, and of them only what is missing is
    written. Two processes that want the same view do not compute it twice: one waits. The ranks of a distributed
    training share the work; all of them must call this, with a folder that all of them see, and `barrier` must return
    when every rank has called it. A rank that fails leaves the others waiting there.

    Raises InputError for a value that is not finite, ConfigError where the outputs exceed the limit of the cache or
    not all ranks see the folder, and UnavailableError on a full disk, after removing what was half written.
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
    """Nobody else writes view k meanwhile."""
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
    """Compute and keep this rank's blocks of what is missing."""
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
def _parts(cache: Cache, k: int, missing: Mapping[str, Path]) -> Iterator[dict[str, Part]]:
    """What is there of the missing outputs; more may be added. UnavailableError on a full disk, which frees it."""
    parts = dict[str, Part]()
    try:
        for name, path in missing.items():
            if part_file(path).exists():
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


def _begin(cache: Cache, k: int, name: str, path: Path, values: NDArray[Any]) -> Part:
    """The part for rows such as these, after making room; ConfigError where there is none."""
    if not part_file(path).exists():
        size = file_bytes((cache.grid.count, *values.shape[1:]), values.dtype)
        wanted = {name: held_bytes(cache.folder, name, other_than=k) + size}
        if why := shortage(cache.root, cache.key, wanted, cache.limit_bytes):
            raise ConfigError(why)
    return open_part(path, cache.grid, like=values)


def _refuse_infinite(values: NDArray[Any], name: str, k: int, start: int) -> None:
    """InputError if not every value is finite: kept, it would spoil every training to come."""
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
