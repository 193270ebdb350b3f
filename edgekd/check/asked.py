"""What is asked of a check: plain data, read from the command line, a manifest or a test."""

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.bench.records import Effort, Feeding
from edgekd.card import Budget
from edgekd.check.tolerance import Tolerance

__all__ = ["CheckJob", "Criteria", "JobOptions"]


@dataclass(frozen=True, kw_only=True)
class CheckJob:
    """One model on one target, and by what it is judged."""

    path: Path
    target: str
    budget: Budget
    tolerance: Tolerance
    baseline: Path | None = None
    data: Path | None = None
    feeding: Feeding = field(default_factory=Feeding)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What holds for all jobs of a check."""

    allow_estimated: bool = False
    allow_difference: tuple[str, ...] = ()
    """Keys of a fingerprint in which a stored record may differ from this machine."""
    write_baseline: bool = False
    """Whether a stored baseline that is not there yet is written, after the budgets passed."""
    effort: Effort = field(default_factory=Effort)
    """Of one process; how many there are is planned in edgekd/check/looks.py."""


@dataclass(frozen=True, kw_only=True)
class Criteria(JobOptions):
    """By what one model is judged."""

    budget: Budget
    tolerance: Tolerance = field(default_factory=Tolerance)
