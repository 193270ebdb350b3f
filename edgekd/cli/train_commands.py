"""`init`, `distill`, `search`, `teach` and `sweep`: the options of the commands that draft cards and train."""

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AccuracyOn,
    AllowEstimated,
    Budgets,
    DataFolder,
    DevicePlaces,
    Jobs,
    OnInconclusive,
    Rank,
    Ray,
    Results,
    Settings,
    Threads,
    Trackers,
    end,
    places_of,
)
from edgekd.errors import ExitCode

__all__ = ["distill", "init", "search", "sweep", "teach"]

CardName = Annotated[str, typer.Argument(metavar="[CARD]", help="Bundled card or a TOML file.")]
TeacherFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Teacher: safetensors, state dict or ONNX.")]
RunFolder = Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default runs/CARD@TARGET.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Empty the run folder and start again.")]


def init(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of the data.")],
    teacher: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="ONNX or weights file, torchvision:NAME, timm:NAME or module:function; default: one to train.",
        ),
    ] = "",
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file; default this machine's."
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The card; default DIR's name and .toml.")] = None,
) -> None:
    """Write a first card for your data and teacher."""
    from edgekd.cli.drafting import write_card

    end([write_card(data, teacher, target, out)])


def distill(
    card: CardName = "digits",
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            "-t",
            metavar="NAME|FILE",
            help="Bundled target or a TOML file; default this machine's.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    data: DataFolder = None,
    teacher: TeacherFile = None,
    out: RunFolder = None,
    budget: Budgets = [],  # noqa: B006 - typer copies it
    settings: Settings = [],  # noqa: B006
    rank: Rank = None,
    device: DevicePlaces = [],  # noqa: B006
    accuracy_on: AccuracyOn = "",
    allow_estimated: AllowEstimated = False,
    fresh: Fresh = False,
    online: Annotated[bool, typer.Option("--online", help="Run the teacher at every step, without the cache.")] = False,
    track: Trackers = [],  # noqa: B006
    threads: Threads = None,
    jobs: Jobs = None,
    ray: Ray = "",
    on_inconclusive: OnInconclusive = None,
) -> None:
    """The whole road: teacher, search, distillation, export, quantization, bench, verdict."""
    from edgekd.budget import parse_budget
    from edgekd.cli.road import distill_on, several_processes
    from edgekd.devices.host import use_threads
    from edgekd.interface import DistillRequest
    from edgekd.judge import COUNTED, read_counted
    from edgekd.tasks.known import deciding

    read_counted(on_inconclusive)
    use_threads(threads)

    limits = parse_budget(budget, deciding())
    asked = DistillRequest(
        data=data,
        teacher=teacher,
        out=out,
        budget=limits,
        devices=tuple(device),
        accuracy_on=accuracy_on,
        allow_estimated=allow_estimated,
        fresh=fresh,
        online=online,
        track=tuple(track),
        jobs=jobs,
        ray=ray,
    )
    with several_processes() as first:
        codes = distill_on(card, target, asked, settings, rank) if first else []
    end([COUNTED[on_inconclusive] if code == ExitCode.INCONCLUSIVE else code for code in codes])


def search(
    card: CardName = "digits",
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="NAME|FILE", help="A target or a TOML file; default this machine's."),
    ] = None,
    data: DataFolder = None,
    teacher: TeacherFile = None,
    out: RunFolder = None,
    budget: Budgets = [],  # noqa: B006 - typer copies it
    device: DevicePlaces = [],  # noqa: B006
    accuracy_on: AccuracyOn = "",
    settings: Settings = [],  # noqa: B006
    rank: Rank = None,
    jobs: Jobs = None,
    ray: Ray = "",
    fresh: Fresh = False,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tar.gz", help="Pack all candidates for a device that nothing can reach, and end."),
    ] = None,
    results: Results = None,
) -> None:
    """Draw the front of size, latency and score, and say what a wider limit would buy; trains no student to the end."""
    from edgekd.budget import parse_budget
    from edgekd.cli.searching import pack_card, search_card
    from edgekd.interface import DistillRequest
    from edgekd.tasks.known import deciding

    limits = parse_budget(budget, deciding())
    asked = DistillRequest(
        data=data,
        teacher=teacher,
        out=out,
        budget=limits,
        devices=places_of(device, results),
        accuracy_on=accuracy_on,
        fresh=fresh,
        jobs=jobs,
        ray=ray,
    )
    if bundle is not None:
        end([pack_card(card, target, asked, settings, bundle, rank)])
    end([search_card(card, target, asked, settings, rank)])


def teach(
    card: CardName = "digits",
    data: DataFolder = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default teachers/CARD.safetensors.")] = None,
    track: Trackers = [],  # noqa: B006
    threads: Threads = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Train the card's teacher."""
    from edgekd.cli.road import several_processes, teach_card
    from edgekd.devices.host import use_threads

    use_threads(threads)
    with several_processes() as first:
        codes = [teach_card(card, data, out, tuple(track), settings)] if first else []
    end(codes)


def sweep(
    card: CardName = "digits",
    data: DataFolder = None,
    teacher: TeacherFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default sweeps/CARD.")] = None,
    shape: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Of the student, where the card has several; repeatable.")
    ] = [],  # noqa: B006
    temperatures: Annotated[
        str, typer.Option(metavar="LOW:HIGH|A,B,...", help="A range, or each of these; default 0.1:20.")
    ] = "",
    alphas: Annotated[str, typer.Option(metavar="LOW:HIGH|A,B,...", help="Default 0:1.")] = "",
    weights: Annotated[
        str, typer.Option(metavar="LOW:HIGH|A,B,...", help="Of each soft term in `losses`; default 0.1:10.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Train with so many seeds.")] = 1,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="In all; default 24, or all combinations of values.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of each trial; default the recipe's.")] = None,
    no_pruning: Annotated[
        bool, typer.Option("--no-pruning", help="Train hopeless trials to the end, too; with --seeds always.")
    ] = False,
    threads: Threads = None,
    jobs: Jobs = None,
    ray: Ray = "",
) -> None:
    """Try temperatures and weights on validation data; start it several times to share the trials."""
    from edgekd.cli.sweeping import SweepOptions, sweep_card
    from edgekd.devices.host import use_threads

    use_threads(threads)
    wanted = SweepOptions(
        temperatures=temperatures,
        alphas=alphas,
        weights=weights,
        seeds=seeds,
        trials=trials,
        epochs=epochs,
        shape=tuple(shape),
        pruning=not no_pruning,
        jobs=jobs,
        ray=ray,
    )
    end([sweep_card(card, wanted, data, teacher, out)])
