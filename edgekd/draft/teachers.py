"""Look at a teacher: an ONNX file, a weights file, a network that torchvision or timm publishes, or a function."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd.draft.facts import DataFacts, Scale, TeacherFacts
from edgekd.draft.weights import family_of
from edgekd.errors import ConfigError, InputError, one_line, shown
from edgekd.external import metadata_of
from edgekd.nets.detect import strides_of
from edgekd.tasks.known import TASKS

__all__ = ["look_at_teacher", "own_teacher"]

IMAGENET = Scale(words="ImageNet's", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


Sides = tuple[int | None, int | None]

_SEQ2SEQ = "a teacher for translation is of the family seq2seq; give its weights, of which edgekd teach trains some"
_FEATURES = "window_ms, hop_ms, mels, low_hz, high_hz, mean and std should be those of the teacher's training"


def look_at_teacher(given: str, data: DataFacts, beside: Path) -> TeacherFacts:
    """Facts of the teacher `given` as `--teacher`: a file, `torchvision:NAME`, `timm:NAME` or `module:function`.

    `beside` is the folder of the card, to which the paths in it are relative. Raises EdgekdError for a teacher that
    cannot be used with these data.
    """
    library, _, name = given.partition(":")
    if library in ("torchvision", "timm") and name:
        if data.task != "image-classification":
            raise ConfigError(f"--teacher {given}: is a network that classifies images; the data are for {data.task}")
        return _from_torchvision(name, given) if library == "torchvision" else _from_timm(name, given)
    path = Path(given)
    if not path.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", given):
        if data.task == "translation":
            raise ConfigError(f"--teacher {given}: {_SEQ2SEQ}")
        guess = f"teacher: {given} is called with the number of classes, and trained, for it comes without weights"
        return TeacherFacts(keys={"family": "import", "function": given}, trained=False, guesses=(guess,))
    if not path.is_file():
        raise InputError(
            f"--teacher {given}: no such file; give an ONNX or weights file, torchvision:NAME, timm:NAME or "
            "module:function"
        )
    inside = os.path.relpath(path, beside)
    return _from_onnx(path, inside, data) if path.suffix == ".onnx" else _from_weights(path, inside, data)


def own_teacher(data: DataFacts) -> TeacherFacts:
    """A teacher to train, for data that come without one: the largest network that trains in minutes to an hour."""
    if data.proposal is not None:
        keys: dict[str, Any] = dict(data.proposal.teacher)
    elif data.task == "text-classification":
        keys = {"family": "lstm", "shape": {"embedding": 64, "hidden": 64}}
    elif data.side <= 16:
        keys = {"family": "convnet", "shape": {"channels": [64, 128], "hidden": 128}}
    elif data.side <= 64:
        keys = {"family": "cifar-resnet", "shape": {"depth": 20, "width": 32}}
    else:
        return _from_torchvision("resnet18", "torchvision:resnet18")
    guess = f"teacher: none is given, so a network of the family {keys['family']} is trained; --teacher names yours"
    return TeacherFacts(keys=keys, trained=False, guesses=(guess,))


def _from_torchvision(name: str, given: str) -> TeacherFacts:
    import torch
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        from edgekd.errors import did_you_mean

        near = did_you_mean(name, known).partition("Known:")[0].strip() or "see torchvision's documentation"
        raise ConfigError(f"--teacher {given}: torchvision has no classification network {shown(name)}; {near}")
    published = torchvision.models.get_model_weights(name).DEFAULT
    here = Path(torch.hub.get_dir(), "checkpoints", str(published.url).rpartition("/")[2]).is_file()
    size = int(published.transforms().crop_size[0]) if name.startswith(("vit_", "maxvit_", "swin")) else None
    return _published("torchvision", name, here, size, IMAGENET)


def _from_timm(name: str, given: str) -> TeacherFacts:
    from edgekd.imports import require

    timm = require("timm", "timm", f"--teacher {given}")
    if name.partition(".")[0] not in timm.list_models():
        raise ConfigError(f"--teacher {given}: timm has no network {shown(name)}; timm.list_models() names them")
    about = timm.get_pretrained_cfg(name)
    size = int(about.input_size[-1]) if about is not None and about.fixed_input_size else None
    scale = Scale(words="the published weights'", mean=tuple(about.mean), std=tuple(about.std)) if about else IMAGENET
    return _published("timm", name, _timm_is_here(about), size, scale)


def _timm_is_here(about: Any) -> bool:
    """Whether the published weights are already on this machine; nothing is fetched."""
    import huggingface_hub

    if about is None or not about.hf_hub_id:
        return False
    try:
        huggingface_hub.hf_hub_download(
            about.hf_hub_id, about.hf_hub_filename or "model.safetensors", local_files_only=True
        )
    except Exception:  # huggingface_hub's exceptions have no common base
        return False
    return True


def _published(family: str, name: str, here: bool, size: int | None, scale: Scale) -> TeacherFacts:
    keys: dict[str, Any] = {"family": family, "shape": {"model": name}}
    if here:
        keys["weights"] = "pretrained"
    guess = (
        f"teacher: {family}'s {name} starts from its published weights, which are on this machine, with a new head"
        if here
        else f"teacher: {family}'s {name} is trained from nothing, because its published weights are not on this "
        'machine; weights = "pretrained" and download = true in [teacher] fetch them'
    )
    return TeacherFacts(keys=keys, trained=False, size=size, channels=3, scale=scale, guesses=(guess,))


def _from_weights(path: Path, inside: str, data: DataFacts) -> TeacherFacts:
    """Facts of a weights file, whose names and sizes show the family. Raises InputError if they show none."""
    from edgekd.nets.weights import read_state

    found = family_of(read_state(path), path)
    if found.task != data.task:
        raise InputError(
            f"--teacher {path}: holds a network of the family {found.family}, which is for {TASKS[found.task].units}; "
            f"the data are {TASKS[data.task].units}"
        )
    if data.classes and found.outputs not in (None, len(data.classes)):
        raise InputError(
            f"--teacher {path}: has {found.outputs} outputs, and the data {len(data.classes)} classes; name a teacher "
            "of these classes, or write a card with [teacher.training], which gives it a new head"
        )
    named = {"vocabulary": found.vocabulary} if found.vocabulary else {}
    told = ", ".join(f"{key} {value}" for key, value in found.shape.items())
    guesses = [f"teacher: the names and sizes in {path} are those of {found.family}" + (f" ({told})" if told else "")]
    if data.task in ("segmentation", "detection") and found.channels:
        named["channels"] = found.channels
        guesses.append(f"channels: {found.channels}, which the teacher takes")
    if data.task == "keyword-spotting":
        guesses.append(f"features: {_FEATURES}")
    return TeacherFacts(
        keys={"family": found.family, "shape": found.shape, "weights": inside},
        trained=True,
        size=found.size,
        channels=found.channels,
        data=named,
        options=found.options,
        guesses=tuple(guesses),
    )


def _from_onnx(path: Path, inside: str, data: DataFacts) -> TeacherFacts:
    import onnx

    model = _opened(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    shapes = [tuple(dim.dim_value or None for dim in one.type.tensor_type.shape.dim) for one in inputs]
    kinds = [one.type.tensor_type.elem_type for one in inputs]
    told = "; ".join(
        f"{one.name} {onnx.TensorProto.DataType.Name(kind).lower()} {list(shape)}"
        for one, kind, shape in zip(inputs, kinds, shapes, strict=True)
    )
    metadata = metadata_of(model)
    keys: dict[str, Any] = {"family": "onnx", "weights": inside}
    labels = _labels_in(metadata)
    if data.task == "translation":
        raise InputError(f"--teacher {path}: {_SEQ2SEQ}")
    _check_outputs(model, path, data)
    if data.task == "keyword-spotting":
        return _sound_input(path, keys, labels, inputs, told, data)
    if data.task == "text-classification":
        if len(inputs) != 1 or len(shapes[0]) != 2:
            raise InputError(f"--teacher {path}: takes {told}; one input of token ids (batch, length) is needed")
        guess = f"teacher: {path} takes {told}, so it is run as it is"
        return TeacherFacts(keys=keys, trained=True, labels=labels, guesses=(guess,))
    height, width, channels = _image_input(path, kinds, shapes, told, onnx.TensorProto)
    if data.task == "detection":
        known = list(labels) if sorted(labels) == sorted(data.classes) else []
        found = TeacherFacts(keys=keys, trained=True, channels=channels, data={"classes": known} if known else {})
        return _box_teacher(model, found, told, data, (height, width), path)
    if height and width and height != width:
        raise InputError(f"--teacher {path}: takes {told}; square images are needed")
    size = height or width
    guess = f"teacher: {path} takes {told}, so size = {size or 'any'}, channels = {channels or 'any'}"
    named = {key: value for key, value in (("size", size), ("channels", channels)) if value}
    return TeacherFacts(
        keys=keys, trained=True, size=size, channels=channels, labels=labels, data=named, guesses=(guess,)
    )


def _opened(path: Path) -> Any:
    """The ONNX model in a file, without its weights. Raises InputError if it cannot be read."""
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # onnx and protobuf raise several exceptions for a damaged file
        raise InputError(f"--teacher {path}: onnx cannot read it: {one_line(error, 120)}") from error


def _sound_input(
    path: Path, keys: dict[str, Any], labels: tuple[str, ...], inputs: list[Any], told: str, data: DataFacts
) -> TeacherFacts:
    """Facts of a model that takes samples of sound, or features. Raises InputError for another kind of input."""
    import onnx

    kinds = [(one.type.tensor_type.elem_type, len(one.type.tensor_type.shape.dim)) for one in inputs]
    types = onnx.TensorProto
    if kinds == [(types.FLOAT, 4)]:
        guess = f"teacher: {path} takes {told}, which are features; {_FEATURES}"
        return TeacherFacts(keys=keys, trained=True, labels=labels, guesses=(guess,))
    if kinds not in ([(types.INT16, 2)], [(types.FLOAT, 2)]):
        raise InputError(
            f"--teacher {path}: takes {told}; one input of samples, int16 or float (batch, samples), or of features, "
            "float (batch, 1, bins, frames), is needed"
        )
    count = inputs[0].type.tensor_type.shape.dim[1].dim_value
    named: dict[str, Any] = {"input": "int16" if kinds[0][0] == types.INT16 else "float32"}
    if count:
        named["seconds"] = round(count / data.keys["rate"], 6)
    guess = f"teacher: {path} takes {told}, so it is run on the samples, and no features are masked"
    return TeacherFacts(keys=keys, trained=True, labels=labels, data=named, masks=False, guesses=(guess,))


def _image_input(
    path: Path, kinds: list[int], shapes: list[tuple[int | None, ...]], told: str, types: Any
) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels of the one input, each None where any will do. Raises InputError for another kind of
    input."""
    if len(shapes) != 1 or len(shapes[0]) != 4 or kinds[0] not in (types.FLOAT, types.UINT8):
        raise InputError(f"--teacher {path}: takes {told}; one input, uint8 NHWC or float NCHW, is needed")
    last = kinds[0] == types.UINT8
    _, first, second, third = shapes[0]
    height, width, channels = (first, second, third) if last else (second, third, first)
    if channels not in (None, 1, 3):
        raise InputError(
            f"--teacher {path}: takes {told}; images of 1 or 3 channels are needed, "
            f"{'uint8 (batch, height, width, channels)' if last else 'float (batch, channels, height, width)'}"
        )
    return height, width, channels


def _box_teacher(model: Any, found: TeacherFacts, told: str, data: DataFacts, size: Sides, path: Path) -> TeacherFacts:
    """Facts of a detector that takes images of this height and width, each None where any will do."""
    sides = dict(zip(("height", "width", "channels"), (*size, found.channels), strict=True))
    named = {key: value for key, value in sides.items() if value}
    so = ", ".join(f"{key} = {value or 'any'}" for key, value in sides.items())
    guesses = [f"teacher: {path} takes {told}, so {so}"]
    if "classes" in found.data:
        guesses.append(f"classes: in the order in which {path} names them")
    strides = _grids(model, path, data, size)
    return replace(found, data=named | dict(found.data), strides=strides, guesses=tuple(guesses))


def _grids(model: Any, path: Path, data: DataFacts, size: Sides) -> tuple[int, ...]:
    """The strides of the grids of a detector, by the number of its places; empty if the file leaves it open.

    Raises InputError for places that are no grids, because a student learns place by place.
    """
    height, width = size
    count = next((one[2] for one in _outputs(model) if len(one) == 3 and one[1] in (None, 4 + len(data.classes))), None)
    if not (count and height and width):
        return ()
    try:
        return strides_of(count, (height, width))
    except ValueError as error:
        raise InputError(f"--teacher {path}: {error}; a student learns from it place by place") from error


def _outputs(model: Any) -> list[list[int | None]]:
    """The shapes of all outputs, with None for an axis that the file leaves open."""
    return [[dim.dim_value or None for dim in one.type.tensor_type.shape.dim] for one in model.graph.output]


_FURTHER = {"segmentation": (0, 4, ", height, width"), "detection": (4, 3, ", places")}
"""What outputs of these tasks have beside (batch, classes): values of a box, the number of axes, and their names."""


def _check_outputs(model: Any, path: Path, data: DataFacts) -> None:
    """Raise InputError if the outputs say a number of classes that is not that of the data."""
    sizes = _outputs(model)
    more, axes, rest = _FURTHER.get(data.task, (0, 2, ""))
    wanted = more + len(data.classes)
    fitting = [shape[1] for shape in sizes if len(shape) == axes]
    if sizes and (not fitting or None not in fitting) and wanted not in fitting:
        own = f"{more} + {len(data.classes)}" if more else str(wanted)
        raise InputError(
            f"--teacher {path}: gives outputs of shape {' and '.join(map(str, sizes))}; the data have "
            f"{len(data.classes)} classes, so (batch, {own}{rest}) is needed"
        )


def _labels_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names that edgekd writes under the metadata key `labels`, as JSON."""
    try:
        found = json.loads(metadata.get("labels", "[]"))
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
