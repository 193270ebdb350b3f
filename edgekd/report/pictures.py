"""What sections with images share: pictures in HTML, the colours of classes, and a table of their scores."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.report.page import safe, table_of
from edgekd.report.run.story import Story

__all__ = ["PALETTE", "bright", "class_names", "colour", "colour_key", "picture", "png", "score_table"]

PALETTE = np.array(
    [
        *((31, 41, 51), (242, 169, 59), (55, 135, 192), (214, 69, 80), (86, 160, 94), (146, 104, 173)),
        *((140, 110, 90), (226, 139, 186), (160, 165, 60), (70, 180, 180)),
    ],
    np.uint8,
)
"""The colours of classes, as red, green and blue."""


def class_names(story: Story, key: str) -> tuple[str, ...]:
    """The names of the classes, whose scores lie under `key`; numbers if the run does not keep all names."""
    count = max((len(details[key]) for details in story.own.details.values()), default=0)
    named = tuple(story.data.get("classes", ()))
    return named if len(named) >= count else tuple(f"class {place}" for place in range(count))


def score_table(story: Story, names: Sequence[str], scores: dict[str, str], corner: str = "") -> str:
    """HTML of the scores of each class, by model; empty if none are kept.

    `scores` gives the words of each kind of score by its key; the words are left out if there is one kind.
    """
    models = [model for model in story.own.models if model.name in story.own.details]
    if not models:
        return ""
    rows = []
    for place, name in enumerate(names):
        for key, words in scores.items():
            values = [story.own.details[model.name][key] for model in models]
            cells = [
                units.accuracy(one[place]) if place < len(one) and one[place] is not None else "–" for one in values
            ]
            rows.append([f"{safe(name)}, {words}" if len(scores) > 1 else safe(name), *cells])
    shipped = next((place for place, model in enumerate(models, 1) if model.name == story.chosen), -1)
    return table_of([corner, *(safe(model.name) for model in models)], rows, set(), shipped)


def colour_key(names: Sequence[str], first: int = 0) -> str:
    """HTML that tells the colour of each class; the first class has the colour of number `first`."""
    return "".join(f'<span style="color:rgb{colour(k)}">■</span> {safe(name)} ' for k, name in enumerate(names, first))


def bright(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, with levels multiplied so that the brightest ones are white, if none is bright."""
    top = max(1.0, float(np.percentile(image, 99.8)))
    return image if top > 127 else np.minimum(image * (255 / top), 255).astype(np.uint8)


def colour(number: int) -> tuple[int, ...]:
    """The colour of a class, as red, green and blue."""
    return tuple(int(level) for level in PALETTE[number % len(PALETTE)])


def picture(pixels: NDArray[np.uint8], text: str, width: int) -> str:
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
