"""Reads parquet files with a column of images (`image: {bytes, path}`, bytes or paths) and a column of labels."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.card import Data
from edgekd.data.images import origin_of, read_file
from edgekd.errors import InputError, cut, did_you_mean, one_line, shown

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Rows", "parquet_files", "read_rows", "validation_files"]

VALIDATION_NAMES = ("validation", "val", "valid", "dev")
"""Possible first parts of the names of files with validation images."""


@dataclass(frozen=True)
class Rows:
    """The rows of one or several files: images, their names in messages, and labels."""

    images: list[bytes | Path | None] = field(default_factory=list)
    """For each row, the encoded image, the path of an image file, or None if the row has neither."""
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def file(self, i: int) -> bytes | Path:
        """The encoded image of row i, or the path of its file; InputError for a row that is null or has no file."""
        image = self.images[i]
        if image is None:
            raise InputError(f"{self.names[i]}: the image is null; put the image's file into it or remove the row")
        if isinstance(image, Path) and not image.is_file():
            raise InputError(
                f"{self.names[i]}: there is no image file {image}; paths start at the parquet file's folder"
            )
        return image

    def content(self, i: int) -> bytes:
        """The encoded image of row i; InputError as for `file`, or if its file cannot be read."""
        image = self.file(i)
        return read_file(image) if isinstance(image, Path) else image

    def origin(self, i: int) -> bytes:
        """Identifies the image of row i: its bytes, or its file's name, size and time of change."""
        image = self.file(i)
        return image if isinstance(image, bytes) else origin_of(image)


def parquet_files(folder: Path, part: str) -> list[Path]:
    """The files `PART*.parquet` in the folder or in its subfolder `data`; InputError if there are none.

    If there are no test files, the files of a validation part are the test part.
    """
    files = sorted(folder.glob(f"{part}*.parquet")) or sorted(folder.glob(f"data/{part}*.parquet"))
    files = files or (_validation(folder) if part == "test" else [])
    if not files:
        raise InputError(f"{folder}: holds no {part}*.parquet file")
    return files


def validation_files(folder: Path) -> list[Path]:
    """The files of the validation part, `validation-*.parquet`, `val-*`, `valid-*` or `dev-*`; an empty list if they
    are the test part."""
    tests = [*folder.glob("test*.parquet"), *folder.glob("data/test*.parquet")]
    return _validation(folder) if tests else []


def _validation(folder: Path) -> list[Path]:
    for place in (folder, folder / "data"):
        for name in VALIDATION_NAMES:
            pattern = re.compile(rf"{name}([-_.].*)?\.parquet")
            if files := sorted(file for file in place.glob("*.parquet") if pattern.fullmatch(file.name)):
                return files
    return []


def read_rows(files: Sequence[Path], data: Data) -> Rows:
    """The rows of all files in their order. For a wrong label, an InputError names file and row."""
    rows = Rows()
    for file in files:
        table, image = _read(file, data)
        images = _images(file, table, image)
        rows.images.extend(images)
        rows.labels.extend(_labels(file, table, data.label_column or "label", data.classes))
        rows.names.extend(f"{file} row {row}" for row in range(len(images)))
    return rows


def _read(file: Path, data: Data) -> "tuple[pyarrow.Table, str]":
    """A table with the columns of images and labels, and the name of the image column; other columns are ignored."""
    import pyarrow.parquet

    if not file.is_file():
        raise InputError(f"{file}: not a readable parquet file: it is no file")
    candidates = [data.image_column] if data.image_column else ["image", "img"]
    label = data.label_column or "label"
    try:
        with file.open("rb") as opened:  # pyarrow only takes paths that are UTF-8
            parquet = pyarrow.parquet.ParquetFile(opened)
            names = list(parquet.schema_arrow.names)
            image = next((name for name in candidates if names.count(name) == 1), "")
            table = parquet.read([image, label]) if image and names.count(label) == 1 else None
    except Exception as error:  # pyarrow raises its own exceptions and Python's for a damaged file
        raise InputError(f"{file}: not a readable parquet file: {one_line(error, 120)}") from error
    if table is None:
        raise InputError(
            f"{file}: has columns {cut(', '.join(names) or 'none', 200)}; {shown(candidates[0])} and {shown(label)} "
            "are needed; image_column and label_column in the card's [data] name others"
        )
    return table, image


def _images(file: Path, table: "pyarrow.Table", name: str) -> list[bytes | Path | None]:
    """For each row, the encoded image if it has one, else the path of its image file, else None. Paths are relative to
    the folder of the parquet file."""
    import pyarrow

    kind = table.schema.field(name).type
    parts = {one.name: one.type for one in kind} if pyarrow.types.is_struct(kind) else {"": kind}
    contents = {key: _is_bytes(one) for key, one in parts.items() if key in ("", "bytes")}
    paths = {key: _is_text(one) for key, one in parts.items() if key in ("", "path")}
    if not any(contents.values()) and not (any(paths.values()) and "bytes" not in contents):
        raise InputError(
            f"{file}: {name} is {cut(str(kind), 100)}; bytes of type binary, a path of type string, or a struct with "
            "'bytes' or 'path' is needed"
        )
    nothing = [None] * len(table)
    inside = {True: nothing, False: nothing}
    for is_path, found in ((False, contents), (True, paths)):
        key = next((key for key, fits in found.items() if fits), None)
        if key is not None:
            inside[is_path] = _values(file, table[name], name, key)
    return [
        content if content is not None else file.parent / path if path else None
        for content, path in zip(inside[False], inside[True], strict=True)
    ]


def _is_bytes(kind: "pyarrow.DataType") -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view", "null")


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view", "null")


def _labels(file: Path, table: "pyarrow.Table", name: str, classes: Sequence[str]) -> list[int]:
    """The labels as class indices from 0. In the file, a label is a whole number, a class name, or a number as text."""
    import pyarrow

    kind = table.schema.field(name).type
    known: dict[Any, int] = {place: place for place in range(len(classes))}
    rule = f"the card names {len(classes)} classes, so labels go from 0 to {len(classes) - 1}"
    if text := _is_text(kind):
        known = {str(place): place for place in known} | {one: place for place, one in enumerate(classes)}
    elif not pyarrow.types.is_integer(kind):
        raise InputError(f"{file}: {name} is {cut(str(kind), 60)}; whole numbers or class names are needed")
    values = _values(file, table[name], name)
    if text:
        values = [None if value is None else unicodedata.normalize("NFC", value) for value in values]
    wrong = [row for row, value in enumerate(values) if value not in known]
    if wrong:
        value = values[wrong[0]]
        if text and value is not None:
            rule = f"it is no class of the card; {did_you_mean(value, classes)}"
        more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        is_ = "null" if value is None else shown(value)
        raise InputError(f"{file} row {wrong[0]}: {name} is {is_}; {rule}{more}")
    return [known[value] for value in values]


def _values(file: Path, column: "pyarrow.ChunkedArray", name: str, inside: str = "") -> list[Any]:
    import pyarrow.compute

    try:
        values: list[Any] = (pyarrow.compute.struct_field(column, inside) if inside else column).to_pylist()
    except Exception as error:  # pyarrow raises several exceptions for inconsistent values
        raise InputError(f"{file}: {name} cannot be read: {one_line(error, 120)}") from error
    return values
