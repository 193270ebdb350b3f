"""The limits for how much worse than its baseline a model may be."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgekd.errors import ConfigError, did_you_mean, shown
from edgekd.figures import compared
from edgekd.scores import ACCURACY, ScoreKind
from edgekd.spec import build

__all__ = ["Tolerance", "parse_tolerance", "read_tolerance", "refuse_other_tolerances", "tolerance_keys"]

Off = Literal["off"]
Growth = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(ge=0, le=100)]
Amount = Annotated[float, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Tolerance:
    """Limits of a comparison, as shares of the baseline's figure unless stated otherwise; "off" disables a limit."""

    max_slowdown: Growth | Off = 0.025
    """Median latency, if both models are measured now by turns."""
    max_slowdown_p95: Growth | Off = 0.10
    """The p95 latency, which varies more, if both models are measured now by turns."""
    max_slowdown_stored: Growth | Off = 0.10
    """Median and p95 latency against a stored record: the speed of the machine may have changed since."""
    max_load_growth: Growth | Off = 0.25
    """Time to create the session."""
    max_size_growth: Growth | Off = 0.01
    max_memory_growth: Growth | Off = 0.05
    max_instruction_growth: Growth | Off = "off"
    """Instructions of a call, which an emulated board counts."""
    min_same_answers: Share | Off = "off"
    """Share of the inputs that both models answer alike."""
    max_coverage_loss: Share | Off = 0.0
    """Share of the nodes that the provider no longer runs."""
    max_fused_loss: Share | Off = 0.0
    """Share of the nodes that no longer compute in int8, of those that could."""
    scores: dict[str, float | Off] = field(default_factory=dict)
    """Limits on the score that decides, by key: `max_accuracy_loss` in percentage points; the default is the task's."""

    def with_values(self, values: Mapping[str, float | str]) -> "Tolerance":
        """Return this tolerance with the given `values`, by tolerance key."""
        own = {key: value for key, value in values.items() if key in _FIXED}
        scores = {key: value for key, value in values.items() if key not in _FIXED}
        return dataclasses.replace(self, **own, scores=self.scores | scores)  # type: ignore[arg-type]

    def of_score(self, kind: ScoreKind) -> float | Off:
        """The limit on that score."""
        return self.scores.get(kind.tolerance_key, kind.tolerance)

    def limits(self, kind: ScoreKind = ACCURACY) -> dict[str, float]:
        """The limits that are not off, by tolerance key, for a task with that deciding score."""
        own = {key: getattr(self, key) for key in _FIXED} | {kind.tolerance_key: self.of_score(kind)}
        return {key: own[key] for key in tolerance_keys([kind]) if not isinstance(own[key], str)}


_FIXED = tuple(part.name for part in dataclasses.fields(Tolerance) if part.name != "scores")


def tolerance_keys(kinds: Iterable[ScoreKind]) -> list[str]:
    """The tolerance keys of tasks whose deciding scores are `kinds`, in order."""
    place = _FIXED.index("min_same_answers")
    return [*_FIXED[:place], *dict.fromkeys(kind.tolerance_key for kind in kinds), *_FIXED[place:]]


@cache
def _type_for(kinds: tuple[ScoreKind, ...]) -> type:
    """A dataclass with one field for each tolerance key, from which messages about wrong keys and values come."""
    ranges = typing.get_type_hints(Tolerance, include_extras=True)
    ranges |= {kind.tolerance_key: (Points if kind.share else Amount) | Off for kind in kinds}
    fields = [(key, ranges[key], field(default="off")) for key in tolerance_keys(kinds)]
    made = dataclasses.make_dataclass("Tolerances", fields, frozen=True, kw_only=True)
    return dataclass(made, frozen=True, kw_only=True, config=_STRICT)


def read_tolerance(values: Mapping[str, Any], where: str, kinds: Sequence[ScoreKind] = (ACCURACY,)) -> Tolerance:
    """Check a table of tolerances, for tasks whose deciding scores are `kinds`.

    Raises ConfigError, which begins with `where`, for an unknown key (with the most similar one) or a wrong value.
    """
    checked: Any = build(_type_for(tuple(dict.fromkeys(kinds))), dict(values), where)
    return Tolerance().with_values({key: getattr(checked, key) for key in values})


def parse_tolerance(options: list[str], kinds: Sequence[ScoreKind] = (ACCURACY,)) -> dict[str, float | str]:
    """Parse the values of `--tolerance`, `["max_slowdown=0.05", …]`. Raises ConfigError for invalid ones."""
    values: dict[str, float | str] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"--tolerance {shown(option)}: it should be key=value, such as max_slowdown=0.05")
        try:
            values[key.strip()] = "off" if text.strip() == "off" else float(text)
        except ValueError:
            rule = "it should be a number, such as 0.025 for 2.5 %, or off"
            raise ConfigError(f"--tolerance {key}: got {shown(text)}; {rule}") from None
    read_tolerance(values, "--tolerance", kinds)
    return values


def refuse_other_tolerances(tolerance: Tolerance, kind: ScoreKind, where: str) -> Tolerance:
    """Return the tolerance. Raises ConfigError if it limits another score than that of the model's task."""
    for key in tolerance.scores:
        if key != kind.tolerance_key:
            raise ConfigError(f"{where}: {key}: unknown key; {did_you_mean(key, list(compared(kind)))}")
    return tolerance
