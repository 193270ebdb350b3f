"""Writes data sets as .npy files, which worker processes map into memory, and computes digests of them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.images import Split
from edgekd.files import atomic

__all__ = ["digest", "duplicates", "keep_split", "write_array"]

CHUNK = 500


def write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Iterable[NDArray[Any]]) -> None:
    """Write a .npy file atomically from `chunks`, its pieces along the first axis.

    This uses plain writes: on a full disk they raise an OSError, while a memory map would kill the process.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype=dtype).tobytes())


def keep_split(split: Split, stem: Path) -> Path:
    """Write `STEM.labels.npy` and `STEM.npy` (n, H, W, C uint8, or n, L int32), unless both exist; return the path of
    `STEM.npy`."""
    inputs, labels = stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}.labels.npy")
    if inputs.exists() and labels.exists():
        return inputs
    write_array(labels, split.labels.shape, split.labels.dtype, [split.labels])
    shape = (len(split), *split.read(np.arange(1)).shape[1:])
    write_array(inputs, shape, split.read(np.arange(1)).dtype, _images(split, len(split)))
    return inputs


def _images(split: Split, count: int) -> Iterable[NDArray[np.uint8]]:
    for start in range(0, count, CHUNK):
        yield split.read(np.arange(start, min(start + CHUNK, count)))


def digest(split: Split) -> str:
    """SHA-256 of all labels, all inputs and `Split.extra`, with their types and shapes, as hex. If the images are
    decoded on every read, it uses their `Split.origin` instead of their pixels."""
    content = hashlib.sha256()

    def add(array: NDArray[Any]) -> None:
        content.update(f"{array.dtype.str} {array.shape}\0".encode())
        content.update(np.ascontiguousarray(array).data)

    add(split.labels)
    if split.origin:
        for i in range(len(split)):
            content.update(hashlib.sha256(split.origin(i)).digest())
    else:
        for inputs in _images(split, len(split)):
            add(inputs)
    if split.extra is not None and len(split.extra):
        add(split.extra)
    return content.hexdigest()


def duplicates(train: Split, validation: Split, test: Split, what: str = "images") -> str:
    """A message about inputs that are identical in several parts; the empty string if there are none. `what` is the
    word for them.

    Data sets that are decoded on every read are not checked.
    """
    if any(part.origin for part in (train, validation, test)):
        return ""
    trained, validated, tested = (_pixel_digests(part) for part in (train, validation, test))
    known, seen = set(trained), set(validated)
    counts = {
        "the test part are also in the training part": sum(one in known for one in tested),
        "the test part are also in the validation part": sum(one in seen for one in tested),
        "the validation part are also in the training part": sum(one in known for one in validated),
    }
    found = [f"{count} of {where}" for where, count in counts.items() if count]
    return f"the same {what} are in several parts: {', '.join(found)}; accuracy on them says little" if found else ""


def _pixel_digests(split: Split) -> list[bytes]:
    return [
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        for images in _images(split, len(split))
        for image in images
    ]
