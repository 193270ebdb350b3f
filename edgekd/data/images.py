"""Decoding: any image file as uint8 (H, W, C) of the size the network sees."""

import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgekd.card import Data
from edgekd.data.pixels import upright_8_bit
from edgekd.errors import InputError, one_line

__all__ = ["Split", "check_labels", "decode", "decoded_split", "in_memory"]

MEMORY_LIMIT_BYTES = 4_000_000_000
"""Decoded sets up to this size are kept in memory; larger ones are decoded as they are read."""

MAX_PIXELS = 150_000_000
"""Of one image, as its file has it and after it is scaled: 450 MB in colour."""

MAX_RATIO = 100
"""Of an image's longer side to its shorter one. Scaled by its shorter side, a thin strip would fill the memory."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS refuses such an image

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Split:
    """Images and labels of one part of a data set."""

    def __init__(
        self,
        labels: Labels,
        read: Callable[[NDArray[np.int64]], Images],
        origin: Callable[[int], bytes] | None = None,
    ) -> None:
        self.labels = labels
        self.read = read
        """`read(indices)` gives images (len(indices), H, W, C) uint8."""
        self.origin = origin
        """Where reading is slow: what identifies image i without decoding it, such as its file's name, size and time of
        change."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: NDArray[np.int64]) -> "Split":
        """The images at `indices`, numbered anew from 0."""
        origin = self.origin
        own = (lambda i: origin(int(indices[i]))) if origin else None
        return Split(self.labels[indices], lambda chosen: self.read(indices[chosen]), own)


def in_memory(images: Images, labels: Labels) -> Split:
    """A Split over an array (n, H, W, C)."""
    return Split(labels, lambda indices: images[indices])


def decode(content: bytes, data: Data, where: str) -> Images:
    """An encoded image as uint8 (size, size, channels).

    An image of another size is resized by its shorter side to `data.resize` (default `data.size`), then
    its centre is cut out. Raises InputError naming `where` if it does not decode.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return fit(image, data, where)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{where}: the image does not decode: no known format; mend or remove it") from None
    except Exception as error:  # PIL's decoders raise whatever a damaged file leads them to
        raise InputError(f"{where}: the image does not decode: {one_line(error, 120)}; mend or remove it") from error


def fit(image: Image.Image, data: Data, where: str) -> Images:
    """A PIL image as uint8 (size, size, channels), resized and cut as `decode` says.

    Raises InputError naming `where` for an image that is too large or too thin, or that `upright_8_bit` refuses.
    """
    scale = (data.resize or data.size) / max(1, min(image.size))
    _refuse_amplifying(image, scale, where)
    image = upright_8_bit(image, data, where)
    size = data.size
    if image.size != (size, size):
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8).reshape(size, size, data.channels)


def _refuse_amplifying(image: Image.Image, scale: float, where: str) -> None:
    """Raise InputError before pixels are decoded that would take far more memory than an image should."""
    width, height = image.size
    told = f"{where}: has {width}×{height} pixels; "
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InputError(f"{told}the longer side is at most {MAX_RATIO} times the shorter one; cut or remove it")
    if width * height > MAX_PIXELS:
        raise InputError(f"{told}an image has at most {MAX_PIXELS:,}; scale it down or remove it")
    if width * height * max(1.0, scale) ** 2 > MAX_PIXELS:
        larger = f"{width * scale:.0f}×{height * scale:.0f}"
        raise InputError(
            f"{told}scaled as data.size or data.resize says it has {larger}, and at most {MAX_PIXELS:,} are allowed; "
            "cut it or ask for smaller ones"
        )


def decoded_split(labels: Labels, load: Callable[[int], Images], origin: Callable[[int], bytes], data: Data) -> Split:
    """A Split over `load(index)`, decoded once into memory where it fits, else on every read; see `Split.origin`."""

    def read(indices: Sequence[int] | NDArray[np.int64]) -> Images:
        with ThreadPoolExecutor() as pool:  # PIL's decoders release the interpreter lock
            return np.stack(list(pool.map(load, (int(i) for i in indices))))

    if len(labels) * data.size**2 * data.channels <= MEMORY_LIMIT_BYTES:
        return in_memory(read(range(len(labels))), labels)
    return Split(labels, read, origin)


def check_labels(labels: Labels, classes: Sequence[str], where: str) -> Labels:
    """`labels` as int64; InputError if there are none or one is not in 0 … len(classes) − 1."""
    if len(labels) == 0:
        raise InputError(f"{where}: holds no images")
    labels = np.asarray(labels, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"{where}: image {wrong[0]} has label {labels[wrong[0]]}; the card names {len(classes)} classes, "
            f"so labels go from 0 to {len(classes) - 1}"
        )
    return labels
