"""Folders of images or clips: the parts of a data set, their class folders, and the files in them."""

import hashlib
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from edgekd.errors import InputError, did_you_mean, shown

__all__ = [
    "VALIDATION_NAMES",
    "class_files",
    "class_names",
    "divided_by_name",
    "part_folder",
    "plain_files",
    "validation_folder",
]

Item = TypeVar("Item")

VALIDATION_NAMES = ("validation", "val", "valid")
"""Possible names of a folder with validation images."""

_LITTER = ("__macosx", "thumbs.db", "desktop.ini")
"""Files that macOS and Windows create in folders, apart from names that begin with a dot."""


def divided_by_name(
    items: Sequence[Item], names: Sequence[str], share: float, purpose: str
) -> tuple[list[Item], list[Item]]:
    """Divide items by the hash of their names: those that stay, and those that are held out for this purpose.

    Held out are the items whose hash is in the first `share` of all hashes, and at least one. So adding or removing a
    file does not move other files between the parts.
    """
    places = [int.from_bytes(hashlib.sha256(f"{purpose}/{name}".encode()).digest()[:6]) / 2**48 for name in names]
    first = min(range(len(items)), key=places.__getitem__)
    held = [place < share for place in places]
    held[first] = held[first] or not any(held)
    both = list(zip(items, held, strict=True))
    return [item for item, out in both if not out], [item for item, out in both if out]


def part_folder(folder: Path, part: str) -> Path:
    """The folder of a part, which has one subfolder per class; the data folder itself if it has no `train`.

    If there is no folder `test`, the validation folder is the test part.
    """
    if not (folder / "train").is_dir():
        return folder
    names = ("train",) if part == "train" else ("test", *VALIDATION_NAMES)
    root = next((folder / name for name in names if (folder / name).is_dir()), None)
    if root is None:
        raise InputError(f"{folder}: has a folder 'train' but neither 'test' nor 'val'")
    return root


def validation_folder(folder: Path) -> Path | None:
    """The folder of the validation images, if there is one beside both `train` and `test`; else None."""
    if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
        return None
    return next((folder / name for name in VALIDATION_NAMES if (folder / name).is_dir()), None)


def class_names(root: Path) -> list[str]:
    """The names of the folders in `root` in Unicode NFC, without hidden ones, as a card's `classes` must name them."""
    return sorted({_composed(path.name) for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name)})


def class_files(
    root: Path, classes: Sequence[str], what: str = "images", ignored: Collection[str] = ()
) -> tuple[list[Path], list[int]]:
    """The files of all classes below `root`, ordered by class and then by name, and their labels.

    `what` is the word for the files in messages, and `ignored` names folders that are no classes. Raises InputError for
    any other folder that is not a class of the card, and for a class without files.
    """
    names = (path.name for path in root.iterdir() if path.is_dir() and path.name not in ignored)
    found = sorted(name for name in names if not _is_hidden(name))
    if not found:
        raise InputError(
            f"{root}: holds no folders; it should hold one for each class, such as {shown(classes[0])}, or "
            "'train' and 'test' with those inside (--data, or data.path in the card, names it)"
        )
    for name in found:
        if _composed(name) not in classes:
            raise InputError(f"{root / name}: is no class of the card; {did_you_mean(name, classes)}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(file for one in found if _composed(one) == name for file in plain_files(root / one))
        if not inside:
            raise InputError(f"{root / name}: the card's class {shown(name)} has no {what} there")
        files += inside
        labels += [label] * len(inside)
    return files, labels


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LITTER


def plain_files(top: Path) -> Iterator[Path]:
    """Every file below `top` that is not hidden. Links to folders are followed, but no folder is entered twice.

    Folders are entered before links to folders, so that a link does not change the path under which a file is found.
    """
    entered = {_identity(folder) for folder in (top, *top.parents, *top.resolve().parents)}
    folders, links = [top], list[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        if here != top and _identity(here) in entered:
            continue
        entered.add(_identity(here))
        for entry in sorted(here.iterdir()):
            if _is_hidden(entry.name):
                continue
            if entry.is_file():
                yield entry
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
