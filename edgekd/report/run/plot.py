"""The picture of a run: its score against size and latency."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.figures import Figure, ModelFigures
from edgekd.files import atomic
from edgekd.judge import Line
from edgekd.report.drawing import literal
from edgekd.scores import ScoreKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Sized", "plot_run"]


class Sized(Protocol):
    """A shape measured before training: `candidate.Candidate`, or `gather.Untrained`, which does not need torch."""

    @property
    def precisions(self) -> Mapping[str, Mapping[str, Figure]]:
        """Maps each precision to its figures by budget key."""
        ...


def plot_run(
    models: Sequence[ModelFigures],
    candidates: Sequence[Sized],
    title: str,
    path: Path,
    lines: Sequence[Line] = (),
    shipped: str = "",
) -> None:
    """Draw the score that decides against size, and against latency if it is known, as PNG.

    Candidates that were not trained have no score, so they are drawn as ticks on the lower edge. The limits in
    `lines` are dashed lines, and the model named `shipped` has a ring.
    """
    from matplotlib.figure import Figure as Canvas  # no pyplot: no window system, no global state

    timed = any(model.latency_p50_ms.value is not None for model in models)
    canvas = Canvas(figsize=(11 if timed else 6, 4.5), layout="constrained")
    axes = canvas.subplots(1, 2 if timed else 1, squeeze=False)[0]
    canvas.suptitle(literal(title))
    limits = {line.key: line.limit for line in lines}
    for place, (key, label) in enumerate([("size_kb", "file size, kB"), ("latency_p50_ms", "latency p50, ms")]):
        if place < len(axes):
            _draw(axes[place], models, candidates, key, label)
            _draw_limits(axes[place], limits, key, models[0].kinds[0])
            _draw_ring(axes[place], models, shipped, key)
            axes[place].legend(loc="best", fontsize="small")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=130)


def _draw(axes: "Axes", models: Sequence[ModelFigures], candidates: Sequence[Sized], key: str, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    kind = models[0].kinds[0]
    for place, (model, marker) in enumerate(zip(models, "sovD^P", strict=False)):
        figure, score = getattr(model, key), model.score.value
        if figure.value is None or score is None:
            continue
        height = kind.factor * score
        axes.plot([figure.value], [height], marker, markersize=9, label=literal(model.name), linestyle="none")
        axes.annotate(
            kind.show(score),
            (figure.value, height),
            xytext=(0, 9 + 12 * (place % 2)),  # neighbours of nearly the same size do not overprint each other
            textcoords="offset points",
            ha="center",
        )
    values = [figures[key].value for candidate in candidates for figures in candidate.precisions.values()]
    known = [value for value in values if value is not None]
    if known:
        axes.plot(
            known,
            [0.02] * len(known),
            "|",
            color="0.5",
            transform=axes.get_xaxis_transform(),
            markersize=12,
            label="candidates, untrained",
        )
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel(kind.axis("test"))
    axes.margins(x=0.2, y=0.35)
    low, high = axes.get_xlim()
    wide = low > 0 and high / low > 200  # then labels at 1, 2 and 5 would overprint each other
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    if kind.share:  # which ends at 100 %
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    axes.grid(True, which="both", alpha=0.25)


def _draw_limits(axes: "Axes", limits: dict[str, float], key: str, kind: ScoreKind) -> None:
    """Draw the budget as dashed green lines, of which one is labelled."""
    if key in limits:
        axes.axvline(limits[key], color="tab:green", linestyle="--", linewidth=1.2, label="budget")
    if key == "latency_p50_ms" and "latency_p95_ms" in limits:
        about: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2, "label": "budget of p95"}
        axes.axvline(limits["latency_p95_ms"], color="tab:green", **about)
    if kind.limit_key in limits:
        low, high = axes.get_ylim()
        level = kind.factor * limits[kind.limit_key]
        label = None if key in limits else "budget"
        axes.axhline(level, color="tab:green", linestyle="--", linewidth=1.2, label=label)
        low, high = min(low, level - 0.08 * (high - low)), max(high, level + 0.08 * (high - low))
        high += 0.08 * (high - low)  # room for the figure above the best model
        axes.set_ylim(low, min(high, 102) if kind.share else high)


def _draw_ring(axes: "Axes", models: Sequence[ModelFigures], shipped: str, key: str) -> None:
    for model in models:
        value, score = getattr(model, key).value, model.score.value
        if model.name == shipped and value is not None and score is not None:
            axes.plot(
                [value],
                [model.kinds[0].factor * score],
                "o",
                markersize=17,
                markerfacecolor="none",
                markeredgecolor="black",
                linestyle="none",
                label="shipped",
            )
