"""The limits for how much worse than its baseline a model may be."""

import dataclasses
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgekd.errors import ConfigError, shown
from edgekd.spec import build

__all__ = ["Tolerance", "parse_tolerance"]

Off = Literal["off"]
Growth = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
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
    max_accuracy_loss: Points | Off = 0.5
    """Percentage points."""
    min_same_answers: Share | Off = "off"
    """Share of the inputs that both models assign to the same class."""
    max_coverage_loss: Share | Off = 0.0
    """Share of the nodes that the provider no longer runs."""
    max_fused_loss: Share | Off = 0.0
    """Share of the nodes that no longer compute in int8, of those that could."""

    def with_values(self, values: dict[str, float | str]) -> "Tolerance":
        """Return this tolerance with the given `values`."""
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]


def parse_tolerance(options: list[str]) -> dict[str, float | str]:
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
    build(Tolerance, values, "--tolerance")
    return values
