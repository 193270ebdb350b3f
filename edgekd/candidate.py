"""A student's shape, and what was measured of it before any training."""

from dataclasses import dataclass
from typing import Any

from edgekd.figures import Figure

__all__ = ["Candidate", "Shape", "shape_name"]

Shape = dict[str, Any]
"""The values of a shape as a card writes them; the typed shape is made, and checked, from these."""


@dataclass(frozen=True)
class Candidate:
    """A shape with what was measured of it on the target, per precision."""

    shape: Shape
    params: int
    macs: int
    precisions: dict[str, dict[str, Figure]]
    """Precision to budget key (latency_p50_ms, size_kb, peak_memory_mb) to figure."""

    @property
    def name(self) -> str:
        """The shape as text: `depth=20 width=16`."""
        return shape_name(self.shape)


def shape_name(shape: Shape) -> str:
    """The shape as text: `depth=20 width=16`."""
    return " ".join(f"{key}={value}" for key, value in shape.items()) or "the only shape"
