"""What PIL gives of 16-bit, float, rotated and transparent images, as 8-bit pixels."""

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgekd.card import Data
from edgekd.data import pixels
from edgekd.data.images import decode
from edgekd.data.pixels import is_plain
from edgekd.errors import InputError

ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def _untold() -> Iterator[None]:
    pixels._report_transparency.cache_clear()
    yield
    pixels._report_transparency.cache_clear()


def data(size: int = 8, channels: int = 3, **more: Any) -> Data:
    plain = [0.5] * channels
    return Data(source="image-folder", size=size, channels=channels, classes=("a", "b"), mean=plain, std=plain, **more)  # type: ignore[arg-type]


def file_of(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.save(file, form, **options)
    return file.getvalue()


def grey(values: NDArray[Any], form: str) -> NDArray[np.uint8]:
    return decode(file_of(Image.fromarray(values), form), data(channels=1), "x")[..., 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_values_are_divided_by_257(form: str) -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    assert (grey(values, form) == np.rint(values / 257)).all()


def test_every_8_bit_level_survives_16_bits() -> None:
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    assert (grey(levels.astype(np.uint16) * 257, "PNG") == levels).all()


def test_16_bit_colour_keeps_its_high_byte() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        import struct
        import zlib

        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    import struct
    import zlib

    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert (decode(png, data(), "x") == values >> 8).all()


def test_32_bit_integers_within_16_bits_are_scaled_and_others_refused() -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.int32).reshape(8, 8)
    assert (grey(values, "TIFF") == np.rint(values / 257)).all()
    for wrong in (-1, 65536):
        values[3, 3] = wrong
        with pytest.raises(InputError, match=rf"^x: holds integers from .*{wrong if wrong < 0 else 65536}.*0 to 65535"):
            grey(values, "TIFF")


def test_floats_from_0_to_1_are_scaled() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert (grey(values, "TIFF") == np.rint(values * 255.0)).all()


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_floats_of_another_range_are_refused_by_name(wrong: float) -> None:
    values = np.zeros((8, 8), dtype=np.float32)
    values[2, 2] = wrong
    with pytest.raises(InputError, match=r"^x: holds floats from .*; floats of an image go from 0 to 1; scale them"):
        grey(values, "TIFF")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_stand_upright_as_exif_says(orientation: int, form: str) -> None:
    values = np.zeros((16, 8, 3), dtype=np.uint8)
    values[:8] = 255
    values[:, :2] = 90
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = file_of(Image.fromarray(values), form, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert is_plain(image) == (orientation == 1 or form == "TIFF")  # PIL turns a TIFF when it reads its pixels
    wide = expected.shape[1] > expected.shape[0]
    assert wide == (orientation >= 5)
    middle = expected[:, 4:12] if wide else expected[4:12]
    assert (decode(content, data(), "x") == middle).all()


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(value: int) -> None:
    values = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert (decode(file_of(Image.fromarray(values), exif=exif), data(), "x") == values).all()


def test_damaged_exif_leaves_the_pixels() -> None:
    values = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (decode(file_of(Image.fromarray(values), exif=b"Exif\0\0damaged"), data(), "x") == values).all()


def transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 255))
    image.paste((200, 100, 50, 0), (0, 0, 8, 4))
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 200, 100, 50])
        image.paste(0, (0, 0, 8, 4))
        image.info["transparency"] = 0
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composed_onto_the_background_and_told_once(
    mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = file_of(transparent(mode))
    black, white = decode(content, data(), "x"), decode(content, data(background=(255, 254, 253)), "x")
    decode(content, data(), "y")
    assert (black[:4] == 0).all() and (white[:4] == (255, 254, 253)).all()
    assert (black[4:] == white[4:]).all() and black[4:].min() > 0
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2 and "onto the colour [0, 0, 0]" in told[0] and "[255, 254, 253]" in told[1]


def test_a_part_of_transparency_mixes() -> None:
    content = file_of(Image.new("RGBA", (8, 8), (200, 100, 0, 128)))
    expected = np.array([200, 100, 0]) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(decode(content, data(background=(255, 255, 255)), "x") - expected).max() <= 1


def test_an_opaque_image_with_alpha_is_its_colours(capfd: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(2).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    values[..., 3] = 255
    assert (decode(file_of(Image.fromarray(values)), data(), "x") == values[..., :3]).all()
    assert not capfd.readouterr().err


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_an_ordinary_image_decodes_as_pil_converts_it(mode: str) -> None:
    values = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    content = file_of(image, "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(content)) as opened:
        assert is_plain(opened)
        assert (decode(content, data(), "x") == np.asarray(opened.convert("RGB"))).all()
