"""Parts of edgekd's HTML pages. A page is one file that needs no other file and no network."""

import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources

from edgekd import __version__
from edgekd.imports import require
from edgekd.report.drawing import Chart
from edgekd.units import visible

__all__ = ["bullets", "chart_of", "css_class", "facts_of", "page_of", "pill", "safe", "section", "table_of"]


def page_of(title: str, parts: Sequence[str]) -> str:
    """The page with its scripts. `parts` must already be HTML. Raises UnavailableError without plotly."""
    require("plotly", "report", "the HTML report")
    plotly = require("plotly.offline", "report", "the HTML report")
    footer = f"<footer>Made by edgekd {safe(__version__)}. Charts: plotly.js, MIT licence.</footer>"
    filled = {
        "GENERATOR": f"edgekd {safe(__version__)}",
        "TITLE": f"{safe(title)} – edgekd",
        "BODY": "\n".join([*parts, footer]),
        "PLOTLY": plotly.get_plotlyjs().replace("</script", "<\\/script"),
    }
    template = resources.files("edgekd.report").joinpath("page.html").read_text(encoding="utf-8")
    # Split the template instead of replacing marks one by one, so that a name in the body that looks like a mark stays.
    pieces = re.split(r"@@([A-Z]+)@@", template)
    return "".join(filled[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def section(title: str, content: str) -> str:
    """A part of the page with a heading; `content` must already be HTML."""
    return f'<section class="card"><h2>{safe(title)}</h2>{content}</section>'


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]], texts: set[int], shipped: int = -1) -> str:
    """A table whose cells are already HTML. Columns in `texts` are aligned left, and column `shipped` is
    highlighted. On a narrow screen each cell is a line of its own after its column's heading, `data-of`."""

    def tag(kind: str, place: int, cell: str) -> str:
        names = [name for name, wanted in (("text", place in texts), ("shipped", place == shipped)) if wanted]
        joined = " ".join(names)
        css = f' class="{joined}"' if names else ""
        of = f' data-of="{_words_of(header[place])}"' if kind == "td" and place and header[place] else ""
        return f"<{kind}{css}{of}>{cell}</{kind}>"

    head = "".join(tag("th", place, cell) for place, cell in enumerate(header))
    lines = []
    for row in rows:
        if len(row) == 1:  # a heading within the table
            lines.append(f'<tr class="group"><td colspan="{len(header)}">{row[0]}</td></tr>')
        else:
            lines.append(f"<tr>{''.join(tag('td', place, cell) for place, cell in enumerate(row))}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _words_of(heading: str) -> str:
    """The words of a heading that is HTML, for an attribute."""
    return re.sub(r"<[^>]*>", "", heading).replace('"', "&quot;")


def chart_of(choices: Sequence[Chart], label: str) -> str:
    """An element for a chart, with the chart's data. `<` is escaped so that no name can end the script."""
    content = json.dumps(choices, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = f'<script type="application/json">{content}</script>'
    return f'<div class="chart" role="img" aria-label="{safe(label)}">{script}</div>'


def facts_of(facts: dict[str, str]) -> str:
    """A list of terms and their descriptions."""
    return f'<dl class="facts">{"".join(f"<dt>{safe(k)}</dt><dd>{safe(v)}</dd>" for k, v in facts.items())}</dl>'


def bullets(texts: Sequence[str]) -> str:
    """A bullet list; empty if there are no texts."""
    return f"<ul>{''.join(f'<li>{safe(text)}</li>' for text in texts)}</ul>" if texts else ""


def pill(outcome: str, words: str = "") -> str:
    """An outcome in its colour. If `words` are given, they are shown instead of the outcome."""
    return f'<span class="pill {css_class(outcome)}">{safe(words or outcome)}</span>'


def css_class(outcome: str) -> str:
    """The CSS class that gives an outcome its colour."""
    return re.sub(r"[^a-z]+", "-", outcome)


def safe(value: object) -> str:
    """Escape any value from a file, so that the page shows it as plain text."""
    return escape(visible(str(value)))
