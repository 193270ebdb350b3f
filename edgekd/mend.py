"""Repair of a run with damaged files: the files are made again, or the run is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.artefacts import LIST, Damage, Digests, damaged, listed, name_of, own_files, refuse_changed, refuse_newer
from edgekd.console import say
from edgekd.errors import EdgekdError, InputError
from edgekd.files import file_sha256, read_json

__all__ = ["adopted", "expected", "mend", "refuse_lost_settings", "refuse_tampered", "remove_derived"]

ADVICE = "use --fresh to start this run again, or --out for another folder"

TOGETHER = {
    "student/history.json": ("student/student.safetensors", "result.json"),
    "student/pruned-history.json": ("student/pruned.safetensors", "result.json"),
    "student/pruned.json": ("student/pruned.safetensors", "result.json"),
    "student/int8-qat-history.json": ("student/int8-qat.safetensors", "result.json"),
}
"""Files that are removed together with a damaged file, because they can only be made again together."""

DERIVED = {
    "teacher/teacher.safetensors": ("teacher/assistant-*", "student/*.*", "student/*attempt-*", "exported/*"),
    "teacher/assistant-": ("student/*.*", "student/*attempt-*", "exported/student-*"),
    "student/student.safetensors": ("student/int8-qat*", "exported/student-*"),
    "student/int8-qat.safetensors": ("exported/student-int8-qat.onnx",),
    "pruning.json": ("student/pruned*", "exported/pruned*"),
    "student/pruned.": ("exported/pruned*",),
    "exported/student-fp32.": ("exported/student-*",),
    "data/validation.": ("records/*.validation.*.npy",),
    "data/test.": ("records/*.test.*.npy",),
}
"""Maps the beginning of a file's name to the files, and folders of unfinished trainings, that are derived from it.
These become invalid if the file is made again with another content than before."""


def expected(folder: Path) -> Digests:
    """The digests that the run's files should have; for a run of an earlier edgekd, those in `result.json`.

    Raises InputError if the list is damaged or missing.
    """
    files = listed(folder)
    if files is not None:
        return files
    made = _content(folder / "run.json")
    if made.get("schema_version", 1) != 1:
        raise InputError(f"{folder / LIST}: is missing, so the files of this run cannot be checked; {ADVICE}")
    result = _content(folder / "result.json")
    try:
        digests = {f"exported/{model['file']}": [model["sha256"], ""] for model in result["models"]}
        chosen = next(model for model in result["models"] if model["name"] == result["chosen"])
        return digests | {"model.onnx": [chosen["sha256"], ""]}
    except (KeyError, TypeError, StopIteration):
        return {}


def _content(path: Path) -> dict[str, Any]:
    """The JSON object in the file, or an empty one. Other code reports what is wrong with the file."""
    try:
        content = read_json(path) if path.exists() else {}
    except EdgekdError:
        return {}
    return content if isinstance(content, dict) else {}


def refuse_tampered(folder: Path) -> None:
    """Raise InputError if an existing file of a run has changed, or is of a newer edgekd. Code that only reads a run
    calls this function."""
    refuse_changed(folder, expected(folder), "run its `edgekd distill` again, which makes it again or says what to do")
    refuse_newer(folder)


def refuse_lost_settings(folder: Path, files: Digests) -> None:
    """Raise InputError if `run.json`, which identifies the run, is damaged or missing."""
    for damage in damaged(folder, files, only="run.json"):
        raise _refusal(folder, damage, "it says what the run was made of")


def mend(folder: Path, files: Digests, trained: bool) -> None:
    """Remove the damaged files of a run and print a line for each. The stages make them again from the intact files.

    If a damaged file cannot be made again, raises InputError before anything is removed.
    """
    refuse_newer(folder)
    found = damaged(folder, files)
    for damage in found:
        if damage.name == "candidates.json" and trained:
            raise _refusal(folder, damage, "the trained student was chosen by it")
        if damage.name == "data/test_reads.json" and "data/test.npy" in files:
            raise _refusal(folder, damage, "it says how often the test data were read")
    for damage in found:
        if damage.name.startswith("teacher/") and damage.name.endswith("-history.json"):
            say(f"{folder / damage.name}: {damage.what}; it is removed, for nothing is made from it")
            files.pop(damage.name, None)
        else:
            say(f"{folder / damage.name}: {damage.what}; it is made again")
        for name in (damage.name, *TOGETHER.get(damage.name, ()), *_other_part(damage.name)):
            (folder / name).unlink(missing_ok=True)
    if found:  # the run is not finished until all its files exist again
        (folder / "result.json").unlink(missing_ok=True)
        files.pop("result.json", None)


def _other_part(name: str) -> tuple[str, ...]:
    """The encoder that belongs to a decoder, and the other way round: they are written together."""
    if name.endswith(".decoder.onnx"):
        return (f"{name.removesuffix('.decoder.onnx')}.onnx",)
    return (f"{name.removesuffix('.onnx')}.decoder.onnx",) if name.endswith(".onnx") else ()


def _refusal(folder: Path, damage: Damage, why: str) -> InputError:
    return InputError(f"{folder / damage.name}: {damage.what}, and {why}; {ADVICE}")


def adopted(folder: Path, files: Digests) -> Digests:
    """A copy of the list, with the artefacts that it did not name yet, and without files that were never written."""
    settled = {}
    for name, digests in files.items():
        if (folder / name).exists():
            settled[name] = digests if len(digests) == 1 else [file_sha256(folder / name)]
        elif digests[-1]:
            settled[name] = digests[:1]
    names = [name for path in own_files(folder) if (name := name_of(folder, path)) and name not in settled]
    return settled | {name: [file_sha256(folder / name)] for name in names}


def remove_derived(folder: Path, name: str) -> None:
    """Remove the files that were derived from file `name`, because it was made again with another content."""
    for path in _derived(folder, name):
        say(f"{path}: was made from another {name}; it is made again")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _derived(folder: Path, name: str) -> Iterator[Path]:
    if name.endswith((".ort", ".ort.json")):
        return  # made of the ONNX file beside it, as nothing is made of them; ONNX Runtime never writes equal bytes
    for begin, patterns in DERIVED.items():
        if name.startswith(begin):
            found = {path for pattern in patterns for path in folder.glob(pattern)}
            found -= {folder / other for other in _other_part(name)}  # both parts are written together
            yield from sorted(path for path in found if path.is_file() or "-attempt-" in f"-{path.name}")
