"""Measure before training: export, quantise and time untrained candidates on the target, and predict the rest."""

import dataclasses
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.bench.measure import Subject, measure_speed
from edgekd.bench.records import Effort
from edgekd.candidate import Candidate, Score, Shape, shape_name
from edgekd.card import Card
from edgekd.console import progress, say
from edgekd.data.examples import Examples
from edgekd.devices.bundle import Brought
from edgekd.devices.device import Site
from edgekd.distill.compatibility import check_student
from edgekd.errors import ConfigError, EdgekdError, InputError, ModelError
from edgekd.export.untrained import export_untrained, unequal, write_precisions
from edgekd.figures import Figure, ModelFigures
from edgekd.nets.deployed import count_macs, count_params
from edgekd.nets.families import make, make_shapes
from edgekd.nets.folding import folded
from edgekd.run import Run
from edgekd.search.estimate import with_estimates
from edgekd.search.features import Counts, count
from edgekd.search.found import Found, LeftOut, read_found, write_found
from edgekd.search.latency import MIN_MEASURED
from edgekd.search.predict import predict, spread_out
from edgekd.search.sharing import Anchor, each_takes

__all__ = [
    "MEASURED",
    "Search",
    "add_score",
    "effort_of",
    "measure_candidates",
    "measure_shape",
    "usable",
]

EFFORT = Effort(processes=2, min_processes=2, warmup_s=0.05, max_calls=300, max_s=0.15, budget_s=4.0, placement=False)
"""The effort for one candidate. It is small, because a ranking needs less certainty than a verdict."""

CERTAIN = dataclasses.replace(EFFORT, processes=8, min_processes=5, max_s=0.3, budget_s=15.0)
"""The effort for a candidate of which the first measurement does not tell whether it meets the limit."""

ANCHORING = 5
"""The number of processes in which each device times the anchor, on which all scaled times depend."""

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


def measure_candidates(search: Search) -> Found:
    """Measure the shapes of the card's student untrained, and write each one to `run.candidates` at once. If there are
    more than MEASURED, so many are measured that represent all, and the figures of the others are predicted.

    A shape that cannot be built, trained or exported is left out; the reason is printed and written. Candidates that
    are already in `run.candidates` are not measured again; those that were left out are tried again until a training
    has begun. Times that were brought by hand replace all others, and are written when they are complete. Raises
    ConfigError if no candidate is left.
    """
    card, run = search.card, search.run
    shapes = make_shapes(card, card.student)
    found = read_found(run.candidates)
    if not run.student_weights.parent.exists():
        found.left_out.clear()
    if isinstance(search.site.device, Brought):
        found = Found([], [], scores=found.scores)
    shapes, counts = _counted(card, shapes, found.left_out)
    wanted = [shapes[place] for place in spread_out(shapes, counts, MEASURED)] if counts else shapes
    found = _measure_missing(search, found, wanted, alone=len(shapes) == 1)
    shutil.rmtree(run.scratch, ignore_errors=True)
    if not found.candidates:
        raise ConfigError(_none_left(card, found.left_out))
    found = _with_predictions(found, shapes, counts, wanted)
    _write(search, found)
    return found


def _measure_missing(search: Search, found: Found, wanted: Sequence[Shape], alone: bool) -> Found:
    """Measure those of the wanted shapes that are neither measured nor left out."""
    known = [one.shape for one in found.candidates] + [one.shape for one in found.left_out]
    missing = [shape for shape in wanted if shape not in known]
    if search.site.more and (anchor := _anchor(search, missing)):
        return _share(search, dataclasses.replace(found, anchor=anchor), missing, wanted)
    with progress() as bar:
        for shape in bar.track(missing, description="measuring candidates"):
            _try(search, shape, found.candidates, found.left_out, alone)
            if not isinstance(search.site.device, Brought):
                _write(search, found)
    return found


def _anchor(search: Search, shapes: Sequence[Shape]) -> Anchor | None:
    """Let each device time the first shape that can be used; None if there is none."""
    for shape in shapes:
        try:
            subjects = _prepare(search, shape, "anchor")
        except (ConfigError, InputError, ModelError):
            continue  # it is left out, with its reason, when it is measured
        effort = dataclasses.replace(EFFORT, processes=ANCHORING, min_processes=ANCHORING, budget_s=60.0)
        times: dict[str, dict[str, Figure]] = {}
        for site in search.site.all:
            figures = measure_speed(subjects, site, search.inputs, None, effort)
            times[site.place] = {model.precision: model.latency_p50_ms for model in figures}
        anchor = Anchor(shape, times)
        say(f"search: {len(times)} devices share {len(shapes)} candidates; {anchor.told()}")
        return anchor
    return None


def _share(search: Search, found: Found, missing: Sequence[Shape], wanted: Sequence[Shape]) -> Found:
    """Measure the missing shapes on all devices at the same time, and scale the times of the further ones."""
    anchor, one_at_a_time = found.anchor, threading.Lock()
    assert anchor is not None
    with progress() as bar:
        task = bar.add_task(f"measuring candidates on {len(anchor.times)} devices", total=len(missing))

        def work(site: Site, shape: Shape) -> None:
            here = dataclasses.replace(search, site=site)
            with one_at_a_time:  # torch makes one file after the other
                place = list(anchor.times).index(site.place)
                subjects = usable(here, shape, found.left_out, False, f"candidate-{place}")
            candidate = subjects and _scaled(_measure(shape, subjects, here), anchor, site.place)
            with one_at_a_time:
                found.candidates.extend([candidate] if candidate else [])
                _write(search, found)
            bar.advance(task)

        try:
            each_takes(search.site.all, missing, work)
        finally:
            for site in search.site.more:  # others may use these devices while the student is trained
                site.close()
    counts = {place: sum((one.timed_on or anchor.own) == place for one in found.candidates) for place in anchor.times}
    say("search: candidates by device: " + ", ".join(f"{place} {count}" for place, count in counts.items()))
    found.candidates.sort(key=lambda one: wanted.index(one.shape) if one.shape in wanted else len(wanted))
    return found


def _scaled(candidate: Candidate, anchor: Anchor, place: str) -> Candidate:
    if place == anchor.own:
        return candidate
    precisions = {name: anchor.scaled(figures, place, name) for name, figures in candidate.precisions.items()}
    return dataclasses.replace(candidate, precisions=precisions, timed_on=place)


def measure_shape(search: Search, found: Found, shape: Shape, again: bool = False) -> Found:
    """Measure a candidate that is predicted, or that another device timed, on the run's own device, and replace it; it
    is left out if it cannot be used. `again`: it was measured there, and is measured with more processes."""
    done: list[Candidate] = []
    left_out = list(found.left_out)
    before = next((one for one in found.candidates if one.shape == shape and not one.predicted), None)
    try:
        _try(search, shape, done, left_out, alone=False, again=again)
    except ModelError as error:
        if not again or before is None:
            raise
        say(f"search: the first figures of {shape_name(shape)} count, because a second measurement failed: {error}")
        done = [dataclasses.replace(before, checked=True)]
    shutil.rmtree(search.run.scratch, ignore_errors=True)
    others = [one for one in found.candidates if one.shape != shape]
    if before is not None:
        done = [dataclasses.replace(one, shared=before.shared or before.precisions) for one in done]
    found = dataclasses.replace(found, candidates=[*done, *others], left_out=left_out)
    _write(search, found)
    return found


def add_score(search: Search, found: Found, score: Score) -> Found:
    """Add a score and write it to `run.candidates` at once."""
    found = dataclasses.replace(found, scores=[*found.scores, score])
    _write(search, found)
    return found


def _try(
    search: Search, shape: Shape, done: list[Candidate], left_out: list[LeftOut], alone: bool, again: bool = False
) -> None:
    """Measure one shape and add it to `done`, or to `left_out` with the reason."""
    subjects = usable(search, shape, left_out, alone, "candidate")
    if subjects:
        done.append(_measure(shape, subjects, search, again))


def usable(search: Search, shape: Shape, left_out: list[LeftOut], alone: bool, name: str) -> list[Subject]:
    """The files of one shape; none if it cannot be used, which is then added to `left_out` with the reason."""
    try:
        return _prepare(search, shape, name)
    except (ConfigError, InputError, ModelError) as error:
        left_out.append(LeftOut(shape, _reason(error, search.card, shape)))
        if not alone:
            say(f"search: {shape_name(shape)} is left out: {left_out[-1].reason}")
        return []


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
        (dataclasses.replace(candidate, precisions=candidate.shared or candidate.precisions), by_name[candidate.name])
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
    return dataclasses.replace(found, candidates=[*found.candidates, *predicted], fitted=fitted)


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


def _prepare(search: Search, shape: Shape, name: str) -> list[Subject]:
    """Export an untrained student of that shape in each precision of the target, to files whose names begin with
    `name`, and try it on a few inputs."""
    card, target = search.card, search.site.target
    check_student(card, shape, search.examples)
    torch.manual_seed(card.recipe.seed)
    net = folded(unequal(make(card, card.student, shape, "student.knobs")).eval(), card.data)
    fp32 = search.run.scratch / f"{name}.onnx"
    export_untrained(net, card, target, np.load(search.inputs, mmap_mode="r")[:2], fp32)
    params, macs = count_params(net), count_macs(net, card.data)
    return [
        Subject(name=precision, file=file, precision=precision, params=params, macs=macs)
        for precision, file in write_precisions(fp32, target, search.calibration).items()
    ]


def effort_of(search: Search, again: bool = False) -> Effort:
    """The effort for one candidate of this search."""
    counted: Literal["always", "never"] = "always" if search.instructions else "never"
    return dataclasses.replace(CERTAIN if again else EFFORT, memory=search.memory, instructions=counted)


def _measure(shape: Shape, subjects: list[Subject], search: Search, again: bool = False) -> Candidate:
    figures = measure_speed(subjects, search.site, search.inputs, None, effort_of(search, again))
    figures = with_estimates(figures, subjects, search.site)
    params, macs = subjects[0].params, subjects[0].macs
    assert params is not None and macs is not None  # _prepare counts them
    return Candidate(
        shape=shape,
        params=params,
        macs=macs,
        precisions={model.precision: _budgeted(model) for model in figures},
        brought=search.site.device.source if isinstance(search.site.device, Brought) else "",
        checked=again,
    )


def _budgeted(model: ModelFigures) -> dict[str, Figure]:
    return {
        "latency_p50_ms": model.latency_p50_ms,
        "size_kb": model.size_kb,
        "peak_memory_mb": model.peak_memory_mb,
        "instructions_m": model.instructions_m,
    }


def _write(search: Search, found: Found) -> None:
    write_found(search.run.candidates, found, search.site.target.name)
