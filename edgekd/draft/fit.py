"""Find how a teacher's input is normalised and how its classes are ordered, by its answers to training images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from edgekd.card import Card
from edgekd.data.examples import Examples
from edgekd.distill.distributed import World
from edgekd.distill.tasks.known import learning_of
from edgekd.draft.facts import DataFacts, Option, Scale
from edgekd.draft.limits import teacher_of
from edgekd.draft.teachers import IMAGENET
from edgekd.errors import ConfigError, InputError
from edgekd.scores import ScoreKind
from edgekd.tasks.known import task_of
from edgekd.units import accuracy

__all__ = ["Fit", "best_fit", "best_reading"]

Images = np.ndarray[Any, np.dtype[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Fit:
    """The normalisation and the order of classes with which the teacher answers best."""

    scale: Scale
    classes: tuple[str, ...]
    guess: str


def scales(measured: Scale) -> list[Scale]:
    """The normalisations that are tried."""
    channels = len(measured.mean)
    usual = [
        Scale(words="pixels from 0 to 1", mean=(0.0,) * channels, std=(1.0,) * channels),
        Scale(words="pixels from -1 to 1", mean=(0.5,) * channels, std=(0.5,) * channels),
    ]
    return [measured, *([IMAGENET] if channels == 3 else []), *usual]


def best_fit(
    data: DataFacts, images: Images, measured: Scale, labels: Sequence[str], card_with: Callable[[Scale], Card]
) -> Fit:
    """Try each usual normalisation and each order of the classes on `images`, the sample of the training data.

    The order is the one in the teacher's file (`labels`) if it has one with the same names; otherwise the order by
    number and the order by text are tried, because torchvision's ImageFolder sorts names as text.
    """
    tried: list[tuple[float, Scale]] = []
    orders = [tuple(labels)] if sorted(labels) == sorted(data.classes) else [data.classes, tuple(sorted(data.classes))]
    names = np.array([data.classes[label] for label in data.labels], dtype=object)
    best: tuple[float, Scale, tuple[str, ...]] | None = None
    for scale in scales(measured):
        module = teacher_of(card_with(scale)).module
        answers = _answers(module, images)
        for order in dict.fromkeys(orders):
            right = float(np.mean(np.array(order, dtype=object)[answers] == names))
            tried.append((right, scale))
            if best is None or right > best[0]:
                best = right, scale, order
    assert best is not None  # there are several normalisations
    right, scale, order = best
    others = sorted({f"{accuracy(share)} with {one.words}" for share, one in tried if one != scale})
    how = f"mean, std: {scale.words}, with which the teacher knows {accuracy(right)} of {len(images)} training images"
    if order != data.classes:
        how += "; its classes are in the order of " + ("its file" if labels else "their names as text")
    little = right < 0.5 + 0.5 / len(order)  # between half of all images and three quarters of two classes
    warn = "; that is little: set mean, std and classes as in its training" if little else ""
    return Fit(scale, order, f"{how} ({', '.join(others)}){warn}")


def _answers(module: torch.nn.Module, images: Images) -> np.ndarray[Any, np.dtype[np.int64]]:
    with torch.no_grad():
        begins = range(0, len(images), 32)
        parts = [module(torch.from_numpy(images[begin : begin + 32])).argmax(1) for begin in begins]
    return torch.cat(parts).numpy()


def best_reading(
    options: Sequence[Option], examples_of: Callable[[Card], Examples], card_with: Callable[[Option], Card]
) -> tuple[Option, str]:
    """The reading of a teacher's file with which it answers best on examples of the card that it gives, and the
    sentence that says so.

    Raises ConfigError or InputError if the teacher can be used with none of them.
    """
    tried: list[tuple[float, Option]] = []
    problems: list[ConfigError | InputError] = []
    count, card = 0, None
    for option in options:
        try:
            card = card_with(option)
            module = teacher_of(card).module
        except (ConfigError, InputError) as error:  # a stride or a number of stages that the size does not allow
            problems.append(error)
            continue
        examples = examples_of(card)
        count = len(examples)
        tried.append((learning_of(card.data).score(module, examples, "fp32", World()), option))
    if card is None or not tried:
        raise problems[0]
    task = task_of(card.data)
    kind = task.scores[0]
    reached, best = max(tried, key=lambda one: one[0] if kind.better == "higher" else -one[0])
    others = sorted({f"{kind.show(value)} with {one.words}" for value, one in tried if one != best})
    with_ = f"{best.words}, with which it" if best.words else "it"
    text = f"teacher: {with_} reaches {kind.words} {kind.show(reached)} on {count} validation {task.units}"
    return best, text + (f" ({', '.join(others[:4])})" if others else "") + _warning(kind, reached)


def _warning(kind: ScoreKind, reached: float) -> str:
    little = reached < (0.5 if kind.share else 10.0)
    return "; that is little: give [data] the settings of its training" if little else ""
