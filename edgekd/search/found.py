"""What a search has found, and the file candidates.json that keeps it."""

import dataclasses
from pathlib import Path
from typing import Any

from edgekd.candidate import Candidate, Score, Shape
from edgekd.figures import Figure
from edgekd.files import read_json, write_json
from edgekd.search.predict import Fitted
from edgekd.search.sharing import Anchor

__all__ = ["Found", "LeftOut", "read_found", "write_found"]

# History of the format of candidates.json:
# 1 - shape, params, macs, and per precision size_bytes, latency_p50_ms, peak_memory_mb
# 2 - left_out: shape and reason of each candidate that cannot be used
# 3 - candidates may be predicted; fitted: how well their figures are predicted; scores: of short distillations
#     instructions_m per precision
# 4 - candidates may be timed_on another device; shared: their figures from there; anchor: what each device timed
# 5 - brought: the results by hand from which a candidate's times come
# 6 - checked: whether a candidate was measured a second time
SCHEMA_VERSION = 6


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
    anchor: Anchor | None = None
    """What each of several devices timed when they last shared the candidates."""

    @property
    def measured(self) -> list[Candidate]:
        """The candidates that are not predicted."""
        return [candidate for candidate in self.candidates if not candidate.predicted]


def write_found(path: Path, found: Found, target: str) -> None:
    """Write candidates.json of a search on the target of that name."""
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": target,
        "candidates": [dataclasses.asdict(candidate) for candidate in found.candidates],
        "left_out": [dataclasses.asdict(one) for one in found.left_out],
        "fitted": [dataclasses.asdict(one) for one in found.fitted],
        "scores": [dataclasses.asdict(one) for one in found.scores],
        "anchor": dataclasses.asdict(found.anchor) if found.anchor else None,
    }
    write_json(path, content)


def read_found(path: Path) -> Found:
    """The measured candidates, those left out, the scores and the anchor, as far as an earlier call got."""
    if not path.exists():
        return Found([], [])
    content = read_json(path)
    anchor = content.get("anchor")
    candidates = [
        Candidate(
            shape=entry["shape"],
            params=entry["params"],
            macs=entry["macs"],
            precisions=_figures(entry["precisions"]),
            timed_on=entry.get("timed_on", ""),
            brought=entry.get("brought", ""),
            checked=entry.get("checked", False),
            shared=_figures(entry.get("shared", {})),
        )
        for entry in content["candidates"]
        if not entry.get("predicted")
    ]
    return Found(
        candidates,
        [LeftOut(entry["shape"], entry["reason"]) for entry in content.get("left_out", [])],
        scores=[Score(**entry) for entry in content.get("scores", [])],
        anchor=Anchor(anchor["shape"], _figures(anchor["times"])) if anchor else None,
    )


def _figures(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Figure]]:
    return {name: {key: Figure(**figure) for key, figure in figures.items()} for name, figures in tables.items()}
