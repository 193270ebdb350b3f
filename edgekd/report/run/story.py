"""A run as the reports show it."""

from dataclasses import dataclass
from typing import Any

from edgekd.bench.statistics import Interval, wilson
from edgekd.figures import Figure, ModelFigures, whole_words
from edgekd.judge import Line
from edgekd.scores import ScoreKind

__all__ = ["Column", "Story", "Untrained", "interval_of"]


@dataclass(frozen=True)
class Untrained:
    """A candidate shape, and the figures measured with it before training."""

    name: str
    params: int
    macs: int
    precisions: dict[str, dict[str, Figure]]
    """Maps each precision to its figures by budget key (latency_p50_ms, size_kb, peak_memory_mb, instructions_m)."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The measurements of the run's models on one target. The keys of the dictionaries are names of models."""

    target: str
    label: str
    """The target as a heading, which is unique among the columns of a run."""
    title: str
    provider: str
    command: str
    """Where the measurement comes from; empty for the run's own target."""
    models: tuple[ModelFigures, ...]
    split: str
    """The data on which the scores were measured: `test` or `validation`."""
    count: int
    """Number of the examples."""
    examples: str
    """The word for the examples, in the plural: images or sentences."""
    samples_ms: dict[str, tuple[tuple[float, ...], ...]]
    """Latency of every call, as one tuple per process."""
    details: dict[str, dict[str, Any]]
    """What the charts of the task show; see `edgekd.tasks.task.Task.charted`. Models without any are left out."""
    pictures: dict[str, dict[str, Any]]
    """What is shown of single examples; see `edgekd.tasks.task.Task.pictured`. Models without any are left out."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run as the reports show it."""

    name: str
    """Name of the run folder."""
    card: str
    target: str
    outcome: str
    """pass, fail or inconclusive."""
    verdict: str
    """The outcome in words, with remarks on what the verdict does not cover."""
    lines: tuple[Line, ...]
    """The judged budget."""
    chosen: str
    why_chosen: str
    shape: str
    input: str
    """How the caller must prepare an input; empty if this is unknown, or nothing need be said."""
    candidate_count: int
    candidates: tuple[Untrained, ...]
    data: dict[str, Any]
    """The card's `[data]`, as the run keeps it."""
    charts: tuple[str, ...]
    """The charts of the task, by their name in edgekd/report/tasks."""
    columns: tuple[Column, ...]
    """The columns: the run's own target first, then the targets of `edgekd bench`."""
    test_reads: int
    parity: dict[str, Any]
    training: dict[str, Any]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    """The commands that repeat the run, in their order."""
    versions: dict[str, str]
    fingerprint: dict[str, Any]
    """The fingerprint of the shipped file's measurement."""
    missing: tuple[str, ...]
    """The files that the folder no longer contains, and what is not shown because of this."""

    @property
    def own(self) -> Column:
        """The column of the target for which the run was made."""
        return self.columns[0]

    @property
    def teacher(self) -> ModelFigures:
        """The teacher, or the network that was pruned, on the run's own target."""
        return self.own.models[0]

    @property
    def shipped(self) -> ModelFigures:
        """The model of the shipped file, on the run's own target."""
        return next(model for model in self.own.models if model.name == self.chosen)

    @property
    def kind(self) -> ScoreKind:
        """The score that decides."""
        return self.own.models[0].kinds[0]

    @property
    def sentence(self) -> str:
        """A summary: `The shipped file is 11 × smaller and 4.5 × faster than the teacher and loses 6.64 points of
        accuracy.`"""
        parts = [_times(self.teacher.size_bytes / self.shipped.size_bytes, "smaller", "larger")]
        ours, theirs = self.shipped.latency_p50_ms, self.teacher.latency_p50_ms
        if ours.value and theirs.value:
            guess = "an estimated " if "estimated" in (ours.provenance, theirs.provenance) else ""
            parts.append(guess + _times(theirs.value / ours.value, "faster", "slower"))
        text = f"The shipped file is {' and '.join(parts)} than {whole_words(self.teacher)}"
        ours, theirs = self.shipped.instructions_m, self.teacher.instructions_m
        if len(parts) == 1 and ours.value and theirs.value:
            text += f", needs {_times(theirs.value / ours.value, 'fewer', 'more')} instructions"
        if self.shipped.score.value is not None and self.teacher.score.value is not None:
            worse, word = self.kind.worsening(self.shipped.score.value, self.teacher.score.value), self.kind.limit_words
            shown = self.kind.show_change(abs(worse))
            same = shown == self.kind.show_change(0.0)
            text += f", at the same {word}" if same else f" and {_verb(self.kind, worse)} {shown} of {word}"
        return text + ("." if len(parts) == 2 else "; its latency is not known.")


def interval_of(model: ModelFigures, count: int) -> Interval | None:
    """The interval of the score that decides: the stored one, or else the 95 % Wilson interval of a share of `count`
    examples; None if there is none."""
    figure = model.score
    if figure.value is None or not count:
        return None
    if figure.low is not None and figure.high is not None:
        return Interval(figure.value, figure.low, figure.high)
    return wilson(round(figure.value * count), count) if model.kinds[0].counted else None


def _verb(kind: ScoreKind, worse: float) -> str:
    """What the shipped file does with the score, compared with the teacher."""
    if kind.better == "higher":
        return "loses" if worse > 0 else "gains"
    return "adds" if worse > 0 else "removes"


def _times(ratio: float, above: str, below: str) -> str:
    word, factor = (above, ratio) if ratio >= 1 else (below, 1 / ratio)
    return f"{factor:.1f} × {word}" if factor < 9.95 else f"{factor:.0f} × {word}"
