"""The list of a run's files: kept as they are written, compared as they are read."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from edgekd.artefacts import LIST, Damage, damaged, keeping, listed, name_of, refuse_changed, unreadable, write_list
from edgekd.errors import InputError
from edgekd.files import atomic, file_sha256, write_json


def test_every_file_is_listed_as_it_is_written(tmp_path: Path) -> None:
    heard: list[str] = []
    with keeping(tmp_path, {}, heard.append):
        write_json(tmp_path / "candidates.json", {"candidates": []})
        write_json(tmp_path / "student" / "attempt-1" / "history.json", {"epochs": []})
        write_json(tmp_path / "scratch" / "some.json", {"some": 1})
        write_json(tmp_path.parent / "elsewhere.json", {"some": 1})
    write_json(tmp_path / "later.json", {"some": 1})
    assert listed(tmp_path) == {"candidates.json": [file_sha256(tmp_path / "candidates.json"), ""]}
    assert not heard and not damaged(tmp_path, listed(tmp_path) or {})


@pytest.mark.parametrize("moment", ["listed", "named"])
def test_a_kill_while_a_file_is_replaced_damages_nothing(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "candidates.json"
    with keeping(tmp_path, {}, print):
        write_json(path, {"candidates": [1]})
        before = path.read_bytes()
        write_json(path, {"candidates": [2]})
    if moment == "listed":  # and not yet renamed
        path.write_bytes(before)
    assert not damaged(tmp_path, listed(tmp_path) or {})


def test_a_lost_file_that_is_made_otherwise_is_told(tmp_path: Path) -> None:
    heard: list[str] = []
    write_json(tmp_path / "candidates.json", {"candidates": [1]})
    write_list(tmp_path)
    files = listed(tmp_path) or {}
    (tmp_path / "candidates.json").unlink()
    with keeping(tmp_path, files, heard.append):
        write_json(tmp_path / "candidates.json", {"candidates": [1]})
        assert heard == []
        (tmp_path / "candidates.json").unlink()
        write_json(tmp_path / "candidates.json", {"candidates": [2]})
    assert heard == ["candidates.json"]


def test_what_differs_is_named(tmp_path: Path) -> None:
    for name in ("changed", "lost", "emptied"):
        (tmp_path / name).write_text(name)
    write_list(tmp_path)
    (tmp_path / "changed").write_text("charged")
    (tmp_path / "lost").unlink()
    (tmp_path / "emptied").write_text("")
    files = listed(tmp_path) or {}
    assert damaged(tmp_path, files) == [
        Damage("changed", "is not the file that the run wrote (its SHA-256 differs)"),
        Damage("emptied", "is empty"),
        Damage("lost", "is missing"),
    ]
    assert damaged(tmp_path, files, only="lost") == [Damage("lost", "is missing")]
    with pytest.raises(InputError, match=r"changed: is not the file .* differs\); do so$"):
        refuse_changed(tmp_path, files, "do so")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"files": {}}', '{"files": {}, "sha256": "0"}'])
def test_a_damaged_list_is_refused(tmp_path: Path, content: str) -> None:
    assert listed(tmp_path) is None
    (tmp_path / LIST).write_text(content)
    with pytest.raises(InputError, match=r"artefacts\.json: is damaged .* use --fresh"):
        listed(tmp_path)


def test_logs_checkpoints_and_scratch_are_no_artefacts(tmp_path: Path) -> None:
    passing = (
        "scratch/a.onnx",
        "bench/x/a.npy",
        "student/log/a",
        "teacher/assistant-1-log/a",
        "student/attempt-1.json",
    )
    for name in (*passing, "teacher/t-attempt-2/checkpoint.pt", "teacher/assistant-1/checkpoint.pt", LIST, ".lock"):
        assert not name_of(tmp_path, tmp_path / name), name
    for name in ("model.onnx", "teacher/assistant-1.safetensors", "student/history.json"):
        assert name_of(tmp_path, tmp_path / name) == name


def test_the_form_of_a_file_tells_its_damage(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    safetensors.numpy.save_file({"weight": np.zeros((3, 2), np.float32)}, tmp_path / "a.safetensors")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("data", b"0" * 100)
    (tmp_path / "candidates.json").write_text(json.dumps({"candidates": []}))
    for path in tmp_path.iterdir():
        assert unreadable(path) == ""
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"{}", b"[]", b"null"):
            path.write_bytes(content)
            assert unreadable(path), (path, content)
        path.write_bytes(whole)
    flipped = bytearray((tmp_path / "a.pt").read_bytes())
    flipped[60] ^= 1
    (tmp_path / "a.pt").write_bytes(flipped)
    assert "checksum" in unreadable(tmp_path / "a.pt")
    (tmp_path / "history.json").write_text('{"other": 1}')
    assert unreadable(tmp_path / "history.json") == "has no 'epochs'"


def test_a_file_that_fails_is_not_listed(tmp_path: Path) -> None:
    with keeping(tmp_path, {}, print), pytest.raises(RuntimeError), atomic(tmp_path / "a.json"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
