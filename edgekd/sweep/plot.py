"""The plot of a sweep: the score on validation data against temperature, or another axis if that is not tried."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.files import atomic
from edgekd.report.drawing import literal
from edgekd.scores import ACCURACY, ScoreKind
from edgekd.sweep.table import Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

__all__ = ["plot_sweep"]


def plot_sweep(
    trials: Sequence[Tried],
    colour_by: str,
    data: tuple[int, str],
    title: str,
    path: Path,
    along: str = "temperature",
    kind: ScoreKind = ACCURACY,
) -> None:
    """Plot the score on validation data of each trial against its value of the axis `along`, as PNG.

    Filled points were trained to the end, hollow points were pruned. The colour shows the value of the axis `colour_by`
    (`alpha`, or a weight); all points have one colour if that axis has only one value or is empty. Lines join the
    temperatures that were trained with the same weights: the mean over the seeds of the trials that ended. The grey bar
    at the best trial is the standard error on the validation examples, for a score that is a share of them; `data` is
    their number and the name of the examples.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as Canvas  # without pyplot: no window system, no global state
    from matplotlib.ticker import NullFormatter

    shown = [trial for trial in trials if trial.score is not None and trial.state in ("complete", "pruned")]
    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.subplots()
    values = [trial.point[colour_by] for trial in shown if colour_by in trial.point]
    scale = Normalize(min(values), max(values)) if len(set(values)) > 1 else None
    _draw_lines(axes, shown, along, colour_by, scale, kind)
    for state, face in (("complete", "0.35"), ("pruned", "none")):
        own = [trial for trial in shown if trial.state == state]
        if own:
            _draw_points(axes, own, state == "complete", along, colour_by, scale, kind)
            # The legend uses grey, because the points have several colours.
            axes.plot([], [], "o", markeredgecolor="0.35", markerfacecolor=face, label=f"{state}: {len(own)}")
    if kind.counted:
        _draw_error(axes, shown, along, data)
    if scale is not None:
        canvas.colorbar(ScalarMappable(scale, _map()), ax=axes, label=colour_by)
    if not shown:
        axes.set_xlim(0.1, 20)
    if along != "seed":  # a seed may be 0
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    _mark_tried(axes, sorted({trial.point[along] for trial in shown}), along != "seed")
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.set_xlabel(along)
    axes.set_ylabel(kind.axis("validation"))
    axes.set_title(literal(title))
    axes.grid(True, which="both", alpha=0.25)
    if shown:
        axes.legend(loc="best", fontsize="small")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=130)


def _mark_tried(axes: "Axes", tried: Sequence[float], log: bool) -> None:
    """Put a tick with its number at each value that was tried, except where two would be too close to read both."""
    if not tried:
        return
    place = math.log if log else float
    apart = 0.05 * (place(tried[-1]) - place(tried[0]))
    kept = [tried[0]]
    for value in tried[1:]:
        if place(value) - place(kept[-1]) >= apart:
            kept.append(value)
    axes.set_xticks(kept)


def _draw_points(
    axes: "Axes",
    trials: Sequence[Tried],
    filled: bool,
    along: str,
    colour_by: str,
    scale: "Normalize | None",
    kind: ScoreKind,
) -> None:
    colours = [_colour(trial.point, colour_by, scale) for trial in trials]
    axes.scatter(
        [trial.point[along] for trial in trials],
        [kind.factor * (trial.score or 0) for trial in trials],
        s=36,
        edgecolors=colours,
        facecolors=colours if filled else "none",
        alpha=0.85,
        zorder=3,
    )


def _draw_lines(
    axes: "Axes", trials: Sequence[Tried], along: str, colour_by: str, scale: "Normalize | None", kind: ScoreKind
) -> None:
    label: str | None = "mean over seeds" if any("seed" in trial.point for trial in trials) else None
    for weights, means in _means(trials, along).items():
        if len(means) > 1 and along != "seed":
            places = sorted(means)
            levels = [kind.factor * means[place] for place in places]
            axes.plot(places, levels, "-", color=_colour(dict(weights), colour_by, scale), lw=1, label=label)
            label = None


def _colour(point: Mapping[str, float], colour_by: str, scale: "Normalize | None") -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return _map()(float(scale(point[colour_by]))) if scale is not None else to_rgba("tab:blue")


def _map() -> "Colormap":
    """Return the colour map viridis without its yellow end, which is hard to see on white."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("viridis, cut", [colormaps["viridis"](step / 20) for step in range(18)])


def _means(trials: Sequence[Tried], along: str) -> dict[tuple[tuple[str, float], ...], dict[float, float]]:
    """Return the mean score of the seeds that were trained to the end, by weights and then by value along the
    axis.
    """
    found: dict[tuple[tuple[str, float], ...], dict[float, list[float]]] = {}
    for trial in trials:
        if trial.state == "complete" and trial.score is not None:
            weights = tuple((key, value) for key, value in trial.point.items() if key not in (along, "seed"))
            found.setdefault(weights, {}).setdefault(trial.point[along], []).append(trial.score)
    return {
        weights: {place: sum(values) / len(values) for place, values in places.items()}
        for weights, places in found.items()
    }


def _draw_error(axes: "Axes", trials: Sequence[Tried], along: str, data: tuple[int, str]) -> None:
    best = max(
        (trial for trial in trials if trial.state == "complete"), key=lambda trial: trial.score or 0, default=None
    )
    if best is not None and best.score is not None:
        error = (best.score * (1 - best.score) / data[0]) ** 0.5
        axes.errorbar(
            best.point[along],
            100 * best.score,
            yerr=100 * error,
            color="0.5",
            capsize=4,
            linestyle="none",
            zorder=2,
            label=f"standard error of {data[0]} {data[1]}",
        )
