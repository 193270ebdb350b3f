"""`report`: what run folders hold, as text, page, picture or data."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from edgekd.console import out
from edgekd.errors import ExitCode
from edgekd.imports import require
from edgekd.report.export import as_csv, as_json, as_markdown, overview_rows, remarks
from edgekd.report.gather import Story, blamed, gather
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
    """Write the files that are asked for, or print a summary.

    All of it is made first: nothing is written or printed if a folder is no finished run, or is damaged.
    """
    stories, summary = [], []
    for folder in folders:
        story = gather(folder)
        with blamed(folder):
            summary += _summary(story)
        stories.append(story)
    with blamed(*folders):
        files = list(_files(stories, html, ((markdown, as_markdown), (csv, as_csv), (json, as_json))))
        files += _pictures(stories, plots) if plots else []
        overview = [rich_table(*overview_rows(stories), f"{len(stories)} runs")] if len(stories) > 1 else []
    for path, content in files:
        with atomic(path) as temporary:
            temporary.write_bytes(content)
        out(f"{path}: written")
    for item in [] if files else [*overview, *summary]:
        out(item)
    return ExitCode.PASS


def _files(
    stories: Sequence[Story], html: Path | None, texts: Iterable[tuple[Path | None, Callable[[Sequence[Story]], str]]]
) -> Iterator[tuple[Path, bytes]]:
    if html:
        from edgekd.report.html import html_report

        yield html, html_report(stories).encode()
    for path, form in texts:
        if path:
            yield path, form(stories).encode()


def _pictures(stories: Sequence[Story], folder: Path) -> Iterator[tuple[Path, bytes]]:
    require("matplotlib", "report", "--plots")
    from edgekd.report.plot import plot_run

    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        drawn = Path(scratch, "drawn.png")
        for place, story in enumerate(stories):
            same = [other.name for other in stories[:place]].count(story.name)  # of the same name in another folder
            for column in story.columns:
                own = column is story.own
                name = story.name if own else f"{story.name}.bench-{column.target}"
                title = f"{story.card} on {column.label}" + (f": {story.verdict}" if own else "")
                candidates, lines = (story.candidates, story.lines) if own else ((), ())
                plot_run(column.models, candidates, title, drawn, lines, story.chosen)
                yield folder / (f"{name}-{same + 1}.png" if same else f"{name}.png"), drawn.read_bytes()


def _summary(story: Story) -> list[object]:
    """Texts and tables for a terminal."""
    told: list[object] = [f"{story.card} on {story.target}: {story.verdict}", f"  {story.sentence}"]
    told += [f"  {line.text}" for line in story.lines]
    for column in story.columns:
        header, rows = figure_rows(column.models)
        on = f", {column.images:,} {column.split} images" if column.images else ""
        told.append(rich_table(header, rows, f"{story.card} on {column.label}{on}"))
    told += [f"  note: {remark}" for remark in remarks(story)]
    return [*told, f"  shipped: {story.chosen}, because {story.why_chosen}"]
