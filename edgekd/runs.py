"""Run folders and single model files, as `bench` and `check` measure them; this module does not need torch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.arrays import extract, map_array, names_in, save_arrays
from edgekd.bench.measure import References, Subject, evaluate, logits_of, measure_each
from edgekd.bench.records import Effort
from edgekd.bench.sequences import task_name_of
from edgekd.card import Card
from edgekd.devices.device import OnProgress, Site
from edgekd.errors import EdgekdError, InputError, one_line
from edgekd.figures import ModelFigures
from edgekd.files import read_json, told_apart
from edgekd.mend import refuse_tampered
from edgekd.result import read_models
from edgekd.run import Run
from edgekd.scratch import scratch
from edgekd.tasks.known import task_named
from edgekd.tasks.task import Outputs, Targets, Task
from edgekd.units import visible

__all__ = [
    "SPLITS",
    "Estimate",
    "Inputs",
    "Measured",
    "Split",
    "all_subjects",
    "check_targets",
    "finished",
    "measure_files",
    "measure_run",
    "read_arrays",
    "run_inputs",
    "subject_of",
    "targets_of",
    "task_of_file",
    "task_of_run",
]

Split = Literal["val", "test"]
SPLITS: dict[Split, str] = {"val": "validation", "test": "test"}
NETWORKS = ("student", "int8-qat", "pruned")
"""Networks whose outputs in torch a run keeps beside its inputs."""
Estimate = Callable[[Sequence[ModelFigures], Sequence[Subject], Site], list[ModelFigures]]
"""Estimates latencies if the device is not the target's hardware. This is `edgekd.search.estimate.with_estimates`,
which needs torch, or a function that leaves the latencies unknown."""


@dataclass(frozen=True)
class Inputs:
    """A file of inputs, which workers map into memory, and the targets of these inputs."""

    file: Path
    targets: Targets
    """What is right for each of n inputs; empty if the data do not say it, so that the scores are unknown."""
    about: str
    """The data in words: `the run's test data`."""
    torch: Mapping[str, Outputs] = field(default_factory=dict)
    """Outputs in torch for these inputs of the networks `student`, `int8-qat` and `pruned`, as far as the run kept
    them."""
    given: str = ""
    """Type and shape of the inputs of a file of the user's, for messages: `uint8 [4, 8, 8, 1]`."""


@dataclass(frozen=True)
class Measured:
    """The figures of one model, and a remark for the reader."""

    figures: ModelFigures
    remark: str = ""


def run_inputs(run: Run, split: Split) -> Inputs:
    """The validation or test inputs that the run kept; InputError if they are missing or cannot be read."""
    stem = SPLITS[split]
    file, labels = (run.data / f"{stem}{end}.npy" for end in ("", ".labels"))
    kept = {name: run.data / f"{stem}.{name}.npy" for name in NETWORKS}
    if not (file.is_file() and labels.is_file()):
        raise InputError(f"{file}: is missing; run its `edgekd distill` with --fresh")
    try:
        known = np.array(map_array(labels))
        count = len(map_array(file))
        answers = {name: np.array(map_array(path)) for name, path in kept.items() if path.is_file()}
    except (ValueError, TypeError) as error:  # TypeError: a single number has no length
        raise InputError(f"{file}: the run's data cannot be read: {one_line(error)}; run it with --fresh") from error
    if problem := task_of_run(run).targets_problem(known):
        raise InputError(f"{labels}: {problem}; run it with --fresh")
    if len(known) != count:
        raise InputError(f"{labels}: should hold one label for each of {count} inputs; run it with --fresh")
    for name, array in answers.items():
        text = array.dtype.kind == "U"  # translations
        if len(array) != count or not (text or (array.ndim > 1 and array.dtype in (np.float32, np.uint8))):
            raise InputError(
                f"{kept[name]}: should hold one row of outputs for each of {count} inputs; run it with --fresh"
            )
    return Inputs(file, known, f"the run's {stem} data", answers)


def task_of_run(run: Run) -> Task:
    """The task of a run's card, as its `run.json` says; the default one if it does not."""
    path = run.folder / "run.json"
    snapshot = read_json(path) if path.exists() else {}
    card = snapshot.get("card", {}) if isinstance(snapshot, dict) else {}
    return task_named(str(card.get("task", Card.task)))


def task_of_file(file: Path) -> Task:
    """The task that a model file names in its metadata; the default one if it names none."""
    return task_named(task_name_of(file) or Card.task)


def read_arrays(path: Path, folder: Path) -> Inputs:
    """Read inputs and their targets from an .npz file; the arrays are extracted into `folder`.

    The file holds the arrays `inputs` (n, …) and `labels` (n,), or an array for each input of the model, under the
    input's name, with or without `labels`. Raises InputError for anything else.
    """
    needs = "should be an .npz file with the arrays inputs and labels, or one array for each input of the model"
    if not path.is_file():
        raise InputError(f"{path}: {needs if path.exists() else 'no such file'}")
    try:
        names = names_in(path)
        labels = extract(path, "labels", folder / "second.labels.npy") if "labels" in names else None
        if labels is not None and "inputs" in names:
            return _plain(path, folder, extract(path, "inputs", folder / "second.npy"), labels)
        others = sorted(names - {"labels"})
        given = {name: extract(path, name, folder / f"input-{k}.npy") for k, name in enumerate(others)}
    except ValueError as error:
        raise InputError(f"{path}: {needs}: {one_line(error, 160)}") from error
    if not given:
        raise InputError(f"{path}: {needs}; it holds no inputs")
    known = np.empty(0, np.int64) if labels is None else labels
    file = folder / "second.npz"
    save_arrays(file, given)
    save_arrays(file.with_suffix(".sample.npz"), _one_example(given))
    return Inputs(file, known, visible(str(path)))


def _plain(path: Path, folder: Path, inputs: NDArray[Any], targets: NDArray[Any]) -> Inputs:
    """Make `Inputs` from the array `inputs`, whose first axis counts the examples, and one target for each example."""
    given = _kind(inputs)
    if not targets.ndim or targets.shape[:1] != inputs.shape[:1]:
        raise InputError(f"{path}: labels should be one for each input, got {_kind(targets)} for inputs {given}")
    np.save(folder / "second.sample.npy", inputs[:1])
    return Inputs(folder / "second.npy", targets, visible(str(path)), given=given)


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def targets_of(inputs: Inputs, task: Task) -> Inputs:
    """Return the inputs with whole numbers among the targets as int64.

    Raises InputError if the targets are not empty and cannot be targets of the task.
    """
    none = not inputs.given and inputs.targets.shape == (0,)
    problem = "" if none else task.targets_problem(inputs.targets)
    if problem:
        beside = f" for inputs {inputs.given}" if inputs.given and ", got " in problem else ""
        raise InputError(f"{inputs.about}: {problem}{beside}")
    whole = inputs.targets.dtype.kind in "iu"
    return dataclasses.replace(inputs, targets=inputs.targets.astype(np.int64)) if whole else inputs


def _one_example(given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The first example of the arrays if they are large. Small arrays are kept completely, because it is not known here
    which axis counts the examples."""
    count = max((len(array) for array in given.values() if array.ndim), default=0)
    large = sum(array.nbytes for array in given.values()) > SMALL_BYTES
    return {name: array[:1] if large and array.shape[:1] == (count,) else array for name, array in given.items()}


SMALL_BYTES = 4_000_000
"""Arrays up to this size do not noticeably change a worker's peak memory."""


def finished(folder: Path) -> tuple[Run, dict[str, Any], list[ModelFigures]]:
    """Read a finished run: the run, the content of its `result.json`, and its models, the teacher first.

    Raises InputError if the folder is not a run, or if the run is unfinished or damaged.
    """
    run = Run(folder)
    if not run.result.exists():
        begun = (folder / "run.json").exists()
        what = "is not finished; run its `edgekd distill` again" if begun else "is no run folder"
        raise InputError(f"{folder}: {what}")
    refuse_tampered(folder)
    content, models = read_models(run.result)
    return run, content, models


def subject_of(file: Path, model: ModelFigures) -> Subject:
    """Make the subject of a measurement from a model of a run, with its name, precision and size."""
    return Subject(name=model.name, file=file, precision=model.precision, params=model.params, macs=model.macs)


def measure_files(
    paths: Sequence[Path],
    site: Site,
    effort: Effort,
    estimate: Estimate,
    inputs: Inputs | None = None,
    progress_of: Callable[[str], OnProgress] | None = None,
) -> tuple[list[Measured], list[EdgekdError]]:
    """Measure single model files, with their scores if `inputs` are given. Errors are collected, and the results of
    the other models are kept."""
    problems: list[EdgekdError] = [
        InputError(f"{path}: no such model file or run folder") for path in paths if not path.is_file()
    ]
    names = told_apart(paths)
    subjects = [
        Subject(name=name, file=path, precision="as it is")
        for name, path in zip(names, paths, strict=True)
        if path.is_file()
    ]
    if inputs:
        for subject in subjects:
            targets_of(inputs, task_of_file(subject.file))
    measured = []
    taken = measure_each(subjects, site, inputs.file if inputs else None, None, effort)
    for subject, figures in zip(subjects, taken, strict=True):
        try:
            if isinstance(figures, EdgekdError):
                raise figures
            measured.append(_with_scores(subject, figures, site, effort, estimate, inputs, progress_of))
        except EdgekdError as error:
            problems.append(error)
    return measured, problems


def _with_scores(
    subject: Subject,
    figures: ModelFigures,
    site: Site,
    effort: Effort,
    estimate: Estimate,
    inputs: Inputs | None,
    progress_of: Callable[[str], OnProgress] | None,
) -> Measured:
    (known,) = estimate([figures], [subject], site)
    task = task_of_file(subject.file)
    known, word = dataclasses.replace(known, kinds=task.scores), task.scores[0].limit_words
    if inputs is None:
        return Measured(known, f"a bare file brings no data: {word} unknown")
    if not len(inputs.targets):
        return Measured(known, f"{inputs.about} holds no labels: {word} unknown")
    inputs = targets_of(inputs, task)
    with scratch() as folder:
        on_progress = progress_of(subject.name) if progress_of else None
        outputs = logits_of(subject, site, inputs.file, Path(folder), task, effort, on_progress)
    check_targets(outputs, inputs, task, subject.file)
    (scored,) = evaluate([known], [outputs], References(task=task, targets=inputs.targets), site)
    return Measured(scored, f"{word} on {inputs.about}, {len(inputs.targets)} inputs")


def check_targets(outputs: Outputs, inputs: Inputs, task: Task, path: Path) -> None:
    """Raise InputError if there is not one target for each answer, or if the targets do not fit the model's outputs."""
    if len(inputs.targets) != len(outputs):
        raise InputError(f"{inputs.about}: has {len(inputs.targets)} labels, and {path} is fed {len(outputs)} examples")
    if problem := task.fit_problem(outputs, inputs.targets, str(path)):
        raise InputError(f"{inputs.about}: {problem}")


def measure_run(
    run: Run,
    subjects: Sequence[Subject],
    site: Site,
    effort: Effort,
    estimate: Estimate,
    inputs: Inputs,
    folder: Path,
    progress_of: Callable[[str], OnProgress] | None = None,
) -> tuple[list[Measured], list[EdgekdError]]:
    """Measure the models of a run, the teacher first. Errors are collected, and the results of the other models are
    kept.

    Records and logits are written to `folder`. `progress_of(name)` returns the callback for the progress of that model.
    """
    task = task_of_run(run)
    inputs = targets_of(inputs, task)
    taken = measure_each(subjects, site, inputs.file, folder, effort)
    problems = [error for error in taken if isinstance(error, EdgekdError)]
    pairs = [(s, t) for s, t in zip(subjects, taken, strict=True) if not isinstance(t, EdgekdError)]
    known = [subject for subject, _ in pairs]
    figures = estimate([model for _, model in pairs], known, site)
    measured: list[Measured] = []
    teacher = None
    for subject, model in zip(known, figures, strict=True):
        try:
            on_progress = progress_of(subject.name) if progress_of else None
            outputs = logits_of(subject, site, inputs.file, folder, task, effort, on_progress)
            check_targets(outputs, inputs, task, subject.file)
        except EdgekdError as error:
            problems.append(error)
            continue
        teacher = outputs if subject is subjects[0] else teacher
        references = References(task=task, targets=inputs.targets, teacher=teacher, torch=_torch(inputs, subject))
        (scored,) = evaluate([model], [outputs], references, site)
        measured.append(Measured(scored))
    return measured, problems


def _torch(inputs: Inputs, subject: Subject) -> Outputs | None:
    """The outputs in torch of the network from which the file was made; None if they were not kept."""
    network, _, variant = subject.name.partition(" ")
    name = next((one for one in (variant, network) if one in inputs.torch), "student")
    return inputs.torch.get(name)


def all_subjects(run: Run, models: Sequence[ModelFigures]) -> list[Subject]:
    """Every exported file of the run, as a subject of a measurement."""
    return [subject_of(run.exported / model.file, model) for model in models]
