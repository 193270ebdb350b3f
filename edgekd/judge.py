"""Verdicts: pure functions of figures and budgets; nothing is measured here."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from edgekd.card import Budget
from edgekd.distributions import wilson
from edgekd.errors import ConfigError, ExitCode
from edgekd.figures import BUDGETED, COMPARED, Figure, Metric, ModelFigures
from edgekd.target import Target

__all__ = [
    "COUNTED",
    "EXIT_CODES",
    "SMALL_TEST_SET",
    "Judged",
    "Line",
    "Outcome",
    "Verdict",
    "budget_figures",
    "effective_budget",
    "exit_code_of",
    "judge",
    "read_counted",
    "show_limit",
    "show_value",
    "verdict_words",
]

Outcome = Literal["pass", "fail", "inconclusive", "not judged"]

LATENCIES = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
ACCURACIES = ("min_accuracy", "max_accuracy_drop", "min_agreement")
"""Budget keys without which a verdict says nothing about how well the model answers."""

SMALL_TEST_SET = 300
"""Of fewer test examples than these an accuracy near its limit proves nothing: the 95 % interval of 90 % right is 7
points wide at 300."""

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
    confidence: str = ""
    """How sure: `95 % over 4 planned looks; 6 process pairs`, or `exact`."""

    @property
    def metric(self) -> Metric:
        """What is judged, in the table of all metrics."""
        return _metric(self.key)

    @property
    def words(self) -> str:
        """What is judged: `file size`."""
        return self.metric.limit_words

    @property
    def sign(self) -> str:
        """≤ for a limit from above, ≥ for one from below."""
        return self.metric.sign

    @property
    def shown(self) -> str:
        """The figure with its unit: `27.7 kB`, `+1.2 %`, `unknown`."""
        return show_value(self.key, self.figure)

    @property
    def shown_limit(self) -> str:
        """The limit with its unit."""
        return show_limit(self.key, self.limit)

    @property
    def shown_interval(self) -> str:
        """`0.652 ms … 0.671 ms`; empty for an exact figure."""
        if self.figure.low is None or self.figure.high is None:
            return ""
        return f"{show_limit(self.key, self.figure.low)} … {show_limit(self.key, self.figure.high)}"

    @property
    def margin(self) -> float | None:
        """What is left until the limit, negative beyond it, in the limit's own unit."""
        if self.figure.value is None:
            return None
        left = self.limit - self.figure.value
        return -left if self.metric.better == "higher" else left

    @property
    def advisory(self) -> bool:
        """Whether it is told and never decides: p99 varies by a fifth from one process to the next."""
        return self.metric.advisory

    @property
    def text(self) -> str:
        """`file size 27.7 kB ≤ 60.0 kB: pass`."""
        reason = f" ({self.reason})" if self.reason else ""
        outcome = f"{self.outcome}, advisory" if self.advisory else self.outcome
        return f"{self.words} {self.shown} {self.sign} {self.shown_limit}: {outcome}{reason}"


@dataclass(frozen=True)
class Verdict:
    """All lines of one model; the worst decides: fail, then inconclusive, then pass.

    A budget that was asked for and not judged is inconclusive. A tolerance that could not be compared decides nothing.
    """

    lines: tuple[Line, ...]

    @property
    def outcome(self) -> Outcome:
        """The verdict as a word."""
        outcomes = [line.outcome for line in self.lines if not line.advisory]
        unjudged = any(line.outcome == "not judged" and line.key in BUDGETED for line in self.lines)
        return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes or unjudged else "pass"

    @property
    def exit_code(self) -> ExitCode:
        """What a command that ends with this verdict exits with."""
        return EXIT_CODES[self.outcome]

    @property
    def reasons(self) -> list[str]:
        """The lines that did not pass, as text."""
        return [line.text for line in self.lines if line.outcome != "pass"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What `check` says of one model on one target: a verdict, or why there is none."""

    name: str
    target: str
    verdict: Verdict | None = None
    problem: str = ""
    """One line: it crashed, its baseline is missing, …"""
    problem_code: ExitCode = ExitCode.USAGE
    file: str = ""
    sha256: str = ""
    baseline: str = ""
    """What it was held against, in words; empty for budgets alone."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """How long the check took."""
    machine: str = ""
    """CPU and runtime of the measurement; empty if nothing was measured."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """By budget key, judged or not."""

    @property
    def outcome(self) -> str:
        """pass, fail, inconclusive or error."""
        return self.verdict.outcome if self.verdict else "error"

    @property
    def exit_code(self) -> ExitCode:
        """What the command exits with if this is all it did."""
        return self.verdict.exit_code if self.verdict else self.problem_code


COUNTED = {None: ExitCode.INCONCLUSIVE, "pass": ExitCode.PASS, "fail": ExitCode.FAIL}
"""What an inconclusive verdict exits with, by what the user says it counts as."""


def read_counted(option: str | None) -> str | None:
    """The value of `--on-inconclusive`; ConfigError if it is none."""
    if option not in COUNTED:
        raise ConfigError(f"--on-inconclusive {option!r}: it should be pass or fail")
    return option


def exit_code_of(judged: Judged | Verdict, on_inconclusive: str | None) -> ExitCode:
    """The exit code of one verdict, with what the user says of inconclusive ones."""
    return COUNTED[on_inconclusive] if judged.outcome == "inconclusive" else judged.exit_code


def judge(
    figures: dict[str, Figure], budget: Budget, allow_estimated: bool = False, examples: int | None = None
) -> Verdict:
    """Judge every limit that `budget` sets against the figure of the same key.

    A figure without a value, or an estimate where estimates are not allowed, is inconclusive; so is an
    interval that holds the limit. `examples` is the number of test examples that the accuracy is of: of fewer than
    SMALL_TEST_SET it is judged with its interval.
    """
    limits = budget.limits()
    lines = [_line(key, limits[key], figures.get(key, Figure()), allow_estimated) for key in BUDGETED if key in limits]
    return Verdict(tuple(_sampled(line, examples) if examples else line for line in lines))


def _sampled(line: Line, examples: int) -> Line:
    """The line of the accuracy with its Wilson interval, which decides where the examples are few."""
    value = line.figure.value
    if line.key != "min_accuracy" or value is None or line.outcome == "inconclusive":
        return line
    share = wilson(round(value * examples), examples)
    figure = dataclasses.replace(line.figure, low=max(0.0, share.low), high=min(1.0, share.high))
    line = dataclasses.replace(line, figure=figure)
    told = f"95 % interval {line.shown_interval} on {examples:,} examples"
    if examples < SMALL_TEST_SET and share.low < line.limit <= share.high:
        return dataclasses.replace(line, outcome="inconclusive", reason=f"too few to tell: {told}")
    return dataclasses.replace(line, reason=f"{line.reason}; {told}" if line.reason else told)


def verdict_words(verdict: Verdict, latency_p50: Figure) -> str:
    """The verdict of a run as every output tells it: `pass`, or `pass (latency not asked, not known)`.

    Beside the outcome stands what the verdict does not speak of or takes from an estimate; `latency_p50` is the
    figure of the shipped model.
    """
    keys = [line.key for line in verdict.lines]
    asked = any(key in LATENCIES for key in keys)
    remarks = []
    if any(line.key in LATENCIES and line.figure.provenance == "estimated" for line in verdict.lines):
        remarks.append("latency estimated")
    if not asked and latency_p50.value is None:
        remarks.append("latency not asked, not known")
    if not any(key in ACCURACIES for key in keys):
        remarks.append("accuracy not asked")
    return f"{verdict.outcome} ({'; '.join(remarks)})" if remarks else verdict.outcome


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
    if _metric(key).better == "higher":
        low, high, limit_ = -high, -low, -limit
    else:
        limit_ = limit
    if high <= limit_:
        return Line(key, limit, figure, "pass", note)
    if low > limit_:
        return Line(key, limit, figure, "fail", note)
    between = f"between {show_value(key, Figure(figure.low))} and {show_value(key, Figure(figure.high))}"
    return Line(key, limit, figure, "inconclusive", f"too close to tell: {between}")


def _metric(key: str) -> Metric:
    """The metric that a budget or tolerance key limits."""
    return BUDGETED.get(key) or COMPARED[key]


def budget_figures(model: ModelFigures, teacher_accuracy: Figure | None = None) -> dict[str, Figure]:
    """The figures of a model that budgets speak of, by budget key; without the teacher's accuracy those that need it
    are left out."""
    figures = {key: metric.budgeted(model, teacher_accuracy) for key, metric in BUDGETED.items()}
    if teacher_accuracy is None:
        del figures["teacher_min_accuracy"], figures["max_accuracy_drop"]
    return figures


def show_limit(key: str, value: float) -> str:
    """A budget's value with its unit."""
    return _metric(key).show_limit(value)


def show_value(key: str, figure: Figure) -> str:
    """A figure with the unit of its budget key, or `unknown`."""
    return "unknown" if figure.value is None else show_limit(key, figure.value)
