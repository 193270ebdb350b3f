"""Network families. A family has a name, a shape class, and a function that makes a network of a given shape."""

import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.models
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from edgekd.candidate import Shape
from edgekd.card import Card, Family, Student, Teacher
from edgekd.errors import ConfigError, did_you_mean, one_line, shown
from edgekd.imports import import_function, require
from edgekd.nets.airbench import Airbench, AirbenchShape
from edgekd.nets.cifar_resnet import CifarResNet, CifarResNetShape
from edgekd.nets.deployed import Deployed, example_inputs, noise_inputs
from edgekd.nets.detect import Detector, DetectorShape
from edgekd.nets.inverted import InvertedShape, inverted_residual
from edgekd.nets.keywords import BcResNetShape, DsCnnShape, KeywordCnnShape, bc_resnet, ds_cnn, keyword_cnn
from edgekd.nets.mobile import MobileNetV2Shape, MobileNetV3Shape, for_channels, mobilenet_v2, mobilenet_v3
from edgekd.nets.outputs import Head, add_head, settle_head
from edgekd.nets.repvgg import repvgg
from edgekd.nets.segment import FastScnn, FastScnnShape, UNet, UNetShape
from edgekd.nets.separable import separable
from edgekd.nets.small import ConvNetShape, MlpShape, convnet, mlp
from edgekd.nets.ssd import SsdLite, SsdLiteShape
from edgekd.nets.stages import StagedShape
from edgekd.nets.text import (
    BagOfWords,
    BagOfWordsShape,
    LstmShape,
    TextCnn,
    TextCnnShape,
    TextLstm,
    Transformer,
    TransformerShape,
)
from edgekd.nets.translation import Seq2Seq, Seq2SeqShape
from edgekd.nets.vgg import vgg
from edgekd.spec import build
from edgekd.tasks.known import task_of

__all__ = [
    "DETECTION_FAMILIES",
    "FAMILIES",
    "FOREIGN",
    "IMAGE_FAMILIES",
    "KEYWORD_FAMILIES",
    "MAX_BUILT",
    "SEGMENTATION_FAMILIES",
    "TEXT_FAMILIES",
    "UnbuildableError",
    "make",
    "make_shapes",
    "shapes_of",
    "takes",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

MAX_CANDIDATES = 5_000
"""Largest number of candidates. A few dozen are measured, at about a second each; the others are counted, at a tenth of
a second each, and their figures predicted."""

MAX_BUILT = 200
"""If there are more shapes, all are checked, but only the first ones are built for the check."""

MAX_PARAMS = 1_000_000_000
"""Largest number of parameters of a network; its weights then take 4 GB."""


class UnknownModelError(ValueError):
    """torchvision or timm has no model of that name. This is a mistake in the card, even if others are usable."""


class UnbuildableError(ConfigError):
    """The network of one shape cannot be built; networks of other shapes may be buildable."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NamedShape:
    """A network that torchvision or timm makes by its name."""

    model: str


def _torchvision(shape: NamedShape, channels: int, size: int, classes: int) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if shape.model not in known:
        raise UnknownModelError(f"torchvision has no model {shown(shape.model)}; {_nearest(shape.model, known)}")
    options = next((make(size) for start, make in _TORCHVISION.items() if shape.model.startswith(start)), {})
    net: nn.Module = torchvision.models.get_model(shape.model, weights=None, num_classes=classes, **options)
    return for_channels(net, channels)


_TORCHVISION: dict[str, Callable[[int], dict[str, Any]]] = {
    "vit_": lambda size: {"image_size": size},
    "maxvit_": lambda size: {"input_size": (size, size)},
    "googlenet": lambda size: {"aux_logits": False, "init_weights": True},
    "inception_v3": lambda size: {"aux_logits": False, "init_weights": True},
}
"""Further arguments for torchvision's networks whose names begin with these keys: their input size, and that they
should have only one output."""


def _timm(shape: NamedShape, channels: int, size: int, classes: int) -> nn.Module:
    timm = require("timm", "timm", "the family 'timm'")
    name, _, tag = shape.model.partition(".")
    if name not in timm.list_models():
        raise UnknownModelError(f"timm has no model {shown(name)}; {_nearest(name, timm.list_models())}")
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise UnknownModelError(f"timm's {name} has no tag {shown(tag)}; {did_you_mean(tag, tags)}")
    options = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    state = torch.get_rng_state()
    try:  # transformers and some others are made for one image size
        net: nn.Module = timm.create_model(shape.model, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        torch.set_rng_state(state)
        net = timm.create_model(shape.model, **options)
    return net


def _nearest(name: str, known: list[str]) -> str:
    """A hint with the nearest known names only, because a list of hundreds of names does not help."""
    return did_you_mean(name, known).split("Known:")[0].strip() or "see its documentation for the names"


IMAGE_FAMILIES: dict[str, tuple[type, Any]] = {
    "convnet": (ConvNetShape, convnet),
    "mlp": (MlpShape, mlp),
    "cifar-resnet": (
        CifarResNetShape,
        lambda shape, channels, size, classes: CifarResNet(shape, channels, classes),
    ),
    "airbench": (AirbenchShape, Airbench),
    "vgg": (StagedShape, vgg),
    "repvgg": (StagedShape, repvgg),
    "inverted-residual": (InvertedShape, inverted_residual),
    "separable": (StagedShape, separable),
    "mobilenet-v2": (MobileNetV2Shape, mobilenet_v2),
    "mobilenet-v3": (MobileNetV3Shape, mobilenet_v3),
    "torchvision": (NamedShape, _torchvision),
    "timm": (NamedShape, _timm),
}
"""Maps the name of a family to (shape class, function of (shape, channels, size, outputs))."""

FOREIGN = ("torchvision", "timm", "import")
"""Families whose networks may have several outputs, or outputs that are not logits."""

TEXT_FAMILIES: dict[str, tuple[type, Any]] = {
    "bag-of-words": (BagOfWordsShape, BagOfWords),
    "text-cnn": (TextCnnShape, TextCnn),
    "lstm": (LstmShape, TextLstm),
    "transformer": (TransformerShape, Transformer),
}
"""Maps the name of a family to (shape class, function of (shape, vocabulary, outputs))."""

KEYWORD_FAMILIES: dict[str, tuple[type, Any]] = {
    "ds-cnn": (DsCnnShape, ds_cnn),
    "bc-resnet": (BcResNetShape, bc_resnet),
    "keyword-cnn": (KeywordCnnShape, keyword_cnn),
}
"""Maps the name of a family to (shape class, function of (shape, bins, frames, outputs))."""

DETECTION_FAMILIES: dict[str, tuple[type, Any]] = {
    "detector": (DetectorShape, Detector),
    "ssdlite": (SsdLiteShape, SsdLite),
}
"""Maps the name of a family to (shape class, function of (shape, channels, height, width, outputs))."""

SEGMENTATION_FAMILIES: dict[str, tuple[type, Any]] = {
    "unet": (UNetShape, UNet),
    "fast-scnn": (FastScnnShape, FastScnn),
}
"""Maps the name of a family to (shape class, function of (shape, channels, size, outputs))."""

TRANSLATION_FAMILIES: dict[str, tuple[type, Any]] = {"seq2seq": (Seq2SeqShape, Seq2Seq)}
"""Maps the name of a family to (shape class, function of (shape, vocabulary, outputs))."""

FAMILIES: dict[str, dict[str, tuple[type, Any]]] = {
    "image-classification": IMAGE_FAMILIES,
    "text-classification": TEXT_FAMILIES,
    "keyword-spotting": KEYWORD_FAMILIES,
    "detection": DETECTION_FAMILIES,
    "segmentation": SEGMENTATION_FAMILIES,
    "translation": TRANSLATION_FAMILIES,
}
"""The families of each task. Cards of every task may also use the family `import`."""


def make_shapes(card: Card, student: Student) -> list[Shape]:
    """The shapes of `shapes_of`, each checked, the first ones by building their networks.

    A shape whose network cannot be built stays in the list, because the search reports why it is left out. Raises
    ConfigError if no network can be built, and as `shapes_of` does before it builds any.
    """
    shapes = shapes_of(card, student)
    broken: list[UnbuildableError] = []
    for place, shape in enumerate(shapes):
        try:
            if place < MAX_BUILT or len(broken) == place:
                make(card, student, shape, "student.knobs")
            else:
                _check_values(card, student, shape)
        except UnbuildableError as error:
            broken.append(error)
    if len(broken) == len(shapes):
        raise broken[0]
    return shapes


def shapes_of(card: Card, student: Student) -> list[Shape]:
    """Every combination of the knobs of each of the student's families. With several families, each shape names its own
    under the key `family`. Raises ConfigError if there are more than MAX_CANDIDATES."""
    families = student.families or (student,)
    _refuse_many(card, families)
    shapes: list[Shape] = []
    for family in families:
        named = {"family": family.family} if student.families else {}
        values = itertools.product(*family.knobs.values())
        shapes += [named | dict(zip(family.knobs, one, strict=True)) for one in values]
    return shapes


def _check_values(card: Card, student: Student, shape: Shape) -> None:
    """Raise ConfigError if a value of the shape is wrong by itself, without building the network."""
    family, values = student.family_of(shape)
    if family.family in FAMILIES.get(card.task, {}):
        values, _ = _without_resolution(card, values, "student.knobs")
        build(FAMILIES[card.task][family.family][0], values, f"{card.file}: student.knobs")


def _refuse_many(card: Card, families: Sequence[Family]) -> None:
    """Raise ConfigError if there are more than MAX_CANDIDATES shapes."""
    counts = [math.prod(len(values) for values in family.knobs.values()) for family in families]
    if sum(counts) <= MAX_CANDIDATES:
        return
    family = families[counts.index(max(counts))]
    longest = max(family.knobs, key=lambda name: len(family.knobs[name]))
    of = f" of family {shown(family.family)}" if len(families) > 1 else ""
    raise ConfigError(
        f"{card.file}: student.knobs: every combination of values is a candidate, here {sum(counts):,}; at most "
        f"{MAX_CANDIDATES:,} are tried; give fewer values, first of {shown(longest)}{of}, which has "
        f"{len(family.knobs[longest]):,}"
    )


def make(card: Card, owner: Teacher | Student, shape: Shape, where: str) -> nn.Module:
    """A randomly initialised network of that shape for the card's data; its outputs are logits (B, classes).

    Raises ConfigError, with card, key, value and the known names, for an unknown family or a wrong shape. Raises
    ConfigError also for a network that ends in sigmoids.
    """
    family: Teacher | Family = owner
    if isinstance(owner, Student):
        family, shape = owner.family_of(shape)
    net = _imported(card, family, shape, where) if family.family == "import" else _made(card, family, shape, where)
    if family.family in FOREIGN:
        task, example = task_of(card.data), tuple(example_inputs(card.data, 1).shape)
        head = Head(task.outputs(card.data), family.output, f"{card.file}: {where.split('.')[0]}")
        head.axes = len(task.shape(card.data, example))
        add_head(net, head)
    if family.family == "import":
        settle_head(net, Deployed(net, card.data), noise_inputs(card.data, 8))
    return net


def _made(card: Card, owner: Teacher | Family, shape: Shape, where: str) -> nn.Module:
    """A network of a family in FAMILIES."""
    task, families = task_of(card.data), FAMILIES.get(card.task, {})
    if owner.family not in families:
        key = f"{where.split('.')[0]}.family"
        elsewhere = any(owner.family in others for others in FAMILIES.values())
        what = f"{shown(owner.family)} is not for {card.task}" if elsewhere else f"unknown family {shown(owner.family)}"
        raise ConfigError(f"{card.file}: {key}: {what}; {did_you_mean(owner.family, [*families, 'import'])}")
    cls, function = families[owner.family]
    shape, factor = _without_resolution(card, shape, where)
    typed: Any = build(cls, shape, f"{card.file}: {where}")
    try:
        sizes, outputs = task.sizes(card.data), task.outputs(card.data)
        sizes = (sizes[0], sizes[1] // factor) if factor > 1 else sizes
        if owner.family != "timm":  # not all of timm's networks can be built on the meta device
            _refuse_giant(function, typed, *sizes, outputs)
        net: nn.Module = function(typed, *sizes, outputs)
    except UnknownModelError as error:
        raise ConfigError(f"{card.file}: {where}: {one_line(error)}") from error
    except (ValueError, RuntimeError, AssertionError, TypeError, OverflowError) as error:  # also raised by torch
        raise UnbuildableError(f"{card.file}: {where}: {one_line(error)}") from error
    if card.augment.crop:
        _require_crop(card, lambda crop: function(typed, sizes[0], *(crop for _ in sizes[1:]), outputs), where)
    return nn.Sequential(OrderedDict(shrink=nn.AvgPool2d(factor), net=net)) if factor > 1 else net


def _require_crop(card: Card, function: Callable[[int], nn.Module], where: str) -> None:
    """Raise UnbuildableError if `function`, which builds the network for squares of some pixels, refuses the views."""
    try:
        with torch.device("meta"):
            function(card.augment.crop)
    except ValueError as error:
        raise UnbuildableError(f"{card.file}: augment.crop: {where}: {one_line(error)}") from error


def _without_resolution(card: Card, shape: Shape, where: str) -> tuple[Shape, int]:
    """The shape without its key `resolution`, which image families have in addition to their own keys, and the factor
    by which images are made smaller in the network: they are averaged, so the resolution must divide their size.

    Raises ConfigError for a resolution that does not.
    """
    if "resolution" not in shape or card.task != "image-classification":
        return shape, 1
    size, wanted = task_of(card.data).sizes(card.data)[1], shape["resolution"]
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1 or size % wanted:
        raise ConfigError(
            f"{card.file}: {where}: resolution: got {shown(wanted)}; it should divide the images' size, {size}"
        )
    return {key: value for key, value in shape.items() if key != "resolution"}, size // wanted


def _refuse_giant(function: Callable[..., nn.Module], *arguments: Any) -> None:
    """Raise ValueError for a network with more than MAX_PARAMS parameters; they are counted on the meta device."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in function(*arguments).parameters())
    if count > MAX_PARAMS:
        raise ValueError(f"the network has {count:,} parameters; at most {MAX_PARAMS:,} are built; make it smaller")


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function has a parameter of that name, or takes any; also if its parameters are not known."""
    if not argument:
        return False
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions have no signature
        return True
    return argument in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _imported(card: Card, owner: Teacher | Family, shape: Shape, where: str) -> nn.Module:
    if owner.function is None:
        raise ConfigError(f'{card.file}: {where.split(".")[0]}.function: is missing; family = "import" needs it')
    function = import_function(card, owner.function)
    task = task_of(card.data)
    number = {task.argument: task.outputs(card.data)} if takes(function, task.argument) else {}
    try:
        net = function(**shape, **number)
    except Exception as error:  # the user's own code
        raise UnbuildableError(
            f"{card.file}: {where}: {owner.function} cannot be called so: {one_line(error)}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{card.file}: {owner.function} gave a {type(net).__name__}; a torch.nn.Module is needed")
    return net
