"""The `Learning` of each known task."""

from typing import Any

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.data.images import Split
from edgekd.distill.tasks.classification import IMAGES, KEYWORDS, SENTENCES
from edgekd.distill.tasks.detection import BOXES
from edgekd.distill.tasks.learning import Learning
from edgekd.distill.tasks.segmentation import MAPS
from edgekd.distill.tasks.translation import PAIRS
from edgekd.tasks.known import task_of

__all__ = ["LEARNING", "examples_of", "learning_of"]

LEARNING: dict[str, Learning] = {
    "image-classification": IMAGES,
    "text-classification": SENTENCES,
    "keyword-spotting": KEYWORDS,
    "detection": BOXES,
    "segmentation": MAPS,
    "translation": PAIRS,
}
"""The `Learning` of each task, by the name of the task."""


def learning_of(data: Any) -> Learning:
    """The `Learning` of the task that a card's `[data]` belongs to."""
    return LEARNING[task_of(data).name]


def examples_of(card: Card, split: Split) -> Examples:
    """Convert a part of the card's data to the type that the training loop takes."""
    return learning_of(card.data).examples(card, split)
