"""Find the torch network that a command names: a function of the user's, or a file of weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgekd.budget import Budget
from edgekd.card import Card, Data, Student, Teacher
from edgekd.draft.weights import Family, family_of
from edgekd.errors import ConfigError, InputError, one_line, shown
from edgekd.imports import import_function
from edgekd.nets.families import make, takes
from edgekd.nets.weights import load_file, read_state
from edgekd.recipe import Recipe
from edgekd.tasks.known import TASKS

__all__ = ["Network", "Wanted", "find_network", "image_card", "is_function"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user says of a network that no card describes."""

    source: str
    """`module:function`, or a file of weights."""
    family: str = ""
    shape: dict[str, Any] | None = None
    """Values of the family's shape, or arguments of the function."""
    weights: Path | None = None
    """Weights for the network of a function."""
    size: tuple[int, ...] = ()
    """The shape of one example as the network takes it: channels, height, width."""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Network:
    """A torch network in evaluation mode, and what is known of its input."""

    net: nn.Module
    size: tuple[int, ...]
    classes: tuple[str, ...]
    teacher: Teacher
    """The network as a card would describe it."""


def is_function(source: str) -> bool:
    """Whether the user names a function, and no file."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None and not Path(source).exists()


def find_network(wanted: Wanted) -> Network:
    """Make the network and load its weights.

    Raises ConfigError for options that say too little or do not fit, and InputError for weights that do not fit.
    """
    if is_function(wanted.source):
        return _of_function(wanted)
    path = Path(wanted.source)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a file of weights, or module:function")
    if path.suffix == ".onnx":
        raise InputError(
            f"{path}: is an ONNX file already, and has no torch network; edgekd quantize and bench take it as it is"
        )
    if wanted.weights:
        raise ConfigError(f"--weights {wanted.weights}: is for module:function; {path} holds weights itself")
    return _of_weights(wanted, path)


def _of_function(wanted: Wanted) -> Network:
    where = wanted.source
    if wanted.family:
        raise ConfigError(f"--family {wanted.family}: has no effect for {where}, which makes the network")
    function = import_function(image_card(Path(wanted.source), (1, 1, 1), ("a", "b")), wanted.source)
    named = dict(wanted.shape or {})
    if wanted.classes and takes(function, "classes"):
        named.setdefault("classes", len(wanted.classes))
    try:
        net = function(**named)
    except Exception as error:  # the user's own code
        given = ", ".join(f"{key}={value!r}" for key, value in named.items())
        raise ConfigError(
            f"{where}: cannot be called with ({given}): {one_line(error, 150)}; --shape KEY=VALUE"
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{where}: gave a {type(net).__name__}; a torch.nn.Module is needed")
    if wanted.weights:
        load_file(net, wanted.weights)
    teacher = Teacher(family="import", function=wanted.source, shape=wanted.shape or {})
    return Network(net=net.eval(), size=wanted.size, classes=wanted.classes, teacher=teacher)


def _of_weights(wanted: Wanted, path: Path) -> Network:
    found = Family(family=wanted.family, shape=wanted.shape or {}, outputs=None)
    if not wanted.family:
        if wanted.shape:
            raise ConfigError("--shape: needs --family, or module:function")
        found = _recognised(read_state(path), path)
    if found.task != "image-classification":
        units = TASKS[found.task].units
        raise ConfigError(
            f"{path}: is a network for {units}, which needs a card that says how they enter it; give --card"
        )
    size = wanted.size or (((found.channels or 3), found.size, found.size) if found.size else ())
    if not size:
        raise ConfigError(f"{path}: give the shape of one example with --input, such as --input 3,32,32")
    classes = wanted.classes or tuple(map(str, range(found.outputs or 0)))
    if len(classes) < 2:
        raise ConfigError(f"{path}: give the classes with --classes: their number, or their names with commas between")
    if len(size) != 3 or size[0] not in (1, 3) or size[1] != size[2]:
        raise ConfigError(
            f"--input {','.join(map(str, size))}: family {found.family} takes square images of 1 or 3 channels, such "
            "as 3,32,32; for others give module:function"
        )
    teacher = Teacher(family=found.family, shape=found.shape)
    net = make(image_card(path, size, classes, teacher=teacher), teacher, found.shape, "--shape")
    load_file(net, path)
    return Network(net=net.eval(), size=size, classes=classes, teacher=teacher)


def _recognised(state: dict[str, Tensor], path: Path) -> Family:
    try:
        return family_of(state, path)
    except InputError as error:
        names = ", ".join(shown(name) for name in list(state)[:3])
        raise InputError(
            f"{path}: its names ({names}, …) are those of no network that edgekd or torchvision makes; give "
            "module:function with --weights, or --family and --shape"
        ) from error


def image_card(
    file: Path,
    size: Sequence[int],
    classes: tuple[str, ...],
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    teacher: Teacher | None = None,
) -> Card:
    """The card of a classifier of square images of `size` (channels, height, width) that no card describes. A function
    that `teacher` names is imported from the folder of `file`."""
    channels: Any = size[0]  # the caller has checked that it is 1 or 3
    return Card(
        title=str(file),
        data=Data(
            source="image-folder",
            size=size[1],
            channels=channels,
            classes=classes,
            mean=tuple(mean) or (0.0,) * channels,
            std=tuple(std) or (1.0,) * channels,
        ),
        teacher=teacher or Teacher(family="import"),
        student=Student(family="convnet"),
        recipe=Recipe(epochs=1),
        budgets={"": Budget()},
        name=file.stem or "network",
        file=str(file),
    )
