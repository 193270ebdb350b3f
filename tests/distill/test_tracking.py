"""What a training tells: the file after crashes, TensorBoard read back, and what MLflow and W&B are asked to do."""

import json
import math
import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgekd.distill.tracking import FILE_NAME, check_trackers, open_trackers, truncate_after
from edgekd.errors import ConfigError, UnavailableError

RECIPE = {"epochs": 3, "optimizer": "sgd", "losses": {"kd": 0.9, "ce": 0.1}}


def train(kinds: tuple[str, ...], folder: Path, begin: int, end: int) -> None:
    """Epochs `begin` (counted from 0) to `end` of two steps each, with a loss that depends on the step alone."""
    with open_trackers(kinds, folder, "student", RECIPE, finished=begin) as log_values:
        for epoch in range(begin, end):
            for step in (2 * epoch, 2 * epoch + 1):
                log_values(step, {"epoch": epoch + 1, "loss": 1 / (step + 1), "loss/kd": 0.5 / (step + 1)})
            log_values(2 * epoch + 1, {"epoch": epoch + 1, "epoch/validation_accuracy": 0.5 + epoch / 10})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text(encoding="utf-8").splitlines()]


# --- training.jsonl ---


def test_each_line_is_there_as_soon_as_it_is_told(tmp_path: Path) -> None:
    with open_trackers((), tmp_path / "new", "student", RECIPE) as log_values:
        log_values(0, {"epoch": 1, "loss": 2.5, "learning_rate": 0.1})
        assert lines(tmp_path / "new") == [{"step": 0, "epoch": 1, "loss": 2.5, "learning_rate": 0.1}]
        log_values(1, {"epoch": 1, "loss": math.nan, "loss/kd": math.inf})
        assert lines(tmp_path / "new")[1] == {"step": 1, "epoch": 1, "loss": None, "loss/kd": None}


def test_a_resumed_training_leaves_the_file_of_an_undisturbed_one(tmp_path: Path) -> None:
    train((), tmp_path / "whole", 0, 3)
    train((), tmp_path / "killed", 0, 2)  # but the checkpoint of its second epoch was never written
    with (tmp_path / "killed" / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "epoch": 3, "lo')
    train((), tmp_path / "killed", 1, 3)
    assert (tmp_path / "killed" / FILE_NAME).read_bytes() == (tmp_path / "whole" / FILE_NAME).read_bytes()


def test_a_training_begun_anew_forgets_the_one_before(tmp_path: Path) -> None:
    train((), tmp_path, 0, 3)
    train((), tmp_path, 0, 1)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 1, 1]


@pytest.mark.parametrize(
    "rest",
    [
        b'{"step": 2, "epoch": 2}',  # whole but for its newline: more might have followed
        b'{"step": 2, "epo',
        '{"step": 2, "epoch": 2, "é'.encode()[:-1],
        b"\0\0\0\0",
        b"[]\n",
    ],
)
def test_a_half_written_last_line_is_removed(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / FILE_NAME
    whole = b'{"step": 0, "epoch": 1}\n{"step": 1, "epoch": 1}\n'
    path.write_bytes(whole + rest)
    assert truncate_after(path, 7) == 1
    assert path.read_bytes() == whole


def test_truncating_tells_the_last_step_left(tmp_path: Path) -> None:
    train((), tmp_path, 0, 3)
    path = tmp_path / FILE_NAME
    assert [truncate_after(path, epoch) for epoch in (9, 2, 1, 0)] == [5, 3, 1, -1]
    assert path.read_bytes() == b""
    assert truncate_after(tmp_path / "missing", 3) == -1
    assert not (tmp_path / "missing").exists()


# --- choosing ---


def test_an_unknown_tracker_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--track: no tracker 'tensorbord'; did you mean 'tensorboard'\? Known: ml"):
        check_trackers(["tensorbord"])
    with pytest.raises(ConfigError, match="no tracker"):
        train(("none",), tmp_path, 0, 1)


@pytest.mark.parametrize(("kind", "extra"), [("tensorboard", "track"), ("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_tracker_not_installed_is_named_with_the_pip_command(
    monkeypatch: pytest.MonkeyPatch, kind: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UnavailableError, match=rf'--track {kind} needs {kind}; pip install "edgekd\[{extra}\]"'):
        check_trackers([kind])
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(needed.startswith(f"{kind}>=") for needed in project["optional-dependencies"][extra])


# --- TensorBoard ---


def scalars(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"tensors": 0})
    events.Reload()
    return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


def test_tensorboard_reads_back_what_was_told(tmp_path: Path) -> None:
    train(("tensorboard",), tmp_path, 0, 2)
    read = scalars(tmp_path)
    assert read["loss"] == [(step, pytest.approx(1 / (step + 1))) for step in range(4)]
    assert read["loss/kd"] == [(step, pytest.approx(0.5 / (step + 1))) for step in range(4)]
    assert read["epoch/validation_accuracy"] == [(1, pytest.approx(0.5)), (3, pytest.approx(0.6))]


def test_tensorboard_holds_what_was_told_before_a_crash(tmp_path: Path) -> None:
    with open_trackers(("tensorboard",), tmp_path, "student", RECIPE) as log_values:
        log_values(0, {"epoch": 1, "loss": 2.0})
        assert scalars(tmp_path)["loss"] == [(0, 2.0)]


def test_tensorboard_discards_the_steps_a_resumed_training_repeats(tmp_path: Path) -> None:
    train(("tensorboard",), tmp_path, 0, 3)
    with open_trackers(("tensorboard",), tmp_path, "student", RECIPE, finished=1) as log_values:
        log_values(2, {"epoch": 2, "loss": 7.0})
    assert scalars(tmp_path)["loss"] == [(0, 1.0), (1, 0.5), (2, 7.0)]


# --- MLflow and W&B, by what they are asked to do ---


class Recorder:
    """Stands for a package: keeps every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def fake(self, monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> None:
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)

    def keep(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args or kwargs))

    def named(self, name: str) -> list[Any]:
        return [arguments for called, arguments in self.calls if called == name]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the user's settings, and none of edgekd's left behind."""
    for name in [*os.environ]:
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, environment: None) -> Recorder:
    recorder = Recorder()

    @contextmanager
    def start_run(**kwargs: Any) -> Iterator[Any]:
        recorder.calls.append(("start_run", kwargs))
        try:
            yield SimpleNamespace(info=SimpleNamespace(run_id="run-7"))
        except BaseException:
            recorder.calls.append(("end", "FAILED"))
            raise
        recorder.calls.append(("end", "FINISHED"))

    def log_metrics(values: dict[str, float], step: int) -> None:
        recorder.calls.append(("log_metrics", (values, step)))

    keep = {name: recorder.keep(name) for name in ("set_tracking_uri", "set_experiment", "log_params")}
    recorder.fake(monkeypatch, "mlflow", start_run=start_run, log_metrics=log_metrics, **keep)
    return recorder


def test_mlflow_keeps_recipe_and_values_beside_the_training(mlflow: Recorder, tmp_path: Path) -> None:
    train(("mlflow",), tmp_path, 0, 1)
    assert mlflow.named("set_tracking_uri") == [(f"sqlite:///{tmp_path / 'mlflow.db'}",)]
    assert mlflow.named("set_experiment") == [("edgekd",)]
    assert mlflow.named("start_run")[0]["run_name"] == "student"
    assert mlflow.named("log_params") == [({"epochs": "3", "optimizer": "sgd", "losses": '{"kd": 0.9, "ce": 0.1}'},)]
    assert mlflow.named("log_metrics") == [
        ({"epoch": 1, "loss": 1.0, "loss/kd": 0.5}, 0),
        ({"epoch": 1, "loss": 0.5, "loss/kd": 0.25}, 1),
        ({"epoch": 1, "epoch/validation_accuracy": 0.5}, 1),
    ]
    assert mlflow.calls[-1] == ("end", "FINISHED")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_goes_where_the_user_says(mlflow: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_TRACKING_URI", "http://tracking.example")
    monkeypatch.setitem(os.environ, "MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setitem(os.environ, "MLFLOW_DISABLE_TELEMETRY", "false")
    train(("mlflow",), tmp_path, 0, 1)
    assert not mlflow.named("set_tracking_uri")
    assert not mlflow.named("set_experiment")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


def test_mlflow_goes_on_with_the_run_of_a_resumed_training(mlflow: Recorder, tmp_path: Path) -> None:
    train(("mlflow",), tmp_path, 0, 2)
    train(("mlflow",), tmp_path, 1, 3)
    train(("mlflow",), tmp_path, 0, 1)
    assert [begun["run_id"] for begun in mlflow.named("start_run")] == [None, "run-7", None]
    assert len(mlflow.named("log_params")) == 2  # a run's parameters are told once


def test_mlflow_learns_that_a_training_failed(mlflow: Recorder, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_trackers(("mlflow",), tmp_path, "student", RECIPE):
        raise ZeroDivisionError
    assert mlflow.calls[-1] == ("end", "FAILED")


def test_a_tracker_that_fails_ends_no_training(
    mlflow: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(values: dict[str, float], step: int) -> None:
        if step:
            raise ConnectionError("the server\nis gone")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", broken)
    train(("mlflow", "tensorboard"), tmp_path, 0, 2)
    assert capsys.readouterr().err.count("student: mlflow is told no more: the server is gone\n") == 1
    assert len(lines(tmp_path)) == 6
    assert len(scalars(tmp_path)["loss"]) == 4


def test_a_tracker_that_does_not_close_ends_no_training(
    mlflow: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def start_run(**kwargs: Any) -> Iterator[Any]:
        yield SimpleNamespace(info=SimpleNamespace(run_id="run-7"))
        raise ConnectionError("no answer")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", start_run)
    train(("mlflow",), tmp_path, 0, 1)
    assert "student: mlflow does not close: no answer\n" in capsys.readouterr().err


def test_a_tracker_that_does_not_open_is_an_error_of_one_line(
    mlflow: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**kwargs: Any) -> None:
        raise RuntimeError("no run\nof that name")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", refuse)
    with pytest.raises(UnavailableError, match=r"^--track mlflow: does not open: no run of that name$"):
        train(("mlflow",), tmp_path, 0, 1)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, environment: None) -> Recorder:
    recorder = Recorder()

    class Run:
        def __init__(self, asked: dict[str, Any]) -> None:
            self.id = asked.get("id") or f"id-{len(recorder.named('init'))}"

        def __enter__(self) -> "Run":
            return self

        def __exit__(self, *cause: Any) -> None:
            recorder.calls.append(("finish", cause[0]))

        def log(self, values: dict[str, float], step: int) -> None:
            recorder.calls.append(("log", (values, step)))

    def init(**asked: Any) -> Run:
        recorder.calls.append(("init", asked))
        return Run(asked)

    recorder.fake(monkeypatch, "wandb", init=init, Settings=SimpleNamespace)
    return recorder


def test_wandb_stays_offline_unless_the_user_says_otherwise(
    wandb: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(("wandb",), tmp_path, 0, 1)
    assert "WANDB_MODE is not set" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "WANDB_MODE", "online")
    monkeypatch.setitem(os.environ, "WANDB_PROJECT", "mine")
    train(("wandb",), tmp_path, 0, 1)
    assert "WANDB_MODE" not in capsys.readouterr().err
    asked = [{key: init[key] for key in ("mode", "project", "config", "dir")} for init in wandb.named("init")]
    same = {"config": RECIPE, "dir": str(tmp_path)}
    assert asked == [
        {"mode": "offline", "project": "edgekd"} | same,
        {"mode": "online", "project": "mine"} | same,
    ]
    assert wandb.named("log")[:3] == [
        ({"epoch": 1, "loss": 1.0, "loss/kd": 0.5}, 0),
        ({"epoch": 1, "loss": 0.5, "loss/kd": 0.25}, 1),
        ({"epoch": 1, "epoch/validation_accuracy": 0.5}, 1),
    ]
    assert wandb.named("finish") == [None, None]
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_wandb_offline_is_told_everything_again_after_a_crash(wandb: Recorder, tmp_path: Path) -> None:
    train(("wandb",), tmp_path, 0, 2)
    wandb.calls.clear()
    train(("wandb",), tmp_path, 1, 3)
    assert "id" not in wandb.named("init")[0]
    told = [(step, values.get("loss")) for values, step in wandb.named("log")]
    assert told == [
        *[(0, 1.0), (1, 0.5), (1, None)],
        *[(2, 1 / 3), (3, 0.25), (3, None)],
        *[(4, 0.2), (5, 1 / 6), (5, None)],
    ]


def test_wandb_online_goes_on_with_the_run_of_a_resumed_training(
    wandb: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "WANDB_MODE", "online")
    train(("wandb",), tmp_path, 0, 2)
    train(("wandb",), tmp_path, 1, 3)
    first, second = wandb.named("init")
    assert (first["id"], second["id"], second["resume"]) == (None, "id-1", "allow")
    assert len(wandb.named("log")) == 12  # six of the first, of which three are rolled back, and six of the second
