"""Choose the shapes that are measured, and predict the figures of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.candidate import Candidate, Shape
from edgekd.figures import Figure
from edgekd.search.features import Counts
from edgekd.search.latency import MIN_MEASURED, errors_left_out, fit

__all__ = ["Fitted", "predict", "spread_out"]

SURE = 0.9
"""Share of the left-out errors that lie inside the interval of a prediction."""


@dataclass(frozen=True)
class Fitted:
    """How well one figure is predicted, measured by leaving out one shape at a time."""

    precision: str
    key: str
    shapes: int
    """Number of measured shapes."""
    median_error: float
    """Median of |predicted / measured − 1|."""
    error_95: float
    """The error that 95 % of the shapes do not exceed."""
    within_10_percent: float
    """Share of the shapes with an error of at most 10 %."""


def spread_out(shapes: Sequence[Shape], counts: Sequence[Counts], count: int) -> list[int]:
    """Indices of `count` shapes that represent all: of each family a share, evenly spaced by multiply-accumulates."""
    families: dict[Any, list[int]] = {}
    for place, shape in enumerate(shapes):
        families.setdefault(shape.get("family"), []).append(place)
    chosen: list[int] = []
    for places in families.values():
        ordered = sorted(places, key=lambda place: (counts[place]["macs"], counts[place]["params"]))
        share = min(len(ordered), max(2, round(count * len(places) / len(shapes))))
        chosen += [ordered[place] for place in np.unique(np.linspace(0, len(ordered) - 1, share).round().astype(int))]
    return sorted(chosen)


def predict(
    measured: Sequence[Candidate], known: Sequence[Counts], shapes: Sequence[Shape], counts: Sequence[Counts]
) -> tuple[list[Candidate], list[Fitted]]:
    """Candidates with the expected figures of the `shapes`, which have the sums `counts`, from those of the `measured`
    ones, which have the sums `known`; and how well each figure is predicted.

    A figure is estimated with an interval; it is unknown if too few shapes have it.
    """
    figures: list[dict[str, dict[str, Figure]]] = [{} for _ in shapes]
    fitted: list[Fitted] = []
    for precision in measured[0].precisions:
        for key in measured[0].precisions[precision]:
            expected, quality = _expected(measured, known, counts, precision, key)
            fitted += [quality] if quality else []
            for place, figure in enumerate(expected):
                figures[place].setdefault(precision, {})[key] = figure
    found = [
        Candidate(shape, int(one["params"]), int(one["macs"]), its_figures, predicted=True)
        for shape, one, its_figures in zip(shapes, counts, figures, strict=True)
    ]
    return found, fitted


def _expected(
    measured: Sequence[Candidate], known: Sequence[Counts], counts: Sequence[Counts], precision: str, key: str
) -> tuple[list[Figure], Fitted | None]:
    values = [candidate.precisions[precision][key].value for candidate in measured]
    usable = [place for place, value in enumerate(values) if value]
    if len(usable) < MIN_MEASURED:
        why = measured[0].precisions[precision][key].why or f"only {len(usable)} shapes have this figure"
        return [Figure(why=why)] * len(counts), None
    x, y = [known[place] for place in usable], [float(values[place] or 0) for place in usable]
    errors = np.abs(errors_left_out(x, y))
    interval = float(np.quantile(errors, SURE))
    quality = Fitted(
        precision=precision,
        key=key,
        shapes=len(usable),
        median_error=float(np.median(errors)),
        error_95=float(np.quantile(errors, 0.95)),
        within_10_percent=float(np.mean(errors <= 0.1)),
    )
    why = f"predicted from {len(usable)} measured shapes"
    expected = [
        Figure(float(value), "estimated", float(value) * (1 - min(interval, 0.99)), float(value) * (1 + interval), why)
        for value in fit(x, y).predict(counts)
    ]
    return expected, quality
