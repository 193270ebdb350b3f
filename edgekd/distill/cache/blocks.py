"""A .npy file that one or several processes write block by block, and that can be continued after a kill."""

import errno
import fcntl
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgekd.distill.cache.files import part_file

__all__ = ["Grid", "PartFile", "damage", "file_bytes", "finish", "open_part"]


@dataclass(frozen=True)
class Grid:
    """How the rows of one view are divided into blocks."""

    count: int
    """Number of rows."""
    size: int
    """Number of rows per block; a block is computed, written and marked as a whole."""

    @property
    def blocks(self) -> int:
        """Number of blocks; the last one may be smaller."""
        return math.ceil(self.count / self.size)

    def rows(self, block: int) -> NDArray[np.int64]:
        """The row numbers of a block."""
        return np.arange(block * self.size, min((block + 1) * self.size, self.count))


@dataclass(frozen=True)
class PartFile:
    """An unfinished file: the .npy header, all rows, then one mark byte per block, 1 once the block is on the disk."""

    descriptor: int
    header: int
    """Length of the .npy header in bytes."""
    row_bytes: int
    grid: Grid

    @property
    def end(self) -> int:
        """Length of the finished file in bytes, without the marks."""
        return self.header + self.grid.count * self.row_bytes

    def has(self, block: int) -> bool:
        """Whether the block is on the disk. A file without marks is complete, but was not renamed yet."""
        return os.pread(self.descriptor, 1, self.end + block) != b"\0"

    def write(self, block: int, values: NDArray[Any]) -> None:
        """Write the block, flush it to the disk, and then mark it.

        This uses plain writes: on a full disk they raise an OSError, while a memory map would kill the process.
        """
        rows = self.grid.rows(block)
        assert values.nbytes == len(rows) * self.row_bytes, (values.shape, values.dtype)
        rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        offset = self.header + int(rows[0]) * self.row_bytes
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
        os.fsync(self.descriptor)
        os.pwrite(self.descriptor, b"\1", self.end + block)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def open_part(path: Path, grid: Grid, like: NDArray[Any] | None = None) -> PartFile:
    """Open the unfinished file of `path`. If it does not exist, create it for rows with the shape and dtype of `like`.

    Raises FileNotFoundError if `like` is None and it does not exist, or is empty because another rank is creating it.
    """
    descriptor = os.open(part_file(path), os.O_RDWR | (os.O_CREAT if like is not None else 0), 0o644)
    with _locked(descriptor):  # the first rank creates the file, the others open it
        if os.fstat(descriptor).st_size == 0:
            if like is None:
                raise FileNotFoundError(errno.ENOENT, "nothing is in it yet", str(part_file(path)))
            header = _header((grid.count, *like.shape[1:]), like.dtype)
            os.pwrite(descriptor, header, 0)
            os.ftruncate(descriptor, file_bytes((grid.count, *like.shape[1:]), like.dtype) + grid.blocks)
        header_bytes, shape, dtype, _ = _layout(part_file(path))
    return PartFile(descriptor, header_bytes, math.prod(shape[1:]) * dtype.itemsize, grid)


def finish(path: Path, grid: Grid) -> bool:
    """Rename the unfinished file to `path`; if a block is missing, do nothing and return False."""
    part = open_part(path, grid)
    try:
        if not all(part.has(block) for block in range(grid.blocks)):
            return False
        os.ftruncate(part.descriptor, part.end)
        os.fsync(part.descriptor)
    finally:
        part.close()
    part_file(path).replace(path)
    return True


def file_bytes(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Size of a .npy file in bytes; `shape` begins with the number of examples."""
    return len(_header(shape, np.dtype(dtype))) + math.prod(shape) * np.dtype(dtype).itemsize


def damage(path: Path, grid: Grid) -> str:
    """A description of what is wrong with a finished or unfinished file; the empty string if nothing is wrong.

    This checks the header and the size of the file, not its values.
    """
    try:
        header, shape, dtype, size = _layout(path)
    except FileNotFoundError:
        return "is missing"
    except ValueError as error:
        return str(error)
    if shape[0] != grid.count:
        return f"holds {shape[0]} examples, {grid.count} are wanted"
    end = header + math.prod(shape) * dtype.itemsize
    unfinished = path.suffix == ".part" and size == end + grid.blocks
    return "" if size == end or unfinished else f"has {size} bytes, {end} are wanted"


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BaseException:
        os.close(descriptor)
        raise


def _header(shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """The start of a .npy file (numpy.lib.format, version 1.0)."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    return file.getvalue()


def _layout(path: Path) -> tuple[int, tuple[int, ...], np.dtype[Any], int]:
    """Length of the header, shape, dtype and length of the file; ValueError if this module cannot have written it."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # a damaged header can make numpy raise almost any exception
            raise ValueError("its header is broken") from error
        if version != (1, 0) or fortran or not shape or dtype.hasobject:
            raise ValueError("its header is another's")
        return file.tell(), shape, dtype, os.fstat(file.fileno()).st_size
