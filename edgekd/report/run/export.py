"""A run's story as Markdown for a pull request, as CSV and as JSON."""

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd import __version__, units
from edgekd.figures import Figure, ModelFigures, rows_of
from edgekd.judge import Line
from edgekd.report.run.story import Column, Story, interval_of
from edgekd.result import model_json
from edgekd.tables import figure_rows, markdown_table, notes, parity_rows

__all__ = [
    "FigureEntry",
    "as_csv",
    "as_json",
    "as_markdown",
    "budget_rows",
    "entries",
    "margin",
    "overview_rows",
    "parity_of",
    "remarks",
]

# report --json history:
# 1 - runs: verdict, budget, targets with models as in result.json 2, latency by process, confusion, recall
# 2 - models as in result.json 3; score_interval in place of accuracy_interval, details in place of confusion and
#     recall; examples in place of images, data in place of classes
SCHEMA_VERSION = 2

MOST = 4
"""Largest number of remarks, of commands, and of rows of other targets in a comment, which should stay short."""

_COMMENTED = {
    *("file size", "parameters", "multiply-accumulates"),
    *("agreement with the teacher", "agreement with the given network"),
    *("latency p50", "latency p95", "load time", "peak memory", "energy per call", "where it ran", "int8 kernels"),
}
"""The rows of the table in a comment, besides the scores that are `brief`."""


@dataclass(frozen=True)
class FigureEntry:
    """One figure of one model, prepared for output."""

    key: str
    word: str
    unit: str
    figure: Figure
    show: Callable[[float], str]

    @property
    def text(self) -> str:
        """The value with its unit, or a dash."""
        return "–" if self.figure.value is None else self.show(self.figure.value)

    @property
    def interval(self) -> str:
        """`0.669 ms … 0.700 ms`; empty if none is known."""
        low, high = self.figure.low, self.figure.high
        return "" if low is None or high is None else f"{self.show(low)} … {self.show(high)}"


def entries(model: ModelFigures, count: int, first: ModelFigures | None = None) -> list[FigureEntry]:
    """Every figure of a model that is known, or whose absence has a known reason. The score that decides
    gets its interval. `first` is the first model of the run."""
    found = []
    for metric in rows_of([model], first):
        figure = metric.figure(model)
        bounds = interval_of(model, count) if metric.name == model.kinds[0].name else None
        if bounds:
            figure = dataclasses.replace(figure, low=bounds.low, high=bounds.high)
        found.append(FigureEntry(metric.name, metric.words, metric.unit, figure, metric.show))
    for name, figure in model.batches.items():
        found.append(FigureEntry(f"throughput {name}", f"inputs per second, {name}", "1/s", figure, units.count))
    return [entry for entry in found if entry.figure.value is not None or entry.figure.why]


def margin(line: Line) -> str:
    """The distance of the value from its limit: `32 % below`, `2.25 points above`; empty if it is unknown."""
    value = line.figure.value
    if value is None:
        return ""
    unit = line.metric.unit
    if unit in ("share", "points"):
        gap = (100 if unit == "share" else 1) * (value - line.limit)
        return f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'}" if abs(gap) >= 0.005 else "exactly on it"
    if not line.limit:
        return f"{abs(value):.4g} {'above' if value > 0 else 'below'}" if value else "exactly on it"
    gap = 100 * (value / line.limit - 1)
    return f"{abs(gap):.0f} % {'above' if gap > 0 else 'below'}" if abs(gap) >= 0.5 else "within 0.5 % of it"


def budget_rows(story: Story) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the budget: figure, limit, value, margin, outcome, provenance."""
    header = ["budget", "limit", "value", "margin", "outcome", "how"]
    rows = []
    for line in story.lines:
        outcome = f"{line.outcome} ({line.reason})" if line.reason not in ("", line.figure.provenance) else line.outcome
        limit = f"{line.sign} {line.shown_limit}"
        rows.append([line.words, limit, line.shown, margin(line), outcome, line.figure.provenance])
    return header, rows


def overview_rows(stories: Sequence[Story]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row for each run, with figures of the shipped file on the run's own target."""
    header = [
        "run",
        "target",
        "verdict",
        "shipped",
        "file size",
        "latency p50",
        " / ".join(dict.fromkeys(story.kind.limit_words for story in stories)),
        "teacher",
        "how",
    ]
    rows = []
    for story in stories:
        shown = {entry.key: entry.text for entry in entries(story.shipped, 0)}
        teacher = {entry.key: entry.text for entry in entries(story.teacher, 0)}
        figures = [shown.get(key, "–") for key in ("size_bytes", "latency_p50_ms", story.kind.name)]
        how = sorted({story.shipped.latency_p50_ms.provenance, story.shipped.score.provenance})
        head = [story.card, story.target, story.verdict, story.chosen]
        rows.append([*head, *figures, teacher.get(story.kind.name, "–"), ", ".join(how)])
    return header, rows


def parity_of(story: Story) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how closely each file answers as torch does, on the run's own target and on each one of
    `edgekd bench`."""
    columns = []
    for column in story.columns:
        provider = column.provider.removesuffix("ExecutionProvider")
        where = f"{provider} ({column.label})" if provider else column.label
        columns.append((where, f"{column.count:,} {column.split} {column.examples}", column.models))
    return parity_rows(story.parity, story.own.examples, columns)


def remarks(story: Story) -> list[str]:
    """Remarks for the reader, without repetition: on the figures of the run's own target, on the run, and on missing
    files."""
    found = [*story.notes, *notes(story.own.models), *(f"missing: {text}" for text in story.missing)]
    return list(dict.fromkeys(found))


def as_markdown(stories: Sequence[Story]) -> str:
    """Markdown for a pull request. Verdict, budget and summary sentence of each run are visible; the rest is
    collapsed."""
    parts = []
    if len(stories) > 1:
        parts.append(_table(*overview_rows(stories)))
    return "\n\n".join([*parts, *map(_markdown, stories)]) + "\n"


def _markdown(story: Story) -> str:
    mark = {"pass": "✅", "fail": "❌"}.get(story.outcome, "❔")
    shipped = f"shipped: {story.chosen}, because {story.why_chosen}"
    chosen = f"shape: {story.shape}, one of {story.candidate_count} candidates measured before training"
    taken = [f"resize of an image before the model: {story.input}"] if story.input else []
    listed = "\n".join(f"- {_safe(text)}" for text in [shipped, chosen, *taken, *_some(remarks(story))])
    commands = "\n".join(["```sh", *_some(story.commands[:-1], "# "), story.commands[-1], "```"])
    versions = _safe(", ".join(f"{key} {value}" for key, value in story.versions.items()))
    folded = [_own_table(story), *([_other_table(story)] if len(story.columns) > 1 else [])]
    compared = parity_of(story)
    folded += [_table(*compared)] if compared[1] else []
    folded += [listed, commands, versions]
    return "\n\n".join(
        [
            f"### {mark} {_safe(story.card)} on {_safe(story.target)}: {_safe(story.verdict)}",
            _safe(story.sentence),
            _table(*budget_rows(story)) if story.lines else "No budget was asked for.",
            "<details><summary>All models, how it was obtained, and how to repeat it</summary>",
            *folded,
            "</details>",
        ]
    )


def _own_table(story: Story) -> str:
    header, rows = figure_rows(story.own.models)
    own = story.own
    on = f"{story.target}, {own.count:,} {own.split} {own.examples}" if own.count else story.target
    commented = _COMMENTED | {kind.words for kind in own.models[0].kinds if kind.brief}
    kept = [row for row in rows if row[0] in commented and set(row[1:-1]) != {"–"}]
    return _table([on, *header[1:]], kept)


def _other_table(story: Story) -> str:
    """A table of the shipped model on the other targets."""
    keys = (story.kind.name, "latency_p50_ms", "latency_p95_ms", "peak_memory_mb")
    rows = []
    for column in story.columns[1:]:
        for model in column.models:
            if model.name == story.chosen:
                shown = {entry.key: entry.text for entry in entries(model, 0)}
                cells = [shown.get(key, "–") for key in keys]
                rows.append([column.label, *cells, model.latency_p50_ms.provenance])
    if len(rows) > MOST:
        rows = [*rows[:MOST], [f"{len(rows) - MOST} more, in the HTML report", *([""] * (len(keys) + 1))]]
    words = {metric.name: metric.words for metric in rows_of([story.shipped])}
    return _table([f"{story.chosen} on", *(words[key] for key in keys), "how"], rows)


def _some(texts: Sequence[str], mark: str = "") -> list[str]:
    return list(texts if len(texts) <= MOST else [*texts[:MOST], f"{mark}{len(texts) - MOST} more, in the HTML report"])


def _table(header: list[str], rows: list[list[str]]) -> str:
    return markdown_table([_safe(cell) for cell in header], [[_safe(cell) for cell in row] for row in rows])


def _safe(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, without tags and on one line."""
    return units.flat(text).replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`")


CSV_HEADER = (
    *("run", "card", "target", "split", "examples", "model", "precision", "shipped", "sha256"),
    *("figure", "value", "low", "high", "unit", "provenance", "note"),
)


def as_csv(stories: Sequence[Story]) -> str:
    """CSV with one row for each run, target, model and figure; shares are 0–1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for story in stories:
        for column in story.columns:
            for model in column.models:
                head = [story.name, story.card, column.target, column.split, column.count, model.name, model.precision]
                shipped = "yes" if model.name == story.chosen else "no"
                for entry in entries(model, column.count, column.models[0]):
                    figure = entry.figure
                    value = [entry.key, figure.value, figure.low, figure.high, entry.unit]
                    row = [*head, shipped, model.sha256, *value, figure.provenance, figure.why]
                    writer.writerow(map(units.cell, row))
    return text.getvalue()


def as_json(stories: Sequence[Story]) -> str:
    """JSON with everything that the page shows, for programs. Calls are summarised for each process."""
    content = {"schema_version": SCHEMA_VERSION, "edgekd": __version__, "runs": list(map(_run, stories))}
    return units.json_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def _run(story: Story) -> dict[str, Any]:
    plain = ("name", "card", "target", "sentence", "chosen", "why_chosen", "shape", "candidate_count")
    rest = ("data", "test_reads", "parity", "training", "notes", "commands", "versions", "fingerprint", "missing")
    budget = [
        {"key": line.key, "limit": line.limit, **dataclasses.asdict(line.figure), "margin": margin(line)}
        | {"outcome": line.outcome, "reason": line.reason}
        for line in story.lines
    ]
    return {
        **{key: getattr(story, key) for key in plain},
        "verdict": story.outcome,
        "verdict_words": story.verdict,
        "budget": budget,
        "targets": [_target(column) for column in story.columns],
        "candidates": [dataclasses.asdict(candidate) for candidate in story.candidates],
        **{key: getattr(story, key) for key in rest},
    }


def _target(column: Column) -> dict[str, Any]:
    plain = ("target", "label", "title", "provider", "command", "split")
    models = []
    for model in column.models:
        bounds = interval_of(model, column.count)
        calls = [
            {"calls": len(calls), "median_ms": statistics.median(calls)} for calls in column.samples_ms[model.name]
        ]
        models.append(
            model_json(model)
            | {"score_interval": [bounds.low, bounds.high] if bounds else None, "processes": calls}
            | {"details": column.details.get(model.name, {})}
        )
    return {key: getattr(column, key) for key in plain} | {"examples": column.count, "models": models}
