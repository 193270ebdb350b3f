"""The report as one HTML page that needs no other file and no network."""

import json
import re
from collections.abc import Sequence

from edgekd import units
from edgekd.figures import GIVEN, ModelFigures, Placement, whole_words
from edgekd.report.page import bullets, chart_of, css_class, facts_of, page_of, pill, safe, section, table_of
from edgekd.report.run.charts import latency_chart, trade_chart
from edgekd.report.run.export import budget_rows, entries, overview_rows, parity_of, remarks
from edgekd.report.run.story import Column, Story
from edgekd.report.tasks.known import CHARTS
from edgekd.tables import PARITY_TITLE, costly_rows, figure_rows, notes, resize_words

__all__ = ["html_report"]

PROVENANCE = {
    "measured": "on the target",
    "exact": "a property of the file",
    "emulated": "under an emulator of the target",
    "proxy": "on another architecture than the target's",
    "estimated": "by a stated model, with a source and an interval",
    "unknown": "not known, and not guessed",
}

LATENCY_INTERVAL = (
    "measured: 95 %, the wider of the order-statistic and the between-process interval; "
    "estimated: the model's stated margin"
)


def html_report(stories: Sequence[Story]) -> str:
    """The page: an overview if there are several runs, then a part for each run. Raises UnavailableError without
    plotly."""
    parts = [_overview(stories)] if len(stories) > 1 else []
    parts += [_run(story, f"run-{place}", len(stories)) for place, story in enumerate(stories)]
    return page_of(f"{stories[0].card} on {stories[0].target}" if len(stories) == 1 else f"{len(stories)} runs", parts)


def _overview(stories: Sequence[Story]) -> str:
    header, rows = overview_rows(stories)
    cells = [[safe(cell) for cell in row] for row in rows]
    for place, (story, row) in enumerate(zip(stories, cells, strict=True)):
        row[0] = f'<a href="#run-{place}">{row[0]}</a>'
        row[2] = pill(story.outcome, story.verdict)
    texts = {header.index(name) for name in ("target", "verdict", "shipped", "how")}
    return section(f"{len(stories)} runs", table_of(list(map(safe, header)), cells, texts))


def _run(story: Story, anchor: str, runs: int) -> str:
    sections = [
        (f"Cost and {story.kind.limit_words}", _trade(story)),
        ("Latency, call by call", _latency(story.own, story)),
        ("All figures", "".join([_across(story), *(_figures(column, story) for column in story.columns)])),
        ("As torch answers", _parity(story)),
        ("Where it runs", "".join(_placement(column, story) for column in story.columns)),
        *(CHARTS[name](story, runs) for name in story.charts),
        ("How each figure was obtained", _provenance(story)),
        ("How to repeat it", _repeat(story)),
    ]
    # A section of which nothing is known is left out, so that a reader sees only what there is.
    parts = "".join(section(title, content) for title, content in sections if content)
    return f'<div class="run" id="{anchor}">{_head(story)}{parts}</div>'


def _head(story: Story) -> str:
    header, rows = budget_rows(story)
    cells = [[safe(cell) for cell in row] for row in rows]
    for line, row in zip(story.lines, cells, strict=True):
        told = line.reason not in ("", line.figure.provenance)  # the provenance is already in the next cell
        row[4] = pill(line.outcome) + (f'<br><span class="note">{safe(line.reason)}</span>' if told else "")
    budgets = table_of(header, cells, {4, 5}) if rows else '<p class="note">No budget was asked for.</p>'
    loud = story.outcome.upper() + story.verdict.removeprefix(story.outcome)
    return (
        f'<section class="card"><div class="head"><div><h1>{safe(story.card)} <small>on</small> '
        f'{safe(story.target)}</h1><p class="sentence">{safe(story.sentence)}</p></div>'
        f'<div class="verdict {css_class(story.outcome)}">{safe(loud)}</div></div>'
        f"<h3>Budget</h3>{budgets}<h3>The shipped file</h3>{facts_of(_about(story))}</section>"
    )


def _about(story: Story) -> dict[str, str]:
    """Facts about the run: which file, which network, how it was trained, and on which data it was judged."""
    model, training, parity = story.shipped, story.training, story.parity
    about = {
        "file": f"{model.name}, {units.bytes_(model.size_bytes)}: {story.why_chosen}",
        **_network(story),
    }
    if {"epochs", "seconds"} <= training.keys():
        about["trained"] = f"{training['epochs']} epochs in {units.duration(training['seconds'])}"
        if training.get(story.kind.history_key) is not None:
            about["trained"] += f", {story.kind.show(training[story.kind.history_key])} on validation data"
    if story.input:
        about["resize"] = story.input
    reads = "once" if story.test_reads == 1 else f"{story.test_reads} times"
    about["judged"] = f"on {story.own.count:,} test {story.own.examples}, which were read {reads}"
    if {"examples", "max_abs", "same", "same_words"} <= parity.keys():
        outputs = parity.get("outputs", "logits")
        words = f"{parity['examples']} real {story.own.examples}, {outputs} within {parity['max_abs']:.2g}"
        if parity["same"] is not None:
            words = f"{parity['same_words']} as torch on {units.accuracy(parity['same'])} of {words}"
        about["export"] = words
    if resized := resize_words(parity):
        about["resize in the graph"] = resized
    return about


def _network(story: Story) -> dict[str, str]:
    if story.teacher.name == GIVEN:
        return {"pruned": f"{whole_words(story.teacher)}: {story.shape}"}
    return {"student": f"{story.shape}, one of {story.candidate_count} candidates measured before training"}


def _trade(story: Story) -> str:
    chart = trade_chart(story)
    known = [model for model in story.own.models if model.score.value is not None]
    if not chart["data"]:
        return ""
    hollow = "Hollow points are candidates, measured before training" if story.candidates else "No candidates are kept"
    unknown = [model.name for model in known if model.latency_p50_ms.value is None]
    untimed = f" Latency is not known of {', '.join(unknown)}." if unknown else ""
    caption = (
        f"{hollow}; bars are intervals, of {story.kind.limit_words} 95 % ({_method(story)}, {story.own.count:,} "
        f"{story.own.examples}), of latency, if {LATENCY_INTERVAL}. Dashed lines are the budget.{untimed}"
    )
    return chart_of([chart], f"size, latency and {story.kind.limit_words}") + f'<p class="note">{safe(caption)}</p>'


def _latency(column: Column, story: Story) -> str:
    chart = latency_chart(column, story.lines if column is story.own else ())
    if chart is None:
        return ""
    caption = "Thin lines are single processes, bold ones all of them together; the slowest calls lie further right."
    note = f'<p class="note">{caption}</p>' if column is story.own else ""
    return chart_of([chart], f"latency on {column.label}") + note


def _parity(story: Story) -> str:
    """The table that compares every file on every provider with torch."""
    header, rows = parity_of(story)
    cells = [[_together(cell) for cell in row] for row in rows]
    table = table_of(list(map(safe, header)), cells, {1, 2, 5})
    return f'<p class="note">{safe(PARITY_TITLE)}</p>{table}' if rows else ""


def _across(story: Story) -> str:
    """A table of the shipped file on every target, side by side."""
    if len(story.columns) == 1:
        return ""
    found = [(column, model) for column in story.columns for model in column.models if model.name == story.chosen]
    cells: dict[tuple[str, str], str] = {}
    for column, model in found:
        for word, cell, how in figure_rows([model])[1]:
            told = "" if how in ("measured", "exact", "unknown") else f' <span class="aside">{safe(how)}</span>'
            cells[word, column.label] = _together(cell) + told
    words = [row[0] for row in figure_rows([model for _, model in found])[1]]
    labels = [column.label for column, _ in found]
    rows = [[_together(word), *(cells.get((word, label), "–") for label in labels)] for word in words]
    return f"<h3>{safe(story.chosen)} on every target</h3>" + table_of(["", *map(safe, labels)], rows, set())


def _figures(column: Column, story: Story) -> str:
    header, rows = figure_rows(column.models)
    cells = [[_together(row[0]), *map(_with_ratio, row[1:])] for row in rows]
    shipped = [model.name for model in column.models].index(story.chosen) + 1 if _holds(column, story) else -1
    table = table_of(list(map(safe, header)), cells, {len(header) - 1}, shipped)
    chart = "" if column is story.own or not any(column.samples_ms.values()) else _latency(column, story)
    return f"<h3>{_label(column)}</h3>{table}{chart}"


def _with_ratio(cell: str) -> str:
    """HTML for a figure, followed by the ratio to the first model in a lighter colour."""
    parts = re.fullmatch(r"(.*) (\([×÷][^()]*\))", cell)
    if not parts:
        return _together(cell)
    return f'{_together(parts[1])} <span class="aside">{_together(parts[2])}</span>'


def _together(cell: str) -> str:
    """HTML that keeps a figure and its unit on one line; a list may be wrapped."""
    return f'<span class="one">{safe(cell)}</span>' if len(cell) <= 28 else safe(cell)


def _holds(column: Column, story: Story) -> bool:
    return any(model.name == story.chosen for model in column.models)


def _label(column: Column) -> str:
    about = [column.title, column.provider.removesuffix("ExecutionProvider")]
    about += [f"{column.count:,} {column.split} {column.examples}"] if column.count else []
    return f"{safe(column.label)} <small>{safe(' · '.join(filter(None, about)))}</small>"


def _placement(column: Column, story: Story) -> str:
    head = f"<h3>{_label(column)}</h3>" if len(story.columns) > 1 else ""
    placed = [(model, model.placement) for model in column.models if model.placement]
    if not placed:
        assigned = _assigned(column)
        return head + assigned if assigned else ""
    header = ["model", "nodes", "share of the time", "fell back", "8-bit kernels", "float between 8-bit nodes", "how"]
    rows = [[safe(model.name), *_placed(placement)] for model, placement in placed]
    costly = [_costly(model) for model, placement in placed if placement.costliest and not _elsewhere(placement)]
    note = ""
    if any(_elsewhere(placement) for _, placement in placed):
        note = _missing("the share of the time where the nodes ran on another machine than the target (proxy)")
    return head + table_of(header, rows, {1, 2, 3, 4, 5, 6}) + note + "".join(costly)


def _elsewhere(placement: Placement) -> bool:
    """Whether the model ran on a machine that is not the target, so that its times are not valid for the target."""
    return placement.provenance == "proxy"


def _placed(placement: Placement) -> list[str]:
    nodes = [f"{safe(_short(name))}: {safe(count)}" for name, count in placement.nodes.items()]
    times = {} if _elsewhere(placement) else placement.time_share
    shares = [f"{_bar(share)}{safe(_short(name))} {100 * share:.0f} %" for name, share in times.items()]
    fell = [safe(f"{count} {kind}") for kind, count in placement.fell_back.items()] or ["nothing"]
    blockers = ", ".join(f"{count} {kind}" for kind, count in placement.blockers.items())
    share = "" if placement.fused_share is None else f" ({100 * placement.fused_share:.0f} %)"
    fused = "–" if placement.fused is None else f"{placement.fused}{share}"
    unfused = "–" if placement.unfused is None else f"{placement.unfused}{f' ({blockers})' if blockers else ''}"
    fused += "" if placement.qdq is None else f", {placement.qdq} Q/DQ"
    last = fused, unfused, placement.provenance
    return ["<br>".join(nodes), "<br>".join(shares) or "–", "<br>".join(fell), *map(safe, last)]


def _costly(model: ModelFigures) -> str:
    header, rows = costly_rows(model)
    entries_ = model.placement.costliest if model.placement else ()
    cells = [[safe(cell) for cell in row] for row in rows]
    for row, entry in zip(cells, entries_, strict=True):
        row[-1] = _bar(entry["share"]) + row[-1]
    summary = f"<summary>The {len(rows)} costliest nodes of {safe(model.name)}</summary>"
    return f"<details>{summary}{table_of(header, cells, {1, 2})}</details>"


def _assigned(column: Column) -> str:
    """The providers of the nodes, from the worker's fingerprint, because older results have no placement."""
    rows = []
    for model in column.models:
        nodes: dict[str, int] = model.fingerprint.get("nodes_by_provider") or {}
        if nodes:
            rows.append([safe(model.name), ", ".join(safe(f"{_short(k)}: {n}") for k, n in nodes.items())])
    if not rows:
        return ""
    return table_of(["model", "nodes"], rows, {1}) + _missing("time by provider and 8-bit kernels were not recorded")


def _provenance(story: Story) -> str:
    words = "; ".join(f"<b>{word}</b>: {meaning}" for word, meaning in PROVENANCE.items())
    tables = []
    for column in story.columns:
        header = ["figure", "value", "interval", "how", "note"]
        rows: list[list[str]] = []
        for model in column.models:
            rows.append([safe(model.name)])
            for entry in entries(model, column.count, column.models[0]):
                cells = [entry.word, entry.text, entry.interval, entry.figure.provenance, entry.figure.why]
                rows.append([safe(cell) for cell in cells])
        summary = f"<summary>Every figure on {safe(column.label)}, with its interval</summary>"
        told = "" if column is story.own else bullets(notes(column.models))
        tables.append(f"<details>{summary}{told}{table_of(header, rows, {3, 4})}</details>")
    told = f"Intervals of what was {LATENCY_INTERVAL}. Of {story.kind.limit_words}: 95 % ({_method(story)})."
    return f'<p class="note">{words}.</p><p class="note">{safe(told)}</p>{bullets(remarks(story))}{"".join(tables)}'


def _method(story: Story) -> str:
    """How the interval of the score that decides was made."""
    return "Wilson" if story.kind.counted else "bootstrap"


def _repeat(story: Story) -> str:
    files = [[*map(safe, (m.name, m.file)), f'<span class="mono">{safe(m.sha256)}</span>'] for m in story.own.models]
    printed = {
        key: json.dumps(value) if not isinstance(value, str) else value for key, value in story.fingerprint.items()
    }
    return (
        f"<pre>{safe(chr(10).join(story.commands))}</pre>{facts_of(story.versions)}"
        f"<h3>Files</h3>{table_of(['model', 'file', 'SHA-256'], files, {1, 2})}"
        f"<details><summary>Fingerprint of the shipped file's measurement</summary>{facts_of(printed)}</details>"
    )


def _missing(text: str) -> str:
    return f'<p class="note">Not shown: {safe(text)}.</p>'


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * min(max(share, 0.0), 1.0):.0f}%"></i></span>'


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
