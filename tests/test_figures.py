"""The table of metrics: every budget key is judged and shown in the same way wherever it can be asked."""

import dataclasses
import math
from typing import Any

import pytest

from edgekd.budget import Budget, budget_keys
from edgekd.check.tolerance import Tolerance
from edgekd.figures import COMPARED, METRICS, Figure, Metric, ModelFigures, Placement, budgeted, compared, rows_of
from edgekd.judge import budget_figures, judge
from edgekd.scores import ACCURACY, CLASSIFICATION

PLACEMENT = Placement(
    nodes={"CPUExecutionProvider": 3, "wasm": 1}, time_share={}, fell_back={"Pad": 1}, fused=4, unfused=1
)


def model(value: float = 0.5) -> ModelFigures:
    """A model of which everything is known, each figure `value` but for its size of 500 B and its placement."""
    known: dict[str, Any] = {metric.name: Figure(value, "measured", value, value) for metric in METRICS if metric.kept}
    known["scores"] = {kind.name: Figure(value, "measured", value, value) for kind in CLASSIFICATION}
    return ModelFigures("student int8", "s.onnx", "", 500, "int8", 10, 10, placement=PLACEMENT, **known)


def test_each_budget_key_has_one_metric_and_the_order_of_the_budget() -> None:
    assert list(budgeted()) == budget_keys([ACCURACY])
    assert {key for key in COMPARED} <= {field.name for field in dataclasses.fields(Tolerance)}
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


def test_each_kept_figure_is_an_attribute_of_a_model_and_the_other_way_round() -> None:
    figures = {field.name for field in dataclasses.fields(ModelFigures) if field.type is Figure}
    assert {metric.name for metric in METRICS if metric.kept} == figures


@pytest.mark.parametrize("key", budgeted())
def test_a_run_judges_every_budget_key(key: str) -> None:
    """What `distill` judges: a limit that is kept passes, one that is missed fails, and none is left undecided."""
    figures = budget_figures(model(), Figure(0.5, "measured"))
    value = figures[key].value
    assert value is not None
    easier, harder = (0.9, 1.1) if budgeted()[key].better == "higher" else (1.1, 0.9)
    kept = judge(figures, Budget(**{key: min(value * easier, 1.0) if value else 0.1}))
    assert kept.outcome == "pass"
    assert kept.lines[0].sign == ("≥" if key.startswith(("min_", "teacher_min")) else "≤")
    if value and value * harder <= 1 and not budgeted()[key].advisory:
        missed = judge(figures, Budget(**{key: value * harder}))
        assert missed.outcome == "fail"


def test_the_values_behind_the_keys_are_those_of_the_model() -> None:
    worse = dataclasses.replace(model(), scores={"accuracy": Figure(0.48, "measured")})
    figures = budget_figures(worse, Figure(0.5, "measured"))
    values = {key: figure.value for key, figure in figures.items()}
    assert values["size_kb"] == 0.5  # 500 B
    assert values["max_accuracy_drop"] == pytest.approx(2.0)  # points
    assert values["min_coverage"] == 0.75  # one of four nodes fell back
    assert values["min_fused_share"] == 0.8  # four of five
    assert values["load_ms"] == values["min_agreement"] == values["latency_p99_ms"] == 0.5


def test_what_is_unknown_says_why() -> None:
    bare = ModelFigures("m", "m.onnx", "", 500, "fp32")
    figures = budget_figures(bare, Figure(0.5, "measured"))
    assert figures["min_coverage"].why and figures["min_fused_share"].why and figures["max_accuracy_drop"].why
    compiled = dataclasses.replace(bare, placement=dataclasses.replace(PLACEMENT, fused=None, unfused=None))
    assert budget_figures(compiled)["min_fused_share"].why == "the provider compiles the graph itself"


@pytest.mark.parametrize(
    "metric", [*rows_of([model()]), *budgeted().values(), *compared().values()], ids=lambda metric: metric.name
)
def test_every_metric_is_shown_with_a_number(metric: Metric) -> None:
    text = metric.show_limit(0.25)
    assert any(character.isdigit() for character in text)
    assert metric.words and metric.limit_words and metric.sign in "≤≥"
    if metric.row:
        value = metric.figure(model()).value
        assert value is not None and math.isfinite(value)
