"""The `edgekd` command. This module stays small: modules that are slow to import are imported inside the commands."""

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgekd import __version__
from edgekd.cli.check_commands import baseline_accept, check
from edgekd.cli.device_commands import bundle, devices
from edgekd.cli.helping import GroupedCommands
from edgekd.cli.options import (
    AccuracyOn,
    AllowEstimated,
    BatchAxes,
    Budgets,
    CustomOps,
    DataFolder,
    DevicePlace,
    InputValues,
    OnInconclusive,
    Output,
    Rank,
    Settings,
    Shapes,
    Targets,
    Threads,
    Trackers,
    end,
    place_of,
)
from edgekd.console import open_streams, speaks, stdout_error
from edgekd.errors import EdgekdError, ExitCode, one_line
from edgekd.files import at_home
from edgekd.units import flat

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgekd",
    cls=GroupedCommands,
    help="From a teacher network to a proven ONNX file that meets an edge device's budget.",
    epilog="Start with `edgekd init --data DIR`, or with `edgekd distill` on embedded data. COMMAND --help shows an "
    "example. Any command takes --debug: show the traceback of an error.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is fast and looks the same in every terminal
    pretty_exceptions_enable=False,
    add_completion=False,
)

CardName = Annotated[str, typer.Argument(metavar="[CARD]", help="Bundled card or a TOML file.")]
Models = Annotated[list[Path], typer.Argument(metavar="RUN|MODEL...", help="Run folders or ONNX files.")]


@app.command()
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


@app.command()
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
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Teacher: safetensors, state dict or ONNX.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default runs/CARD@TARGET.")] = None,
    budget: Budgets = [],  # noqa: B006 - typer copies it
    settings: Settings = [],  # noqa: B006
    rank: Rank = None,
    device: DevicePlace = "",
    accuracy_on: AccuracyOn = "",
    allow_estimated: AllowEstimated = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Empty the run folder and start again.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Run the teacher at every step, without the cache.")] = False,
    track: Trackers = [],  # noqa: B006
    threads: Threads = None,
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
        device=device,
        accuracy_on=accuracy_on,
        allow_estimated=allow_estimated,
        fresh=fresh,
        online=online,
        track=tuple(track),
    )
    with several_processes() as first:
        codes = distill_on(card, target, asked, settings, rank) if first else []
    end([COUNTED[on_inconclusive] if code == ExitCode.INCONCLUSIVE else code for code in codes])


@app.command()
def search(
    card: CardName = "digits",
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="NAME|FILE", help="A target or a TOML file; default this machine's."),
    ] = None,
    data: DataFolder = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Teacher: safetensors, state dict or ONNX.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default runs/CARD@TARGET.")] = None,
    budget: Budgets = [],  # noqa: B006 - typer copies it
    device: DevicePlace = "",
    settings: Settings = [],  # noqa: B006
    rank: Rank = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Empty the run folder and start again.")] = False,
) -> None:
    """Draw the front of size, latency and score, and say what a wider limit would buy; trains no student to the end."""
    from edgekd.budget import parse_budget
    from edgekd.cli.searching import search_card
    from edgekd.interface import DistillRequest
    from edgekd.tasks.known import deciding

    limits = parse_budget(budget, deciding())
    asked = DistillRequest(data=data, teacher=teacher, out=out, budget=limits, device=device, fresh=fresh)
    end([search_card(card, target, asked, settings, rank)])


@app.command()
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


@app.command()
def sweep(
    card: CardName = "digits",
    data: DataFolder = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Teacher: safetensors, state dict or ONNX.")
    ] = None,
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
    )
    end([sweep_card(card, wanted, data, teacher, out)])


@app.command()
def bench(
    models: Models,
    target: Targets,
    device: DevicePlace = "",
    accuracy_on: AccuracyOn = "",
    results: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Read results.json, which a bundle wrote.")
    ] = None,
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


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    target: Annotated[str, typer.Option("--target", "-t", metavar="NAME|FILE", help="Bundled target or a TOML file.")],
    data: Annotated[
        Path, typer.Option(metavar="DIR|NPZ", help="A folder of images, or ready `inputs` and perhaps `labels`.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default MODEL-int8.onnx.")] = None,
    mean: Annotated[str, typer.Option(metavar="R,G,B", help="Of pixels 0 to 1, for float inputs; default 0.")] = "",
    std: Annotated[str, typer.Option(metavar="R,G,B", help="Likewise; default 1.")] = "",
    size: Annotated[int | None, typer.Option(min=1, max=8192, metavar="N", help="Where the model's is free.")] = None,
    max_drop: Annotated[float, typer.Option(min=0, max=100, metavar="POINTS", help="Allowed loss of accuracy.")] = 1.0,
    limit: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="For finding layers that stay float.")] = 300,
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
        dynamic=dynamic,
        sensitivity=sensitivity,
        save=save,
    )
    end([quantize_model(model, target, options)])


app.command()(check)


app.command()(bundle)
baseline_app = typer.Typer(
    cls=GroupedCommands,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep what was measured, for later checks.",
)
app.add_typer(baseline_app, name="baseline")
baseline_app.command("accept")(baseline_accept)


@baseline_app.callback()
def _baseline() -> None:
    pass


@app.command()
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN...]", help="Run folders, or folders of runs.")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of runs: what `edgekd check --history` wrote, with its steps."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="One interactive page that needs no network.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="For a pull request's comment.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="One row a figure.")] = None,
    save: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything, for programs.")] = None,
    plots: Annotated[Path | None, typer.Option("--plots", metavar="DIR", help="Pictures, PNG.")] = None,
    on_inconclusive: Annotated[
        str | None,
        typer.Option(metavar="pass|fail", help="Exit with the verdicts' code, an inconclusive one counted so."),
    ] = None,
) -> None:
    """Show or write what runs hold: verdict, budget, figures and where each comes from; or the history of checks."""
    from edgekd.cli.reporting import Forms, report

    end([report(runs or [], history, Forms(html, markdown, csv, save, plots), on_inconclusive)])


@app.command()
def targets(name: Annotated[str | None, typer.Argument(metavar="[NAME|FILE]")] = None) -> None:
    """List the bundled targets, or show one."""
    from edgekd.cli.look import list_targets, show_target

    end([show_target(name) if name else list_targets()])


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME|FILE]")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show its networks' layers, which features can name.")
    ] = False,
) -> None:
    """List the bundled model cards, or show one."""
    from edgekd.cli.look import list_cards, show_card, show_layers

    if layers:
        end([show_layers(name)])
    end([show_card(name) if name else list_cards()])


@app.command()
def cache(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY...]", help="As listed; or its first digits.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove these, or all that no training uses.")] = False,
) -> None:
    """List the teachers' outputs that are kept for later runs, or remove them."""
    from edgekd.cli.caching import clear_cache, show_cache

    end([clear_cache(keys or []) if clear else show_cache(keys or [])])


app.command()(devices)


@app.command()
def doctor(
    install: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Make the environment that this target names.")
    ] = None,
) -> None:
    """Say which onnxruntime and providers are here, what each target needs and how to get it."""
    from edgekd.cli.look import diagnose, install_environment

    end([install_environment(install) if install else diagnose()])


def _turn(command: Callable[[str], int], target: str) -> int:
    """Run the command for one of several targets. An error is printed, so that the next target can follow."""
    try:
        return command(target)
    except EdgekdError as error:
        if error.final:
            raise
        _complain(str(error), "--debug" in sys.argv)
        return error.exit_code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point. Every error that a user can cause is shown as one line on stderr and gives an exit code."""
    arguments = [_at_home(argument) for argument in sys.argv[1:]]
    open_streams()
    for stream in (sys.stdout, sys.stderr):  # → or ✓ must not raise an error if the terminal cannot show them
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _interrupt)  # workers must end with this process when a CI job is cancelled
    try:
        code = _run([a for a in arguments if a != "--debug"])
        if code == ExitCode.INTERRUPTED:  # some versions of typer convert the interrupt to this code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else ExitCode.PASS)
    except (KeyboardInterrupt, typer.Abort):
        if speaks():  # torchrun interrupts all processes, but only one prints
            _complain("interrupted; `distill`, `teach` and `sweep` go on where they stopped, others begin again", debug)
        sys.exit(ExitCode.INTERRUPTED)
    except EdgekdError as error:
        _complain(str(error), debug)
        sys.exit(error.exit_code)
    except OSError as error:
        _complain(_system(error), debug)
        sys.exit(ExitCode.USAGE)
    except Exception as error:
        if isinstance(error, typer.BadParameter.__bases__):  # typer's UsageError, whose module depends on the version
            _complain(f"{getattr(error, 'format_message', error.__str__)()} (edgekd --help shows the usage)", debug)
            sys.exit(ExitCode.USAGE)
        _complain(f"internal error, please report it: {type(error).__name__}: {one_line(error)}", debug)
        sys.exit(ExitCode.INTERNAL)


def _at_home(argument: str) -> str:
    """Replace `~` at the start of an argument, or of the value in `--option=VALUE`, by the user's home folder. Shells
    do this only for words that begin with `~` and are not quoted."""
    option, equals, value = argument.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={at_home(value)}"
    return at_home(argument)


def _run(arguments: list[str]) -> object:
    try:
        return app(arguments, standalone_mode=False)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # the reader of typer's own output has gone
            return ExitCode.PASS
        raise
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `edgekd` or `edgekd baseline` alone
            typer.echo(str(error))
            return ExitCode.USAGE
        if not isinstance(error, OSError):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        if last.name == "echo":  # typer's own output again
            raise stdout_error(error) from error
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _system(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{error.filename or 'the run folder'}: no space left on the device; nothing half-written was kept"
    if error.filename is None:
        return one_line(error)
    return f"{error.filename}: {os.strerror(error.errno) if error.errno else one_line(error)}"


def _complain(message: str, debug: bool) -> None:
    with contextlib.suppress(OSError):  # a failed write to stderr cannot be reported
        if debug:
            traceback.print_exc()
        print(f"edgekd: {flat(message)}", file=sys.stderr)
