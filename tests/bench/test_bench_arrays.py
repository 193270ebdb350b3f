"""Arrays of .npy and .npz files: what is damaged or promises more than it holds is one line, and takes no memory."""

import io
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekd.bench.arrays import extract, map_array, save_arrays


def npy(header: str, content: bytes = bytes(64)) -> bytes:
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def saved(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def archive(path: Path, member: bytes, name: str = "inputs.npy", packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as members:
        members.writestr(name, member)
    return path


def problem(path: Path) -> str:
    with pytest.raises(ValueError, match=r"^'inputs' .+") as caught:
        extract(path, "inputs", path.with_name("unpacked.npy"))
    return str(caught.value)


@pytest.mark.parametrize("name", ["inputs", "inputs.npy"])
def test_an_array_is_unpacked_whatever_its_member_is_called(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.npz", saved([[1.5, 2.0]]), name)
    array = extract(path, "inputs", tmp_path / "b.npy")
    assert array.tolist() == [[1.5, 2.0]]
    assert np.load(tmp_path / "b.npy").tolist() == [[1.5, 2.0]]


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (b"", "is no whole array of numbers: EOF"),
        (b"abc", "is no whole array of numbers: EOF"),
        (b"no array at all", "is no whole array of numbers: the magic string is not correct"),
        (saved([1, 2, 3])[:-1], "is no whole array of numbers: mmap length is greater than file size"),
        (
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}"),
            "is no whole array of numbers: mmap length is greater than file size",
        ),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "is no whole array of numbers: "),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}"), "is no whole array of numbers"),
        (npy("{'descr': '<f8', 'fortran_order': False}"), "is no whole array of numbers: Header does not contain"),
        (npy("((((((((((((((("), "is no whole array of numbers: "),
        (saved([{"not": "numbers"}]), "is no whole array of numbers: "),
        (saved(np.zeros(2, [("a", "f4")])), "has the dtype [('a', '<f4')]; numbers in this machine's byte order"),
        (saved(np.zeros(2, ">f4")), "has the dtype >f4; numbers in this machine's byte order are needed"),
        (saved(np.zeros(2, "M8[s]")), "has the dtype datetime64[s]; numbers in this machine's byte order are needed"),
    ],
)
def test_a_member_that_is_no_array_of_numbers(tmp_path: Path, member: bytes, said: str) -> None:
    assert problem(archive(tmp_path / "a.npz", member)).startswith(f"'inputs' {said}")


def test_an_archive_that_cannot_be_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", saved(np.arange(100)))
    assert problem(archive(tmp_path / "b.npz", b"", "labels.npy")) == "'inputs' is not in it"
    whole, start = path.read_bytes(), path.read_bytes().rindex(b"PK\x01\x02")
    for place, value, said in (
        (start + 8, 1, "cannot be unpacked: File 'inputs.npy' is encrypted, password required for extraction"),
        (start + 10, 99, "cannot be unpacked: That compression method is not supported"),
        (30 + len("inputs.npy"), 0xFF, "cannot be unpacked: Error -3 while decompressing data: invalid block type"),
    ):
        damaged = bytearray(whole)
        damaged[place] = value
        path.write_bytes(damaged)
        assert problem(path) == f"'inputs' {said}"
    end = whole.rindex(b"PK\x05\x06")
    several_disks = whole[:end] + b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + whole[end:]
    path.write_bytes(several_disks)
    assert problem(path).startswith("'inputs' cannot be unpacked: zipfiles that span multiple disks")
    path.write_bytes(whole[: len(whole) // 2])
    assert problem(path) == "'inputs' cannot be unpacked: File is not a zip file"


def test_a_damaged_file_is_taken_or_refused(tmp_path: Path) -> None:
    whole, draw, path = saved(np.arange(12).reshape(3, 4)), random.Random(0), tmp_path / "a.npy"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(bytes(damaged[: draw.choice([None, None, draw.randrange(len(damaged))])]))
        try:
            map_array(path)
        except ValueError:
            refused += 1
    assert refused > 100


def test_arrays_of_any_name_are_written(tmp_path: Path) -> None:
    given = {name: np.arange(3, dtype=np.float32) for name in ("file", "allow_pickle", "a/b", "inputs")}
    save_arrays(tmp_path / "a.npz", given)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as kept:
        assert sorted(kept.files) == sorted(given)
        assert all(np.array_equal(kept[name], array) for name, array in given.items())
