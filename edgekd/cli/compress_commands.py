"""`export` and `prune`: the options of the commands that take a torch network of the user's own."""

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Budgets, DevicePlace, Threads, end

__all__ = ["export", "prune"]

Source = Annotated[str, typer.Argument(metavar="MODULE:FN|CHECKPOINT", help="Makes the network; or its weights.")]
OneTarget = Annotated[str, typer.Option("--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file.")]
CardName = Annotated[str, typer.Option("--card", metavar="CARD", help="The network is this card's teacher.")]
FamilyName = Annotated[str, typer.Option("--family", metavar="NAME", help="Of the checkpoint; default: recognised.")]
ShapeValues = Annotated[
    list[str], typer.Option("--shape", metavar="KEY=VALUE", help="Of the family, or an argument of FN; repeatable.")
]
WeightsFile = Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="For the network of MODULE:FN.")]
InputSize = Annotated[str, typer.Option("--input", metavar="C,H,W", help="Shape of one example, without the batch.")]
ClassNames = Annotated[
    str, typer.Option("--classes", metavar="N|A,B,...|FILE", help="Their number or names, for the metadata.")
]
Mean = Annotated[str, typer.Option(metavar="R,G,B", help="Of pixels 0 to 1: the graph normalises uint8 images.")]
Std = Annotated[str, typer.Option(metavar="R,G,B", help="Likewise; default 1.")]


def export(
    source: Source,
    target: OneTarget,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR|NPZ", help="Real inputs to compare file and torch with; default noise.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default NAME.onnx.")] = None,
    card: CardName = "",
    family: FamilyName = "",
    shape: ShapeValues = [],  # noqa: B006
    weights: WeightsFile = None,
    size: InputSize = "",
    classes: ClassNames = "",
    mean: Mean = "",
    std: Std = "",
    outside: Annotated[
        bool, typer.Option("--outside", help="The caller normalises; --mean and --std are for --data alone.")
    ] = False,
) -> None:
    """Write a torch network as the ONNX file that a target wants, compared with torch."""
    from edgekd.cli.exporting import ExportOptions, NetworkOptions, export_network

    network = NetworkOptions(
        card=card,
        family=family,
        shape=tuple(shape),
        weights=weights,
        size=size,
        classes=classes,
        mean=mean,
        std=std,
    )
    end([export_network(source, target, ExportOptions(network=network, data=data, outside=outside, out=out))])


def prune(
    source: Source,
    target: OneTarget,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data, as for `init`.")] = None,
    budget: Budgets = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default runs/NAME-pruned@TARGET.")
    ] = None,
    card: CardName = "",
    family: FamilyName = "",
    shape: ShapeValues = [],  # noqa: B006
    weights: WeightsFile = None,
    size: InputSize = "",
    classes: Annotated[str, typer.Option("--classes", metavar="A,B,...|FILE", help="In the network's order.")] = "",
    mean: Mean = "",
    std: Std = "",
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="After each round; default 8.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=100, metavar="N", help="Default 3.")] = None,
    importance: Annotated[str, typer.Option(metavar="NAME", help="magnitude, taylor or bn-scale.")] = "",
    device: DevicePlace = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again instead of going on.")] = False,
    threads: Threads = None,
) -> None:
    """Remove channels of a torch network until it meets the measured limits, and let it learn from the whole one."""
    from edgekd.cli.exporting import NetworkOptions
    from edgekd.cli.pruning import PruneOptions, prune_model
    from edgekd.devices.host import use_threads

    use_threads(threads)
    network = NetworkOptions(
        card=card,
        family=family,
        shape=tuple(shape),
        weights=weights,
        size=size,
        classes=classes,
        mean=mean,
        std=std,
    )
    options = PruneOptions(
        network=network,
        data=data,
        budget=budget,
        out=out,
        epochs=epochs,
        rounds=rounds,
        importance=importance,
        device=device,
        fresh=fresh,
    )
    end([prune_model(source, target, options)])
