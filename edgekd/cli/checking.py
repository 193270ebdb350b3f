"""`check`: make jobs from the command line or a manifest, and print their verdicts."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.bench.feeding import merged, shape_words
from edgekd.bench.records import Effort, Feeding
from edgekd.budget import parse_budget
from edgekd.check.asked import CheckJob, JobOptions
from edgekd.check.jobs import run_job
from edgekd.check.manifest import NAME, manifest_for_run, read_manifest
from edgekd.check.record import Checked, is_record
from edgekd.check.tolerance import Tolerance, parse_tolerance
from edgekd.check.wording import shown_margin
from edgekd.cli.outputs import Outputs, write_outputs
from edgekd.console import out, say, status
from edgekd.errors import ConfigError, ExitCode
from edgekd.files import atomic, real, told_apart
from edgekd.judge import Judged, Line, exit_code_of, read_counted
from edgekd.scratch import require_scratch
from edgekd.search.estimating import estimate
from edgekd.tasks.known import deciding
from edgekd.units import flat, visible

__all__ = ["CheckOptions", "check_models", "write_manifest"]

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not judged": "–"}


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The options of `check`, apart from models and targets."""

    budget: list[str] = field(default_factory=list)
    tolerance: list[str] = field(default_factory=list)
    baseline: Path | None = None
    manifest: Path | None = None
    data: Path | None = None
    feedings: tuple[Feeding, ...] = (Feeding(),)
    """More than one if several shapes of an input were requested."""
    write_baseline: bool = False
    """Whether a stored baseline that does not exist yet is written; then only the budgets decide."""
    allow_estimated: bool = False
    allow_difference: tuple[str, ...] = ()
    on_inconclusive: str | None = None
    ratchet: bool = False
    timeout_s: float = 300.0
    device: str = ""
    accuracy_on: str = ""
    outputs: Outputs = field(default_factory=Outputs)


def check_models(paths: list[Path], targets: list[str], options: CheckOptions) -> Iterable[int]:
    """Judge and print each model on each target; yields the exit codes."""
    read_counted(options.on_inconclusive)
    jobs = _jobs(paths, targets, options)
    _refuse_overwriting(jobs, options)
    limits = JobOptions(
        allow_estimated=options.allow_estimated,
        allow_difference=options.allow_difference,
        write_baseline=options.write_baseline,
        effort=Effort(timeout_s=options.timeout_s),
        device=options.device,
        accuracy_on=options.accuracy_on,
    )
    if not all(is_record(job.path) for job in jobs):
        require_scratch()
    done: list[Judged] = []
    records: list[Checked] = []
    names = dict(zip((job.path for job in jobs), told_apart([job.path for job in jobs]), strict=True))
    for job in jobs:
        with status() as on_status:
            judged, checked = run_job(job, limits, estimate, on_status)
        judged = _named(judged, job, names[job.path], len(options.feedings) > 1)
        done.append(judged)
        records += [checked] if checked else []
        _show(judged, options.on_inconclusive)
        if options.ratchet:
            _offer(judged)
        yield exit_code_of(judged, options.on_inconclusive)
    yield from write_outputs(options.outputs, done, records, options.on_inconclusive)


def _named(judged: Judged, job: CheckJob, name: str, several: bool) -> Judged:
    """The verdict under a name that distinguishes files of the same name, and several shapes of one file."""
    parent = name.removesuffix(job.path.name)
    shape = f" ({shape_words(job.feeding)})" if several else ""
    return dataclasses.replace(judged, name=f"{visible(parent)}{judged.name}{shape}") if parent or several else judged


def _refuse_overwriting(jobs: list[CheckJob], options: CheckOptions) -> None:
    """Raise ConfigError if an output file is also an input, or another output."""
    inputs = [options.manifest, *(path for job in jobs for path in (job.path, job.baseline, job.data))]
    taken = {real(path): "read" for path in inputs if path is not None}
    for field_ in dataclasses.fields(options.outputs):
        path = getattr(options.outputs, field_.name)
        if path is not None:
            option = f"--{field_.name.replace('_', '-')}"
            if use := taken.get(real(path)):
                raise ConfigError(f"{option} {path}: is {use} by this check already; name another file")
            taken[real(path)] = f"written ({option})"


def _jobs(paths: list[Path], targets: list[str], options: CheckOptions) -> list[CheckJob]:
    """The jobs from the command line or from the manifest."""
    kinds = deciding()
    budget, tolerance = parse_budget(options.budget, kinds), parse_tolerance(options.tolerance, kinds)
    if options.manifest:
        if paths or targets or options.baseline or options.data:
            raise ConfigError("--manifest: names models, targets, baselines and data itself; give it alone")
        return [
            dataclasses.replace(
                job,
                budget=job.budget.with_values(budget),
                tolerance=job.tolerance.with_values(tolerance),
                feeding=merged(job.feeding, feeding),
            )
            for job in read_manifest(options.manifest)
            for feeding in options.feedings
        ]
    if not paths:
        hint = f" (there is one here: --manifest {NAME})" if Path(NAME).is_file() else ""
        raise ConfigError(f"check: no model given; name model files, run folders or records, or a --manifest{hint}")
    if not targets:
        raise ConfigError("check: no target given; name one, such as --target cpu-x86 (`edgekd targets` lists them)")
    if tolerance and not options.baseline and not all(map(is_record, paths)):
        raise ConfigError("--tolerance: says how much worse than a baseline a model may be; give a --baseline, too")
    limits = Tolerance().with_values(tolerance)
    places: dict[str, Any] = {"baseline": options.baseline, "data": options.data}
    return [
        CheckJob(path=path, target=target, budget=budget, tolerance=limits, feeding=feeding, **places)
        for target in targets
        for path in paths
        for feeding in options.feedings
    ]


def _show(judged: Judged, on_inconclusive: str | None) -> None:
    if judged.verdict is None:
        say(f"edgekd: {judged.problem}")
        return
    against = f", against {judged.baseline}" if judged.baseline else ""
    counted = on_inconclusive if judged.outcome == "inconclusive" else None
    taken = f" (counted as {counted}: --on-inconclusive)" if counted else ""
    out(flat(f"{judged.name} on {judged.target}: {judged.outcome}{taken}{against}, {judged.seconds:.1f} s"))
    for line in judged.verdict.lines:
        for text in _texts(line):
            out(f"  {text}")
    for note in judged.notes:
        out(f"  note: {flat(note)}")


def _texts(line: Line) -> Iterator[str]:
    """The line as text, and below it the interval, the margin to the limit, and the certainty."""
    yield f"{MARKS[line.outcome]} {flat(line.text)}"
    margin = f"margin {shown_margin(line)}" if line.margin is not None else ""
    if known := "; ".join(filter(None, [line.shown_interval, margin, line.confidence])):
        yield f"    {flat(known)}"


def _offer(judged: Judged) -> None:
    """Print stricter limits that this measurement would still pass, with a reserve of 5 %."""
    lines = judged.verdict.lines if judged.verdict else ()
    offered = [text for line in lines if (text := _tighter(line))]
    if offered:
        out("  --ratchet: tighter limits that it would still pass, with 5 % to spare:")
    for text in offered:
        out(f"    {text}")
    slowdown = next((line.figure.high for line in lines if line.key == "max_slowdown"), None)
    if judged.outcome == "pass" and slowdown is not None and slowdown < 0:
        out("  --ratchet: faster than its baseline; `edgekd baseline accept` makes this model the new one")


def _tighter(line: Line) -> str:
    """A stricter limit as a line of TOML, `size_kb = 240    # was 300`; empty if the limit cannot be reduced."""
    bound = line.figure.value if line.figure.high is None else line.figure.high
    if line.outcome != "pass" or bound is None or line.metric.unit not in ("ms", "B", "MB"):
        return ""
    tighter = float(f"{1.05 * bound:.3g}")
    return f"{line.key} = {tighter:g}    # was {line.limit:g}" if tighter < 0.95 * line.limit else ""


def write_manifest(paths: list[Path]) -> int:
    """Write `edgekd-check.toml` from a run folder. An existing file is not replaced."""
    if len(paths) != 1:
        raise ConfigError("--init: name the one run folder to write a manifest from")
    path = Path(NAME)
    if path.exists():
        raise ConfigError(f"{path}: is there already; add a [[model]] by hand, or move it away")
    text = manifest_for_run(paths[0], Path())
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    out(f"wrote {path}; now: edgekd check --manifest {path}")
    return ExitCode.PASS
