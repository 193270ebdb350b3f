"""Tables of figures: rows of text, drawn in a terminal or as Markdown."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekd import units
from edgekd.check.judge import Verdict
from edgekd.figures import Figure, ModelFigures
from edgekd.result import Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["budget_lines", "figure_rows", "headline", "markdown_report", "markdown_table", "notes", "rich_table"]

Rows = list[list[str]]

_FIGURES: list[tuple[str, Callable[[ModelFigures], Figure], Callable[[float], str], bool]] = [
    ("file size", lambda m: Figure(m.size_bytes, "exact"), units.bytes_, True),
    ("parameters", lambda m: Figure(m.params, "exact"), units.count, True),
    ("multiply-accumulates", lambda m: Figure(m.macs, "exact"), units.count, True),
    ("top-1 accuracy", lambda m: m.accuracy, units.accuracy, False),
    ("macro F1", lambda m: m.macro_f1, units.accuracy, False),
    ("agreement with the teacher", lambda m: m.agreement, units.accuracy, False),
    ("latency p50", lambda m: m.latency_p50_ms, units.milliseconds, True),
    ("latency p95", lambda m: m.latency_p95_ms, units.milliseconds, True),
    ("latency p99", lambda m: m.latency_p99_ms, units.milliseconds, True),
    ("images per second, from p50", lambda m: m.throughput_per_s, units.count, True),
    ("load time", lambda m: m.load_ms, units.milliseconds, True),
    ("peak memory", lambda m: m.peak_memory_mb, lambda mb: units.bytes_(mb * 1e6), True),
]
"""Word, figure, unit, and whether the ratio to the first model is shown."""


def figure_rows(models: Sequence[ModelFigures]) -> tuple[list[str], Rows]:
    """Header and rows: one row a figure, one column a model, last how the figures were obtained.

    Ratios are to the first model, the teacher. Rows in which nothing was asked for are left out.
    """
    header = ["", *(model.name for model in models), "how"]
    rows: Rows = []
    for word, get, show, with_ratio in _FIGURES:
        figures = [get(model) for model in models]
        if all(figure.value is None and not figure.why for figure in figures):
            continue
        cells = [
            _cell(figure, figures[0] if place and with_ratio else None, show) for place, figure in enumerate(figures)
        ]
        known = sorted({figure.provenance for figure in figures if figure.value is not None})
        rows.append([word, *cells, ", ".join(known) or "unknown"])
    return header, rows


def _cell(figure: Figure, first: Figure | None, show: Callable[[float], str]) -> str:
    if figure.value is None:
        return "–"
    text = show(figure.value)
    if figure.provenance == "estimated" and figure.low is not None and figure.high is not None:
        text += f" [{show(figure.low)} … {show(figure.high)}]"
    if first is not None and first.value:
        text += f" ({units.ratio(figure.value / first.value)})"
    return text


def notes(models: Sequence[ModelFigures]) -> list[str]:
    """Why figures are unknown, proxies or estimates; each reason once."""
    reasons: dict[str, list[str]] = {}
    for word, get, _, _ in _FIGURES:
        for model in models:
            figure = get(model)
            if figure.why:
                words = reasons.setdefault(f"{figure.provenance}: {figure.why}", [])
                if word not in words:
                    words.append(word)
    return [f"{', '.join(words)} – {reason}" for reason, words in reasons.items()]


def budget_lines(verdict: Verdict) -> list[str]:
    """The budget line by line."""
    return [line.text for line in verdict.lines] or ["no budget was asked for"]


def headline(result: Result) -> str:
    """The verdict in one line, saying so when latency was estimated or not judged."""
    lines = {line.key: line for line in result.verdict.lines}
    latency = [line for key, line in lines.items() if key.startswith("latency")]
    text = f"{result.card} on {result.target}: {result.verdict.outcome}"
    if any(line.figure.provenance == "estimated" for line in latency):
        return f"{text} (latency estimated)"
    model = next(m for m in result.models if m.name == result.chosen)
    if model.latency_p50_ms.value is None:
        return f"{text} (latency not judged: {model.latency_p50_ms.why})"
    return text


def rich_table(header: list[str], rows: Rows, title: str) -> "Table":
    """The rows as a table for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    for place, name in enumerate(header):
        table.add_column(escape(name), justify="left" if place in (0, len(header) - 1) else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def markdown_table(header: list[str], rows: Rows) -> str:
    """The rows as a Markdown table; a `|` in a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    ruler = ["---", *("---:" for _ in header[1:-1]), "---"]
    return "\n".join([line(header), line(ruler), *map(line, rows)])


def markdown_report(result: Result, picture: str | None) -> str:
    """`report.md`: verdict, budget, table, and how to read it."""
    header, rows = figure_rows(result.models)
    shape = ", ".join(f"{key} = {value}" for key, value in result.shape.items()) or "the only shape"
    parts = [
        f"# {headline(result)}",
        "\n".join(f"- {text}" for text in budget_lines(result.verdict)),
        f"The file is `model.onnx` ({result.chosen}): {result.why_chosen}. "
        f"Student: {shape}, chosen among {result.candidates} candidates before training.",
        markdown_table(header, rows),
        f"Accuracy on {result.test_images} test images; readings of the test set: {result.test_reads}. "
        f"Against torch on {result.parity['images']} real images the fp32 export differs by at most "
        f"{result.parity['max_abs']:.2g} ({result.parity['relative']:.2g} of the largest logit), same class "
        f"{100 * result.parity['argmax_agreement']:.2f} %.",
    ]
    remarks = [*notes(result.models), *result.notes]
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    if picture:
        parts.append(f"![Size, latency and accuracy of every model]({picture})")
    return "\n\n".join(parts) + "\n"
