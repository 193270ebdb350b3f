"""How much of the teacher must be pruned: the smallest ratio with which it meets the budget, found by measuring."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgekd.bench.measure import Subject, measure_speed
from edgekd.budget import Budget
from edgekd.candidate import Candidate
from edgekd.card import Card
from edgekd.console import say
from edgekd.devices.device import Site
from edgekd.errors import EdgekdError
from edgekd.export.onnx import export
from edgekd.export.ort import deployed_file
from edgekd.export.precisions import make_variant
from edgekd.export.untrained import unequal
from edgekd.figures import Figure
from edgekd.files import read_json, write_json
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.folding import folded
from edgekd.nets.pruning import prunable, pruned, widths_of
from edgekd.run import Run
from edgekd.search.candidates import EFFORT
from edgekd.search.choose import BEFORE_TRAINING, meets_early
from edgekd.search.estimate import with_estimates

__all__ = ["fitting_ratio", "measured"]

# History of the format of pruning.json:
# 1 - ratio (null if none fits); tried: ratio, and the candidate as in candidates.json
SCHEMA_VERSION = 1

STEPS = 16
"""The ratios that can be chosen are the multiples of 1 / STEPS."""


def fitting_ratio(
    card: Card,
    teacher: nn.Module,
    site: Site,
    budget: Budget,
    inputs: Path,
    calibration: NDArray[np.uint8] | None,
    run: Run,
) -> float | None:
    """The smallest share of the teacher's channels that must be removed to meet the early limits of `budget` (latency,
    size, memory) in one of the target's precisions; None if there is no such limit, or if no share is enough.

    Untrained networks are exported and measured on the target, by bisection: their figures do not depend on the
    weights. The result is kept in `run.pruning`.
    """
    assert card.recipe.prune is not None
    known = _kept(run)
    if known is not None:
        return known["ratio"] or None
    if not any(budget.limit(key) for key in (*BEFORE_TRAINING, "latency_p95_ms")):
        say("pruning: the budget limits neither latency nor size, so no channel is removed")
        return None
    net, tried = unequal(prunable(teacher)), list[dict[str, Any]]()
    sizes, low, high = widths_of(net), 0, STEPS  # low is not enough (or not tried), high is enough (or not tried)
    while high - low > 1:
        step = (low + high) // 2
        smaller = pruned(net, card.data, sizes, step / STEPS, multiple=card.recipe.prune.multiple)
        counted = budget.limit("instructions_m") is not None
        found = measured(card, smaller, site, inputs, calibration, run, counted)
        enough = meets_early(found, budget)
        tried.append({"ratio": step / STEPS, "enough": enough, **dataclasses.asdict(found)})
        low, high = (low, step) if enough else (step, high)
    ratio = high / STEPS if high < STEPS else None
    write_json(run.pruning, {"schema_version": SCHEMA_VERSION, "ratio": ratio, "tried": tried})
    say(
        f"pruning: {ratio:.0%} of the channels must be removed to meet the budget"
        if ratio
        else "pruning: the budget is not met however many channels are removed, so none is"
    )
    return ratio


def _kept(run: Run) -> dict[str, Any] | None:
    """What an earlier call wrote; None if there is nothing, or if it cannot be read, which is told."""
    if not run.pruning.exists():
        return None
    try:
        content = read_json(run.pruning)
        ratio = content["ratio"]
        if ratio is None or (isinstance(ratio, float) and 0 < ratio < 1):
            return dict(content)
    except (EdgekdError, LookupError, TypeError, ValueError):
        pass
    say(f"{run.pruning}: is damaged; what must be pruned is measured again")
    return None


def measured(
    card: Card,
    net: nn.Module,
    site: Site,
    inputs: Path,
    calibration: NDArray[np.uint8] | None,
    run: Run,
    counted: bool = False,
) -> Candidate:
    """The network as a candidate, exported and measured in every precision of the target; its weights do not matter.
    Instructions are counted if `counted`.
    """
    fp32 = run.scratch / "pruned-fp32.onnx"
    net = folded(net.eval(), card.data)
    export(net, card, site.target, fp32, {"trained": "no"})
    params, macs = count_params(net), count_macs(net, card.data)
    subjects = []
    for precision in site.target.precisions:
        file = run.scratch / f"pruned-{precision}.onnx"
        if precision != "fp32":
            make_variant(fp32, precision, site.target, calibration, file)
        file = deployed_file(file, site.target)
        subjects.append(Subject(name=precision, file=file, precision=precision, params=params, macs=macs))
    effort = dataclasses.replace(EFFORT, instructions="always" if counted else "never")
    figures = with_estimates(measure_speed(subjects, site, inputs, None, effort), subjects, site)
    precisions: dict[str, dict[str, Figure]] = {
        model.precision: {key: getattr(model, key) for key in BEFORE_TRAINING} for model in figures
    }
    return Candidate(shape={}, params=params, macs=macs, precisions=precisions)
