"""A task describes a network's purpose for measuring, exporting and reporting; this module needs only NumPy."""

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
    """The computation in the graph before the network: (x / top − mean) / std, for each channel or feature."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: float
    """The largest possible raw input value: 255 for 8-bit pixels."""
    channels_last: bool
    """Whether inputs are (B, H, W, C) and the network takes (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Functions of `data` take the card's `[data]`, an object of the type `data`."""

    name: str
    unit: str
    """The name of one example: `image`."""
    units: str
    """The plural of `unit`."""
    data: type
    """The type of the card's `[data]`."""
    augment: frozenset[str]
    """The keys of `[augment]` that the task supports, in addition to `seed`."""
    problem: Callable[[Any, Augment], str]
    """Describes why the card's `[data]` and `[augment]` do not fit together; empty if they do."""
    input: str
    """The name of the exported file's input."""
    free: Mapping[int, str]
    """The names of that input's dynamic axes, by position."""
    calibration: Literal["static", "dynamic"]
    """Whether int8 needs calibration data (static) or scales activations at run time (dynamic)."""
    outputs: Callable[[Any], int]
    """Returns the number of network outputs per example."""
    argument: str = ""
    """The parameter that passes that number to a user's own function; empty if it gets no such argument."""
    targets: Callable[[Any], str]
    """Describes what these outputs stand for: `10 classes of data`."""
    example: Callable[[Any, int], NDArray[Any]]
    """Makes a given number of blank inputs, with the shape and type that the exported file takes."""
    takes: Callable[[Any], str]
    """Describes the inputs in the plural: `images of 32×32 pixels`."""
    sizes: Callable[[Any], tuple[int, ...]]
    """Returns the arguments of a family's function between the shape and the number of outputs."""
    normalization: Callable[[Any], Normalization | None]
    """Returns the computation in the graph before the network; None if the network takes raw inputs."""
    describe: Callable[[Any], dict[str, str]]
    """Returns the metadata of the exported file that a user needs to feed it."""
    calls: Callable[[NDArray[Any]], list[NDArray[Any]]]
    """Splits inputs (n, …) into the calls of the exported file: all together, or one by one."""
    same: Callable[[Outputs, Outputs], float]
    """Computes the share of examples on which the outputs (n, C) of two models agree."""
    same_words: str
    """Describes that share: `same class`."""
