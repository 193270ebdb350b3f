"""Logging of a training while it runs: to `training.jsonl`, and to the experiment trackers that the user chose."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd.console import say
from edgekd.errors import ConfigError, UnavailableError, did_you_mean, one_line
from edgekd.files import atomic, read_json, real, write_json
from edgekd.imports import require

__all__ = ["FILE_NAME", "TRACKERS", "LogValues", "check_trackers", "open_trackers", "truncate_after"]

FILE_NAME = "training.jsonl"

LogValues = Callable[[int, Mapping[str, float]], None]
"""`log_values(step, values)`: `step` counts from the start of the training; `values` has `epoch`, counted from 1."""

Settings = Mapping[str, Any]


def check_trackers(kinds: Iterable[str]) -> None:
    """Raise ConfigError for an unknown tracker, UnavailableError with the pip command for one that is not installed."""
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    for kind in kinds:
        if kind not in TRACKERS:
            raise ConfigError(f"--track: no tracker {kind!r}; {did_you_mean(kind, TRACKERS)}")
        require(kind, _EXTRAS[kind], f"--track {kind}")


@contextlib.contextmanager
def open_trackers(
    kinds: tuple[str, ...], folder: Path, name: str, recipe: Settings, finished: int = 0
) -> Iterator[LogValues]:
    """Open `folder/training.jsonl` and every tracker in `kinds` for the training `name`, and give a function that logs
    values to all of them.

    Name loss terms `loss/NAME`, and values of a whole epoch `epoch/NAME`: the trackers group values by prefix. If the
    training resumes after `finished` epochs, the lines of later epochs are removed from the file first. TensorBoard
    discards their steps; MLflow, and W&B online, continue the same run and get those values again; W&B offline starts
    a new run with all values so far. A number that is not finite becomes null in the file. If a tracker fails during
    the training, one line says so and the tracker is dropped: the training should not end because of a server.

    Raises ConfigError or UnavailableError if a tracker is unknown, is not installed or does not open.
    """
    check_trackers(kinds)
    path = folder / FILE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    first = truncate_after(path, finished) + 1
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a", encoding="utf-8"))
        others = {kind: _enter(stack, kind, folder, name, recipe, first) for kind in dict.fromkeys(kinds)}

        def log_values(step: int, values: Mapping[str, float]) -> None:
            line: dict[str, float | None] = {"step": step} | {
                key: value if math.isfinite(value) else None for key, value in values.items()
            }
            file.write(_json_line(line))
            file.flush()  # so that the line is not lost if this process is killed
            for kind, other in list(others.items()):
                try:
                    other(step, values)
                except Exception as error:  # a tracker's package can raise any exception
                    say(f"{name}: {kind} is told no more: {one_line(error)}")
                    del others[kind]

        yield log_values


def truncate_after(path: Path, epoch: int) -> int:
    """Remove the lines of epochs after `epoch`, and an incomplete line, from `path`; return the last remaining step, or
    -1 if there is none.

    A checkpoint is written once per epoch: after a crash the training continues from it, so later lines must go.
    """
    kept = [line for line in _lines(path) if line["epoch"] <= epoch]
    text = "".join(_json_line(line) for line in kept)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return int(kept[-1]["step"]) if kept else -1


def _lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines as dictionaries, up to the first line that is incomplete."""
    found = list[dict[str, Any]]()
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            values = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(values, dict) or not {"step", "epoch"} <= values.keys():
            break
        found.append(values)
    return found


def _json_line(values: Mapping[str, float | None]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _enter(stack: contextlib.ExitStack, kind: str, folder: Path, name: str, recipe: Settings, first: int) -> LogValues:
    """Open a tracker for the steps from `first` on. The stack closes it; if closing fails, that is only reported."""
    try:
        tracker = TRACKERS[kind](folder, name, recipe, first)
        log_values = tracker.__enter__()
    except Exception as error:  # any exception of the package or of a server
        raise UnavailableError(f"--track {kind}: does not open: {one_line(error)}") from error

    def close(*cause: Any) -> None:
        try:
            tracker.__exit__(*cause)
        except Exception as error:
            say(f"{name}: {kind} does not close: {one_line(error)}")

    stack.push(close)
    return log_values


@contextlib.contextmanager
def _tensorboard(folder: Path, name: str, recipe: Settings, first: int) -> Iterator[LogValues]:
    """Write TensorBoard scalars to `folder/tensorboard`; a resumed training discards the steps from `first` on."""
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard"
    say(f"{name}: `tensorboard --logdir {place}` draws this training")
    with SummaryWriter(str(place), purge_step=first or None) as writer:
        if not first:
            text = json.dumps(dict(recipe), indent=4, ensure_ascii=False, default=str)
            writer.add_text("recipe", "    " + text.replace("\n", "\n    "), 0)

        def log_values(step: int, values: Mapping[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)
            writer.flush()  # TensorBoard itself only flushes every two minutes

        yield log_values


@contextlib.contextmanager
def _mlflow(folder: Path, name: str, recipe: Settings, first: int) -> Iterator[LogValues]:
    """Log to MLflow at the user's MLFLOW_TRACKING_URI, or to a database beside `training.jsonl`."""
    mlflow = require("mlflow", _EXTRAS["mlflow"], "--track mlflow")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        uri = f"sqlite:///{real(folder / 'mlflow.db')}"
        mlflow.set_tracking_uri(uri)
        say(f"{name}: `mlflow server --backend-store-uri {uri}` draws this training (MLFLOW_TRACKING_URI is not set)")
    if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
        mlflow.set_experiment("edgekd")
    before = _run_id(folder, "mlflow") if first else None
    with mlflow.start_run(run_id=before, run_name=name, log_system_metrics=False) as run:
        if before is None:
            mlflow.log_params({key: _text(value) for key, value in recipe.items()})
            _keep_run_id(folder, "mlflow", run.info.run_id)
        yield lambda step, values: mlflow.log_metrics(dict(values), step=step)


@contextlib.contextmanager
def _wandb(folder: Path, name: str, recipe: Settings, first: int) -> Iterator[LogValues]:
    """Log to Weights & Biases in the user's WANDB_MODE; if it is unset, offline, so no data leaves this machine."""
    wandb = require("wandb", _EXTRAS["wandb"], "--track wandb")
    mode = os.environ.get("WANDB_MODE", "offline")
    if "WANDB_MODE" not in os.environ:
        say(f"{name}: wandb keeps this training in {folder / 'wandb'} (WANDB_MODE is not set); `wandb sync` sends it")
    again = {"id": _run_id(folder, "wandb") if first else None, "resume": "allow"} if mode != "offline" else {}
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "edgekd"),
        name=name,
        dir=str(folder),
        config=dict(recipe),
        mode=mode,
        settings=wandb.Settings(console="off", silent=True),
        **again,
    )
    with run:
        _keep_run_id(folder, "wandb", run.id)
        # W&B offline loses the last seconds before a crash, so a new run gets all lines of the file.
        for line in _lines(folder / FILE_NAME) if mode == "offline" else ():
            run.log({key: value for key, value in line.items() if value is not None}, step=line["step"])
        yield lambda step, values: run.log(dict(values), step=step)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _run_id(folder: Path, kind: str) -> str | None:
    """The id that the tracker gave this training when it started; None if there is none."""
    path = folder / "trackers.json"
    found: str | None = read_json(path).get(kind) if path.exists() else None
    return found


def _keep_run_id(folder: Path, kind: str, run_id: str) -> None:
    path = folder / "trackers.json"
    write_json(path, (read_json(path) if path.exists() else {"schema_version": 1}) | {kind: run_id})


TRACKERS: dict[str, Callable[[Path, str, Settings, int], contextlib.AbstractContextManager[LogValues]]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}

_EXTRAS = {"mlflow": "mlflow", "tensorboard": "track", "wandb": "wandb"}

_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""The packages read these at import; without them both would send usage data to their vendors."""
