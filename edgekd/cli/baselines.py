"""`baseline accept`: keep measurements as the baselines of later checks."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.bench.feeding import merged
from edgekd.bench.records import Feeding
from edgekd.budget import Budget
from edgekd.check.asked import CheckJob, JobOptions
from edgekd.check.jobs import sample_of
from edgekd.check.manifest import read_manifest
from edgekd.check.record import Sample, as_baseline, is_record, may_be_replaced, read_record, write_record
from edgekd.check.tolerance import Tolerance
from edgekd.check.verdict import figures_of
from edgekd.console import out, say
from edgekd.errors import ConfigError, EdgekdError, ExitCode, one_line
from edgekd.scratch import require_scratch
from edgekd.search.estimating import estimate
from edgekd.units import flat, milliseconds

__all__ = ["accept"]

BASELINES = Path("baselines")
"""The default folder of baselines."""


def accept(
    paths: list[Path],
    targets: list[str],
    manifest: Path | None,
    to: Path | None,
    data: Path | None,
    feedings: Sequence[Feeding] = (Feeding(),),
    options: JobOptions = JobOptions(),  # noqa: B008 - frozen
) -> Iterator[int]:
    """Measure each model, or use its existing record, and keep the record as the baseline; yields the exit codes."""
    _refuse(paths, targets, manifest, to, data, feedings)
    jobs = (
        _of_manifest(manifest) if manifest else [_job(path, name, data) for path in paths for name in targets or [""]]
    )
    if not all(map(is_record, paths)) or manifest:
        require_scratch()
    jobs = [dataclasses.replace(job, feeding=merged(job.feeding, feedings[0])) for job in jobs]
    taken: set[Path] = set()
    for job in jobs:
        try:
            sample = sample_of(job, estimate, options)
            place = _place(job, sample, to)
            if place in taken:
                raise ConfigError(f"{place}: {job.path} would replace the baseline just written; use --to")
            if not may_be_replaced(place):
                raise ConfigError(f"{place}: is there already and is no record of edgekd; name another file")
            changed = _changed(sample, place)
            write_record(place, as_baseline(sample))
        except EdgekdError as error:
            say(f"edgekd: {error}")
            yield error.exit_code
            continue
        except OSError as error:
            say(f"edgekd: {error.filename or job.path}: {os.strerror(error.errno) if error.errno else one_line(error)}")
            yield ExitCode.USAGE
            continue
        taken.add(place)
        out(flat(f"{place}: {sample.name} on {sample.target} {changed}"))
        yield ExitCode.PASS


def _refuse(
    paths: list[Path],
    targets: list[str],
    manifest: Path | None,
    to: Path | None,
    data: Path | None,
    feedings: Sequence[Feeding],
) -> None:
    """Raise ConfigError for options that cannot be combined."""
    if len(feedings) > 1:
        raise ConfigError("baseline accept: a record is of one shape; give one --shape for each input")
    if manifest and (paths or targets or to or data):
        raise ConfigError("--manifest: names models, targets, baselines and data itself; give it alone")
    if manifest is None and not (paths and (targets or all(map(is_record, paths)))):
        raise ConfigError("baseline accept: name models and a --target, records of `check --records`, or a --manifest")
    if to and is_record(to) and len(paths) * max(1, len(targets)) > 1:
        raise ConfigError(f"--to {to}: is one file for several baselines; give a folder")


def _of_manifest(manifest: Path) -> list[CheckJob]:
    jobs = [job for job in read_manifest(manifest) if job.baseline and is_record(job.baseline)]
    if not jobs:
        raise ConfigError(f'{manifest}: names no record; add baseline = "baselines/{{stem}}@{{target}}.json"')
    return jobs


def _job(path: Path, target: str, data: Path | None) -> CheckJob:
    return CheckJob(path=path, target=target, budget=Budget(), tolerance=Tolerance(), data=data)


def _place(job: CheckJob, sample: Sample, to: Path | None) -> Path:
    if job.baseline:
        return job.baseline
    if to and is_record(to):
        return to
    return (to or BASELINES) / f"{sample.stem}@{sample.target}.json"


def _p50(sample: Sample) -> str:
    value = figures_of(sample)["latency_p50_ms"].value
    return "" if value is None else f"; p50 {milliseconds(value)}"


def _changed(now: Sample, place: Path) -> str:
    if not place.exists():
        return f"(new{_p50(now)})"
    try:
        before = read_record(place).sample
    except EdgekdError:  # it is damaged or from another edgekd; the error told the user to write it again
        return f"(replaced; what was there could not be read{_p50(now)})"
    old, new = (figures_of(sample)["latency_p50_ms"].value for sample in (before, now))
    if old is None or new is None:
        return "(replaced)"
    return f"(replaced; p50 {milliseconds(old)} then, {milliseconds(new)} now)"
