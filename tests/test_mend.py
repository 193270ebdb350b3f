"""A damaged run: what is made again, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekd.export.ort
import edgekd.result
import edgekd.run
import edgekd.search.found
import edgekd.search.int8
import edgekd.search.pruning
from edgekd.artefacts import NEWEST, keeping, listed, write_list
from edgekd.errors import InputError
from edgekd.files import atomic, file_sha256, read_json, write_json
from edgekd.mend import adopted, expected, mend, refuse_lost_settings, refuse_tampered, remove_derived

SETTINGS: dict[str, Any] = {"schema_version": 2, "card": {}, "target": {}, "budget": {}, "files": {}}


def a_run(folder: Path, version: int = 2) -> Path:
    """A run with one file of each kind; a run of version 1 has no list."""
    write_json(folder / "run.json", SETTINGS | {"schema_version": version})
    for name in ("candidates.json", "student/history.json", "data/test_reads.json"):
        write_json(folder / name, {"candidates": [], "epochs": [], "test_reads": 1})
    for name in ("model.onnx", "exported/s.onnx", "exported/student-int8.onnx", "student/student.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((2).to_bytes(8, "little") + b"{}")
    np.save(folder / "data" / "test.npy", np.zeros(3))
    digest = file_sha256(folder / "model.onnx")
    write_json(
        folder / "result.json",
        {"schema_version": 2, "chosen": "s", "models": [{"name": "s", "file": "s.onnx", "sha256": digest}]},
    )
    if version > 1:
        write_list(folder)
    return folder


def test_what_is_damaged_is_removed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path)
    (run / "model.onnx").write_bytes(b"")
    (run / "student" / "history.json").unlink()
    mend(run, expected(run), trained=True)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{run}/model.onnx: is empty; it is made again",
        f"{run}/student/history.json: is missing; it is made again",
    ]
    for gone in ("model.onnx", "result.json", "student/student.safetensors"):
        assert not (run / gone).exists()
    assert (run / "exported" / "s.onnx").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("run.json", "it says what the run was made of"),
        ("candidates.json", "the trained student was chosen by it"),
        ("data/test_reads.json", "it says how often the test data were read"),
    ],
)
@pytest.mark.parametrize("damage", ["{}", "[]", "null", '{"a": ', ""])
def test_what_cannot_be_made_again_is_refused(tmp_path: Path, name: str, why: str, damage: str) -> None:
    run = a_run(tmp_path)
    (run / name).write_text(damage)
    with pytest.raises(InputError, match=rf"{name}: .*, and {why}; use --fresh"):
        refuse_lost_settings(run, expected(run))
        mend(run, expected(run), trained=True)
    assert (run / "result.json").exists()


def test_a_run_of_an_earlier_version_has_the_digests_of_its_result(tmp_path: Path) -> None:
    run = a_run(tmp_path, version=1)
    digest = file_sha256(run / "model.onnx")
    assert expected(run) == {"exported/s.onnx": [digest, ""], "model.onnx": [digest, ""]}
    refuse_tampered(run)
    (run / "exported" / "s.onnx").unlink()
    refuse_tampered(run)
    (run / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"model\.onnx: is not the file that the run wrote"):
        refuse_tampered(run)


def test_a_lost_list_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (run / "artefacts.json").unlink()
    with pytest.raises(InputError, match=r"artefacts\.json: is missing, .* use --fresh"):
        expected(run)


def test_files_without_a_digest_get_one(tmp_path: Path) -> None:
    run = a_run(tmp_path, version=1)
    files = adopted(run, {"exported/begun.onnx": ["0", ""], "exported/lost.onnx": ["1"]})
    write_list(run)
    assert files == {"exported/lost.onnx": ["1"], **(listed(run) or {})}


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("teacher/teacher.safetensors", {"student/student.safetensors", "exported/student-int8.onnx"}),
        ("student/student.safetensors", {"exported/student-int8.onnx"}),
        ("exported/student-fp32.onnx", {"exported/student-int8.onnx"}),
        ("exported/student-fp32.ort", set[str]()),
        ("exported/student-fp32.ort.json", set[str]()),
        ("records/a.json", set[str]()),
    ],
)
def test_what_was_made_from_another_file_is_removed(tmp_path: Path, name: str, gone: set[str]) -> None:
    run = a_run(tmp_path)
    there: Callable[[], set[str]] = lambda: {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}  # noqa: E731
    before = there()
    remove_derived(run, name)
    assert gone <= before - there()
    assert gone or before == there()
    assert "model.onnx" in there()


@pytest.mark.parametrize(
    ("name", "gone", "kept"),
    [
        ("teacher/teacher.safetensors", {"attempt-1", "int8-qat-attempt-1", "pruned-attempt-2"}, set[str]()),
        ("student/student.safetensors", {"int8-qat-attempt-1"}, {"attempt-1", "pruned-attempt-2"}),
        ("pruning.json", {"pruned-attempt-2"}, {"attempt-1", "int8-qat-attempt-1"}),
    ],
)
def test_unfinished_trainings_from_another_file_are_removed(
    tmp_path: Path, name: str, gone: set[str], kept: set[str]
) -> None:
    run = a_run(tmp_path)
    for folder in gone | kept:
        (run / "student" / folder).mkdir()
        (run / "student" / folder / "checkpoint.pt").write_bytes(b"begun")
    remove_derived(run, name)
    assert {path.name for path in (run / "student").iterdir() if path.is_dir()} == kept


def test_a_decoder_written_before_its_encoder_is_kept(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    parts = [run / "exported" / f"student-fp32{end}.onnx" for end in (".decoder", "")]
    for part in parts:
        part.write_bytes(b"of other weights")
    write_list(run)
    for part in parts:
        part.unlink()
    with keeping(run, expected(run), lambda name: remove_derived(run, name)):
        for part in parts:
            with atomic(part) as temporary:
                temporary.write_bytes(b"made again")
    assert all(part.read_bytes() == b"made again" for part in parts)
    assert not (run / "exported" / "student-int8.onnx").exists()


@pytest.mark.parametrize("version", [99, "3", -1.5, [1], True])
@pytest.mark.parametrize(
    "name",
    ["candidates.json", "student/history.json", "result.json", "exported/student-int8.json", "exported/s.ort.json"],
)
def test_a_file_of_a_newer_version_is_refused(tmp_path: Path, name: str, version: object) -> None:
    run = a_run(tmp_path)
    content = read_json(run / name) if (run / name).exists() else {"sha256": "", "onnx_sha256": ""}
    write_json(run / name, content | {"schema_version": version})
    write_list(run)
    for ask in (refuse_tampered, lambda folder: mend(folder, expected(folder), trained=True)):
        with pytest.raises(
            InputError, match=rf"{name}: schema_version is .*, and this edgekd knows \d and older; take"
        ):
            ask(run)
    assert (run / "model.onnx").exists()


def test_the_newest_versions_are_those_that_are_written() -> None:
    written = {
        "run.json": edgekd.run.SCHEMA_VERSION,
        "candidates.json": edgekd.search.found.SCHEMA_VERSION,
        "pruning.json": edgekd.search.pruning.SCHEMA_VERSION,
        "int8.json": edgekd.search.int8.SCHEMA_VERSION,
        "result.json": edgekd.result.SCHEMA_VERSION,
        "bench.json": edgekd.result.BENCH_VERSION,
        ".ort.json": edgekd.export.ort.SCHEMA_VERSION,
    }
    assert written.items() <= NEWEST.items()


def test_a_pruned_network_whose_sizes_are_lost_is_made_again(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for name in ("pruned.json", "pruned.safetensors"):
        (run / "student" / name).write_text('{"widths": {}}')
    write_list(run)
    (run / "student" / "pruned.json").unlink()
    mend(run, expected(run), trained=True)
    assert not (run / "student" / "pruned.safetensors").exists()
