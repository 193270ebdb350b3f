"""A task describes a network's purpose for measuring, exporting and reporting; this module needs only NumPy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.figures import ModelFigures
from edgekd.scores import ScoreKind
from edgekd.tasks.front_end import FrontEnd

__all__ = ["ANY", "Normalization", "Outputs", "Targets", "Task"]

ANY = -1
"""Stands in the shape of outputs for a length that the network chooses."""

Outputs = NDArray[Any]
"""What a model gives for n examples, as `Task.read` returns it: for most tasks (n, C) float32."""
Targets = NDArray[Any]
"""What the data say is right for n examples: classes (n,) int64, numbers (n,) float32, class maps (n, H, W),
or boxes (n, M, 6)."""


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
    embedded: frozenset[str] = frozenset()
    """The values of `source` in `[data]` whose data come with a package, so that they need no folder."""
    input: str
    """The name of the exported file's input."""
    free: Mapping[int, str]
    """The names of that input's dynamic axes, by position."""
    output: str = "logits"
    """The name of the exported file's output."""
    output_words: str = "logits"
    """What the numbers of that output are, in the plural."""
    generates: bool = False
    """Whether the exported model has two files and generates its answers token by token, see docs/translation.md. Its
    network then gives a row of outputs for each token instead of each example."""
    calibration: Literal["static", "dynamic"]
    """Whether int8 needs calibration data (static) or scales activations at run time (dynamic)."""
    outputs: Callable[[Any], int]
    """Returns the number of network outputs per example."""
    argument: str = ""
    """The parameter that passes that number to a user's own function; empty if it gets no such argument."""
    grid: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda inputs: ()
    """Returns the axes of the outputs behind that of the classes, given the shape of the inputs (n, …): height and
    width of a class map; none if there is one answer for each example. An axis of length ANY is the network's choice,
    such as the number of places where a detector looks for objects."""
    together: int = 500
    """The largest number of examples that are computed together where nothing else limits it."""
    writes: Literal["rows", "classes", "boxes"] = "rows"
    """What a worker writes of the outputs: as they are; or, of outputs (n, C, …), the most likely class of each place
    (n, …); or, of boxes and scores (n, 4 + C, L), what non-maximum suppression leaves."""
    targets: Callable[[Any], str]
    """Describes what these outputs stand for: `10 classes of data`."""
    example: Callable[[Any, int], NDArray[Any]]
    """Makes a given number of blank inputs, with the shape and type that the exported file takes."""
    takes: Callable[[Any], str]
    """Describes the inputs in the plural: `images of 32×32 pixels`."""
    sizes: Callable[[Any], tuple[int, ...]]
    """Returns the arguments of a family's function between the shape and the number of outputs."""
    normalization: Callable[[Any], Normalization | FrontEnd | None]
    """Returns the computation in the graph before the network; None if the network takes raw inputs."""
    describe: Callable[[Any], dict[str, str]]
    """Returns the metadata of the exported file that a user needs to feed it."""
    calls: Callable[[NDArray[Any]], list[NDArray[Any]]]
    """Splits inputs (n, …) into the calls of the exported file: all together, or one by one."""
    read: Callable[[NDArray[Any]], Outputs]
    """Converts what a worker wrote for n examples to `Outputs`; raises ModelError if that cannot be an answer."""
    decode: Callable[[Outputs, Path], Outputs] | None = None
    """Converts these to the final `Outputs` by what the model file says, such as token ids to texts by its tokenizer;
    None if there is nothing to convert."""
    targets_problem: Callable[[Targets], str]
    """Describes why an array (n, …) read from a file cannot be the targets of n examples; empty if it can."""
    fit_problem: Callable[[Outputs, Targets, str], str]
    """Describes why targets do not fit the outputs of the model with that name; empty if they do."""
    scores: tuple[ScoreKind, ...]
    """The scores; the first one decides: it is used for choices and early stopping, and gives budgets their keys."""
    score: Callable[[Outputs, Targets], dict[str, float]]
    """Computes the scores by name; those that are not known for these outputs are left out."""
    truth: Callable[[Outputs], Targets] = lambda outputs: outputs.argmax(axis=1)
    """What would be right if these outputs of a model were: the most likely classes. Other models are compared with
    it where the data say nothing."""
    each: Callable[[Outputs, Targets], NDArray[np.float64]]
    """One figure (n,) of each example for paired tests; its mean is the score that decides, if that is possible."""
    paired: Literal["mcnemar", "bootstrap"]
    """The paired test on `each`: McNemar's for 0 and 1, the bootstrap for other numbers."""
    answers: Callable[[Outputs], NDArray[np.int64]] | None = None
    """An integer (n,) for each answer, which is equal exactly if the answer is; None if answers are never equal."""
    same: Callable[[Outputs, Outputs], float] | None = None
    """Computes the share of examples on which two models' outputs agree; None if that says nothing."""
    same_words: str = "same answer"
    """Describes that share: `same class`."""
    details: Callable[[Outputs, Targets], dict[str, Any]] = lambda outputs, targets: {}
    """Returns plain data about the answers that result files keep for the charts: `recall` of each class."""
    charted: Callable[[Outputs, Targets], dict[str, Any]] = lambda outputs, targets: {}
    """Returns all plain data about the answers that the charts show; may be larger than `details`."""
    pictured: Callable[[Outputs, Targets, NDArray[Any]], dict[str, Any]] | None = None
    """Returns what a report shows of single examples, given all outputs, targets and inputs (n, …): arrays and lists by
    name; None if no examples are shown."""
    charts: tuple[str, ...] = ()
    """The charts about the answers that a report shows, by their name in edgekd/report/tasks."""
    remarks: Callable[[Any, ModelFigures], Sequence[str]] = lambda data, model: ()
    """Returns what a report says of the figures of the shipped model beyond the tables, one sentence each."""

    def shape(self, data: Any, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a network's outputs for inputs of this shape: (n, C), or (n, C, H, W) for class maps."""
        return (inputs[0], self.outputs(data), *self.grid(inputs))

    def gives(self, found: Sequence[int], data: Any, inputs: tuple[int, ...]) -> bool:
        """Whether outputs for one example, of the shape `found` without the batch, are what the task needs."""
        wanted = self.shape(data, inputs)[1:]
        return len(found) == len(wanted) and all(b in (ANY, a) for a, b in zip(found, wanted, strict=True))

    def read_from(self, raw: NDArray[Any], file: Path) -> Outputs:
        """Convert what a worker wrote for n examples with the model in `file` to `Outputs`."""
        found = self.read(raw)
        return self.decode(found, file) if self.decode else found
