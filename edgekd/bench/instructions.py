"""Count the instructions of a call on an emulated board, as a metric of its own: they are not time."""

from itertools import pairwise
from pathlib import Path
from statistics import median

from edgekd.bench.kept import Subject, keep_records, kept_records
from edgekd.bench.records import Effort, Record
from edgekd.bench.runner import measure_instructions
from edgekd.budget import Budget
from edgekd.devices.device import Site
from edgekd.devices.emulated import how_to_emulate
from edgekd.distributions import Interval
from edgekd.errors import EdgekdError, UnavailableError
from edgekd.figures import Figure

__all__ = ["count_instructions", "instructions_of", "require_counting"]


def count_instructions(
    subject: Subject, site: Site, inputs: Path | None, folder: Path | None, effort: Effort
) -> Figure:
    """Return the millions of instructions of one call, with the range of the blocks of calls in which they were
    counted; unknown, if possible with the reason, if they cannot be counted.
    """
    if site.board is None:
        return Figure(why=how_to_emulate(site.target))
    board, kind = Site(site.target, site.board), "instructions"
    kept = kept_records(subject, kind, site.target, folder, effort)
    if not kept:
        try:
            kept = [measure_instructions(subject.file, board, inputs, effort)]
        except EdgekdError as error:  # an error here does not affect the other figures
            return Figure(why=str(error).removeprefix(f"{subject.file}: "))
        keep_records(subject, kind, site.target, folder, effort, kept)
    found = instructions_of(kept[0])
    return Figure(found.value, board.provenance, found.low, found.high, "; ".join(board.differences))


def instructions_of(record: Record) -> Interval:
    """Return the millions of instructions of one call: the median of the blocks, and the range of all but the lowest
    and the highest one.

    Work that the runtime does once in a while, such as to collect garbage, falls into single blocks.
    """
    blocks = sorted((after - before) / record.block_calls / 1e6 for before, after in pairwise(record.counts))
    inner = blocks[1:-1] or blocks
    return Interval(median(blocks), inner[0], inner[-1])


def require_counting(budget: Budget, site: Site) -> None:
    """Raise UnavailableError if the budget limits instructions, and there is no emulated board to count them on."""
    if budget.limit("instructions_m") is None or site.board is not None:
        return
    rule = "instructions are counted on an emulated board of the target's hardware"
    how = how_to_emulate(site.target) or "there is none for this target, and none at all with --device local"
    raise UnavailableError(f"target {site.target.name}: budget instructions_m: {rule}; {how}")
