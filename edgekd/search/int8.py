"""Settle the int8 file of a run: how it is quantised, and which layers stay in float. This module needs no torch."""

import shutil
from pathlib import Path
from typing import Any

from edgekd.budget import Budget
from edgekd.console import say
from edgekd.files import atomic, file_sha256, read_json, write_json
from edgekd.search.layers import fall_back
from edgekd.search.schemes import Material, choose_scheme, figures_of

__all__ = ["score_floor", "settle_int8"]

# student-int8.json history:
# 1 - sha256 of the int8 file, why, reduce_range, trials, failed, fallback
SCHEMA_VERSION = 1


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

    What was tried is returned, and kept beside `file`, where a later call finds it.
    """
    record = file.with_suffix(".json")
    if record.exists() and file.exists():
        kept: dict[str, Any] = read_json(record)
        if kept.get("sha256") == file_sha256(file):
            return kept
    shutil.rmtree(material.folder, ignore_errors=True)
    material.folder.mkdir(parents=True)
    choice = choose_scheme(material)
    say(f"int8: {choice.why}")
    chosen = choice.best.file
    fp32 = float(figures_of(material.fp32, material).mean())
    floor = score_floor(budget, fp32, teacher)
    fallback = None
    if floor is not None and choice.best.score < floor:
        fallback = fall_back(material, choice.best.scheme, floor)
        say(f"int8: {fallback.why}")
        chosen = fallback.file if fallback.enough else chosen
    with atomic(file) as temporary:
        shutil.copyfile(chosen, temporary)
    content = {
        "schema_version": SCHEMA_VERSION,
        "sha256": file_sha256(file),
        "why": choice.why,
        "reduce_range": choice.best.scheme.reduce_range,
        "trials": [trial.as_json() for trial in choice.trials],
        "failed": choice.failed,
        "fallback": fallback.as_json() if fallback else None,
    }
    write_json(record, content)
    shutil.rmtree(material.folder, ignore_errors=True)
    return content
