"""Terminal output: progress goes to stderr, results go to stdout."""

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
    """Open /dev/null for each of stdin, stdout and stderr that the process was started without (`>&-`).

    Otherwise Python has no stream to print to, and the next file that is opened takes the free file descriptor and
    receives the output.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free file descriptor, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123 - for the whole process


def stdout_error(error: OSError) -> InputError:
    """Make the error for a failed write to stdout, and stop all further output to stdout."""
    _silence()
    return InputError(f"standard output cannot be written: {os.strerror(error.errno) if error.errno else error}")


def _silence() -> None:
    """Discard all further output to stdout, including the buffer that is flushed at the end of the process."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console(stderr: bool) -> "Console":
    stream = sys.stderr if stderr else sys.stdout
    # A pipe or a CI log has no width, unless COLUMNS says one; tables must not be folded there.
    # A path such as data:100:x must not become an emoji.
    given = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(given) if given.isdecimal() and 20 <= int(given) <= 10_000 else 200
    return _made(stderr, width)


@cache
def _made(stderr: bool, width: int | None) -> "Console":
    from rich.console import Console  # not needed for --help

    return Console(stderr=stderr, highlight=False, soft_wrap=True, emoji=False, width=width)


def speaks() -> bool:
    """Whether this process prints progress. If a training has several processes, only the first one prints."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line of progress on stderr."""
    if speaks():
        with contextlib.suppress(OSError):  # a full disk behind stderr must not change the exit code
            _console(True).print(flat(text), markup=False)


def out(item: object) -> None:
    """Print a result on stdout: text, or any object that rich can draw."""
    with _unread():
        _console(False).print(visible(item) if isinstance(item, str) else item, markup=False)


def command(text: str) -> None:
    """Print workflow commands for the CI system unchanged. The caller must already have escaped the names in them."""
    with _unread():
        _console(False).print(text, markup=False)


@contextlib.contextmanager
def _unread() -> "Iterator[None]":
    """Ignore that the reader of stdout has closed the pipe (`| head -1`): the exit code must not change, and the
    remaining output is discarded.

    Raises InputError if stdout cannot be written for another reason, such as a full disk.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich turns the first into the second, and prints nothing afterwards
        _silence()
    except OSError as error:
        raise stdout_error(error) from error


def progress() -> "Progress":
    """A progress bar with the time left; it draws nothing, and is `disable`d, if stderr is not a terminal, or if this
    process is one of several that another one started."""
    from multiprocessing import parent_process

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=_console(True),
        transient=True,
        disable=not (sys.stderr.isatty() and speaks() and parent_process() is None),
    )


@contextlib.contextmanager
def status() -> "Iterator[Callable[[str], None]]":
    """Show the current activity on one line, which is removed at the end. Nothing is drawn if stderr is not a
    terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.text import Text

    with _console(True).status("") as spinner:
        yield lambda text: spinner.update(Text(flat(text)))
