"""Settle the int8 file of a run: how it is quantised, and which layers stay in float. This module needs no torch."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from edgekd.budget import Budget
from edgekd.console import say
from edgekd.external import copy_model, file_digest
from edgekd.files import read_json, write_json
from edgekd.scratch import scratch
from edgekd.search.layers import Fallback, fall_back
from edgekd.search.material import Material, figures_of, write_int8
from edgekd.search.schemes import Choice, choose_gentler, choose_reaching, choose_scheme
from edgekd.target import Quantization

__all__ = ["follow", "keep_accuracy", "score_floor", "settle_int8"]

# student-int8.json history:
# 1 - sha256 of the int8 file, why, reduce_range, trials, failed, fallback
# 2 - also fp32_sha256, scheme, in_float: the int8 file can be made again from these without a measurement
SCHEMA_VERSION = 2
TO_TRY = ("schemes", "calibrations", "forms", "corrections")
"""Settings of `Quantization` that say what may be tried, and nothing about the file that is chosen."""


def score_floor(budget: Budget, fp32: float, teacher: float | None) -> float | None:
    """The validation score that int8 needs; None if the budget asks for none, or if fp32 itself misses it.

    Scores are given so that higher is better: one whose lower values are better is negative here. `teacher` is None if
    the teacher may have been trained on the validation data. The drop that the budget allows is then counted from the
    fp32 student.
    """
    kind = budget.kind
    minimum, drop = budget.limit(kind.limit_key), budget.limit(kind.change_key)
    floors = [] if minimum is None else [minimum if kind.better == "higher" else -minimum]
    if drop is not None:
        floors.append((fp32 if teacher is None else teacher) - (drop / 100 if kind.share else drop))
    return max(floors) if floors and max(floors) <= fp32 else None


def settle_int8(material: Material, file: Path, budget: Budget, teacher: float | None) -> dict[str, Any]:
    """Choose a scheme by measuring, return layers to float if the budget asks for it, and write the int8 `file`.

    The decision, with what was tried and measured, is returned and kept beside `file`. It is written before `file` is:
    after a kill at any moment, a later call makes the same file, because it does not measure again.
    """
    record = file.with_suffix(".json")
    known = _known(record, material.fp32)
    if known and file.exists() and file_digest(file) == known["sha256"]:
        return known
    shutil.rmtree(material.folder, ignore_errors=True)
    material.folder.mkdir(parents=True)
    chosen, decision = _made(material, known) if known else _decided(material, budget, teacher)
    content = {"schema_version": SCHEMA_VERSION, "sha256": file_digest(chosen), **decision}
    write_json(record, content)
    copy_model(chosen, file)
    shutil.rmtree(material.folder, ignore_errors=True)
    return content


def follow(settled: dict[str, Any], material: Material, fp32: Path, file: Path) -> None:
    """Quantise another network of the run, `fp32`, by the scheme that was settled for the student, and write `file`."""
    if "scheme" in settled:  # a record of version 1 keeps no scheme
        with scratch() as folder:
            other = dataclasses.replace(material, fp32=fp32, folder=folder)
            write_int8(other, Quantization(**settled["scheme"]), file)


def keep_accuracy(
    material: Material, choice: Choice, floor: float, limit_s: float = 300.0
) -> tuple[Choice, Fallback | None]:
    """Find what keeps the score of at least `floor`, which the best scheme misses: another scheme that was tried; a few
    layers in float; or, if these are not enough or save no time, a scheme that keeps more of the activations. The
    reasons are printed."""
    fallback, first = None, choice
    choice = choose_reaching(first, floor, material.task)
    if choice is not first:
        say(f"int8: {choice.why}")
        return choice, None
    if choice.best.scheme.activation != "float" and material.calibration is not None:
        fallback = fall_back(material, choice.best.scheme, floor, limit_s)
        say(f"int8: {fallback.why}")
    if not (fallback and fallback.enough):
        before = choice
        choice = choose_gentler(material, before, floor)
        if choice.why != before.why:
            say(f"int8: {choice.why.removeprefix(before.why).lstrip('; ')}")
    return choice, fallback


def _known(record: Path, fp32: Path) -> dict[str, Any] | None:
    """The decision that was kept for this fp32 file; None if there is none, or one of an edgekd that kept too little
    to make the int8 file again and whose file differs."""
    if not record.exists():
        return None
    kept: dict[str, Any] = read_json(record)
    if "scheme" in kept:
        return kept if kept["fp32_sha256"] == file_digest(fp32) else None
    int8 = record.with_suffix(".onnx")
    return kept if int8.exists() and file_digest(int8) == kept["sha256"] else None


def _made(material: Material, decision: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Make the int8 file of a kept decision again."""
    file = material.folder / "again.onnx"
    write_int8(material, Quantization(**decision["scheme"]), file, decision["in_float"])
    say(f"int8: {decision['why']} (as chosen before)")
    return file, {key: value for key, value in decision.items() if key not in ("schema_version", "sha256")}


def _decided(material: Material, budget: Budget, teacher: float | None) -> tuple[Path, dict[str, Any]]:
    """Measure and decide: the chosen file in the folder of the trials, and the decision as it is kept."""
    choice = choose_scheme(material)
    say(f"int8: {choice.why}")
    chosen, scheme, in_float = choice.best.file, choice.best.scheme, tuple[str, ...]()
    fp32 = float(figures_of(material.fp32, material).mean())
    floor = score_floor(budget, fp32, teacher)
    fallback: Fallback | None = None
    if floor is not None and choice.best.score < floor:
        choice, fallback = keep_accuracy(material, choice, floor)
        chosen, scheme = choice.best.file, choice.best.scheme
        if fallback and fallback.enough:
            chosen, scheme, in_float = fallback.file, fallback.scheme, fallback.nodes
    return chosen, {
        "fp32_sha256": file_digest(material.fp32),
        "why": choice.why,
        "scheme": {key: value for key, value in dataclasses.asdict(scheme).items() if key not in TO_TRY},
        "in_float": list(in_float),
        "reduce_range": scheme.reduce_range,
        "trials": [trial.as_json() for trial in choice.trials],
        "failed": choice.failed,
        "fallback": fallback.as_json() if fallback else None,
    }
