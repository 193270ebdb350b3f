"""A third task goes the whole road, although no line outside its two files knows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from edgekd.distill.tasks.known import LEARNING
from edgekd.nets.families import FAMILIES
from edgekd.tasks.known import TASKS

Cli = Callable[..., Any]

CARD = """
title = "Diabetes"
task = "regression"

[data]
source = "diabetes"

[teacher]
family = "regressor"
shape = { hidden = 64 }

[teacher.training]
epochs = 30
batch_size = 16
learning_rate = 0.02

[student]
family = "regressor"
knobs = { hidden = [4, 8] }

[recipe]
epochs = 20
batch_size = 16
learning_rate = 0.02
patience = 20

[budget]
size_kb = 20
max_mae = 60
max_mae_rise = 10
teacher_max_mae = 55
"""


@pytest.fixture(autouse=True)
def third_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the task, how it is learnt and its family to the dictionaries, as a change of edgekd would."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from diabetes_learning import NUMBERS, Regressor, RegressorShape
    from diabetes_task import REGRESSION

    monkeypatch.setitem(TASKS, "regression", REGRESSION)
    monkeypatch.setitem(LEARNING, "regression", NUMBERS)
    monkeypatch.setitem(FAMILIES, "regression", {"regressor": (RegressorShape, Regressor)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished: Path, cli: Cli, tmp_path: Path) -> Path:
    """The finished run, made by the first test that asks."""
    (tmp_path / "diabetes.toml").write_text(CARD)
    if not finished.exists():
        done = cli("distill", "diabetes.toml", "-t", "cpu-x86", "--out", finished)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "mean absolute error" in done.stdout
    return finished


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def test_the_scores_are_those_of_scikit_learn(run: Path) -> None:
    result = result_of(run)
    inputs, targets = np.load(run / "data" / "test.npy"), np.load(run / "data" / "test.labels.npy")
    for model in result["models"]:
        session = onnxruntime.InferenceSession(run / "exported" / model["file"])
        (outputs,) = session.run(None, {"features": inputs})
        mae, r2 = model["scores"]
        assert (mae["name"], mae["better"], mae["unit"], mae["provenance"]) == ("mae", "lower", "points", "measured")
        assert mae["value"] == pytest.approx(mean_absolute_error(targets, outputs[:, 0]), rel=1e-5)
        assert mae["low"] < mae["value"] < mae["high"]
        assert r2["value"] == pytest.approx(r2_score(targets, outputs[:, 0]), abs=1e-5)
    assert [model["name"] for model in result["models"]] == ["teacher", "student fp32", "student int8"]
    assert result["parity"]["same"] is None and result["parity"]["relative"] < 1e-4
