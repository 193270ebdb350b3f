"""Measure before training: export, quantise and time untrained candidates on the target, and predict the rest."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Candidate, Score, Shape, shape_name
from edgekd.card import Card
from edgekd.console import progress, say
from edgekd.data.examples import Examples
from edgekd.devices.device import Site
from edgekd.distill.student import check_student
from edgekd.errors import ConfigError, EdgekdError, InputError, ModelError
from edgekd.export.untrained import export_untrained, unequal, write_precisions
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, write_json
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make, make_shapes
from edgekd.nets.folding import folded
from edgekd.run import Run
from edgekd.search.estimate import with_estimates
from edgekd.search.features import Counts, count
from edgekd.search.latency import MIN_MEASURED
from edgekd.search.predict import Fitted, predict, spread_out

__all__ = ["Found", "LeftOut", "Search", "add_score", "measure_candidates", "measure_shape"]

# History of the format of candidates.json:
# 1 - shape, params, macs, and per precision size_bytes, latency_p50_ms, peak_memory_mb
# 2 - left_out: shape and reason of each candidate that cannot be used
# 3 - candidates may be predicted; fitted: how well their figures are predicted; scores: of short distillations
#     instructions_m per precision
SCHEMA_VERSION = 3

EFFORT = Effort(processes=2, min_processes=2, warmup_s=0.05, max_calls=300, max_s=0.15, budget_s=4.0, placement=False)
"""The effort for one candidate. It is small, because a ranking needs less certainty than a verdict."""

MEASURED = 40
"""If there are more shapes, this many are measured and the figures of the others predicted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """The card, data and device with which every candidate is tried."""

    card: Card
    site: Site
    examples: Examples
    """Training examples; each shape is first tried on two of them."""
    inputs: Path
    """Real images or sentences (.npy) for the timing."""
    calibration: NDArray[np.uint8] | None
    """Images (n, H, W, C) for int8, of which a few are used."""
    memory: bool
    """Whether peak memory is measured, which costs a process for each file."""
    instructions: bool = False
    """Whether instructions are counted, which also costs a process for each file."""
    run: Run


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A shape that cannot be used, and the reason."""

    shape: Shape
    reason: str


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of a search so far: measured and predicted candidates, and those that cannot be used."""

    candidates: list[Candidate]
    left_out: list[LeftOut]
    fitted: list[Fitted] = dataclasses.field(default_factory=list)
    """How well each figure is predicted; empty if all candidates are measured."""
    scores: list[Score] = dataclasses.field(default_factory=list)
    """What candidates learnt in short distillations."""

    @property
    def measured(self) -> list[Candidate]:
        """The candidates that are not predicted."""
        return [candidate for candidate in self.candidates if not candidate.predicted]


def measure_candidates(search: Search) -> Found:
    """Measure the shapes of the card's student untrained, and write each one to `run.candidates` at once. If there are
    more than MEASURED, so many are measured that represent all, and the figures of the others are predicted.

    A shape that cannot be built, trained or exported is left out; the reason is printed and written. Candidates that
    are already in `run.candidates` are not measured again; those that were left out are tried again until a training
    has begun. Raises ConfigError if no candidate is left.
    """
    card, run = search.card, search.run
    shapes = make_shapes(card, card.student)
    done, left_out, scores = _read(run.candidates)
    if not run.student_weights.parent.exists():
        left_out = []
    shapes, counts = _counted(card, shapes, left_out)
    wanted = [shapes[place] for place in spread_out(shapes, counts, MEASURED)] if counts else shapes
    with progress() as bar:
        for shape in bar.track(wanted, description="measuring candidates"):
            if shape not in [one.shape for one in done] + [one.shape for one in left_out]:
                _try(search, shape, done, left_out, alone=len(shapes) == 1)
                _write(search, Found(done, left_out, scores=scores))
    shutil.rmtree(run.scratch, ignore_errors=True)
    if not done:
        raise ConfigError(_none_left(card, left_out))
    found = _with_predictions(Found(done, left_out, scores=scores), shapes, counts, wanted)
    _write(search, found)
    return found


def measure_shape(search: Search, found: Found, shape: Shape) -> Found:
    """Measure a candidate that is only predicted, and replace it; it is left out if it cannot be used."""
    done: list[Candidate] = []
    left_out = list(found.left_out)
    _try(search, shape, done, left_out, alone=False)
    shutil.rmtree(search.run.scratch, ignore_errors=True)
    others = [one for one in found.candidates if one.shape != shape]
    found = Found([*done, *others], left_out, found.fitted, found.scores)
    _write(search, found)
    return found


def add_score(search: Search, found: Found, score: Score) -> Found:
    """Add a score and write it to `run.candidates` at once."""
    found = dataclasses.replace(found, scores=[*found.scores, score])
    _write(search, found)
    return found


def _try(search: Search, shape: Shape, done: list[Candidate], left_out: list[LeftOut], alone: bool) -> None:
    """Measure one shape and add it to `done`, or to `left_out` with the reason."""
    try:
        subjects = _prepare(search, shape)
    except (ConfigError, InputError, ModelError) as error:
        left_out.append(LeftOut(shape, _reason(error, search.card, shape)))
        if not alone:
            say(f"search: {shape_name(shape)} is left out: {left_out[-1].reason}")
    else:
        done.append(_measure(shape, subjects, search))


def _counted(card: Card, shapes: list[Shape], left_out: list[LeftOut]) -> tuple[list[Shape], list[Counts]]:
    """The shapes that can be built, and the sums over the layers of each, if there are more than MEASURED; the sums are
    empty if all shapes are to be measured."""
    if len(shapes) <= MEASURED:
        return shapes, []
    known = {shape_name(one.shape) for one in left_out}
    kept: list[Shape] = []
    counts: list[Counts] = []
    with progress() as bar:
        for shape in bar.track(shapes, description="counting candidates"):
            try:
                counts.append(count(card, shape))
            except ConfigError as error:
                if shape_name(shape) in known:
                    continue
                left_out.append(LeftOut(shape, _reason(error, card, shape)))
                say(f"search: {shape_name(shape)} is left out: {left_out[-1].reason}")
            except (RuntimeError, NotImplementedError, ValueError):  # it has no form without values
                say("search: figures of this family cannot be predicted, so all shapes are measured")
                return shapes, []
            else:
                kept.append(shape)
    return kept, counts


def _with_predictions(
    found: Found, shapes: Sequence[Shape], counts: Sequence[Counts], wanted: Sequence[Shape]
) -> Found:
    """Add the shapes that were not measured, with the figures that the measured ones of `wanted` make likely.

    Others that were measured later do not count, so that a run that is continued predicts what it predicted before.
    """
    by_name = {shape_name(shape): one for shape, one in zip(shapes, counts, strict=bool(counts))} if counts else {}
    chosen = {shape_name(shape) for shape in wanted}
    known = [
        (candidate, by_name[candidate.name])
        for candidate in found.candidates
        if candidate.name in chosen and candidate.name in by_name
    ]
    taken = {candidate.name for candidate in found.candidates} | {shape_name(one.shape) for one in found.left_out}
    rest = [shape for shape in shapes if shape_name(shape) not in taken] if counts else []
    if not rest or len(known) < MIN_MEASURED:
        return found
    predicted, fitted = predict(
        [candidate for candidate, _ in known],
        [one for _, one in known],
        rest,
        [by_name[shape_name(shape)] for shape in rest],
    )
    for one in fitted:
        if one.key == "latency_p50_ms":
            say(
                f"search: {len(known)} of {len(shapes):,} shapes are measured; {one.precision} latency is predicted "
                f"within {100 * one.error_95:.2g} % for 95 % of shapes, median error {100 * one.median_error:.2g} %"
            )
    return Found([*found.candidates, *predicted], found.left_out, fitted, found.scores)


def _reason(error: EdgekdError, card: Card, shape: Shape) -> str:
    """Remove from the error message what the line about the candidate already says."""
    text = str(error).removeprefix(f"{card.file}: ")
    for start in (f"student: {shape_name(shape)}: ", "student: ", "student.knobs: "):
        text = text.removeprefix(start)
    return text


def _none_left(card: Card, left_out: list[LeftOut]) -> str:
    first = left_out[0]
    many = f"none of the {len(left_out)} candidates can be used; " if len(left_out) > 1 else ""
    named = f"{shape_name(first.shape)}: " if first.shape else ""
    return f"{card.file}: student: {many}{named}{first.reason}"


def _prepare(search: Search, shape: Shape) -> list[Subject]:
    """Export an untrained student of that shape in each precision of the target, and try it on a few inputs."""
    card, target = search.card, search.site.target
    check_student(card, shape, search.examples)
    torch.manual_seed(card.recipe.seed)
    net = folded(unequal(make(card, card.student, shape, "student.knobs")).eval(), card.data)
    fp32 = search.run.scratch / "candidate.onnx"
    export_untrained(net, card, target, np.load(search.inputs, mmap_mode="r")[:2], fp32)
    params, macs = count_params(net), count_macs(net, card.data)
    return [
        Subject(name=precision, file=file, precision=precision, params=params, macs=macs)
        for precision, file in write_precisions(fp32, target, search.calibration).items()
    ]


def _measure(shape: Shape, subjects: list[Subject], search: Search) -> Candidate:
    counted: Literal["always", "never"] = "always" if search.instructions else "never"
    effort = dataclasses.replace(EFFORT, memory=search.memory, instructions=counted)
    figures = with_estimates(measure_speed(subjects, search.site, search.inputs, None, effort), subjects, search.site)
    params, macs = subjects[0].params, subjects[0].macs
    assert params is not None and macs is not None  # _prepare counts them
    return Candidate(
        shape=shape,
        params=params,
        macs=macs,
        precisions={model.precision: _budgeted(model) for model in figures},
    )


def _budgeted(model: ModelFigures) -> dict[str, Figure]:
    return {
        "latency_p50_ms": model.latency_p50_ms,
        "size_kb": model.size_kb,
        "peak_memory_mb": model.peak_memory_mb,
        "instructions_m": model.instructions_m,
    }


def _write(search: Search, found: Found) -> None:
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": search.site.target.name,
        "candidates": [dataclasses.asdict(candidate) for candidate in found.candidates],
        "left_out": [dataclasses.asdict(one) for one in found.left_out],
        "fitted": [dataclasses.asdict(one) for one in found.fitted],
        "scores": [dataclasses.asdict(one) for one in found.scores],
    }
    write_json(search.run.candidates, content)


def _read(path: Path) -> tuple[list[Candidate], list[LeftOut], list[Score]]:
    """The measured candidates, those left out and the scores, as far as an earlier call got."""
    if not path.exists():
        return [], [], []
    content = read_json(path)
    left_out = [LeftOut(entry["shape"], entry["reason"]) for entry in content.get("left_out", [])]
    candidates = [
        Candidate(
            shape=entry["shape"],
            params=entry["params"],
            macs=entry["macs"],
            precisions={
                precision: {key: Figure(**figure) for key, figure in figures.items()}
                for precision, figures in entry["precisions"].items()
            },
        )
        for entry in content["candidates"]
        if not entry.get("predicted")
    ]
    return candidates, left_out, [Score(**entry) for entry in content.get("scores", [])]
