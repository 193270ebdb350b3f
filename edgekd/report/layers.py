"""The bar chart of what int8 costs in each layer."""

from collections.abc import Sequence
from pathlib import Path

from edgekd.report.drawing import FAINT, INK, literal

__all__ = ["draw_layers"]


def draw_layers(layers: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Draw for each layer (name, SQNR in dB, points of accuracy lost) two bars side by side, as PNG."""
    from matplotlib.figure import Figure as Canvas  # no pyplot: no window system, no global state

    canvas = Canvas(figsize=(10, 1.2 + 0.28 * max(4, len(layers))), layout="constrained")
    quality, loss = canvas.subplots(1, 2, sharey=True)
    names = [literal(name) for name, _, _ in layers]
    places = list(range(len(layers)))
    quality.barh(places, [sqnr for _, sqnr, _ in layers], color=INK)
    loss.barh(places, [points for _, _, points in layers], color=FAINT)
    quality.set_yticks(places, names)
    quality.invert_yaxis()  # the worst on top
    quality.set_xlabel("SQNR of the outputs, dB (higher is better)")
    loss.set_xlabel("accuracy lost, percentage points")
    loss.axvline(0, color=INK, linewidth=0.8)
    canvas.suptitle("int8 in one layer at a time, the rest in float")
    canvas.savefig(path, dpi=120, format="png")
