"""The section of detection: the average precision of each class, and some examples with the boxes of the models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd.report.page import safe, table_of
from edgekd.report.pictures import bright, class_names, colour, colour_key, picture, score_table
from edgekd.report.run.story import Story
from edgekd.tasks.detection import SURE

__all__ = ["box_section", "drawn"]

WIDTH = 220
"""Width of a picture in the page, in CSS pixels."""


def box_section(story: Story, runs: int) -> tuple[str, str]:
    """Title and HTML of the section, in a page that shows this number of runs. The HTML is empty if neither scores of
    classes nor answers on test data are kept."""
    names = class_names(story, "ap50")
    return "Boxes", score_table(story, names, {"ap50": "AP50", "ap": "AP50-95"}) + _examples(story, names)


def _examples(story: Story, names: Sequence[str]) -> str:
    """A row of pictures for each example: the truth, and the boxes of each model."""
    found = story.own.pictures
    if not found:
        return ""
    first = next(iter(found.values()))
    rows = []
    for place, number in enumerate(first["examples"]):
        image, true = bright(first["images"][place]), first["truth"][place]
        true = true[true[:, 0] >= 0]
        judged = int((true[:, 5] == 0).sum())
        cells = [f"image {number}", picture(drawn(image, true[:, 1:5], true[:, 0]), "truth", WIDTH)]
        for name, shown in found.items():
            boxes = shown["found"][place]
            boxes = boxes[boxes[:, 5] >= 0]
            drawing = picture(drawn(image, boxes[:, :4], boxes[:, 5]), name, WIDTH)
            cells.append(f"{drawing}<br>{shown['hits'][place]} of {judged} found, {len(boxes)} boxes")
        rows.append(cells)
    heads = ["", "truth", *(safe(name) for name in found)]
    told = f"Boxes with a score of at least {SURE:g}. Dark images are shown brighter."
    note = f'<p class="note">{colour_key(names, 1)}{told}</p>'
    return f"<h3>Examples</h3>{note}{table_of(heads, rows, {1, *range(2, len(heads))})}"


def drawn(image: NDArray[np.uint8], boxes: NDArray[np.floating], classes: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The image (H, W, C) as RGB, with the outlines of the boxes (m, 4) in the colours of their classes (m,)."""
    found = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    height, width = found.shape[:2]
    for box, label in zip(np.rint(boxes).astype(np.int64), classes.astype(np.int64), strict=True):
        x1, y1, x2, y2 = np.clip(box, 0, [width - 1, height - 1] * 2).tolist()
        for rows, columns in (
            (slice(y1, y2 + 1), (x1, x2)),
            ((y1, y2), slice(x1, x2 + 1)),
        ):
            found[rows, columns] = colour(int(label) + 1)
    return found
