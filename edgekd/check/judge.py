"""Verdicts: pure functions of figures and budgets; nothing is measured here."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from edgekd import units
from edgekd.card import Budget
from edgekd.errors import ExitCode
from edgekd.figures import BUDGETED, Figure, ModelFigures
from edgekd.target import Target

__all__ = [
    "EXIT_CODES",
    "Line",
    "Outcome",
    "Verdict",
    "budget_figures",
    "effective_budget",
    "judge",
    "show_limit",
    "show_value",
]

Outcome = Literal["pass", "fail", "inconclusive", "not judged"]

EXIT_CODES = {"pass": ExitCode.PASS, "fail": ExitCode.FAIL, "inconclusive": ExitCode.INCONCLUSIVE}
"""What a command that ends with this verdict exits with."""


@dataclass(frozen=True)
class Line:
    """One budget, judged."""

    key: str
    limit: float
    figure: Figure
    outcome: Outcome
    reason: str = ""

    @property
    def text(self) -> str:
        """`file size 27.7 kB ≤ 60.0 kB: pass`."""
        sign = "≥" if _at_least(self.key) else "≤"
        value = show_value(self.key, self.figure)
        reason = f" ({self.reason})" if self.reason else ""
        return f"{BUDGETED[self.key]} {value} {sign} {show_limit(self.key, self.limit)}: {self.outcome}{reason}"


@dataclass(frozen=True)
class Verdict:
    """All lines of one model; the worst decides: fail, then inconclusive, then pass. What was not judged does not."""

    lines: tuple[Line, ...]

    @property
    def outcome(self) -> Outcome:
        """The verdict as a word."""
        outcomes = [line.outcome for line in self.lines]
        return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"

    @property
    def exit_code(self) -> ExitCode:
        """What a command that ends with this verdict exits with."""
        return EXIT_CODES[self.outcome]

    @property
    def reasons(self) -> list[str]:
        """The lines that did not pass, as text."""
        return [line.text for line in self.lines if line.outcome != "pass"]


def judge(
    figures: dict[str, Figure], budget: Budget, allow_estimated: bool = False, latency_must_be_known: bool = True
) -> Verdict:
    """Judge every limit that `budget` sets against the figure of the same key.

    A figure without a value, or an estimate where estimates are not allowed, is inconclusive; so is an
    interval that holds the limit. With `latency_must_be_known` false an unknown latency is «not judged» instead.
    """
    limits = {key: value for key, value in dataclasses.asdict(budget).items() if value is not None}
    lines = [_line(key, limits[key], figures.get(key, Figure()), allow_estimated) for key in BUDGETED if key in limits]
    if not latency_must_be_known:
        lines = [_not_judged(line) if _is_unknown_latency(line) else line for line in lines]
    return Verdict(tuple(lines))


def _is_unknown_latency(line: Line) -> bool:
    return line.key.startswith("latency") and line.figure.value is None


def _not_judged(line: Line) -> Line:
    return dataclasses.replace(line, outcome="not judged")


def effective_budget(budget: Budget, target: Target) -> Budget:
    """The budget, tightened to the ceilings of the device."""
    ceilings = dataclasses.asdict(target.limits)
    tightened = {key: min(limit, getattr(budget, key) or limit) for key, limit in ceilings.items() if limit is not None}
    return dataclasses.replace(budget, **tightened)


def _line(key: str, limit: float, figure: Figure, allow_estimated: bool) -> Line:
    if figure.value is None:
        return Line(key, limit, figure, "inconclusive", figure.why or "not measured")
    if figure.provenance == "estimated" and not allow_estimated:
        return Line(key, limit, figure, "inconclusive", "estimated, not measured; --allow-estimated judges it")
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    note = f"{figure.provenance}" if figure.provenance in ("estimated", "proxy", "emulated") else ""
    if _at_least(key):
        low, high, limit_ = -high, -low, -limit
    else:
        limit_ = limit
    if high <= limit_:
        return Line(key, limit, figure, "pass", note)
    if low > limit_:
        return Line(key, limit, figure, "fail", note)
    between = f"between {show_value(key, Figure(figure.low))} and {show_value(key, Figure(figure.high))}"
    return Line(key, limit, figure, "inconclusive", f"too close to tell: {between}")


def _at_least(key: str) -> bool:
    return key in ("min_accuracy", "teacher_min_accuracy")


def budget_figures(model: ModelFigures, teacher_accuracy: Figure | None = None) -> dict[str, Figure]:
    """The figures of a model that budgets speak of, by budget key."""
    figures = {
        "latency_p50_ms": model.latency_p50_ms,
        "latency_p95_ms": model.latency_p95_ms,
        "size_kb": model.size_kb,
        "peak_memory_mb": model.peak_memory_mb,
        "min_accuracy": model.accuracy,
    }
    if teacher_accuracy is not None:
        figures["teacher_min_accuracy"] = teacher_accuracy
    if teacher_accuracy is not None and teacher_accuracy.value is not None and model.accuracy.value is not None:
        drop = 100 * (teacher_accuracy.value - model.accuracy.value)
        figures["max_accuracy_drop"] = Figure(round(drop, 6), model.accuracy.provenance)
    return figures


def show_limit(key: str, value: float) -> str:
    """A budget's value with its unit."""
    if key.endswith("_ms"):
        return units.milliseconds(value)
    if key == "size_kb":
        return units.bytes_(value * 1_000)
    if key == "peak_memory_mb":
        return units.bytes_(value * 1_000_000)
    return f"{value:.2f} points" if key == "max_accuracy_drop" else units.accuracy(value)


def show_value(key: str, figure: Figure) -> str:
    """A figure with the unit of its budget key, or `unknown`."""
    return "unknown" if figure.value is None else show_limit(key, figure.value)
