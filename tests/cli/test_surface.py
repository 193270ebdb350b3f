"""The commands and options, frozen: a change here is a change for every user."""

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from edgekd.cli.main import app

SURFACE = """
baseline accept MODELS... --batch-axis --custom-ops --data --help --input --manifest --output --shape --target --to -t
bench MODELS... --batch-axis --custom-ops --data --help --input --json --memory-limit --output --parallel --profile \
--quick --shape --split --target --thorough --timeout -t
cache KEYS... --clear --help
check MODELS... --allow-difference --allow-estimated --baseline --batch-axis --budget --custom-ops --data \
--gitlab-metrics --help --history --init --input --json --junit --manifest --markdown --on-inconclusive --output \
--ratchet --records --shape --target --timeout --tolerance --write-baseline-if-missing -t
distill CARD --budget --data --fresh --help --on-inconclusive --online --out --target --teacher --track -t
doctor --help --install
models NAME --help --layers
report RUNS... --csv --help --history --html --json --markdown --on-inconclusive --plots
sweep CARD --alphas --data --epochs --help --no-pruning --out --seeds --shape --teacher --temperatures --trials \
--weights
targets NAME --help
teach CARD --data --help --out --track
"""


def surface(group: Any, prefix: str = "") -> Iterator[str]:
    """A line for each command of the group and of those in it."""
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from surface(command, f"{prefix}{name} ")
            continue
        parameters = command.params
        options = {o for p in parameters if p.param_type_name == "option" for o in p.opts}
        arguments = [
            p.name.upper() + ("..." if p.nargs == -1 else "") for p in parameters if p.param_type_name == "argument"
        ]
        yield " ".join([prefix + name, *arguments, *sorted({*options, "--help"})])


def test_commands_and_options() -> None:
    assert list(surface(get_command(app))) == SURFACE.strip().splitlines()
