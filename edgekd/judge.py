"""Verdicts, computed by pure functions from figures and budgets; nothing is measured here."""

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
"""Budget keys about the quality of the answers. Without any of them, a verdict does not cover the accuracy."""

SMALL_TEST_SET = 300
"""With fewer test examples than this, an accuracy near its limit proves nothing: at 300 examples and an accuracy of
90 %, the 95 % interval is 7 points wide."""

EXIT_CODES = {"pass": ExitCode.PASS, "fail": ExitCode.FAIL, "inconclusive": ExitCode.INCONCLUSIVE}
"""The exit code of a command that ends with this verdict."""


@dataclass(frozen=True)
class Line:
    """The verdict on one budget or tolerance: figure, limit and outcome."""

    key: str
    limit: float
    figure: Figure
    outcome: Outcome
    reason: str = ""
    confidence: str = ""
    """The certainty in words: `95 % over 4 planned looks; 6 process pairs`, or `exact`."""

    @property
    def metric(self) -> Metric:
        """The metric that is judged, from the table of all metrics."""
        return _metric(self.key)

    @property
    def words(self) -> str:
        """The name of the judged metric: `file size`."""
        return self.metric.limit_words

    @property
    def sign(self) -> str:
        """≤ for an upper limit, ≥ for a lower limit."""
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
        """The distance from the figure to the limit, in the limit's unit; negative if the limit is exceeded."""
        if self.figure.value is None:
            return None
        left = self.limit - self.figure.value
        return -left if self.metric.better == "higher" else left

    @property
    def advisory(self) -> bool:
        """Whether the line is only reported and never decides. p99 latency varies by a fifth between processes."""
        return self.metric.advisory

    @property
    def text(self) -> str:
        """The line as text: `file size 27.7 kB ≤ 60.0 kB: pass`."""
        reason = f" ({self.reason})" if self.reason else ""
        outcome = f"{self.outcome}, advisory" if self.advisory else self.outcome
        return f"{self.words} {self.shown} {self.sign} {self.shown_limit}: {outcome}{reason}"


@dataclass(frozen=True)
class Verdict:
    """All lines of one model. The worst line decides: fail is worse than inconclusive, which is worse than pass.

    A budget that was set but not judged makes the verdict inconclusive. A tolerance that could not be compared has no
    influence.
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
        """The exit code of a command that ends with this verdict."""
        return EXIT_CODES[self.outcome]

    @property
    def reasons(self) -> list[str]:
        """The lines that did not pass, as text."""
        return [line.text for line in self.lines if line.outcome != "pass"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The result of `check` for one model on one target: a verdict, or the reason why there is none."""

    name: str
    target: str
    verdict: Verdict | None = None
    problem: str = ""
    """Why there is no verdict, in one line: the model crashed, its baseline is missing, …"""
    problem_code: ExitCode = ExitCode.USAGE
    file: str = ""
    sha256: str = ""
    baseline: str = ""
    """The baseline of the comparison, in words; empty if only budgets were judged."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """How long the check took."""
    machine: str = ""
    """CPU and runtime of the measurement; empty if nothing was measured."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """All figures by budget key, including those that were not judged."""

    @property
    def outcome(self) -> str:
        """pass, fail, inconclusive or error."""
        return self.verdict.outcome if self.verdict else "error"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command that judges only this model."""
        return self.verdict.exit_code if self.verdict else self.problem_code


COUNTED = {None: ExitCode.INCONCLUSIVE, "pass": ExitCode.PASS, "fail": ExitCode.FAIL}
"""The exit code of an inconclusive verdict, by the value of `--on-inconclusive`."""


def read_counted(option: str | None) -> str | None:
    """Check the value of `--on-inconclusive` and return it; ConfigError if it is not valid."""
    if option not in COUNTED:
        raise ConfigError(f"--on-inconclusive {option!r}: it should be pass or fail")
    return option


def exit_code_of(judged: Judged | Verdict, on_inconclusive: str | None) -> ExitCode:
    """The exit code of one verdict; `on_inconclusive` decides how an inconclusive verdict counts."""
    return COUNTED[on_inconclusive] if judged.outcome == "inconclusive" else judged.exit_code


def judge(
    figures: dict[str, Figure], budget: Budget, allow_estimated: bool = False, examples: int | None = None
) -> Verdict:
    """Judge every limit that `budget` sets against the figure of the same key.

    The outcome is inconclusive if the figure has no value, if it is an estimate and estimates are not allowed, or if
    its interval contains the limit. `examples` is the number of test examples: with fewer than SMALL_TEST_SET of them,
    the accuracy is judged with its interval.
    """
    limits = budget.limits()
    lines = [_line(key, limits[key], figures.get(key, Figure()), allow_estimated) for key in BUDGETED if key in limits]
    return Verdict(tuple(_sampled(line, examples) if examples else line for line in lines))


def _sampled(line: Line, examples: int) -> Line:
    """Add the Wilson interval to the line of the accuracy. If there are few examples, the interval decides the
    outcome."""
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
    """The words for a run's verdict in every output: `pass`, or `pass (latency not asked, not known)`.

    The words in brackets say what the verdict does not cover, or what it takes from an estimate. `latency_p50` is the
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
    """The budget, with limits reduced to the device's own limits where these are stricter."""
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
    """The figures of a model that budgets can limit, by budget key. Without the teacher's accuracy, the figures that
    need it are left out."""
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
