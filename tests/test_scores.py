"""Scores as plain data: the keys that budgets and tolerances get from them, and how values and changes are shown."""

import dataclasses
import json
from pathlib import Path

import pytest

from edgekd.budget import Budget, budget_keys, parse_budget, read_budget, refuse_others
from edgekd.check.tolerance import Tolerance, parse_tolerance, read_tolerance, refuse_other_tolerances
from edgekd.errors import ConfigError
from edgekd.figures import Figure, ModelFigures, budgeted
from edgekd.judge import Line, budget_figures, judge
from edgekd.result import model_json, read_models
from edgekd.scores import ACCURACY, CLASSIFICATION, ScoreKind
from edgekd.tables import comparison_rows, figure_rows

MAE = ScoreKind(name="mae", words="mean absolute error", short="MAE", better="lower", unit="mm", tolerance=2.0)
WER = ScoreKind(name="wer", words="word error rate", better="lower")
R2 = ScoreKind(name="r2", words="explained variance", unit="")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (ACCURACY, ("min_accuracy", "max_accuracy_drop", "teacher_min_accuracy", "max_accuracy_loss")),
        (MAE, ("max_mae", "max_mae_rise", "teacher_max_mae", "max_mae_increase")),
        (R2, ("min_r2", "max_r2_drop", "teacher_min_r2", "max_r2_loss")),
    ],
)
def test_keys_come_from_name_and_direction(kind: ScoreKind, keys: tuple[str, ...]) -> None:
    assert (*kind.budget_keys, kind.tolerance_key) == keys
    assert set(keys[:3]) <= set(budgeted(kind))


def test_a_name_that_makes_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="lower-case letters"):
        ScoreKind(name="F1 score", words="F1")


@pytest.mark.parametrize(
    ("kind", "value", "worse", "shown", "by", "change"),
    [
        (ACCURACY, 0.95, 0.93, "93.00 %", 2.0, "2.00 points"),
        (WER, 0.1, 0.125, "12.50 %", 2.5, "2.50 points"),
        (MAE, 40.0, 43.5, "43.5 mm", 3.5, "3.5 mm"),
        (R2, 0.5, -0.1, "-0.1", 0.6, "0.6"),
    ],
)
def test_what_is_worse(kind: ScoreKind, value: float, worse: float, shown: str, by: float, change: str) -> None:
    assert kind.improves(value, worse) and not kind.improves(worse, value)
    assert kind.reaches(value, worse) and kind.reaches(worse, worse) and not kind.reaches(worse, value)
    assert kind.best([worse, value, worse]) == value
    assert (kind.worsening(worse, value), kind.worsening(value, worse)) == (by, -by)
    assert (kind.show(worse), kind.show_change(by)) == (shown, change)


def test_budgets_of_several_tasks_are_read_together_and_told_apart() -> None:
    both = (ACCURACY, MAE)
    keys = budget_keys(both)
    begin = keys.index("min_accuracy")
    assert keys[begin : begin + 6] == [*ACCURACY.budget_keys, *MAE.budget_keys]
    asked = parse_budget(["max_mae=40", "size_kb=3"], both)
    assert refuse_others(asked, MAE, "--budget").limits() == {"size_kb": 3.0, "max_mae": 40.0}
    with pytest.raises(ConfigError, match=r"^--budget: max_mae: unknown key; .*max_accuracy_drop"):
        refuse_others(asked, ACCURACY, "--budget")
    with pytest.raises(ConfigError, match=r"^--budget: max_mea: unknown key; did you mean 'max_mae'"):
        parse_budget(["max_mea=40"], both)
    with pytest.raises(ConfigError, match=r"min_accuracy: got 2.0; it should be less than or equal to 1"):
        parse_budget(["min_accuracy=2"], both)
    with pytest.raises(ConfigError, match=r"max_mae_rise: got -1; it should be greater than or equal to 0"):
        read_budget({"max_mae_rise": -1}, "card", [MAE])
    assert read_budget({"min_r2": -0.5}, "card", [R2]).minimum == -0.5
    assert Budget(MAE, max_mae=3, size_kb=None).limits() == {"max_mae": 3}


def test_tolerances_likewise() -> None:
    both = (ACCURACY, MAE)
    values = parse_tolerance(["max_mae_increase=1.5", "max_slowdown=off"], both)
    tolerance = Tolerance().with_values(values)
    assert (tolerance.of_score(MAE), tolerance.of_score(ACCURACY), tolerance.max_slowdown) == (1.5, 0.5, "off")
    assert tolerance.limits(MAE)["max_mae_increase"] == 1.5
    assert refuse_other_tolerances(tolerance, MAE, "x") is tolerance
    with pytest.raises(ConfigError, match=r"^x: max_mae_increase: unknown key; "):
        refuse_other_tolerances(tolerance, ACCURACY, "x")
    with pytest.raises(ConfigError, match=r"max_mae_increase: unknown key; "):
        read_tolerance({"max_mae_increase": 1}, "x", [ACCURACY])


def of_mae(value: float, low: float | None = None, high: float | None = None) -> ModelFigures:
    score = {"mae": Figure(value, "measured", low, high)}
    return ModelFigures("student int8", "s.onnx", "ab", 5_000, "int8", scores=score, kinds=(MAE, R2))


def line_of(model: ModelFigures, examples: int | None = None, **limits: float) -> Line:
    (line,) = judge(budget_figures(model, Figure(40.0, "measured")), Budget(MAE, **limits), examples=examples).lines
    return line


def test_a_lower_score_is_judged_from_above() -> None:
    line = line_of(of_mae(42.0), max_mae=43)
    assert line.text == "mean absolute error 42 mm ≤ 43 mm: pass"
    assert line.margin == 1.0
    assert line_of(of_mae(43.5), max_mae=43).outcome == "fail"
    assert line_of(of_mae(42.0), max_mae_rise=1.5).text == "mean absolute error rise 2 mm ≤ 1.5 mm: fail"
    assert line_of(of_mae(30.0), teacher_max_mae=39).text == "teacher's mean absolute error 40 mm ≤ 39 mm: fail"


def test_the_interval_of_few_examples_decides() -> None:
    model = of_mae(42.0, 40.0, 44.0)
    few = line_of(model, 299, max_mae=43)
    assert (few.outcome, few.reason) == (
        "inconclusive", "too few to tell: 95 % interval 40 mm … 44 mm on 299 examples",
    )  # fmt: skip
    assert line_of(model, 300, max_mae=43).outcome == "pass"
    assert [line_of(model, 20, max_mae=limit).outcome for limit in (44.0, 39.9)] == ["pass", "fail"]
    assert line_of(of_mae(42.0), 20, max_mae=43).outcome == "pass"  # no interval is known


def test_tables_and_files_show_any_score(tmp_path: Path) -> None:
    model = of_mae(42.0, 40.0, 44.0)
    _, rows = figure_rows([model])
    assert ["mean absolute error", "42 mm ±4.8 %", "measured"] in rows
    header, _ = comparison_rows([("here", model)])
    assert header[2] == "MAE"
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": 3, "models": [model_json(model)]}))
    _, (read,) = read_models(path)
    assert read == model
    assert (read.score, read.kinds[1]) == (model.scores["mae"], R2)


def test_the_kinds_of_classification_are_plain_data() -> None:
    assert [ScoreKind(**dataclasses.asdict(kind)) for kind in CLASSIFICATION] == list(CLASSIFICATION)
