"""Ranking by learning: who starts, who is kept, what is not trained twice."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from edgekd.candidate import Candidate, Score
from edgekd.card import Student
from edgekd.distill.student import TrainingOptions
from edgekd.distill.tasks.known import examples_of, learning_of
from edgekd.nets.deployed import Deployed
from edgekd.nets.families import make
from edgekd.nets.teachers import LoadedTeacher
from edgekd.scores import ACCURACY, ScoreKind
from edgekd.search.rank import Lessons, distil_briefly, halve, quality, shortlist, why, worst_first
from edgekd.tasks.known import load_card


def candidate(macs: int, **shape: Any) -> Candidate:
    return Candidate({**shape, "macs": macs}, 1, macs, {})


def test_the_most_capable_of_each_family_start() -> None:
    some = [candidate(n, family="vgg") for n in (1, 2, 3, 4)] + [candidate(n, family="mlp") for n in (10, 20)]
    assert [one.macs for one in shortlist(some, 4)] == [20, 10, 4, 3]
    assert [one.macs for one in shortlist(some, 9)] == [20, 10, 4, 3, 2, 1]
    assert [one.macs for one in shortlist([candidate(1), candidate(5)])] == [5, 1]


def test_a_training_that_failed_is_the_worst() -> None:
    lower = dataclasses.replace(ACCURACY, better="lower")
    assert quality(Score({}, 1, None, 0.0), ACCURACY) < quality(Score({}, 1, 0.0, 0.0), ACCURACY)
    assert quality(Score({}, 1, 0.2, 0.0), lower) > quality(Score({}, 1, 0.3, 0.0), lower)


def order(values: list[float | None], count: int, kind: ScoreKind = ACCURACY) -> list[float | None]:
    """The scores of shapes from the most capable to the least capable one, from the worst to the best."""
    return [one.value for one in worst_first([Score({"n": n}, 1, v, 0.0) for n, v in enumerate(values)], kind, count)]


def test_capacity_decides_between_scores_that_differ_by_chance_alone() -> None:
    assert order([0.32, 0.34, 0.30, 0.20], 1_000) == [0.20, 0.30, 0.34, 0.32]
    assert order([0.32, 0.34, 0.30, 0.20], 100_000) == [0.20, 0.30, 0.32, 0.34]
    assert order([0.5, None, 0.5], 1_000) == [None, 0.5, 0.5]
    assert order([None, None], 1_000) == [None, None]


@pytest.mark.parametrize(("wins", "of"), [(9, 10), (6, 7), (56, 70), (81, 263), (5, 56)])
def test_chance_is_newcombes_interval_made_of_wilsons(wins: int, of: int) -> None:
    """Of scipy's Wilson intervals. The first two cases are of his Table II, whose intervals exclude 0."""
    for other in range(wins):
        high, low = (stats.binomtest(count, of).proportion_ci(method="wilson") for count in (wins, other))
        bound = (wins - other) / of - np.hypot(wins / of - high.low, low.high - other / of)
        assert (order([other / of, wins / of], of)[-1] == wins / of) == (bound > 0)
    assert order([3 / 10, 9 / 10], 10)[-1] == 9 / 10 and order([2 / 7, 6 / 7], 7)[-1] == 6 / 7


def test_the_reason_says_who_decided() -> None:
    first, last = Score({"n": 1}, 1, 0.9, 0.0), [Score({"n": n}, 2, value, 0.0) for n, value in enumerate([0.52, 0.51])]
    assert why([first, *reversed(last)], ACCURACY) == "learns best"
    assert why([first, *last], ACCURACY).startswith("is the most capable of those that learn best")


def test_other_scores_are_taken_as_they_are() -> None:
    lower = dataclasses.replace(ACCURACY, better="lower", counted=False)
    assert order([0.32, 0.34, 0.30, 0.20], 10, lower) == [0.34, 0.32, 0.30, 0.20]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    """Digits, an untrained teacher, and a recipe of 16 epochs with the labels alone."""
    card = load_card("digits")
    recipe = dataclasses.replace(card.recipe, epochs=16, losses={"ce": 1.0}, views=1, learning_rate=0.02)
    card = dataclasses.replace(card, student=Student(family="mlp"), recipe=recipe)
    torch.manual_seed(0)
    net = make(card, card.teacher, card.teacher.shape, "teacher.shape")
    train, validation = learning_of(card.data).load(card, None)
    return Lessons(
        card=card,
        teachers=[LoadedTeacher(Deployed(net, card.data).eval(), Path("none"))],
        data=(examples_of(card, train), examples_of(card, validation)),
        options=TrainingOptions(),
        folder=tmp_path_factory.mktemp("ranking") / "net",
    )


def test_an_interrupted_distillation_goes_on(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*values: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("edgekd.search.rank.best_score", interrupted)
        distil_briefly(lessons, {"hidden": [4]}, 2)
    assert "rank hidden=[4]: epoch 2/2" in capsys.readouterr().err
    score = distil_briefly(lessons, {"hidden": [4]}, 2)
    assert "epoch 1/2" not in capsys.readouterr().err  # it was trained before
    assert list(lessons.folder.iterdir()) == []
    assert distil_briefly(lessons, {"hidden": [4]}, 2).value == score.value  # from the beginning


def test_the_better_half_goes_on_with_twice_the_epochs(lessons: Lessons) -> None:
    shapes = [{"hidden": [64]}, {"hidden": [32]}, {"hidden": [2]}, {"hidden": [1]}]
    kept: list[Score] = []
    scores = halve(shapes, lessons, [], kept.append)
    assert [one.epochs for one in scores] == [2, 2, 2, 2, 4, 4]
    assert {one.shape["hidden"][0] for one in scores[4:]} == {64, 32}  # one and two neurons cannot tell ten digits
    by_capacity = sorted(scores[4:], key=lambda one: -one.shape["hidden"][0])
    assert scores[-1] == worst_first(by_capacity, ACCURACY, len(lessons.data[1]))[-1]
    assert sorted(kept, key=str) == sorted(scores, key=str)
    assert not lessons.folder.exists()
    again = halve(shapes, lessons, kept, lambda score: pytest.fail("a known score is not trained again"))
    assert again == scores
    assert np.all([one.seconds > 0 for one in scores])
