"""TOML files (targets, cards) read into frozen, typed objects; every mistake is one clear line."""

import dataclasses
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

__all__ = ["build", "bundled_names", "locate", "read_toml"]

T = TypeVar("T")

MAX_BYTES = 4_000_000
"""Size of a TOML file that is read; a target or a card has a few thousand bytes."""

MAX_DEPTH = 32
"""Tables and arrays inside one another; a card needs four."""

MAX_KEY = 200
"""Characters of a key; the longest of edgekd's own has 20, and class or layer names may be keys."""


def _bundled_dir(kind: str) -> Path:
    """The folder of bundled `targets` or `models`: inside an installed wheel, else the checkout's own."""
    package = Path(__file__).parent
    installed = package / "_bundled" / kind
    return installed if installed.is_dir() else package.parent / kind


def bundled_names(kind: str) -> list[str]:
    """Names of the bundled `targets` or `models`."""
    return sorted(path.stem for path in _bundled_dir(kind).glob("*.toml"))


def locate(kind: str, name: str) -> Path:
    """The file of a bundled name, or the file itself when `name` is a path.

    Raises ConfigError with the nearest names if there is none.
    """
    word = {"targets": "target", "models": "card"}[kind]
    if not name.isascii() and "\\ud" in ascii(name):  # what Python makes of bytes that are no UTF-8
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

    Raises ConfigError for a file that cannot be read or is no TOML (file and line), and for what no card or target
    needs: integers beyond 64 bits, NUL characters, deep nesting.
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
    except ValueError:  # Python's own limit of the digits of an integer
        raise ConfigError(f"{path}: {_TOO_LARGE}") from None
    for key, problem in _unusable(tables):
        raise ConfigError(f"{path}: {_key(key)}: {problem}")
    return tables


_TOO_DEEP = f"holds tables or arrays inside one another more than {MAX_DEPTH} deep; write it flatter"
_LONG_PATH = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){200}""")
"""A dotted key of 200 parts or more: reading it takes tomllib a time that grows with the square of the parts."""
_TOO_LARGE = "holds an integer of more than 64 bits; integers go from -9223372036854775808 to 9223372036854775807"


def _unusable(tables: dict[str, Any]) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """Key and problem of each value that TOML allows and edgekd does not; without recursion, for any depth."""
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
    """A message cut in its middle: tomllib quotes keys there, and the line stands at the end."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 60]}…{text[-59:]}"


def build(cls: type[T], data: dict[str, Any], where: str) -> T:
    """`data` as a `cls`, strictly typed; `where` (file, or file and table) starts every message.

    Raises ConfigError with key, value, rule and the nearest valid name.
    """
    try:
        # JSON mode: strict about types, yet arrays may become tuples.
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(data, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(cls, error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: {_TOO_DEEP}") from None


def _explain(cls: type, error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False)
    # An unknown key is usually the cause of a missing one, so it is told first.
    first = min(problems, key=lambda p: p["type"] not in ("unexpected_keyword_argument", "extra_forbidden"))
    key = _key(first["loc"])
    others = len({_key(problem["loc"]) for problem in problems}) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key; {did_you_mean(str(first['loc'][-1]), _keys_at(cls, first['loc'][:-1]))}{more}"
    if first["type"] == "json_invalid":  # JSON has all values but halves of characters
        return "holds text that is not UTF-8; write it in UTF-8"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: is missing; add it{more}"
    if first["type"] == "value_error":  # a rule of ours; the text names what was got
        rule = cut(first["msg"].removeprefix("Value error, "), 400)
        return f"{key}: {rule}{more}" if key else f"{rule}{more}"
    # Where one of several types will do, each says what it expects.
    rules = dict.fromkeys(_NOUN.sub("", problem["msg"]) for problem in problems if _key(problem["loc"]) == key)
    rule, *either = rules
    rule += "".join(f" or {other.removeprefix('should be ')}" for other in either)
    return f"{key}: got {_short(first['input'])}; it {rule}{more}"


_NOUN = re.compile(r"^(Input|Tuple|List|Dictionary|String) (?=should )")
"""What a message of pydantic begins with; ours say `it`."""


def _key(loc: tuple[int | str, ...]) -> str:
    return cut(".".join(cut(str(part), 40) for part in loc if not _is_union_tag(part)), 160)


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("int", "float", "str", "bool", "constrained-float") or "[" in part)


def _short(value: Any) -> str:
    return cut(json.dumps(value, default=str, ensure_ascii=False))


def _keys_at(cls: type, loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the dataclass that stands at `loc` inside `cls`."""
    here: Any = cls
    for part in loc:
        here = _inside(here, part)
    if not dataclasses.is_dataclass(here):
        return []
    # What edgekd fills in by itself is no key of the file.
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
