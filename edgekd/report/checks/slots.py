"""The positions of a model's checks along the time axis, and what is drawn there. Page and picture both use this."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edgekd.figures import Figure
from edgekd.history import HistoryEntry
from edgekd.report.checks.series import Group, Series, short, show_change

__all__ = [
    "COLOURS",
    "Extent",
    "Mark",
    "Slots",
    "axis_words",
    "drawn_levels",
    "drawn_limits",
    "drawn_steps",
    "extent_of",
    "limit_words",
    "scaled_figure",
    "slots_of",
]

COLOURS = ("#0072b2", "#e07b00", "#b5488e", "#56b4e9", "#6b46c1", "#8c564b", "#4a5568")
"""One colour for each machine. Colour-blind readers can distinguish the first four (after Okabe and Ito). Limits are
green."""

ROWS = 4
"""Number of heights at which the labels of steps can be placed."""

WORDS = 0.2
"""Width of such a label, as a share of the chart's width."""


@dataclass(frozen=True)
class Slots:
    """The positions along the x axis, which are the checks in chronological order."""

    labels: list[str]
    """Unique labels: the day, and the commit below it."""
    places: dict[int, int]
    """Maps the `id` of an entry to its position. Entries that are too old to be drawn are left out."""


def slots_of(group: Group, most: int) -> Slots:
    """The last `most` positions. Checks of one commit on several machines share a position, because they belong to one
    CI job with several machines."""
    firsts: list[HistoryEntry] = []
    places: dict[int, int] = {}
    here: set[str] = set()
    for entry in group.entries:
        if not firsts or not entry.commit or entry.commit != firsts[-1].commit or entry.machine in here:
            firsts.append(entry)
            here = set()
        here.add(entry.machine)
        places[id(entry)] = len(firsts) - 1
    old = max(0, len(firsts) - most)
    seen: Counter[str] = Counter()
    labels = []
    for entry in firsts[old:]:
        label = f"{entry.at:%Y-%m-%d}\n{short(entry.commit)}"
        seen[label] += 1
        labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return Slots(labels, {key: place - old for key, place in places.items() if place >= old})


@dataclass(frozen=True)
class Extent:
    """The visible range of a chart's y axis, in the unit of the drawing."""

    low: float
    high: float
    limit_shown: bool
    """Whether the limit is near enough to be shown. A distant limit would compress the figures into a flat line."""


def scaled_figure(one: Series, figure: Figure) -> Figure:
    """The figure in the unit of the drawing: shares are converted to percent."""
    value, low, high = (None if end is None else one.factor * end for end in (figure.value, figure.low, figure.high))
    return Figure(value, figure.provenance, low, high)


def axis_words(one: Series) -> str:
    """The title of the y axis: `latency p50, ms`."""
    units = {"_ms": "ms", "_kb": "kB", "_mb": "MB"}
    if one.scale == "points":
        return f"{one.word}, {'%' if one.share else 'points'}"
    unit = units.get(one.key[-3:], one.metric.unit)
    return f"{one.word}, {unit}" if unit else one.word


def extent_of(series: Sequence[Series], slots: Slots) -> Extent:
    """The range that contains all figures of the slots with their intervals, and the limit if it is near."""
    key = series[0].key
    drawn = [(e, e.figures[key]) for one in series for e in one.entries if id(e) in slots.places]
    ends = [end for _, f in drawn for end in (f.value, f.low, f.high) if end is not None] or [0.0]
    limits = [entry.limits[key] for entry, _ in drawn if key in entry.limits]
    low, high = min(ends), max(ends)
    spread = max(high - low, 0.02 * abs(high), 1e-9)
    near = bool(limits) and min(limits) > low - 2 * spread and max(limits) < high + 2 * spread
    if near:
        low, high = min(low, *limits), max(high, *limits)
    room = 0.12 * max(high - low, 0.02 * abs(high), 1e-9)
    scale = series[0].factor
    return Extent(scale * (low - room), scale * (high + room), near)


def drawn_levels(one: Series, slots: Slots) -> Iterator[tuple[int, int, float]]:
    """Yield first position, last position and median of each level, if there are several levels."""
    if not one.steps:
        return
    ends = [0, *(step.at for step in one.steps), len(one.entries)]
    medians = [one.steps[0].before, *(step.after for step in one.steps)]
    for (first, last), level in zip(pairwise(ends), medians, strict=True):
        places = [slots.places[id(entry)] for entry in one.entries[first:last] if id(entry) in slots.places]
        if places:
            yield places[0], places[-1], one.factor * level


@dataclass(frozen=True)
class Mark:
    """The position of a step in the drawing, and its label."""

    machine: str
    at: float
    """The position between the last check of the old level and the first check of the new one."""
    text: str
    side: Literal["left", "right"]
    """Which end of the label is at `at`; near the right edge there is no space to the right of it."""
    row: int
    """The height of the label above the chart, chosen so that neighbouring labels do not overlap."""


def drawn_steps(series: Sequence[Series], slots: Slots) -> list[Mark]:
    """The steps from left to right, without a step that begins at the first position."""
    found = []
    for one in series:
        for step in one.steps:
            entry = one.entries[step.at]
            if (place := slots.places.get(id(entry), 0)) > 0:
                found.append((place, one.machine, f"{show_change(one, step.change)} {short(entry.commit)}"))
    marks: list[Mark] = []
    width = WORDS * len(slots.labels)
    ends = [float("-inf")] * ROWS
    for place, machine, text in sorted(found):
        side: Literal["left", "right"] = "right" if place > (1 - WORDS) * len(slots.labels) else "left"
        first = place - width if side == "right" else place
        row = next((row for row, end in enumerate(ends) if end <= first), len(marks) % ROWS)
        ends[row] = first + width
        marks.append(Mark(machine, place - 0.5, text, side, row))
    return marks


def drawn_limits(series: Sequence[Series], slots: Slots) -> tuple[list[int], list[float | None]]:
    """The positions and the limit at each of them, because the limit can change or be removed over time."""
    key = series[0].key
    known = {slots.places[id(e)]: e.limits.get(key) for one in series for e in one.entries if id(e) in slots.places}
    places = sorted(known)
    return places, [None if (level := known[place]) is None else series[0].factor * level for place in places]


def limit_words(series: Sequence[Series]) -> str:
    """The latest limit as text, `≤ 0.250 ms`; empty if there never was a limit."""
    key = series[0].key
    known = [(e.at, e.limits[key]) for one in series for e in one.entries if key in e.limits]
    return f"{series[0].metric.sign} {series[0].show(max(known)[1])}" if known else ""
