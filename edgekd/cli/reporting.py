"""`report`: what run folders hold, as text, page, picture or data."""

from collections.abc import Sequence
from pathlib import Path

from edgekd.console import out
from edgekd.errors import ExitCode
from edgekd.imports import require
from edgekd.report.export import as_csv, as_json, as_markdown, overview_rows, remarks
from edgekd.report.gather import Story, gather
from edgekd.report.tables import figure_rows, rich_table
from edgekd.run import atomic

__all__ = ["report_runs"]


def report_runs(
    folders: Sequence[Path],
    html: Path | None,
    markdown: Path | None,
    csv: Path | None,
    json: Path | None,
    plots: Path | None,
) -> int:
    """Write the files that are asked for, or print a summary; nothing is written if a folder is no finished run."""
    stories = [gather(folder) for folder in folders]
    if html:
        from edgekd.report.html import html_report

        _write(html, html_report(stories))
    for path, form in ((markdown, as_markdown), (csv, as_csv), (json, as_json)):
        if path:
            _write(path, form(stories))
    if plots:
        _plot(stories, plots)
    if not any((html, markdown, csv, json, plots)):
        _print(stories)
    return ExitCode.PASS


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    out(f"{path}: written")


def _plot(stories: Sequence[Story], folder: Path) -> None:
    require("matplotlib", "report", "--plots")
    from edgekd.report.plot import plot_run

    for place, story in enumerate(stories):
        same = [other.name for other in stories[:place]].count(story.name)  # of the same name in another folder
        for column in story.columns:
            name = story.name if column is story.own else f"{story.name}.bench-{column.target}"
            path = folder / (f"{name}-{same + 1}.png" if same else f"{name}.png")
            own = column is story.own
            title = f"{story.card} on {column.label}" + (f": {story.verdict}" if own else "")
            plot_run(
                column.models,
                story.candidates if own else (),
                title,
                path,
                story.lines if own else (),
                story.chosen,
            )
            out(f"{path}: written")


def _print(stories: Sequence[Story]) -> None:
    if len(stories) > 1:
        header, rows = overview_rows(stories)
        out(rich_table(header, rows, f"{len(stories)} runs"))
    for story in stories:
        out(f"{story.card} on {story.target}: {story.verdict}")
        out(f"  {story.sentence}")
        for line in story.lines:
            out(f"  {line.text}")
        for column in story.columns:
            header, rows = figure_rows(column.models)
            on = f", {column.images:,} {column.split} images" if column.images else ""
            out(rich_table(header, rows, f"{story.card} on {column.label}{on}"))
        for remark in remarks(story):
            out(f"  note: {remark}")
        out(f"  shipped: {story.chosen}, because {story.why_chosen}")
