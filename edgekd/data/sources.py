"""Sources of images. Each source gives the training part and the test part as a Split."""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.card import Card, Data
from edgekd.console import say
from edgekd.data.arrays import duplicates
from edgekd.data.folders import class_files, part_folder, validation_folder
from edgekd.data.images import (
    BrokenImages,
    Split,
    check_labels,
    decode,
    decode_original,
    decoded_split,
    fit,
    in_memory,
    look,
    origin_of,
    original_of,
    read_file,
)
from edgekd.data.parquet import parquet_files, read_rows, validation_files
from edgekd.data.pixels import is_plain
from edgekd.errors import ConfigError, InputError, did_you_mean, one_line, shown
from edgekd.imports import import_function
from edgekd.tasks.known import task_of

__all__ = [
    "HELD_OUT",
    "balanced_split",
    "data_marks",
    "load_and_examine",
    "load_test",
    "load_train_and_validation",
    "place_of",
    "require_classes",
    "require_test",
    "set_apart",
]

HELD_OUT = 0.2
"""Share of the images that becomes the test part if the data have only one part (digits, an image folder without
`train`)."""


def load_train_and_validation(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation images of the card.

    If the data have no validation part, a share of each class is split off with the card's seed. `folder` is the value
    of `--data`. Raises InputError for anything wrong with the data.
    """
    train, *validation = _all_of(card, folder, _trained_parts(card, folder))
    return _divided(card, train, validation)


def load_and_examine(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation part, as `load_train_and_validation` returns them; also checks the test part.

    The test part is only read, not used, so that errors in its images and labels are reported before training, together
    with the broken images of the other parts. Prints a message if the same images are in several parts.
    """
    train, *validation, test = _all_of(card, folder, [*_trained_parts(card, folder), "test"])
    divided = _divided(card, train, validation)
    if message := duplicates(*divided, test):
        say(f"data: {message}")
    return divided


def _trained_parts(card: Card, folder: Path | None) -> list[str]:
    """`train`, and also `validation` if the data have their own validation part."""
    place = place_of(card, folder)
    if place is None:
        return ["train"]
    own = {"image-folder": validation_folder, "parquet": validation_files}.get(card.data.source, lambda _: None)(place)
    return ["train", "validation"] if own else ["train"]


def _all_of(card: Card, folder: Path | None, parts: Sequence[str]) -> list[Split]:
    """Load these parts; if images are broken, raise one BrokenImages for all parts together."""
    splits, broken = list[Split](), list[str]()
    for part in parts:
        try:
            splits.append(_load(card, folder, part))
        except BrokenImages as error:
            broken += error.problems
    if broken:
        raise BrokenImages(broken)
    return splits


def _divided(card: Card, train: Split, validation: Sequence[Split]) -> tuple[Split, Split]:
    """The training and the validation part; if the data have no validation part, split it off the training part."""
    if not validation:
        return set_apart(card, train)
    require_classes(card, train.labels, 1, "one is needed, or drop the class")
    return train, validation[0]


def set_apart(card: Card, whole: Split) -> tuple[Split, Split]:
    """Split `whole` into a training part and a validation part, which gets the card's share of each class."""
    require_classes(card, whole.labels, 2, "two are needed, one of them to validate on")
    rest, held = balanced_split(whole.labels, card.data.validation_fraction, card.data.validation_seed)
    return whole.subset(rest), whole.subset(held)


def require_classes(card: Card, labels: NDArray[np.int64], least: int, rule: str) -> None:
    """Raise InputError for a class that has fewer than `least` training examples; `rule` ends the message."""
    what = task_of(card.data).unit
    for name, count in zip(card.data.classes, np.bincount(labels, minlength=len(card.data.classes)), strict=True):
        if count < least:
            raise InputError(f"{card.file}: class {shown(name)} has {count or 'no'} training {what}; {rule}")


def require_test(card: Card, folder: Path | None) -> None:
    """Raise InputError if the test part does not exist, so that this is known before training; do not read it."""
    place = place_of(card, folder)
    if card.data.source == "parquet" and place:
        parquet_files(place, "test")
    if card.data.source == "image-folder" and place:
        part_folder(place, "test")


def load_test(card: Card, folder: Path | None) -> Split:
    """The test images of the card. Load them only once, for the final figures."""
    return _load(card, folder, "test")


def data_marks(card: Card, folder: Path | None) -> str:
    """SHA-256 of the names, sizes and modification times of the data's files, without their content; empty for the
    embedded data set `digits`.

    Raises InputError if the data folder is missing.
    """
    place = place_of(card, folder)
    if place is None:
        return ""
    marks = hashlib.sha256()
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.is_file():
            stat = path.stat()
            line = f"{path.relative_to(place)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            marks.update(line.encode(errors="surrogateescape"))
    return marks.hexdigest()


def balanced_split(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices into the rest and a held-out part with `fraction` of each class, at least one; both are sorted."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held.append(members[: max(1, round(len(members) * fraction))])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _load(card: Card, folder: Path | None, part: str) -> Split:
    split = _read(card, folder, part)
    if not card.export.resize:
        split.original = None  # it would keep the encoded images in memory
    return split


def _read(card: Card, folder: Path | None, part: str) -> Split:
    place = place_of(card, folder)
    data = card.data
    if place is None:
        return _digits(part)
    if data.source == "torchvision":
        return _torchvision(data, place, part)
    if data.source == "import":
        return _imported(card, place, part)
    return _parquet(data, place, part) if data.source == "parquet" else _image_folder(data, place, part)


def place_of(card: Card, folder: Path | None) -> Path | None:
    """The folder of the data: `folder` (the value of `--data`), else the card's; None for data that come with
    a package."""
    data = card.data
    if data.source in task_of(data).embedded:
        return None
    if folder is None and not data.path:
        raise InputError(f"{card.file}: data.path: the card names no folder for its data; give one with --data DIR")
    place = folder if folder is not None else card.resolve(data.path)
    if data.source != "import" and data.source != "torchvision" and not place.is_dir():
        raise InputError(f"{place}: no such data folder; give the folder with --data DIR")
    return place


def _one_part(labels: NDArray[np.int64], part: str) -> NDArray[np.int64]:
    rest, held = balanced_split(labels, HELD_OUT, seed=0)
    return held if part == "test" else rest


def _digits(part: str) -> Split:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Pixel values are 0 to 16.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    chosen = _one_part(labels, part)
    return in_memory(images[chosen], labels[chosen])


def _parquet(data: Data, folder: Path, part: str) -> Split:
    """A part from parquet files `PART-*.parquet`, such as those of image data sets on the Hugging Face Hub."""
    files = validation_files(folder) if part == "validation" else parquet_files(folder, part)
    rows = read_rows(files, data)
    return decoded_split(
        check_labels(np.array(rows.labels, dtype=np.int64), data.classes, str(folder)),
        lambda i: decode(rows.content(i), data, rows.names[i]),
        rows.origin,
        data,
        lambda i: look(rows.file(i), data, rows.names[i]),
        f"{part} part in {folder}",
        lambda i: decode_original(rows.content(i), data, rows.names[i]),
    )


def _image_folder(data: Data, folder: Path, part: str) -> Split:
    """A part from a folder with one subfolder per class, below `train`, `test` and `val`, or directly in the folder."""
    root = validation_folder(folder) if part == "validation" else part_folder(folder, part)
    assert root is not None  # _trained_parts names a validation part only if there is one
    files, labels = class_files(root, data.classes)
    every = check_labels(np.array(labels, dtype=np.int64), data.classes, str(root))
    chosen = np.arange(len(every)) if root != folder else _by_name(files, every, part)
    kept = [files[i] for i in chosen]

    return decoded_split(
        every[chosen],
        lambda i: decode(read_file(kept[i]), data, str(kept[i])),
        lambda i: origin_of(kept[i], str(kept[i].relative_to(root))),
        data,
        lambda i: look(kept[i], data, str(kept[i])),
        f"{part} part in {root}",
        lambda i: decode_original(read_file(kept[i]), data, str(kept[i])),
    )


def _by_name(files: list[Path], labels: NDArray[np.int64], part: str) -> NDArray[np.int64]:
    """Choose the images of a part by the hash of their names, so that adding or removing a file does not move other
    files between the parts.

    The test part gets at least one image of each class: the one with the smallest hash.
    """
    hashes = np.array(
        [int.from_bytes(hashlib.sha256(f"{file.parent.name}/{file.name}".encode()).digest()[:6]) for file in files]
    )
    held = hashes < HELD_OUT * 2**48
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held[members[hashes[members].argmin()]] = True
    return np.flatnonzero(held if part == "test" else ~held)


def _torchvision(data: Data, folder: Path, part: str) -> Split:
    import torchvision.datasets

    known = [name for name in torchvision.datasets.__all__ if name[0].isupper()]
    if data.name not in known:
        raise ConfigError(
            f"data.name: torchvision has no data set {shown(data.name)}; {did_you_mean(data.name, known)}"
        )
    cls = getattr(torchvision.datasets, data.name)
    parameters = inspect.signature(cls.__init__).parameters
    which = {"train": part == "train"} if "train" in parameters else {"split": part}
    fetch = {"download": data.download} if "download" in parameters else {}
    try:
        dataset = cls(folder, **which, **fetch)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        hint = "" if data.download else "; set `download = true` in the card's [data] to fetch it"
        raise InputError(f"{folder}: torchvision's {data.name} cannot be read: {one_line(error, 150)}{hint}") from error
    pairs = [dataset[i] for i in range(len(dataset))]
    labels = check_labels(np.array([label for _, label in pairs]), data.classes, str(folder))

    def origin(i: int) -> bytes:
        image = pairs[i][0]
        return f"{image.mode} {image.size}\0".encode() + bytes(image.tobytes())

    return decoded_split(
        labels,
        lambda i: fit(pairs[i][0], data, f"{folder}: image {i}"),
        origin,
        data,
        lambda i: is_plain(pairs[i][0]),
        f"{part} part of {data.name} in {folder}",
        lambda i: original_of(pairs[i][0], data, f"{folder}: image {i}"),
    )


def _imported(card: Card, folder: Path, part: str) -> Split:
    data = card.data
    assert data.function is not None  # checked when the card was read
    given = import_function(card, data.function)(folder, part)
    try:
        images, labels = (np.asarray(one) for one in given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{data.function}: gave a {type(given).__name__}; a pair of images and labels is needed"
        ) from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{data.function}: gave labels {labels.dtype} {labels.shape}; one whole number an image is needed"
        )
    wanted = (len(labels), data.size, data.size, data.channels)
    if images.dtype != np.uint8 or images.shape != wanted:
        raise InputError(
            f"{data.function}: gave images {images.dtype} {images.shape}; uint8 {wanted} (N, H, W, C) is needed"
        )
    return in_memory(images, check_labels(np.asarray(labels), data.classes, data.function))
