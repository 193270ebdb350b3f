"""Series of checks in chronological order, with their steps: one series per model, target, machine and figure."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from edgekd.figures import Figure, Metric, budgeted, metric_of
from edgekd.history import HistoryEntry
from edgekd.report.checks.steps import LevelStep, Scale, find_steps

__all__ = [
    "Group",
    "Series",
    "group_series",
    "machine_words",
    "short",
    "show_change",
    "show_step",
]


@dataclass(frozen=True)
class Series:
    """One figure of one model on one machine over time. Different machines are never compared."""

    key: str
    """A budget key, which also determines the unit."""
    machine: str
    entries: tuple[HistoryEntry, ...]
    """The checks in which the figure is known, in chronological order."""

    @property
    def metric(self) -> Metric:
        """The metric that the key limits, for the task of the latest check."""
        return metric_of(self.key, self.entries[-1].kind)

    @property
    def share(self) -> bool:
        """Whether the figure is a share from 0 to 1: accuracy, agreement, coverage."""
        return self.metric.unit == "share"

    @property
    def factor(self) -> int:
        """The number by which a value is multiplied for a drawing, in which shares are percentages."""
        return 100 if self.share else 1

    def show(self, value: float) -> str:
        """A value with its unit."""
        return self.metric.show_limit(value)

    @property
    def word(self) -> str:
        """The name of the figure: `latency p50`."""
        return self.metric.limit_words

    @property
    def figures(self) -> list[Figure]:
        """The figure of each entry; all of them have a value."""
        return [entry.figures[self.key] for entry in self.entries]

    @property
    def values(self) -> list[float]:
        """The values, in the unit of the key."""
        return [figure.value or 0.0 for figure in self.figures]

    @property
    def limits(self) -> list[float | None]:
        """The limit of the figure in each check; None if there was no limit."""
        return [entry.limits.get(self.key) for entry in self.entries]

    @property
    def scale(self) -> Scale:
        """The scale on which differences are computed."""
        return "points" if self.metric.unit in ("share", "points") else "ratio"

    @cached_property
    def steps(self) -> list[LevelStep]:
        """The steps of the level; their medians are in the unit of the key."""
        steps = find_steps([self.factor * value for value in self.values], self.scale)
        return [dataclasses.replace(s, before=s.before / self.factor, after=s.after / self.factor) for s in steps]

    @property
    def change(self) -> float | None:
        """The change of the latest figure since the previous one, in percent or points; None if there is only one
        figure."""
        return self.difference(*self.values[-2:]) if len(self.entries) > 1 else None

    def difference(self, before: float, after: float) -> float:
        """The difference in percent or in points, depending on the scale."""
        if self.scale == "ratio":
            return 100 * (after / before - 1)
        return self.factor * (after - before)

    def is_better(self, step: LevelStep) -> bool:
        """Whether the step is an improvement."""
        return (step.after > step.before) == (self.metric.better == "higher")

    def same_file(self, step: LevelStep) -> bool:
        """Whether the model file is the same as in the previous check, so that something else has changed."""
        return self.entries[step.at].sha256 == self.entries[step.at - 1].sha256


@dataclass(frozen=True)
class Group:
    """The checks of one model on one target, and their series."""

    model: str
    target: str
    entries: tuple[HistoryEntry, ...]
    series: tuple[Series, ...] = field(default=())

    @property
    def machines(self) -> list[str]:
        """Machines that measured a figure, the earliest first."""
        return list(dict.fromkeys(one.machine for one in self.series))

    @property
    def latest(self) -> HistoryEntry:
        """The last check."""
        return self.entries[-1]

    @property
    def outcome(self) -> str:
        """The worst outcome of the latest check and of the checks of the same commit on other machines."""
        commit = self.latest.commit
        same = {e.machine: e.outcome for e in self.entries if commit and e.commit == commit}
        found = [self.latest.outcome, *same.values()]
        return next((word for word in ("error", "fail", "inconclusive") if word in found), self.latest.outcome)

    @property
    def stepped(self) -> list[tuple[Series, LevelStep]]:
        """All steps, the most recent first."""
        found = [(one, step) for one in self.series for step in one.steps]
        return sorted(found, key=lambda pair: pair[0].entries[pair[1].at].at, reverse=True)


def group_series(entries: Sequence[HistoryEntry]) -> list[Group]:
    """Sort the entries into groups, in the order of their first check. The series of each group are in the order of
    verdicts.

    Figures relative to a baseline are left out, because they also have a step whenever the baseline changes.
    """
    groups: dict[tuple[str, str], list[HistoryEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.model, entry.target), []).append(entry)
    return [Group(*names, tuple(own), tuple(_series(own))) for names, own in groups.items()]


def _series(entries: Sequence[HistoryEntry]) -> Iterable[Series]:
    machines = dict.fromkeys(entry.machine for entry in entries)
    for key, metric in budgeted(entries[-1].kind).items():
        for machine in machines:
            own = tuple(entry for entry in entries if entry.machine == machine and _known(entry, key, metric))
            if own:
                yield Series(key, machine, own)


def _known(entry: HistoryEntry, key: str, metric: Metric) -> bool:
    """Whether the figure is known in this check. Times and sizes of zero or less are invalid and count as unknown, and
    so do figures of another task."""
    value = entry.figures.get(key, Figure()).value
    return value is not None and (value > 0 or metric.unit in ("share", "points"))


def short(commit: str) -> str:
    """The short form of a commit; `no commit` if it is unknown."""
    return " ".join(commit.split())[:9] or "no commit"


def machine_words(machine: str) -> str:
    """The machine in words, or words that say that it is unknown."""
    return machine or "no machine named"


def show_change(one: Series, change: float) -> str:
    """A change as text: `+5.1 %` or `-1.20 points`."""
    return f"{change:+.1f} %" if one.scale == "ratio" else f"{change:+.2f} points"


def show_step(one: Series, step: LevelStep) -> str:
    """A step as text: `+5.1 % at 1f0c9a2 (2026-11-02): 0.200 ms → 0.210 ms, same file`."""
    entry = one.entries[step.at]
    levels = f"{one.show(step.before)} → {one.show(step.after)}"
    file = "same file" if one.same_file(step) else "new file"
    return f"{show_change(one, step.change)} at {short(entry.commit)} ({entry.at:%Y-%m-%d}): {levels}, {file}"
