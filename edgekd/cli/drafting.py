"""`init`: write a first card from a data folder and a teacher."""

import contextlib
import shlex
from pathlib import Path

from edgekd.console import out as show
from edgekd.console import say, status
from edgekd.devices.device import Site
from edgekd.devices.local import Local, connect, fitting_target
from edgekd.errors import ConfigError, EdgekdError, ExitCode, InputError
from edgekd.files import atomic
from edgekd.imports import require
from edgekd.interface import TRAINING
from edgekd.target import Target, load_target

__all__ = ["write_card"]


def write_card(data: Path, teacher: str, target: str, out: Path | None) -> int:
    """Write a card to `out`, by default NAME.toml for the data folder NAME, and print what was guessed.

    Raises ConfigError if the file exists already, and EdgekdError for data or a teacher that no card can use.
    """
    place = out or Path(f"{_name(data)}.toml")
    if place.suffix != ".toml":
        raise ConfigError(f"--out {place}: a card is a TOML file; give a name that ends in .toml")
    if place.exists():
        raise ConfigError(f"--out {place}: is there already; remove it, or give another name")
    if not place.parent.is_dir():
        raise ConfigError(f"--out {place}: there is no folder {place.parent}; make it first")
    if not data.is_dir():
        raise InputError(f"--data {data}: no such folder")
    for module in (*TRAINING, "PIL"):
        require(module, "train,cpu", "edgekd init")
    from edgekd.draft.card import draft_card

    name = target or fitting_target(Local().facts())
    if not target:
        say(f"target: {name}, which describes this machine; --target NAME takes another one")
    site, timed = _site(load_target(name))
    with contextlib.closing(site), status() as spinner:
        draft = draft_card(data, teacher, site, timed, place, spinner)
    with atomic(place) as temporary:
        temporary.write_text(draft.text, encoding="utf-8")
    for guess in draft.guesses:
        show(f"  {guess}")
    show(f"{place}: written; read it, then run")
    show(f"  {shlex.join(['edgekd', 'distill', str(place), '--target', name])}")
    return ExitCode.PASS


def _site(target: Target) -> tuple[Site, bool]:
    """The target on this machine, and whether its latency can be measured here."""
    try:
        site = connect(target)
    except EdgekdError as error:
        say(f"{error}; the card gets no limit for the latency")
        return Site(target, Local()), False
    return site, site.measurable


def _name(data: Path) -> str:
    """The name of the data folder as the name of a card."""
    return data.resolve().name or "card"
