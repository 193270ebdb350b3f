"""Parts that all charts of the page share: colours, axes, layout, and text that plotly shows unchanged."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edgekd.figures import Figure
from edgekd.units import visible

__all__ = [
    "FAINT",
    "INK",
    "Chart",
    "axis",
    "dashed",
    "error_bars",
    "layout",
    "literal",
    "log_axis",
    "log_range",
    "plain",
    "small",
    "title",
]

Chart = dict[str, Any]
"""`data` and `layout` of a plotly figure, or a part of them."""

INK, FAINT, GRID, GOOD = "#1f2933", "#7b8794", "#e4e7eb", "#2f855a"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

ROOM, DIGIT = 34, 8
"""Pixels that the text of a tick needs at least, and that one of its characters takes."""

_TICKS = ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Choices of the ticks within a decade, the densest first."""


def plain(text: str) -> str:
    """Escape text so that plotly shows it unchanged; otherwise plotly interprets tags, entities and formulas between
    dollar signs."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def literal(text: str) -> str:
    """Escape text so that matplotlib does not interpret it as a formula."""
    return visible(text).replace("$", r"\$")


def error_bars(figures: Sequence[Figure], colour: str) -> Chart:
    """Error bars from `low` to `high` of each figure; a figure has none if these are unknown."""
    up = [max(0.0, (f.high if f.high is not None else f.value or 0) - (f.value or 0)) for f in figures]
    down = [max(0.0, (f.value or 0) - (f.low if f.low is not None else f.value or 0)) for f in figures]
    style = {"color": colour, "thickness": 1.2, "width": 3}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **style}


def log_range(values: Sequence[float], space: float = 0.08) -> list[float]:
    """The range of a log axis (exponents of ten) around the positive values, with some space."""
    exponents = [math.log10(value) for value in values if value > 0] or [0.0]
    low, high = min(exponents), max(exponents)
    room = max(space * (high - low), 0.05)
    return [low - room, high + room]


def dashed(**where: Any) -> Chart:
    """The dashed line of a limit."""
    return {"type": "line", "line": {"color": GOOD, "width": 1.6, "dash": "dash"}, "layer": "above", **where}


def small(**where: Any) -> Chart:
    """The small text beside a limit."""
    return {"showarrow": False, "font": {"size": 12, "color": GOOD}, "bgcolor": "rgba(255,255,255,0.8)", **where}


def title(text: str, x: float) -> Chart:
    """The title of a panel, above its left end."""
    where = {"x": x, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "yshift": 8}
    return {"text": f"<b>{text}</b>", "showarrow": False, "font": {"size": 14, "color": INK}, **where}


def axis(title: str, ends: Sequence[float]) -> Chart:
    """A linear axis."""
    line = {"showline": True, "linecolor": "#9aa5b1", "gridcolor": GRID, "zeroline": False, "ticks": "outside"}
    return {"title": {"text": title, "standoff": 10}, "range": list(ends), "tickcolor": "#9aa5b1", **line}


def log_axis(title: str, ends: Sequence[float], pixels: int, upright: bool = False) -> Chart:
    """A log axis that is `pixels` long. It has as many round numbers as fit, and each is written completely.

    The length of a number does not matter if the axis is `upright`.
    """
    per_decade = pixels / max(ends[1] - ends[0], 0.01)
    for digits in _TICKS:
        shown, texts = _ticks(digits, ends)
        room = ROOM if upright else max([ROOM, *(DIGIT * (len(text) + 1) for text in texts)])
        if per_decade * _narrowest(digits) > room:
            break
    # `tickformat` is used by the automatic ticks, which the page shows after zooming.
    return axis(title, ends) | {"type": "log", "tickvals": shown, "ticktext": texts, "tickformat": ",~r"}


def _ticks(digits: Sequence[float], ends: Sequence[float]) -> tuple[list[float], list[str]]:
    """The ticks between two exponents of ten that begin with one of the digits, and their texts."""
    decades = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    shown = [tick for tick in ticks if ends[0] <= math.log10(tick) <= ends[1]]
    return shown, [f"{tick:,.0f}" if tick >= 1000 else f"{tick:g}" for tick in shown]


def _narrowest(digits: Sequence[float]) -> float:
    """The smallest distance between two ticks, in decades."""
    return min(math.log10(after / before) for before, after in pairwise([*digits, 10]))


def layout(height: int) -> Chart:
    """Margins, font, legend and hover labels of a chart."""
    return {
        "height": height,
        "margin": {"l": 66, "r": 16, "t": 40, "b": 56},
        "font": {"family": FONT, "size": 13},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "dragmode": "zoom",
        "legend": {"orientation": "h", "x": 0, "y": -0.17, "yanchor": "top", "font": {"size": 13}},
        "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": FAINT, "font": {"color": INK, "size": 13}},
    }
