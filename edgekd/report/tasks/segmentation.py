"""The section of segmentation: the IoU of each class, and some examples with the class maps of the models."""

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.report.page import safe, table_of
from edgekd.report.run.gather import Story

__all__ = ["bright", "colour", "colours_of", "map_section", "picture", "png"]

WIDTH = 150
"""Width of a picture in the page, in CSS pixels."""

_PALETTE = np.array(
    [
        *((31, 41, 51), (242, 169, 59), (55, 135, 192), (214, 69, 80), (86, 160, 94), (146, 104, 173)),
        *((140, 110, 90), (226, 139, 186), (160, 165, 60), (70, 180, 180)),
    ],
    np.uint8,
)
_OUTSIDE = np.array((255, 255, 255), np.uint8)
"""The colour of pixels that are not judged."""


def map_section(story: Story, runs: int) -> tuple[str, str]:
    """Title and HTML of the section, in a page that shows this number of runs. The HTML is empty if neither scores of
    classes nor answers on test data are kept."""
    names = _names(story)
    return "Class maps", _table(story, names) + _examples(story, names)


def _names(story: Story) -> tuple[str, ...]:
    """The names of the classes; numbers if the run does not keep all of them."""
    count = max((len(details["iou"]) for details in story.own.details.values()), default=0)
    named = tuple(story.data.get("classes", ()))
    return named if len(named) >= count else tuple(f"class {place}" for place in range(count))


def _table(story: Story, names: Sequence[str]) -> str:
    """The IoU of each class, by model."""
    models = [model for model in story.own.models if model.name in story.own.details]
    if not models:
        return ""
    rows = []
    for place, name in enumerate(names):
        shares = [story.own.details[model.name]["iou"] for model in models]
        cells = [units.accuracy(one[place]) if place < len(one) and one[place] is not None else "–" for one in shares]
        rows.append([safe(name), *cells])
    shipped = next((place for place, model in enumerate(models, 1) if model.name == story.chosen), -1)
    return table_of(["IoU", *(safe(model.name) for model in models)], rows, set(), shipped)


def _examples(story: Story, names: Sequence[str]) -> str:
    """A row of pictures for each example: image, truth, and the class map of each model."""
    found = story.own.pictures
    if not found:
        return ""
    first = next(iter(found.values()))
    rows = []
    for place, number in enumerate(first["examples"]):
        cells = [f"image {number}", picture(bright(first["images"][place]), f"image {number}"),
                 picture(colours_of(first["truth"][place], len(names)), "truth")]  # fmt: skip
        for name, shown in found.items():
            drawn = picture(colours_of(shown["maps"][place], len(names)), name)
            cells.append(f"{drawn}<br>{units.accuracy(shown['miou'][place])}")
        rows.append(cells)
    heads = ["", "image", "truth", *(safe(name) for name in found)]
    keys = "".join(f'<span style="color:rgb{colour(k)}">■</span> {safe(name)} ' for k, name in enumerate(names))
    note = f'<p class="note">{keys}White pixels are not judged. {_NOTE}</p>'
    return f"<h3>Examples</h3>{note}{table_of(heads, rows, {1, 2, *range(3, len(heads))})}"


_NOTE = "Dark images are shown brighter. Below each map: the mean IoU of this image alone."


def bright(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, with levels multiplied so that the brightest ones are white, if none is bright."""
    top = max(1.0, float(np.percentile(image, 99.8)))
    return image if top > 127 else np.minimum(image * (255 / top), 255).astype(np.uint8)


def colour(number: int) -> tuple[int, ...]:
    """The colour of a class, as red, green and blue."""
    return tuple(int(level) for level in _PALETTE[number % len(_PALETTE)])


def colours_of(classes: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """A class map (H, W) as an RGB picture (H, W, 3); numbers from `count` on are white."""
    table = np.tile(_OUTSIDE, (256, 1))
    table[:count] = _PALETTE[np.arange(count) % len(_PALETTE)]
    return np.asarray(table[classes])


def picture(pixels: NDArray[np.uint8], text: str, width: int = WIDTH) -> str:
    """HTML of a picture (H, W, 3 or 1) with this alternative text and width in CSS pixels."""
    data = base64.b64encode(png(pixels)).decode()
    return f'<img alt="{safe(text)}" width="{width}" src="data:image/png;base64,{data}">'


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3 or 1) as a PNG file, written here because the base installation has no image library
    (W3C Portable Network Graphics, third edition)."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0 in each row

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
