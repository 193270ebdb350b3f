"""The page's charts of figures over time, as plain dictionaries for plotly.js."""

from collections.abc import Sequence

from edgekd.history import HistoryEntry
from edgekd.report.checks.series import Series, machine_words, short
from edgekd.report.checks.slots import (
    Slots,
    axis_words,
    drawn_levels,
    drawn_limits,
    drawn_steps,
    extent_of,
    limit_words,
    scaled_figure,
)
from edgekd.report.drawing import Chart, axis, dashed, error_bars, layout, plain, small

__all__ = ["timeline_chart"]


def timeline_chart(series: Sequence[Series], slots: Slots, colours: dict[str, str]) -> Chart:
    """One figure on every machine: points with their intervals, levels, steps, and the limit."""
    data: list[Chart] = []
    shapes: list[Chart] = []
    words: list[Chart] = []
    several = len(series) > 1
    for one in series:
        colour = colours[one.machine]
        data += [_points(one, slots, colour, several), _levels(one, slots, colour)]
    extent = extent_of(series, slots)
    marks = drawn_steps(series, slots)
    for mark in marks:
        colour = colours[mark.machine]
        line = {"color": colour, "width": 1.4, "dash": "dot"}
        shapes.append(dashed(x0=mark.at, x1=mark.at, y0=0, y1=1, xref="x", yref="y domain") | {"line": line})
        where = {"x": mark.at, "y": 1, "xref": "x", "yref": "y domain", "xanchor": mark.side, "yanchor": "bottom"}
        font = {"font": {"size": 12, "color": colour}}
        words.append(small(**where, yshift=1 + 16 * mark.row, text=plain(mark.text)) | font)
    if extent.limit_shown:
        data.append(_limit(series, slots))
    rows = 1 + max((mark.row for mark in marks), default=-1)
    drawn = layout(300 + 16 * rows) | {
        "margin": {"l": 72, "r": 16, "t": 14 + 16 * rows, "b": 44},
        "xaxis": _category_axis(slots),
        "yaxis": axis(axis_words(series[0]), [extent.low, extent.high]),
        "shapes": shapes,
        "annotations": words,
        "showlegend": several or extent.limit_shown,
    }
    drawn["legend"] = drawn["legend"] | {"y": -0.22}
    return {"data": data, "layout": drawn}


def _category_axis(slots: Slots) -> Chart:
    count = len(slots.labels)
    return axis("", [-0.6, count - 0.4]) | {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [_label(slots, place) for place in range(count)],
        "nticks": 10,
        "tickangle": 0,
        "showgrid": False,
        "tickfont": {"size": 12},
    }


def _points(one: Series, slots: Slots, colour: str, several: bool) -> Chart:
    drawn = [(entry, entry.figures[one.key]) for entry in one.entries if id(entry) in slots.places]
    scaled = [scaled_figure(one, figure) for _, figure in drawn]
    trace: Chart = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(machine_words(one.machine)),
        "legendgroup": plain(one.machine),
        "showlegend": several,
        "line": {"color": colour, "width": 1},
        "marker": {"color": colour, "size": 6},
        "x": [_label(slots, slots.places[id(entry)]) for entry, _ in drawn],
        "y": [float(f"{figure.value or 0:.6g}") for figure in scaled],
        "hoverinfo": "text",
        "hovertext": [_hover(one, entry, several) for entry, _ in drawn],
    }
    if any(figure.low is not None and figure.high is not None for figure in scaled):
        bars = error_bars(scaled, colour) | {"thickness": 0.9, "width": 2}
        ends = {side: [float(f"{end:.4g}") for end in bars[side]] for side in ("array", "arrayminus")}
        trace["error_y"] = bars | ends
    return trace


def _hover(one: Series, entry: HistoryEntry, several: bool) -> str:
    figure = entry.figures[one.key]
    ends = ""
    if figure.low is not None and figure.high is not None:
        ends = f" [{one.show(figure.low)} … {one.show(figure.high)}]"
    machine = [plain(machine_words(one.machine))] if several else []
    lines = [
        f"<b>{one.show(figure.value or 0)}</b>{ends}",
        f"{entry.at:%Y-%m-%d %H:%M} {plain(short(entry.commit))}, check: {plain(entry.outcome)}",
    ]
    return "<br>".join([*lines, *machine])


def _levels(one: Series, slots: Slots, colour: str) -> Chart:
    """The median of each level as a wide line, if there are several levels."""
    x: list[str | None] = []
    y: list[float | None] = []
    for first, last, level in drawn_levels(one, slots):
        x += [_label(slots, first), _label(slots, last), None]
        y += [level, level, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 5},
        "opacity": 0.35,
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": plain(one.machine),
    }


def _limit(series: Sequence[Series], slots: Slots) -> Chart:
    places, levels = drawn_limits(series, slots)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"limit, {limit_words(series)}",
        "x": [_label(slots, place) for place in places],
        "y": levels,
        "line": dashed()["line"] | {"shape": "hvh"},
        "hoverinfo": "skip",
    }


def _label(slots: Slots, place: int) -> str:
    return plain(slots.labels[place]).replace("\n", "<br>")
