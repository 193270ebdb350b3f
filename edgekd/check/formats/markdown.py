"""Format a check as Markdown for the summary of a CI job or the comment of a pull request."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from edgekd import units
from edgekd.check.wording import background, named_apart, shown_figure, shown_margin
from edgekd.errors import InputError, worst
from edgekd.judge import EXIT_CODES, Judged, Line, exit_code_of
from edgekd.tables import markdown_table
from edgekd.units import flat

__all__ = ["append_summary", "markdown_summary"]

LIMIT = 1024 * 1024
"""Bytes that GitHub accepts as the summary of one step; it drops a longer summary completely."""

MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "not judged": "➖", "error": "🛑"}

HEADER = ["model", "target", "metric", "figure", "interval", "limit", "margin", "confidence", "verdict"]

_ACTIVE = re.compile(r"([\\`*\[\]~#!]|(?<![^\W_])_|_(?![^\W_]))")
"""Characters that Markdown interprets; `_` has no effect between letters or digits and is frequent in file names."""


def markdown_summary(judged: Sequence[Judged], on_inconclusive: str | None = None) -> str:
    """Return a headline, one table, and the notes in a collapsed section."""
    judged = named_apart(judged)
    outcome = _overall(judged, on_inconclusive)
    parts = [f"## {MARKS[outcome]} edgekd check: {outcome}", _counts(judged)]
    rows = [row for one in judged for row in _rows(one)]
    if rows:
        parts.append(markdown_table(HEADER, rows))
    notes = [note for one in judged for note in _notes(one)]
    if notes:
        parts.append(f"<details><summary>Notes ({len(notes)})</summary>")
        parts += ["\n".join(f"- {note}" for note in notes), "</details>"]
    return "\n\n".join(parts) + "\n"


def _overall(judged: Sequence[Judged], on_inconclusive: str | None) -> str:
    """Return the word for the exit code of the whole command."""
    code = worst(exit_code_of(one, on_inconclusive) for one in judged)
    return next((word for word, its_code in EXIT_CODES.items() if its_code == code), "error")


def _counts(judged: Sequence[Judged]) -> str:
    """Return the counts as text: `3 models: 1 pass, 2 fail.`"""
    outcomes = [one.outcome for one in judged]
    counts = [f"{outcomes.count(word)} {word}" for word in MARKS if word in outcomes]
    checks = "1 check" if len(judged) == 1 else f"{len(judged)} checks"
    return f"{checks}: {', '.join(counts)}." if counts else "Nothing was checked."


def _rows(one: Judged) -> list[list[str]]:
    head = [_text(one.name), _text(one.target)]
    if one.verdict is None:
        return [[*head, "", "", "", "", "", "", f"{MARKS['error']} error: {_text(one.problem)}"]]
    if not one.verdict.lines:
        return [[*head, "", "", "", "", "", "", f"{MARKS['not judged']} nothing was to be judged"]]
    return [[*head, *_cells(line)] for line in one.verdict.lines]


def _cells(line: Line) -> list[str]:
    cells = [
        line.words,
        shown_figure(line),
        line.shown_interval,
        f"{line.sign} {line.shown_limit}",
        shown_margin(line),
        line.confidence,
    ]
    return [*map(_text, cells), _verdict(line)]


def _verdict(line: Line) -> str:
    """Return a mark and a plain word; an advisory line gets a neutral mark."""
    mark = "ℹ️" if line.advisory else MARKS[line.outcome]
    advisory = ", advisory" if line.advisory else ""
    reason = f" ({_text(line.reason)})" if line.reason else ""
    return f"{mark} {line.outcome}{advisory}{reason}"


def _notes(one: Judged) -> list[str]:
    """Return each note with its model's name, then the machine and the baseline of the measurement."""
    about = [f"{word} {_text(text)}" for word, text in background(one)]
    if one.seconds:
        about.append(f"checked in {units.duration(one.seconds)}")
    lines = [_text(note) for note in one.notes] + ([", ".join(about)] if about else [])
    return [f"{_text(one.name)} on {_text(one.target)}: {line}" for line in lines]


def _text(text: str) -> str:
    """Escape text for Markdown and HTML and put it on one line; `markdown_table` itself escapes the `|`."""
    html = flat(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ACTIVE.sub(r"\\\1", html)


def append_summary(path: Path, text: str) -> None:
    """Append to the file that GITHUB_STEP_SUMMARY names, and cut the text to GitHub's limit.

    Raises InputError if the file cannot be written.
    """
    try:
        with path.open("ab") as file:
            size = file.seek(0, os.SEEK_END)
            file.write(_cut(f"\n{text}" if size else text, LIMIT - size))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"{path}: the summary cannot be appended ({reason}); GITHUB_STEP_SUMMARY should name a file in a folder "
            "that can be written, or be unset"
        ) from error


def _cut(text: str, room: int) -> bytes:
    """Return as many whole lines as fit, with a sentence about the cut; nothing if that sentence does not fit.

    In the latter case, an earlier call has already cut the file and written the sentence.
    """
    content = text.encode("utf-8", "replace")
    if len(content) <= room:
        return content
    end = b"\n\n_The summary is cut here: GitHub takes 1 MiB for a step. The log has all of it._\n"
    folded = b"\n\n</details>"
    kept = content[: max(0, room - len(end) - len(folded))].rpartition(b"\n")[0]
    if b"<details>" in kept and b"</details>" not in kept:
        kept += folded  # otherwise the sentence would be inside the collapsed section
    return kept + end if len(kept) + len(end) <= room else b""
