"""What a person sees while edgekd works: progress on stderr, results on stdout."""

import contextlib
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from edgekd.errors import InputError
from edgekd.units import flat, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress

__all__ = ["command", "open_streams", "out", "progress", "say", "speaks", "status", "stdout_error"]


def open_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) an empty one.

    Otherwise Python has no stream to print to, and the next file that is opened takes its number and gets the output.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123 - for the whole process


def stdout_error(error: OSError) -> InputError:
    """What is told where a write to stdout failed; nothing more is written there."""
    _silence()
    return InputError(f"standard output cannot be written: {os.strerror(error.errno) if error.errno else error}")


def _silence() -> None:
    """What is left for stdout goes nowhere, also at the end of the process."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def _console(stderr: bool) -> "Console":
    from rich.console import Console  # not needed for --help

    stream = sys.stderr if stderr else sys.stdout
    # A pipe or a CI log has no width of its own; tables must not be folded there.
    # Nor may a path such as data:100:x become an emoji.
    width = None if stream.isatty() else 200
    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, width=width)


def speaks() -> bool:
    """Of several processes of one training, only the first one does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line about what is going on."""
    if speaks():
        with contextlib.suppress(OSError):  # a full disk behind stderr must not change the exit code
            _console(True).print(flat(text), markup=False)


def out(item: object) -> None:
    """A result: text, or anything rich can draw."""
    with _unread():
        _console(False).print(visible(item) if isinstance(item, str) else item, markup=False)


def command(text: str) -> None:
    """Commands that a CI log is to obey, as they are; whatever names are in them, the caller has cleaned."""
    with _unread():
        _console(False).print(text, markup=False)


@contextlib.contextmanager
def _unread() -> "Iterator[None]":
    """A reader that has gone (`| head -1`) must not change the exit code: what is left is said to nobody.

    Raises InputError where stdout cannot be written for another reason, such as a full disk.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich turns the one into the other, and is quiet from then on
        _silence()
    except OSError as error:
        raise stdout_error(error) from error


def progress() -> "Progress":
    """A progress bar with time left; silent where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=_console(True),
        transient=True,
        disable=not (sys.stderr.isatty() and speaks()),
    )


@contextlib.contextmanager
def status() -> "Iterator[Callable[[str], None]]":
    """What is being done right now, on one line that goes away; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.text import Text

    with _console(True).status("") as spinner:
        yield lambda text: spinner.update(Text(flat(text)))
