"""Run one job of a check, from a path and a target's name to a verdict; errors become part of the answer."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.budget import Budget, refuse_others
from edgekd.check.asked import CheckJob, Criteria, JobOptions
from edgekd.check.record import (
    Checked,
    Sample,
    as_baseline,
    is_record,
    read_record,
    record_of,
    refuse_other_machine,
    write_record,
)
from edgekd.check.tolerance import refuse_other_tolerances
from edgekd.check.verdict import judge_record, judged_of
from edgekd.errors import ConfigError, EdgekdError, ExitCode, InputError, one_line
from edgekd.judge import Judged, Verdict, effective_budget
from edgekd.scratch import scratch as new_scratch
from edgekd.target import Target, load_target
from edgekd.units import visible

if TYPE_CHECKING:  # modules that measure are imported where they are used, so that judging records remains fast
    from edgekd.check.sources import Source
    from edgekd.devices.device import Site
    from edgekd.runs import Estimate

__all__ = ["run_job", "sample_of"]


def run_job(
    job: CheckJob, options: JobOptions, estimate: "Estimate", on_status: Callable[[str], None]
) -> tuple[Judged, Checked | None]:
    """Return the verdict on one model on one target, or the reason why there is none, and what was measured for it."""
    try:
        target = load_target(job.target)
        if is_record(job.path):
            return _judged_record(job, target, options), None
        return _measured(job, target, options, estimate, on_status)
    except EdgekdError as error:
        problem, code = str(error), ExitCode(error.exit_code)
    except OSError as error:  # an unreadable file or a full disk, for example: the other jobs still run
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        problem, code = f"{error.filename or job.path}: {reason}", ExitCode.USAGE
    target_name = Path(job.target).stem if job.target.endswith(".toml") else job.target
    name = job.path.name or str(job.path)
    return Judged(name=visible(name), target=target_name, problem=problem, problem_code=code), None


def _judged_record(job: CheckJob, target: Target, options: JobOptions) -> Judged:
    """Judge a record without a measurement, and compare it with the baseline, which must also be a record."""
    checked, allowed = record_of(job.path, target), []
    if job.data is not None:
        raise ConfigError(f"--data {job.data}: {job.path} is a record, which holds its answers already; leave it out")
    if job.baseline is not None:
        if not is_record(job.baseline):
            raise ConfigError(f"--baseline {job.baseline}: {job.path} is a record, so its baseline must be one, too")
        stored = record_of(job.baseline, target).sample
        allowed = refuse_other_machine(stored, checked.sample, options.allow_difference)
        checked = Checked(sample=checked.sample, baseline=stored, stored=True)
    criteria = _criteria(
        job, Budget(checked.sample.kind, **checked.budget), target, options, checked.baseline is not None
    )
    judged = judge_record(checked, criteria, target)
    return dataclasses.replace(judged, file=str(job.path), notes=(*allowed, *judged.notes))


def _measured(
    job: CheckJob, target: Target, options: JobOptions, estimate: "Estimate", on_status: Callable[[str], None]
) -> tuple[Judged, Checked]:
    from edgekd.check.measure import check
    from edgekd.check.sources import baseline_of, source_of
    from edgekd.devices.local import connect
    from edgekd.runs import read_arrays

    with closing(connect(target, options.device, options.accuracy_on)) as site, new_scratch() as scratch:
        inputs = read_arrays(job.data, scratch) if job.data else None
        source = source_of(job.path, target, inputs)
        if options.write_baseline and job.baseline and is_record(job.baseline) and not job.baseline.exists():
            return _first_of_its_kind(job, source, site, options, estimate, on_status)
        baseline = baseline_of(job.baseline, target) if job.baseline else None
        criteria = _criteria(job, source.budget, target, options, baseline is not None)
        return check(source, site, criteria, baseline, estimate, lambda text: on_status(f"{source.name}: {text}"))


def _first_of_its_kind(
    job: CheckJob,
    source: "Source",
    site: "Site",
    options: JobOptions,
    estimate: "Estimate",
    on_status: Callable[[str], None],
) -> tuple[Judged, Checked]:
    """Judge by the budgets only, and measure a baseline for the next check, which is written if the budgets pass."""
    from edgekd.check.measure import check, measure_all

    assert job.baseline is not None
    target = site.target
    criteria = _criteria(job, source.budget, target, options, True)
    judged = checked = None
    if criteria.budget.values:
        judged, checked = check(
            source, site, criteria, None, estimate, lambda text: on_status(f"{source.name}: {text}")
        )
        if judged.outcome != "pass":
            note = f"{job.baseline}: is not there, and was not written, for the budgets do not pass"
            return dataclasses.replace(judged, notes=(*judged.notes, note)), checked
    on_status(f"{source.name}: the baseline")
    kept = as_baseline(measure_all(source, site, criteria.effort, estimate))
    write_record(job.baseline, kept)
    if judged is None or checked is None:
        judged, checked = judged_of(kept, Verdict(()), [], target), kept
        judged = dataclasses.replace(judged, file=str(job.path))
    note = f"{job.baseline}: was not there; it was written, and the next check is held against it"
    return dataclasses.replace(judged, notes=(note, *judged.notes)), checked


def _criteria(job: CheckJob, own: Budget, target: Target, options: JobOptions, compared: bool) -> Criteria:
    """Return the criteria of the job. Raises ConfigError if there is no budget and no comparison."""
    asked = refuse_others(job.budget, own.kind, f"{job.path}: budget")
    budget = effective_budget(own.with_values(asked), target)
    tolerance = refuse_other_tolerances(job.tolerance, own.kind, f"{job.path}: tolerance")
    if not tolerance.limits(own.kind):
        compared = False
    if not budget.values and not compared:
        raise ConfigError(
            f"{job.path}: no budget to judge it by; give one or more --budget key=value, such as size_kb=300, "
            "or a --baseline to hold it against"
        )
    return Criteria(
        budget=budget,
        tolerance=tolerance,
        allow_estimated=options.allow_estimated,
        allow_difference=options.allow_difference,
        effort=dataclasses.replace(options.effort, feeding=job.feeding),
    )


def sample_of(job: CheckJob, estimate: "Estimate", options: JobOptions = JobOptions()) -> Sample:  # noqa: B008 - frozen
    """Return all values of one model for a baseline, measured now or taken from a record.

    Raises InputError for a record that was made only for a comparison, because it contains too little.
    """
    if is_record(job.path):
        return _whole(read_record(job.path) if not job.target else record_of(job.path, load_target(job.target)), job)
    from edgekd.check.measure import measure_all
    from edgekd.check.sources import source_of
    from edgekd.devices.local import connect
    from edgekd.runs import read_arrays

    target = load_target(job.target)
    with closing(connect(target, options.device, options.accuracy_on)) as site, new_scratch() as scratch:
        inputs = read_arrays(job.data, scratch) if job.data else None
        effort = dataclasses.replace(options.effort, feeding=job.feeding)
        return measure_all(source_of(job.path, target, inputs), site, effort, estimate)


def _whole(checked: Checked, job: CheckJob) -> Sample:
    sample = checked.sample
    if not sample.latency and not sample.elsewhere:
        raise InputError(
            f"{job.path}: holds no times of the model alone, which a baseline needs; "
            "`edgekd baseline accept MODEL --target T` measures them"
        )
    return sample
