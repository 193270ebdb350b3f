"""Write the verdicts of `check` to files, for other programs and for CI systems."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from edgekd import __version__
from edgekd.check.record import Checked, write_record
from edgekd.console import command, say
from edgekd.errors import EdgekdError, ExitCode, one_line
from edgekd.files import atomic, write_json
from edgekd.judge import Judged, exit_code_of

__all__ = ["Outputs", "write_outputs"]

# check.json history:
# 1 - judged: name, target, outcome, problem, lines, notes, seconds, machine, figures
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The output files that were requested."""

    junit: Path | None = None
    markdown: Path | None = None
    gitlab_metrics: Path | None = None
    json: Path | None = None
    records: Path | None = None
    history: Path | None = None


def write_outputs(
    outputs: Outputs, judged: Sequence[Judged], records: Sequence[Checked], on_inconclusive: str | None
) -> Iterator[int]:
    """Write each file. A file that cannot be written is reported, and the others are still written; yields exit
    codes."""
    for write in _writers(outputs, judged, records, on_inconclusive):
        try:
            write()
        except EdgekdError as error:
            say(f"edgekd: {error}")
            yield error.exit_code
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else one_line(error)
            where = error.filename2 or error.filename or "a report"
            say(f"edgekd: {where}: cannot be written: {reason}; the verdicts above stand")
            yield ExitCode.USAGE


def _writers(
    outputs: Outputs, judged: Sequence[Judged], records: Sequence[Checked], on_inconclusive: str | None
) -> Iterator[Callable[[], None]]:
    files: list[tuple[Path | None, Callable[[Path], None]]] = [
        (outputs.json, lambda path: write_json(path, _content(judged, on_inconclusive))),
        (outputs.junit, lambda path: _junit(path, judged, on_inconclusive)),
        (outputs.markdown, lambda path: _markdown(path, judged, on_inconclusive)),
        (outputs.gitlab_metrics, lambda path: _gitlab(path, judged)),
        (outputs.records, lambda path: _records(path, records)),
        (outputs.history, lambda path: _history(path, judged)),
    ]
    yield from (partial(write, path) for path, write in files if path is not None)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        yield partial(_summary, Path(summary), judged, on_inconclusive)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        yield partial(_annotations, judged, on_inconclusive)


def _content(judged: Sequence[Judged], on_inconclusive: str | None) -> dict[str, Any]:
    entries = [_entry(one, on_inconclusive) for one in judged]
    return {"schema_version": SCHEMA_VERSION, "edgekd": __version__, "judged": entries}


def _entry(judged: Judged, on_inconclusive: str | None) -> dict[str, Any]:
    plain = ("name", "target", "outcome", "problem", "file", "sha256", "baseline", "seconds", "machine")
    lines = judged.verdict.lines if judged.verdict else ()
    return {
        **{key: getattr(judged, key) for key in plain},
        "exit_code": int(exit_code_of(judged, on_inconclusive)),
        "notes": list(judged.notes),
        "lines": [
            dataclasses.asdict(line) | {"margin": line.margin, "advisory": line.advisory, "text": line.text}
            for line in lines
        ],
        "figures": {key: dataclasses.asdict(figure) for key, figure in judged.figures.items()},
    }


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _junit(path: Path, judged: Sequence[Judged], on_inconclusive: str | None) -> None:
    from edgekd.check.formats.junit import junit_xml

    _write(path, junit_xml(judged, on_inconclusive))


def _markdown(path: Path, judged: Sequence[Judged], on_inconclusive: str | None) -> None:
    from edgekd.check.formats.markdown import markdown_summary

    _write(path, markdown_summary(judged, on_inconclusive))


def _gitlab(path: Path, judged: Sequence[Judged]) -> None:
    from edgekd.check.formats.gitlab import gitlab_metrics

    _write(path, gitlab_metrics(judged))


def _summary(path: Path, judged: Sequence[Judged], on_inconclusive: str | None) -> None:
    from edgekd.check.formats.markdown import append_summary, markdown_summary

    append_summary(path, markdown_summary(judged, on_inconclusive))


def _annotations(judged: Sequence[Judged], on_inconclusive: str | None) -> None:
    from edgekd.check.formats.annotations import github_annotations

    if text := github_annotations(judged, on_inconclusive).rstrip("\n"):
        command(text)


def _history(path: Path, judged: Sequence[Judged]) -> None:
    from edgekd.check.wording import named_apart
    from edgekd.history import append_history, this_commit

    append_history(path, named_apart(judged), datetime.now(UTC), this_commit())


def _records(folder: Path, records: Sequence[Checked]) -> None:
    """Write one file for each model and target. Further files of the same name get a number."""
    used: set[str] = set()
    for checked in records:
        stem = f"{checked.sample.stem}@{checked.sample.target}"
        name, number = stem, 2
        while name in used:
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        write_record(folder / f"{name}.json", checked)
