"""Arrays of .npy and .npz files, checked before they take memory: a header may promise more than its file holds."""

import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["extract", "map_array", "names_in"]

KINDS = "biufcUS"
"""Kinds of numpy's dtypes that a model may take: truth values, numbers, texts."""


def names_in(archive: Path) -> set[str]:
    """Names of the arrays in an .npz archive; ValueError for what is none."""
    try:
        with zipfile.ZipFile(archive) as members:
            return {name.removesuffix(".npy") for name in members.namelist() if not name.endswith("/")}
    except Exception as error:  # zipfile lets through whatever a damaged directory leads to
        raise ValueError(f"it cannot be unpacked: {error or type(error).__name__}") from error


def extract(archive: Path, name: str, file: Path) -> NDArray[Any]:
    """The array `name` of an .npz archive, unpacked to `file` and mapped into memory.

    Raises ValueError for what is not there, damaged, encrypted or no such array.
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
    except Exception as error:  # zipfile lets through what the decompressors raise, and RuntimeError for encryption
        raise ValueError(f"{name!r} cannot be unpacked: {error or type(error).__name__}") from error
    try:
        return map_array(file)
    except ValueError as error:
        raise ValueError(f"{name!r} {error}") from error


def map_array(file: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped into memory; ValueError if it is none, cut off, or holds Python objects."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # numpy evaluates the header as a Python literal, which raises whatever it leads to
        raise ValueError(f"is no whole array of numbers: {error or type(error).__name__}") from error
    if array.dtype.kind not in KINDS or not array.dtype.isnative:
        raise ValueError(f"has the dtype {array.dtype}; numbers in this machine's byte order are needed")
    return array
