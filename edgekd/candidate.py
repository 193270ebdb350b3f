"""The shape of a student, and the figures measured with it before any training."""

from dataclasses import dataclass, field
from typing import Any

from edgekd.figures import Figure

__all__ = ["Candidate", "Score", "Shape", "shape_name"]

Shape = dict[str, Any]
"""The values of a shape as they are written in a card. The typed shape is built from them and checked."""


@dataclass(frozen=True)
class Candidate:
    """A shape and its figures on the target, for each precision."""

    shape: Shape
    params: int
    macs: int
    precisions: dict[str, dict[str, Figure]]
    """Maps each precision to its figures by budget key (latency_p50_ms, size_kb, peak_memory_mb, instructions_m)."""
    checked: bool = False
    """Whether it was measured a second time, with more processes, because the first interval held the limit."""
    predicted: bool = False
    """Whether the figures are predicted from those of other shapes, and not measured."""
    timed_on: str = ""
    """The further device that timed it, whose times are scaled to the run's own device; empty for the run's own."""
    brought: str = ""
    """The name and the SHA-256 of the results that its times were read from, if they were brought by hand."""
    shared: dict[str, dict[str, Figure]] = field(default_factory=dict)
    """The first figures, like `precisions`, of a candidate that the run's own device measured again; others are
    predicted from them, so that a run that is continued predicts what it predicted before."""

    @property
    def capacity(self) -> tuple[int, int]:
        """What stands for its ability to learn before anything is trained: multiply-accumulates, then parameters."""
        return self.macs, self.params

    @property
    def measured_here(self) -> bool:
        """Whether the figures were measured on the run's own device."""
        return not self.predicted and not self.timed_on

    @property
    def name(self) -> str:
        """The shape as text: `depth=20 width=16`."""
        return shape_name(self.shape)


@dataclass(frozen=True)
class Score:
    """What a shape learnt in a short distillation."""

    shape: Shape
    epochs: int
    value: float | None
    """The score that decides, on validation data; None if the training failed."""
    seconds: float


def shape_name(shape: Shape) -> str:
    """The shape as text: `depth=20 width=16`."""
    return " ".join(f"{key}={value}" for key, value in shape.items()) or "the only shape"
