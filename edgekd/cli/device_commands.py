"""The commands `devices` and `bundle`; this module only defines their options."""

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import BatchAxes, CustomOps, InputValues, LabelledData, Models, Output, Shapes, Targets, end

__all__ = ["bundle", "devices"]


def bundle(
    models: Models,
    target: Annotated[str, typer.Option("--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file.")],
    out: Annotated[Path, typer.Option(metavar="FILE.tar.gz", help="Where to write the bundle.")] = Path(
        "bundle.tar.gz"
    ),
    processes: Annotated[int, typer.Option(min=3, max=100, metavar="N", help="Workers that time each model.")] = 16,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="MODEL|RUN", help="Also measure by turns with it, for `check --from --baseline`."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="val|test", help="Which of a run's data.")] = "test",
    data: LabelledData = None,
    shape: Shapes = [],  # noqa: B006
    value: InputValues = [],  # noqa: B006
    batch_axis: BatchAxes = [],  # noqa: B006
    output: Output = None,
    custom_ops: CustomOps = [],  # noqa: B006
) -> None:
    """Pack models and inputs for a device that nothing can reach; `sh run.sh` there writes results.json."""
    from edgekd.bench.feeding import feedings
    from edgekd.cli.bundling import pack
    from edgekd.cli.measuring import make_asked

    fed = feedings(shape, value, batch_axis, output, custom_ops)
    asked = make_asked(False, False, False, split, data, 1, 300, None, fed)
    end([pack(models, target, asked, processes, out, baseline)])


def devices(
    place: Annotated[
        str, typer.Argument(metavar="[PLACE]", help="ssh://[user@]host[:port]; without one, this machine.")
    ] = "local",
    target: Targets = [],  # noqa: B006 - typer copies it
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE.toml", help="Write a target file for this device.")
    ] = None,
    setup: Annotated[
        bool, typer.Option("--setup", help="Make an environment with numpy and onnxruntime there.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="With --setup: download here what the device needs, and copy it.")
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Remove the files that edgekd keeps there.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="With --clean: the environment, too.")] = False,
) -> None:
    """Say what a device is, whether it is a target, and write a target file for it."""
    from edgekd.cli.devices import clean_device, set_up_device, show_device

    if setup or clean:
        end([set_up_device(place, offline) if setup else clean_device(place, everything)])
    end([show_device(place, target, write)])
