"""The commands `check` and `baseline accept`; this module only defines their options."""

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AccuracyOn,
    AllowEstimated,
    BatchAxes,
    Budgets,
    CheckedModels,
    CustomOps,
    DevicePlace,
    InputValues,
    LabelledData,
    OnInconclusive,
    OptionalTargets,
    Output,
    Results,
    Shapes,
    end,
    place_of,
)

__all__ = ["baseline_accept", "check"]


def check(
    models: CheckedModels = None,
    target: OptionalTargets = None,
    device: DevicePlace = "",
    accuracy_on: AccuracyOn = "",
    results: Results = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Model or run to measure by turns with it, or a stored record."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Models, targets, budgets and baselines, in one file.")
    ] = None,
    budget: Budgets = [],  # noqa: B006 - typer copies it
    tolerance: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE", help="How much worse than its baseline it may be; repeatable."),
    ] = [],  # noqa: B006
    data: LabelledData = None,
    shape: Shapes = [],  # noqa: B006
    value: InputValues = [],  # noqa: B006
    batch_axis: BatchAxes = [],  # noqa: B006
    output: Output = None,
    custom_ops: CustomOps = [],  # noqa: B006
    allow_estimated: AllowEstimated = False,
    allow_difference: Annotated[
        list[str],
        typer.Option(metavar="KEY", help="Let a stored record be of another cpu, onnxruntime, …; repeatable."),
    ] = [],  # noqa: B006
    on_inconclusive: OnInconclusive = None,
    ratchet: Annotated[bool, typer.Option("--ratchet", help="Offer tighter limits where there is room.")] = False,
    write_baseline: Annotated[
        bool,
        typer.Option("--write-baseline-if-missing", help="Write a --baseline record that is not there yet, and pass."),
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Stop a process that hangs.")] = 300,
    init: Annotated[bool, typer.Option("--init", help="Write a manifest from a run folder, and stop.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="JUnit XML.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Summary; $GITHUB_STEP_SUMMARY gets it by itself.")
    ] = None,
    gitlab_metrics: Annotated[Path | None, typer.Option(metavar="FILE", help="GitLab's metrics report.")] = None,
    save: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything, for programs.")] = None,
    records: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep all samples, to judge or accept them later.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a line for `edgekd report --history`.")
    ] = None,
) -> None:
    """Judge budgets and regressions: exit 0 pass, 1 fail, 2 error, 3 inconclusive."""
    from edgekd.bench.feeding import feedings
    from edgekd.cli.checking import CheckOptions, check_models, write_manifest
    from edgekd.cli.outputs import Outputs

    if init:
        end([write_manifest(models or [])])
    options = CheckOptions(
        budget=budget,
        tolerance=tolerance,
        baseline=baseline,
        manifest=manifest,
        data=data,
        feedings=tuple(feedings(shape, value, batch_axis, output, custom_ops)),
        write_baseline=write_baseline,
        allow_estimated=allow_estimated,
        allow_difference=tuple(allow_difference),
        on_inconclusive=on_inconclusive,
        ratchet=ratchet,
        timeout_s=timeout,
        device=place_of(device, results),
        accuracy_on=accuracy_on,
        outputs=Outputs(
            junit=junit, markdown=markdown, gitlab_metrics=gitlab_metrics, json=save, records=records, history=history
        ),
    )
    end(check_models(models or [], target or [], options))


def baseline_accept(
    models: CheckedModels = None,
    target: OptionalTargets = None,
    device: DevicePlace = "",
    accuracy_on: AccuracyOn = "",
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every record that this manifest names.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE|DIR", help="Default baselines/MODEL@TARGET.json.")] = None,
    data: LabelledData = None,
    shape: Shapes = [],  # noqa: B006
    value: InputValues = [],  # noqa: B006
    batch_axis: BatchAxes = [],  # noqa: B006
    output: Output = None,
    custom_ops: CustomOps = [],  # noqa: B006
) -> None:
    """Measure models and keep the records as the baselines of later checks."""
    from edgekd.bench.feeding import feedings
    from edgekd.check.asked import JobOptions
    from edgekd.cli.baselines import accept

    fed = feedings(shape, value, batch_axis, output, custom_ops)
    options = JobOptions(device=device, accuracy_on=accuracy_on)
    end(accept(models or [], target or [], manifest, to, data, fed, options))
