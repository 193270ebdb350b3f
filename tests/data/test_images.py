"""Decoding, splits in memory and streamed, label checks, and splits kept as .npy files."""

import dataclasses
import io
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Data
from edgekd.data import images as images_module
from edgekd.data.arrays import keep_split
from edgekd.data.images import check_labels, decode, decoded_split, in_memory
from edgekd.errors import InputError
from edgekd.tasks.known import load_card

COLOUR = load_card("cifar10").data
GREY = load_card("digits").data


def origin(i: int) -> bytes:
    return b"%d" % i


def colour(size: int) -> Data:
    data: Data = dataclasses.replace(COLOUR, size=size)
    return data


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: NDArray[np.uint8], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, lossless=True)  # the formats but WebP ignore `lossless`
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_an_image_of_the_right_size_keeps_its_pixels(form: str) -> None:
    array = pixels(10, 10, 3)
    assert np.array_equal(decode(encoded(array, form), colour(10), "here"), array)


def blank(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as edgekd itself has it
@pytest.mark.parametrize(
    ("size", "resize", "side", "said"),
    [
        ((60_000, 1), None, 224, "has 60000×1 pixels; the longer side is at most 100 times the shorter one; cut or"),
        ((7, 701), None, 8, "has 7×701 pixels; the longer side is at most 100 times the shorter one; cut or remove it"),
        ((15_000, 10_001), None, 8, "has 15000×10001 pixels; an image has at most 150,000,000; scale it down or"),
        ((20_000, 10_000), None, 8, "the image does not decode: Image size (200000000 pixels) exceeds limit of"),
        ((90, 1), None, 8192, "has 90×1 pixels; scaled as data.size or data.resize says it has 737280×8192, and at"),
        ((90, 1), 8192, 8, "has 90×1 pixels; scaled as data.size or data.resize says it has 737280×8192, and at most"),
    ],
)
def test_an_image_that_would_fill_the_memory_is_refused_by_name(
    size: tuple[int, int], resize: int | None, side: int, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        decode(blank(*size), dataclasses.replace(COLOUR, size=side, resize=resize), "a.png")
    assert str(caught.value).startswith(f"a.png: {said}")


def test_a_thin_image_is_taken() -> None:
    assert decode(blank(100, 1), colour(8), "a.png").shape == (8, 8, 3)


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "JPEG", "TIFF", "WEBP", "PPM"])
def test_a_damaged_image_is_taken_or_refused_on_one_line(form: str) -> None:
    whole, draw = encoded(pixels(9, 9, 3), form), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            decode(bytes(damaged[: draw.choice([None, draw.randrange(len(damaged))])]), colour(8), "a")
        except InputError as error:
            assert "\n" not in str(error)


def test_a_grey_image_has_one_channel_and_a_grey_file_fills_three() -> None:
    array = pixels(8, 8)
    assert np.array_equal(decode(encoded(array), GREY, "here"), array[..., None])
    assert np.array_equal(decode(encoded(array), colour(8), "here"), np.repeat(array[..., None], 3, axis=2))


def test_colour_becomes_grey_by_the_itu_601_weights() -> None:
    array = pixels(8, 8, 3)
    expected = array @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(encoded(array), GREY, "here")[..., 0] - expected).max() <= 1


def test_a_larger_image_is_resized_by_its_shorter_side_and_cut_from_the_middle() -> None:
    array = pixels(30, 40, 3)
    data = dataclasses.replace(COLOUR, size=8, resize=10)
    # 30 rows × 40 columns, scaled by 10/30: 10 rows × 13 columns; the middle 8×8 begins at row 1, column 2.
    small = Image.fromarray(array).resize((13, 10), Image.Resampling.BILINEAR)
    expected = np.asarray(small)[1:9, 2:10]
    assert np.array_equal(decode(encoded(array), data, "here"), expected)


def test_without_resize_the_shorter_side_becomes_the_size() -> None:
    array = pixels(20, 10, 3)
    small = Image.fromarray(array).resize((8, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encoded(array), colour(8), "here"), np.asarray(small)[4:12, :])


def test_a_smaller_image_is_enlarged() -> None:
    array = pixels(4, 4, 3)
    large = Image.fromarray(array).resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encoded(array), colour(8), "here"), np.asarray(large))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_named(form: str) -> None:
    content = encoded(pixels(20, 20, 3), form)
    with pytest.raises(InputError, match=r"^shelf/row 3: the image does not decode: .+; mend or remove it$"):
        decode(content[: len(content) // 2], colour(20), "shelf/row 3")


def test_what_is_no_image_is_named() -> None:
    for content in (b"", b"no image at all", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(InputError, match=r"^row 3: the image does not decode"):
            decode(content, colour(8), "row 3")


def test_an_image_of_absurd_size_is_named() -> None:
    bomb = bytearray(encoded(pixels(4, 4, 3), "BMP"))
    bomb[18:22] = (60_000).to_bytes(4, "little")
    bomb[22:26] = (60_000).to_bytes(4, "little")
    with pytest.raises(InputError, match=r"^row 3: the image does not decode"):
        decode(bytes(bomb), colour(8), "row 3")


def test_streaming_gives_what_memory_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = pixels(7, 8, 8, 3)
    labels = np.arange(7) % 3
    opened: list[int] = []

    def load(i: int) -> NDArray[np.uint8]:
        opened.append(i)
        return np.asarray(arrays[i])

    kept = decoded_split(labels, load, origin, colour(8))
    assert sorted(opened) == list(range(7))
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    opened.clear()
    streamed = decoded_split(labels, load, origin, colour(8))
    assert opened == []
    for chosen in (np.arange(7), np.array([5]), np.array([6, 0, 0, 3])):
        assert np.array_equal(streamed.read(chosen), arrays[chosen])
        assert np.array_equal(kept.read(chosen), arrays[chosen])
    assert sorted(opened) == sorted([*range(7), 5, 6, 0, 0, 3])
    opened.clear()
    kept.read(np.arange(7))
    assert opened == []


def test_a_set_just_at_the_limit_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def load(i: int) -> NDArray[np.uint8]:
        opened.append(i)
        return np.zeros((8, 8, 3), np.uint8)

    for limit, expected in ((2 * 8 * 8 * 3, 2), (2 * 8 * 8 * 3 - 1, 0)):
        opened.clear()
        monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", limit)
        decoded_split(np.zeros(2, np.int64), load, origin, colour(8))
        assert len(opened) == expected


def test_a_subset_counts_its_images_anew() -> None:
    arrays = pixels(9, 4, 4, 1)
    whole = in_memory(arrays, np.arange(9))
    part = whole.subset(np.array([8, 3, 5, 1])).subset(np.array([2, 0]))
    assert len(part) == 2
    assert part.labels.tolist() == [5, 8]
    assert np.array_equal(part.read(np.array([1, 0, 1])), arrays[[8, 5, 8]])


def test_labels_are_checked() -> None:
    labels = check_labels(np.array([0, 2, 1], dtype=np.int32), ("a", "b", "c"), "here")
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 2, 1]
    for wrong in (3, -1):
        with pytest.raises(InputError) as caught:
            check_labels(np.array([0, 1, wrong, 9]), ("a", "b", "c"), "here")
        assert str(caught.value) == (
            f"here: image 2 has label {wrong}; the card names 3 classes, so labels go from 0 to 2"
        )
    with pytest.raises(InputError, match=r"^here: holds no images$"):
        check_labels(np.array([], dtype=np.int64), ("a", "b"), "here")


def test_a_split_is_kept_as_npy_files_once(tmp_path: Path) -> None:
    arrays = pixels(1_001, 4, 5, 1)  # more than two of the pieces it is written in
    labels = np.arange(1_001)
    path = keep_split(in_memory(arrays, labels), tmp_path / "data" / "test")
    assert path == tmp_path / "data" / "test.npy"
    assert np.array_equal(np.load(path), arrays)
    assert np.array_equal(np.load(tmp_path / "data" / "test.labels.npy"), labels)
    assert sorted(p.name for p in path.parent.iterdir()) == ["test.labels.npy", "test.npy"]
    keep_split(in_memory(arrays[:3], labels[:3]), tmp_path / "data" / "test")
    assert len(np.load(path)) == 1_001
