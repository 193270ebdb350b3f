"""The history of checks as one HTML page that needs no other file and no network."""

from collections.abc import Sequence

from edgekd.report.checks.history import history_rows
from edgekd.report.checks.series import Group, Series, machine_words, short, show_change
from edgekd.report.checks.slots import COLOURS, Slots, extent_of, limit_words, slots_of
from edgekd.report.checks.timeline import timeline_chart
from edgekd.report.page import bullets, chart_of, page_of, pill, safe, section, table_of

__all__ = ["history_page"]

POINTS = 4_000
"""Largest number of points in a page, so that the file stays small enough to be sent."""

FEWEST, MOST = 30, 1_000
"""The number of checks of each series that are always drawn, and the largest number; more cannot be distinguished."""

METHOD = (
    "A step is a new level that has lasted three checks or more, at least 1 % (0.2 points of a share) and twice the "
    "noise of the series away from the one before; one or two outliers are none. It is looked for in each model, "
    "target, machine and figure for itself: machines are never compared with one another. The commit is the first "
    "that was checked at the new level; the cause may lie in those between it and the check before. With noise of "
    "1 %, fewer than 1 in 100 series of 60 checks show a step where there is none, and a step of 5 % is found; noise "
    "that comes in spells longer than three checks looks like steps."
)
LEGEND = (
    "Points are checks, thin bars the intervals of their figures, broad lines the medians of the levels, dotted lines "
    "the steps; the dashed line is the limit. One colour is one machine."
)


def history_page(groups: Sequence[Group], warnings: Sequence[str]) -> str:
    """The page: an overview, then a part for each model on each target. UnavailableError without plotly."""
    machines = dict.fromkeys(machine for group in groups for machine in group.machines)
    colours = {machine: COLOURS[place % len(COLOURS)] for place, machine in enumerate(machines)}
    count = sum(len(group.series) for group in groups)
    most = min(MOST, max(FEWEST, POINTS // max(count, 1)))
    parts = [_overview(groups, warnings)]
    parts += [_group(group, f"model-{place}", most, colours) for place, group in enumerate(groups)]
    parts.append(section("How to read it", f'<p class="note">{LEGEND}</p><p class="note">{METHOD}</p>'))
    return page_of("History of checks", parts)


def _overview(groups: Sequence[Group], warnings: Sequence[str]) -> str:
    first, last = min(g.entries[0].at for g in groups), max(g.latest.at for g in groups)
    checks, steps = sum(len(g.entries) for g in groups), sum(len(g.stepped) for g in groups)
    sentence = (
        f"{_count(checks, 'check')} of {_count(len(groups), 'model')} from {first:%Y-%m-%d} to {last:%Y-%m-%d}, "
        f"{_count(steps, 'step')} found."
    )
    rows = []
    for place, group in enumerate(groups):
        latest = group.latest
        newest = _newest(group)
        when = f"{latest.at:%Y-%m-%d %H:%M} {_commit(latest.commit)}"
        link = f'<a href="#model-{place}">{safe(group.model)}</a>'
        rows.append([link, safe(group.target), pill(group.outcome), when, str(len(group.entries)), newest])
    header = ["model", "target", "latest verdict", "latest check, UTC", "checks", "newest step"]
    told = f"<h3>Lines that could not be read</h3>{bullets(warnings)}" if warnings else ""
    return (
        f'<section class="card"><h1>History of checks</h1><p class="sentence">{safe(sentence)}</p>'
        f"{table_of(header, rows, {1, 2, 3, 5})}{told}</section>"
    )


def _newest(group: Group) -> str:
    if not group.stepped:
        return "none"
    one, step = group.stepped[0]
    entry = one.entries[step.at]
    return f"{safe(one.word)} {_change(one, step.change, one.is_better(step))} {_commit(entry.commit)}"


def _group(group: Group, anchor: str, most: int, colours: dict[str, str]) -> str:
    slots = slots_of(group, most)
    header, rows = history_rows(group.series)
    header = [*header[:-1], "machine"]  # the steps have their own table
    machines = [machine_words(one.machine) for one in group.series]
    cells = [[*map(safe, row[:-1]), safe(machine)] for row, machine in zip(rows, machines, strict=True)]
    parts = [
        "<h3>Steps</h3>" + _steps(group),
        "<h3>Latest figures</h3>" + table_of(header, cells, {5}),
        *(_chart(group, key, slots, colours) for key in dict.fromkeys(one.key for one in group.series)),
        _every(group, slots),
    ]
    title = f"{group.model} on {group.target}"
    return f'<div class="run" id="{anchor}">{section(title, "".join(parts))}</div>'


def _steps(group: Group) -> str:
    if not group.stepped:
        return '<p class="note">None: every figure has kept its level.</p>'
    rows = []
    for one, step in group.stepped:
        entry, before = one.entries[step.at], one.entries[step.at - 1]
        levels = f"{one.show(step.before)} → {one.show(step.after)}"
        file = "same" if one.same_file(step) else "new"
        row = [_one(one.word), _change(one, step.change, one.is_better(step)), _one(levels), _commit(entry.commit)]
        on = f"{entry.at:%Y-%m-%d}"
        rows.append([*row, _one(on), _commit(before.commit), _one(file), safe(machine_words(one.machine))])
    header = ["figure", "change", "levels", "begins at", "on", "check before", "model file", "machine"]
    return table_of(header, rows, {1, 2, 3, 4, 5, 6, 7})


def _chart(group: Group, key: str, slots: Slots, colours: dict[str, str]) -> str:
    series = [one for one in group.series if one.key == key and any(id(e) in slots.places for e in one.entries)]
    if not series:
        return ""
    word = series[0].word
    limit = limit_words(series)
    told = f"limit {limit}" if limit else "no limit"
    if limit and not extent_of(series, slots).limit_shown:
        told += ", outside of the picture"
    head = f"<h3>{safe(word)} <small>{safe(told)}</small></h3>"
    return head + chart_of([timeline_chart(series, slots, colours)], f"{word} of {group.model} over checks")


def _every(group: Group, slots: Slots) -> str:
    """A table of every check that is drawn, the latest first. It replaces the charts for readers without JavaScript."""
    drawn = [entry for entry in reversed(group.entries) if id(entry) in slots.places]
    known = {one.key: one for one in group.series}
    rows = []
    for entry in drawn:
        values = [entry.figures[key].value if key in entry.figures else None for key in known]
        shown = ["–" if v is None else safe(one.show(v)) for one, v in zip(known.values(), values, strict=True)]
        when = _one(f"{entry.at:%Y-%m-%d %H:%M}")
        rows.append([when, _commit(entry.commit), safe(entry.outcome), safe(machine_words(entry.machine)), *shown])
    header = ["at, UTC", "commit", "verdict", "machine", *(safe(one.word) for one in known.values())]
    missing = len(group.entries) - len(drawn)
    note = f'<p class="note">{missing} older checks are in what --json writes.</p>' if missing else ""
    return f"<details><summary>Every check</summary>{table_of(header, rows, {1, 2, 3})}</details>{note}"


def _change(one: Series, change: float, better: bool) -> str:
    return f'<span class="pill one {"pass" if better else "fail"}">{safe(show_change(one, change))}</span>'


def _one(text: str) -> str:
    """HTML for text that is not wrapped."""
    return f'<span class="one">{safe(text)}</span>'


def _commit(commit: str) -> str:
    return f'<span class="mono" title="{safe(commit)}">{safe(short(commit))}</span>'


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
