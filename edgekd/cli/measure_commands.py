"""`bench` and `quantize`: the options of the commands that measure models."""

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AccuracyOn,
    BatchAxes,
    CustomOps,
    DevicePlace,
    InputValues,
    Models,
    Output,
    Results,
    Shapes,
    Targets,
    end,
    place_of,
)

__all__ = ["bench", "quantize"]


def bench(
    models: Models,
    target: Targets,
    device: DevicePlace = "",
    accuracy_on: AccuracyOn = "",
    results: Results = None,
    sustained: Annotated[
        float, typer.Option(min=0, max=600, metavar="MINUTES", help="Keep the device busy so long before timing.")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Less time, less certainty.")] = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="More time, more certainty.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show the ten costliest nodes.")] = False,
    split: Annotated[str, typer.Option(metavar="val|test", help="Which of a run's data.")] = "test",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR|NPZ", help="A folder, or arrays `inputs` and `labels`, or one an input.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    value: InputValues = [],  # noqa: B006
    batch_axis: BatchAxes = [],  # noqa: B006
    output: Output = None,
    custom_ops: CustomOps = [],  # noqa: B006
    parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Throughput of N sessions side by side.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="When a worker is taken to hang.")] = 300,
    memory_limit: Annotated[
        float | None,
        typer.Option(min=1, max=1e9, metavar="MB", help="Address space of a worker; default: what is free."),
    ] = None,
    save: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON, too.")] = None,
) -> None:
    """Measure latency, size, memory, placement and accuracy on the target's provider."""
    from edgekd.bench.feeding import feedings
    from edgekd.cli.measuring import bench_models, make_asked, on_device

    fed = feedings(shape, value, batch_axis, output, custom_ops)
    asked = make_asked(quick, thorough, profile, split, data, parallel, timeout, memory_limit, fed)
    asked = on_device(asked, place_of(device, results), accuracy_on, sustained)
    end(bench_models(models, target, asked, save))


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    target: Annotated[str, typer.Option("--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file.")],
    data: Annotated[
        Path, typer.Option(metavar="DIR|NPZ", help="A folder of images, or ready `inputs` and perhaps `labels`.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default MODEL-int8.onnx or -fp16.onnx.")] = None,
    mean: Annotated[str, typer.Option(metavar="R,G,B", help="Of pixels 0 to 1, for float inputs; default 0.")] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help="Likewise; default 1.")] = "",
    size: Annotated[int | None, typer.Option(min=1, max=8192, metavar="N", help="Where the model's is free.")] = None,
    max_drop: Annotated[float, typer.Option(min=0, max=100, metavar="POINTS", help="Allowed loss of accuracy.")] = 1.0,
    limit: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="For finding layers that stay float.")] = 300,
    scheme: Annotated[
        str, typer.Option(metavar="NAME", help="In place of the target's: u8s8, u8s8-7bit, s8s8, u8u8, a16w8, w8.")
    ] = "",
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Scale activations at run time: Gemm, LSTM.")] = False,
    sensitivity: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Show what int8 costs in each layer, and draw it.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON, too.")] = None,
) -> None:
    """Make an int8 file of any ONNX model, and say what that costs and gains on the target."""
    from edgekd.cli.quantizing import QuantizeOptions, quantize_model

    options = QuantizeOptions(
        data=data,
        out=out,
        mean=mean,
        std=std,
        size=size,
        max_drop=max_drop,
        limit_s=limit,
        scheme=scheme,
        dynamic=dynamic,
        sensitivity=sensitivity,
        save=save,
    )
    end([quantize_model(model, target, options)])
