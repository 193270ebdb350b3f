"""Choose under the budget: the shape before training, the precision after it."""

import dataclasses

from edgekd import units
from edgekd.budget import Budget
from edgekd.candidate import Candidate
from edgekd.devices.device import Site
from edgekd.errors import BudgetError
from edgekd.figures import Figure, ModelFigures, metric_of
from edgekd.judge import Verdict, budget_figures, judge, show_limit, show_value

__all__ = ["before_training", "choose_shape", "choose_variant", "fitting", "widened"]

BEFORE_TRAINING = ("latency_p50_ms", "size_kb", "peak_memory_mb")
"""Budget keys that an untrained network already meets or misses."""


def choose_shape(candidates: list[Candidate], budget: Budget) -> Candidate:
    """Return the most capable candidate that meets every budget in at least one precision.

    Within a family, more multiply-accumulates, then more parameters, count as more capable. An unknown latency excludes
    no candidate. Raises BudgetError with the limiting budget and the nearest candidates.
    """
    return max(fitting(candidates, budget), key=lambda c: (c.macs, c.params))


def fitting(candidates: list[Candidate], budget: Budget) -> list[Candidate]:
    """The candidates that meet every budget in at least one precision, as far as is known before training.

    Raises BudgetError with the limiting budget and the nearest candidates if there are none.
    """
    early = before_training(budget)
    found = [c for c in candidates if any(not _missed(f, early) for f in c.precisions.values())]
    if not found:
        raise BudgetError(_infeasible(candidates, early))
    return found


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
        return float(max((figures[key].value or 0) / limits[key] for key in limits))

    nearest = sorted(every, key=lambda entry: excess(entry[2]))[:3]
    shown = "; ".join(
        f"{c.name} {precision}: "
        + ", ".join(f"{metric_of(key).limit_words} {show_value(key, figures[key])}" for key in limits)
        for c, precision, figures in nearest
    )
    return (
        f"no candidate fits: {metric_of(limiting).limit_words} ≤ {show_limit(limiting, limits[limiting])} is missed by "
        f"{misses[limiting]} of {len(every)}; nothing was trained. Nearest: {shown}. "
        f"Widen the budget (--budget {limiting}=…) or give the student smaller knobs"
    )


def choose_variant(
    variants: list[ModelFigures], teacher_score: Figure | None, budget: Budget, site: Site
) -> tuple[ModelFigures, str]:
    """Return the file to ship and the reason; `variants` have the target's precisions and scores on validation data.

    `teacher_score` is None if the teacher may have been trained on the validation data. If the target's time is
    measured, int8 (or fp16) is chosen only if it is faster beyond the spread of its processes, or if a budget needs it.
    Otherwise the first of the target's precisions that meets the budget is chosen. If none does, the variant that
    misses the fewest limits is chosen.
    """
    budget = budget.without(budget.kind.teacher_key)  # the same for all variants
    if teacher_score is None:
        budget = budget.without(budget.kind.change_key)
    verdicts = {v.precision: judge(_points(budget_figures(v, teacher_score)), budget, True) for v in variants}
    fewest = min(len(_fails(verdict)) for verdict in verdicts.values())
    fitting = [v for v in variants if len(_fails(verdicts[v.precision])) == fewest]
    word = "that fits" if fewest == 0 else "of those that miss least"
    if not site.measurable:
        chosen = min(fitting, key=lambda v: site.target.precisions.index(v.precision))
        return chosen, f"{chosen.precision} is the first precision of target {site.target.name} {word}"
    if len(fitting) == 1 and len(variants) > 1:
        return fitting[0], _misses_less(fitting[0], verdicts)
    chosen = max(fitting, key=lambda v: v.precision == "fp32")
    for other in fitting:
        if _surely_faster(other, chosen):
            chosen = other
    times = ", ".join(f"{v.precision} {units.milliseconds(v.latency_p50_ms.value or 0)}" for v in fitting)
    fastest = all(v is chosen or _surely_faster(chosen, v) for v in fitting)
    return chosen, f"{chosen.precision} is {'the fastest' if fastest else 'as fast as any'} {word} ({times})"


def _misses_less(chosen: ModelFigures, verdicts: dict[str, Verdict]) -> str:
    """Explain why the only remaining variant is shipped, and which limits it misses itself."""
    own = _fails(verdicts[chosen.precision])
    lines = [line for precision, verdict in verdicts.items() if precision != chosen.precision for line in verdict.lines]
    missed = "; ".join(line.text for line in lines if line.outcome == "fail" and line.key not in own)
    reason = f"on validation data {chosen.precision} meets what another precision misses ({missed})"
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
