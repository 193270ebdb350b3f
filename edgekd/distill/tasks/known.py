"""How each of the known tasks is learnt."""

from typing import Any

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.data.images import Split
from edgekd.distill.tasks.classification import IMAGES, SENTENCES
from edgekd.distill.tasks.learning import Learning
from edgekd.tasks.known import task_of

__all__ = ["LEARNING", "examples_of", "learning_of"]

LEARNING: dict[str, Learning] = {"image-classification": IMAGES, "text-classification": SENTENCES}
"""By the name of the task."""


def learning_of(data: Any) -> Learning:
    """How the task is learnt whose cards have such a `[data]`."""
    return LEARNING[task_of(data).name]


def examples_of(card: Card, split: Split) -> Examples:
    """A part of the card's data as the training loop takes it."""
    return learning_of(card.data).examples(card, split)
