"""The history of checks as rows for a terminal, as Markdown, as CSV and as JSON."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from edgekd import __version__, units
from edgekd.report.checks.series import Group, Series, machine_words, short, show_change, show_step
from edgekd.tables import markdown_table

__all__ = ["CSV_HEADER", "history_csv", "history_json", "history_markdown", "history_rows", "history_tables"]

# report --history --json history:
# 1 - groups: model, target, outcome; series: machine, figure, change, points, steps; shares 0–1, changes in % or points
SCHEMA_VERSION = 1

CSV_HEADER = (
    *("model", "target", "machine", "at", "commit", "sha256", "outcome", "figure", "value", "low", "high", "limit"),
    *("step", "step_unit"),
)


def history_rows(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: figure, checks, latest value, limit, change since the previous check, steps separated by `;
    `."""
    header = ["figure", "checks", "latest", "limit", "since the one before", "steps"]
    rows = []
    for one in series:
        limit = one.limits[-1]
        shown = "–" if limit is None else f"{one.metric.sign} {one.show(limit)}"
        since = "–" if one.change is None else show_change(one, one.change)
        steps = "; ".join(show_step(one, step) for step in one.steps) or "none"
        rows.append([one.word, str(len(one.entries)), one.show(one.values[-1]), shown, since, steps])
    return header, rows


def history_tables(group: Group) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows for each machine. Figures of different machines are not compared."""
    tables = []
    for machine in group.machines:
        series = [one for one in group.series if one.machine == machine]
        last = series[0].entries[-1]
        title = f"{group.model} on {group.target}, {machine_words(machine)}: {last.outcome} at {short(last.commit)}"
        tables.append((" ".join(f"{title} ({last.at:%Y-%m-%d})".split()), *history_rows(series)))
    return tables


def history_markdown(groups: Sequence[Group]) -> str:
    """A table for each model and machine, for the comment of a pull request."""
    parts = []
    for group in groups:
        for title, header, rows in history_tables(group):
            parts += [f"## {title}", markdown_table(header, rows)]
    return "\n\n".join(parts) + "\n"


def history_csv(groups: Sequence[Group]) -> str:
    """CSV with one row for each figure; `step` is the change at the first figure of a new level, in % or points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for group in groups:
        for one in group.series:
            steps = {step.at: step.change for step in one.steps}
            for place, (entry, figure) in enumerate(zip(one.entries, one.figures, strict=True)):
                check = [entry.at.isoformat(), entry.commit, entry.sha256, entry.outcome]
                numbers = [figure.value, figure.low, figure.high, entry.limits.get(one.key)]
                step = [steps[place], _unit(one)] if place in steps else [None, None]
                row = [group.model, group.target, one.machine, *check, one.key, *numbers, *step]
                writer.writerow(map(units.cell, row))
    return text.getvalue()


def history_json(groups: Sequence[Group], warnings: Sequence[str]) -> str:
    """JSON with all data, for programs. Figures are in the unit that their key names."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "edgekd": __version__,
        "groups": [
            {
                "model": group.model,
                "target": group.target,
                "outcome": group.outcome,
                "series": [_series_json(one) for one in group.series],
            }
            for group in groups
        ],
        "warnings": list(warnings),
    }
    return units.json_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def _series_json(one: Series) -> dict[str, Any]:
    points = [
        {"at": entry.at.isoformat(), "commit": entry.commit, "sha256": entry.sha256, "outcome": entry.outcome,
         "value": figure.value, "low": figure.low, "high": figure.high, "limit": entry.limits.get(one.key)}
        for entry, figure in zip(one.entries, one.figures, strict=True)
    ]  # fmt: skip
    steps = [
        {"point": step.at, "commit": one.entries[step.at].commit, "previous_commit": one.entries[step.at - 1].commit,
         "at": one.entries[step.at].at.isoformat(), "change": step.change,
         "change_unit": _unit(one), "before": step.before, "after": step.after,
         "better": one.is_better(step), "same_file": one.same_file(step)}
        for step in one.steps
    ]  # fmt: skip
    change = {"value": one.change, "unit": _unit(one)}
    return {"machine": one.machine, "figure": one.key, "change": change, "points": points, "steps": steps}


def _unit(one: Series) -> str:
    return "%" if one.scale == "ratio" else "points"
