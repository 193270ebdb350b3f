"""The size/latency/accuracy picture of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.figures import ModelFigures
from edgekd.run import atomic
from edgekd.search.candidates import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_run"]


def plot_run(models: Sequence[ModelFigures], candidates: Sequence[Candidate], title: str, path: Path) -> None:
    """Accuracy against size, and against latency where it is known, as PNG.

    Candidates that were not trained have no accuracy: they are ticks on the lower edge.
    """
    from matplotlib.figure import Figure as Canvas  # no pyplot: no window system, no global state

    timed = any(model.latency_p50_ms.value is not None for model in models)
    canvas = Canvas(figsize=(11 if timed else 6, 4.5), layout="constrained")
    axes = canvas.subplots(1, 2 if timed else 1, squeeze=False)[0]
    canvas.suptitle(title)
    _draw(axes[0], models, candidates, "size_kb", "file size, kB")
    if timed:
        _draw(axes[1], models, candidates, "latency_p50_ms", "latency p50, ms")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=130)


def _draw(axes: "Axes", models: Sequence[ModelFigures], candidates: Sequence[Candidate], key: str, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for model, marker in zip(models, "sovD^P", strict=False):
        figure, top1 = getattr(model, key), model.accuracy.value
        if figure.value is None or top1 is None:
            continue
        axes.plot([figure.value], [100 * top1], marker, markersize=9, label=model.name, linestyle="none")
        axes.annotate(
            f"{100 * top1:.2f} %",
            (figure.value, 100 * top1),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
        )
    shown = False
    for candidate in candidates:
        for figures in candidate.precisions.values():
            if (value := figures[key].value) is not None:
                axes.plot(
                    [value],
                    [0.02],
                    "|",
                    color="0.5",
                    transform=axes.get_xaxis_transform(),
                    markersize=12,
                    label=None if shown else "candidates, untrained",
                )
                shown = True
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("top-1 accuracy on test data, %")
    axes.margins(x=0.2, y=0.35)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))  # accuracy ends at 100 %
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="best", fontsize="small")
