"""The table and the picture of a sweep."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from edgekd.sweep.plot import plot_sweep
from edgekd.sweep.table import Tried, best_of, recipe_lines, sweep_csv, sweep_markdown, trial_rows, value_rows

DATA = (475, "images")
"""How many validation examples there are, and what they are called."""


def trial(number: int, accuracy: float | None, state: str = "complete", note: str = "", **point: float) -> Tried:
    epochs = 0 if accuracy is None else 4
    return Tried(
        number=number, point=point, state=state, score=accuracy, epochs=epochs, seconds=1.25 * epochs, note=note
    )


RANGES = [
    trial(1, 0.91, temperature=0.123456, alpha=0.5),
    trial(2, 0.95, temperature=4.0, alpha=0.75),
    trial(3, 0.97, state="pruned", temperature=8.0, alpha=0.25),
    trial(4, None, state="failed", note="the loss is nan", temperature=20.0, alpha=1.0),
]
SEEDS = [
    trial(number, accuracy, temperature=temperature, alpha=0.9, seed=seed)
    for number, (accuracy, temperature, seed) in enumerate(
        [(0.90, 1.0, 0), (0.98, 1.0, 1), (0.95, 4.0, 0), (0.95, 4.0, 1), (0.99, 8.0, 0)], start=1
    )
]


def test_trials_are_ranked_with_those_trained_to_the_end_first() -> None:
    header, rows = trial_rows(RANGES)
    assert header == ["trial", "temperature", "alpha", "validation accuracy", "epochs", "state", "seconds"]
    assert rows == [
        ["2", "4", "0.75", "95.00 %", "4", "complete", "5.0"],
        ["1", "0.1235", "0.5", "91.00 %", "4", "complete", "5.0"],
        ["3", "8", "0.25", "97.00 %", "4", "pruned", "5.0"],
        ["4", "20", "1", "–", "0", "failed: the loss is nan", "0.0"],
    ]


def test_csv_rounds_nothing_and_keeps_the_order() -> None:
    lines = sweep_csv(RANGES).splitlines()
    assert lines[0] == "trial,temperature,alpha,validation_accuracy,epochs,state,seconds,note"
    assert lines[1] == "1,0.123456,0.5,0.91,4,complete,5.0,"
    assert lines[4] == "4,20.0,1.0,,0,failed,0.0,the loss is nan"


def test_the_best_is_the_mean_over_seeds_and_never_a_pruned_trial() -> None:
    assert best_of(RANGES) == ({"temperature": 4.0, "alpha": 0.75}, 0.95, 1)
    point, accuracy, seeds = best_of(SEEDS) or ({}, 0.0, 0)
    # 0.95 of two seeds beats 0.94; 0.99 of one seed is not compared with them.
    assert (point, seeds) == ({"temperature": 4.0, "alpha": 0.9}, 2)
    assert accuracy == pytest.approx(0.95)
    assert best_of(RANGES[3:]) is None


def test_seeds_are_summed_up_by_values() -> None:
    header, rows = value_rows(SEEDS)
    assert header == ["temperature", "alpha", "seeds", "mean validation accuracy", "lowest", "highest"]
    assert rows == [
        ["1", "0.9", "2", "94.00 %", "90.00 %", "98.00 %"],
        ["4", "0.9", "2", "95.00 %", "95.00 %", "95.00 %"],
    ]
    assert value_rows(RANGES)[1] == []


def test_recipe_lines_are_what_a_card_says() -> None:
    assert recipe_lines({"temperature": 4.0, "alpha": 0.75, "seed": 3.0}, {}) == ["temperature = 4", "alpha = 0.75"]
    lines = recipe_lines({"temperature": 0.5, "weight dkd": 2.5}, {"ce": 1.0, "dkd": 1.0})
    assert lines == ["temperature = 0.5", "losses = { ce = 1, dkd = 2.5 }"]


def test_markdown_tells_how_sure_the_best_is() -> None:
    text = sweep_markdown(RANGES, {}, "Sweep of digits", DATA, "sweep.png")
    assert text.startswith("# Sweep of digits\n\n![validation accuracy of the trials](sweep.png)\n")
    # √(0.95 × 0.05 / 475) = 0.01
    assert "Best: 95.00 % of 475 validation images. One such figure has a standard error of 1.00 points" in text
    assert "```toml\ntemperature = 4\nalpha = 0.75\n```" in text
    assert "| 3 | 8 | 0.25 | 97.00 % | 4 | pruned | 5.0 |" in text
    assert "of 475 validation sentences (mean of 2 seeds)" in sweep_markdown(
        SEEDS, {}, "Sweep", (475, "sentences"), "sweep.png"
    )


def drawn(
    monkeypatch: pytest.MonkeyPatch, trials: list[Tried], colour_by: str, path: Path, along: str = "temperature"
) -> Any:
    """The axes of the picture."""
    kept, save = [], Figure.savefig

    def keep(self: Figure, *arguments: Any, **more: Any) -> None:
        kept.append(self)
        save(self, *arguments, **more)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot_sweep(trials, colour_by, DATA, "Sweep of $digits$", path, along)
    return kept[0].axes[0]


def test_pruned_trials_are_hollow_and_all_lie_where_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(monkeypatch, RANGES, "alpha", tmp_path / "sweep.png")
    complete, pruned = axes.collections[:2]
    assert complete.get_offsets().tolist() == [[0.123456, 91.0], [4.0, 95.0]]
    assert pruned.get_offsets().tolist() == [[8.0, 97.0]]
    assert len(pruned.get_facecolors()) == 0 and len(pruned.get_edgecolors()) == 1
    first, second = complete.get_facecolors()
    assert first.tolist() != second.tolist()  # alpha 0.5 and 0.75
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.123", "4", "8"]  # what was tried
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "complete: 2",
        "pruned: 1",
        "standard error of 475 images",
    ]
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (1040, 650)


def test_a_line_joins_the_means_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, SEEDS, "alpha", tmp_path / "sweep.png")
    line = next(line for line in axes.lines if line.get_label() == "mean over seeds")
    assert line.get_xdata().tolist() == [1.0, 4.0, 8.0]
    assert line.get_ydata().tolist() == pytest.approx([94.0, 95.0, 99.0])


def test_without_temperatures_another_axis_takes_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(0.9, 0.5, 0), (0.92, 0.5, 1), (0.95, 2.0, 0)]
    trials = [
        dataclasses.replace(trial(n + 1, reached), point={"weight mse": w, "seed": s})
        for n, (reached, w, s) in enumerate(points)
    ]
    axes = drawn(monkeypatch, trials, "", tmp_path / "sweep.png", "weight mse")
    assert axes.collections[0].get_offsets().tolist() == [[0.5, 90.0], [0.5, 92.0], [2.0, 95.0]]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("weight mse", "log")
    line = next(line for line in axes.lines if line.get_label() == "mean over seeds")
    assert line.get_ydata().tolist() == pytest.approx([91.0, 95.0])
    seeds = [trial(n + 1, 0.9, seed=n) for n in range(2)]
    axes = drawn(monkeypatch, seeds, "", tmp_path / "seeds.png", "seed")
    assert axes.collections[0].get_offsets().tolist() == [[0.0, 90.0], [1.0, 90.0]]
    assert axes.get_xscale() == "linear"


def test_nothing_trained_yet_is_an_empty_picture(tmp_path: Path) -> None:
    plot_sweep(RANGES[3:], "alpha", (475, "sentences"), "Sweep", tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (1040, 650)
