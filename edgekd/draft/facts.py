"""What a data folder and a teacher were found to be: the material of a first card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MAX_CLASSES", "DataFacts", "Option", "Proposal", "Scale", "TeacherFacts"]

MAX_CLASSES = 20_000
"""A column with more different values than this holds something else than classes."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a card proposes for a task whose data decide it alone: clips, masks, boxes and pairs of texts."""

    augment: Mapping[str, Any]
    teacher: Mapping[str, Any]
    """Keys of `[teacher]`, for data that come without one."""
    student: str
    """The family of the student."""
    knobs: Mapping[str, Any]
    training: Mapping[str, Any]
    """How the teacher is trained."""
    recipe: Mapping[str, Any]
    guesses: tuple[str, ...]


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
    proposal: Proposal | None = None
    """The rest of the card; None if data, teacher and target decide it together."""
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
class Option:
    """One possible reading of a teacher's file."""

    words: str
    """What it assumes: `4 heads`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `[data]` that follow from it."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the teacher's shape that follow from it."""


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
    labels: tuple[str, ...] = ()
    """The names of its classes in the order of its outputs, if its file holds them."""
    scale: Scale | None = None
    """How its input is normalised, if its publisher says so."""
    guesses: tuple[str, ...] = field(default_factory=tuple)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `[data]` that it decides, such as its vocabulary."""
    options: tuple[Option, ...] = ()
    """What its file does not show: the readings of which that one is taken with which the teacher answers best."""
    strides: tuple[int, ...] = ()
    """Detection: the strides of its grids, if its file shows them. A student, which learns place by place, has the
    same ones."""
    masks: bool = True
    """Clips: whether features can be masked before it; False if it takes samples."""
