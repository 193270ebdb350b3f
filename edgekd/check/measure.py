"""What `bench` and `check` measure of a run folder or a bare model file; no torch."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench.measure import Effort, Subject, evaluate, file_sha256, logits_of, measure_speed
from edgekd.card import Budget
from edgekd.check.judge import Verdict, budget_figures, effective_budget, judge
from edgekd.errors import ConfigError, EdgekdError, InputError
from edgekd.figures import Figure, ModelFigures
from edgekd.result import read_models
from edgekd.run import Run, read_json
from edgekd.target import Target

__all__ = ["Measured", "measure_for_check", "measure_paths"]


Estimate = Callable[[Sequence[ModelFigures], Sequence[Subject], Target], list[ModelFigures]]
"""Fills in latencies of a target that is not this machine; `edgekd.search.estimate.with_estimates`, which needs
torch, or a function that leaves them unknown."""


@dataclass(frozen=True)
class Measured:
    """The figures of one model, and what a reader must know beside them."""

    figures: ModelFigures
    remark: str = ""
    teacher_accuracy: Figure | None = None


def measure_paths(
    paths: Sequence[Path], target: Target, effort: Effort, estimate: Estimate
) -> tuple[list[Measured], list[EdgekdError]]:
    """Every model of every run folder, and every bare file; problems are collected, the rest is kept."""
    taken: list[Measured] = []
    problems: list[EdgekdError] = []
    for path in paths:
        try:
            taken += _run(path, target, effort, estimate) if path.is_dir() else [_file(path, target, effort, estimate)]
        except EdgekdError as error:
            problems.append(error)
    return taken, problems


def measure_for_check(
    path: Path, target: Target, override: Budget, allow_estimated: bool, estimate: Estimate
) -> tuple[Measured, Verdict]:
    """Measure a run's `model.onnx` or a bare file now, and judge it.

    A run brings its card's budget, which `override` overrides. Raises ConfigError if there is no budget.
    """
    if path.is_dir():
        run, content, models = _finished(path)
        measured = _chosen(run, content, models, target, estimate)
        budget = _run_budget(run, content, target).with_values(override)
    else:
        measured, budget = _file(path, target, Effort(), estimate), override
    budget = dataclasses.replace(budget, teacher_min_accuracy=None)  # the teacher's, not this file's
    budget = effective_budget(budget, target)
    if budget == Budget():
        raise ConfigError(f"{path}: no budget to judge it by; give one or more --budget key=value, such as size_kb=300")
    return measured, judge(budget_figures(measured.figures, measured.teacher_accuracy), budget, allow_estimated)


def _file(path: Path, target: Target, effort: Effort, estimate: Estimate) -> Measured:
    if not path.is_file():
        raise InputError(f"{path}: no such model file or run folder")
    subject = Subject(name=path.name, file=path, precision="as it is")
    (figures,) = estimate(measure_speed([subject], target, None, None, effort), [subject], target)
    remark = "seeded random inputs, for a bare file brings none; accuracy unknown"
    return Measured(figures, remark)


def _run(folder: Path, target: Target, effort: Effort, estimate: Estimate) -> list[Measured]:
    """Teacher and variants of a finished run, with accuracy on its test data."""
    run, _, models = _finished(folder)
    subjects = [_subject(run.exported / model.file, model) for model in models]
    return _with_accuracy(run, subjects[0], subjects, target, effort, estimate)


def _chosen(
    run: Run, content: dict[str, Any], models: list[ModelFigures], target: Target, estimate: Estimate
) -> Measured:
    """The run's `model.onnx`, as it lies there now."""
    chosen = next(model for model in models if model.name == content["chosen"])
    if not run.model.is_file():
        raise InputError(f"{run.model}: is missing; run its `edgekd distill` with --fresh")
    if file_sha256(run.model) != chosen.sha256:
        raise InputError(f"{run.model}: is not the file the run made (its SHA-256 differs); check it by its own path")
    teacher = _subject(run.exported / models[0].file, models[0])
    (measured,) = _with_accuracy(run, teacher, [_subject(run.model, chosen)], target, Effort(), estimate)
    return measured


def _subject(file: Path, model: ModelFigures) -> Subject:
    return Subject(name=model.name, file=file, precision=model.precision, params=model.params, macs=model.macs)


def _with_accuracy(
    run: Run, teacher: Subject, subjects: list[Subject], target: Target, effort: Effort, estimate: Estimate
) -> list[Measured]:
    inputs, labels = run.data / "test.npy", np.load(run.data / "test.labels.npy")
    figures = estimate(measure_speed(subjects, target, inputs, None, effort), subjects, target)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:  # answers of today, not those the run kept
        teacher_logits = logits_of(teacher, target, inputs, Path(folder))
        logits = [logits_of(subject, target, inputs, Path(folder)) for subject in subjects]
    (teaching,) = evaluate([figures[0]], [teacher_logits], labels, teacher_logits, target)
    scored = evaluate(figures, logits, labels, teacher_logits, target)
    return [Measured(model, teacher_accuracy=teaching.accuracy) for model in scored]


def _finished(folder: Path) -> tuple[Run, dict[str, Any], list[ModelFigures]]:
    run = Run(folder)
    if not run.result.exists():
        begun = (folder / "run.json").exists()
        what = "is not finished; run its `edgekd distill` again" if begun else "is no run folder"
        raise InputError(f"{folder}: {what}")
    content, models = read_models(run.result)
    return run, content, models


def _run_budget(run: Run, content: dict[str, Any], target: Target) -> Budget:
    """The budget the run was made for; its latency counts on its own target alone."""
    budget = Budget(**read_json(run.folder / "run.json")["budget"])
    if content["target"] == target.name:
        return budget
    return dataclasses.replace(budget, latency_p50_ms=None, latency_p95_ms=None)
