"""`cache`: list and remove the cached outputs of teachers."""

import time
from collections.abc import Sequence
from pathlib import Path

from edgekd import units
from edgekd.console import out, say
from edgekd.distill.cache.files import Entry, cache_folder, cache_limit_bytes, clear_key, list_entries
from edgekd.errors import ConfigError, ExitCode, did_you_mean
from edgekd.tables import rich_table

__all__ = ["clear_cache", "show_cache"]

SHORT = 8
"""Number of hex digits of a key that are shown."""


def show_cache(keys: Sequence[str]) -> int:
    """Print a line for each key, the most recently used first. For keys that are named, also print what the outputs
    were made from."""
    root, limit = cache_folder(), cache_limit_bytes()
    entries = list_entries(root)
    chosen = [_find(key, entries) for key in keys]
    if entries:
        header = ["key", "teacher", "data", "views", "outputs", "size", "last used"]
        out(rich_table(header, [_row(entry) for entry in chosen or entries], "Teacher outputs"))
    for entry in chosen:
        out(f"{entry.folder}")
        for name, value in _flat(entry.meta.get("parts"), ""):
            out(f"  {name} = {value}")
    total = sum(entry.size_bytes for entry in entries)
    out(f"{root}: {units.bytes_(total)} of at most {units.bytes_(limit)} (EDGEKD_CACHE_LIMIT_GB)")
    if entries:
        out("edgekd cache --clear KEY removes one, edgekd cache --clear all that are not in use")
    return ExitCode.PASS


def clear_cache(keys: Sequence[str]) -> int:
    """Remove the named keys, or all keys if none is named. In the second case, keys in use are kept, with a message.

    Raises ConfigError for a named key that is unknown, ambiguous or in use.
    """
    root = cache_folder()
    entries = list_entries(root)
    for entry in [_find(key, entries) for key in keys] or entries:
        if clear_key(root, entry.key):
            out(f"{entry.key[:SHORT]}: removed, {units.bytes_(entry.size_bytes)}")
        elif keys:
            raise ConfigError(f"{entry.key[:SHORT]}: is in use by a training; wait for it, or stop it")
        else:
            say(f"{entry.key[:SHORT]}: kept, it is in use by a training")
    if not entries:
        out(f"{root}: holds nothing")
    return ExitCode.PASS


def _find(key: str, entries: Sequence[Entry]) -> Entry:
    found = [entry for entry in entries if key and entry.key.startswith(key.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.key[: max(SHORT, len(key) + 4)] for entry in found)
        raise ConfigError(f"cache: {key!r} begins {len(found)} keys: {names}; give more of one")
    raise ConfigError(f"cache: no key {key!r}; {did_you_mean(key, [entry.key[:SHORT] for entry in entries])}")


def _row(entry: Entry) -> list[str]:
    shown = entry.meta.get("shown", {})
    views = max(entry.views.values(), default=0)
    held = [name if number == views else f"{name} ({number})" for name, number in sorted(entry.views.items())]
    if entry.unfinished:
        held.append(f"{entry.unfinished} unfinished")
    return [
        entry.key[:SHORT],
        Path(str(shown.get("teacher", "?"))).name,
        str(shown.get("data", "?")),
        str(views),
        ", ".join(held) or "none",
        units.bytes_(entry.size_bytes),
        "in use" if entry.in_use else units.age(time.time() - entry.used_s),
    ]


def _flat(value: object, name: str) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, value)] if name else []
