"""A third task: how a number is predicted from ten features, on the diabetes data that come with scikit-learn."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.scores import ScoreKind
from edgekd.tasks.task import Normalization, Task

FEATURES, SPREAD = 10, 0.0476
"""Number of features, and their standard deviation; their mean is 0."""


@dataclass(frozen=True, kw_only=True)
class Diabetes:
    """The card's `[data]`."""

    source: Literal["diabetes"]
    path: str = ""
    target: str = "disease progression after a year"


def problem_of(targets: NDArray[Any]) -> str:
    """Describe why an array cannot hold one number for each example."""
    fits = targets.ndim == 1 and targets.dtype.kind in "fiu" and len(targets) > 0
    return "" if fits else f"labels should be one number for each input, got {targets.dtype} {list(targets.shape)}"


def errors(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """The absolute error of each example."""
    return np.asarray(np.abs(outputs[:, 0].astype(np.float64) - targets))


def scores(outputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Mean absolute error, and the share of the variance that is explained."""
    missed = errors(outputs, targets)
    return {"mae": float(missed.mean()), "r2": float(1 - (missed**2).mean() / targets.var())}


REGRESSION = Task(
    name="regression",
    unit="patient",
    units="patients",
    data=Diabetes,
    augment=frozenset(),
    problem=lambda data, augment: "",
    embedded=frozenset({"diabetes"}),
    input="features",
    free={0: "batch"},
    calibration="static",
    outputs=lambda data: 1,
    targets=lambda data: data.target,
    example=lambda data, count: np.zeros((count, FEATURES), np.float32),
    takes=lambda data: f"{FEATURES} features",
    sizes=lambda data: (FEATURES,),
    normalization=lambda data: Normalization(
        mean=(0.0,) * FEATURES, std=(SPREAD,) * FEATURES, top=1, channels_last=False
    ),
    describe=lambda data: {"input": "float32 (batch, 10), as scikit-learn scales them"},
    calls=lambda inputs: [inputs],
    read=lambda raw: raw.reshape(len(raw), -1),
    targets_problem=problem_of,
    fit_problem=lambda outputs, targets, model: "" if outputs.shape[1] == 1 else f"{model} gives more than one number",
    scores=(
        ScoreKind(name="mae", words="mean absolute error", short="MAE", better="lower", unit="points", tolerance=2.0),
        ScoreKind(name="r2", words="explained variance", unit=""),
    ),
    score=scores,
    each=errors,
    paired="bootstrap",
)
