"""Detection: a model finds objects in uint8 images (n, H, W, C), each with a box, a class and a score."""

import dataclasses
import json
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.augmentation import Augment
from edgekd.bench.worker import FIRST, KEPT, LOWEST, OVERLAP, WorkerError, detections
from edgekd.card import MAX_SIDE, Level, caller_rule, composed_names, require_one_a_channel
from edgekd.errors import ModelError
from edgekd.ranges import Positive, Seed
from edgekd.scores import ScoreKind
from edgekd.tasks.boxes import THRESHOLDS, average_precision, influence, matches, overlaps
from edgekd.tasks.task import ANY, Normalization, Task

__all__ = ["DETECTION", "SURE", "BoxData", "found_in", "mean_precision", "precisions"]

SHOWN = 6
"""Number of examples whose pictures a report shows."""

MOST_CLASSES = 10_000
"""Labels hold at most so many classes."""

SURE = 0.3
"""The score from which on a picture shows a detection, and two models' answers are compared."""

GridSide = Annotated[int, Field(ge=32, le=MAX_SIDE, multiple_of=4)]


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("should name each class once")
    return names


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class BoxData:
    """Where the images and their boxes come from, and how they enter the network."""

    source: Literal["voc", "coco"]
    """voc: `JPEGImages/`, `Annotations/` (Pascal VOC XML) and `ImageSets/Main/PART.txt`. coco: `annotations/` with a
    JSON file for each part, or `PART/_annotations.coco.json` beside its images."""
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    height: GridSide
    width: GridSide
    """Height and width of the network's input in pixels. Images are scaled to fit inside, and grey fills the rest."""
    channels: Literal[1, 3] = 3
    background: tuple[Level, Level, Level] = (0, 0, 0)
    """The colour (red, green, blue) onto which transparent images are composed."""
    skip_broken: bool = False
    """Whether images that cannot be decoded are left out. Otherwise the command stops before anything is trained."""
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(composed_names), AfterValidator(_each_once)]
    """Names of the classes of objects, in the order of their numbers in answers."""
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    """Per channel, on the scale 0–1."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)]
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training images that is used for validation, if the data have no validation part. Every choice is
    made by validation data."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "BoxData":
        require_one_a_channel(self.mean, self.std, self.channels)
        return self

    @property
    def size(self) -> int:
        """The longer side of the network's input."""
        return max(self.height, self.width)

    @property
    def resize(self) -> None:
        """No other length is asked of the shorter side, because images are never cut."""
        return None

    def preprocessing(self) -> dict[str, Any]:
        """The settings that determine the pixels of a view, apart from the data, for the cache of teacher outputs."""
        values = dataclasses.asdict(self)
        del values["skip_broken"]  # it chooses the data, whose digest is in the key
        return values


def found_in(outputs: NDArray[Any]) -> NDArray[np.float32]:
    """The detections (n, KEPT, 6) of outputs (n, 4 + C, L); detections are returned as they are.

    Raises ModelError for outputs that hold no boxes and scores, or that are not finite.
    """
    try:
        kept: NDArray[np.float32] = detections(outputs, len(outputs), "the output")
    except WorkerError as error:
        told = str(error)
        raise ModelError(told if told.startswith("the output") else f"the model {told}") from error
    return kept


def precisions(outputs: NDArray[Any], truth: NDArray[Any]) -> list[NDArray[np.float64] | None]:
    """The average precision (10,) of each class at each of THRESHOLDS; None for a class without judged boxes."""
    found = found_in(outputs)
    each = {number: average_precision(matches(found, truth, number)) for number in _judged(truth)}
    return [each.get(number) for number in range(_classes(truth))]


def mean_precision(outputs: NDArray[Any], truth: NDArray[Any]) -> float:
    """mAP50: the mean over classes of the average precision at an intersection over union of 0.5."""
    found = found_in(outputs)
    each = [average_precision(matches(found, truth, number, THRESHOLDS[:1])) for number in _judged(truth)]
    return float(np.mean([one[0] for one in each if one is not None]))


def _classes(truth: NDArray[Any]) -> int:
    return 1 + int(truth[..., 0].max(initial=0))


def _judged(truth: NDArray[Any]) -> list[int]:
    """The classes that have judged boxes."""
    return [int(one) for one in np.unique(truth[..., 0][(truth[..., 0] >= 0) & (truth[..., 5] == 0)])]


def _scores(outputs: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    known = np.stack([one for one in precisions(outputs, truth) if one is not None])
    first = known[:, 0]
    return {"map50": float(first.mean()), "map": float(known.mean()), "worst_ap50": float(first.min())}


def _each(outputs: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """One figure (n,) of each image, whose mean is mAP50 over all images together: the pseudo-values of the
    infinitesimal jackknife, see `influence`."""
    found = found_in(outputs)
    values, changes = [], []
    for number in _judged(truth):
        own = matches(found, truth, number, THRESHOLDS[:1])
        precision = average_precision(own)
        if precision is not None:
            values.append(precision[0])
            changes.append(influence(own))
    return np.asarray(np.mean(values) + len(truth) * np.mean(changes, axis=0))


def _same(outputs: NDArray[Any], others: NDArray[Any]) -> float:
    """The share of the detections with a score of at least SURE, of both models, for which the other model has one of
    the same class, at least half the score, and an intersection over union of at least 0.5."""
    pairs = list(zip(found_in(outputs), found_in(others), strict=True))
    shares = [_confirmed(*pair) for pair in [*pairs, *(pair[::-1] for pair in pairs)]]
    confirmed, asked = (sum(column) for column in zip(*shares, strict=True))
    return confirmed / asked if asked else 1.0


def _confirmed(found: NDArray[Any], other: NDArray[Any]) -> tuple[int, int]:
    """How many detections of an image are confirmed by those of another model, and how many there are."""
    sure = found[(found[:, 5] >= 0) & (found[:, 4] >= SURE)]
    other = other[other[:, 5] >= 0]
    alike = (overlaps(sure, other) >= 0.5) & (sure[:, None, 5] == other[None, :, 5])
    alike &= other[None, :, 4] >= 0.5 * sure[:, None, 4]
    return int(alike.any(axis=1).sum()), len(sure)


def _truth(outputs: NDArray[Any]) -> NDArray[np.float32]:
    """The detections with a score of at least SURE as true boxes (n, KEPT, 6)."""
    found = found_in(outputs)
    used = (found[..., 5] >= 0) & (found[..., 4] >= SURE)
    labels = np.where(used, found[..., 5], -1)[..., None]
    return np.concatenate([labels, found[..., :4], np.zeros_like(labels)], axis=2).astype(np.float32)


def _targets_problem(targets: NDArray[Any]) -> str:
    if targets.ndim != 3 or targets.shape[2] != 6 or targets.dtype.kind not in "fiu" or not targets.size:
        return (
            "labels should be boxes (images, boxes, 6) of class, x1, y1, x2, y2 and 0 or 1 for a box that is not "
            f"judged, got {targets.dtype} {list(targets.shape)}"
        )
    labels, used = targets[..., 0], targets[..., 0] >= 0
    if not np.isfinite(targets).all():
        return "some numbers are not finite; boxes are given by class, corners and whether they are not judged"
    if (labels != np.floor(labels)).any() or labels.min() < -1 or labels.max() >= MOST_CLASSES:
        wrong = labels[(labels != np.floor(labels)) | (labels < -1) | (labels >= MOST_CLASSES)][0]
        return f"a class is a whole number from 0 to {MOST_CLASSES - 1:,}, and −1 stands for no box; got {wrong:g}"
    if not np.isin(targets[used][:, 5], (0, 1)).all():
        return "the last number of some boxes is neither 0 nor 1, which stands for a box that is not judged"
    if not (used & (targets[..., 5] == 0)).any():
        return "no image has a box that is judged; a class is 0 or more, and −1 stands for no box"
    if (targets[used][:, 3:5] <= targets[used][:, 1:3]).any():
        return "some boxes have no area; their corners should be x1 < x2 and y1 < y2"
    return ""


def _fit_problem(outputs: NDArray[Any], targets: NDArray[Any], model: str) -> str:
    return ""


def _details(outputs: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    each = precisions(outputs, truth)
    return {
        "ap50": [None if one is None else float(one[0]) for one in each],
        "ap": [None if one is None else float(one.mean()) for one in each],
    }


def _pictured(outputs: NDArray[Any], truth: NDArray[Any], inputs: NDArray[Any]) -> dict[str, Any]:
    """Some examples, evenly spread: images (k, H, W, C), true boxes (k, M, 6), detections (k, K, 6) of which those with
    a lower score than SURE are unused, and the number of hits of each."""
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).astype(np.int64))
    found = found_in(outputs[chosen])
    found[found[..., 4] < SURE, 5] = -1
    hits = np.zeros(len(chosen), np.int64)
    for number in _judged(truth[chosen]):
        own = matches(found, truth[chosen], number, THRESHOLDS[:1])
        hits += np.bincount(own.image, own.hit[0] == 1, minlength=len(chosen)).astype(np.int64)
    return {
        "examples": chosen.tolist(),
        "images": inputs[chosen],
        "truth": truth[chosen],
        "found": found,
        "hits": hits.tolist(),
    }


def _problem(data: BoxData, augment: Augment) -> str:
    if augment.crop > min(data.height, data.width):
        return f"augment.crop: got {augment.crop}; it should be at most {min(data.height, data.width)}, as data has it"
    return ""


def _example(data: BoxData, count: int) -> NDArray[np.uint8]:
    return np.zeros((count, data.height, data.width, data.channels), dtype=np.uint8)


def _describe(data: BoxData) -> dict[str, str]:
    normalization = {"mean": data.mean, "std": data.std, "scale": "pixel / 255", "in_graph": True}
    color = "RGB" if data.channels == 3 else "grey"
    suppression = {"lowest_score": LOWEST, "overlap": OVERLAP, "first": FIRST, "kept": KEPT}
    return {
        "labels": json.dumps(data.classes),
        "normalization": json.dumps(normalization),
        "input": f"uint8 (batch, {data.height}, {data.width}, {data.channels}), {color}",
        "output": f"float32 (batch, {4 + len(data.classes)}, places): x1, y1, x2, y2 in pixels of the input, and a "
        "score from 0 to 1 for each class; non-maximum suppression is left to the caller",
        "suppression": json.dumps(suppression),
        "resize": caller_rule({"data": dataclasses.asdict(data)}),
    }


DETECTION = Task(
    name="detection",
    unit="image",
    units="images",
    data=BoxData,
    augment=frozenset({"flip", "turn", "crop", "scale", "brightness"}),
    problem=_problem,
    input="image",
    output="boxes",
    output_words="boxes and scores",
    free={0: "batch"},
    calibration="static",
    outputs=lambda data: 4 + len(data.classes),
    argument="outputs",
    grid=lambda inputs: (ANY,),
    together=16,
    writes="boxes",
    targets=lambda data: f"the corners of boxes and {len(data.classes)} classes of data",
    example=_example,
    takes=lambda data: f"images of {data.height}×{data.width} pixels",
    sizes=lambda data: (data.channels, data.height, data.width),
    normalization=lambda data: Normalization(mean=data.mean, std=data.std, top=255, channels_last=True),
    describe=_describe,
    calls=lambda inputs: [inputs],
    read=found_in,
    targets_problem=_targets_problem,
    fit_problem=_fit_problem,
    scores=(
        ScoreKind(name="map50", words="mAP50", tolerance=1.0),
        ScoreKind(name="map", words="mAP50-95"),
        ScoreKind(name="worst_ap50", words="AP50 of the worst class", short="worst AP50"),
    ),
    score=_scores,
    truth=_truth,
    each=_each,
    paired="bootstrap",
    same=_same,
    same_words="same detections",
    details=_details,
    pictured=_pictured,
    charts=("boxes",),
)
