"""Texts that all reports of a check share: margins, details, and names that are safe in every format."""

import dataclasses
from collections.abc import Sequence

from edgekd.judge import Judged, Line, show_limit
from edgekd.units import visible

__all__ = ["background", "details", "kind", "named_apart", "shown_figure", "shown_margin", "visible"]


def named_apart(judged: Sequence[Judged]) -> list[Judged]:
    """Make names unique: models with equal names on one target get the names of their files, or numbers.

    Most reports identify an entry by its name, and of two equal entries they would silently show only one.
    """
    names = [(one.name, one.target) for one in judged]
    longer = [one.file or one.name if names.count((one.name, one.target)) > 1 else one.name for one in judged]
    apart = []
    for place, (one, name) in enumerate(zip(judged, longer, strict=True)):
        before = sum(longer[i] == name and judged[i].target == one.target for i in range(place))
        apart.append(dataclasses.replace(one, name=f"{name} ({before + 1})" if before else name))
    return apart


def shown_figure(line: Line) -> str:
    """Return the figure with its provenance: `0.652 ms (measured)`."""
    return line.shown if line.figure.value is None else f"{line.shown} ({line.figure.provenance})"


def shown_margin(line: Line) -> str:
    """Return the margin to the limit: `+0.1 ms` within it, `−0.1 ms` beyond it; empty for an unknown figure."""
    margin = line.margin
    if margin is None:
        return ""
    return ("−" if margin < 0 else "+") + show_limit(line.key, abs(margin), line.kind).lstrip("+")


def kind(line: Line) -> str:
    """Return `budget` for a limit on the model itself, `regression` for one relative to a baseline."""
    return "budget" if line.metric.budget else "regression"


def details(line: Line) -> list[str]:
    """Return all known information about one line, one sentence each."""
    known = [
        ("how", line.figure.provenance if line.figure.value is not None else ""),
        ("interval", line.shown_interval),
        ("margin", shown_margin(line)),
        ("confidence", line.confidence),
    ]
    return [line.text, *(f"{word}: {text}" for word, text in known if text)]


def background(judged: Judged) -> list[tuple[str, str]]:
    """Return machine, baseline and digest of a model's check as word and text; unknown values are left out."""
    known = [("machine", judged.machine), ("baseline", judged.baseline), ("sha256", judged.sha256)]
    return [(word, text) for word, text in known if text]
