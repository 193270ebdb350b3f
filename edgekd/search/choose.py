"""Choose under the budget: the shape before training, the precision after it."""

import dataclasses

from edgekd import units
from edgekd.budget import Budget
from edgekd.candidate import Candidate
from edgekd.devices.device import Site
from edgekd.errors import BudgetError
from edgekd.figures import Figure, ModelFigures, metric_of
from edgekd.judge import Verdict, budget_figures, judge, show_limit, show_value

__all__ = [
    "BEFORE_TRAINING",
    "before_training",
    "choose_network",
    "choose_shape",
    "choose_variant",
    "doubtful",
    "fitting",
    "in_doubt",
    "meets_early",
    "widened",
]

BEFORE_TRAINING = ("latency_p50_ms", "size_kb", "peak_memory_mb", "instructions_m")
"""Budget keys that an untrained network already meets or misses."""


def choose_shape(candidates: list[Candidate], budget: Budget) -> Candidate:
    """Return the most capable candidate that meets every budget in at least one precision.

    Within a family, more multiply-accumulates, then more parameters, count as more capable. An unknown latency excludes
    no candidate. Raises BudgetError with the limiting budget and the nearest candidates.
    """
    return max(fitting(candidates, budget), key=lambda c: c.capacity)


def fitting(candidates: list[Candidate], budget: Budget) -> list[Candidate]:
    """The candidates that meet every budget in at least one precision, as far as is known before training.

    Raises BudgetError with the limiting budget and the nearest candidates if there are none.
    """
    found = [candidate for candidate in candidates if meets_early(candidate, budget)]
    if not found:
        raise BudgetError(_infeasible(candidates, before_training(budget)))
    return found


def meets_early(candidate: Candidate, budget: Budget) -> bool:
    """Whether the candidate meets, in at least one precision, all limits that can be judged before training."""
    return any(not _missed(figures, before_training(budget)) for figures in candidate.precisions.values())


def in_doubt(candidates: list[Candidate], budget: Budget, every: bool = False) -> list[Candidate]:
    """The candidates whose time was measured once, and with so much spread that they may meet the limit or miss it, the
    most capable first. Unless `every` one that fits competes, those that are less capable than the best of these are
    left out, because they cannot change the choice."""
    limit = before_training(budget).limit("latency_p50_ms")
    if limit is None:
        return []
    fits = [] if every else [c.capacity for c in candidates if meets_early(c, budget)]
    least = max(fits, default=(0, 0))
    found = [c for c in candidates if c.capacity >= least and c.measured_here and not (c.checked or c.brought)]
    return sorted((c for c in found if doubtful(c, budget)), key=lambda c: c.capacity, reverse=True)


def doubtful(candidate: Candidate, budget: Budget) -> bool:
    """Whether the limit of the time lies in the measured interval of a precision that meets all others, and none meets
    them all for sure."""
    early = before_training(budget)
    limit = early.limit("latency_p50_ms") or 0.0
    others = early.without("latency_p50_ms")
    times = [f["latency_p50_ms"] for f in candidate.precisions.values() if not _missed(f, others)]
    measured = [one for one in times if one.provenance == "measured"]
    spans = [(one.low, one.high) for one in measured if one.low is not None and one.high is not None]
    return any(low <= limit < high for low, high in spans) and not any(high <= limit for _, high in spans)


def widened(budget: Budget, factor: float) -> Budget:
    """The budget with each limit of BEFORE_TRAINING multiplied by `factor`."""
    early = before_training(budget).limits()
    return budget.with_values(Budget(budget.kind, **{key: factor * limit for key, limit in early.items()}))


def before_training(budget: Budget) -> Budget:
    """The limits that an untrained network already meets or misses."""
    early = Budget(budget.kind, **{key: budget.limit(key) for key in BEFORE_TRAINING})
    p95 = budget.limit("latency_p95_ms")
    if p95 is not None:  # p50 is at most p95, so it must meet this limit too
        early = early.with_values(Budget(latency_p50_ms=min(p95, early.limit("latency_p50_ms") or 1e9)))
    return early


def _missed(figures: dict[str, Figure], budget: Budget) -> list[str]:
    verdict = judge(_points(figures), budget, allow_estimated=True)
    return [line.key for line in verdict.lines if line.outcome == "fail"]


def _points(figures: dict[str, Figure]) -> dict[str, Figure]:
    """Remove the intervals of measured figures: a choice uses the best guess, and the verdict comes later.

    An estimate keeps its interval, so that a candidate that may meet the budget is not excluded.
    """
    return {
        key: figure if figure.provenance == "estimated" else dataclasses.replace(figure, low=None, high=None)
        for key, figure in figures.items()
    }


def _infeasible(candidates: list[Candidate], budget: Budget) -> str:
    limits = budget.limits()
    every = [(c, precision, figures) for c in candidates for precision, figures in c.precisions.items()]
    misses = {key: sum(key in _missed(figures, budget) for _, _, figures in every) for key in limits}
    limiting = max(misses, key=lambda key: misses[key])

    def excess(figures: dict[str, Figure]) -> float:
        return float(max((figures.get(key, Figure()).value or 0) / limits[key] for key in limits))

    nearest = sorted(every, key=lambda entry: excess(entry[2]))[:3]
    shown = "; ".join(
        f"{c.name} {precision}: "
        + ", ".join(f"{metric_of(key).limit_words} {show_value(key, figures.get(key, Figure()))}" for key in limits)
        for c, precision, figures in nearest
    )
    return (
        f"no candidate fits: {metric_of(limiting).limit_words} ≤ {show_limit(limiting, limits[limiting])} is missed by "
        f"{misses[limiting]} of {len(every)}; nothing was trained. Nearest: {shown}. "
        f"Widen the budget (--budget {limiting}=…) or give the student smaller knobs"
    )


def choose_network(
    variants: list[ModelFigures], teacher_score: Figure | None, budget: Budget, site: Site
) -> tuple[ModelFigures, str]:
    """Return the file to ship and the reason, where the variants may be of several networks, named by the first word of
    the variant: the student, and the pruned teacher.

    `choose_variant` chooses among the variants of each network. Of these, the one with the best score on
    validation data is shipped, among those that miss the fewest limits.
    """
    networks = list(dict.fromkeys(_network(variant) for variant in variants))
    best = [
        choose_variant([v for v in variants if _network(v) == name], teacher_score, budget, site) for name in networks
    ]
    if len(best) == 1:
        return best[0]
    chosen, why = min(best, key=lambda one: (len(_fails(_verdict(one[0], teacher_score, budget))), -_merit(one[0])))
    kind = chosen.kinds[0]
    others = ", ".join(f"{v.name} {kind.show(v.score.value or 0.0)}" for v, _ in best if v is not chosen)
    reached = kind.show(chosen.score.value or 0.0)
    return chosen, f"{chosen.name} has {reached} on validation data ({others}); {why}"


def _network(variant: ModelFigures) -> str:
    return variant.name.partition(" ")[0]


def _verdict(variant: ModelFigures, teacher_score: Figure | None, budget: Budget) -> Verdict:
    """The verdict on the figures without their intervals. The teacher's own limit is left out, which is the same for
    all variants, and so is the drop from a teacher that may have been trained on the validation data."""
    budget = budget.without(budget.kind.teacher_key)
    if teacher_score is None:
        budget = budget.without(budget.kind.change_key)
    return judge(_points(budget_figures(variant, teacher_score)), budget, True)


def choose_variant(
    variants: list[ModelFigures], teacher_score: Figure | None, budget: Budget, site: Site
) -> tuple[ModelFigures, str]:
    """Return the file to ship and the reason; `variants` have the target's precisions and scores on validation data.

    `teacher_score` is None if the teacher may have been trained on the validation data. If the target's time is
    measured, int8 (or fp16) is chosen only if it is faster beyond the spread of its processes, or if a budget needs it.
    Otherwise the first of the target's precisions that meets the budget is chosen. If none does, the variant that
    misses the fewest limits is chosen. Of several files of one precision, such as int8 and int8-qat, the one with the
    best score that is not surely slower is compared with the other precisions.
    """
    verdicts = {v.name: _verdict(v, teacher_score, budget) for v in variants}
    fewest = min(len(_fails(verdict)) for verdict in verdicts.values())
    fitting = _best_of_each([v for v in variants if len(_fails(verdicts[v.name])) == fewest])
    word = "that fits" if fewest == 0 else "of those that miss least"
    if not site.measurable:
        chosen = min(fitting, key=lambda v: site.target.precisions.index(v.precision))
        return chosen, f"{_label(chosen)} is the first precision of target {site.target.name} {word}"
    if len(fitting) == 1 and len({v.precision for v in variants}) > 1:
        return fitting[0], _misses_less(fitting[0], variants, verdicts)
    chosen = max(fitting, key=lambda v: v.precision == "fp32")
    for other in fitting:
        if _surely_faster(other, chosen):
            chosen = other
    times = ", ".join(f"{_label(v)} {units.milliseconds(v.latency_p50_ms.value or 0)}" for v in fitting)
    fastest = all(v is chosen or _surely_faster(chosen, v) for v in fitting)
    return chosen, f"{_label(chosen)} is {'the fastest' if fastest else 'as fast as any'} {word} ({times})"


def _label(variant: ModelFigures) -> str:
    """How a variant differs from the others of the same network: `int8-qat`."""
    return variant.name.partition(" ")[2] or variant.name


def _best_of_each(fitting: list[ModelFigures]) -> list[ModelFigures]:
    """One variant of each precision: the one with the best score, unless it is surely slower than one before it."""
    best: dict[str, ModelFigures] = {}
    for variant in fitting:
        before = best.get(variant.precision)
        if before is None or (_merit(variant) > _merit(before) and not _surely_faster(before, variant)):
            best[variant.precision] = variant
    return list(best.values())


def _merit(variant: ModelFigures) -> float:
    """The score that decides, with the sign with which higher is better."""
    value = variant.score.value or 0.0
    return value if variant.kinds[0].better == "higher" else -value


def _misses_less(chosen: ModelFigures, variants: list[ModelFigures], verdicts: dict[str, Verdict]) -> str:
    """Explain why the only remaining variant is shipped, and which limits it misses itself."""
    own = _fails(verdicts[chosen.name])
    lines = [line for v in variants if v.precision != chosen.precision for line in verdicts[v.name].lines]
    missed = "; ".join(line.text for line in lines if line.outcome == "fail" and line.key not in own)
    reason = f"on validation data {_label(chosen)} meets what another precision misses ({missed})"
    return (
        f"{reason}, though not {' and '.join(metric_of(key, chosen.kinds[0]).limit_words for key in own)}"
        if own
        else reason
    )


def _surely_faster(one: ModelFigures, other: ModelFigures) -> bool:
    """Whether the slowest process of `one` was faster than the fastest process of `other`."""
    slowest, fastest = one.latency_p50_ms, other.latency_p50_ms
    high = slowest.value if slowest.high is None else slowest.high
    low = fastest.value if fastest.low is None else fastest.low
    return high is not None and low is not None and high < low


def _fails(verdict: Verdict) -> list[str]:
    return [line.key for line in verdict.lines if line.outcome == "fail"]
