"""Converts the pixels of any image file to upright 8-bit RGB or grey without transparency."""

from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from edgekd.console import say
from edgekd.errors import InputError

__all__ = ["PixelRule", "is_plain", "turned_size", "upright_8_bit"]

_ORIENTATION = 0x0112
"""The EXIF tag of the orientation of the camera."""

_WIDE_MODES = ("I", "F")
"""First letters of PIL's modes with more than 8 bits: I;16, I;16B, I, F."""


class PixelRule(Protocol):
    """How image files become the network's input: the keys of `[data]` that say so; see `edgekd.card.Data`."""

    @property
    def size(self) -> int:
        """Height and width."""

    @property
    def resize(self) -> int | None:
        """The length of the shorter side before the centre is cut out."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour onto which transparent images are composed."""

    @property
    def skip_broken(self) -> bool:
        """Whether images that cannot be decoded are left out."""


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the image after it is rotated as its EXIF orientation says."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def is_plain(image: Image.Image) -> bool:
    """Whether `upright_8_bit` would only convert the colour mode, according to the image's header."""
    wide = image.mode.startswith(_WIDE_MODES)
    return not wide and not image.has_transparency_data and _orientation(image) == 1


def upright_8_bit(image: Image.Image, data: PixelRule, where: str) -> Image.Image:
    """The image, rotated as its EXIF orientation says, in 8-bit RGB (`data.channels` 3) or grey.

    16-bit values are divided by 257, and floats between 0 and 1 are multiplied by 255. Raises InputError, which names
    `where`, for values outside these ranges. Transparent pixels are composed onto the colour `data.background`.
    """
    if _orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(_WIDE_MODES):
        image = _narrowed(image, where)
    elif image.has_transparency_data:
        image = _composed(image, data.background)
    return image.convert("RGB" if data.channels == 3 else "L")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none, or if it cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data are no reason to refuse the image
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _narrowed(image: Image.Image, where: str) -> Image.Image:
    """Convert an image of 16-bit integers or of floats to 8 bits, with a fixed scale for each type and no clipping."""
    values = np.asarray(image)
    floats = image.mode == "F"
    low, high = float(values.min()), float(values.max())
    largest = 1.0 if floats else 65535.0
    if not 0 <= low <= high <= largest:  # NaN fails as well
        kind = "floats" if floats else "integers"
        raise InputError(
            f"{where}: holds {kind} from {low:g} to {high:g}; {kind} of an image go from 0 to {largest:g}; "
            "scale them or write the image with 8 bits"
        )
    scaled = values * np.float64(255) if floats else values / np.float64(257)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _composed(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in RGB, composed onto a background colour; unchanged if no pixel is transparent."""
    opaque = image.convert("RGBA")
    low, _ = opaque.getchannel("A").getextrema()
    if low == 255:
        return image
    _report_transparency(background)
    return Image.alpha_composite(Image.new("RGBA", opaque.size, (*background, 255)), opaque)


@cache  # so that the message is printed once for all images
def _report_transparency(background: tuple[int, int, int]) -> None:
    say(
        f"data: some images are transparent in places; they are composed onto the colour {list(background)}, "
        "which `background` in the card's [data] sets"
    )
