"""The commands and options, frozen: a change here is a change for every user."""

from typer.main import get_command

from edgekd.cli.main import app

SURFACE = """
bench MODELS... --data --help --json --memory-limit --parallel --profile --quick --split \
--target --thorough --timeout -t
check MODELS... --allow-estimated --budget --help --target -t
distill CARD --budget --data --fresh --help --out --target --teacher -t
doctor --help --install
models NAME --help
report RUNS... --csv --help --history --html --json --markdown --plots
targets NAME --help
teach CARD --data --help --out
"""


def test_commands_and_options() -> None:
    lines = []
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        parameters = command.params
        options = sorted(o for p in parameters if p.param_type_name == "option" for o in p.opts)
        arguments = [
            p.name.upper() + ("..." if p.nargs == -1 else "") for p in parameters if p.param_type_name == "argument"
        ]
        lines.append(" ".join([name, *arguments, *sorted({*options, "--help"})]))
    assert lines == SURFACE.strip().splitlines()
