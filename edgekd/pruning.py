"""`prune`: a given network loses channels until it meets the limits. The stages are those of `distill`, without a
student."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.bench.instructions import require_counting
from edgekd.budget import Budget
from edgekd.candidate import Candidate
from edgekd.card import Card
from edgekd.console import say
from edgekd.data.arrays import digest
from edgekd.data.sources import data_marks
from edgekd.devices.device import Site
from edgekd.distill.identity import refuse_other_files, structure
from edgekd.distill.loop import parts_of
from edgekd.distill.pruned import check_pruning, distill_pruned
from edgekd.distill.tasks.known import learning_of
from edgekd.distill.teacher import validation_score
from edgekd.errors import BudgetError, ConfigError
from edgekd.export.onnx import quiet_export, refuse_free_shapes
from edgekd.export.trial import try_teacher
from edgekd.figures import metric_of
from edgekd.files import atomic
from edgekd.judge import Verdict, effective_budget, judge, show_limit
from edgekd.nets.deployed import Deployed, count_macs, count_params, example_inputs
from edgekd.nets.folding import folded
from edgekd.nets.teachers import LoadedTeacher, load_teacher_file, make_teacher_net
from edgekd.nets.weights import save_state
from edgekd.pipeline import TrainedStudent, conclude
from edgekd.planning import Request, Setup, TargetPlan, begin
from edgekd.result import Result
from edgekd.run import Run
from edgekd.search.candidates import Search
from edgekd.search.choose import BEFORE_TRAINING, before_training, meets_early
from edgekd.search.found import Found
from edgekd.search.pruning import fitting_ratio, measured
from edgekd.tasks.known import task_of

__all__ = ["Fits", "prune_network", "refuse_other_network"]


@dataclass(frozen=True)
class Fits:
    """The network misses no limit in every precision as it is, so that nothing is removed."""

    words: str
    verdict: Verdict
    """The verdict on the fp32 network, without training and without a score. A limit of which nothing is known yet is
    inconclusive."""


def prune_network(asked: Request, site: Site, run: Run) -> Result | Fits:
    """Remove the smallest share of channels with which the network, the teacher of the card, meets the limits on the
    target; let it learn from the whole network after each round, and export, measure and judge the result.

    `asked.teacher` is the file of its weights; without one, the network has the weights with which it is made. Raises
    ConfigError for a network that cannot be pruned, or without a limit to prune for, and BudgetError if no share is
    enough.
    """
    setup = _setup(asked, run)
    card, given = setup.card, setup.given
    assert given is not None and given.net is not None  # _setup loads a torch network
    budget = effective_budget(card.budget(site.target.name, asked.budget), site.target)
    if not any(budget.limit(key) for key in (*BEFORE_TRAINING, "latency_p95_ms")):
        known = ", ".join(f"--budget {key}=…" for key in BEFORE_TRAINING)
        raise ConfigError(f"{card.file}: there is no limit to prune for; give one of {known}")
    refuse_free_shapes(card, site.target)
    require_counting(budget, site)
    _check(setup, site, run)
    trial = begin(setup, site, run, budget)
    setup = dataclasses.replace(setup, given=_kept(setup, run))
    if not run.pruning.exists():  # it is written after this
        whole = measured(card, given.net, site, trial.inputs, trial.calibration, run, trial.instructions)
        if meets_early(whole, budget):
            shutil.rmtree(run.scratch, ignore_errors=True)
            return Fits(_limits(budget), judge(whole.precisions.get("fp32", {}), budget))
    return _prune(setup, trial, budget)


def refuse_other_network(card: Card, run: Run, folder: Path | None) -> None:
    """Raise ConfigError if the network, or the data in `folder`, of a finished run have changed since it began."""
    run.refuse_other_networks({"teacher": structure(make_teacher_net(card))})
    refuse_other_files(card, run, folder)


def _setup(asked: Request, run: Run) -> Setup:
    """Load the data and the network."""
    card, learning = asked.card, learning_of(asked.card.data)
    learning.require_test(card, asked.data)
    train, validation = learning.examine(card, asked.data)
    card = learning.settle(card, validation)
    given = _given(card, asked.teacher, run)
    assert given.net is not None  # the caller refuses ONNX files
    return Setup(
        asked=asked,
        card=card,
        given=given,
        start=None,
        further=[],
        train=train,
        validation=validation,
        digest=digest(train) + digest(validation),
        networks={"teacher": structure(given.net)},
        marks=data_marks(card, asked.data),
    )


def _limits(budget: Budget) -> str:
    limits = before_training(budget).limits()
    return ", ".join(f"{metric_of(key).limit_words} ≤ {show_limit(key, value)}" for key, value in limits.items())


def _prune(setup: Setup, trial: Search, budget: Budget) -> Result:
    card, given, run = setup.card, setup.given, trial.run
    assert given is not None and given.net is not None
    reached = validation_score(card, given, setup.examples[1])
    kind = task_of(card.data).scores[0]
    say(f"{given.file}: {kind.show(reached)} on {len(setup.validation)} validation {task_of(card.data).units}")
    ratio = fitting_ratio(card, given.net, trial.site, budget, trial.inputs, trial.calibration, run)
    if ratio is None:
        shutil.rmtree(run.scratch, ignore_errors=True)
        raise BudgetError(
            f"{given.file}: no share of the channels that can be removed meets {_limits(budget)}; nothing was trained; "
            "widen the limits"
        )
    net = folded(distill_pruned(card, [given], setup.examples, run, ratio, setup.asked.options), card.data)
    choice = Candidate(
        shape={"removed": f"{ratio:.0%} of the channels"},
        params=count_params(net),
        macs=count_macs(net, card.data),
        precisions={},
    )
    plan = TargetPlan(
        site=trial.site,
        run=run,
        budget=budget,
        inputs=trial.inputs,
        calibration=trial.calibration,
        trial=trial,
        found=Found([], []),
        choice=choice,
        pruning=ratio,
    )
    _write_program(net, card, run)
    result = conclude(setup, plan, TrainedStudent(card=card, net=net, teacher=given, name="pruned"))
    shutil.rmtree(run.scratch, ignore_errors=True)
    return result


def _write_program(net: nn.Module, card: Card, run: Run) -> None:
    """Write the network with its preprocessing as a program of torch.export, which torch.export.load reads without
    edgekd and without the network's own code."""
    free = {axis: torch.export.Dim(name) for axis, name in task_of(card.data).free.items()}
    path = run.exported / "pruned.pt2"
    if path.exists():
        return
    with quiet_export(), torch.no_grad():
        program = torch.export.export(
            Deployed(net, card.data).eval(), (example_inputs(card.data, 2),), dynamic_shapes=(free,)
        )
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


def _given(card: Card, weights: Path | None, run: Run) -> LoadedTeacher:
    """The network with its weights: those of the file, or those with which it was made when the run began."""
    path = weights or (run.teacher_weights if run.teacher_weights.exists() else None)
    if path:
        return load_teacher_file(card, path)
    return LoadedTeacher(Deployed(make_teacher_net(card), card.data).eval(), Path(card.file))


def _check(setup: Setup, site: Site, run: Run) -> None:
    """Raise every error of network, recipe and export that can be known before anything is measured."""
    card, given, examples = setup.card, setup.given, setup.examples[0]
    assert card.recipe.prune is not None
    check_pruning(card, given)
    tuned = dataclasses.replace(card, recipe=card.recipe.on_logits(card.recipe.prune))
    parts_of(f"{card.file}: recipe.prune", tuned.recipe, len(examples))
    if not run.exported.exists():
        some = setup.validation.read(np.arange(min(64, len(setup.validation))))
        try_teacher(given, card, site.target, some, run.scratch)


def _kept(setup: Setup, run: Run) -> LoadedTeacher:
    """The network as its file says; one without a file is written to the run first."""
    given = setup.given
    assert given is not None and given.net is not None
    if given.file != Path(setup.card.file):
        return given
    save_state(given.net, run.teacher_weights, {"card": setup.card.name})
    return load_teacher_file(setup.card, run.teacher_weights)
