"""The limits that a deployed model must meet, and the keys under which cards and commands give them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from edgekd.errors import ConfigError, did_you_mean, shown
from edgekd.figures import BUDGETED, budgeted
from edgekd.ranges import Fraction, Positive
from edgekd.scores import ACCURACY, ScoreKind
from edgekd.spec import build

__all__ = ["Budget", "budget_keys", "parse_budget", "read_budget", "refuse_others"]


@dataclass(frozen=True, init=False)
class Budget:
    """The limits that the deployed model must meet, by budget key: `Budget(size_kb=60, min_accuracy=0.9)`.

    `latency_p99_ms` is advisory: it varies too much between measurements, so it is reported but never fails a verdict.
    The keys of the score that decides come from the task; `kind` says which score that is.
    """

    values: Mapping[str, float]
    kind: ScoreKind

    def __init__(self, kind: ScoreKind = ACCURACY, /, **limits: float | None) -> None:
        object.__setattr__(self, "values", {key: limit for key, limit in limits.items() if limit is not None})
        object.__setattr__(self, "kind", kind)

    def limit(self, key: str) -> float | None:
        """The limit under that key; None if there is none."""
        return self.values.get(key)

    @property
    def minimum(self) -> float | None:
        """The limit of the score that decides."""
        return self.values.get(self.kind.limit_key)

    @property
    def teacher_minimum(self) -> float | None:
        """The limit of the teacher's score that decides."""
        return self.values.get(self.kind.teacher_key)

    def limits(self) -> dict[str, float]:
        """The limits that are set, by budget key, in the order in which verdicts show them."""
        order = list(budgeted(self.kind))
        return dict(sorted(self.values.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))

    def with_values(self, other: "Budget") -> "Budget":
        """A copy of this budget in which the values that `other` sets replace its own."""
        return Budget(self.kind, **(dict(self.values) | dict(other.values)))

    def without(self, *keys: str) -> "Budget":
        """A copy of this budget without these limits."""
        return Budget(self.kind, **{key: limit for key, limit in self.values.items() if key not in keys})

    def of(self, kind: ScoreKind) -> "Budget":
        """A copy of this budget for a task with that deciding score."""
        return Budget(kind, **dict(self.values))


_Points = Annotated[float, Field(ge=0, le=100)]
_Amount = Annotated[float, Field(ge=0)]
_RANGES: dict[str, Any] = {
    **dict.fromkeys(BUDGETED, Positive),
    **dict.fromkeys(("min_agreement", "min_coverage", "min_fused_share"), Fraction),
}
"""The type of each key's limit, for the keys that all tasks have."""


def _ranges(kind: ScoreKind) -> dict[str, Any]:
    value = Fraction if kind.share else float
    return dict(zip(kind.budget_keys, (value, _Points if kind.share else _Amount, value), strict=True))


@cache
def _type_for(kinds: tuple[ScoreKind, ...]) -> type:
    """A dataclass with one field for each budget key, from which messages about wrong keys and values come."""
    ranges = _RANGES | {key: rule for kind in kinds for key, rule in _ranges(kind).items()}
    fields = [(key, ranges[key] | None, None) for key in budget_keys(kinds)]
    made = dataclasses.make_dataclass("Limits", fields, frozen=True, kw_only=True)
    return checked_dataclass(made, frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))


def budget_keys(kinds: Iterable[ScoreKind]) -> list[str]:
    """The budget keys of tasks whose deciding scores are `kinds`, in the order in which verdicts show them."""
    fixed = list(BUDGETED)
    place = fixed.index("min_agreement")
    return [*fixed[:place], *dict.fromkeys(key for kind in kinds for key in kind.budget_keys), *fixed[place:]]


def read_budget(values: Mapping[str, Any], where: str, kinds: Sequence[ScoreKind] = (ACCURACY,)) -> Budget:
    """Check a table of limits, for tasks whose deciding scores are `kinds`.

    Raises ConfigError, which begins with `where`, for an unknown key (with the most similar one) or a wrong value.
    """
    limits: Any = build(_type_for(tuple(dict.fromkeys(kinds))), dict(values), where)
    return Budget(kinds[0], **dataclasses.asdict(limits))


def parse_budget(options: list[str], kinds: Sequence[ScoreKind] = (ACCURACY,)) -> Budget:
    """Parse the values of `--budget`, such as `["size_kb=300", …]`, into a Budget; ConfigError for anything else."""
    values: dict[str, float] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"--budget {shown(option)}: it should be key=value, such as size_kb=300")
        try:
            values[key.strip()] = float(text)
        except ValueError:
            raise ConfigError(f"--budget {key}: got {shown(text)}; it should be a number") from None
    return read_budget(values, "--budget", kinds)


def refuse_others(budget: Budget, kind: ScoreKind, where: str) -> Budget:
    """Return the budget for a task with that deciding score. Raises ConfigError for the key of another score."""
    known = budgeted(kind)
    for key in budget.values:
        if key not in known:
            raise ConfigError(f"{where}: {key}: unknown key; {did_you_mean(key, list(known))}")
    return budget.of(kind)
