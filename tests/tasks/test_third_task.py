"""A third task goes the whole road, although no line outside its two files knows it."""

import importlib
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
    task, learning = (importlib.import_module(name) for name in ("diabetes_task", "diabetes_learning"))
    monkeypatch.setitem(TASKS, "regression", task.REGRESSION)
    monkeypatch.setitem(LEARNING, "regression", learning.NUMBERS)
    monkeypatch.setitem(FAMILIES, "regression", {"regressor": (learning.RegressorShape, learning.Regressor)})


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


def test_its_own_budget_keys_are_judged(run: Path) -> None:
    result = result_of(run)
    lines = {line["key"]: line for line in result["budget"]}
    assert list(lines) == ["size_kb", "max_mae", "max_mae_rise", "teacher_max_mae"]
    shipped = next(model for model in result["models"] if model["name"] == result["chosen"])
    assert lines["max_mae"]["value"] == shipped["scores"][0]["value"]
    rise = shipped["scores"][0]["value"] - result["models"][0]["scores"][0]["value"]
    assert lines["max_mae_rise"]["value"] == pytest.approx(rise, abs=1e-6)
    assert (
        lines["max_mae"]["text"].startswith("mean absolute error ")
        and " points ≤ 60 points: " in lines["max_mae"]["text"]
    )


def test_the_epoch_with_the_lowest_error_is_kept(run: Path) -> None:
    epochs = json.loads((run / "student" / "history.json").read_text())["epochs"]
    reached = [epoch["validation_mae"] for epoch in epochs]
    assert result_of(run)["training"]["validation_mae"] == min(reached) < reached[0]


@pytest.mark.parametrize(("limit", "code"), [("max_mae=60", 0), ("max_mae=1", 1), ("max_mae_rise=60", 0)])
def test_check_judges_a_run(run: Path, cli: Cli, limit: str, code: int) -> None:
    done = cli("check", run, "-t", "cpu-x86", "--budget", limit, "--budget", "max_mae_rise=99", "--json", "all.json")
    assert done.returncode == code, done.stdout + done.stderr


def test_a_worse_file_fails_by_the_paired_bootstrap(run: Path, cli: Cli) -> None:
    exported = {model["name"]: run / "exported" / model["file"] for model in result_of(run)["models"]}
    data = {"inputs": np.load(run / "data" / "test.npy"), "labels": np.load(run / "data" / "test.labels.npy")}
    np.savez("set.npz", **data)
    off = [f"{key}=off" for key in ("max_slowdown", "max_slowdown_p95", "max_load_growth", "max_size_growth")]
    off += [f"{key}=off" for key in ("max_memory_growth", "max_coverage_loss", "max_fused_loss")]
    options = [word for key in off for word in ("--tolerance", key)]
    same = cli(
        "check",
        exported["student fp32"],
        "-t",
        "cpu-x86",
        "--baseline",
        exported["student int8"],
        *options,
        "--data",
        "set.npz",
        "--tolerance",
        "max_mae_increase=20",
    )
    assert same.returncode == 0, same.stdout + same.stderr
    assert "mean absolute error increase" in same.stdout


def test_bench_and_reports_show_the_score(run: Path, cli: Cli) -> None:
    done = cli("bench", run, "-t", "cpu-x86-avx2", "--quick")
    assert "mean absolute error" in done.stdout and "explained variance" in done.stdout
    done = cli(
        "report",
        run,
        "--html",
        "r.html",
        "--markdown",
        "r.md",
        "--csv",
        "r.csv",
        "--json",
        "r.json",
        "--plots",
        "plots",
    )
    assert done.returncode == 0, done.stderr
    assert "of mean absolute error" in cli("report", run).stdout
    page = Path("r.html").read_text()
    assert "Mean absolute error of what was trained" in page and "95 % (bootstrap" in page and ">Classes<" not in page
    assert "| mean absolute error |" in Path("r.md").read_text()
    assert ",mae," in Path("r.csv").read_text()
    (told,) = json.loads(Path("r.json").read_text())["runs"]
    assert told["targets"][0]["models"][0]["scores"][0]["name"] == "mae"


@pytest.mark.parametrize(("key", "near"), [("min_accuracy=0.9", "max_mae"), ("max_mea=3", "max_mae")])
def test_the_keys_of_other_tasks_are_refused(run: Path, cli: Cli, key: str, near: str) -> None:
    done = cli("distill", "diabetes.toml", "-t", "cpu-x86", "--budget", key)
    assert done.returncode == 2
    assert key.partition("=")[0] in done.stderr and near in done.stderr


@pytest.mark.parametrize(("recipe", "said"), [("losses = { dkd = 1.0 }", "dkd"), ("standardize = true", "standardize")])
def test_terms_on_logits_are_refused(cli: Cli, recipe: str, said: str) -> None:
    Path("diabetes.toml").write_text(CARD.replace("[recipe]", f"[recipe]\n{recipe}"))
    done = cli("distill", "diabetes.toml", "-t", "cpu-x86")
    assert done.returncode == 2
    assert f"{said}: needs logits of classes" in done.stderr
