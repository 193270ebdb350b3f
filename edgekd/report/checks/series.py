"""Checks in the order of time as series, one for each model, target, machine and figure, with the steps in them."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from edgekd.figures import BUDGETED, Figure
from edgekd.history import Entry
from edgekd.judge import show_limit
from edgekd.report.checks.steps import Scale, Step, find_steps

__all__ = [
    "Group",
    "Series",
    "group_series",
    "is_share",
    "machine_words",
    "short",
    "show_change",
    "show_step",
]


@dataclass(frozen=True)
class Series:
    """One figure of one model on one machine; machines are never compared with one another."""

    key: str
    """A budget key, which tells the unit: see `figures.BUDGETED`."""
    machine: str
    entries: tuple[Entry, ...]
    """The checks that knew the figure, in the order of time."""

    @property
    def word(self) -> str:
        """`latency p50`."""
        return BUDGETED[self.key].limit_words

    @property
    def figures(self) -> list[Figure]:
        """One of each entry; all of them have a value."""
        return [entry.figures[self.key] for entry in self.entries]

    @property
    def values(self) -> list[float]:
        """In the unit of the key."""
        return [figure.value or 0.0 for figure in self.figures]

    @property
    def limits(self) -> list[float | None]:
        """The limit that each check held the figure against; None where there was none."""
        return [entry.limits.get(self.key) for entry in self.entries]

    @property
    def scale(self) -> Scale:
        """How differences count."""
        return "points" if is_share(self.key) or BUDGETED[self.key].unit == "points" else "ratio"

    @cached_property
    def steps(self) -> list[Step]:
        """Steps of the level; medians in the unit of the key."""
        factor = 100 if is_share(self.key) else 1
        steps = find_steps([factor * value for value in self.values], self.scale)
        return [dataclasses.replace(s, before=s.before / factor, after=s.after / factor) for s in steps]

    @property
    def change(self) -> float | None:
        """Of the latest figure since the one before, in percent or points; None if there is only one."""
        return self.difference(*self.values[-2:]) if len(self.entries) > 1 else None

    def difference(self, before: float, after: float) -> float:
        """In percent, or in points."""
        if self.scale == "ratio":
            return 100 * (after / before - 1)
        return (100 if is_share(self.key) else 1) * (after - before)

    def is_better(self, step: Step) -> bool:
        """Whether the step is good news."""
        return (step.after > step.before) == (BUDGETED[self.key].better == "higher")

    def same_file(self, step: Step) -> bool:
        """Whether the model file is that of the check before: then something else has changed."""
        return self.entries[step.at].sha256 == self.entries[step.at - 1].sha256


@dataclass(frozen=True)
class Group:
    """What is known of one model on one target."""

    model: str
    target: str
    entries: tuple[Entry, ...]
    series: tuple[Series, ...] = field(default=())

    @property
    def machines(self) -> list[str]:
        """Machines that measured a figure, the earliest first."""
        return list(dict.fromkeys(one.machine for one in self.series))

    @property
    def latest(self) -> Entry:
        """The last check."""
        return self.entries[-1]

    @property
    def outcome(self) -> str:
        """The worst of the latest check and those of the same commit on other machines."""
        commit = self.latest.commit
        same = {e.machine: e.outcome for e in self.entries if commit and e.commit == commit}
        found = [self.latest.outcome, *same.values()]
        return next((word for word in ("error", "fail", "inconclusive") if word in found), self.latest.outcome)

    @property
    def stepped(self) -> list[tuple[Series, Step]]:
        """All steps, those that began last first."""
        found = [(one, step) for one in self.series for step in one.steps]
        return sorted(found, key=lambda pair: pair[0].entries[pair[1].at].at, reverse=True)


def group_series(entries: Sequence[Entry]) -> list[Group]:
    """The groups in the order of their first check, the series of each in the order of `BUDGETED`.

    Figures relative to a baseline are left out: they step when the baseline does.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.model, entry.target), []).append(entry)
    return [Group(*names, tuple(own), tuple(_series(own))) for names, own in groups.items()]


def _series(entries: Sequence[Entry]) -> Iterable[Series]:
    machines = dict.fromkeys(entry.machine for entry in entries)
    for key in BUDGETED:
        for machine in machines:
            own = tuple(entry for entry in entries if entry.machine == machine and _known(entry, key))
            if own:
                yield Series(key, machine, own)


def _known(entry: Entry, key: str) -> bool:
    """Whether the check knew the figure; no time and no size is zero or less."""
    value = entry.figures.get(key, Figure()).value
    return value is not None and (value > 0 or is_share(key) or BUDGETED[key].unit == "points")


def is_share(key: str) -> bool:
    """Whether the figure lies between 0 and 1, and more is better: accuracy, agreement, coverage."""
    return BUDGETED[key].unit == "share"


def short(commit: str) -> str:
    """A commit as people write it; `no commit` if it is unknown."""
    return " ".join(commit.split())[:9] or "no commit"


def machine_words(machine: str) -> str:
    """The machine, or that none is named."""
    return machine or "no machine named"


def show_change(one: Series, change: float) -> str:
    """`+5.1 %` or `-1.20 points`."""
    return f"{change:+.1f} %" if one.scale == "ratio" else f"{change:+.2f} points"


def show_step(one: Series, step: Step) -> str:
    """`+5.1 % at 1f0c9a2 (2026-11-02): 0.200 ms → 0.210 ms, same file`."""
    entry = one.entries[step.at]
    levels = f"{show_limit(one.key, step.before)} → {show_limit(one.key, step.after)}"
    file = "same file" if one.same_file(step) else "new file"
    return f"{show_change(one, step.change)} at {short(entry.commit)} ({entry.at:%Y-%m-%d}): {levels}, {file}"
