"""A task: what a network is for, as far as measuring, exporting and reporting must know it; numpy alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.recipe import Augment

__all__ = ["Normalization", "Task"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What is computed in the graph before the network: (x / top − mean) / std, for each channel or feature."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: float
    """The largest value of a raw input: 255 for pixels of 8 bits."""
    channels_last: bool
    """Whether inputs are (B, H, W, C) and the network takes (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Functions of `data` take what the card's `[data]` says, an object of the type `data`."""

    name: str
    unit: str
    """What one example is called: `image`."""
    units: str
    """The same in the plural."""
    data: type
    """The type of the card's `[data]`."""
    augment: frozenset[str]
    """The keys of `[augment]` that the task knows, beside `seed`."""
    problem: Callable[[Any, Augment], str]
    """What does not fit in the card's `[data]` and `[augment]` taken together, in words; empty if all does."""
    input: str
    """Name of the exported file's input."""
    free: Mapping[int, str]
    """The free axes of that input, by name."""
    calibration: Literal["static", "dynamic"]
    """Whether int8 needs calibration data, or scales what comes."""
    outputs: Callable[[Any], int]
    """How many numbers the network gives for one example."""
    argument: str = ""
    """The argument by which a user's own function is told that number; empty if it is told none."""
    targets: Callable[[Any], str]
    """What these numbers stand for, in words: `10 classes of data`."""
    example: Callable[[Any, int], NDArray[Any]]
    """So many empty inputs, of the shape and type that the exported file takes."""
    takes: Callable[[Any], str]
    """An input in words, in the plural: `images of 32×32 pixels`."""
    sizes: Callable[[Any], tuple[int, ...]]
    """What a family's function takes between the shape and the number of outputs."""
    normalization: Callable[[Any], Normalization | None]
    """What the graph computes before the network; None where the network takes its inputs as they are."""
    describe: Callable[[Any], dict[str, str]]
    """What a user must know to feed the exported file, for its metadata."""
    calls: Callable[[NDArray[Any]], list[NDArray[Any]]]
    """Inputs (n, …) as they are given to the file: all together, or one by one."""
    score: Callable[[Outputs, NDArray[Any]], dict[str, float]]
    """The scores of outputs (n, C) against targets (n,), by name."""
    same: Callable[[Outputs, Outputs], float]
    """The share of examples on which two models' outputs (n, C) say the same."""
    same_words: str
    """That share in words: `same class`."""
