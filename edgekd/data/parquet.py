"""Images in parquet files of the Hugging Face layout: `image: {bytes, path}`, `label`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import InputError, cut, one_line

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Rows", "parquet_files", "read_rows"]


@dataclass(frozen=True)
class Rows:
    """Encoded images, what messages call them, and their labels."""

    contents: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def parquet_files(folder: Path, part: str) -> list[Path]:
    """The files `PART*.parquet` of the folder or of its `data`; InputError if there is none."""
    files = sorted(folder.glob(f"{part}*.parquet")) or sorted(folder.glob(f"data/{part}*.parquet"))
    if not files:
        raise InputError(f"{folder}: holds no {part}*.parquet file")
    return files


def read_rows(files: Sequence[Path], classes: Sequence[str]) -> Rows:
    """The rows of all files, in their order; InputError names file and row of what is wrong."""
    rows = Rows()
    for file in files:
        table = _read(file)
        contents, labels = _contents(file, table), _labels(file, table, len(classes))
        rows.contents.extend(contents)
        rows.labels.extend(labels)
        rows.names.extend(f"{file} row {row}" for row in range(len(contents)))
    return rows


def _read(file: Path) -> "pyarrow.Table":
    """The columns of images and labels; the other columns may hold anything."""
    import pyarrow.parquet

    if not file.is_file():
        raise InputError(f"{file}: not a readable parquet file: it is no file")
    try:
        with file.open("rb") as opened:  # a name need not be UTF-8, which pyarrow asks of paths
            parquet = pyarrow.parquet.ParquetFile(opened)
            names = list(parquet.schema_arrow.names)
            image = _image_column(names)
            table = parquet.read([image, "label"]) if image and names.count("label") == 1 else None
    except Exception as error:  # pyarrow raises its own exceptions and Python's for a damaged file
        raise InputError(f"{file}: not a readable parquet file: {one_line(error, 120)}") from error
    if table is None:
        found = cut(", ".join(names) or "none", 200)
        raise InputError(f"{file}: has columns {found}; 'image' and 'label' are needed")
    return table


def _image_column(names: Sequence[str]) -> str:
    return next((name for name in ("image", "img") if names.count(name) == 1), "")


def _contents(file: Path, table: "pyarrow.Table") -> list[bytes]:
    import pyarrow

    name = _image_column(table.column_names)
    kind = table.schema.field(name).type
    inner = [str(one.type) for one in kind if one.name == "bytes"] if pyarrow.types.is_struct(kind) else []
    if inner not in (["binary"], ["large_binary"]):
        raise InputError(f"{file}: {name} is {cut(str(kind), 100)}; a struct with 'bytes' of type binary is needed")
    values = _values(file, table[name], name, "bytes")
    for row, content in enumerate(values):
        if content is None:
            raise InputError(f"{file} row {row}: {name} holds no bytes; put the image's file into it or remove the row")
    return values


def _labels(file: Path, table: "pyarrow.Table", classes: int) -> list[int]:
    import pyarrow

    kind = table.schema.field("label").type
    if not pyarrow.types.is_integer(kind):
        raise InputError(f"{file}: label is {cut(str(kind), 60)}; whole numbers are needed")
    values = _values(file, table["label"], "label")
    for row, label in enumerate(values):
        if label is None or not 0 <= label < classes:
            raise InputError(
                f"{file} row {row}: label is {'null' if label is None else label}; the card names {classes} classes, "
                f"so labels go from 0 to {classes - 1}"
            )
    return values


def _values(file: Path, column: "pyarrow.ChunkedArray", name: str, inside: str = "") -> list[Any]:
    import pyarrow.compute

    try:
        values: list[Any] = (pyarrow.compute.struct_field(column, inside) if inside else column).to_pylist()
    except Exception as error:  # of values that do not fit together
        raise InputError(f"{file}: {name} cannot be read: {one_line(error, 120)}") from error
    return values
