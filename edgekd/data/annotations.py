"""Reads which objects are in which images: Pascal VOC XML and COCO JSON."""

import json
import math
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.data.folders import VALIDATION_NAMES, plain_files
from edgekd.errors import InputError, did_you_mean, one_line, shown

__all__ = [
    "Annotated",
    "Object",
    "coco_names",
    "coco_part",
    "coco_parts",
    "voc_classes",
    "voc_names",
    "voc_part",
    "voc_parts",
]

PARTS = {"train": ("train", "trainval"), "validation": VALIDATION_NAMES, "test": ("test",)}
"""The names that stand for each part in names of files and folders."""

_COCO = "_annotations.coco.json"

_NO_BOXES = ("captions_", "image_info_", "panoptic_", "stuff_")
"""How the names of those files of COCO begin that hold no boxes."""


@dataclass(frozen=True)
class Object:
    """An object in an image: its class and its corners in pixels of the image."""

    label: int
    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2."""
    aside: bool = False
    """Whether it is not judged: `difficult` in Pascal VOC, `iscrowd` in COCO."""


@dataclass(frozen=True)
class Annotated:
    """An image and its objects."""

    image: Path
    file: Path
    """The file that names the objects."""
    objects: tuple[Object, ...]
    where: str = ""
    """What the messages name: the file, and the image if the file is about several."""


def voc_parts(place: Path) -> dict[str, list[str]]:
    """The names of the images of each part, as the lists in `ImageSets/Main` give them; empty without lists.

    Without `train.txt`, the training images are those of `trainval.txt` that the validation list does not name.
    """
    lists = place / "ImageSets" / "Main"
    found: dict[str, list[str]] = {}
    for part, names in PARTS.items():
        file = next((lists / f"{name}.txt" for name in names if (lists / f"{name}.txt").is_file()), None)
        if file is not None:
            found[part] = [line.split()[0] for line in _text(file).splitlines() if line.strip()]
            if not found[part]:
                raise InputError(f"{file}: names no images")
    if "train" in found and not (lists / "train.txt").is_file():
        held = set(found.get("validation", ()))
        found["train"] = [name for name in found["train"] if name not in held]
        if not found["train"]:
            raise InputError(f"{lists / 'trainval.txt'}: names no images besides those of the validation list")
    return found


def voc_part(place: Path, names: Sequence[str], classes: Sequence[str]) -> list[Annotated]:
    """The images of these names with the objects of `Annotations/NAME.xml`, which are of these classes.

    Raises InputError, which names the file, for a missing or broken file and for an object of another class.
    """
    images = {file.stem: file for file in _files(place / "JPEGImages")}
    return [_voc(place, name, images, classes) for name in names]


def voc_classes(place: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes of all objects in `Annotations/NAME.xml`, in the order of the alphabet."""
    found = set[str]()
    for name in names:
        root = _tree(place / "Annotations" / f"{name}.xml")
        found |= {_plain(one.findtext("name") or "") for one in root.findall("object")}
    return tuple(sorted(found))


def voc_names(place: Path) -> list[str]:
    """The names of all images that have annotations. Raises InputError for an image without any, and the reverse."""
    images = {file.stem: file for file in _files(place / "JPEGImages")}
    told = {file.stem: file for file in _files(place / "Annotations") if file.suffix.lower() == ".xml"}
    if lone := next((file for stem, file in images.items() if stem not in told), None):
        raise InputError(f"{lone}: has no annotation; {place / 'Annotations'} should hold {shown(lone.stem + '.xml')}")
    if lone := next((file for stem, file in told.items() if stem not in images), None):
        raise InputError(f"{lone}: has no image; {place / 'JPEGImages'} should hold one named {shown(lone.stem)}")
    return sorted(told)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder.parent}: has no folder {folder.name!r}; Pascal VOC has JPEGImages/ and Annotations/")
    return list(plain_files(folder))


def _voc(place: Path, name: str, images: Mapping[str, Path], classes: Sequence[str]) -> Annotated:
    file = place / "Annotations" / f"{name}.xml"
    if name not in images:
        raise InputError(f"{place / 'JPEGImages'}: has no image {shown(name)}, which ImageSets/Main names")
    if not file.is_file():
        raise InputError(f"{images[name]}: has no annotation; {file.parent} should hold {shown(file.name)}")
    root = _tree(file)
    objects = tuple(_voc_object(one, file, number, classes) for number, one in enumerate(root.findall("object"), 1))
    return Annotated(images[name], file, objects, str(file))


def _tree(file: Path) -> Any:
    try:
        root = ElementTree.fromstring(_text(file))
    except ElementTree.ParseError as error:
        raise InputError(f"{file}: is no valid XML: {one_line(error)}") from error
    if root.tag != "annotation":  # any other file would be an image without objects
        raise InputError(f"{file}: its first element should be annotation, got {shown(root.tag)}")
    return root


def _voc_object(one: Any, file: Path, number: int, classes: Sequence[str]) -> Object:
    label = _label(one.findtext("name") or "", classes, f"{file}: object {number}")
    try:
        corners = [float(one.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
    except (TypeError, ValueError):
        raise InputError(f"{file}: object {number}: bndbox should give xmin, ymin, xmax and ymax as numbers") from None
    return Object(label, _finite(corners, f"{file}: object {number}"), one.findtext("difficult", "0").strip() == "1")


def coco_parts(place: Path) -> dict[str, Path]:
    """The JSON file of each part; empty if there is none."""
    found = {}
    for part, names in PARTS.items():
        beside = (place / name / _COCO for name in names)
        named = (
            file
            for name in names
            for file in _with_boxes(place / "annotations")
            if name in file.stem.replace("-", "_").split("_") or file.stem.rstrip("0123456789").endswith(f"_{name}")
        )
        file = next((file for file in (*beside, *named) if file.is_file()), None)
        if file is not None:
            found[part] = file
    return found


def _with_boxes(folder: Path) -> list[Path]:
    """The JSON files of a folder that may hold boxes: `instances_….json` before others, such as those of key points."""
    files = (file for file in folder.glob("*.json") if not file.name.startswith(_NO_BOXES))
    return sorted(files, key=lambda file: (not file.name.startswith("instances"), file.name))


def coco_part(file: Path, place: Path, classes: Sequence[str]) -> list[Annotated]:
    """The images that a COCO file names, in the order of their names, with their objects, which are of these classes.

    Raises InputError, which names the file, for a broken file, a missing image and an object of another class.
    """
    told = _json(file)
    labels = {key: str(one.get("name", "")) for key, one in _by_id(told, "categories", file).items()}
    images = _by_id(told, "images", file)
    objects: dict[int, list[Object]] = {key: [] for key in images}
    for number, one in enumerate(_list(told, "annotations", file), 1):
        where = f"{file}: annotation {shown(str(one.get('id', number)))}"
        image, category = _whole(one, "image_id", where), _whole(one, "category_id", where)
        if image not in images:
            raise InputError(f"{where}: is for an image that the file does not name")
        if category not in labels:
            raise InputError(f"{where}: has a category that the file does not name")
        objects[image].append(_coco_object(one, labels[category], classes, where))
    found = [
        Annotated(path := _coco_image(one, file, place), file, tuple(objects[key]), f"{file}: {path.name}")
        for key, one in images.items()
    ]
    return sorted(found, key=lambda one: one.image)


def coco_names(file: Path) -> list[str]:
    """The names of the categories that the objects of a COCO file have, in the order of the file."""
    told = _json(file)
    used = {_whole(one, "category_id", f"{file}: annotations") for one in _list(told, "annotations", file)}
    named = _by_id(told, "categories", file)
    return [_plain(str(one.get("name", ""))) for key, one in named.items() if key in used]


def _by_id(told: Mapping[str, Any], key: str, file: Path) -> dict[int, Mapping[str, Any]]:
    """The objects of a list of a COCO file by their numbers. Raises InputError if a number is missing or used twice."""
    found: dict[int, Mapping[str, Any]] = {}
    for place, one in enumerate(_list(told, key, file), 1):
        number = _whole(one, "id", f"{file}: {key}: entry {place}")
        if number in found:
            raise InputError(f"{file}: {key}: entry {place} has the id {shown(number)} of an entry before it")
        found[number] = one
    return found


def _whole(one: Mapping[str, Any], key: str, where: str) -> int:
    number = one.get(key)
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{where}: {key} should be a whole number, got {shown(number)}")
    return number


def _coco_object(one: Mapping[str, Any], name: str, classes: Sequence[str], where: str) -> Object:
    label, box = _label(name, classes, where), one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise InputError(f"{where}: bbox should be [x, y, width, height]")
    crowd = one.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"{where}: iscrowd should be 0 or 1, got {shown(crowd)}")
    try:
        x, y, width, height = map(float, box)
    except OverflowError:
        raise InputError(f"{where}: a number of bbox is too large") from None
    return Object(label, _finite((x, y, x + width, y + height), where), bool(crowd))


def _coco_image(one: Mapping[str, Any], file: Path, place: Path) -> Path:
    """The path of an image: beside the file, in `images/`, or in a folder of the part's name, such as `train2017/`."""
    name = str(one.get("file_name", ""))
    inside = Path(name)
    if not name or inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{file}: names the image {shown(name)}; a name below the folder of the data is needed")
    folders = [file.parent, place / "images", place, place / file.stem.rpartition("_")[2]]
    try:
        found = next((folder / inside for folder in folders if (folder / inside).is_file()), None)
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{file}: names the image {shown(name)}, which cannot be read: {error.strerror}") from error
    if found is None:
        raise InputError(f"{file}: names the image {shown(name)}, which is not there; it may be in {place / 'images'}")
    return found


def _label(name: str, classes: Sequence[str], where: str) -> int:
    name = _plain(name)
    if name not in classes:
        raise InputError(f"{where}: is of class {shown(name)}, which is not in the card; {did_you_mean(name, classes)}")
    return list(classes).index(name)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _finite(corners: Sequence[float], where: str) -> tuple[float, float, float, float]:
    if not all(map(math.isfinite, corners)):
        raise InputError(f"{where}: a corner of the box is not finite")
    x1, y1, x2, y2 = map(float, corners)
    return x1, y1, x2, y2


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no text in UTF-8") from error


def _json(file: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is no valid JSON: {one_line(error)}") from error
    if not isinstance(told, dict):
        raise InputError(f"{file}: should be a JSON object with images, annotations and categories")
    return told


def _list(told: Mapping[str, Any], key: str, file: Path) -> Iterator[Mapping[str, Any]]:
    values = told.get(key)
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise InputError(f"{file}: {key} should be a list of objects")
    return iter(values)
