"""Read TOML files (targets, cards) into frozen, typed objects. Every mistake in a file is reported in one line."""

import dataclasses
import functools
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from edgekd.errors import ConfigError, cut, did_you_mean, one_line, shown
from edgekd.files import at_home

__all__ = ["build", "bundled_names", "locate", "read_toml", "unusable"]

T = TypeVar("T")

MAX_BYTES = 4_000_000
"""Largest size of a TOML file that is read. A target or a card usually has a few thousand bytes."""

MAX_DEPTH = 32
"""Largest depth of nested tables and arrays; a card needs four levels."""

MAX_KEY = 200
"""Largest number of characters of a key. The longest key of edgekd has 20, but names of classes or layers may be
keys."""


def _bundled_dir(kind: str) -> Path:
    """The folder of bundled `targets` or `models`: in the package if it was installed from a wheel, else in the
    checkout."""
    package = Path(__file__).parent
    installed = package / "_bundled" / kind
    return installed if installed.is_dir() else package.parent / kind


def bundled_names(kind: str) -> list[str]:
    """Names of the bundled `targets` or `models`."""
    return sorted(path.stem for path in _bundled_dir(kind).glob("*.toml"))


def locate(kind: str, name: str) -> Path:
    """The file of a bundled name, or the file itself if `name` is a path.

    If there is no such file, raises ConfigError with the most similar names.
    """
    word, name = {"targets": "target", "models": "card"}[kind], at_home(name)
    if not name.isascii() and "\\ud" in ascii(name):  # Python represents bytes that are not UTF-8 in this way
        raise ConfigError(f"{word} {shown(name)}: its path is not UTF-8 text; rename it")
    if name.endswith(".toml") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            what = "is no file" if path.exists() else "no such file"
            raise ConfigError(f"{word} {name!r}: {what}; give a TOML file or a bundled name")
        return path
    if name not in bundled_names(kind):
        raise ConfigError(f"unknown {word} {shown(name)}; {did_you_mean(name, bundled_names(kind))}")
    return _bundled_dir(kind) / f"{name}.toml"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark.

    Raises ConfigError for a file that cannot be read or is not TOML (with file and line), and for content that no card
    or target needs: integers beyond 64 bits, NUL characters, deep nesting.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; a TOML file of edgekd has at most {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8-sig")
        if _LONG_PATH.search(text):
            raise ConfigError(f"{path}: {_TOO_DEEP}")
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {_both_ends(str(error))}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    except RecursionError:
        raise ConfigError(f"{path}: {_TOO_DEEP}") from None
    except ValueError:  # Python limits the number of digits of an integer
        raise ConfigError(f"{path}: {_TOO_LARGE}") from None
    for key, problem in unusable(tables):
        raise ConfigError(f"{path}: {_key(key)}: {problem}")
    return tables


_TOO_DEEP = f"holds tables or arrays inside one another more than {MAX_DEPTH} deep; write it flatter"
_LONG_PATH = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){200}""")
"""A dotted key of 200 parts or more. The time that tomllib needs to read it grows with the square of their number."""
_TOO_LARGE = "holds an integer of more than 64 bits; integers go from -9223372036854775808 to 9223372036854775807"


def unusable(tables: dict[str, Any]) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """Yield key and problem of each value that TOML allows and edgekd does not. The walk is not recursive, so the
    tables may have any depth."""
    left: list[tuple[tuple[int | str, ...], Any]] = [((), tables)]
    while left:
        key, value = left.pop()
        if isinstance(value, str) and "\0" in value:
            yield key, "should hold no NUL character"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield key, _TOO_LARGE
        elif isinstance(value, dict | list):
            if len(key) >= MAX_DEPTH:
                yield key[:3], _TOO_DEEP
                continue
            inside = list(value.items() if isinstance(value, dict) else enumerate(value))
            for part in (part for part, _ in inside if isinstance(part, str) and len(part) > MAX_KEY):
                yield (*key, part), f"a key has at most {MAX_KEY} characters, this one has {len(part):,}"
            left += [((*key, part), one) for part, one in inside]


def _both_ends(text: str, limit: int = 160) -> str:
    """Shorten a message of tomllib in its middle, which quotes keys; the line number at its end must stay."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 60]}…{text[-59:]}"


def build(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Build an object of type `cls` from `data`, with strict types. Messages start with `where` (file, or file and
    table).

    Raises ConfigError with key, value, rule and the most similar valid name.
    """
    try:
        # JSON mode is strict about types, but still accepts arrays for tuples.
        built: T = _adapter(typing.cast(Any, cls)).validate_json(json.dumps(data, default=str), strict=True)
        return built
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(cls, error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: {_TOO_DEEP}") from None


@functools.lru_cache(maxsize=64)
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    """The validator of a type; making one takes a hundred times as long as using it."""
    return pydantic.TypeAdapter(cls)


def _explain(cls: type, error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False)
    # An unknown key is usually the cause of a missing key, so it is reported first.
    first = min(problems, key=lambda p: p["type"] not in ("unexpected_keyword_argument", "extra_forbidden"))
    key = _key(first["loc"])
    others = len({_key(problem["loc"]) for problem in problems}) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key; {did_you_mean(str(first['loc'][-1]), _keys_at(cls, first['loc'][:-1]))}{more}"
    if first["type"] == "json_invalid":  # JSON can represent all values except unpaired surrogates
        if "recursion" in first["msg"]:  # Python 3.14 writes JSON of any depth, which pydantic does not read
            return _TOO_DEEP
        return "holds text that is not UTF-8; write it in UTF-8"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: is missing; add it{more}"
    if first["type"] == "value_error":  # one of edgekd's own rules; its text already names the value
        rule = cut(first["msg"].removeprefix("Value error, "), 400)
        return f"{key}: {rule}{more}" if key else f"{rule}{more}"
    # If one of several types is allowed, there is a message for each type.
    rules = dict.fromkeys(_NOUN.sub("", problem["msg"]) for problem in problems if _key(problem["loc"]) == key)
    rule, *either = rules
    rule += "".join(f" or {other.removeprefix('should be ')}" for other in either)
    return f"{key}: got {_short(first['input'])}; it {rule}{more}"


_NOUN = re.compile(r"^(Input|Tuple|List|Dictionary|String) (?=should )")
"""The subject at the beginning of pydantic's messages; edgekd's messages say `it` instead."""


def _key(loc: tuple[int | str, ...]) -> str:
    return cut(".".join(cut(str(part), 40) for part in loc if not _is_union_tag(part)), 160)


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("int", "float", "str", "bool", "constrained-float") or "[" in part)


def _short(value: Any) -> str:
    return cut(json.dumps(value, default=str, ensure_ascii=False))


def _keys_at(cls: type, loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the dataclass at the position `loc` inside `cls`."""
    here: Any = cls
    for part in loc:
        here = _inside(here, part)
    if not dataclasses.is_dataclass(here):
        return []
    # Fields that edgekd fills in itself are not keys of the file.
    return [field.name for field in dataclasses.fields(here) if loc or field.name not in ("name", "file", "budgets")]


def _inside(annotation: Any, part: int | str) -> Any:
    if dataclasses.is_dataclass(annotation):
        annotation = typing.get_type_hints(annotation).get(str(part))
    else:  # tuple[X, ...] or dict[str, X]
        args = typing.get_args(annotation)
        annotation = args[0] if isinstance(part, int) else args[-1]
    if isinstance(annotation, types.UnionType):
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not types.NoneType)
    return annotation
