"""Errors that a user can correct, and the exit codes.

* EdgekdError
  x ConfigError       a card, a target, an option
  x InputError        data, weights, a model file
  x UnavailableError  an extra, a provider, a machine that is not here
  x BudgetError       a budget missed, a teacher or student below its minimum
  x ModelError        a model that crashes or hangs its runtime
"""

import difflib
from collections.abc import Iterable
from enum import IntEnum

from edgekd.units import flat, natural

__all__ = [
    "BudgetError",
    "ConfigError",
    "EdgekdError",
    "ExitCode",
    "InputError",
    "ModelError",
    "UnavailableError",
    "cut",
    "did_you_mean",
    "one_line",
    "shown",
    "worst",
]


class ExitCode(IntEnum):
    """Exit codes of every command."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    INCONCLUSIVE = 3
    INTERNAL = 70
    INTERRUPTED = 130


class EdgekdError(Exception):
    """An error that a user can correct. Its text is one line, and it is never shown with a traceback."""

    exit_code = ExitCode.USAGE
    final = False
    """Whether the process must stop after this error, so that it cannot continue with another target either."""


class ConfigError(EdgekdError):
    """A card, a target or an option is wrong."""


class InputError(EdgekdError):
    """Data, weights or a model file cannot be used."""


class UnavailableError(EdgekdError):
    """Something that was requested by name is not available: an extra, a provider, a machine."""


class BudgetError(EdgekdError):
    """A budget is missed, or a network stays below its minimum accuracy."""

    exit_code = ExitCode.FAIL


class ModelError(EdgekdError):
    """A model crashed or hung the runtime that was to measure it."""

    exit_code = ExitCode.FAIL


def worst(codes: Iterable[int]) -> int:
    """The exit code of several results. The priority is 2 > 1 > 3 > 0; any other code (70, 130) has the highest."""
    order = [ExitCode.PASS, ExitCode.INCONCLUSIVE, ExitCode.FAIL, ExitCode.USAGE]
    return max(codes, key=lambda code: order.index(ExitCode(code)) if code in order else 99, default=0)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? Known: a, b.` for an unknown `name`."""
    names = sorted(known, key=natural)
    close = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."


def cut(text: str, limit: int = 60) -> str:
    """Shorten `text` to at most `limit` characters, so that a text from a file cannot fill the screen."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shown(value: object) -> str:
    """Format a user's value for a message: quoted, and shortened to fit on a line."""
    return cut(repr(value[:100] if isinstance(value, str) else value))


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of another library's exception on one line of at most `limit` characters."""
    return cut(flat(str(error)) or type(error).__name__, limit)
