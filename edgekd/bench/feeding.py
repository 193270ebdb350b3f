"""Convert the options for a model's inputs from text to a Feeding, or to several if several shapes are given."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.bench.records import Feeding
from edgekd.errors import ConfigError

__all__ = ["feedings", "merged", "shape_words"]

LARGEST = 2**31
"""Upper bound for the size of an axis; larger numbers are refused."""


def feedings(
    shapes: Sequence[str] = (),
    values: Sequence[str] = (),
    batch_axes: Sequence[str] = (),
    output: str | None = None,
    custom_ops: Sequence[Path] = (),
) -> list[Feeding]:
    """Return one Feeding, or one for each shape if `shapes` names an input several times.

    The texts look like `x=1,3,224,224` (shape), `sr=16000` (value), and `x=0` or `none` (batch axis). Raises
    ConfigError for any other text.
    """
    sets = _shape_sets(shapes)
    libraries = tuple(str(_library(path)) for path in custom_ops)
    constants = dict(_value(text) for text in values)
    for name in constants:
        if any(name in one for one in sets):
            raise ConfigError(f"--input {name}: its shape is given as well; leave out --shape {name}")
    axes = dict(_batch_axis(text) for text in batch_axes)
    return [Feeding(shapes=one, values=constants, batch_axes=axes, output=output, custom_ops=libraries) for one in sets]


def merged(first: Feeding, then: Feeding) -> Feeding:
    """Combine two Feedings; where both set the same thing, the value of `then` is used."""
    return Feeding(
        shapes=first.shapes | then.shapes,
        values=first.values | then.values,
        batch_axes=first.batch_axes | then.batch_axes,
        output=then.output or first.output,
        custom_ops=then.custom_ops or first.custom_ops,
    )


def shape_words(feeding: Feeding) -> str:
    """Return text such as `x 1×3×224×224`, which distinguishes the rows of a table with several shapes."""
    return ", ".join(f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in feeding.shapes.items())


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, rest = text.rpartition("=") if option == "--shape" else text.partition("=")
    if not (name and equals):
        raise ConfigError(f"{option} {text!r}: it should be like {example}")
    return name, rest


def _shape_sets(texts: Sequence[str]) -> list[dict[str, tuple[int, ...]]]:
    """Return sets of shapes by input name: the k-th shape of each input belongs to set k; a single shape belongs to all
    sets.
    """
    given: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, rest = _split(text, "--shape", "--shape x=1,3,224,224")
        given.setdefault(name, []).append(_sizes(text, rest))
    counts = {name: len(shapes) for name, shapes in given.items()}
    most = max(counts.values(), default=1)
    for name, count in counts.items():
        if count not in (1, most):
            raise ConfigError(
                f"--shape {name}: has {count} shapes where another input has {most}; give one, or as many"
            )
    return [{name: shapes[min(k, len(shapes) - 1)] for name, shapes in given.items()} for k in range(most)]


def _sizes(text: str, rest: str) -> tuple[int, ...]:
    words = [word.strip() for word in rest.replace("x", ",").replace("×", ",").split(",")] if rest.strip() else []
    if not all(word.isascii() and word.isdigit() and int(word) < LARGEST for word in words):
        raise ConfigError(f"--shape {text!r}: sizes should be whole numbers, as in --shape x=1,3,224,224")
    return tuple(map(int, words))


def _value(text: str) -> tuple[str, Any]:
    """Parse a number, true, false, a text, or several of them separated by commas; JSON lists give more axes."""
    name, rest = _split(text, "--input", "--input sr=16000")
    for candidate in (rest, f"[{rest}]"):
        try:
            return name, json.loads(candidate, parse_constant=_no_number)
        except (ValueError, RecursionError):
            continue
    return name, rest.split(",") if "," in rest else rest


def _no_number(text: str) -> Any:
    raise ValueError(text)


def _batch_axis(text: str) -> tuple[str, int | None]:
    if text == "none":
        return "", None
    name, rest = _split(text, "--batch-axis", "--batch-axis x=0, --batch-axis x=none or --batch-axis none")
    if rest == "none":
        return name, None
    if not (rest.isascii() and rest.isdigit() and len(rest) < 3):
        raise ConfigError(f"--batch-axis {text!r}: the axis should be a number from 0 on, or none")
    return name, int(rest)


def _library(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"--custom-ops {path}: no such file")
    return path.resolve()
