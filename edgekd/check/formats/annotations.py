"""Format a check as GitHub workflow commands, which GitHub shows on the run and on the pull request."""

from collections.abc import Sequence

from edgekd.check.wording import named_apart, visible
from edgekd.judge import Judged, Line

__all__ = ["github_annotations"]

MOST = 10
"""GitHub shows at most this many annotations of a kind per step and does not mention the others."""

_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = _DATA | str.maketrans({":": "%3A", ",": "%2C"})


def github_annotations(judged: Sequence[Judged], on_inconclusive: str | None = None) -> str:
    """Return one command per line: an error for a failed line, a warning for an inconclusive or advisory line."""
    errors: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    for one in named_apart(judged):
        title = f"{one.name} on {one.target}"
        if one.verdict is None:
            errors.append((title, one.problem))
            continue
        for line in one.verdict.lines:
            if line.outcome in ("fail", "inconclusive"):
                (errors if _fails(line, on_inconclusive) else warnings).append((f"{title}: {line.words}", line.text))
    commands = [*_commands("error", errors), *_commands("warning", warnings)]
    return "".join(f"{command}\n" for command in commands)


def _fails(line: Line, on_inconclusive: str | None) -> bool:
    failed = line.outcome == "fail" or (line.outcome == "inconclusive" and on_inconclusive == "fail")
    return failed and not line.advisory


def _commands(command: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    if len(entries) > MOST:
        left_out = len(entries) - MOST + 1
        entries = [*entries[: MOST - 1], ("edgekd check", f"{left_out} more are left out here; the log has them all")]
    return [
        f"::{command} title={visible(title).translate(_PROPERTY)}::{visible(message).translate(_DATA)}"
        for title, message in entries
    ]
