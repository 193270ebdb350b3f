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
from edgekd.cli.compress_commands import export, prune
from edgekd.cli.device_commands import bundle, devices
from edgekd.cli.helping import GroupedCommands
from edgekd.cli.measure_commands import bench, quantize
from edgekd.cli.options import end
from edgekd.cli.train_commands import distill, init, search, sweep, teach
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


for command in (init, distill, search, teach, sweep, export, prune, bench, quantize, check, bundle):
    app.command()(command)

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
    open_: Annotated[
        bool, typer.Option("--open", help="Show the page in a browser; without --html it is RUN/report.html.")
    ] = False,
    on_inconclusive: Annotated[
        str | None,
        typer.Option(metavar="pass|fail", help="Exit with the verdicts' code, an inconclusive one counted so."),
    ] = None,
) -> None:
    """Show or write what runs hold: verdict, budget, figures and where each comes from; or the history of checks."""
    from edgekd.cli.reporting import Forms, report

    end([report(runs or [], history, Forms(html, markdown, csv, save, plots, open_), on_inconclusive)])


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
            _complain(
                "interrupted; `distill`, `prune`, `teach` and `sweep` go on where they stopped, others begin again",
                debug,
            )
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
    if "_EDGEKD_COMPLETE" in os.environ:  # a shell asks for its script, or for the words that may follow
        typer.completion.completion_init()  # type: ignore[attr-defined]  # typer does not list it in __all__
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
