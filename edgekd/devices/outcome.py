"""Interpret how a worker process ended, wherever it ran."""

import json
import signal
from pathlib import Path

from edgekd.bench.records import Record
from edgekd.errors import InputError, ModelError

__all__ = ["TIMEOUT_EXIT", "ending", "last_line", "record_of", "timed_out"]

TIMEOUT_EXIT = 124
"""The exit code of `timeout(1)`, and of a worker that was stopped because it ran too long."""


def timed_out(culprit: str, timeout_s: float) -> ModelError:
    """Return the error for a worker that was stopped because it ran too long."""
    return ModelError(f"{culprit}: still running after {timeout_s:g} s (exit {TIMEOUT_EXIT}); stopped")


def last_line(text: str) -> str:
    """Return the last line of what a worker printed, cut to 200 characters."""
    return (text.strip().splitlines()[-1:] or ["no message"])[0][:200]


def ending(code: int, last: str) -> str:
    """Describe the end of a worker that left no result, by its exit code and the last line that it printed."""
    if code == -signal.SIGKILL:
        return f"was killed while it ran the model, as the system does when memory runs out ({last})"
    if code < 0:
        return f"crashed with {signal.Signals(-code).name} while it ran the model ({last})"
    return f"ended with exit code {code} and no result ({last})"


def record_of(text: str, model: Path, blamed: str, baseline: str) -> Record:
    """Return the record in a worker's result (JSON).

    Raises the worker's error for the model, or for `baseline` if the error begins with `blamed`.
    """
    try:
        data = json.loads(text)
        if "error" in data:
            told = str(data["error"])
            whose, what = (baseline, told.removeprefix(blamed)) if told.startswith(blamed) else (f"{model}: ", told)
            kind = ModelError if what.startswith(("out of memory", "gives NaN")) else InputError
            raise kind(whose + what)
        return Record.from_json(data)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{model}: the worker's result cannot be read: {error}") from error
