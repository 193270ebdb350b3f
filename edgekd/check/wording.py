"""What every report of a check says in the same words: margins, details, names that cannot break a format."""

import dataclasses
from collections.abc import Sequence

from edgekd.figures import BUDGETED
from edgekd.judge import Judged, Line, show_limit
from edgekd.units import visible

__all__ = ["background", "details", "kind", "named_apart", "shown_figure", "shown_margin", "visible"]


def named_apart(judged: Sequence[Judged]) -> list[Judged]:
    """The same, where two of one name on one target are known by their files, or else numbered.

    Every report finds an entry by its name; of two that are alike most show one and are silent about the other.
    """
    names = [(one.name, one.target) for one in judged]
    longer = [one.file or one.name if names.count((one.name, one.target)) > 1 else one.name for one in judged]
    apart = []
    for place, (one, name) in enumerate(zip(judged, longer, strict=True)):
        before = sum(longer[i] == name and judged[i].target == one.target for i in range(place))
        apart.append(dataclasses.replace(one, name=f"{name} ({before + 1})" if before else name))
    return apart


def shown_figure(line: Line) -> str:
    """`0.652 ms (measured)`: no figure without how it was obtained."""
    return line.shown if line.figure.value is None else f"{line.shown} ({line.figure.provenance})"


def shown_margin(line: Line) -> str:
    """`+0.1 ms` left until the limit, `−0.1 ms` beyond it; empty for an unknown figure."""
    margin = line.margin
    if margin is None:
        return ""
    return ("−" if margin < 0 else "+") + show_limit(line.key, abs(margin)).lstrip("+")


def kind(line: Line) -> str:
    """`budget` for a limit of its own, `regression` for one that a baseline sets."""
    return "budget" if line.key in BUDGETED else "regression"


def details(line: Line) -> list[str]:
    """All that is known of one line, a sentence each."""
    known = [
        ("how", line.figure.provenance if line.figure.value is not None else ""),
        ("interval", line.shown_interval),
        ("margin", shown_margin(line)),
        ("confidence", line.confidence),
    ]
    return [line.text, *(f"{word}: {text}" for word, text in known if text)]


def background(judged: Judged) -> list[tuple[str, str]]:
    """What a model was held against and measured on, by word; what is unknown is left out."""
    known = [("machine", judged.machine), ("baseline", judged.baseline), ("sha256", judged.sha256)]
    return [(word, text) for word, text in known if text]
