"""The charts of classification: recall of each class and the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekd import units
from edgekd.bench.statistics import wilson
from edgekd.figures import Figure
from edgekd.report.drawing import INK, Chart, axis, error_bars, layout, plain, title
from edgekd.report.page import chart_of, safe
from edgekd.report.run.story import Column, Story

__all__ = ["class_chart", "class_section"]

CELLS = 60_000
"""Largest number of cells of confusion matrices in a page, so that the file stays small enough to be sent."""

MOST_NUMBERS, MOST_NAMES, WORST = 20, 45, 30
"""Largest number of classes for a matrix with numbers, largest number whose names fit, and the number of classes that
are shown without a matrix."""

_SCALE = ((0.0, "#ffffff"), (0.01, "#eef4fa"), (0.05, "#cfe1f2"), (0.2, "#93c4df"), (0.6, "#3787c0"), (1.0, "#0b4a8f"))
"""Colours for the shares in a confusion matrix. Most colours are for small shares, because the shares of errors are
small."""


def class_section(story: Story, runs: int) -> tuple[str, str]:
    """Title and HTML of the section on classes, in a page that shows this number of runs. The HTML is empty if the
    answers on test data are not kept."""
    choices = [(column, model) for column in story.columns for model in column.models if model.name in column.details]
    if not choices:
        return "Classes", ""
    choices.sort(key=lambda choice: choice[1].name != story.chosen)  # the shipped model comes first
    classes = _names(story)
    kept = choices[: max(1, CELLS // runs // len(classes) ** 2)]
    charts = [class_chart(column, model.name, classes) for column, model in kept]
    names = [f"{model.name} on {column.label}, {column.split} data" for column, model in kept]
    options = "".join(f"<option>{safe(name)}</option>" for name in names)
    chosen = f'<p><label>Model: <select autocomplete="off">{options}</select></label></p>'
    note = "Bars are 95 % intervals (Wilson). Colours of the matrix are shares of a row, most of them for small ones."
    if len(kept) < len(choices):
        note += f" {len(choices) - len(kept)} more are in what --json writes."
    drawn = chart_of(charts, "recall and confusion")
    return "Classes", f'<div class="choice">{chosen}{drawn}</div><p class="note">{note}</p>'


def _names(story: Story) -> tuple[str, ...]:
    """The names of the classes; numbers if the run does not keep all of them."""
    count = max((len(details["recall"]) for details in story.own.details.values()), default=0)
    named = story.data.get("classes", ())
    return tuple(named) if len(named) >= count else tuple(f"class {place}" for place in range(count))


def class_chart(column: Column, name: str, classes: Sequence[str]) -> Chart:
    """The chart of the model `name`: recall of each class and, if the answers are kept, the confusion matrix."""
    recall, matrix = column.details[name]["recall"], column.details[name].get("confusion")
    places = list(range(len(recall)))
    if matrix is None and len(recall) > MOST_NAMES:  # only the classes with the worst recall are shown
        known = [place for place in places if recall[place] is not None]
        places = sorted(known, key=lambda place: recall[place] or 0.0)[:WORST]
    names = [plain(classes[place]) for place in places]
    bars = _recall_bars([recall[place] for place in places], names, matrix, column.examples)
    height = max(300, min(900, 130 + 26 * len(places)))
    rows = list(range(len(places)))
    rows_axis = {"range": [len(places) - 0.5, -0.5], "tickvals": rows, "ticktext": names, "automargin": True}
    drawn = layout(height) | {
        "xaxis": axis("recall, %", [0, 103]) | {"domain": [0.0, 0.36 if matrix else 1.0]},
        "yaxis": axis("true class", [0, 1]) | rows_axis,
        "annotations": [title("Recall of each class", 0.0)],
        "bargap": 0.35,
    }
    if len(places) > MOST_NAMES:
        drawn["yaxis"] |= {"showticklabels": False, "ticks": ""}
    if matrix is None:
        return {"data": [bars], "layout": drawn}
    drawn["yaxis"] |= {"showgrid": False}  # the grid would be visible through the matrix
    drawn["annotations"].append(title("Confusion matrix", 0.41))
    drawn["xaxis2"] = axis("answer", [-0.5, len(places) - 0.5]) | {
        "domain": [0.41, 1.0],
        "anchor": "y",
        "tickvals": rows,
        "ticktext": names,
        "automargin": True,
        "showticklabels": len(places) <= MOST_NAMES,
        "showgrid": False,
        "ticks": "outside" if len(places) <= MOST_NAMES else "",
    }
    return {"data": [bars, _heat(matrix, column.examples)], "layout": drawn}


def _recall_bars(recall: Sequence[float | None], names: Sequence[str], matrix: Any, examples: str) -> Chart:
    totals = [sum(row) for row in matrix] if matrix else []
    bars: Chart = {
        "type": "bar",
        "orientation": "h",
        "marker": {"color": "#5b8db8"},
        "showlegend": False,
        "x": [None if share is None else 100 * share for share in recall],
        "y": list(range(len(recall))),
        "hoverinfo": "text",
    }
    shown = ["not in the data" if share is None else units.accuracy(share) for share in recall]
    bounds = [wilson(round((share or 0) * total), total) if total else None
              for share, total in zip(recall, totals, strict=False)]  # fmt: skip
    if any(bounds):
        figures = [Figure() if b is None else Figure(100 * b.value, "exact", 100 * b.low, 100 * b.high) for b in bounds]
        bars["error_x"] = error_bars(figures, INK) | {"width": 2}
        shown = [f"{text} of {total:,} {examples}" for text, total in zip(shown, totals, strict=True)]
    bars["hovertext"] = [f"<b>{name}</b><br>recall {text}" for name, text in zip(names, shown, strict=True)]
    return bars


def _heat(matrix: Sequence[Sequence[int]], examples: str) -> Chart:
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # A template is used because a text for each cell would need megabytes; the axes provide the names of the classes.
    hover = (
        "true class <b>%{y}</b><br>answer <b>%{x}</b><br>"
        f"%{{customdata}} {examples}, %{{z:.1~f}} % of the class<extra></extra>"
    )
    heat: Chart = {
        "type": "heatmap",
        "z": (100 * shares).round(1).tolist(),
        "customdata": counts.tolist(),
        "xaxis": "x2",
        "yaxis": "y",
        "zmin": 0,
        "zmax": 100,
        "colorscale": [list(step) for step in _SCALE],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": hover,
    }
    if len(counts) <= MOST_NUMBERS:
        heat |= {"text": [[str(n) if n else "" for n in row] for row in counts.tolist()], "texttemplate": "%{text}"}
    return heat
