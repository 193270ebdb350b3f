"""Derive a verdict from samples with pure functions: nothing is measured, and equal samples give equal verdicts."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edgekd.bench.records import Record
from edgekd.bench.remarks import remarks
from edgekd.bench.statistics import between, latency_of, min_calls_for, wilson
from edgekd.budget import Budget
from edgekd.check.asked import Criteria
from edgekd.check.compare import busy_or, compared_lines, steadiness
from edgekd.check.looks import BUDGET_LOOKS, ERROR, Decision, below_limit
from edgekd.check.record import Answers, Checked, Sample
from edgekd.check.tolerance import Tolerance
from edgekd.distributions import Interval
from edgekd.figures import Figure, compared
from edgekd.judge import Judged, Line, Verdict, judge
from edgekd.scores import ScoreKind
from edgekd.target import Target

__all__ = ["NextLook", "figures_of", "judge_record", "judge_samples", "judged_of"]

TIMED = ("latency_p50_ms", "latency_p95_ms", "load_ms")
"""Budget keys that are judged in planned looks."""
NOTHING = Interval(0.0, 0.0, float("inf"))


@dataclass(frozen=True)
class NextLook:
    """The total number of processes that the next look needs; 0 if no further look is needed."""

    latency: int = 0
    pairs: int = 0


def judge_samples(
    checked: Checked, budget: Budget, tolerance: Tolerance, allow_estimated: bool = False
) -> tuple[Verdict, NextLook, list[str]]:
    """Return the verdict on the samples so far, the needs of the next look, and notes for the reader."""
    limits = budget.limits()
    figures, answers = figures_of(checked.sample), checked.sample.answers
    decisions: dict[str, Decision] = {}
    if checked.sample.latency:
        decisions = {
            key: below_limit(checked.sample.latency, _bounds(key), limits[key] / 1e3) for key in TIMED if key in limits
        }
    figures |= {key: _looked_at(decision, figures[key]) for key, decision in decisions.items()}
    verdict = judge(figures, budget, allow_estimated, len(answers.each) if answers else None)
    lines = [_explained(line, checked.sample, decisions.get(line.key)) for line in verdict.lines]
    wanted = [decision.wanted for decision in decisions.values()]
    if checked.baseline is None:
        return _judged_at_all(lines), NextLook(latency=max(wanted, default=0)), []
    regressions, more, old = compared_lines(checked, tolerance)
    both = NextLook(max([*wanted, old], default=0), more)
    lines = [*lines, *regressions] or _nothing(tolerance, checked.sample.kind)
    return _judged_at_all(lines), both, steadiness(checked, tolerance)


def _nothing(tolerance: Tolerance, kind: ScoreKind) -> list[Line]:
    """Return a line for each tolerance if none of them applies to these two models, because this is not a pass."""
    why = "there is nothing to compare by it here"
    known = compared(kind)
    return [
        Line(key if key in known else "max_slowdown", limit, Figure(why=why), "not judged", why, kind=kind)
        for key, limit in tolerance.limits(kind).items()
    ]


def _judged_at_all(lines: list[Line]) -> Verdict:
    """Make all lines inconclusive if none could be judged, because this is not a pass."""
    if any(line.outcome != "not judged" for line in lines):
        return Verdict(tuple(lines))
    return Verdict(tuple(dataclasses.replace(line, outcome="inconclusive") for line in lines))


def _bounds(key: str) -> Callable[[Sequence[Record], float], Interval]:
    """Return the function that estimates a budget's figure (seconds) from the records of several processes."""

    def load(records: Sequence[Record], confidence: float) -> Interval:
        return between([record.load_s for record in records], confidence)

    def percentile(records: Sequence[Record], confidence: float) -> Interval:
        latency = latency_of([record.latency_s for record in records], confidence)
        return (latency.p50 if key == "latency_p50_ms" else latency.p95) or NOTHING

    return load if key == "load_ms" else percentile


def _looked_at(decision: Decision, figure: Figure) -> Figure:
    """Return the figure with the value and bounds of the last planned look."""
    bounds = decision.bounds
    if figure.value is None or not math.isfinite(bounds.value) or not math.isfinite(bounds.high):
        return figure  # there are too few samples for bounds
    return dataclasses.replace(figure, value=1e3 * bounds.value, low=1e3 * bounds.low, high=1e3 * bounds.high)


def _explained(line: Line, sample: Sample, decision: Decision | None) -> Line:
    """Add a description of its confidence to the line."""
    if decision is not None:
        looks = f"look {decision.look} of {len(BUDGET_LOOKS)}, {decision.samples} processes"
        if decision.outcome == "more":  # a verdict now would be an unplanned look
            why = f"{decision.samples} processes are too few; the next look needs {decision.wanted}"
            line = dataclasses.replace(line, outcome="inconclusive", reason=why)
        line = busy_or(line, sample.latency)
        return dataclasses.replace(line, confidence=f"{100 * (1 - ERROR):.0f} % over all looks; {looks}")
    answers = sample.answers
    if line.about_score and answers:
        return dataclasses.replace(line, confidence=_sure_of(answers, line.kind))
    if line.key == "peak_memory_mb" and sample.memory_bytes:
        return dataclasses.replace(line, confidence=f"range of {len(sample.memory_bytes)} processes")
    if line.key == "instructions_m" and line.figure.value is not None:
        return dataclasses.replace(line, confidence="range of the middle blocks of calls")
    if line.key == "latency_p99_ms" and sample.latency:
        return dataclasses.replace(line, confidence=f"95 %, {len(sample.latency)} processes")
    counted = line.figure.value is not None and line.figure.provenance != "estimated"
    return dataclasses.replace(line, confidence="exact" if counted else "")


def figures_of(sample: Sample) -> dict[str, Figure]:
    """Return figures by budget key, with 95 % intervals for times."""
    figures = {"size_kb": Figure(sample.size_bytes / 1e3, "exact"), **_times(sample), **_answered(sample)}
    if sample.memory_bytes:
        low, middle, high = (f(sample.memory_bytes) / 1e6 for f in (min, median, max))
        figures["peak_memory_mb"] = Figure(middle, sample.provenance, low, high)
    if sample.instructions is not None:
        figures["instructions_m"] = sample.instructions
    placement = sample.placement
    if placement is not None and any(placement.nodes.values()):
        figures["min_coverage"] = placement.coverage
        figures["min_fused_share"] = placement.fused_figure
    return figures


def _times(sample: Sample) -> dict[str, Figure]:
    unknown = Figure(why=sample.elsewhere or "not measured")
    figures = dict.fromkeys((*TIMED, "latency_p99_ms"), unknown)
    if sample.estimate is not None:
        figures["latency_p50_ms"] = sample.estimate
    if not sample.latency:
        return figures
    latency = latency_of([record.latency_s for record in sample.latency])
    for percentile, interval in ((50, latency.p50), (95, latency.p95), (99, latency.p99)):
        needed = f"{latency.calls} calls are too few for p{percentile}, which needs {min_calls_for(percentile)}"
        figures[f"latency_p{percentile}_ms"] = _ms(interval) if interval else Figure(why=needed)
    figures["load_ms"] = _ms(between([record.load_s for record in sample.latency]))
    return figures


def _ms(seconds: Interval) -> Figure:
    return Figure(1e3 * seconds.value, "measured", 1e3 * seconds.low, 1e3 * seconds.high)


def _answered(sample: Sample) -> dict[str, Figure]:
    answers, kind = sample.answers, sample.kind
    if answers is None:
        return {kind.limit_key: Figure(why="no data: --data FILE.npz brings inputs and labels")}
    provenance = sample.answers_provenance
    elsewhere = sample.elsewhere or ("computed on another machine than the device" if provenance == "proxy" else "")
    low, high = answers.interval or (None, None)
    figures = {kind.limit_key: Figure(answers.score, provenance, low, high, elsewhere)}
    if answers.teacher_score is not None:
        change = kind.worsening(answers.score, answers.teacher_score)
        figures[kind.change_key] = Figure(change, provenance, why=elsewhere)
    if answers.agreement is not None:
        figures["min_agreement"] = Figure(answers.agreement, provenance)
    return figures


def _sure_of(answers: Answers, kind: ScoreKind) -> str:
    """Say how certain the score is for these examples and for others."""
    count = len(answers.each)
    if kind.counted:
        share = wilson(round(answers.score * count), count)
        return f"exact on these {count}; of others 95 %: {100 * share.low:.2f} … {100 * share.high:.2f} %"
    if answers.interval is None:
        return f"exact on these {count}"
    low, high = answers.interval
    return f"exact on these {count}; of others 95 %, bootstrap: {kind.show(low)} … {kind.show(high)}"


def judge_record(checked: Checked, criteria: Criteria, target: Target) -> Judged:
    """Judge a record without a measurement; missing values make a line inconclusive."""
    begin = time.monotonic()
    verdict, _, notes = judge_samples(checked, criteria.budget, criteria.tolerance, criteria.allow_estimated)
    origin = f"from a record of {checked.sample.at}; nothing was measured now"
    judged = judged_of(checked, verdict, [origin, *notes], target)
    return dataclasses.replace(judged, seconds=time.monotonic() - begin)


def judged_of(checked: Checked, verdict: Verdict, notes: list[str], target: Target) -> Judged:
    """Return the verdict together with the information that a reader needs."""
    sample, baseline = checked.sample, checked.baseline
    disturbed = remarks(checked.pairs or sample.latency) if checked.pairs or sample.latency else []
    mark = sample.fingerprint
    return Judged(
        name=sample.name,
        target=target.name,
        verdict=verdict,
        sha256=sample.sha256,
        baseline=_about(baseline, checked.stored) if baseline else "",
        notes=tuple(dict.fromkeys([*notes, *disturbed])),
        machine=f"{mark.get('cpu', '')}, onnxruntime {mark.get('onnxruntime', '')}" if mark else "",
        figures={key: figure for key, figure in figures_of(sample).items() if figure.value is not None},
        kind=sample.kind,
    )


def _about(baseline: Sample, stored: bool) -> str:
    how = f"record of {baseline.at}" if stored else "measured by turns"
    return f"{baseline.name} ({baseline.sha256[:12]}, {how})"
