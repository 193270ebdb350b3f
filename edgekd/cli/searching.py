"""`search`: the front of size, latency and quality, without training a student to the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import units
from edgekd.card import Card
from edgekd.console import out as show
from edgekd.console import say
from edgekd.devices.bundle import bundle_words, refuse_other_names
from edgekd.devices.local import Local, fitting_target
from edgekd.errors import ConfigError, ExitCode
from edgekd.figures import BUDGETED
from edgekd.interface import DistillRequest, pack_search, search_candidates
from edgekd.judge import show_limit
from edgekd.scores import ScoreKind
from edgekd.settings import Setting, for_target, parse_settings
from edgekd.tables import rich_table
from edgekd.target import Target, load_target
from edgekd.tasks.known import load_card, task_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.candidate import Candidate
    from edgekd.search.front import Point

__all__ = ["pack_card", "rank_setting", "search_card"]

ROWS = 25
"""Largest number of rows of the table."""


def rank_setting(rank: str | None) -> tuple[Setting, ...]:
    """The value of `--rank` as a setting of the card; empty if it is not given."""
    return (Setting(("student", "rank"), rank, f"--rank {rank}"),) if rank is not None else ()


def search_card(
    card_name: str, target_name: str | None, asked: DistillRequest, settings: "Sequence[str]", rank: str | None
) -> int:
    """Show the front and what a wider limit would buy; returns the exit code, FAIL if no candidate fits."""
    from edgekd.search.front import front_of, points_of
    from edgekd.search.plot import plot_front

    card, target = _loaded(card_name, target_name, settings, rank)
    run, found, budget, choice = search_candidates(card, target, asked)
    kind, limits = task_of(card.data).scores[0], budget.limits()
    points = points_of(found.candidates, found.scores, kind)
    front = front_of(points)
    _show_table(front, choice, limits, kind, f"{card.name} on {target.name}: the front of {len(found.candidates):,}")
    scored = bool(found.scores)
    label = kind.axis("validation") if scored else "multiply-accumulates, millions"
    factor = (kind.factor if kind.better == "higher" else -kind.factor) if scored else 1e-6
    for name in ("front.png", "front.svg"):
        plot_front(points, front, limits, (f"{card.name} on {target.name}", label), run / name, factor)
    told = _bought(points, limits, kind) if choice is not None else _relaxed(points, limits)
    for line in told:
        show(f"  {line}")
    if choice is not None:
        option = f" --rank {card.student.rank}" if card.student.rank != "capacity" else ""
        show(f"`edgekd distill{option}` with the same options would train {choice.name}")
    show(f"{run / 'candidates.json'}, {run / 'front.png'}, {run / 'front.svg'}")
    return ExitCode.PASS if choice is not None else ExitCode.FAIL


def pack_card(
    card_name: str,
    target_name: str | None,
    asked: DistillRequest,
    settings: "Sequence[str]",
    path: Path,
    rank: str | None,
) -> int:
    """Write a bundle of all candidates, and say what to do with it; returns the exit code."""
    refuse_other_names(path, "--bundle")
    if asked.devices:
        raise ConfigError("--bundle: is for a device that nothing can reach; leave --device and --from out")
    card, target = _loaded(card_name, target_name, settings, rank)
    count, workers = pack_search(card, target, asked, path)
    show(f"wrote {bundle_words(path, workers)}")
    show(f"afterwards, with the same options: edgekd search … --from results.json reads the {count} candidates")
    return ExitCode.PASS


def _loaded(
    card_name: str, target_name: str | None, settings: "Sequence[str]", rank: str | None
) -> tuple[Card, Target]:
    for_card, on_target = for_target(parse_settings(settings))
    card = load_card(card_name, (*for_card, *rank_setting(rank or "learning")))
    target = load_target(target_name or fitting_target(Local().facts()), on_target)
    if target_name is None:
        say(f"target: {target.name}, which describes this machine; --target NAME takes another one")
    return card, target


def _show_table(
    front: "Sequence[Point]",
    choice: "Candidate | None",
    limits: "Mapping[str, float]",
    kind: ScoreKind,
    title: str,
) -> None:
    step = max(1, -(-len(front) // ROWS))
    chosen = choice.shape if choice is not None else None
    shown = [one for place, one in enumerate(front) if place % step == 0 or one.shape == chosen]
    counted = any("instructions_m" in one.costs for one in front)
    keys = ["latency_p50_ms", "size_kb", *(["instructions_m"] if counted else [])]
    rows = []
    for one in shown:
        cells = [show_limit(key, one.costs[key]) if key in one.costs else "not known" for key in keys]
        notes = [*(["predicted"] if one.predicted else []), *([] if one.fits(limits) else ["over a limit"])]
        notes += ["chosen"] if one.shape == chosen else []
        rows.append(
            [
                one.name,
                *cells,
                _quality(one, kind),
                ", ".join(notes),
            ]
        )
    epochs = front[0].epochs if front else None
    head = f"{kind.head}, {epochs} epochs" if epochs else "MACs"
    show(rich_table(["candidate", *(BUDGETED[key].limit_words for key in keys), head, ""], rows, title))


def _quality(one: "Point", kind: ScoreKind) -> str:
    if one.epochs is None:
        return units.count(one.quality)
    return kind.show(abs(one.quality)) if one.quality > float("-inf") else "no finite loss"


def _bought(points: "Sequence[Point]", limits: "Mapping[str, float]", kind: ScoreKind) -> list[str]:
    """What 10 % more of each limit would buy."""
    from edgekd.search.front import what_more_buys

    bought: dict[str, Any] = what_more_buys(points, limits)
    lines = []
    for key, limit in limits.items():
        words = f"10 % more {BUDGETED[key].limit_words} than {show_limit(key, limit)} would buy"
        if key in bought:
            now, then = bought[key]
            lines.append(f"{words} {_quality(then, kind)} ({then.name}) instead of {_quality(now, kind)} ({now.name})")
        else:
            lines.append(f"{words} nothing better")
    return lines or ["the card has no limit on latency, file size, memory or instructions"]


def _relaxed(points: "Sequence[Point]", limits: "Mapping[str, float]") -> list[str]:
    """Which limits the nearest candidates need."""
    from edgekd.search.front import relax_words, what_to_relax

    lines = ["no candidate fits; nearest:"]
    for one, needed in what_to_relax(points, limits):
        lines.append(f"{one.name} needs {relax_words(needed, limits)}")
    return lines
