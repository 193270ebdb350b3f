"""Tables of figures: rows of text, drawn in a terminal or as Markdown."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd import units
from edgekd.figures import GIVEN, Figure, Metric, ModelFigures, Placement, rows_of, whole_words
from edgekd.judge import Verdict, verdict_words
from edgekd.result import Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "PARITY_TITLE",
    "budget_lines",
    "comparison_rows",
    "costly_rows",
    "figure_rows",
    "headline",
    "int8_text",
    "markdown_report",
    "markdown_table",
    "network_words",
    "notes",
    "parity_rows",
    "parity_table",
    "placement_text",
    "resize_words",
    "result_items",
    "rich_table",
    "terminal_table",
]

Rows = list[list[str]]


def figure_rows(models: Sequence[ModelFigures]) -> tuple[list[str], Rows]:
    """Header and rows: one row for each figure, one column for each model, and a last column for the provenance.

    Ratios are relative to the first model, the teacher or the given network. Rows without any requested
    figure are left out.
    """
    header = ["", *(model.name for model in models), "how"]
    rows: Rows = []
    for metric in [*rows_of(models), *_batch_metrics(models)]:
        figures = [metric.figure(model) for model in models]
        if all(figure.value is None and not figure.why for figure in figures):
            continue
        cells = [
            _cell(figure, figures[0] if place and metric.ratio else None, metric.show)
            for place, figure in enumerate(figures)
        ]
        known = sorted({figure.provenance for figure in figures if figure.value is not None})
        rows.append([metric.words, *cells, ", ".join(known) or "unknown"])
    return header, [*rows, *_placement_rows(models)]


def _batch_metrics(models: Sequence[ModelFigures]) -> list[Metric]:
    """The metrics of inputs per second, one for each batch size and for each number of parallel sessions."""

    def metric(name: str) -> Metric:
        words = f"inputs per second, {name}"
        return Metric(
            name=name, words=words, show=units.count, ratio=True, get=lambda model, _: model.batches.get(name, Figure())
        )

    return [metric(name) for name in dict.fromkeys(name for model in models for name in model.batches)]


def _placement_rows(models: Sequence[ModelFigures]) -> Rows:
    """Rows that say where the nodes ran, and how much of an int8 file computes in 8 bits."""
    placed = [model.placement for model in models]
    if not any(placed):
        return []
    how = ", ".join(sorted({p.provenance for p in placed if p}))
    rows = [["where it ran", *(placement_text(p) if p else "–" for p in placed), how]]
    if any(p and p.fused is not None for p in placed):
        rows.append(["int8 kernels", *(int8_text(p) if p else "–" for p in placed), how])
    return rows


def placement_text(placement: Placement) -> str:
    """Such as `CPU: 42 nodes, 100 % of the time`; the provider with the largest share comes first."""
    shares = placement.time_share
    names = sorted(placement.nodes, key=lambda name: -shares.get(name, 0.0))
    parts = [
        f"{name.removesuffix('ExecutionProvider')}: {placement.nodes[name]} nodes"
        + (f", {100 * shares[name]:.0f} % of the time" if name in shares else "")
        for name in names
    ]
    return "; ".join(parts) or "unknown"


def int8_text(placement: Placement) -> str:
    """The int8 kernels in words: `29 fused, 2 in float (1 Pad, 1 Slice), 6 Q/DQ`."""
    if placement.fused is None:
        return "–"
    parts = [f"{placement.fused} fused"]
    if placement.unfused is not None:
        blockers = ", ".join(f"{count} {kind}" for kind, count in placement.blockers.items())
        parts.append(f"{placement.unfused} in float" + (f" ({blockers})" if blockers else ""))
    if placement.qdq is not None:
        parts.append(f"{placement.qdq} Q/DQ")
    return ", ".join(parts)


def costly_rows(model: ModelFigures) -> tuple[list[str], Rows]:
    """Header and rows of the costliest nodes."""
    header = ["node", "op", "provider", "median", "share"]
    entries = model.placement.costliest if model.placement else ()
    return header, [
        [e["node"], e["op_type"], e["provider"], f"{e['us']:.0f} µs", f"{100 * e['share']:.1f} %"] for e in entries
    ]


def comparison_rows(measured: Sequence[tuple[str, ModelFigures]]) -> tuple[list[str], Rows]:
    """Header and rows: one row for each model on each target; instructions have a column if they were counted."""
    kinds = list(dict.fromkeys(model.kinds[0] for _, model in measured))
    score = " / ".join(kind.head for kind in kinds)
    header = ["target", "model", score, "p50", "p95", "load", "memory", "size", "instructions"]
    header += ["where it ran", "int8 kernels", "how"]
    rows = []
    for target, m in measured:
        latency = [_cell(figure, None, units.milliseconds) for figure in (m.latency_p50_ms, m.latency_p95_ms)]
        memory = _cell(m.peak_memory_mb, None, lambda mb: units.bytes_(mb * 1e6))
        where = placement_text(m.placement) if m.placement else "–"
        int8 = int8_text(m.placement) if m.placement else "–"
        head = [target, m.name, _cell(m.score, None, m.kinds[0].show), *latency]
        load = _cell(m.load_ms, None, units.milliseconds)
        size = units.bytes_(m.size_bytes)
        both = [(m.kinds[0].head, m.score), ("p50", m.latency_p50_ms)]
        known = {figure.provenance for _, figure in both if figure.value is not None or figure.why}
        alike = len(known) == 1
        how = known.pop() if alike else ", ".join(f"{word} {figure.provenance}" for word, figure in both)
        counted = _cell(m.instructions_m, None, lambda millions: units.count(1e6 * millions))
        rows.append([*head, load, memory, size, counted, where, int8, how])
    if not any(m.instructions_m.value for _, m in measured):
        place = header.index("instructions")
        header, rows = _without(header, place), [_without(row, place) for row in rows]
    return header, rows


def _without(cells: list[str], place: int) -> list[str]:
    return [*cells[:place], *cells[place + 1 :]]


def _cell(figure: Figure, first: Figure | None, show: Callable[[float], str]) -> str:
    if figure.value is None:
        return "–"
    text = show(figure.value)
    if figure.low is not None and figure.high is not None and figure.value:
        if figure.provenance == "estimated":
            text += f" [{show(figure.low)} … {show(figure.high)}]"
        else:
            wider = max(figure.high - figure.value, figure.value - figure.low) / figure.value
            text += f" ±{units.percent(wider)}" if wider <= 1 else " ±>100 %"
    if first is not None and first.value:
        factor = units.ratio(figure.value / first.value)
        text += f" ({factor})" if factor else ""
    return text


def notes(models: Sequence[ModelFigures]) -> list[str]:
    """The reasons why figures are unknown, proxies or estimates; each reason appears once. It names the models if there
    is another reason for the same figure of others."""
    reasons: dict[str, list[str]] = {}
    for metric in rows_of(models):
        found: dict[str, list[str]] = {}
        for model in models:
            figure = metric.figure(model)
            if figure.why:
                found.setdefault(f"{figure.provenance}: {figure.why}", []).append(model.name)
        for reason, names in found.items():
            words = metric.words if len(found) == 1 else f"{metric.words} of {', '.join(names)}"
            reasons.setdefault(reason, []).append(words)
    remarks: dict[str, tuple[list[str], list[str]]] = {}
    for model in models:
        for remark in model.notes:
            key = _NUMBER.sub("0", remark) if "up to" in remark and "between" not in remark else remark
            names, texts = remarks.setdefault(key, ([], []))
            names.append(model.name)
            texts.append(remark)
    for names, texts in remarks.values():
        reasons.setdefault(_largest(texts), []).extend(names)
    return [f"{_some(words)} – {reason}" for reason, words in reasons.items()]


def _some(words: Sequence[str]) -> str:
    """The words, or of more than four the first one and the number of the others."""
    return ", ".join(words) if len(words) <= 4 else f"{words[0]} and {len(words) - 1} other figures"


_NUMBER = re.compile(r"\d+(\.\d+)?")


def _largest(texts: Sequence[str]) -> str:
    """One text for several that differ in their numbers only, with the largest number at each place, for texts that say
    `up to`."""
    largest = iter([max(numbers, key=float) for numbers in zip(*(_numbers(text) for text in texts), strict=True)])
    return _NUMBER.sub(lambda _: next(largest), texts[0])


def _numbers(text: str) -> list[str]:
    return [found[0] for found in _NUMBER.finditer(text)]


def budget_lines(verdict: Verdict) -> list[str]:
    """The judged budget, one text for each line."""
    return [line.text for line in verdict.lines] or ["no budget was asked for"]


def headline(result: Result) -> str:
    """The verdict in one line, with remarks on what it does not cover."""
    model = next(m for m in result.models if m.name == result.chosen)
    return f"{result.card} on {result.target}: {verdict_words(result.verdict, model)}"


def terminal_table(models: Sequence[ModelFigures], title: str) -> tuple["Table", list[str]]:
    """The table of `figure_rows` for a terminal of 80 columns, and the lines to print below it.

    Rows that are unknown for every model are one line; how the figures were obtained is another one.
    """
    header, known, unknown = _known_rows(models)
    lines = [f"  how: {_how(known)}"] if known else []
    lines += [f"  not known: {'; '.join(unknown)}"] if unknown else []
    return rich_table(header[:-1], [row[:-1] for row in known], title), lines


def _known_rows(models: Sequence[ModelFigures]) -> tuple[list[str], Rows, list[str]]:
    """The table of `figure_rows` without the rows that are unknown for every model, and the words of those."""
    header, rows = figure_rows(models)
    known = [row for row in rows if row[-1] != "unknown"]
    return header, known, [row[0] for row in rows if row[-1] == "unknown"]


def _how(rows: Rows) -> str:
    """How the rows were obtained: `measured; exact: file size, parameters`. Only rows that differ from most are
    named."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row[-1], []).append(row[0])
    first, *others = sorted(groups, key=lambda how: -len(groups[how]))
    return "; ".join([first, *(f"{how}: {', '.join(groups[how])}" for how in others)])


def rich_table(header: list[str], rows: Rows, title: str, fold: str = "") -> "Table":
    """The rows as a table for a terminal. The cells of the last column are split at `fold`, with one line per part."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    look: dict[str, Any] = {"box": box.SIMPLE, "padding": (0, 1, 0, 0), "show_edge": False}
    table = Table(title=escape(units.flat(title)), title_justify="left", **look)
    for place, name in enumerate(header):
        words = place == 0 or _words(row[place] for row in rows)
        # Words must stay whole, unless they are very long.
        least = min(20, max((len(word) for row in [header, *rows] for word in row[place].split()), default=0))
        table.add_column(
            escape(units.flat(name)), justify="left" if words else "right", min_width=least, overflow="fold"
        )
    for row in rows:
        cells = [units.flat(cell) for cell in row]
        cells[-1:] = [cell.replace(fold, "\n") if fold else cell for cell in cells[-1:]]
        table.add_row(*map(escape, cells))
    return table


def _words(cells: Iterable[str]) -> bool:
    """Whether a column holds words, which are aligned at the left, and not numbers: most of its cells begin so."""
    found = [cell[0].isalpha() for cell in cells if cell.strip() not in ("", "–")]
    return 2 * sum(found) > len(found)


def markdown_table(header: list[str], rows: Rows) -> str:
    """The rows as a Markdown table; a `|` in a cell is escaped, and every cell is one line."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(units.flat(cell).replace("|", "\\|") for cell in cells) + " |"

    places = range(len(header))
    ruler = ["---" if place in (0, places[-1]) or _words(row[place] for row in rows) else "---:" for place in places]
    return "\n".join([line(header), line(ruler), *map(line, rows)])


PARITY_TITLE = "agreement with torch, file by file and provider by provider"


def parity_rows(
    parity: Mapping[str, Any], examples: str, columns: Sequence[tuple[str, str, Sequence[ModelFigures]]]
) -> tuple[list[str], Rows]:
    """Header and rows of one table: how closely each file answers as the torch network from which it was made.

    The first row is the fp32 export on the CPU provider (`parity` of a result); the others are the files of each of
    `columns`: the place, the data in words, and the models. Models that were not compared with torch, such as the
    teacher, are left out; if none was compared, there are no rows.
    """
    header = ["file", "where", "compared on", "same answer as torch", "largest difference", "how"]
    rows: Rows = []
    if {"examples", "max_abs", "same"} <= parity.keys():
        same = "–" if parity["same"] is None else units.accuracy(parity["same"])
        data = f"{parity['examples']} validation {examples}"
        rows.append(
            ["fp32, as exported", "CPU, before measuring", data, same, f"{parity['max_abs']:.2g}", "this machine"]
        )
    for where, data, models in columns:
        for model in models:
            alike, difference = model.torch_agreement, model.max_logit_diff
            if alike.value is None and difference.value is None:
                continue
            cells = [_cell(alike, None, units.accuracy), _cell(difference, None, "{:.2g}".format)]
            rows.append([model.name, where, data, *cells, difference.provenance])
    return header, rows


def _parity_of(result: Result) -> tuple[list[str], Rows]:
    data = f"{result.test_examples} test {result.examples}"
    return parity_rows(result.parity, result.examples, [(result.target, data, result.models)])


def parity_table(result: Result) -> list["Table"]:
    """The table of `parity_rows` for a terminal; empty if nothing was compared."""
    header, rows = _parity_of(result)
    return [rich_table(header, rows, PARITY_TITLE)] if rows else []


def result_items(result: Result) -> list[object]:
    """What a terminal shows of a result before its verdict: texts, and tables that rich can draw."""
    title = f"{result.card} on {result.target}, {result.test_examples} test {result.examples}"
    table, lines = terminal_table(result.models, title)
    remarks = [*notes(result.models), *result.notes]
    return [
        *(table, *lines, *parity_table(result)),
        *(f"  {text}" for text in budget_lines(result.verdict)),
        *(f"  note: {remark}" for remark in remarks),
        f"  shipped: {result.chosen}, because {result.why_chosen}",
    ]


def _parity_text(parity: Mapping[str, Any], examples: str) -> str:
    """How closely the exported file agrees with torch: `… logits differ by at most 1e-05 (1e-06 of the largest)`."""
    text = (
        f"Against torch on {parity['examples']} real {examples}, {parity.get('outputs', 'logits')} of the fp32 export "
        f"differ by at most {parity['max_abs']:.2g} ({parity['relative']:.2g} of the largest)"
    )
    return text + (f", {parity['same_words']} {100 * parity['same']:.2f} %" if parity["same"] is not None else "")


def _data_text(result: Result) -> str:
    words = result.models[0].kinds[0].limit_words
    return (
        f"{words[0].upper()}{words[1:]} on {result.test_examples} test {result.examples}; readings of the test set: "
        f"{result.test_reads}. {_parity_text(result.parity, result.examples)}."
    )


def resize_words(parity: Mapping[str, Any]) -> str:
    """How closely the resize in the graph agrees with Pillow's; empty if the graph does not resize."""
    found = parity.get("resize")
    if not found:
        return ""
    same = found["same"]
    of_images = f"{found['images']} images"
    return (
        f"pixels within {found['max_levels']} of 255 grey levels of Pillow's ({found['mean_levels']:.2g} on average), "
        + (f"on {of_images}" if same is None else f"same answer as with Pillow on {100 * same:.2f} % of {of_images}")
    )


def network_words(first: ModelFigures, shape: str, candidates: int) -> str:
    """How the network of a run whose first model is `first` was found, as a sentence without its full stop."""
    if first.name == GIVEN:
        return f"The network is {whole_words(first)} pruned: {shape}"
    return f"Student: {shape}, chosen among {candidates} candidates before training"


def markdown_report(result: Result, picture: str | None) -> str:
    """`report.md`: verdict, budget, table, and how to read it."""
    header, rows, unknown = _known_rows(result.models)
    shape = ", ".join(f"{key} = {value}" for key, value in result.shape.items()) or "the only shape"
    parts = [
        f"# {units.flat(headline(result))}",
        "\n".join(f"- {units.flat(text)}" for text in budget_lines(result.verdict)),
        f"The file is `{result.shipped_file}` ({units.flat(result.chosen)}): {units.flat(result.why_chosen)}. "
        f"{units.flat(network_words(result.models[0], shape, result.candidates))}.",
        markdown_table(header, rows),
        *([f"Not known: {'; '.join(unknown)}."] if unknown else []),
        _data_text(result),
    ]
    compared = _parity_of(result)
    if compared[1]:
        parts += [f"{PARITY_TITLE[0].upper()}{PARITY_TITLE[1:]}:", markdown_table(*compared)]
    if resized := resize_words(result.parity):
        parts.append(f"Images are resized in the graph: {resized}.")
    remarks = [*notes(result.models), *result.notes]
    if remarks:
        parts.append("\n".join(f"- {units.flat(remark)}" for remark in remarks))
    if picture:
        parts.append(f"![Size, latency and {result.models[0].kinds[0].limit_words} of every model]({picture})")
    return "\n\n".join(parts) + "\n"
