"""Writes images in their own sizes as .npy files, for models that resize in the graph."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Card
from edgekd.data.arrays import write_array
from edgekd.data.images import Split

__all__ = ["keep_originals", "keep_timed", "some_originals"]

TIMED = 8
"""Number of images for measurements of time."""


def keep_originals(split: Split, path: Path) -> None:
    """Write all images of the split in their own sizes to one file, unless it exists.

    Images of different sizes do not fit into one array. The file is therefore a .npy of uint8 with one axis, as
    `packed` in edgekd/bench/worker.py explains. Each image is decoded twice, so that only one is in memory at a time.
    """
    if path.exists():
        return
    assert split.original is not None
    shapes = np.array([split.original(i).shape for i in range(len(split))], dtype="<i8")
    head = np.concatenate([np.array(shapes.shape, dtype="<i8"), shapes.reshape(-1)]).view(np.uint8)
    size = len(head) + int(shapes.prod(axis=1).sum())
    write_array(path, (size,), np.dtype(np.uint8), _pieces(split, head))


def _pieces(split: Split, head: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
    assert split.original is not None
    yield head
    for i in range(len(split)):
        yield split.original(i).reshape(-1)


def keep_timed(split: Split, card: Card, path: Path) -> None:
    """Write a few images (n, H, W, C) of the card's `timed_size`, unless the file exists; times are measured with them.

    The whole images are scaled to that size, whatever their own shape, because the pixels do not change the time.
    """
    if path.exists():
        return
    assert card.export.timed_size is not None
    height, width = card.export.timed_size
    images = [_scaled(image, width, height) for image in some_originals(split, TIMED)]
    write_array(path, (len(images), *images[0].shape), np.dtype(np.uint8), [np.stack(images)])


def _scaled(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    plain = image if image.shape[2] == 3 else image[:, :, 0]
    scaled = Image.fromarray(plain).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.uint8).reshape(height, width, image.shape[2])


def some_originals(split: Split, count: int) -> list[NDArray[np.uint8]]:
    """At most `count` images (height, width, C) in their own sizes, spread evenly over the split."""
    assert split.original is not None
    return [split.original(int(i)) for i in np.linspace(0, len(split) - 1, min(count, len(split))).astype(np.int64)]
