"""The run folder: the names of its files, its lock, and the check that its settings do not change between two calls."""

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekd import __version__
from edgekd.artefacts import LIST, SHIPPED, Digests, keeping, write_list
from edgekd.augmentation import Augment
from edgekd.budget import Budget
from edgekd.card import Card, Data, Export, Recipe, Training
from edgekd.console import say
from edgekd.errors import ConfigError, shown
from edgekd.files import atomic, file_sha256, read_json, write_json
from edgekd.imports import sources_of
from edgekd.mend import adopted, expected, mend, refuse_lost_settings, remove_derived
from edgekd.recipe import Feature, Prune, Qat
from edgekd.target import Quantization, Target

__all__ = ["Run", "open_run", "take_over"]

# run.json history:
# 1 - card, target, budget, SHA-256 of the files named, digest of the training data
# 2 - code: SHA-256 of the sources of imported functions; networks: their structure; data_marks: names, sizes and times
#     of the data's files; artefacts.json beside it lists the SHA-256 of every file
SCHEMA_VERSION = 2
READABLE = (1, 2)


_NONE: Mapping[str, str] = MappingProxyType({})
_ADVICE = "use --fresh to start this run again, or --out for another folder"


@dataclass(frozen=True)
class Run:
    """A folder made by `edgekd distill`; most properties are the paths of files or folders in it."""

    folder: Path
    snapshot: dict[str, Any] = field(default_factory=dict)
    """The content of `run.json`, written or still to be written: card, target, budget, files."""
    artefacts: Digests = field(default_factory=dict)
    """The digests of the files in the folder, which are kept up to date while the run is open."""

    def begin(self, data_digest: str, networks: Mapping[str, str] = _NONE, data_marks: str = "") -> None:
        """Write `run.json`. From now on the folder belongs to this card, target, data and `networks`.

        Raises ConfigError if something was trained here with other settings.
        """
        try:
            self.refuse_other_networks(networks)
            self.refuse_other_data(data_digest)
        except ConfigError as error:
            if _trained(self.folder):
                raise
            change = str(error).partition(" since this run began")[0]
            say(f"{change}; nothing was trained yet, so the run begins anew")
            _empty(self.folder)
            self.artefacts.clear()
        known = {**self._begun_with("networks", {}), **networks}
        made_of = {"networks": known, "data_digest": data_digest, "data_marks": data_marks}
        write_json(self.folder / "run.json", self.snapshot | made_of)

    def hold(self, networks: Mapping[str, str]) -> None:
        """Add the structure of the network that was chosen to `run.json`. Raises ConfigError if it has changed."""
        self.refuse_other_networks(networks)
        content = read_json(self.folder / "run.json")
        if not networks.items() <= content["networks"].items():
            content["networks"] |= networks
            write_json(self.folder / "run.json", content)

    def refuse_other_networks(self, networks: Mapping[str, str]) -> None:
        """Raise ConfigError if the structure of a network has changed since the run began."""
        before = self._begun_with("networks", networks)
        for name, digest in networks.items():
            if before.get(name, digest) != digest:
                raise ConfigError(
                    f"{self.folder}: the structure of the network '{name}' has changed since this run began; {_ADVICE}"
                )

    def refuse_other_data(self, data_digest: str) -> None:
        """Raise ConfigError if the content of the training data has changed since the run began."""
        if self._begun_with("data_digest", data_digest) != data_digest:
            raise ConfigError(f"{self.folder}: the training data have changed since this run began; {_ADVICE}")

    def other_marks(self, data_marks: str) -> bool:
        """Whether names, sizes or times of the data's files have changed since the run began."""
        return bool(self._begun_with("data_marks", data_marks) != data_marks)

    def _begun_with(self, key: str, otherwise: Any) -> Any:
        """The value of `key` in `run.json`; `otherwise` if the file is not written yet or is from an earlier edgekd."""
        path = self.folder / "run.json"
        return read_json(path).get(key, otherwise) if path.exists() else otherwise

    @property
    def teacher_weights(self) -> Path:
        """The weights of the teacher trained in this run (safetensors); a given teacher is not copied."""
        return self.folder / "teacher" / "teacher.safetensors"

    @property
    def candidates(self) -> Path:
        """File of the candidate shapes and their figures."""
        return self.folder / "candidates.json"

    @property
    def student_weights(self) -> Path:
        """The weights of the distilled student (safetensors)."""
        return self.folder / "student" / "student.safetensors"

    @property
    def int8_weights(self) -> Path:
        """The weights of the student after its training for int8 (safetensors)."""
        return self.folder / "student" / "int8-qat.safetensors"

    @property
    def pruned_weights(self) -> Path:
        """The weights of the pruned teacher (safetensors); the sizes of its layers are in the JSON file beside it."""
        return self.folder / "student" / "pruned.safetensors"

    @property
    def pruning(self) -> Path:
        """File of the pruning ratios that were measured, and of the chosen one."""
        return self.folder / "pruning.json"

    @property
    def exported(self) -> Path:
        """Folder of the exported ONNX files."""
        return self.folder / "exported"

    @property
    def data(self) -> Path:
        """Folder of the inputs and labels that the measurements use."""
        return self.folder / "data"

    @property
    def records(self) -> Path:
        """Folder of the raw measurements."""
        return self.folder / "records"

    def bench(self, target: str) -> Path:
        """Folder of the later measurements by `edgekd bench` on that target: records and `bench.json`."""
        return self.folder / "bench" / target

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, which makes the token ids that a text model needs, in the format of the tokenizers library."""
        return self.folder / "tokenizer.json"

    @property
    def model(self) -> Path:
        """The shipped file: ONNX, or the ORT format where the target wants that."""
        ort = self.folder / "model.ort"
        return ort if ort.exists() else self.folder / "model.onnx"

    @property
    def result(self) -> Path:
        """`result.json`: the verdict and every figure of the run."""
        return self.folder / "result.json"

    @property
    def scratch(self) -> Path:
        """Folder of untrained candidates and other files that are not needed afterwards."""
        return self.folder / "scratch"

    @property
    def ranking(self) -> Path:
        """Folder of the short distillations that rank candidates, while they run."""
        return self.folder / "ranking"

    def test_reads(self, add: int = 0) -> int:
        """The number of times that the test data was read. `add` is added to it; call this before the reading."""
        path = self.data / "test_reads.json"
        reads = (int(read_json(path)["test_reads"]) if path.exists() else 0) + add
        if add:
            write_json(path, {"test_reads": reads})
        return reads


def take_over(source: Run, run: Run, with_student: bool, without: tuple[str, ...] = ()) -> None:
    """Copy the teacher and the assistants that were trained in `source`. `with_student` copies the student, too, if it
    learnt from the teacher that `run` has, and the networks that were trained beside it, except for those whose names
    begin with one of `without`.

    Files that already exist in `run` are not replaced.
    """
    _copy_networks(source, run, source.teacher_weights.parent)
    weights = [one.teacher_weights for one in (source, run) if one.teacher_weights.exists()]
    if with_student and len({file_sha256(path) for path in weights}) <= 1:
        _copy_networks(source, run, source.student_weights.parent, without)


def _copy_networks(source: Run, run: Run, folder: Path, without: tuple[str, ...] = ()) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        copy = run.folder / path.relative_to(source.folder)
        if not path.name.startswith(without) and path.suffix in (".safetensors", ".json") and not copy.exists():
            with atomic(copy) as temporary:
                shutil.copyfile(path, temporary)


@contextlib.contextmanager
def open_run(
    folder: Path, card: Card, target: Target, budget: Budget, files: dict[str, str], fresh: bool
) -> Iterator[Run]:
    """Create the run folder, or open it to continue the run. It is locked until the block ends; `Run.begin` then
    assigns it to this run.

    `files` maps each file named on the command line to the SHA-256 of its content. A folder of another card, target or
    budget is emptied if nothing was trained in it. If something was trained in it, raises ConfigError, unless `fresh`
    is set, which always empties the folder. Raises ConfigError if the folder is in use.
    """
    path = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder with --out")
    known = path.exists() or (folder / LIST).exists()
    if folder.is_dir() and not known and not all(map(_begun_here, folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty and holds no run; name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _remove_temporaries(folder)
        if fresh:
            _empty(folder)
        wanted = _snapshot(card, target, budget, files)
        listed = _continued(folder, wanted)
        try:
            with keeping(folder, listed, lambda name: remove_derived(folder, name)):
                yield Run(folder, wanted, listed)
        finally:
            if [entry.name for entry in folder.iterdir()] == [".lock"]:  # the run failed before it began
                (folder / ".lock").unlink()
                folder.rmdir()


def _continued(folder: Path, wanted: dict[str, Any]) -> Digests:
    """Repair the run that is continued here and return the list of its files; the list is empty for a new run.

    Raises ConfigError if the run is of another card, target or budget, and InputError if it cannot be repaired.
    """
    path = folder / "run.json"
    files = expected(folder)
    refuse_lost_settings(folder, files)
    if not path.exists():
        return {}
    if change := _change(folder, read_json(path), wanted):
        if _trained(folder):
            raise ConfigError(f"{folder}: {change}; {_judging(folder, change)}{_ADVICE}")
        say(f"{folder}: {change}; nothing was trained yet, so the run begins anew")
        _empty(folder)
        return {}
    mend(folder, files, _trained(folder))
    settled = adopted(folder, files)
    if settled != files:
        write_list(folder, settled)
    return settled


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another edgekd process is working in it; wait for it, or name another folder with --out"
            ) from None
        yield  # the system releases the lock when the process ends, even if it is killed


def _plain(thing: Any) -> dict[str, Any]:
    """Convert a dataclass to the plain values that it has after writing it as JSON and reading it again."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(thing)))
    return values


def _snapshot(card: Card, target: Target, budget: Budget, files: dict[str, str]) -> dict[str, Any]:
    def what_counts(thing: Any) -> dict[str, Any]:
        return {
            key: value
            for key, value in _plain(thing).items()
            if key not in ("file", "about", "title", "budgets", "trials")
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "edgekd": __version__,
        "card": what_counts(card),
        "target": what_counts(target),
        "budget": budget.limits(),
        "budgets": {name: asked.limits() for name, asked in card.budgets.items()},
        "files": files,
        "code": sources_of(card),
    }


def _trained(folder: Path) -> bool:
    """Whether the folder holds results of a training, finished or not."""
    files = [file for name in ("teacher", "student") for file in (folder / name).rglob("*")]
    made = any(file.suffix == ".safetensors" or file.name == "checkpoint.pt" for file in files)
    return made or (folder / "exported").exists() or (folder / "result.json").exists()


def _change(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the first setting that has changed since the run began; empty if nothing has changed."""
    version = before.get("schema_version")
    if version not in READABLE:
        return f"schema_version was {shown(version)} when this run began and is {SCHEMA_VERSION} now"
    parts = ["card", "target", "files", *(["code"] if version > 1 else [])]
    if (folder / "student").exists():  # before a student exists, the budget may change, because no choice was kept
        parts.append("budget")
    for part in parts:
        # Earlier runs name the place "machine"; it could only be this one.
        old_part = {key: value for key, value in (before.get(part) or {}).items() if (part, key) != _EARLIER}
        for key, old, new in _differences(old_part, now[part], part):
            return f"{key} was {shown(old)} when this run began and is {shown(new)} now"
    return ""


def _judging(folder: Path, change: str) -> str:
    """How a finished run is judged by another limit without a training; empty if that is not what has changed."""
    if not change.startswith("budget.") or not (folder / "result.json").exists():
        return ""
    return "`edgekd check RUN --target T --budget KEY=VALUE` judges what it trained by another limit; "


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old value and new value of each difference, at the deepest level of the tables where both have
    values."""
    if isinstance(new, dict) and isinstance(old, dict):
        for name in sorted(old.keys() | new.keys()):
            inner = f"{key}.{name}"
            if name in old or isinstance(new[name], dict) or not _as_before(inner, new[name]):
                # A table that is missing on one side counts as an empty table.
                one = old.get(name, {} if isinstance(new.get(name), dict) else None)
                other = new.get(name, {} if isinstance(old.get(name), dict) else None)
                yield from _differences(one, other, inner)
    elif _tables(old) and _tables(new) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{key}.{number}")
    elif old != new:
        yield key, old, new


def _as_before(key: str, value: Any) -> bool:
    """Whether an option that an older edgekd did not have is set to the behaviour of that older edgekd."""
    part, _, name = key.rpartition(".")
    if part == "card.data":
        defaults = {field_.name: field_.default for field_ in dataclasses.fields(Data)}
        return name in defaults and bool(json.loads(json.dumps(defaults[name], default=str)) == value)
    makers: dict[str, Any] = {
        "card.recipe": Recipe(epochs=1),
        "card.recipe.qat": Qat(epochs=1),
        "card.recipe.prune": Prune(epochs=1),
        "card.augment": Augment(),
        "card.export": Export(),
        "target.quantization": Quantization(),
    }
    if name in ("output", "download") or key == "card.student.weights":  # options of teachers and of the student
        return not value
    if part.endswith(".training"):
        makers[part] = Training(epochs=1)
    if part.startswith("card.recipe.") and part.rpartition(".")[0].endswith(".features"):
        makers[part] = Feature(term="match")
    if part == "card.student" and name in ("families", "rank"):
        return value in ([], "capacity")
    if part == "target" and name in ("device", "python", "accuracy_on", "fixed_shapes", "format"):
        return value in ("", "device", False, "onnx")
    if part not in makers:
        return key.startswith("target.session.")
    defaults = _plain(makers[part])
    return name in defaults and bool(defaults[name] == value)


_EARLIER = ("target", "machine")


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _begun_here(path: Path) -> bool:
    """Whether this file may be left from a run that was killed before it wrote `run.json`. Any other file belongs to
    the user."""
    return path.name == ".lock" or path.name.startswith((".run.json.", f".{LIST}."))


def _remove_temporaries(folder: Path) -> None:
    """Remove the incomplete files that a killed process left. This process holds the lock, so no other process
    writes."""
    for path in folder.rglob(".*.*"):
        if path.is_file():
            path.unlink()


def _empty(folder: Path) -> None:
    """Remove the run's own files. `run.json` and the list of digests are removed last: if the process is killed before
    the end, the folder is still recognised as a run."""
    if (folder / LIST).exists():
        write_list(folder, {})  # otherwise, after a kill, the removed files would count as missing
    for name in ("teacher", "student", "exported", "records", "data", "scratch", "ranking", "bench"):
        shutil.rmtree(folder / name, ignore_errors=True)
    files = (
        "candidates.json",
        "pruning.json",
        "tokenizer.json",
        *SHIPPED,
        "result.json",
        "report.md",
        "figures.png",
        "front.png",
        "front.svg",
        "run.json",
        LIST,
    )
    for name in files:
        (folder / name).unlink(missing_ok=True)
