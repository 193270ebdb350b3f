"""The front of a search: the candidates that no other one beats, what a wider limit would buy, and which limit to
relax where nothing fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.candidate import Candidate, Score, Shape, shape_name
from edgekd.figures import BUDGETED
from edgekd.judge import show_limit
from edgekd.scores import ScoreKind
from edgekd.search.rank import quality

__all__ = ["COSTS", "MORE", "Point", "front_of", "points_of", "relax_words", "what_more_buys", "what_to_relax"]

COSTS = ("latency_p50_ms", "size_kb", "peak_memory_mb", "instructions_m")
"""The budget keys by which candidates are compared, as far as they are known."""

MORE = 1.1
"""The factor by which a limit is widened to tell what that would buy."""


@dataclass(frozen=True)
class Point:
    """A candidate in one precision."""

    shape: Shape
    precision: str
    costs: Mapping[str, float]
    """The known figures by budget key."""
    quality: float
    """The score on validation data after a short distillation (negative where lower is better) or, without one, the
    multiply-accumulates."""
    predicted: bool
    epochs: int | None = None
    """The epochs of that distillation."""

    @property
    def name(self) -> str:
        """The shape and the precision as text."""
        return f"{shape_name(self.shape)} {self.precision}"

    def fits(self, limits: Mapping[str, float]) -> bool:
        """Whether no known figure exceeds its limit."""
        return all(self.costs[key] <= limit for key, limit in limits.items() if key in self.costs)


def points_of(candidates: Sequence[Candidate], scores: Sequence[Score], kind: ScoreKind) -> list[Point]:
    """Each candidate in each precision. If there are scores, only the candidates that have one, each with its score of
    the first round, because only scores after equally many epochs can be compared."""
    epochs = min((one.epochs for one in scores), default=None)
    first = {shape_name(one.shape): quality(one, kind) for one in scores if one.epochs == epochs}
    points = []
    for candidate in candidates:
        if scores and candidate.name not in first:
            continue
        for precision, figures in candidate.precisions.items():
            costs = {key: figures[key].value for key in COSTS if key in figures}
            known = {key: value for key, value in costs.items() if value is not None}
            good = first.get(candidate.name, float(candidate.macs))
            points.append(Point(candidate.shape, precision, known, good, candidate.predicted, epochs))
    return points


def front_of(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in quality and in every cost, by cost."""
    kept = [one for one in points if not any(_beats(other, one) for other in points)]
    return sorted(kept, key=lambda one: (*one.costs.values(), one.quality))


def _beats(one: Point, other: Point) -> bool:
    keys = ("latency_p50_ms" if "latency_p50_ms" in one.costs else "instructions_m", "size_kb")
    mine = [one.costs.get(key, 0.0) for key in keys] + [-one.quality]
    theirs = [other.costs.get(key, 0.0) for key in keys] + [-other.quality]
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def what_more_buys(points: Sequence[Point], limits: Mapping[str, float]) -> dict[str, tuple[Point, Point]]:
    """For each limit, the best point now and the best point with a limit 10 % wider, if that point is better."""
    now = max((one for one in points if one.fits(limits)), key=lambda one: one.quality, default=None)
    bought = {}
    for key, limit in limits.items():
        wider = [one for one in points if one.fits({**limits, key: MORE * limit})]
        then = max(wider, key=lambda one: one.quality, default=None)
        if now is not None and then is not None and then.quality > now.quality:
            bought[key] = (now, then)
    return bought


def what_to_relax(points: Sequence[Point], limits: Mapping[str, float]) -> list[tuple[Point, dict[str, float]]]:
    """Where no point fits: the nearest points, each with the limits that it needs and their new values. The nearest are
    those whose largest excess is the smallest; the nearest point for each single limit is included, too."""

    def missed(one: Point) -> dict[str, float]:
        return {key: one.costs[key] for key, limit in limits.items() if one.costs.get(key, 0.0) > limit}

    def excess(one: Point) -> float:
        return max(value / limits[key] for key, value in missed(one).items())

    ordered = sorted((one for one in points if missed(one)), key=excess)
    chosen = ordered[:3]
    for key in limits:
        chosen += [one for one in ordered if set(missed(one)) == {key}][:1]
    return [(one, missed(one)) for place, one in enumerate(chosen) if one not in chosen[:place]]


def relax_words(needed: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Which limits to set to which values, as text."""
    return " and ".join(
        f"{BUDGETED[key].limit_words} ≤ {show_limit(key, value)} (+{100 * (value / limits[key] - 1):.0f} %)"
        for key, value in needed.items()
    )
