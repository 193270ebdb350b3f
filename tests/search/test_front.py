"""The front of a search: what no other candidate beats, what a wider limit buys, what to relax."""

from pathlib import Path

import pytest

from edgekd.candidate import Candidate, Score
from edgekd.figures import Figure
from edgekd.scores import ACCURACY
from edgekd.search.front import Point, front_of, points_of, relax_words, what_more_buys, what_to_relax
from edgekd.search.plot import plot_front


def point(name: str, ms: float, kb: float, quality: float) -> Point:
    return Point({"n": name}, "int8", {"latency_p50_ms": ms, "size_kb": kb}, quality, predicted=False)


SMALL, FAST, LARGE, WORSE = (
    point("small", 2.0, 10.0, 0.7),
    point("fast", 1.0, 20.0, 0.7),
    point("large", 2.1, 21.0, 0.9),
    point("worse", 2.0, 11.0, 0.6),
)


def test_the_front_is_what_no_other_point_beats() -> None:
    assert front_of([SMALL, FAST, LARGE, WORSE]) == [FAST, SMALL, LARGE]
    assert front_of([SMALL, SMALL]) == [SMALL, SMALL]  # neither beats the other


def test_where_no_time_is_known_instructions_make_the_front() -> None:
    def counted(name: str, millions: float, kb: float, quality: float) -> Point:
        return Point({"n": name}, "int8", {"size_kb": kb, "instructions_m": millions}, quality, predicted=False)

    few, many, worse = counted("few", 0.2, 20.0, 0.7), counted("many", 0.9, 19.0, 0.8), counted("worse", 0.3, 21.0, 0.7)
    assert set(map(id, front_of([few, many, worse]))) == {id(few), id(many)}


def test_ten_percent_more_of_one_limit() -> None:
    limits = {"latency_p50_ms": 2.0, "size_kb": 21.0}
    assert what_more_buys([SMALL, FAST, LARGE], limits) == {"latency_p50_ms": (SMALL, LARGE)}
    assert what_more_buys([SMALL, FAST, LARGE], {"latency_p50_ms": 2.0, "size_kb": 15.0}) == {}
    assert what_more_buys([LARGE], {"size_kb": 1.0}) == {}  # nothing fits now


def test_where_nothing_fits_the_nearest_say_what_they_need() -> None:
    limits = {"latency_p50_ms": 1.5, "size_kb": 12.0}
    told = what_to_relax([SMALL, FAST, LARGE], limits)
    assert told == [
        (SMALL, {"latency_p50_ms": 2.0}),
        (FAST, {"size_kb": 20.0}),
        (LARGE, {"latency_p50_ms": 2.1, "size_kb": 21.0}),
    ]
    assert relax_words({"latency_p50_ms": 2.0, "size_kb": 20.0}, limits) == (
        "latency p50 ≤ 2.00 ms (+33 %) and file size ≤ 20.0 kB (+67 %)"
    )


def test_only_scores_after_equally_many_epochs_are_compared() -> None:
    figures = {"int8": {"size_kb": Figure(10.0, "exact"), "latency_p50_ms": Figure()}}
    candidates = [Candidate({"n": n}, 1, n, figures) for n in (1, 2, 3)]
    scores = [Score({"n": 1}, 2, 0.5, 1.0), Score({"n": 2}, 2, 0.6, 1.0), Score({"n": 2}, 4, 0.9, 1.0)]
    points = points_of(candidates, scores, ACCURACY)
    assert [(one.shape["n"], one.quality, one.epochs, one.costs) for one in points] == [
        (1, 0.5, 2, {"size_kb": 10.0}),
        (2, 0.6, 2, {"size_kb": 10.0}),
    ]
    assert [one.quality for one in points_of(candidates, [], ACCURACY)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("name", "begin"), [("front.png", b"\x89PNG"), ("front.svg", b"<?xml")])
def test_the_picture(name: str, begin: bytes, tmp_path: Path) -> None:
    points = [SMALL, FAST, LARGE, Point({"n": 9}, "fp32", {"size_kb": 30.0}, 0.8, predicted=True)]
    plot_front(points, front_of(points), {"size_kb": 25.0}, ("a $title$", "accuracy"), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)
