"""The picture of a search: quality against latency and size, the front, and the limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.files import atomic
from edgekd.report.drawing import literal
from edgekd.search.front import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_front"]

LABELS = {
    "latency_p50_ms": "latency p50, ms",
    "size_kb": "file size, kB",
    "instructions_m": "instructions per call, millions",
}


def plot_front(
    points: Sequence[Point],
    front: Sequence[Point],
    limits: Mapping[str, float],
    labels: tuple[str, str],
    path: Path,
    factor: float = 1.0,
) -> None:
    """Draw all points, the `front` and the `limits` as PNG or SVG, as the name of `path` says.

    `labels` are the title and the text at the axis of the quality, which is multiplied by `factor`. Latency is left out
    where none is known.
    """
    from matplotlib.figure import Figure as Canvas  # no pyplot: no window system, no global state

    keys = [key for key in LABELS if any(key in one.costs for one in points)]
    canvas = Canvas(figsize=(6 * max(1, len(keys)), 4.5), layout="constrained")
    canvas.suptitle(literal(labels[0]))
    for axes, key in zip(canvas.subplots(1, max(1, len(keys)), squeeze=False)[0], keys, strict=False):
        _draw(axes, points, front, key, factor)
        axes.set_xlabel(LABELS[key])
        axes.set_ylabel(labels[1])
        if key in limits:
            axes.axvline(limits[key], color="tab:green", linestyle="--", linewidth=1.2, label="limit")
        axes.legend(loc="best", fontsize="small")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format=path.suffix.removeprefix("."), dpi=130)


def _draw(axes: "Axes", points: Sequence[Point], front: Sequence[Point], key: str, factor: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    known = [one for one in points if key in one.costs]
    for number, precision in enumerate(dict.fromkeys(one.precision for one in known)):
        for predicted, marker in ((False, "o"), (True, ".")):
            drawn = [one for one in known if (one.precision, one.predicted) == (precision, predicted)]
            if drawn:
                name = f"{precision}, {'predicted' if predicted else 'measured'}"
                xs, ys = [one.costs[key] for one in drawn], [factor * one.quality for one in drawn]
                axes.plot(xs, ys, marker, color=f"C{number}", alpha=0.5, linestyle="none", label=name)
    best = sorted((one.costs[key], factor * one.quality) for one in front if key in one.costs)
    steps = [(x, y) for place, (x, y) in enumerate(best) if all(y > other for _, other in best[:place])]
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color="black", linewidth=1, label="front")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", alpha=0.25)
