"""Read arrays from .npy and .npz files; check each one before it takes memory, because a header may be wrong about the
size.
"""

import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["extract", "map_array", "names_in", "save_arrays"]

KINDS = "biufcUS"
"""Kinds of NumPy dtypes that a model may take: booleans, numbers and texts."""


def names_in(archive: Path) -> set[str]:
    """Return the names of the arrays in an .npz archive. Raises ValueError if the file is not such an archive."""
    try:
        with zipfile.ZipFile(archive) as members:
            return {name.removesuffix(".npy") for name in members.namelist() if not name.endswith("/")}
    except Exception as error:  # zipfile may raise any exception for a damaged directory
        raise ValueError(f"it cannot be unpacked: {error or type(error).__name__}") from error


def extract(archive: Path, name: str, file: Path) -> NDArray[Any]:
    """Unpack the array `name` of an .npz archive to `file` and map it into memory.

    Raises ValueError if the array is missing, damaged, encrypted or not an array of numbers or texts.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            held = members.namelist()
            member = next((one for one in (f"{name}.npy", name) if one in held), None)
            if member is None:
                raise ValueError(f"{name!r} is not in it")
            with members.open(member) as packed, file.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # zipfile passes on the decompressors' exceptions, and raises RuntimeError for encryption
        raise ValueError(f"{name!r} cannot be unpacked: {error or type(error).__name__}") from error
    try:
        return map_array(file)
    except ValueError as error:
        raise ValueError(f"{name!r} {error}") from error


def map_array(file: Path) -> NDArray[Any]:
    """Map the array of an .npy file into memory. Raises ValueError if it is no array, is cut off or holds Python
    objects.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns about headers that Python 2 wrote
            array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # NumPy evaluates the header as a Python literal, which may raise any exception
        raise ValueError(f"is no whole array of numbers: {error or type(error).__name__}") from error
    if array.dtype.kind not in KINDS or not array.dtype.isnative:
        raise ValueError(f"has the dtype {array.dtype}; numbers in this machine's byte order are needed")
    return array


def save_arrays(archive: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an uncompressed .npz archive. Unlike `np.savez`, it takes arrays of every name, such as `file`."""
    with zipfile.ZipFile(archive, "w") as members:
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
