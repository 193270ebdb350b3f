"""TOML files (targets, cards) read into frozen, typed objects; every mistake is one clear line."""

import dataclasses
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from edgekd.errors import ConfigError, did_you_mean

__all__ = ["build", "bundled_names", "locate", "read_toml"]

T = TypeVar("T")


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
    if name.endswith(".toml") or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{word} {name!r}: no such file; give a TOML file or a bundled name")
        return path
    if name not in bundled_names(kind):
        raise ConfigError(f"unknown {word} {name!r}; {did_you_mean(name, bundled_names(kind))}")
    return _bundled_dir(kind) / f"{name}.toml"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError names file and line of a syntax error."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error


def build(cls: type[T], data: dict[str, Any], where: str) -> T:
    """`data` as a `cls`, strictly typed; `where` (file, or file and table) starts every message.

    Raises ConfigError with key, value, rule and the nearest valid name.
    """
    try:
        # JSON mode: strict about types, yet arrays may become tuples.
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(data, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(cls, error)}") from None


def _explain(cls: type, error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False)
    # An unknown key is usually the cause of a missing one, so it is told first.
    first = min(problems, key=lambda p: p["type"] not in ("unexpected_keyword_argument", "extra_forbidden"))
    key = _key(first["loc"])
    others = len({_key(problem["loc"]) for problem in problems}) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key; {did_you_mean(str(first['loc'][-1]), _keys_at(cls, first['loc'][:-1]))}{more}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: is missing; add it{more}"
    if first["type"] == "value_error":  # a rule of ours; the text names what was got
        rule = first["msg"].removeprefix("Value error, ")
        return f"{key}: {rule}{more}" if key else f"{rule}{more}"
    # Where one of several types will do, each says what it expects.
    rules = dict.fromkeys(problem["msg"].removeprefix("Input ") for problem in problems if _key(problem["loc"]) == key)
    rule, *either = rules
    rule += "".join(f" or {other.removeprefix('should be ')}" for other in either)
    return f"{key}: got {_short(first['input'])}; it {rule}{more}"


def _key(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc if not _is_union_tag(part))


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("int", "float", "str", "bool", "constrained-float") or "[" in part)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


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
