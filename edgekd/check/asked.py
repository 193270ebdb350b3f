"""The requests that a check gets from the command line, a manifest or a test, as plain data."""

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.bench.records import Effort, Feeding
from edgekd.budget import Budget
from edgekd.check.tolerance import Tolerance

__all__ = ["CheckJob", "Criteria", "JobOptions"]


@dataclass(frozen=True, kw_only=True)
class CheckJob:
    """One model on one target, with the budget, tolerance and baseline by which it is judged."""

    path: Path
    target: str
    budget: Budget
    tolerance: Tolerance
    baseline: Path | None = None
    data: Path | None = None
    feeding: Feeding = field(default_factory=Feeding)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options that apply to all jobs of a check."""

    allow_estimated: bool = False
    allow_difference: tuple[str, ...] = ()
    """Keys of a fingerprint in which a stored record may differ from this machine."""
    device: str = ""
    """Where to measure; if empty, the target or the environment says it."""
    accuracy_on: str = ""
    write_baseline: bool = False
    """Whether to write a stored baseline that does not exist yet, after the budgets passed."""
    effort: Effort = field(default_factory=Effort)
    """The effort of one process; edgekd/check/looks.py plans the number of processes."""


@dataclass(frozen=True, kw_only=True)
class Criteria(JobOptions):
    """The limits and options by which one model is judged."""

    budget: Budget
    tolerance: Tolerance = field(default_factory=Tolerance)
