"""Options that several commands share, and the function that ends a command."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgekd.errors import ConfigError, worst

__all__ = [
    "AccuracyOn",
    "AllowEstimated",
    "BatchAxes",
    "Budgets",
    "CustomOps",
    "DataFolder",
    "DevicePlace",
    "DevicePlaces",
    "InputValues",
    "Jobs",
    "Models",
    "OnInconclusive",
    "OptionalTargets",
    "Output",
    "Rank",
    "Ray",
    "Results",
    "Settings",
    "Shapes",
    "Targets",
    "Threads",
    "Trackers",
    "end",
    "place_of",
    "places_of",
]

Targets = Annotated[
    list[str],
    typer.Option("--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file; repeatable."),
]
OptionalTargets = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file; repeatable."),
]
Budgets = Annotated[
    list[str],
    typer.Option("--budget", metavar="KEY=VALUE", help="Override one limit of the card; repeatable."),
]
Rank = Annotated[
    str | None,
    typer.Option(metavar="capacity|learning", help="Choose the largest that fits, or the one that learns best."),
]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the card or target.…, as TOML; repeatable."),
]
DataFolder = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data.")]
DevicePlace = Annotated[
    str,
    typer.Option("--device", metavar="PLACE", help="Where to measure: local, ssh://[user@]host[:port]."),
]
DevicePlaces = Annotated[
    list[str],
    typer.Option(
        "--device",
        metavar="PLACE",
        help="Where to measure: local, ssh://[user@]host[:port]; several share the candidates, and the first one "
        "measures the rest.",
    ),
]
Results = Annotated[
    Path | None, typer.Option("--from", metavar="FILE", help="Read results.json, which a bundle wrote.")
]
AllowEstimated = Annotated[bool, typer.Option("--allow-estimated", help="Let an estimated latency pass or fail.")]
AccuracyOn = Annotated[
    str,
    typer.Option(metavar="device|host", help="Where answers are computed; on the host they are a proxy."),
]
OnInconclusive = Annotated[
    str | None,
    typer.Option(metavar="pass|fail", help="What an inconclusive verdict counts as; default exit 3."),
]
Trackers = Annotated[
    list[str],
    typer.Option("--track", metavar="NAME", help="tensorboard, mlflow or wandb, beside training.jsonl; repeatable."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of a training; default OMP_NUM_THREADS, or a trial.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Trials at the same time, each in a process.")
]
Ray = Annotated[
    str, typer.Option(metavar="ADDRESS|local", help="Run trials on a Ray cluster, or on one that is started here.")
]
Shapes = Annotated[
    list[str],
    typer.Option(
        "--shape", metavar="INPUT=N,N,...", help="Shape to feed, where sizes are free; several give several rows."
    ),
]
InputValues = Annotated[
    list[str],
    typer.Option("--input", metavar="INPUT=VALUE", help="A constant for an input, such as sr=16000; repeatable."),
]
BatchAxes = Annotated[
    list[str],
    typer.Option("--batch-axis", metavar="INPUT=AXIS|none", help="Which axis is the batch; none for no batch at all."),
]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="NAME", help="The output that answers, for accuracy; default the first."),
]
Models = Annotated[list[Path], typer.Argument(metavar="RUN|MODEL...", help="Run folders or ONNX files.")]
CheckedModels = Annotated[
    list[Path] | None, typer.Argument(metavar="[MODEL|RUN|RECORD...]", help="ONNX files, run folders or records.")
]
LabelledData = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Inputs and labels (.npz), for accuracy.")
]
CustomOps = Annotated[
    list[Path],
    typer.Option("--custom-ops", metavar="FILE", help="Library with operators of your own; its code runs. Repeatable."),
]


def end(codes: Iterable[int]) -> None:
    """End the program with the exit code of several results."""
    raise typer.Exit(worst(codes))


def place_of(device: str, results: Path | None) -> str:
    """The device that `--device` or `--from` names. Raises ConfigError if both are given."""
    if results is None:
        return device
    if device:
        raise ConfigError("--from: the results say where they were measured; leave --device out")
    return f"results://{results}"


def places_of(devices: Sequence[str], results: Path | None) -> tuple[str, ...]:
    """The devices that `--device` or `--from` names. Raises ConfigError if both are given."""
    return tuple(devices) if results is None else (place_of(",".join(devices), results),)
