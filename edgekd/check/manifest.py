"""Read `edgekd-check.toml` from the user's repository: the models to check, their targets and budgets."""

import dataclasses
import glob
import json
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgekd.bench.feeding import merged
from edgekd.bench.records import Feeding
from edgekd.budget import Budget, read_budget
from edgekd.card import Card
from edgekd.check.asked import CheckJob
from edgekd.check.tolerance import read_tolerance
from edgekd.errors import ConfigError, InputError, did_you_mean, shown
from edgekd.files import read_json, real
from edgekd.scores import ScoreKind
from edgekd.spec import build, bundled_names, read_toml
from edgekd.tasks.known import deciding, task_named
from edgekd.units import visible

__all__ = ["NAME", "manifest_for_run", "read_manifest"]

NAME = "edgekd-check.toml"
"""The default file name of a manifest."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("should hold no NUL character")
    return text


Place = Annotated[str, AfterValidator(_no_nul)]
Names = Annotated[tuple[Place, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Given:
    """One table `[inputs.NAME]`: the data to feed to an input."""

    shape: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = None
    value: Any = None
    """A constant: a number, true, false, a text, or lists of them."""
    batch_axis: Annotated[int, Field(ge=0, lt=100)] | Literal["none"] | None = None
    """The batch axis; by default it is derived from the names of the dimensions."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelEntry:
    """One table `[[model]]`."""

    path: Place
    """A model file, a run folder, or a pattern such as `models/*.onnx`; relative to the manifest."""
    targets: Names | None = None
    """The default is the targets of the whole manifest."""
    baseline: Place = ""
    """A model, run or record; `{stem}` and `{target}` are replaced by the names of the model and the target."""
    data: Place = ""
    """An .npz file with the arrays inputs and labels, for accuracy, or with one array for each input."""
    inputs: dict[str, Given] = field(default_factory=dict)
    output: str = ""
    """The output whose accuracy is measured; by default the first one."""
    custom_ops: tuple[Place, ...] = ()
    """Libraries with the user's own operators; their code is executed."""
    budget: dict[str, Any] = field(default_factory=dict)
    tolerance: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Manifest:
    """The whole file."""

    targets: Names | None = None
    baseline: Place = ""
    data: Place = ""
    inputs: dict[str, Given] = field(default_factory=dict)
    """The data to feed to inputs with these names, in every model."""
    budget: dict[str, Any] = field(default_factory=dict)
    """Limits for every model and target; a table named after a target holds the limits for that target."""
    tolerance: dict[str, float | str] = field(default_factory=dict)
    model: Annotated[tuple[ModelEntry, ...], Field(min_length=1)]


def read_manifest(path: Path) -> list[CheckJob]:
    """Return the jobs of a manifest in its order.

    Raises ConfigError for any mistake in it, with file, key, value, rule and nearest name, and InputError for a path
    that does not exist.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such manifest; `edgekd check RUN --init` writes one")
    manifest = build(Manifest, read_toml(path), str(path))
    jobs = [job for number, entry in enumerate(manifest.model) for job in _jobs(manifest, entry, number, path)]
    seen: set[tuple[str, str]] = set()
    for job in jobs:
        key = (str(job.path), job.target)
        if key in seen:
            raise ConfigError(f"{path}: {job.path} is checked twice on {job.target}; leave one [[model]] out")
        seen.add(key)
    _refuse_shared_records(jobs, path)
    return jobs


def _refuse_shared_records(jobs: list[CheckJob], path: Path) -> None:
    """Raise ConfigError if two models share a stored record: each would be compared with the other's baseline."""
    used: dict[str, Path] = {}
    for job in jobs:
        if job.baseline is not None and job.baseline.suffix == ".json":
            other = used.setdefault(str(job.baseline), job.path)
            if other != job.path:
                raise ConfigError(
                    f"{path}: baseline: {other} and {job.path} share {job.baseline}; give each its own, as with "
                    "baselines/{stem}@{target}.json in its own folder"
                )


def _jobs(manifest: Manifest, entry: ModelEntry, number: int, path: Path) -> list[CheckJob]:
    where = f"{path}: model.{number}"
    targets = entry.targets or manifest.targets
    if not targets:
        raise ConfigError(f'{where}.targets: is missing; add it, such as targets = ["cpu-x86"]')
    tolerance = read_tolerance(manifest.tolerance, f"{path}: tolerance", deciding())
    tolerance = tolerance.with_values(_given(entry.tolerance, f"{where}.tolerance"))
    everywhere = _budgets(manifest.budget, f"{path}: budget")
    own = _budgets(entry.budget, f"{where}.budget")
    every = {_stem(name) for names in (manifest.targets, *(e.targets for e in manifest.model)) for name in names or ()}
    for budgets, place in ((everywhere, f"{path}: budget"), (own, f"{where}.budget")):
        for name in budgets.keys() - {""} - every:
            raise ConfigError(f"{place}.{name}: no such target here; {did_you_mean(name, every)}")
    jobs = []
    for file in _files(path.parent, entry.path, f"{where}.path"):
        for target in targets:
            budget = Budget()
            for budgets in (everywhere, own):
                budget = budget.with_values(budgets[""]).with_values(budgets.get(_stem(target), Budget()))
            names = {"stem": file.name if file.is_dir() else file.stem, "target": _stem(target)}
            baseline = _filled(entry.baseline or manifest.baseline, names, f"{where}.baseline")
            data = entry.data or manifest.data
            jobs.append(
                CheckJob(
                    path=file,
                    target=_target(target, path.parent),
                    budget=budget,
                    tolerance=tolerance,
                    baseline=path.parent / baseline if baseline else None,
                    data=path.parent / data if data else None,
                    feeding=_feeding(manifest, entry, path.parent),
                )
            )
    return jobs


def _feeding(manifest: Manifest, entry: ModelEntry, folder: Path) -> Feeding:
    own = _fed(entry.inputs)
    libraries = tuple(str((folder / name).resolve()) for name in entry.custom_ops)
    own = dataclasses.replace(own, output=entry.output or None, custom_ops=libraries)
    return merged(_fed(manifest.inputs), own)


def _fed(inputs: dict[str, Given]) -> Feeding:
    axes = {name: given.batch_axis for name, given in inputs.items() if given.batch_axis is not None}
    return Feeding(
        shapes={name: given.shape for name, given in inputs.items() if given.shape is not None},
        values={name: given.value for name, given in inputs.items() if given.value is not None},
        batch_axes={name: axis if isinstance(axis, int) else None for name, axis in axes.items()},
    )


def _given(tolerance: dict[str, float | str], where: str) -> dict[str, float | str]:
    read_tolerance(tolerance, where, deciding())
    return tolerance


def _stem(target: str) -> str:
    return Path(target).stem if target.endswith(".toml") else target


def _target(name: str, folder: Path) -> str:
    """Return a bundled target's name unchanged, and a file's path relative to the manifest."""
    return str(folder / name) if name.endswith(".toml") else name


def _budgets(table: dict[str, Any], where: str) -> dict[str, Budget]:
    """Return budgets by target; the key "" holds the budget for all targets, as in a card."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    budgets = {"": read_budget(plain, where, deciding())}
    for target, limits in table.items():
        if isinstance(limits, dict):
            budgets[target] = read_budget(limits, f"{where}.{target}", deciding())
    return budgets


def _files(folder: Path, pattern: str, where: str) -> list[Path]:
    if (folder / pattern).exists():  # brackets may also be part of a file name
        return [folder / pattern]
    if not glob.has_magic(pattern):
        raise InputError(f"{where}: {folder / pattern}: no such model file or run folder")
    # Path.glob refuses absolute patterns.
    found = sorted(folder / name for name in glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207
    if not found:
        raise InputError(f"{where}: {shown(pattern)} matches nothing in {real(folder)}")
    return found


def _filled(text: str, names: dict[str, str], where: str) -> str:
    known = re.compile("{(" + "|".join(names) + ")}")
    if "{" in (rest := known.sub("", text)) or "}" in rest:
        raise ConfigError(f"{where}: got {shown(text)}; only {{stem}} and {{target}} may stand in braces")
    return known.sub(lambda match: names[match[1]], text)


def manifest_for_run(run: Path, folder: Path) -> str:
    """Return a commented manifest that checks a finished run's model by the run's own budget.

    Raises InputError if the path is not a finished run folder.
    """
    if not (run / "run.json").is_file() or not (run / "result.json").is_file():
        raise InputError(f"{run}: is no finished run folder; --init writes a manifest from one")
    made, result = read_json(run / "run.json"), read_json(run / "result.json")
    if not (isinstance(made, dict) and isinstance(made.get("budget"), dict) and isinstance(result, dict)):
        raise InputError(f"{run}: its run.json or result.json holds no budget; was it edited?")
    target = result.get("target")
    if not isinstance(target, str) or not target.isprintable():
        raise InputError(
            f"{run / 'result.json'}: target: got {shown(target)}; it should be a target's name; was it edited?"
        )
    own = "" if target in bundled_names("targets") else f"; put the path of {target}.toml here"
    card = made.get("card")
    kind = task_named(str(card.get("task", Card.task)) if isinstance(card, dict) else Card.task).scores[0]
    limits = read_budget(made["budget"], f"{run / 'run.json'}: budget", [kind]).without(kind.teacher_key).limits()
    plain = real(run)
    path = plain.relative_to(real(folder)) if plain.is_relative_to(real(folder)) else plain
    budget = "\n".join(f"{key} = {value}" for key, value in limits.items()) or "# size_kb = 300"
    return TEMPLATE.format(
        score=f"{kind.tolerance_key} = {kind.tolerance:g}",
        unit=_unit(kind),
        target=_quoted(target),
        own=own,
        path=_quoted(str(path)),
        budget=budget,
    )


def _unit(kind: ScoreKind) -> str:
    return "points" if kind.share else kind.unit or f"in the unit of the {kind.limit_words}"


def _quoted(text: str) -> str:
    """Return a TOML basic string. Raises InputError for names that are not valid Unicode, which TOML cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{visible(text)}: is no text, so that no manifest can name it; rename it") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


TEMPLATE = """\
# What `edgekd check --manifest edgekd-check.toml` checks. Paths are relative to this file.

targets = [{target}]    # `edgekd targets` lists them; a file such as "targets/mine.toml" is one, too{own}

# data = "test.npz"      # arrays `inputs` and `labels`: accuracy of models that bring no data of their own

# [inputs.x]             # what is fed to the input x, where its sizes are free
# shape = [1, 3, 224, 224]

# A baseline turns on the comparison. A model file is measured beside the new one, by turns; a record that
# `edgekd baseline accept --manifest edgekd-check.toml` writes is compared across time, with a wider limit.
# baseline = "baselines/{{stem}}@{{target}}.json"

[tolerance]              # how much worse than its baseline a model may be; "off" leaves one out
max_slowdown = 0.025     # median latency, against a model measured beside it
max_slowdown_p95 = 0.10
max_slowdown_stored = 0.10  # both, against a stored record
max_load_growth = 0.25
max_size_growth = 0.01
max_memory_growth = 0.05
{score}  # {unit}

[[model]]
path = {path}            # a model file, a run folder, or a pattern such as "models/*.onnx"

[model.budget]           # what the run was made for; [model.budget.TARGET] holds limits for one target
{budget}
"""
