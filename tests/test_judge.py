"""Verdicts are pure functions of figures and budgets."""

import dataclasses

import pytest
from scipy import stats

from edgekd.card import Budget
from edgekd.errors import ExitCode
from edgekd.figures import Figure, ModelFigures
from edgekd.judge import SMALL_TEST_SET, Line, Verdict, budget_figures, judge, verdict_words


def outcome(figure: Figure, limit: float = 1.0, key: str = "latency_p50_ms", allow: bool = False) -> str:
    verdict = judge({key: figure}, Budget(**{key: limit}), allow_estimated=allow)
    assert len(verdict.lines) == 1
    return verdict.outcome


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Figure(0.9, "measured"), "pass"),
        (Figure(1.0, "measured"), "pass"),
        (Figure(1.1, "measured"), "fail"),
        (Figure(0.9, "measured", 0.8, 1.0), "pass"),
        (Figure(0.9, "measured", 0.8, 1.1), "inconclusive"),
        (Figure(1.2, "measured", 0.9, 1.3), "inconclusive"),
        (Figure(1.2, "measured", 1.1, 1.3), "fail"),
        (Figure(), "inconclusive"),
        (Figure(0.1, "estimated", 0.05, 0.2), "inconclusive"),
    ],
)
def test_a_limit_from_above(figure: Figure, expected: str) -> None:
    assert outcome(figure) == expected


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Figure(0.96, "measured"), "pass"),
        (Figure(0.95, "measured"), "pass"),
        (Figure(0.94, "measured"), "fail"),
        (Figure(0.96, "measured", 0.94, 0.98), "inconclusive"),
        (Figure(0.96, "proxy"), "pass"),
    ],
)
def test_a_limit_from_below(figure: Figure, expected: str) -> None:
    assert outcome(figure, 0.95, "min_accuracy") == expected


def test_estimates_are_judged_only_when_allowed() -> None:
    estimate = Figure(0.5, "estimated", 0.4, 0.6)
    assert outcome(estimate) == "inconclusive"
    assert outcome(estimate, allow=True) == "pass"
    assert outcome(Figure(2.0, "estimated", 1.5, 2.5), allow=True) == "fail"


def test_the_worst_line_decides() -> None:
    figures = {"latency_p50_ms": Figure(), "size_kb": Figure(5, "exact"), "min_accuracy": Figure(0.9, "measured")}
    verdict = judge(figures, Budget(latency_p50_ms=1, size_kb=4, min_accuracy=0.8))
    assert [line.outcome for line in verdict.lines] == ["inconclusive", "fail", "pass"]
    assert (verdict.outcome, verdict.exit_code) == ("fail", ExitCode.FAIL)
    assert len(verdict.reasons) == 2
    verdict = judge(figures, Budget(latency_p50_ms=1, size_kb=6))
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", ExitCode.INCONCLUSIVE)
    verdict = judge(figures, Budget(size_kb=6))
    assert (verdict.outcome, verdict.exit_code) == ("pass", ExitCode.PASS)


def test_lines_are_sentences_with_units() -> None:
    verdict = judge({"size_kb": Figure(27.75, "exact")}, Budget(size_kb=60))
    assert verdict.lines[0].text == "file size 27.8 kB ≤ 60.0 kB: pass"
    verdict = judge({"min_accuracy": Figure(0.9, "proxy")}, Budget(min_accuracy=0.95))
    assert verdict.lines[0].text == "accuracy 90.00 % ≥ 95.00 %: fail (proxy)"


def test_accuracy_drop_is_in_points_below_the_teacher() -> None:
    model = ModelFigures("student", "s.onnx", "", 27_750, "int8", scores={"accuracy": Figure(0.915, "measured")})
    figures = budget_figures(model, Figure(0.9339, "measured"))
    assert figures["max_accuracy_drop"].value == pytest.approx(1.89)
    assert figures["size_kb"].value == 27.75
    assert "max_accuracy_drop" not in budget_figures(model)


def test_a_latency_that_was_asked_and_is_unknown_is_no_pass() -> None:
    budget = Budget(latency_p50_ms=1, latency_p95_ms=2, size_kb=6)
    verdict = judge({"size_kb": Figure(5, "exact")}, budget, allow_estimated=True)
    assert [line.outcome for line in verdict.lines] == ["inconclusive", "inconclusive", "pass"]
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", ExitCode.INCONCLUSIVE)
    assert "latency p95 unknown ≤ 2.00 ms: inconclusive" in verdict.reasons[1]
    # A result.json of an earlier edgekd holds such a line as «not judged».
    older = Verdict(tuple(dataclasses.replace(line, outcome="not judged") for line in verdict.lines[:2]))
    assert older.outcome == "inconclusive"


def timed(latency: Figure) -> ModelFigures:
    """A shipped model with this median latency."""
    return ModelFigures("student", "s.onnx", "", 5_000, "int8", latency_p50_ms=latency)


def test_the_words_of_a_verdict_say_what_it_does_not_speak_of() -> None:
    size, right = {"size_kb": Figure(5, "exact")}, {"min_accuracy": Figure(0.9, "proxy")}
    known, unknown = timed(Figure(1.0, "measured")), timed(Figure(why="another machine"))
    both = judge(size | right, Budget(size_kb=6, min_accuracy=0.5))
    assert verdict_words(both, known) == "pass"
    assert verdict_words(both, unknown) == "pass (latency not asked, not known)"
    assert verdict_words(judge(size, Budget(size_kb=6)), known) == "pass (accuracy not asked)"
    asked = judge(size | right, Budget(size_kb=6, min_accuracy=0.5, latency_p50_ms=2.0))
    assert verdict_words(asked, unknown) == "inconclusive"
    guess = {"latency_p50_ms": Figure(1.0, "estimated", 0.5, 1.5)}
    guessed = judge(right | guess, Budget(latency_p50_ms=2.0, min_accuracy=0.5), allow_estimated=True)
    assert verdict_words(guessed, timed(guess["latency_p50_ms"])) == "pass (latency estimated)"


# --- the accuracy of few examples ---


def accuracy(value: float, limit: float, examples: int | None) -> Line:
    return judge({"min_accuracy": Figure(value, "measured")}, Budget(min_accuracy=limit), examples=examples).lines[0]


@pytest.mark.parametrize(("hits", "limit"), [(18, 0.9), (18, 0.95), (20, 0.9), (19, 0.8), (20, 1.0), (0, 0.1)])
def test_a_limit_inside_the_interval_of_few_examples_is_inconclusive(hits: int, limit: float) -> None:
    wilson = stats.binomtest(hits, 20).proportion_ci(0.95, method="wilson")
    line = accuracy(hits / 20, limit, 20)
    assert (line.figure.low, line.figure.high) == pytest.approx((wilson.low, wilson.high))
    assert wilson.low < limit <= wilson.high + 1e-9
    assert line.outcome == "inconclusive"
    interval = f"{100 * wilson.low:.2f} % … {100 * wilson.high:.2f} %"
    assert line.reason == f"too few to tell: 95 % interval {interval} on 20 examples"


@pytest.mark.parametrize(("hits", "limit", "expected"), [(18, 0.5, "pass"), (18, 0.99, "fail"), (0, 0.5, "fail")])
def test_a_limit_outside_the_interval_is_judged(hits: int, limit: float, expected: str) -> None:
    assert accuracy(hits / 20, limit, 20).outcome == expected


def test_many_examples_are_judged_by_their_share_alone() -> None:
    assert SMALL_TEST_SET == 300
    for examples, expected in ((300, "pass"), (299, "inconclusive")):
        line = accuracy(0.9 if examples == 300 else 270 / 299, 0.9, examples)
        assert line.outcome == expected
        assert f" on {examples} examples" in line.reason
    assert accuracy(0.9, 0.91, 300).outcome == "fail"
    line = accuracy(0.9, 0.9, None)
    assert (line.outcome, line.reason, line.figure.low) == ("pass", "", None)


def test_the_embedded_digits_have_enough_test_images() -> None:
    line = accuracy(354 / 359, 0.96, 359)
    assert line.text == "accuracy 98.61 % ≥ 96.00 %: pass (95 % interval 96.78 % … 99.40 % on 359 examples)"


def test_only_accuracy_is_of_a_sample() -> None:
    figures = {"size_kb": Figure(5.0, "exact"), "min_accuracy": Figure(why="no data")}
    size, share = judge(figures, Budget(size_kb=5, min_accuracy=0.5), examples=10).lines
    assert (size.outcome, size.reason, size.figure.low) == ("pass", "", None)
    assert (share.outcome, share.reason) == ("inconclusive", "no data")
    proxy = judge({"min_accuracy": Figure(0.9, "proxy")}, Budget(min_accuracy=0.1), examples=10).lines[0]
    assert proxy.reason.startswith("proxy; 95 % interval ")
