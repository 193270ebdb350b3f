"""Measure what `check` needs until the planned looks reach a verdict; this module does not need torch."""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgekd import __version__
from edgekd.bench.instructions import count_instructions, require_counting
from edgekd.bench.measure import Subject, logits_of, weights_problem
from edgekd.bench.records import PAIR, Effort, Record, comparable
from edgekd.bench.remarks import steering_remarks
from edgekd.bench.runner import (
    measure_load,
    measure_memory,
    measure_pair,
    measure_placement,
    measure_process,
    sampled,
)
from edgekd.bench.sequences import steering_of
from edgekd.bench.statistics import bootstrap
from edgekd.budget import Budget
from edgekd.check.asked import Criteria
from edgekd.check.looks import BUDGET_LOOKS, PAIR_LOOKS
from edgekd.check.record import Answers, Checked, Sample, refuse_other_machine
from edgekd.check.sources import Source, signature_of
from edgekd.check.verdict import judge_samples, judged_of
from edgekd.devices.device import Site
from edgekd.errors import ModelError
from edgekd.external import file_digest, whole_model
from edgekd.figures import ModelFigures
from edgekd.judge import Judged, Verdict
from edgekd.runs import Estimate, Inputs, check_targets, targets_of
from edgekd.scratch import scratch
from edgekd.tasks.task import Outputs

__all__ = ["check", "measure_all", "pair_effort"]

MEMORY_PROCESSES = 3
SPEED_BUDGETS = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "load_ms")
SPEED_TOLERANCES = ("max_slowdown", "max_slowdown_p95", "max_load_growth")


@dataclass(frozen=True)
class _Needs:
    """The measurements that a verdict needs; others are not made."""

    latency: bool
    pairs: bool
    memory: bool
    placement: bool
    instructions: bool
    answers: bool


OnStatus = Callable[[str], None]


def check(
    source: Source,
    site: Site,
    criteria: Criteria,
    baseline: Source | Checked | None,
    estimate: Estimate,
    on_status: OnStatus,
) -> tuple[Judged, Checked]:
    """Measure a model, and its baseline if there is one, until every planned look has its verdict.

    A baseline file is measured now, by turns with the model; a stored record is used as it is. `on_status(text)` is
    called with the progress. Raises EdgekdError if the model or the baseline cannot be measured.
    """
    begin = time.monotonic()
    require_counting(criteria.budget, site)
    needs = _needs(source, site, criteria, baseline)
    checked = _first(source, site, criteria, baseline, needs, estimate)
    allowed = _refuse_others(checked, criteria)
    first_alone, first_together = BUDGET_LOOKS[0] * needs.latency, PAIR_LOOKS[0] * needs.pairs
    while True:
        verdict, wanted, notes = judge_samples(checked, criteria.budget, criteria.tolerance, criteria.allow_estimated)
        alone, together = max(wanted.latency, first_alone), max(wanted.pairs, first_together)
        if len(checked.sample.latency) >= alone and len(checked.pairs) >= together:
            break
        if _too_slow(verdict) and len(checked.sample.latency) >= first_alone and len(checked.pairs) >= first_together:
            break  # more samples would not change the exit code
        on_status(f"{len(checked.sample.latency)} of {alone} processes, {len(checked.pairs)} of {together} pairs")
        checked = _one_more(checked, source, site, criteria, baseline, alone, together)
        allowed = _refuse_others(checked, criteria)
    checked = dataclasses.replace(checked, budget=criteria.budget.limits())
    timed = (*checked.pairs[:1], *checked.sample.latency[:1])
    steered = steering_remarks(timed[0], steering_of(source.file)) if timed else []
    judged = judged_of(checked, verdict, [*allowed, *notes, *steered], site.target)
    return dataclasses.replace(judged, file=str(source.file), seconds=time.monotonic() - begin), checked


def measure_all(source: Source, site: Site, effort: Effort, estimate: Estimate) -> Sample:
    """Measure all values of one model that a baseline contains."""
    needs = _Needs(
        latency=site.measurable,
        pairs=False,
        memory=True,
        placement=True,
        instructions=site.board is not None,
        answers=source.inputs is not None,
    )
    criteria = Criteria(budget=Budget(source.task.scores[0]), effort=effort)
    sample = _sample(source, site, criteria, needs, estimate)
    if not site.measurable:
        return sample
    inputs = source.inputs.file if source.inputs else None
    records: tuple[Record, ...] = ()
    for _ in range(BUDGET_LOOKS[0]):
        records = _with(records, measure_process(source.file, site, inputs, effort))
    return dataclasses.replace(sample, latency=records, fingerprint=records[0].fingerprint)


def _too_slow(verdict: Verdict) -> bool:
    """Whether a figure that needs looks has failed definitively."""
    timed = (*SPEED_BUDGETS, *SPEED_TOLERANCES)
    return any(line.outcome == "fail" and line.key in timed and not line.advisory for line in verdict.lines)


def _refuse_others(checked: Checked, criteria: Criteria) -> list[str]:
    """Raise ConfigError early if a stored baseline is from another machine, unless the differences are allowed."""
    if not checked.stored or checked.baseline is None:
        return []
    return refuse_other_machine(checked.baseline, checked.sample, criteria.allow_difference)


def _needs(source: Source, site: Site, criteria: Criteria, baseline: Source | Checked | None) -> _Needs:
    budget = criteria.budget.limits().keys()
    kind = criteria.budget.kind
    tolerance = set(criteria.tolerance.limits(kind))
    same = isinstance(baseline, Source) and file_digest(baseline.file) == file_digest(source.file)
    if baseline is None or same:
        tolerance = set()
    timed = site.measurable and not tolerance.isdisjoint(SPEED_TOLERANCES)
    return _Needs(
        latency=site.measurable and (not budget.isdisjoint(SPEED_BUDGETS) or (timed and isinstance(baseline, Checked))),
        pairs=timed and isinstance(baseline, Source),
        memory="peak_memory_mb" in budget or "max_memory_growth" in tolerance,
        placement=not (budget | tolerance).isdisjoint(
            {"min_coverage", "min_fused_share", "max_coverage_loss", "max_fused_loss"}
        ),
        instructions="instructions_m" in budget or "max_instruction_growth" in tolerance,
        answers=source.inputs is not None
        and len(source.inputs.targets) > 0
        and not (budget | tolerance).isdisjoint(
            {kind.limit_key, kind.change_key, kind.tolerance_key, "min_agreement", "min_same_answers"}
        ),
    )


def _first(
    source: Source,
    site: Site,
    criteria: Criteria,
    baseline: Source | Checked | None,
    needs: _Needs,
    estimate: Estimate,
) -> Checked:
    """Measure everything except time, which needs repeated looks."""
    sample = _sample(source, site, criteria, needs, estimate)
    if baseline is None:
        return Checked(sample=sample)
    if isinstance(baseline, Checked):
        return Checked(sample=sample, baseline=baseline.sample, stored=True)
    other = dataclasses.replace(baseline, inputs=source.inputs, teacher=None)  # both models get the same inputs
    compared = dataclasses.replace(criteria, budget=Budget(criteria.budget.kind))  # a baseline is not judged by one
    needs = _needs(source, site, compared, baseline)
    return Checked(sample=sample, baseline=_sample(other, site, compared, needs, estimate, sample.sha256))


def _sample(
    source: Source, site: Site, criteria: Criteria, needs: _Needs, estimate: Estimate, loaded: str = ""
) -> Sample:
    """Measure what needs no repeated looks for one model; a file with the SHA-256 `loaded` is known to load."""
    problem = weights_problem(source.file, site.target)
    if problem:
        raise problem
    size, digest = whole_model(source.file)
    signature = signature_of(source.file)
    inputs, effort = source.inputs.file if source.inputs else None, criteria.effort
    if not any(dataclasses.astuple(needs)) and digest != loaded:  # a file that cannot be loaded meets no budget
        measure_load(source.file, site, effort)
    processes = range(MEMORY_PROCESSES) if needs.memory and site.provenance != "emulated" else ()
    memory = [measure_memory(source.file, site, sampled(effort, inputs)) for _ in processes]
    placement = measure_placement(source.file, site, inputs, effort) if needs.placement else None
    subject = Subject(name=source.name, file=source.file, precision=source.precision)
    counted = count_instructions(subject, site, inputs, None, effort) if needs.instructions else None
    peaks = [peak for record in memory if (peak := record.memory.get("run_bytes")) is not None]
    sample = Sample(
        name=source.name,
        sha256=digest,
        size_bytes=size,
        target=site.target.name,
        provider=site.target.provider.name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        edgekd=__version__,
        elsewhere=site.elsewhere,
        how=site.provenance,
        answered=site.answering.provenance,
        signature=signature or "",
        memory_bytes=tuple(peaks),
        placement=placement,
        instructions=counted,
        kind=source.task.scores[0],
        answers=_answers(source, site, criteria) if needs.answers else None,
        fingerprint=memory[0].fingerprint if memory else {},
    )
    if site.measurable or criteria.budget.limit("latency_p50_ms") is None:
        return sample
    bare = ModelFigures(sample.name, source.file.name, sample.sha256, sample.size_bytes, source.precision)
    (known,) = estimate([bare], [subject], site)
    return dataclasses.replace(sample, estimate=known.latency_p50_ms if known.latency_p50_ms.why else None)


def _answers(source: Source, site: Site, criteria: Criteria) -> Answers:
    inputs, task, budget = source.inputs, source.task, criteria.budget
    assert inputs is not None
    inputs = targets_of(inputs, task)
    targets = inputs.targets
    compared = not {budget.kind.change_key, "min_agreement"}.isdisjoint(budget.values)

    def outputs(name: str, file: Path, folder: Path) -> Outputs:
        subject = Subject(name=name, file=file, precision=source.precision)
        found = logits_of(subject, site, inputs.file, folder, task, criteria.effort)
        check_targets(found, inputs, task, file)
        return found

    with scratch() as folder:
        own = outputs("model", source.file, folder)
        teacher = outputs("teacher", source.teacher, folder) if source.teacher and compared else None
    kind = task.scores[0]
    score = task.score(own, targets)[kind.name]
    each = task.each(own, targets)
    interval = None if kind.counted else bootstrap(each, score)
    alike = task.same is not None and teacher is not None and teacher.shape == own.shape
    return Answers(
        data=_digest(inputs, criteria.effort.feeding.output),
        about=inputs.about,
        score=score,
        each=tuple(map(float, each)),
        paired=task.paired,
        answers=tuple(map(int, task.answers(own))) if task.answers else (),
        teacher_score=task.score(teacher, targets)[kind.name] if teacher is not None else None,
        agreement=task.same(own, teacher) if alike else None,  # type: ignore[misc, arg-type]
        interval=(interval.low, interval.high) if interval else None,
    )


def _digest(inputs: Inputs, output: str | None = None) -> str:
    """Return the SHA-256 digest of inputs, targets and, if one was chosen, the name of the output."""
    whole = hashlib.sha256(inputs.targets.tobytes() + (output or "").encode())
    with inputs.file.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            whole.update(chunk)
    return whole.hexdigest()


def _one_more(
    checked: Checked,
    source: Source,
    site: Site,
    criteria: Criteria,
    baseline: Source | Checked | None,
    alone: int,
    together: int,
) -> Checked:
    """Run one more process of each kind that is still needed; kinds take turns, so that drift affects all equally."""
    inputs = source.inputs.file if source.inputs else None
    sample = checked.sample
    if len(sample.latency) < alone:
        record = measure_process(source.file, site, inputs, criteria.effort)
        sample = dataclasses.replace(sample, latency=_with(sample.latency, record), fingerprint=record.fingerprint)
        checked = dataclasses.replace(checked, sample=sample)
    if isinstance(baseline, Source) and len(checked.pairs) < together:
        turn = len(checked.pairs)
        effort = pair_effort(criteria.effort)
        record = measure_pair(source.file, baseline.file, site, inputs, effort, turn)
        fingerprint = sample.fingerprint if sample.latency else record.fingerprint
        sample = dataclasses.replace(sample, fingerprint=fingerprint)
        checked = dataclasses.replace(checked, sample=sample, pairs=_with(checked.pairs, record))
        if len(checked.same) < PAIR_LOOKS[0]:
            again = measure_pair(baseline.file, baseline.file, site, inputs, effort, turn)
            checked = dataclasses.replace(checked, same=_with(checked.same, again))
    return checked


def pair_effort(effort: Effort) -> Effort:
    """Return PAIR with the limits of the given effort."""
    return dataclasses.replace(
        PAIR, timeout_s=effort.timeout_s, memory_limit_mb=effort.memory_limit_mb, feeding=effort.feeding
    )


def _with(records: tuple[Record, ...], record: Record) -> tuple[Record, ...]:
    """Append a record. Raises ModelError if it is not comparable with the others."""
    if problem := comparable([*records[:1], record]):
        raise ModelError(f"the processes of this check are not comparable: {problem}")
    return (*records, record)
