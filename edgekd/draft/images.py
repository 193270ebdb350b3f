"""Look at a folder of images: an image folder, or parquet files in the Hugging Face image layout."""

import io
import json
import statistics
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgekd.card import Data
from edgekd.data.folders import class_files, class_names, part_folder, validation_folder
from edgekd.data.images import decode, read_file
from edgekd.data.parquet import parquet_files, read_rows
from edgekd.draft.facts import MAX_CLASSES, DataFacts, Scale
from edgekd.errors import InputError, one_line, shown
from edgekd.units import natural

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "NO_PARTS",
    "look_at_folder",
    "look_at_parquet",
    "measured_scale",
    "pixels_of",
    "seen_channels",
    "some_of",
]

NO_PARTS = "split: a fifth of the images is set apart for the test, and a tenth of the others for validation"
"""The sentence about images with masks or boxes that are in one part."""

SAMPLE = 256
"""This many training images are looked at."""

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label", "class", "target", "category")
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
"""Names of folders that hold a part of a data set, and no class."""


def look_at_folder(folder: Path) -> DataFacts:
    """Facts of a folder with one subfolder per class, below `train` and `test`, or directly in it.

    Raises InputError if it has no such subfolders, or if a class has no images.
    """
    root = part_folder(folder, "train")
    classes = tuple(sorted(class_names(root), key=natural))
    if classes and {name.casefold() for name in classes} <= _PARTS:
        raise InputError(
            f"{root}: holds {', '.join(map(shown, classes))}, which look like parts of a data set and not like "
            "classes; call the part for training 'train', and the other one 'test'"
        )
    if len(classes) < 2:
        raise InputError(
            f"{root}: has {len(classes) or 'no'} subfolder{'s'[: len(classes) != 1]}; it should hold one for each of "
            "at least two classes"
        )
    files, labels = class_files(root, classes)
    tests = len(class_files(part_folder(folder, "test"), classes)[0]) if root != folder else len(files) // 5
    chosen = _spread(labels)
    guesses = [f"source: image-folder, because {root} holds a folder for each of {len(classes)} classes"]
    if root == folder:
        guesses.append("split: there is no folder 'train', so a fifth of the images is set apart for the test")
    elif validation_folder(folder) is None:
        guesses.append("split: a tenth of the training images is set apart for validation")
    return _facts(
        {"source": "image-folder"},
        classes,
        [read_file(files[i]) for i in chosen],
        [labels[i] for i in chosen],
        (len(files) if root != folder else len(files) - tests, tests),
        guesses,
    )


def look_at_parquet(folder: Path) -> DataFacts:
    """Facts of a folder with `train*.parquet` and `test*.parquet`. Raises InputError if they hold no images."""
    files = parquet_files(folder, "train")
    schema = _schema(files[0])
    image = _column(files[0], schema, _IMAGE_COLUMNS, _holds_images, "images")
    label = _column(files[0], schema, _LABEL_COLUMNS, _holds_labels, "labels")
    classes = _classes(files, schema, label)
    columns: dict[str, Any] = {key: name for key, name, usual in _named(image, label) if name != usual}
    data = Data(source="parquet", size=1, classes=classes, mean=(0.0,) * 3, std=(1.0,) * 3, **columns)
    rows = read_rows(files, data)
    chosen = _spread(rows.labels)
    guesses = [f"source: parquet, with the images in column {shown(image)} and the labels in {shown(label)}"]
    tests = sum(_rows_in(file) for file in parquet_files(folder, "test"))
    contents = [rows.content(i) for i in chosen]
    labels = [rows.labels[i] for i in chosen]
    return _facts({"source": "parquet", **columns}, classes, contents, labels, (len(rows.labels), tests), guesses)


def _named(image: str, label: str) -> tuple[tuple[str, str, str], ...]:
    """For each column: the card's key, the column's name, and the name that needs no key."""
    usual = image if image in _IMAGE_COLUMNS else ""
    return ("image_column", image, usual), ("label_column", label, "label")


def _spread(labels: Sequence[int]) -> list[int]:
    """Indices of at most SAMPLE examples, as evenly over the classes as they allow, in rising order."""
    members = [np.flatnonzero(np.array(labels) == label) for label in sorted(set(labels))]
    share = max(1, SAMPLE // len(members))
    some = [one[np.linspace(0, len(one) - 1, min(share, len(one))).astype(int)] for one in members]
    every = np.sort(np.concatenate(some))
    return [int(i) for i in every[np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).astype(int)]]


def _facts(
    keys: dict[str, Any],
    classes: tuple[str, ...],
    sample: list[bytes],
    labels: list[int],
    counts: tuple[int, int],
    guesses: list[str],
) -> DataFacts:
    sides, modes = [], set()
    for number, content in enumerate(sample):
        try:
            with Image.open(io.BytesIO(content)) as image:
                sides.append(min(image.size))
                modes.add(image.mode)
        except Exception as error:  # PIL raises many kinds of exceptions for a file that is no image
            name = shown(classes[labels[number]])
            why = "no known format" if isinstance(error, UnidentifiedImageError) else one_line(error, 100)
            raise InputError(f"an image of class {name} does not decode: {why}") from error
    grey = all(mode[0] in "1LIF" for mode in modes)
    return DataFacts(
        task="image-classification",
        keys=keys,
        classes=classes,
        examples=counts[0],
        tests=counts[1],
        side=round(statistics.median(sides)),
        grey=grey,
        sample=tuple(sample),
        labels=tuple(labels),
        guesses=tuple(guesses),
    )


def pixels_of(facts: DataFacts, size: int, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The sampled images as uint8 (n, size, size, channels), as a card of that size gives them to the network."""
    zero, one = (0.0,) * channels, (1.0,) * channels
    data = Data(
        source="image-folder", size=size, channels=1 if channels == 1 else 3, classes=("a", "b"), mean=zero, std=one
    )
    return np.stack([decode(content, data, "a training image") for content in facts.sample])


def some_of(files: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the files, at equal distances."""
    return [files[i] for i in np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)]


def seen_channels(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], str]:
    """RGB images (n, H, W, 3) as they are, or with one channel if all of them are grey, and the sentence that says
    which."""
    if (pixels == pixels[..., :1]).all():
        return pixels[..., :1], "channels: 1, for the images are grey"
    return pixels, "channels: 3, for the images have colours"


def measured_scale(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Scale:
    """Mean and standard deviation of images (n, H, W, C) per channel, with four decimals."""
    values = pixels.reshape(-1, pixels.shape[-1]) / 255
    mean = tuple(round(float(one), 4) for one in values.mean(axis=0))
    std = tuple(max(0.01, round(float(one), 4)) for one in values.std(axis=0))
    return Scale(words=f"those of {len(pixels)} training images", mean=mean, std=std)


def _schema(file: Path) -> "pyarrow.Schema":
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(file)
    except Exception as error:  # pyarrow raises its own exceptions and Python's for a damaged file
        raise InputError(f"{file}: not a readable parquet file: {one_line(error, 120)}") from error


def _rows_in(file: Path) -> int:
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except Exception as error:
        raise InputError(f"{file}: not a readable parquet file: {one_line(error, 120)}") from error


def _holds_images(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    inside = {one.name for one in kind} if pyarrow.types.is_struct(kind) else set()
    return bool(inside & {"bytes", "path"}) or str(kind) in ("binary", "large_binary", "binary_view")


def _holds_labels(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return bool(pyarrow.types.is_integer(kind)) or str(kind) in ("string", "large_string", "string_view")


def _column(file: Path, schema: "pyarrow.Schema", usual: Sequence[str], fits: Any, what: str) -> str:
    """The column that holds the images or the labels: one of the usual names, or else the only one of a fitting
    type."""
    fitting = [one.name for one in schema if fits(one.type)]
    found = [name for name in usual if name in fitting] or fitting
    if not found or (found[0] not in usual and len(found) > 1):
        names = ", ".join(f"{one.name} ({one.type})" for one in schema)
        raise InputError(
            f"{file}: {'no column' if not found else 'more than one column'} can hold the {what}: {names[:300]}; "
            f"name it {shown(usual[0])}, or write image_column and label_column into a card by hand"
        )
    return found[0]


def _classes(files: Sequence[Path], schema: "pyarrow.Schema", label: str) -> tuple[str, ...]:
    """The class names: those that the `datasets` library wrote into the file, the texts of the column, or numbers."""
    import pyarrow.parquet

    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}") or b"{}")
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
    if names:
        return tuple(str(name) for name in names)
    found: set[Any] = set()
    for file in files:
        found |= set(pyarrow.parquet.read_table(file, columns=[label])[label].unique().to_pylist())
    found.discard(None)
    if len(found) < 2 or len(found) > MAX_CLASSES:
        raise InputError(
            f"{files[0].parent}: column {shown(label)} holds {len(found):,} different values; classes are "
            f"2 to {MAX_CLASSES:,}"
        )
    if all(isinstance(one, int) for one in found):
        if min(found) < 0 or max(found) > MAX_CLASSES:
            raise InputError(
                f"{files[0].parent}: column {shown(label)} goes from {min(found)} to {max(found)}; labels "
                "are whole numbers from 0"
            )
        return tuple(str(number) for number in range(max(found) + 1))
    return tuple(sorted({unicodedata.normalize("NFC", str(one)) for one in found}, key=natural))
