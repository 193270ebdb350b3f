"""What a person sees while edgekd works: progress on stderr, results on stdout."""

import contextlib
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from edgekd.units import flat, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress

__all__ = ["command", "out", "progress", "say", "speaks", "status"]


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
    """A reader that has gone (`| head -1`) must not change the exit code: what is left is said to nobody."""
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich turns the one into the other, and is quiet from then on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
