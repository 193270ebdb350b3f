"""The functions that `import edgekd` offers to Python programs. The command line offers the same functions."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.card import Budget, Card
from edgekd.figures import ModelFigures
from edgekd.judge import Judged
from edgekd.result import Result, read_result
from edgekd.run import Run, open_run
from edgekd.spec import build
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card

__all__ = ["bench", "check", "distill", "load_card", "load_result", "load_target"]

Name = str | Path


def distill(
    card: Card | str,
    target: Target | str,
    *,
    data: Name | None = None,
    teacher: Name | None = None,
    out: Name | None = None,
    budget: Mapping[str, float] | None = None,
    device: str = "",
    fresh: bool = False,
    online: bool = False,
) -> Result:
    """Distil a teacher into a judged ONNX file, as `edgekd distill` does. If the run is already finished, its result is
    only read.

    `card` and `target` may be names of bundled ones or paths of files. `data` and `teacher` replace the card's own;
    `budget` maps budget keys to limits that replace the card's limits. The run folder is `out`, by default
    `runs/CARD@TARGET`. `online` runs the teacher at every step instead of reading its outputs from the cache.

    Raises EdgekdError, whose text is one line, for any problem that the caller can correct, and BudgetError if no
    candidate fits the budget. A failed or inconclusive verdict raises no error: see `Result.verdict`.
    """
    from edgekd.devices.local import connect
    from edgekd.distill.identity import refuse_changes
    from edgekd.distill.student import TrainingOptions
    from edgekd.external import named_files
    from edgekd.pipeline import Request
    from edgekd.pipeline import distill as go

    card = load_card(card) if isinstance(card, str) else card
    target = load_target(target) if isinstance(target, str) else target
    limits = build(Budget, dict(budget or {}), "budget")
    data, teacher = (Path(given) if given is not None else None for given in (data, teacher))
    folder = Path(out) if out is not None else Path("runs", f"{card.name}@{target.name}")
    files = named_files(card, teacher, data)
    asked = card.budget(target.name, limits)
    with (
        contextlib.closing(connect(target, device)) as site,
        open_run(folder, card, target, asked, files, fresh) as run,
    ):
        if run.result.exists() and run.model.exists():
            refuse_changes(card, run, data, teacher is not None or bool(card.teacher.weights))
            return read_result(run.result)
        options = TrainingOptions(online=online)
        return go(Request(card=card, data=data, teacher=teacher, budget=limits, options=options), site, run)


def bench(models: Sequence[Name], target: Target | str, *, quick: bool = False) -> list[ModelFigures]:
    """Measure latency, size, memory and placement of model files on the target, as `edgekd bench` does. The models are
    measured by turns.

    If models cannot be measured, raises the first EdgekdError; InputError for a file that does not exist.
    """
    from edgekd.bench.records import QUICK, Effort
    from edgekd.devices.local import connect
    from edgekd.runs import measure_files
    from edgekd.search.estimating import estimate

    target = load_target(target) if isinstance(target, str) else target
    with contextlib.closing(connect(target)) as site:
        measured, problems = measure_files(
            [Path(model) for model in models], site, QUICK if quick else Effort(), estimate
        )
    if problems:
        raise problems[0]
    return [model.figures for model in measured]


def check(
    model: Name,
    target: Target | str,
    *,
    baseline: Name | None = None,
    budget: Mapping[str, float] | None = None,
    tolerance: Mapping[str, float | str] | None = None,
    data: Name | None = None,
) -> Judged:
    """Judge a model file, a run folder or a record by `budget` and against `baseline`, as `edgekd check` does.

    A problem with the model or the baseline raises no error; `Judged.problem` describes it.
    """
    from edgekd.check.asked import CheckJob, JobOptions
    from edgekd.check.jobs import run_job
    from edgekd.check.tolerance import Tolerance
    from edgekd.search.estimating import estimate

    job = CheckJob(
        path=Path(model),
        target=target if isinstance(target, str) else target.option,
        budget=build(Budget, dict(budget or {}), "budget"),
        tolerance=build(Tolerance, dict(tolerance or {}), "tolerance"),
        baseline=Path(baseline) if baseline is not None else None,
        data=Path(data) if data is not None else None,
    )
    judged, _ = run_job(job, JobOptions(), estimate, lambda text: None)
    return judged


def load_result(run: Name) -> Result:
    """Read the result of a finished run from its folder. Raises InputError if there is no result or it cannot be
    read."""
    from edgekd.runs import finished

    finished(Path(run))  # raises an error that says what is wrong with the folder
    return read_result(Run(Path(run)).result)
