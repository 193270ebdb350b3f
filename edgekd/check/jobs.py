"""One job of a check, from a path and a target's name to a verdict; what goes wrong becomes part of the answer."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgekd.bench.paths import Estimate, read_arrays
from edgekd.bench.records import Effort
from edgekd.card import Budget
from edgekd.check.judge import Judged, effective_budget
from edgekd.check.manifest import Job
from edgekd.check.measure import Asked, check, judge_record, measure_all
from edgekd.check.record import Checked, Sample, read_record
from edgekd.check.sources import Source, baseline_of, is_record, refuse_other_machine, source_of
from edgekd.environments import require_runtime
from edgekd.errors import ConfigError, EdgekdError, ExitCode, InputError
from edgekd.target import Target, load_target

__all__ = ["JobOptions", "run_job", "sample_of"]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What holds for all jobs of a check."""

    allow_estimated: bool = False
    allow_difference: tuple[str, ...] = ()
    effort: Effort = field(default_factory=Effort)


def run_job(
    job: Job, options: JobOptions, estimate: Estimate, told: Callable[[str], None]
) -> tuple[Judged, Checked | None]:
    """The verdict on one model on one target, or why there is none, and what was measured for it."""
    try:
        target = load_target(job.target)
        if is_record(job.path):
            return _judged_record(job, target, options), None
        return _measured(job, target, options, estimate, told)
    except EdgekdError as error:
        name = job.path.name or str(job.path)
        code = ExitCode(error.exit_code)
        return Judged(name=name, target=Path(job.target).stem, problem=str(error), problem_code=code), None


def _judged_record(job: Job, target: Target, options: JobOptions) -> Judged:
    """A record is judged as it is; with a baseline record, against that one."""
    checked = _record_of(job.path, target)
    if job.baseline is not None:
        stored = baseline_of(job.baseline, target)
        if isinstance(stored, Source):
            raise ConfigError(f"--baseline {job.baseline}: {job.path} is a record, so its baseline must be one, too")
        refuse_other_machine(stored.sample, checked.sample, options.allow_difference)
        checked = Checked(sample=checked.sample, baseline=stored.sample, stored=True)
    return judge_record(checked, _asked(job, Budget(), target, options, checked.baseline is not None), target)


def _record_of(path: Path, target: Target) -> Checked:
    checked = read_record(path)
    if checked.sample.target != target.name:
        raise InputError(f"{path}: is a record of target {checked.sample.target}, not of {target.name}")
    return checked


def _measured(
    job: Job, target: Target, options: JobOptions, estimate: Estimate, told: Callable[[str], None]
) -> tuple[Judged, Checked]:
    require_runtime(target)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        inputs = read_arrays(job.data, Path(scratch)) if job.data else None
        source = source_of(job.path, target, inputs)
        baseline = baseline_of(job.baseline, target) if job.baseline else None
        asked = _asked(job, source.budget, target, options, baseline is not None)
        return check(source, target, asked, baseline, estimate, lambda text: told(f"{source.name}: {text}"))


def _asked(job: Job, own: Budget, target: Target, options: JobOptions, compared: bool) -> Asked:
    """By what the job is judged; ConfigError if by nothing."""
    budget = effective_budget(own.with_values(job.budget), target)
    if budget == Budget() and not compared:
        raise ConfigError(
            f"{job.path}: no budget to judge it by; give one or more --budget key=value, such as size_kb=300, "
            "or a --baseline to hold it against"
        )
    return Asked(
        budget=budget,
        tolerance=job.tolerance,
        allow_estimated=options.allow_estimated,
        allow_difference=options.allow_difference,
        effort=options.effort,
    )


def sample_of(job: Job, estimate: Estimate) -> Sample:
    """Everything of one model, measured now or taken from a record, to keep as a baseline."""
    if is_record(job.path):
        return _record_of(job.path, load_target(job.target)).sample if job.target else read_record(job.path).sample
    target = load_target(job.target)
    require_runtime(target)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        inputs = read_arrays(job.data, Path(scratch)) if job.data else None
        return measure_all(source_of(job.path, target, inputs), target, Effort(), estimate)
