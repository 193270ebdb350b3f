"""The section of segmentation: the IoU of each class, and some examples with the class maps of the models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.report.page import safe, table_of
from edgekd.report.pictures import PALETTE, bright, class_names, colour_key, picture, score_table
from edgekd.report.run.story import Story

__all__ = ["colours_of", "map_section"]

WIDTH = 150
"""Width of a picture in the page, in CSS pixels."""

_OUTSIDE = np.array((255, 255, 255), np.uint8)
"""The colour of pixels that are not judged."""


def map_section(story: Story, runs: int) -> tuple[str, str]:
    """Title and HTML of the section, in a page that shows this number of runs. The HTML is empty if neither scores of
    classes nor answers on test data are kept."""
    names = class_names(story, "iou")
    return "Class maps", score_table(story, names, {"iou": "IoU"}, "IoU") + _examples(story, names)


def _examples(story: Story, names: Sequence[str]) -> str:
    """A row of pictures for each example: image, truth, and the class map of each model."""
    found = story.own.pictures
    if not found:
        return ""
    first = next(iter(found.values()))
    rows = []
    for place, number in enumerate(first["examples"]):
        cells = [f"image {number}", picture(bright(first["images"][place]), f"image {number}", WIDTH),
                 picture(colours_of(first["truth"][place], len(names)), "truth", WIDTH)]  # fmt: skip
        for name, shown in found.items():
            drawn = picture(colours_of(shown["maps"][place], len(names)), name, WIDTH)
            cells.append(f"{drawn}<br>{units.accuracy(shown['miou'][place])}")
        rows.append(cells)
    heads = ["", "image", "truth", *(safe(name) for name in found)]
    note = f'<p class="note">{colour_key(names)}White pixels are not judged. {_NOTE}</p>'
    return f"<h3>Examples</h3>{note}{table_of(heads, rows, {1, 2, *range(3, len(heads))})}"


_NOTE = "Dark images are shown brighter. Below each map: the mean IoU of this image alone."


def colours_of(classes: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """A class map (H, W) as an RGB picture (H, W, 3); numbers from `count` on are white."""
    table = np.tile(_OUTSIDE, (256, 1))
    table[:count] = PALETTE[np.arange(count) % len(PALETTE)]
    return np.asarray(table[classes])
