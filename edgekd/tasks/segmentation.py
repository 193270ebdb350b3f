"""Segmentation: a model assigns each pixel of uint8 images (n, H, W, C) to one of several classes."""

import dataclasses
import hashlib
import json
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.augmentation import Augment
from edgekd.card import MAX_SIDE, Classes, Level, caller_rule, require_one_a_channel
from edgekd.ranges import Positive, Seed
from edgekd.scores import ScoreKind
from edgekd.tasks.task import Normalization, Task

__all__ = ["IGNORED", "MASKS_KEY", "SEGMENTATION", "MaskData", "class_maps", "counts", "ious"]

IGNORED = 255
"""The class of pixels that are neither learnt nor judged."""

MASKS_KEY = "masks"
"""The metadata of a file that hold the numbers of its classes in masks, and those that are not judged."""

SHOWN = 6
"""Number of examples whose pictures a report shows."""

Maps = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class MaskData:
    """Where the images and their masks come from, and how they enter the network."""

    source: Literal["mask-folder"]
    """A folder with `images/` and `masks/`, or with such a pair in each of `train/`, `test/` and maybe `val/`. A mask
    has the name of its image, and one number for each pixel: a level of grey, or an index into the palette."""
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    size: Annotated[int, Field(ge=8, le=MAX_SIDE)]
    """Height and width of the network's input and of the class maps, in pixels."""
    resize: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """The shorter side is resized to this before the centre is cut out; default `size`."""
    channels: Literal[1, 3] = 3
    background: tuple[Level, Level, Level] = (0, 0, 0)
    """The colour (red, green, blue) onto which transparent images are composed."""
    skip_broken: bool = False
    """Whether images that cannot be decoded are left out. Otherwise the command stops before anything is trained."""
    classes: Classes
    """Class names in the order of their numbers in class maps."""
    values: tuple[Level, ...] = ()
    """The number in the masks that stands for each class; by default 0, 1, 2 and so on."""
    ignored: tuple[Level, ...] = ()
    """Numbers in the masks that are neither learnt nor judged, such as 255 for borders."""
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    """Per channel, on the scale 0–1."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training images that is used for validation, if there is no `val/`. Every choice is made by
    validation data."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "MaskData":
        require_one_a_channel(self.mean, self.std, self.channels)
        if len(self.classes) > IGNORED:
            raise ValueError(f"classes: at most {IGNORED}, got {len(self.classes)}")
        if self.values and len(self.values) != len(self.classes):
            raise ValueError(f"values: must give one number for each of {len(self.classes)} classes")
        known = [*self.numbers, *self.ignored]
        twice = next((one for place, one in enumerate(known) if one in known[:place]), None)
        if twice is not None:
            raise ValueError(f"values, ignored: must name each number once, got {twice} twice")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number in the masks that stands for each class."""
        return self.values or tuple(range(len(self.classes)))

    def preprocessing(self) -> dict[str, Any]:
        """The settings that determine the pixels of a view, apart from the data, for the cache of teacher outputs."""
        values = dataclasses.asdict(self)
        for key in ("skip_broken", "values", "ignored"):  # these choose the data, whose digest is in the key
            del values[key]
        return values


def class_maps(outputs: NDArray[Any]) -> Maps:
    """Class maps (n, H, W) of logits (n, C, H, W); class maps are returned as they are."""
    return outputs.astype(np.uint8) if outputs.ndim == 3 else outputs.argmax(axis=1).astype(np.uint8)


def counts(answers: Maps, truth: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Count the pixels of each example that are judged: (n, C, C), by true class (row) and answer (column).

    Answers and truth are (n, H, W); pixels whose truth is IGNORED do not count.
    """
    found = np.empty((len(truth), classes, classes), np.int64)
    for place, (answer, true) in enumerate(zip(answers, truth, strict=True)):
        judged = true != IGNORED
        cells = true[judged].astype(np.int64) * classes + answer[judged]
        found[place] = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return found


def ious(matrix: NDArray[np.int64]) -> list[float | None]:
    """Return TP / (TP + FP + FN) of each class, from a matrix (C, C) of pixels by true class and answer; None for a
    class that neither occurs nor is answered."""
    hits = matrix.diagonal()
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    return [float(hit / whole) if whole else None for hit, whole in zip(hits, union, strict=True)]


def _number(outputs: NDArray[Any], truth: NDArray[Any]) -> int:
    """The number of classes: of logits as they are, of class maps the largest class among answers and truth."""
    if outputs.ndim == 4:
        return int(outputs.shape[1])
    judged = truth[truth != IGNORED]
    return 1 + max(int(outputs.max(initial=0)), int(judged.max(initial=0)))


def _matrices(outputs: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.int64]:
    return counts(class_maps(outputs), truth, _number(outputs, truth))


def _scores(outputs: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    """All scores by name, over the pixels of all examples together, as the PASCAL VOC challenge does (Everingham et al.
    2015, section 4.3)."""
    matrix = _matrices(outputs, truth).sum(axis=0)
    known = [share for share in ious(matrix) if share is not None]
    accuracy = float(matrix.trace() / max(1, matrix.sum()))
    return {"miou": float(np.mean(known)), "worst_iou": min(known), "pixel_accuracy": accuracy}


def _each(outputs: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """One figure (n,) of each example, whose mean is the mean IoU over all examples together.

    An IoU is a ratio R = ΣI / ΣU of sums over examples. R + (Iᵢ − R Uᵢ) / mean(U) is its linearization, as for any
    ratio estimator (Cochran 1977, section 6.4): these figures have the mean R, and the spread of their mean is that of
    R when examples are drawn anew.
    """
    matrices = _matrices(outputs, truth).astype(np.float64)
    hits = matrices.diagonal(axis1=1, axis2=2)
    unions = matrices.sum(axis=1) + matrices.sum(axis=2) - hits
    known = unions.sum(axis=0) > 0
    hits, unions = hits[:, known], unions[:, known]
    ratio = hits.sum(axis=0) / unions.sum(axis=0)
    return np.asarray((ratio + (hits - ratio * unions) / unions.mean(axis=0)).mean(axis=1))


def _same(outputs: NDArray[Any], others: NDArray[Any]) -> float:
    return float((class_maps(outputs) == class_maps(others)).mean())


def _answers(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """A digest of each class map, which is equal exactly if the map is."""
    maps = np.ascontiguousarray(class_maps(outputs))
    return np.array([int.from_bytes(hashlib.sha256(one.data).digest()[:7]) for one in maps], np.int64)


def _targets_problem(targets: NDArray[Any]) -> str:
    if targets.ndim == 3 and targets.dtype.kind in "iu" and len(targets):
        low, high = int(targets.min()), int(targets.max())
        if not 0 <= low <= high <= IGNORED:
            return f"class maps hold numbers from {low} to {high}, beyond 0 to 255"
        judged = np.unique(targets[targets != IGNORED]).tolist()
        found = f"only class {judged[0]}" if judged else "no class"
        needs = f"at least two are needed ({IGNORED} is not judged; classes are numbered 0, 1, 2 and so on)"
        return "" if len(judged) > 1 else f"class maps hold {found}; {needs}"
    return f"labels should be one class map (height, width) for each input, got {targets.dtype} {list(targets.shape)}"


def _fit_problem(outputs: NDArray[Any], targets: NDArray[Any], model: str) -> str:
    maps = outputs.shape[1:] if outputs.ndim == 3 else outputs.shape[2:]
    if maps != targets.shape[1:]:
        return f"class maps are {list(targets.shape[1:])}, and {model} gives {list(maps)}"
    return ""


def _details(outputs: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    return {"iou": ious(_matrices(outputs, truth).sum(axis=0))}


def _pictured(outputs: NDArray[Any], truth: NDArray[Any], inputs: NDArray[Any]) -> dict[str, Any]:
    """Some examples, evenly spread: images (k, H, W, C), true and given class maps (k, H, W), and the examples' own
    mean IoU (k,)."""
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).astype(np.int64))
    matrices = _matrices(outputs[chosen], truth[chosen])
    own = [float(np.mean([share for share in ious(one) if share is not None] or [0.0])) for one in matrices]
    maps = class_maps(outputs[chosen])
    return {"examples": chosen.tolist(), "images": inputs[chosen], "truth": truth[chosen], "maps": maps, "miou": own}


def _problem(data: MaskData, augment: Augment) -> str:
    if augment.crop > data.size:
        return f"augment.crop: got {augment.crop}; it should be at most data.size, {data.size}"
    return ""


def _example(data: MaskData, count: int) -> NDArray[np.uint8]:
    return np.zeros((count, data.size, data.size, data.channels), dtype=np.uint8)


def _describe(data: MaskData) -> dict[str, str]:
    normalization = {"mean": data.mean, "std": data.std, "scale": "pixel / 255", "in_graph": True}
    side, color = data.size, "RGB" if data.channels == 3 else "grey"
    given = f"float32 (batch, {len(data.classes)}, {side}, {side})"
    return {
        "labels": json.dumps(data.classes),
        MASKS_KEY: json.dumps({"values": data.numbers, "ignored": data.ignored}),
        "normalization": json.dumps(normalization),
        "input": f"uint8 (batch, {side}, {side}, {data.channels}), {color}",
        "output": f"{given}; the class of a pixel is the place of the largest number along axis 1",
        "resize": caller_rule({"data": dataclasses.asdict(data)}),
    }


SEGMENTATION = Task(
    name="segmentation",
    unit="image",
    units="images",
    data=MaskData,
    augment=frozenset({"flip", "turn", "crop", "scale", "brightness"}),
    problem=_problem,
    input="image",
    free={0: "batch"},
    calibration="static",
    outputs=lambda data: len(data.classes),
    argument="classes",
    grid=lambda inputs: tuple(inputs[1:3]),
    together=16,
    writes="classes",
    targets=lambda data: f"{len(data.classes)} classes of data",
    example=_example,
    takes=lambda data: f"images of {data.size}×{data.size} pixels",
    sizes=lambda data: (data.channels, data.size),
    normalization=lambda data: Normalization(mean=data.mean, std=data.std, top=255, channels_last=True),
    describe=_describe,
    calls=lambda inputs: [inputs],
    read=lambda raw: class_maps(raw) if raw.ndim in (3, 4) else raw,
    targets_problem=_targets_problem,
    fit_problem=_fit_problem,
    scores=(
        ScoreKind(name="miou", words="mean IoU", short="mIoU", tolerance=1.0),
        ScoreKind(name="worst_iou", words="IoU of the worst class", short="worst IoU"),
        ScoreKind(name="pixel_accuracy", words="pixel accuracy", brief=False),
    ),
    score=_scores,
    truth=class_maps,
    each=_each,
    paired="bootstrap",
    answers=_answers,
    same=_same,
    same_words="same class of a pixel",
    details=_details,
    pictured=_pictured,
    charts=("maps",),
)
