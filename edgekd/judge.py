"""Verdicts, computed by pure functions from figures and budgets; nothing is measured here."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from edgekd.budget import Budget
from edgekd.distributions import wilson
from edgekd.errors import ConfigError, ExitCode
from edgekd.figures import Figure, Metric, ModelFigures, budgeted, metric_of
from edgekd.scores import ACCURACY, ScoreKind
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
    kind: ScoreKind = ACCURACY
    """The deciding score of the model's task, for the keys that come from it."""

    @property
    def metric(self) -> Metric:
        """The metric that is judged."""
        return metric_of(self.key, self.kind)

    @property
    def about_score(self) -> bool:
        """Whether the limit is on the score that decides."""
        return self.key == self.kind.limit_key

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
        return show_value(self.key, self.figure, self.kind)

    @property
    def shown_limit(self) -> str:
        """The limit with its unit."""
        return show_limit(self.key, self.limit, self.kind)

    @property
    def shown_interval(self) -> str:
        """`0.652 ms … 0.671 ms`; empty for an exact figure."""
        if self.figure.low is None or self.figure.high is None:
            return ""
        low, high = (show_limit(self.key, end, self.kind) for end in (self.figure.low, self.figure.high))
        return f"{low} … {high}"

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
        unjudged = any(line.outcome == "not judged" and line.metric.budget for line in self.lines)
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
    kind: ScoreKind = ACCURACY
    """The score that decides for the model's task."""

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
    known, limits, kind = budgeted(budget.kind), budget.limits(), budget.kind
    lines = [
        _line(key, limits[key], figures.get(key, Figure()), allow_estimated, kind) for key in known if key in limits
    ]
    return Verdict(tuple(_sampled(line, examples) if examples else line for line in lines))


def _sampled(line: Line, examples: int) -> Line:
    """Add the interval to the line of the deciding score: Wilson's for a share of examples, else the figure's own. If
    there are few examples, the interval decides the outcome."""
    value, low, high = line.figure.value, line.figure.low, line.figure.high
    if not line.about_score or value is None or line.outcome == "inconclusive":
        return line
    if line.kind.counted:
        share = wilson(round(value * examples), examples)
        low, high = max(0.0, share.low), min(1.0, share.high)
    if low is None or high is None:
        return line
    line = dataclasses.replace(line, figure=dataclasses.replace(line.figure, low=low, high=high))
    told = f"95 % interval {line.shown_interval} on {examples:,} examples"
    between = low < line.limit <= high if line.kind.better == "higher" else low <= line.limit < high
    if examples < SMALL_TEST_SET and between:
        return dataclasses.replace(line, outcome="inconclusive", reason=f"too few to tell: {told}")
    return dataclasses.replace(line, reason=f"{line.reason}; {told}" if line.reason else told)


def verdict_words(verdict: Verdict, shipped: ModelFigures) -> str:
    """The words for a run's verdict in every output: `pass`, or `pass (latency not asked, not known)`.

    The words in brackets say what the verdict does not cover, or what it takes from an estimate.
    """
    keys = [line.key for line in verdict.lines]
    asked = any(key in LATENCIES for key in keys)
    remarks = []
    if any(line.key in LATENCIES and line.figure.provenance == "estimated" for line in verdict.lines):
        remarks.append("latency estimated")
    if not asked and shipped.latency_p50_ms.value is None:
        remarks.append("latency not asked, not known")
    kind = shipped.kinds[0]
    if not {kind.limit_key, kind.change_key, "min_agreement"} & set(keys):
        remarks.append(f"{kind.limit_words} not asked")
    return f"{verdict.outcome} ({'; '.join(remarks)})" if remarks else verdict.outcome


def effective_budget(budget: Budget, target: Target) -> Budget:
    """The budget, with limits reduced to the device's own limits where these are stricter."""
    ceilings = {key: limit for key, limit in dataclasses.asdict(target.limits).items() if limit is not None}
    tightened = {key: min(limit, budget.limit(key) or limit) for key, limit in ceilings.items()}
    return budget.with_values(Budget(budget.kind, **tightened))


def _line(key: str, limit: float, figure: Figure, allow_estimated: bool, kind: ScoreKind) -> Line:
    line = Line(key, limit, figure, "inconclusive", kind=kind)
    if figure.value is None:
        return dataclasses.replace(line, reason=figure.why or "not measured")
    if figure.provenance == "estimated" and not allow_estimated:
        return dataclasses.replace(line, reason="estimated, not measured; --allow-estimated judges it")
    note = f"{figure.provenance}" if figure.provenance in ("estimated", "proxy", "emulated") else ""
    # The interval of a score is for other examples than these; `_sampled` decides what it counts for.
    sampled = line.about_score and not kind.counted
    low = figure.value if figure.low is None or sampled else figure.low
    high = figure.value if figure.high is None or sampled else figure.high
    if line.metric.better == "higher":
        low, high, limit = -high, -low, -limit
    if high <= limit:
        return dataclasses.replace(line, outcome="pass", reason=note)
    if low > limit:
        return dataclasses.replace(line, outcome="fail", reason=note)
    between = f"between {show_value(key, Figure(figure.low), kind)} and {show_value(key, Figure(figure.high), kind)}"
    return dataclasses.replace(line, reason=f"too close to tell: {between}")


def budget_figures(model: ModelFigures, teacher_score: Figure | None = None) -> dict[str, Figure]:
    """The figures of a model that budgets can limit, by budget key. Without the teacher's score, the figures that need
    it are left out."""
    kind = model.kinds[0]
    figures = {key: metric.budgeted(model, teacher_score) for key, metric in budgeted(kind).items()}
    if teacher_score is None:
        del figures[kind.teacher_key], figures[kind.change_key]
    return figures


def show_limit(key: str, value: float, kind: ScoreKind = ACCURACY) -> str:
    """A budget's value with its unit. `kind` is the deciding score, for the keys that come from it."""
    return metric_of(key, kind).show_limit(value)


def show_value(key: str, figure: Figure, kind: ScoreKind = ACCURACY) -> str:
    """A figure with the unit of its budget key, or `unknown`."""
    return "unknown" if figure.value is None else show_limit(key, figure.value, kind)
