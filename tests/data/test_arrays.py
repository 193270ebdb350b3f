"""Digests of data: every label and every input, their types and shapes, and of what is decoded later its origin."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.data import images as images_module
from edgekd.data.arrays import digest
from edgekd.data.images import Split, decoded_split, in_memory
from edgekd.tasks.known import load_card

LABELS = np.arange(1_203) % 10
IMAGES = np.random.default_rng(0).integers(0, 256, (1_203, 4, 4, 1), dtype=np.uint8)


def changed(array: NDArray[Any], place: tuple[int, ...]) -> NDArray[Any]:
    other = array.copy()
    other[place] ^= 1  # the last bit
    return other


def test_data_are_known_by_every_label_and_pixel_and_their_form() -> None:
    same = digest(in_memory(IMAGES, LABELS))
    assert digest(in_memory(IMAGES.copy(), LABELS.copy())) == same
    assert digest(Split(LABELS, lambda indices: IMAGES[indices])) == same
    others = [
        in_memory(IMAGES, changed(LABELS, (700,))),
        in_memory(changed(IMAGES, (1_202, 3, 3, 0)), LABELS),
        in_memory(IMAGES.reshape(1_203, 2, 8, 1), LABELS),
        in_memory(IMAGES.view(np.int8), LABELS),
        in_memory(IMAGES, LABELS.view(np.uint64)),
    ]
    assert len({same, *map(digest, others)}) == 6


def test_data_are_known_by_what_their_views_need() -> None:
    def with_extra(extra: NDArray[np.float32] | None) -> str:
        return digest(Split(LABELS, lambda indices: IMAGES[indices], extra=extra))

    noise = np.arange(5, dtype=np.float32)
    assert with_extra(None) == with_extra(noise[:0]) == digest(in_memory(IMAGES, LABELS))
    assert with_extra(noise.copy()) == with_extra(noise)
    assert len({with_extra(None), with_extra(noise), with_extra(noise + 1), with_extra(noise[1:])}) == 4


def test_data_that_are_decoded_later_are_known_by_every_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)

    def refused(i: int) -> NDArray[np.uint8]:
        raise AssertionError("decoded")

    def streamed(of_last: bytes) -> Split:
        def origin(i: int) -> bytes:
            return of_last if i == 1_202 else b"%d" % i

        return decoded_split(LABELS, refused, origin, load_card("digits").data)

    same = digest(streamed(b"last"))
    assert digest(streamed(b"last")) == same
    assert digest(streamed(b"other")) != same
    first, second = streamed(b"last"), streamed(b"other")
    apart, alike = np.array([4, 1_202]), np.array([1_201, 4])
    assert digest(first.subset(apart)) != digest(second.subset(apart))
    assert digest(first.subset(alike)) == digest(second.subset(alike))
    assert digest(first.subset(alike)) != digest(first.subset(alike[::-1]))
