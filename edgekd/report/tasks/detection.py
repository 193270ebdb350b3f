"""The section of detection: the average precision of each class, and some examples with the boxes of the models."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd import units
from edgekd.report.page import safe, table_of
from edgekd.report.run.gather import Story
from edgekd.report.tasks.segmentation import bright, colour, picture
from edgekd.tasks.detection import SURE

__all__ = ["box_section", "drawn"]

WIDTH = 260
"""Width of a picture in the page, in CSS pixels."""


def box_section(story: Story, runs: int) -> tuple[str, str]:
    """Title and HTML of the section, in a page that shows this number of runs. The HTML is empty if neither scores of
    classes nor answers on test data are kept."""
    names = _names(story)
    return "Boxes", _table(story, names) + _examples(story, names)


def _names(story: Story) -> tuple[str, ...]:
    """The names of the classes; numbers if the run does not keep all of them."""
    count = max((len(details["ap50"]) for details in story.own.details.values()), default=0)
    named = tuple(story.data.get("classes", ()))
    return named if len(named) >= count else tuple(f"class {place}" for place in range(count))


def _table(story: Story, names: Sequence[str]) -> str:
    """AP50 and AP50-95 of each class, by model."""
    models = [model for model in story.own.models if model.name in story.own.details]
    if not models:
        return ""
    rows = []
    for place, name in enumerate(names):
        for key, words in (("ap50", "AP50"), ("ap", "AP50-95")):
            values = [story.own.details[model.name][key] for model in models]
            cells = [
                units.accuracy(one[place]) if place < len(one) and one[place] is not None else "–" for one in values
            ]
            rows.append([f"{safe(name)}, {words}", *cells])
    shipped = next((place for place, model in enumerate(models, 1) if model.name == story.chosen), -1)
    return table_of(["", *(safe(model.name) for model in models)], rows, set(), shipped)


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
    keys = "".join(f'<span style="color:rgb{colour(k + 1)}">■</span> {safe(name)} ' for k, name in enumerate(names))
    note = f'<p class="note">{keys}Boxes with a score of at least {SURE:g}. Dark images are shown brighter.</p>'
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
