"""Examples for a file of edgekd's own for detection or segmentation, whose metadata say what it takes."""

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.budget import Budget
from edgekd.card import Card, Student, Teacher
from edgekd.data.boxes import letterboxed, load_boxed_test
from edgekd.data.folders import plain_files
from edgekd.data.images import Split, decode, read_file
from edgekd.data.masks import load_masked_test
from edgekd.data.ready import IMAGE_ENDINGS, Ready, model_inputs
from edgekd.draft.boxes import boxes_in
from edgekd.draft.masks import look_at_masks, masks_in, numbers_in
from edgekd.errors import InputError, ModelError
from edgekd.external import metadata_of
from edgekd.recipe import Recipe
from edgekd.spec import build
from edgekd.tasks.detection import BoxData
from edgekd.tasks.segmentation import IGNORED, MASKS_KEY, MaskData
from edgekd.tasks.task import Task

__all__ = ["beyond_classes", "told_examples"]

Data = TypeVar("Data", BoxData, MaskData)


def told_examples(folder: Path, model: onnx.ModelProto, task: Task, most: int) -> Ready:
    """The test part of a folder of images with boxes or masks, or the images of a folder without these, of which the
    answers are not known; up to `most`, as the model takes them.

    Raises ModelError if the metadata of the model do not say its classes, InputError if the data do not fit them, and
    ConfigError for a model whose images or classes no card could have.
    """
    name, shape = _input(model)
    names = class_names(model)
    common = {"channels": shape[2], "classes": names, "mean": (0.0,) * shape[2], "std": (1.0,) * shape[2]}
    split = _boxed(folder, shape, common) if task.writes == "boxes" else _masked(folder, shape, common, model)
    about = f"the images in {folder}"
    if split is None:
        images = _plain(folder, shape, common, most, boxes=task.writes == "boxes")
        return Ready(inputs={name: images}, labels=None, about=about)
    chosen = _some(len(split), most)
    return Ready(inputs={name: split.read(chosen)}, labels=split.labels[chosen], about=about)


def _some(count: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def class_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the classes in the model's metadata. Raises ModelError if there are none."""
    try:
        names = tuple(json.loads(metadata_of(model)["labels"]))
    except (KeyError, ValueError, TypeError):
        names = ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelError("its metadata name no classes (`labels`); give it as edgekd wrote it")
    return names


def beyond_classes(labels: NDArray[Any], task: Task, model: onnx.ModelProto) -> str:
    """Describe labels with a class that the model does not tell; empty if there is none."""
    names = class_names(model)
    numbers = labels[..., 0] if task.writes == "boxes" else labels[labels != IGNORED]
    largest = int(numbers.max(initial=0))
    return f"holds the class {largest}, and the model tells {len(names)} classes" if largest >= len(names) else ""


def _input(model: onnx.ModelProto) -> tuple[str, tuple[int, int, int]]:
    """The name of the only input, and height, width and channels."""
    wanted = model_inputs(model)
    name, kind = next(iter(wanted.items()), ("", None))
    shape = [dim.dim_value for dim in kind.shape.dim] if kind is not None else []
    if (
        len(wanted) != 1
        or kind is None
        or kind.elem_type != onnx.TensorProto.UINT8
        or len(shape) != 4
        or 0 in shape[1:]
    ):
        raise InputError("--data: a folder is for a model that takes uint8 images (batch, H, W, C); give an .npz file")
    return name, (shape[1], shape[2], shape[3])


def _built(kind: type[Data], **values: Any) -> Data:
    """The `[data]` of a card that reads images as the model takes them. Raises ConfigError where no card could."""
    return build(kind, values, "--data: a folder cannot be read as the model takes it, give an .npz file")


def _boxed(folder: Path, shape: tuple[int, int, int], common: dict[str, Any]) -> Split | None:
    source = boxes_in(folder)
    if not source:
        return None
    data = _built(BoxData, source=source, height=shape[0], width=shape[1], **common)
    return load_boxed_test(_card(data, "detection"), folder)


def _masked(folder: Path, shape: tuple[int, int, int], common: dict[str, Any], model: onnx.ModelProto) -> Split | None:
    root = masks_in(folder)
    if root is None:
        return None
    known = _numbers_of(model)
    if not known or not numbers_in(plain_files(root / "masks")) <= {*known[0], *known[1]}:
        known = _numbers_guessed(folder, len(common["classes"]))
    data = _built(MaskData, source="mask-folder", size=shape[0], values=known[0], ignored=known[1], **common)
    return load_masked_test(_card(data, "segmentation"), folder)


def _numbers_of(model: onnx.ModelProto) -> tuple[list[int], list[int]] | None:
    """The numbers in masks that stand for the classes, and those that are not judged, by the model's metadata; None if
    they do not say it, as files of earlier versions do not."""
    try:
        told = json.loads(metadata_of(model)[MASKS_KEY])
        return [int(one) for one in told["values"]], [int(one) for one in told["ignored"]]
    except (KeyError, ValueError, TypeError):
        return None


def _numbers_guessed(folder: Path, told: int) -> tuple[list[int], list[int]]:
    """The same for a model that tells `told` classes, by what the masks hold: as many numbers, in their order."""
    keys = look_at_masks(folder).keys
    values, ignored = keys["values"], keys.get("ignored", [])
    if len(values) == told + 1 and values[-1] == IGNORED:
        values, ignored = values[:-1], [IGNORED]
    elif told > 2 and values[-1] == IGNORED and max(values[:-1]) < told:
        raise InputError(
            f"{folder}: its masks hold {IGNORED}, which may be a class or mark pixels that are not judged; give an "
            ".npz file with the numbers of classes"
        )
    if len(values) != told:
        numbers = ", ".join(map(str, values))
        raise InputError(f"{folder}: its masks hold the numbers {numbers}, and the model tells {told} classes apart")
    return values, ignored


def _card(data: Any, task: str) -> Card:
    """A card that says only what the data are."""
    teacher, student = Teacher(family="self"), Student(family="import")
    return Card(title="", task=task, data=data, teacher=teacher, student=student, recipe=Recipe(epochs=1),
                budgets={"": Budget()})  # fmt: skip


def _plain(
    folder: Path, shape: tuple[int, int, int], common: dict[str, Any], most: int, boxes: bool
) -> NDArray[np.uint8]:
    """Up to `most` of the images below a folder, (n, H, W, C)."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise InputError(f"--data {folder}: holds no images ({', '.join(IMAGE_ENDINGS)})")
    chosen = [files[i] for i in _some(len(files), most)]
    if boxes:
        data = _built(BoxData, source="voc", height=shape[0], width=shape[1], **common)
        return np.stack([letterboxed(read_file(file), data, str(file)) for file in chosen])
    masks = _built(MaskData, source="mask-folder", size=shape[0], **common)
    return np.stack([decode(read_file(file), masks, str(file)) for file in chosen])
