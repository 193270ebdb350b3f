"""`report`: show run folders, or a history of checks, as text, page, picture or data."""

import webbrowser
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.console import out, say
from edgekd.errors import ConfigError, ExitCode, worst
from edgekd.files import atomic
from edgekd.history import read_history
from edgekd.imports import require
from edgekd.judge import COUNTED, EXIT_CODES, read_counted
from edgekd.report.checks.history import history_csv, history_json, history_markdown, history_tables
from edgekd.report.checks.series import Group, group_series
from edgekd.report.run.export import as_csv, as_json, as_markdown, overview_rows, parity_of, remarks
from edgekd.report.run.gather import blamed, gather
from edgekd.report.run.story import Story
from edgekd.scratch import scratch as new_scratch
from edgekd.tables import PARITY_TITLE, rich_table, terminal_table
from edgekd.units import natural

__all__ = ["Forms", "report", "report_history", "report_runs"]


@dataclass(frozen=True)
class Forms:
    """The files to write. If none is named, a summary is printed."""

    html: Path | None = None
    markdown: Path | None = None
    csv: Path | None = None
    json: Path | None = None
    plots: Path | None = None
    """A folder."""
    open: bool = False
    """Whether the page is then shown in a browser."""


def report(folders: Sequence[Path], history: Path | None, forms: Forms, on_inconclusive: str | None = None) -> int:
    """Report on runs or on the history of checks. Raises ConfigError if both are named, or neither.

    The exit code is 0, because a report only shows verdicts. With `on_inconclusive` it is that of the worst verdict of
    the runs, or of the latest checks in the history.
    """
    read_counted(on_inconclusive)
    if forms.open:
        forms = replace(forms, html=forms.html or _page_of(folders))
    if history and folders:
        raise ConfigError(f"report: {folders[0]} and --history {history} are two reports; ask for one after the other")
    if not history and not folders:
        raise ConfigError("report: Missing argument 'RUN...': name run folders, or a history of checks with --history")
    if history:
        outcomes = report_history(history, forms)
    else:
        outcomes = report_runs([run for folder in folders for run in _runs_in(folder)], forms)
    if forms.open and forms.html:
        _show(forms.html)
    return _code(outcomes, on_inconclusive)


def _page_of(folders: Sequence[Path]) -> Path:
    """The page that `--open` writes if no other file is named: `report.html` in the only folder."""
    if len(folders) != 1:
        raise ConfigError("report --open: several runs, or a history, have no folder of their own; name --html FILE")
    return folders[0] / "report.html"


def _show(page: Path) -> None:
    if not webbrowser.open(page.absolute().as_uri()):
        say(f"edgekd: no browser can be opened here; open {page} in one")


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, or else the run folders directly in it, such as those in `runs`. A folder that
    is neither is returned, because reading it explains what is wrong with it."""
    if (folder / "run.json").exists() or (folder / "result.json").exists() or not folder.is_dir():
        return [folder]
    return sorted((one.parent for one in folder.glob("*/result.json")), key=lambda run: natural(run.name)) or [folder]


def _code(outcomes: Iterable[str], on_inconclusive: str | None) -> int:
    if on_inconclusive is None:
        return ExitCode.PASS
    codes = EXIT_CODES | {"inconclusive": COUNTED[on_inconclusive]}
    return worst(codes.get(outcome, ExitCode.USAGE) for outcome in outcomes)


def report_history(path: Path, forms: Forms) -> list[str]:
    """Write or print the figures of all checks in chronological order, with their steps. All output is made before any
    of it is written.

    Returns the outcomes of the latest checks.
    """
    require("ruptures", "report", "--history")
    entries, warnings = read_history(path)
    groups = group_series(entries)
    files: list[tuple[Path, bytes]] = []
    if forms.html:
        from edgekd.report.checks.page import history_page

        files.append((forms.html, history_page(groups, warnings).encode(errors="backslashreplace")))
    if forms.markdown:
        files.append((forms.markdown, history_markdown(groups).encode(errors="backslashreplace")))
    if forms.csv:
        files.append((forms.csv, history_csv(groups).encode(errors="backslashreplace")))
    if forms.json:
        files.append((forms.json, history_json(groups, warnings).encode(errors="backslashreplace")))
    files += _timelines(groups, forms.plots) if forms.plots else []
    for warning in warnings:
        say(f"edgekd: {warning}")
    _deliver(files, [item for group in groups for item in _history_summary(group)])
    return [group.outcome for group in groups]


def _history_summary(group: Group) -> list[object]:
    told: list[object] = []
    for title, header, rows in history_tables(group):
        told.append(rich_table(header, rows, title, fold="; "))
    return told or [f"{group.model} on {group.target}: no figures; the latest check: {group.outcome}"]


def _timelines(groups: Sequence[Group], folder: Path) -> Iterator[tuple[Path, bytes]]:
    require("matplotlib", "report", "--plots")
    from edgekd.report.checks.plot import picture_name, plot_history

    used: Counter[str] = Counter()
    with new_scratch() as scratch:
        drawn = Path(scratch, "drawn.png")
        for group in groups:
            name = picture_name(group)
            used[name] += 1
            plot_history(group, drawn)
            yield folder / (f"{name}-{used[name]}.png" if used[name] > 1 else f"{name}.png"), drawn.read_bytes()


def report_runs(folders: Sequence[Path], forms: Forms) -> list[str]:
    """Write the files that are asked for, or print a summary.

    All output is made before any of it is written: if a folder is not a finished run, or is damaged, nothing is written
    or printed. Returns the outcomes of the runs.
    """
    stories, summary = [], []
    for folder in folders:
        story = gather(folder)
        with blamed(folder):
            summary += _summary(story)
        stories.append(story)
    with blamed(*folders):
        texts = ((forms.markdown, as_markdown), (forms.csv, as_csv), (forms.json, as_json))
        files = list(_files(stories, forms.html, texts))
        files += _pictures(stories, forms.plots) if forms.plots else []
        overview = [rich_table(*overview_rows(stories), f"{len(stories)} runs")] if len(stories) > 1 else []
    _deliver(files, [*overview, *summary])
    return [story.outcome for story in stories]


def _deliver(files: Iterable[tuple[Path, bytes]], summary: Iterable[object]) -> None:
    """Write the files; if there are none, print the summary."""
    written = False
    for path, content in files:
        with atomic(path) as temporary:
            temporary.write_bytes(content)
        out(f"{path}: written")
        written = True
    for item in [] if written else summary:
        out(item)


def _files(
    stories: Sequence[Story], html: Path | None, texts: Iterable[tuple[Path | None, Callable[[Sequence[Story]], str]]]
) -> Iterator[tuple[Path, bytes]]:
    if html:
        from edgekd.report.run.html import html_report

        yield html, html_report(stories).encode(errors="backslashreplace")
    for path, form in texts:
        if path:
            yield path, form(stories).encode(errors="backslashreplace")


def _pictures(stories: Sequence[Story], folder: Path) -> Iterator[tuple[Path, bytes]]:
    require("matplotlib", "report", "--plots")
    from edgekd.report.run.plot import plot_run

    with new_scratch() as scratch:
        drawn = Path(scratch, "drawn.png")
        for place, story in enumerate(stories):
            same = [other.name for other in stories[:place]].count(story.name)  # runs of the same name in other folders
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
        on = f", {column.count:,} {column.split} {column.examples}" if column.count else ""
        table, lines = terminal_table(column.models, f"{story.card} on {column.label}{on}")
        told += [table, *lines]
    header, rows = parity_of(story)
    told += [rich_table(header, rows, PARITY_TITLE)] if rows else []
    told += [f"  note: {remark}" for remark in remarks(story)]
    told += [f"  resize of an image before the model: {story.input}"] if story.input else []
    return [*told, f"  shipped: {story.chosen}, because {story.why_chosen}"]
