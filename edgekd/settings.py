"""Values of `--set KEY=VALUE`, which replace single values of a card or a target before these are checked."""

import copy
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgekd.errors import ConfigError, cut, one_line, shown
from edgekd.spec import unusable

__all__ = ["Setting", "built_with", "for_target", "parse_settings"]

T = TypeVar("T")

_TARGET = "target"


@dataclass(frozen=True)
class Setting:
    """One value that replaces a value of the card, or of the target if the path begins with `target`."""

    path: tuple[str, ...]
    """The keys that lead to the value, from the outermost table inwards."""
    value: Any
    option: str
    """The option as it was given, for error messages."""

    def put(self, tables: dict[str, Any]) -> None:
        """Put the value into `tables`, in place; missing tables are added. Raises ConfigError if the path leads into a
        value that is no table."""
        here: Any = tables
        for place, key in enumerate(self.path[:-1]):
            here = self._inside(here, key, place)
        last = self.path[-1]
        if isinstance(here, list):
            here[self._index(here, last, len(self.path) - 1)] = self.value
        elif isinstance(here, dict):
            here[last] = self.value
        else:
            raise ConfigError(f"{self.option}: {'.'.join(self.path[:-1])} is {shown(here)}, which has no keys")

    def _inside(self, here: Any, key: str, place: int) -> Any:
        if isinstance(here, list):
            return here[self._index(here, key, place)]
        if isinstance(here, dict):
            return here.setdefault(key, {})
        raise ConfigError(f"{self.option}: {'.'.join(self.path[:place])} is {shown(here)}, which has no keys")

    def _index(self, here: list[Any], key: str, place: int) -> int:
        if not key.isdecimal() or int(key) >= len(here):
            known = f"an index from 0 to {len(here) - 1}" if here else "nothing, because the array is empty"
            raise ConfigError(f"{self.option}: {'.'.join(self.path[:place])}: got {shown(key)}; it takes {known}")
        return int(key)


def parse_settings(options: Sequence[str]) -> tuple[Setting, ...]:
    """Parse the values of `--set`, such as `["recipe.epochs=3", 'student.family="mlp"']`: the key is a dotted TOML
    key, the value is a TOML value. Raises ConfigError for anything else."""
    return tuple(_parse(option) for option in options)


def _parse(option: str) -> Setting:
    named = f"--set {cut(option, 80)}"
    key, equals, text = option.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{named}: it should be key=value, such as recipe.epochs=3")
    path, here = [], _toml(f"{key.strip()} = 0", f"{named}: the key should be dotted names, such as recipe.epochs")
    while isinstance(here, dict):
        ((name, here),) = here.items()
        path.append(name)
    hint = f"text needs quotes: --set '{key.strip()}=\"{cut(text.strip(), 40)}\"'"
    tables = _toml(f"value = {text.strip()}", f"{named}: got {shown(text.strip())}; the value should be TOML; {hint}")
    for _, problem in unusable(tables):
        raise ConfigError(f"{named}: {problem}")
    return Setting(tuple(path), tables["value"], named)


def _toml(line: str, problem: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(problem) from None
    if len(tables) != 1:  # the text holds further lines
        raise ConfigError(problem)
    return tables


def for_target(settings: Sequence[Setting]) -> tuple[tuple[Setting, ...], tuple[Setting, ...]]:
    """Divide settings into those of the card and those of the target; the latter lose the `target.` before their key.

    Raises ConfigError for the key `target` alone.
    """
    card, target = [], []
    for setting in settings:
        if setting.path[0] != _TARGET:
            card.append(setting)
        elif len(setting.path) == 1:
            raise ConfigError(f"{setting.option}: name a key of the target, such as target.session.intra_op_threads")
        else:
            target.append(Setting(setting.path[1:], setting.value, setting.option))
    return tuple(card), tuple(target)


def built_with(
    settings: Sequence[Setting], tables: dict[str, Any], where: str, make: Callable[[dict[str, Any], str], T]
) -> T:
    """Return `make(tables, where)` with the settings applied to a copy of the tables.

    The tables are checked without the settings first, so that a mistake in the file is told as such. An error that
    only the settings cause begins with the option that causes it, or with all of them.
    """
    plain = make(copy.deepcopy(tables), where)
    if not settings:
        return plain
    _refuse_twice(settings)
    try:
        return _made(settings, tables, where, make)
    except ConfigError as error:
        guilty = [setting for setting in settings if _alone_fails(setting, tables, where, make)]
        named = guilty[0].option if guilty else " ".join(setting.option for setting in settings)
        text = one_line(error, 600).removeprefix(f"{where}: ").removeprefix(f"{named}: ")
        raise ConfigError(f"{named}: {text}") from None


def _made(
    settings: Sequence[Setting], tables: dict[str, Any], where: str, make: Callable[[dict[str, Any], str], T]
) -> T:
    changed = copy.deepcopy(tables)
    for setting in settings:
        setting.put(changed)
    return make(changed, where)


def _alone_fails(
    setting: Setting, tables: dict[str, Any], where: str, make: Callable[[dict[str, Any], str], T]
) -> bool:
    try:
        _made([setting], tables, where, make)
    except ConfigError:
        return True
    return False


def _refuse_twice(settings: Sequence[Setting]) -> None:
    for place, setting in enumerate(settings):
        for other in settings[:place]:
            if other.path == setting.path:
                raise ConfigError(f"{setting.option}: {other.option} sets the same key; give it once")
