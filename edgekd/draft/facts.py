"""What a data folder and a teacher were found to be: the material of a first card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MAX_CLASSES", "DataFacts", "Scale", "TeacherFacts"]

MAX_CLASSES = 20_000
"""A column with more different values than this holds something else than classes."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a data folder holds."""

    task: str
    keys: Mapping[str, Any]
    """Keys of `[data]` that the folder decides, apart from `classes`."""
    classes: tuple[str, ...]
    examples: int
    """Number of training examples."""
    tests: int
    """Number of test examples."""
    side: int = 0
    """Images: the median of the shorter sides in pixels."""
    grey: bool = False
    """Images: whether all of those that were looked at are grey."""
    sample: tuple[Any, ...] = ()
    """Images: some training images, encoded (bytes), evenly spread over the classes."""
    labels: tuple[int, ...] = ()
    """The class of each image in `sample`."""
    guesses: tuple[str, ...] = ()
    """Sentences that say what was guessed, and why."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and standard deviation of the pixels, per channel, on the scale 0–1."""

    words: str
    """Where they come from: `ImageNet's`."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What the teacher is, as far as it can be seen without the data."""

    keys: Mapping[str, Any]
    """Keys of `[teacher]`, apart from `training`."""
    trained: bool
    """Whether it comes with weights for these classes; otherwise the card has a table `[teacher.training]`."""
    size: int | None = None
    """Height and width of its input in pixels, if only one is possible."""
    channels: int | None = None
    """Number of its input's channels, if only one is possible."""
    vocabulary: int | None = None
    """Sentences: size of its vocabulary, if it has one."""
    labels: tuple[str, ...] = ()
    """The names of its classes in the order of its outputs, if its file holds them."""
    scale: Scale | None = None
    """How its input is normalised, if its publisher says so."""
    guesses: tuple[str, ...] = field(default_factory=tuple)
