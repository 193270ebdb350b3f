"""The page's charts of cost, score and latency, as plain dictionaries for plotly.js."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd import units
from edgekd.figures import BUDGETED, Figure, ModelFigures, whole_words
from edgekd.judge import Line, show_limit
from edgekd.report.drawing import (
    FAINT,
    INK,
    Chart,
    axis,
    dashed,
    error_bars,
    layout,
    log_axis,
    log_range,
    plain,
    small,
    title,
)
from edgekd.report.run.export import entries
from edgekd.report.run.story import Column, Story, Untrained, interval_of
from edgekd.scores import ScoreKind

__all__ = ["latency_chart", "trade_chart"]

TEACHER, OTHER = "#4a5568", "#6b46c1"
PRECISIONS = {"int8": "#0072b2", "fp32": "#e07b00", "fp16": "#009e73", "bf16": "#b5488e"}
"""Colours that colour-blind readers can distinguish (after Okabe and Ito)."""

_AXES = {
    "latency_p50_ms": "latency p50, ms",
    "size_kb": "file size, kB",
    "macs": "multiply-accumulates, millions (latency is not known)",
}


@dataclass(frozen=True)
class _Panel:
    """One half of the chart: the suffix of its axes in plotly, and the figures on them."""

    number: str
    x: str
    y: str


def trade_chart(story: Story) -> Chart:
    """The chart with the costs of all candidates and models on the left, the score of trained models on the right,
    and the budget."""
    models = story.own.models
    untrained = [figures["latency_p50_ms"] for shape in story.candidates for figures in shape.precisions.values()]
    timed = any(figure.value for figure in [*untrained, *(model.latency_p50_ms for model in models)])
    left = _Panel("", "latency_p50_ms" if timed else "macs", "size_kb")
    known = any(model.latency_p50_ms.value for model in models)
    right = _Panel("2", "latency_p50_ms" if known else "size_kb", "score")
    points = [*_candidates(story, left), *_models(story, left), *_models(story, right)]
    limits = {line.key: line for line in story.lines}
    levels = _score_levels(story)
    ranges = {
        "x": log_range([*_ends(points, left, "x"), *_limit(limits, left.x)]),
        "y": log_range([*_ends(points, left, "y"), *_limit(limits, "size_kb")]),
        "x2": log_range([*_ends(points, right, "x"), *_limit(limits, right.x)]),
        "y2": _score_range(story.kind, [*_ends(points, right, "y"), *(level for level, _ in levels)]),
    }
    marks = [*_vertical(limits, left, ranges), *_horizontal(limits, ranges), *_vertical(limits, right, ranges)]
    marks += [mark for side, (level, text) in enumerate(levels) for mark in _level(level, text, side)]
    drawn = layout(500) | {
        "xaxis": log_axis(_AXES[left.x], ranges["x"], 450) | {"domain": [0.0, 0.45]},
        "yaxis": log_axis(_AXES["size_kb"], ranges["y"], 330, upright=True),
        "xaxis2": log_axis(_AXES[right.x], ranges["x2"], 450) | {"domain": [0.56, 1.0], "anchor": "y2"},
        "yaxis2": axis(story.kind.axis("test"), ranges["y2"]) | {"anchor": "x2"},
        "shapes": [mark for mark in marks if "type" in mark],
        "annotations": [
            title("Cost of every candidate and model", 0.0),
            title(f"{_capital(story.kind.limit_words)} of what was trained", 0.56),
            *(mark for mark in marks if "type" not in mark),
        ],
    }
    fronts = [_front(points, left, "lower"), _front(points, right, story.kind.better)]
    return {"data": [*fronts, *points, *_rings(story, points)], "layout": drawn}


def latency_chart(column: Column, lines: Sequence[Line]) -> Chart | None:
    """The distribution of each model's latency: the share of calls that ended within a time. Single processes are thin
    lines, all processes together a thick line."""
    shares = np.array([*np.linspace(0, 0.99, 100), 0.995])
    data: list[Chart] = []
    for place, model in enumerate(column.models):
        processes = column.samples_ms.get(model.name, ())
        if not processes:
            continue
        colour = _colour(model, place == 0)
        for calls in processes:
            thin = {"color": colour, "width": 1}
            data.append(
                _curve(np.quantile(calls, shares), shares, model, thin) | {"opacity": 0.35, "hoverinfo": "skip"}
            )
        times = np.quantile(np.concatenate(processes), shares)
        hover = [
            f"<b>{plain(model.name)}</b><br>{100 * share:.1f} % of {sum(map(len, processes)):,} calls within "
            f"{units.milliseconds(time)}"
            for share, time in zip(shares, times, strict=True)
        ]
        bold = _curve(times, shares, model, {"color": colour, "width": 3})
        data.append(bold | {"hoverinfo": "text", "hovertext": hover, "showlegend": True})
    if not data:
        return None
    limits = {line.key: line for line in lines if line.key.startswith("latency")}
    first = min(trace["x"][0] for trace in data)
    last = max(
        float(np.quantile(np.concatenate(p), 0.97)) for p in column.samples_ms.values() if p
    )  # cut off long tails
    ranges = {"x": log_range([first, last, *(line.limit for line in limits.values())], 0.05)}
    levels = [mark for share, word in ((50, "p50"), (95, "p95")) for mark in _quantile_level(share, word)]
    marks = [mark for key in limits for mark in _vertical(limits, _Panel("", key, "share"), ranges)]
    drawn = layout(340) | {
        "margin": {"l": 66, "r": 16, "t": 26, "b": 56},
        "xaxis": log_axis("latency of one call, ms", ranges["x"], 1000),
        "yaxis": axis("calls within that time, %", [0, 101]),
        "shapes": [mark for mark in [*levels, *marks] if "type" in mark],
        "annotations": [mark for mark in [*levels, *marks] if "type" not in mark],
    }
    return {"data": data, "layout": drawn}


def _candidates(story: Story, panel: _Panel) -> list[Chart]:
    """The candidates as hollow points, with one trace for each precision."""
    traces = []
    for precision in dict.fromkeys(name for shape in story.candidates for name in shape.precisions):
        drawn = []
        for shape in story.candidates:
            figures = shape.precisions.get(precision, {})
            x = Figure(shape.macs / 1e6, "exact") if panel.x == "macs" else figures.get(panel.x, Figure())
            y = figures.get(panel.y, Figure())
            if x.value and y.value:
                drawn.append((x, y, _hover(shape.name, f"{precision}, not trained", _untrained_lines(shape, figures))))
        style = {"symbol": "circle-open", "size": 9, "color": PRECISIONS.get(precision, OTHER), "line": {"width": 1.8}}
        traces.append(_points(f"{precision} candidates", drawn, panel, style))
    return [trace for trace in traces if trace["x"]]


def _models(story: Story, panel: _Panel) -> list[Chart]:
    """The models as filled points, with one trace for each model; the teacher is a star."""
    traces = []
    for place, model in enumerate(story.own.models):
        x, y = _figure(story, model, panel.x), _figure(story, model, panel.y)
        if not x.value or y.value is None:
            continue
        role = "shipped" if model.name == story.chosen else "trained, not shipped"
        role = whole_words(model).removeprefix("the ") if place == 0 else role
        lines = [f"{entry.word} {entry.text} {_bounds(entry.interval)}{entry.figure.provenance}"
                 for entry in entries(model, story.own.count) if entry.key in (story.kind.name, *_HOVERED)]  # fmt: skip
        style = {
            "symbol": "star" if place == 0 else "circle",
            "size": 17 if place == 0 else 12,
            "color": _colour(model, place == 0),
            "line": {"color": "white", "width": 1},
        }
        trace = _points(model.name, [(x, y, _hover(model.name, role, lines))], panel, style)
        traces.append(trace | {"showlegend": panel.number == ""})
    return traces


_HOVERED = ("latency_p50_ms", "latency_p95_ms", "size_bytes", "instructions_m", "peak_memory_mb", "params", "macs")


def _figure(story: Story, model: ModelFigures, key: str) -> Figure:
    if key == "macs":
        return Figure(model.macs / 1e6, "exact") if model.macs else Figure()
    if key != "score":
        figure: Figure = getattr(model, key)
        return figure
    factor, score, bounds = story.kind.factor, model.score, interval_of(model, story.own.count)
    if bounds is None:
        return Figure() if score.value is None else Figure(factor * score.value, score.provenance)
    return Figure(factor * bounds.value, score.provenance, factor * bounds.low, factor * bounds.high)


def _untrained_lines(shape: Untrained, figures: dict[str, Figure]) -> list[str]:
    lines = []
    for key in ("latency_p50_ms", "size_kb", "instructions_m", "peak_memory_mb"):
        word = BUDGETED[key].limit_words
        figure = figures.get(key, Figure())
        if figure.value is not None:
            known = figure.low is not None and figure.high is not None
            ends = f"{show_limit(key, figure.low or 0)} … {show_limit(key, figure.high or 0)}" if known else ""
            lines.append(f"{word} {show_limit(key, figure.value)} {_bounds(ends)}{figure.provenance}")
    return [*lines, f"parameters {units.count(shape.params)}", f"multiply-accumulates {units.count(shape.macs)}"]


def _bounds(interval: str) -> str:
    return f"[{interval}] " if interval else ""


def _hover(name: str, role: str, lines: Iterable[str]) -> str:
    return "<br>".join([f"<b>{plain(name)}</b> ({plain(role)})", *map(plain, lines)])


def _points(name: str, drawn: list[tuple[Figure, Figure, str]], panel: _Panel, style: Chart) -> Chart:
    trace: Chart = {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "legendgroup": plain(name),
        "marker": style,
        "x": [x.value for x, _, _ in drawn],
        "y": [y.value for _, y, _ in drawn],
        "xaxis": f"x{panel.number}",
        "yaxis": f"y{panel.number}",
        "hoverinfo": "text",
        "hovertext": [text for _, _, text in drawn],
    }
    for letter, figures in (("x", [x for x, _, _ in drawn]), ("y", [y for _, y, _ in drawn])):
        if any(figure.low is not None and figure.high is not None for figure in figures):
            trace[f"error_{letter}"] = error_bars(figures, style["color"])
    return trace


def _rings(story: Story, points: Sequence[Chart]) -> list[Chart]:
    """A ring around the shipped file in both panels."""
    found = [trace for trace in points if trace["name"] == plain(story.chosen)]
    keys = ("type", "mode", "x", "y", "xaxis", "yaxis")
    ring = {"symbol": "circle-open", "size": 22, "color": INK, "line": {"width": 2}}
    return [
        {key: trace[key] for key in keys}
        | {"name": "shipped", "legendgroup": "shipped", "showlegend": place == 0, "marker": ring, "hoverinfo": "skip"}
        for place, trace in enumerate(found)
    ]


def _front(points: Sequence[Chart], panel: _Panel, better: str) -> Chart:
    """The Pareto front as a step line. For the points on it, no other point is both cheaper and better."""
    sign = 1 if better == "lower" else -1
    mine = [trace for trace in points if trace["xaxis"] == f"x{panel.number}"]
    pairs = sorted((x, sign * y) for trace in mine for x, y in zip(trace["x"], trace["y"], strict=True))
    kept: list[tuple[float, float]] = []
    for x, y in pairs:
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "legendgroup": "front",
        "x": [x for x, _ in kept],
        "y": [sign * y for _, y in kept],
        "xaxis": f"x{panel.number}",
        "yaxis": f"y{panel.number}",
        "hoverinfo": "skip",
        "line": {"shape": "hv", "color": "#b8c0ca", "width": 2},
        "showlegend": panel.number == "",
    }


def _curve(times: Any, shares: Any, model: ModelFigures, line: Chart) -> Chart:
    rounded = [float(f"{time:.5g}") for time in times]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(model.name),
        "legendgroup": plain(model.name),
        "x": rounded,
        "y": [round(100 * float(share), 1) for share in shares],
        "line": line,
        "showlegend": False,
    }


def _score_levels(story: Story) -> list[tuple[float, str]]:
    """The scores that the budget requires, as drawn, at most two: the limit, and the teacher's score with the largest
    change."""
    levels, kind, teacher = [], story.kind, story.teacher.score.value
    for line in story.lines:
        if line.about_score:
            levels.append((kind.factor * line.limit, f"{line.sign} {kind.show(line.limit)}"))
        if line.key == kind.change_key and teacher is not None:
            sign, unit = ("−", -1) if kind.better == "higher" else ("+", 1)
            words = f"{line.limit:g} points" if kind.share else kind.show_change(line.limit)
            levels.append((kind.factor * teacher + unit * line.limit, f"{story.teacher.name} {sign} {words}"))
    return levels


def _limit(limits: dict[str, Line], key: str) -> list[float]:
    return [limits[key].limit] if key in limits else []


def _ends(points: Sequence[Chart], panel: _Panel, letter: str) -> list[float]:
    """All values of a panel along an axis, and the ends of their error bars."""
    ends: list[float] = []
    for trace in points:
        if trace["xaxis"] == f"x{panel.number}":
            bars = trace.get(f"error_{letter}", {})
            ends += trace[letter]
            ends += [v + up for v, up in zip(trace[letter], bars.get("array", ()), strict=False)]
            ends += [v - down for v, down in zip(trace[letter], bars.get("arrayminus", ()), strict=False)]
    return ends


def _score_range(kind: ScoreKind, values: Sequence[float]) -> list[float]:
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    if kind.share:
        room = max(0.12 * (high - low), 0.5)
        return [max(low - room, -1.0), min(high + room, 100.6)]
    room = max(0.12 * (high - low), 0.02 * abs(high), 1e-9)
    return [low - room, high + room]


def _capital(words: str) -> str:
    """The words with a capital letter first, but names such as mAP50 as they are."""
    return words if words[1:2].isupper() else words[:1].upper() + words[1:]


def _vertical(limits: dict[str, Line], panel: _Panel, ranges: dict[str, list[float]]) -> list[Chart]:
    """The limit of the figure on the x axis: a dashed line with its value at the upper end."""
    if panel.x not in limits:
        return []
    limit, x = limits[panel.x].limit, f"x{panel.number}"
    words, side = show_limit(panel.x, limit), "left"
    if (math.log10(limit) - ranges[x][0]) / (ranges[x][1] - ranges[x][0]) > 0.85:  # no space at its right
        side = "right"
    yref = f"y{panel.number} domain"
    text = small(x=math.log10(limit), y=1, xref=x, yref=yref, xanchor=side, yanchor="top", text=f"≤ {words}")
    if panel.y == "share":  # in the chart of curves there is only space above them
        word = {"latency_p50_ms": "p50", "latency_p95_ms": "p95"}[panel.x]
        text |= {"yanchor": "bottom", "text": f"{word} ≤ {words}", "xanchor": "right" if word == "p50" else "left"}
    return [dashed(x0=limit, x1=limit, y0=0, y1=1, xref=x, yref=yref), text]


def _horizontal(limits: dict[str, Line], ranges: dict[str, list[float]]) -> list[Chart]:
    """The limit of the file size in the left panel."""
    if "size_kb" not in limits:
        return []
    limit = limits["size_kb"].limit
    text = f"≤ {show_limit('size_kb', limit)}"
    return [
        dashed(x0=0, x1=1, y0=limit, y1=limit, xref="x domain", yref="y"),
        small(x=0, y=math.log10(limit), xref="x domain", yref="y", xanchor="left", yanchor="bottom") | {"text": text},
    ]


def _level(level: float, text: str, side: int) -> list[Chart]:
    """A limit of the score in the right panel; its text is at the left (0) or right (1) end."""
    anchor = ("left", "right")[side]
    return [
        dashed(x0=0, x1=1, y0=level, y1=level, xref="x2 domain", yref="y2"),
        small(x=side, y=level, xref="x2 domain", yref="y2", xanchor=anchor, yanchor="bottom", text=text),
    ]


def _quantile_level(share: float, word: str) -> list[Chart]:
    line = dashed(x0=0, x1=1, y0=share, y1=share, xref="x domain", yref="y")
    text = small(x=0, y=share, xref="x domain", yref="y", xanchor="left", yanchor="middle", xshift=4)
    faint = {"color": FAINT, "width": 1, "dash": "dot"}
    return [line | {"line": faint}, text | {"text": word, "font": {"size": 12, "color": FAINT}}]


def _colour(model: ModelFigures, teacher: bool) -> str:
    return TEACHER if teacher else PRECISIONS.get(model.precision, OTHER)
