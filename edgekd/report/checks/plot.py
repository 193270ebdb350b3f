"""The history of checks as pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.files import atomic
from edgekd.report.checks.series import Group, Series, machine_words
from edgekd.report.checks.slots import (
    COLOURS,
    Slots,
    axis_words,
    drawn_levels,
    drawn_limits,
    drawn_steps,
    extent_of,
    limit_words,
    scaled_figure,
    slots_of,
)
from edgekd.report.drawing import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["picture_name", "plot_history"]

MOST = 200
"""Largest number of checks in a picture; with more, it becomes unreadable."""

GOOD = "tab:green"


def picture_name(group: Group) -> str:
    """A file name without suffix, made from model and target. It is valid whatever characters their names contain."""
    return re.sub(r"[^\w.@+-]+", "-", f"{group.model}@{group.target}").strip("-.")[:120] + ".history"


def plot_history(group: Group, path: Path) -> None:
    """Draw every figure of one model on one target over its last 200 checks, as PNG. The axes are those of the page."""
    from matplotlib.figure import Figure as Canvas  # no pyplot: no window system, no global state

    keys = list(dict.fromkeys(one.key for one in group.series))
    columns = min(2, max(1, len(keys)))
    rows = max(1, -(-len(keys) // columns))
    canvas = Canvas(figsize=(6.5 * columns, 0.6 + 3.1 * rows), layout="constrained")
    grid = list(canvas.subplots(rows, columns, squeeze=False).flat)
    slots = slots_of(group, MOST)
    colours = {machine: COLOURS[place % len(COLOURS)] for place, machine in enumerate(group.machines)}
    canvas.suptitle(literal(f"{group.model} on {group.target}: {group.outcome}"))
    for axes, key in zip(grid, keys, strict=False):
        _draw(axes, [one for one in group.series if one.key == key], slots, colours)
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    if len(group.machines) > 1 and keys:
        handles, labels = grid[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=130)


def _draw(axes: "Axes", series: Sequence[Series], slots: Slots, colours: dict[str, str]) -> None:
    extent = extent_of(series, slots)
    for one in series:
        _draw_points(axes, one, slots, colours[one.machine])
    _draw_steps(axes, series, slots, colours)
    if extent.limit_shown:
        _draw_limit(axes, series, slots)
    axes.set_xlim(-0.6, len(slots.labels) - 0.4)
    axes.set_ylim(extent.low, extent.high)
    axes.set_ylabel(axis_words(series[0]))
    ticks = sorted({round(place * (len(slots.labels) - 1) / 4) for place in range(5)})
    axes.set_xticks(ticks, [literal(slots.labels[place]) for place in ticks], fontsize="x-small")
    axes.grid(True, axis="y", alpha=0.25)


def _draw_points(axes: "Axes", one: Series, slots: Slots, colour: str) -> None:
    drawn = [
        (slots.places[id(e)], scaled_figure(one, e.figures[one.key])) for e in one.entries if id(e) in slots.places
    ]
    x, y = [place for place, _ in drawn], [figure.value or 0.0 for _, figure in drawn]
    axes.plot(x, y, "o-", color=colour, ms=3, lw=0.8, label=literal(machine_words(one.machine)))
    for place, figure in drawn:
        if figure.low is not None and figure.high is not None:
            axes.vlines(place, figure.low, figure.high, color=colour, linewidth=0.7)


def _draw_steps(axes: "Axes", series: Sequence[Series], slots: Slots, colours: dict[str, str]) -> None:
    for one in series:
        for first, last, level in drawn_levels(one, slots):
            axes.hlines(level, first, last, color=colours[one.machine], linewidth=4, alpha=0.35)
    for mark in drawn_steps(series, slots):
        axes.axvline(mark.at, color=colours[mark.machine], linestyle=":", linewidth=1.2)
        axes.annotate(
            literal(mark.text),
            (mark.at, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2 + 9 * mark.row),
            textcoords="offset points",
            ha=mark.side,
            color=colours[mark.machine],
            fontsize="x-small",
        )


def _draw_limit(axes: "Axes", series: Sequence[Series], slots: Slots) -> None:
    places, levels = drawn_limits(series, slots)
    drawn = [float("nan") if level is None else level for level in levels]
    words = f"dashed: limit {limit_words(series)}"
    axes.step(places, drawn, where="mid", color=GOOD, linestyle="--", linewidth=1.2)
    axes.set_xlabel(words, loc="right", color=GOOD, fontsize="x-small")
