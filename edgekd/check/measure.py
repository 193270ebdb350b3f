"""What `check` measures of a run folder or a bare model file; no torch."""

import dataclasses
import tempfile
from pathlib import Path

from edgekd.bench.measure import file_sha256
from edgekd.bench.paths import Estimate, Measured, finished, measure_file, measure_run, run_inputs, subject_of
from edgekd.bench.records import Effort
from edgekd.card import Budget
from edgekd.check.judge import Verdict, budget_figures, effective_budget, judge
from edgekd.errors import ConfigError, InputError
from edgekd.run import Run, read_json
from edgekd.target import Target

__all__ = ["measure_for_check"]

EFFORT = Effort()
"""How much time each file gets."""


def measure_for_check(
    path: Path, target: Target, override: Budget, allow_estimated: bool, estimate: Estimate
) -> tuple[Measured, Verdict]:
    """Measure a run's `model.onnx` or a bare file now, and judge it.

    A run brings its card's budget, which `override` overrides. Raises ConfigError if there is no budget.
    """
    if path.is_dir():
        measured, budget = _run(path, target, estimate)
        budget = budget.with_values(override)
    else:
        measured, budget = measure_file(path, target, EFFORT, estimate), override
    budget = dataclasses.replace(budget, teacher_min_accuracy=None)  # the teacher's, not this file's
    budget = effective_budget(budget, target)
    if budget == Budget():
        raise ConfigError(f"{path}: no budget to judge it by; give one or more --budget key=value, such as size_kb=300")
    return measured, judge(budget_figures(measured.figures, measured.teacher_accuracy), budget, allow_estimated)


def _run(path: Path, target: Target, estimate: Estimate) -> tuple[Measured, Budget]:
    """The run's `model.onnx`, as it lies there now, and the budget the run was made for."""
    run, content, models = finished(path)
    chosen = next(model for model in models if model.name == content["chosen"])
    if not run.model.is_file():
        raise InputError(f"{run.model}: is missing; run its `edgekd distill` with --fresh")
    if file_sha256(run.model) != chosen.sha256:
        raise InputError(f"{run.model}: is not the file the run made (its SHA-256 differs); check it by its own path")
    subjects = [subject_of(run.exported / models[0].file, models[0]), subject_of(run.model, chosen)]
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:  # measured today, not what the run kept
        measured, problems = measure_run(run, subjects, target, EFFORT, estimate, run_inputs(run, "test"), Path(folder))
    if problems:
        raise problems[0]
    return measured[1], _run_budget(run, content["target"], target)


def _run_budget(run: Run, made_for: str, target: Target) -> Budget:
    """The budget the run was made for; its latency counts on its own target alone."""
    budget = Budget(**read_json(run.folder / "run.json")["budget"])
    if made_for == target.name:
        return budget
    return dataclasses.replace(budget, latency_p50_ms=None, latency_p95_ms=None)
