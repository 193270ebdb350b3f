"""The table of a sweep's trials, as text, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd import units
from edgekd.scores import ACCURACY, ScoreKind
from edgekd.tables import markdown_table

__all__ = ["Tried", "best_of", "recipe_lines", "sweep_csv", "sweep_markdown", "trial_rows", "value_rows"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial as a row of the table."""

    number: int
    """Trial number, counted from 1."""
    point: dict[str, float]
    """The value of each axis."""
    state: str
    """`complete`, `pruned`, `running`, `waiting`, `failed` or `killed`; a killed trial has a successor."""
    score: float | None
    """The score that decides, on validation data, of the saved weights, or of the last epoch so far; None if no epoch
    has ended."""
    epochs: int
    seconds: float
    """Training time in seconds."""
    note: str = ""
    """The reason for a failure."""


def trial_rows(trials: Sequence[Tried], kind: ScoreKind = ACCURACY) -> tuple[list[str], list[list[str]]]:
    """Return a header and one row for each trial; trials that were trained to the end come first, best first."""
    names = _axes(trials)
    ranked = sorted(trials, key=lambda trial: (trial.state != "complete", _rank(trial, kind), trial.number))
    header = ["trial", *names, f"validation {kind.limit_words}", "epochs", "state", "seconds"]
    return header, [_row(trial, names, kind) for trial in ranked]


def _rank(trial: Tried, kind: ScoreKind) -> float:
    """A number that is smaller for a better trial."""
    value = trial.score or 0.0
    return -value if kind.better == "higher" else value


def _row(trial: Tried, names: Sequence[str], kind: ScoreKind) -> list[str]:
    score = "–" if trial.score is None else kind.show(trial.score)
    state = f"{trial.state}: {trial.note}" if trial.note else trial.state
    values = [f"{trial.point[name]:.4g}" if name in trial.point else "–" for name in names]
    return [str(trial.number), *values, score, str(trial.epochs), state, f"{trial.seconds:.1f}"]


def value_rows(trials: Sequence[Tried], kind: ScoreKind = ACCURACY) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row for each set of values with several completed seeds: mean, lowest and highest
    score.
    """
    names = [name for name in _axes(trials) if name != "seed"]
    groups = {values: own for values, own in _by_values(trials).items() if len(own) > 1}
    header = [*names, "seeds", f"mean validation {kind.limit_words}", "lowest", "highest"]
    rows = []
    for values, own in sorted(groups.items()):
        known = dict(values)
        summary = [kind.show(value) for value in (sum(own) / len(own), min(own), max(own))]
        rows.append([*(f"{known[name]:.4g}" for name in names), str(len(own)), *summary])
    return header, rows


def best_of(trials: Sequence[Tried], kind: ScoreKind = ACCURACY) -> tuple[dict[str, float], float, int] | None:
    """Return the values with the best mean score over completed seeds, that mean, and the number of seeds.

    Among equal means the first one tried wins. Values with fewer seeds than others are left out. Returns None if no
    trial is complete.
    """
    groups = _by_values(trials)
    most = max(map(len, groups.values()), default=0)
    full = {values: own for values, own in groups.items() if len(own) == most}
    if not full:
        return None
    means = {values: sum(own) / most for values, own in full.items()}
    best = kind.best(means.values())
    values = next(values for values, mean in means.items() if mean == best)
    return dict(values), best, most


def recipe_lines(point: Mapping[str, float], losses: Mapping[str, float]) -> list[str]:
    """Return lines for the card's [recipe], whose weights are `losses`, with these values; a seed is not included."""
    lines = [f"{name} = {value:.4g}" for name, value in point.items() if name in ("temperature", "alpha")]
    weights = {name: point.get(f"weight {name}", weight) for name, weight in losses.items()}
    if weights:
        lines.append("losses = { " + ", ".join(f"{name} = {value:.4g}" for name, value in weights.items()) + " }")
    return lines


def sweep_markdown(
    trials: Sequence[Tried],
    losses: Mapping[str, float],
    title: str,
    data: tuple[int, str],
    picture: str,
    kind: ScoreKind = ACCURACY,
) -> str:
    """Return the whole sweep as Markdown; `losses` is as for `recipe_lines`.

    `data` is the number of validation examples and their name.
    """
    lines = [f"# {units.flat(title)}", "", f"![validation {kind.limit_words} of the trials]({picture})", ""]
    best = best_of(trials, kind)
    if best is not None:
        point, score, seeds = best
        of = f" (mean of {seeds} seeds)" if seeds > 1 else ""
        lines += [
            f"Best: {kind.show(score)} of {data[0]} validation {data[1]}{of}. {_certainty(score, data[0], kind)} Test "
            "data was not read.",
            "",
            "```toml",
            *recipe_lines(point, losses),
            "```",
            "",
        ]
    header, rows = value_rows(trials, kind)
    if rows:
        lines += ["## By values", "", markdown_table(header, rows), ""]
    return "\n".join([*lines, "## Trials", "", markdown_table(*trial_rows(trials, kind)), ""])


def _certainty(score: float, count: int, kind: ScoreKind) -> str:
    """What one such figure can tell apart. Only the error of a share of examples follows from their number."""
    if not kind.counted:
        return "The best of many is a little lucky."
    error = 100 * (score * (1 - score) / count) ** 0.5
    return (
        f"One such figure has a standard error of {error:.2f} points: temperatures and weights that differ by less are "
        "not told apart by it, and the best of many is a little lucky."
    )


def sweep_csv(trials: Sequence[Tried], kind: ScoreKind = ACCURACY) -> str:
    """Return one row for each trial as CSV, in the order in which they began, without rounding."""
    names, text = _axes(trials), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, kind.history_key, "epochs", "state", "seconds", "note"])
    for trial in trials:
        point = {name: int(value) if name == "seed" else value for name, value in trial.point.items()}
        values = [point.get(name, "") for name in names]
        score = "" if trial.score is None else trial.score
        row = [trial.number, *values, score, trial.epochs, trial.state, trial.seconds, trial.note]
        writer.writerow(map(units.cell, row))
    return text.getvalue()


def _axes(trials: Sequence[Tried]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.point))


def _by_values(trials: Sequence[Tried]) -> dict[tuple[tuple[str, float], ...], list[float]]:
    """Return the scores of the complete trials, grouped by their values without the seed."""
    groups: dict[tuple[tuple[str, float], ...], list[float]] = {}
    for trial in trials:
        if trial.state == "complete" and trial.score is not None:
            values = tuple((name, value) for name, value in trial.point.items() if name != "seed")
            groups.setdefault(values, []).append(trial.score)
    return groups
