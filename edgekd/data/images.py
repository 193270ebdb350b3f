"""Decodes image files to uint8 (H, W, C) of the network's input size, and keeps them as a `Split`."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgekd.console import say
from edgekd.data.pixels import PixelRule, is_plain, upright_8_bit
from edgekd.errors import InputError, cut, one_line

__all__ = [
    "BrokenImages",
    "Split",
    "check_labels",
    "decode",
    "decode_original",
    "decoded_split",
    "fit",
    "in_memory",
    "look",
    "named",
    "origin_of",
    "original_of",
    "read_file",
]

MEMORY_LIMIT_BYTES = 4_000_000_000
"""Decoded data sets up to this size are kept in memory; the images of larger ones are decoded on every read."""

MAX_PIXELS = 150_000_000
"""Largest number of pixels of one image, both in its file and after scaling: 450 MB in RGB."""

MAX_RATIO = 100
"""Largest ratio of an image's longer side to its shorter one. Images are scaled by the shorter side, so a thin strip
would become huge."""

NAMED_PROBLEMS = 10
"""A message about several broken images names at most this many."""

_MEND = "; mend or remove it"

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS refuses such an image

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class BrokenImages(InputError):
    """Images that cannot be used. The message is the problem of the image, or a list if there are several."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        several = f"{len(problems)} images cannot be used: {_listed(problems)}; mend or remove them"
        text, what = (several, "them") if len(problems) > 1 else (problems[0], "it")
        super().__init__(f"{text}; `skip_broken = true` in the card's [data] leaves {what} out")


class Split:
    """Images and labels of one part of a data set."""

    def __init__(
        self,
        labels: NDArray[Any],
        read: Callable[[NDArray[np.int64]], Images],
        origin: Callable[[int], bytes] | None = None,
        original: Callable[[int], Images] | None = None,
        extra: Any = None,
    ) -> None:
        self.labels = labels
        """Class numbers (n,), or what else is right for each image, along the first axis."""
        self.read = read
        """`read(indices)` returns the images (len(indices), H, W, C) uint8."""
        self.origin = origin
        """`origin(i)` identifies image i without decoding it, such as by its file's name, size and time of change. None
        if reading is fast."""
        self.original = original
        """`original(i)` returns image i upright in its own size, (height, width, C) uint8. None if there are only
        images of the network's size."""
        self.extra = extra
        """What views of the examples need in addition to them, such as noise for clips of sound."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: NDArray[np.int64]) -> "Split":
        """A Split of the images at `indices`, which are numbered from 0 in it."""
        origin = self.origin
        own = (lambda i: origin(int(indices[i]))) if origin else None
        original = self.original
        whole = (lambda i: original(int(indices[i]))) if original else None
        return Split(self.labels[indices], lambda chosen: self.read(indices[chosen]), own, whole, self.extra)


def in_memory(images: Images, labels: NDArray[Any], original: Callable[[int], Images] | None = None) -> Split:
    """A Split over an array (n, H, W, C); see `Split.original` for the other argument."""
    return Split(labels, lambda indices: images[indices], original=original)


def read_file(path: Path) -> bytes:
    """The content of an image file; InputError if it cannot be read."""
    with named(str(path)):
        return path.read_bytes()


def origin_of(file: Path, name: str = "") -> bytes:
    """What identifies an image file without reading it: its name (or `name`), its size and its time of change."""
    stat = file.stat()
    return f"{name or file.name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape")


def decode(content: bytes, data: PixelRule, where: str) -> Images:
    """An encoded image as uint8 (size, size, channels).

    An image of another size is resized so that its shorter side is `data.resize` (default `data.size`), then its
    centre is cropped. Raises InputError, which names `where`, if it cannot be decoded.
    """
    with named(where), Image.open(io.BytesIO(content)) as image:
        return fit(image, data, where)


def decode_original(content: bytes, data: PixelRule, where: str) -> Images:
    """An encoded image as uint8 (height, width, channels): upright and in 8 bits, but in its own size.

    Raises InputError like `decode`.
    """
    with named(where), Image.open(io.BytesIO(content)) as image:
        return original_of(image, data, where)


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Turn every exception that PIL raises for a broken file into an InputError that names `where`."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{where}: the image does not decode: no known format{_MEND}") from None
    except OSError as error:
        why = f"cannot be read: {error.strerror}" if error.strerror else f"does not decode: {one_line(error, 120)}"
        raise InputError(f"{where}: the image {why}{_MEND}") from error
    except Exception as error:  # a damaged file can make PIL raise almost any exception
        raise InputError(f"{where}: the image does not decode: {one_line(error, 120)}{_MEND}") from error


def fit(image: Image.Image, data: PixelRule, where: str) -> Images:
    """A PIL image as uint8 (size, size, channels), resized and cropped as in `decode`.

    Raises InputError, which names `where`, for an image that is too large or too thin, or that `upright_8_bit` refuses.
    """
    scale = (data.resize or data.size) / max(1, min(image.size))
    _refuse_amplifying(image, scale, where)
    return _fitted(upright_8_bit(image, data, where), data, scale)


def original_of(image: Image.Image, data: PixelRule, where: str) -> Images:
    """A PIL image as uint8 (height, width, channels) in its own size. Raises InputError like `fit`."""
    _refuse_amplifying(image, (data.resize or data.size) / max(1, min(image.size)), where)
    upright = upright_8_bit(image, data, where)
    return np.asarray(upright, dtype=np.uint8).reshape(upright.height, upright.width, data.channels)


def _fitted(image: Image.Image, data: PixelRule, scale: float) -> Images:
    """An upright 8-bit image, resized and cropped to (size, size, channels)."""
    size = data.size
    if image.size != (size, size):
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8).reshape(size, size, data.channels)


def _refuse_amplifying(image: Image.Image, scale: float, where: str) -> None:
    """Raise InputError for an image that would take far too much memory, before its pixels are decoded."""
    width, height = image.size
    size = f"{where}: has {width}×{height} pixels; "
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InputError(f"{size}the longer side is at most {MAX_RATIO} times the shorter one; cut or remove it")
    if width * height > MAX_PIXELS:
        raise InputError(f"{size}an image has at most {MAX_PIXELS:,}; scale it down or remove it")
    if width * height * max(1.0, scale) ** 2 > MAX_PIXELS:
        larger = f"{width * scale:.0f}×{height * scale:.0f}"
        raise InputError(
            f"{size}scaled as data.size or data.resize says it has {larger}, and at most {MAX_PIXELS:,} are allowed; "
            "cut it or ask for smaller ones"
        )


def look(file: Path | bytes, data: PixelRule, where: str) -> bool:
    """Whether an encoded image needs no rotation, scaling of values or background (`is_plain`); only reads its header.

    Raises InputError, which names `where`, for an image of unknown format, or one that is too large or too thin.
    """
    with named(where), Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        _refuse_amplifying(image, (data.resize or data.size) / max(1, min(image.size)), where)
        return is_plain(image)


def decoded_split(
    labels: NDArray[Any],
    load: Callable[[int], Images],
    origin: Callable[[int], bytes],
    data: PixelRule,
    header: Callable[[int], bool] = lambda i: True,
    where: str = "",
    original: Callable[[int], Images] | None = None,
) -> Split:
    """A Split of the images `load(index)`, which are decoded once into memory if they fit, else on every read.

    If they do not fit, `header(index)` checks each image (see `look`) and says whether it is an ordinary one. Raises
    BrokenImages for all images that `load` or `header` refuses, unless the card says `skip_broken`; `where` names the
    data set. See `Split` for `origin` and `original`.
    """
    fits = len(labels) * data.size**2 * data.channels <= MEMORY_LIMIT_BYTES
    tried = _tried(load if fits else header, range(len(labels)))
    good = _usable(tried, data.skip_broken, where)
    if fits:
        kept = (lambda i: original(int(good[i]))) if original else None
        return in_memory(np.stack([tried[i] for i in good]), labels[good], kept)

    def read(indices: NDArray[np.int64]) -> Images:
        with ThreadPoolExecutor() as pool:  # PIL's decoders release the interpreter lock
            return np.stack(list(pool.map(load, (int(i) for i in indices))))

    def marked(i: int) -> bytes:
        # Images that earlier versions decoded differently get another origin, so that old cache entries do not match.
        return origin(i) + (b"" if tried[i] else b"\0upright, 8 bits")

    whole = Split(labels, read, marked, original)
    return whole if len(good) == len(labels) else whole.subset(good)


def _tried(function: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
    """Call `function` for each index, in threads; return its results, with the InputError itself if it raised one."""

    def attempt(i: int) -> Any:
        try:
            return function(i)
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:  # PIL's decoders release the interpreter lock
        return list(pool.map(attempt, indices))


def _usable(tried: Sequence[Any], skip: bool, where: str) -> NDArray[np.int64]:
    """Indices of the results that are not errors. Raises BrokenImages for errors, unless `skip` is set and some results
    are usable."""
    broken = {i: str(one) for i, one in enumerate(tried) if isinstance(one, InputError)}
    good = np.array([i for i in range(len(tried)) if i not in broken], dtype=np.int64)
    if broken and (not skip or not len(good)):
        raise BrokenImages(list(broken.values()))
    if broken:
        listed = _listed(list(broken.values()))
        _report_skipped(f"data: {where}: left out {len(broken)} of {len(tried)} images: {listed}")
    return good


@cache  # so that the message is printed once, even if a part is read several times
def _report_skipped(text: str) -> None:
    say(text)


def _listed(problems: Sequence[str]) -> str:
    """The first ten problems, and the number of further ones."""
    first = [cut(problem.removesuffix(_MEND), 200) for problem in problems[:NAMED_PROBLEMS]]
    more = [f"and {len(problems) - NAMED_PROBLEMS} more"] if len(problems) > NAMED_PROBLEMS else []
    return "; ".join(first + more)


def check_labels(labels: Labels, classes: Sequence[str], where: str, what: str = "image") -> Labels:
    """`labels` as int64; InputError if there are none, or if one is not in 0 … len(classes) − 1. `what` is the word for
    an example."""
    if len(labels) == 0:
        raise InputError(f"{where}: holds no {what}s")
    labels = np.asarray(labels, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"{where}: {what} {wrong[0]} has label {labels[wrong[0]]}; the card names {len(classes)} classes, "
            f"so labels go from 0 to {len(classes) - 1}"
        )
    return labels
