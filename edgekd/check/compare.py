"""Compare a model with its baseline, metric by metric: pure functions of what was measured for both."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from edgekd.bench.records import Record
from edgekd.bench.statistics import RATIO_CALLS, bootstrap, ratios_of
from edgekd.check.looks import (
    BUDGET_LOOKS,
    ERROR,
    PAIR_LOOKS,
    PER_LOOK,
    Decision,
    difference_between,
    mean_of,
    noise,
    not_slower,
    resolution,
)
from edgekd.check.record import Answers, Checked, Sample
from edgekd.check.tolerance import Tolerance
from edgekd.distributions import mcnemar, smallest_significant
from edgekd.figures import Figure, Provenance, compared
from edgekd.judge import Line, Outcome
from edgekd.units import milliseconds

__all__ = ["Timed", "busy_or", "compared_lines", "pair_ratios", "paired_lines", "steadiness"]


LOAD_FLOOR_S = 0.010
"""If loading takes less than this much longer, it is no regression, however large the relative growth is."""
MOST_WAITED = 0.10
"""If processes waited for a CPU for more than this share of the time (median), a failure does not count."""
Triple = tuple[float, float | None, float]
"""Ratios of model to baseline in one process: p50, p95 and load time."""


@dataclass(frozen=True)
class Timed:
    """A line about time, and the number of processes for its next look: pairs with the baseline, or the model alone."""

    line: Line
    pairs: int = 0
    alone: int = 0


def compared_lines(checked: Checked, tolerance: Tolerance) -> tuple[list[Line], int, int]:
    """Return a line for each tolerance that is not off, and the number of processes for the next look: pairs, alone."""
    assert checked.baseline is not None
    if checked.sample.sha256 == checked.baseline.sha256 and not checked.pairs and not checked.stored:
        return [_same_file(tolerance)], 0, 0
    timed = _times(checked, tolerance)
    found = [*(entry.line for entry in timed), *_plain(checked.sample, checked.baseline, tolerance)]
    order = list(compared(checked.sample.kind))
    lines = sorted(found, key=lambda line: order.index(line.key))
    pairs = max((entry.pairs for entry in timed), default=0)
    return lines, pairs, max((entry.alone for entry in timed), default=0)


def _same_file(tolerance: Tolerance) -> Line:
    limit = 0.0 if tolerance.max_slowdown == "off" else tolerance.max_slowdown
    return Line("max_slowdown", limit, Figure(0.0, "exact"), "pass", "the very same file (SHA-256)", "exact")


def _times(checked: Checked, tolerance: Tolerance) -> list[Timed]:
    limits = {
        "max_slowdown": tolerance.max_slowdown,
        "max_slowdown_p95": tolerance.max_slowdown_p95,
        "max_load_growth": tolerance.max_load_growth,
    }
    known = {key: limit for key, limit in limits.items() if limit != "off"}
    if checked.sample.elsewhere:
        why = f"time cannot be compared here: {checked.sample.elsewhere}"
        return [Timed(Line(key, limit, Figure(why=why), "inconclusive", why)) for key, limit in known.items()]
    if checked.stored:
        return _stored(checked, known, tolerance)
    same = [pair_ratios(record) for record in checked.same]
    timed = paired_lines([pair_ratios(record) for record in checked.pairs], same, known)
    return [_beside(entry, checked.pairs) for entry in timed]


def _beside(entry: Timed, pairs: Sequence[Record]) -> Timed:
    """Add the measured times to the line; loading that takes less than LOAD_FLOOR_S longer is no regression."""
    line = entry.line
    if not pairs or line.figure.value is None:
        return entry
    times = [(record.baseline or {}, record) for record in pairs]
    if line.key == "max_load_growth":
        old, new = median(b["load_s"] for b, _ in times), median(record.load_s for _, record in times)
    elif line.key == "max_slowdown":
        old, new = median(median(b["latency_s"]) for b, _ in times), median(median(r.latency_s) for _, r in times)
    else:
        old, new = (median(_p95(calls) for calls in side) for side in _calls(times))
    confidence = f"{milliseconds(1e3 * old)} → {milliseconds(1e3 * new)} side by side; {line.confidence}"
    line = dataclasses.replace(line, confidence=confidence)
    return _floored(dataclasses.replace(entry, line=line), new - old)


def _floored(entry: Timed, longer_s: float) -> Timed:
    """Pass the line if loading takes less than LOAD_FLOOR_S longer; it then needs no further look."""
    line = entry.line
    if line.key != "max_load_growth" or line.outcome == "pass" or line.figure.value is None or longer_s >= LOAD_FLOOR_S:
        return entry
    return Timed(dataclasses.replace(line, outcome="pass", reason=f"under {1e3 * LOAD_FLOOR_S:.0f} ms longer"))


def _calls(times: Sequence[tuple[dict[str, Any], Record]]) -> tuple[list[Any], list[Any]]:
    return [baseline["latency_s"] for baseline, _ in times], [record.latency_s for _, record in times]


def _p95(calls: Sequence[float]) -> float:
    return quantiles(calls, n=20, method="inclusive")[-1]


def pair_ratios(record: Record) -> Triple:
    """Return the ratios of model to baseline for p50, p95 and load time in one process in which both took turns."""
    other = record.baseline
    assert other is not None
    ratios = ratios_of(record.latency_s, other["latency_s"], record.block_calls, record.load_s, other["load_s"])
    return ratios.p50, ratios.p95, ratios.load


def paired_lines(ratios: Sequence[Triple], same: Sequence[Triple], limits: dict[str, float]) -> list[Timed]:
    """Return lines from the ratios of each process, and from the ratios of the baseline to itself."""
    columns = list(zip(*ratios, strict=True)) or [(), (), ()]
    own = list(zip(*same, strict=True)) or [(), (), ()]
    entries = []
    for key, column, itself in zip(("max_slowdown", "max_slowdown_p95", "max_load_growth"), columns, own, strict=True):
        if key not in limits:
            continue
        known = [ratio for ratio in column if ratio is not None]
        if len(known) < len(column):
            entries.append(Timed(_too_few_calls(key, limits[key])))
            continue
        decision = not_slower(known, mean_of, limits[key])
        line = _timed_line(key, limits[key], decision, f"{decision.samples} process pairs", len(PAIR_LOOKS))
        if line.outcome == "fail":
            line = _doubted(line, [ratio for ratio in itself if ratio is not None], limits[key], decision.samples)
        entries.append(Timed(line, pairs=decision.wanted))
    return entries


def _stored(checked: Checked, limits: dict[str, float], tolerance: Tolerance) -> list[Timed]:
    assert checked.baseline is not None
    entries = []
    for key, limit in limits.items():
        if key != "max_load_growth":
            if tolerance.max_slowdown_stored == "off":
                continue
            limit = tolerance.max_slowdown_stored
        both = checked.baseline.latency, checked.sample.latency
        if key == "max_slowdown_p95" and not all(map(_enough_for_p95, both)):
            entries.append(Timed(_too_few_calls(key, limit)))
            continue
        old, new = (_per_process(key, records) for records in both)
        if len(old) < 2 or not new:
            why = "its record holds too few processes" if len(old) < 2 else "not measured"
            entries.append(Timed(Line(key, limit, Figure(why=why), "inconclusive", why)))
            continue
        decision = not_slower(new, difference_between(old), limit, BUDGET_LOOKS)
        about = f"{decision.samples} processes, unpaired"
        line = busy_or(_timed_line(key, limit, decision, about, len(BUDGET_LOOKS)), checked.sample.latency)
        entries.append(_floored(Timed(line, alone=decision.wanted), median(new) - median(old)))
    return entries


def busy_or(line: Line, records: Sequence[Record]) -> Line:
    """Return the line; a failure without a paired baseline is inconclusive if the processes waited too long for a
    CPU.
    """
    waited = [share for record in records if (share := record.disturbance.get("waited")) is not None]
    if line.outcome != "fail" or not waited or median(waited) < MOST_WAITED:
        return line
    reason = f"the machine was too busy: waiting for a CPU took {100 * median(waited):.0f} % of the time"
    return dataclasses.replace(line, outcome="inconclusive", reason=reason)


def _enough_for_p95(records: Sequence[Record]) -> bool:
    return all(len(record.latency_s) >= RATIO_CALLS for record in records)


def _too_few_calls(key: str, limit: float) -> Line:
    why = "too few calls in a process for p95"
    return Line(key, limit, Figure(why=why), "not judged", why)


def _per_process(key: str, records: Sequence[Record]) -> list[float]:
    if key == "max_load_growth":
        return [record.load_s for record in records]
    if key == "max_slowdown":
        return [median(record.latency_s) for record in records]
    return [_p95(record.latency_s) for record in records]


def _timed_line(key: str, limit: float, decision: Decision, about: str, looks: int) -> Line:
    bounds = decision.bounds
    figure = Figure(bounds.value - 1, "measured", bounds.low - 1, bounds.high - 1)
    if decision.samples < 2:  # there is no interval yet
        figure = Figure(why="not measured")
    reasons = []
    if bounds.high < 1:
        reasons.append(f"faster: it takes {100 * bounds.value:.1f} % of the baseline's time")
    if decision.outcome == "fail":
        reasons.append("confirmed on fresh samples")
    if decision.unconfirmed:
        reasons.append(f"{decision.unconfirmed} × above the limit, not confirmed on fresh samples")
    if decision.outcome == "inconclusive":
        reasons.append("too close to tell")
    if decision.outcome == "more":
        reasons.append(f"{decision.samples} processes are too few; the next look needs {decision.wanted}")
    outcome: Outcome = "inconclusive" if decision.outcome == "more" else decision.outcome
    sure = f"{100 * (1 - ERROR):.0f} % over all looks; look {decision.look} of {looks}, {about}"
    return Line(key, limit, figure, outcome, "; ".join(reasons), sure)


def _doubted(line: Line, same: Sequence[float], limit: float, count: int) -> Line:
    """Make a slowdown inconclusive if this machine shows one of that size between the baseline and itself."""
    if len(same) < 2:
        return line
    itself = mean_of(same, PER_LOOK)
    if (line.figure.value or 0.0) < noise(same, count) or (itself.low > 1 and itself.value > 1 + limit):
        reason = f"this machine is too unsteady: the baseline against itself gave {100 * (itself.value - 1):+.1f} %"
        return Line(line.key, line.limit, line.figure, "inconclusive", reason, line.confidence)
    return line


def steadiness(checked: Checked, tolerance: Tolerance) -> list[str]:
    """Return notes about how steady this machine is, from measurements of the baseline against itself."""
    notes = []
    if len(checked.same) >= 2:
        ratios = [pair_ratios(record)[0] for record in checked.same]
        itself = 100 * (mean_of(ratios, PER_LOOK).value - 1)
        limit = 0.0 if tolerance.max_slowdown == "off" else tolerance.max_slowdown
        least = resolution(ratios, limit)
        notes.append(
            f"this machine, now: the baseline against itself {itself:+.1f} % (A/A, {len(ratios)} process pairs); "
            f"can detect ≥ {100 * least:.1f} % (in 19 of 20 checks)"
        )
        if least > 2 * max(limit, 0.01):
            notes.append(
                "noisy machine: what is slower by less may end inconclusive; use a quieter one, or a wider limit"
            )
    if checked.stored and checked.baseline is not None:
        notes.append(f"the baseline was measured on {checked.baseline.at}; a machine's pace drifts between days")
    before, now = checked.baseline, checked.sample
    if before is not None and before.signature and now.signature and _sizes(before) != _sizes(now):
        notes.append(f"the baseline takes {before.signature}, this model {now.signature}: are they for the same task?")
    return notes


def _sizes(sample: Sample) -> str:
    """The inputs without their first dimension, because a batch may be fixed in one file and free in another."""
    return re.sub(r"\[[^\],]+", "[N", sample.signature)


def _plain(new: Sample, old: Sample, tolerance: Tolerance) -> list[Line]:
    """Return the lines that need no repeated looks: size, memory, placement, answers."""
    lines = [
        _exact("max_size_growth", tolerance.max_size_growth, new.size_bytes / old.size_bytes - 1),
        _memory(new, old, tolerance),
        _instructions(new, old, tolerance),
        *_placed(new, old, tolerance),
        *_answers(new, old, tolerance),
    ]
    return [line for line in lines if line is not None]


def _exact(key: str, limit: float | str, value: float, provenance: Provenance = "exact") -> Line | None:
    if isinstance(limit, str):
        return None
    value = round(value, 9)
    return Line(key, limit, Figure(value, provenance), "pass" if value <= limit else "fail", "", "exact")


def _memory(new: Sample, old: Sample, tolerance: Tolerance) -> Line | None:
    limit = tolerance.max_memory_growth
    if isinstance(limit, str):
        return None
    if not (new.memory_bytes and old.memory_bytes):
        why = "peak memory was not measured of both, or this system does not tell it"
        return Line("max_memory_growth", limit, Figure(why=why), "not judged", why)
    value = median(new.memory_bytes) / median(old.memory_bytes) - 1
    low = min(new.memory_bytes) / max(old.memory_bytes) - 1
    high = max(new.memory_bytes) / min(old.memory_bytes) - 1
    outcome: Outcome = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    figure = Figure(value, new.provenance, low, high)
    return Line("max_memory_growth", limit, figure, outcome, "", f"range of {len(new.memory_bytes)} processes each")


def _instructions(new: Sample, old: Sample, tolerance: Tolerance) -> Line | None:
    key, limit = "max_instruction_growth", tolerance.max_instruction_growth
    now, before = new.instructions or Figure(), old.instructions or Figure()
    if isinstance(limit, str):
        return None
    if not (now.value and before.value):
        why = now.why or before.why or "instructions were not counted of both"
        return Line(key, limit, Figure(why=why), "inconclusive", why)
    growth = now.value / before.value - 1
    low, high = _end(now.low, now) / _end(before.high, before) - 1, _end(now.high, now) / _end(before.low, before) - 1
    outcome: Outcome = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    return Line(
        key, limit, Figure(growth, now.provenance, low, high), outcome, "", "range of the middle blocks of calls"
    )


def _end(end: float | None, figure: Figure) -> float:
    """The end of a figure's interval; its value if it has none."""
    return (figure.value or 0.0) if end is None else end


def _placed(new: Sample, old: Sample, tolerance: Tolerance) -> list[Line | None]:
    both = [sample.placement for sample in (new, old) if sample.placement and any(sample.placement.nodes.values())]
    if len(both) < 2:
        limits = {"max_coverage_loss": tolerance.max_coverage_loss, "max_fused_loss": tolerance.max_fused_loss}
        why = "where the nodes ran was not measured of both"
        return [Line(k, x, Figure(why=why), "not judged", why) for k, x in limits.items() if not isinstance(x, str)]
    now, before = both
    mine, theirs = (
        placed.nodes.get(sample.provider, 0) / sum(placed.nodes.values())
        for placed, sample in ((now, new), (before, old))
    )
    lines = [_exact("max_coverage_loss", tolerance.max_coverage_loss, theirs - mine, now.provenance)]
    if before.fused_share is not None:
        loss = before.fused_share - (now.fused_share or 0.0)
        lines.append(_exact("max_fused_loss", tolerance.max_fused_loss, loss, now.provenance))
    return lines


def _answers(new: Sample, old: Sample, tolerance: Tolerance) -> list[Line | None]:
    key, limit, least = new.kind.tolerance_key, tolerance.of_score(new.kind), tolerance.min_same_answers
    outcome: Outcome
    if new.answers is None or old.answers is None or _others(new, old):
        why = "no data given" if new.answers is None else "the baseline has no answers for these data"
        by_default = least == "off" and limit == new.kind.tolerance
        outcome = "not judged" if new.answers is None and by_default else "inconclusive"
        asked = {key: limit, "min_same_answers": least}
        return [
            Line(k, x, Figure(why=why), outcome, why, kind=new.kind) for k, x in asked.items() if not isinstance(x, str)
        ]
    lines: list[Line | None] = []
    provenance: Provenance = new.answers_provenance
    if not isinstance(limit, str):
        test = _by_mcnemar if new.answers.paired == "mcnemar" else _by_bootstrap
        line = Line(key, limit, Figure(provenance=provenance), "inconclusive", kind=new.kind)
        lines.append(test(line, new.answers, old.answers))
    if not isinstance(least, str):
        lines.append(_same_answers(new.answers, old.answers, least, provenance))
    return lines


def _others(new: Sample, old: Sample) -> bool:
    """Whether the answers of the two samples cannot be compared, because they are for other data or another task."""
    assert new.answers is not None and old.answers is not None
    same_data = new.answers.data == old.answers.data and len(new.answers.each) == len(old.answers.each)
    return new.kind != old.kind or not same_data


def _same_answers(new: Answers, old: Answers, least: float, provenance: Provenance) -> Line:
    if not (new.answers and old.answers):
        why = "answers of this task are numbers, which are never the same"
        return Line("min_same_answers", least, Figure(why=why), "inconclusive", why)
    share = sum(a == b for a, b in zip(new.answers, old.answers, strict=True)) / len(new.answers)
    return Line("min_same_answers", least, Figure(share, provenance), "pass" if share >= least else "fail", "", "exact")


def _by_mcnemar(line: Line, new: Answers, old: Answers) -> Line:
    """Complete the line on the loss of a share of examples, with McNemar's test on the inputs that only one of the
    models answers correctly.
    """
    rows = list(zip(old.each, new.each, strict=True))
    lost = sum(was > now for was, now in rows)
    won = sum(was < now for was, now in rows)
    loss = 100 * (lost - won) / len(rows)
    p = mcnemar(lost, won)
    shown = 100 * smallest_significant(lost + won) / len(rows)
    outcome: Outcome = "pass" if loss <= line.limit else "fail" if p <= 0.05 else "inconclusive"
    counts = f"b = {lost} lost, c = {won} won, n = {len(rows)}"
    sure = f"McNemar, exact: {counts}, p {_p(p)}; this set can show a loss of {shown:.2f} points"
    return _worse_by(line, Figure(round(loss, 6), line.figure.provenance), outcome, sure)


def _by_bootstrap(line: Line, new: Answers, old: Answers) -> Line:
    """Complete the line on the change of the score, with the paired bootstrap on the figures of the examples.

    A change beyond the limit fails if its 95 % interval lies above 0: then it is not chance.
    """
    kind = line.kind
    change = kind.worsening(new.score, old.score)
    sign = kind.factor * (-1 if kind.better == "higher" else 1)
    interval = bootstrap([sign * (now - was) for now, was in zip(new.each, old.each, strict=True)], change)
    outcome: Outcome = "pass" if change <= line.limit else "fail" if interval.low > 0 else "inconclusive"
    sure = f"paired bootstrap of {len(new.each)} examples"
    return _worse_by(line, Figure(change, line.figure.provenance, interval.low, interval.high), outcome, sure)


def _worse_by(line: Line, figure: Figure, outcome: Outcome, confidence: str) -> Line:
    words = "increase" if line.kind.better == "lower" else "loss"
    reason = f"the {words} may be chance" if outcome == "inconclusive" else ""
    return dataclasses.replace(line, figure=figure, outcome=outcome, reason=reason, confidence=confidence)


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"
