"""The text of `edgekd --help`: commands in groups, with whole summaries, and an example for each command."""

import inspect
from typing import Any

from typer.core import TyperGroup

__all__ = ["EXAMPLES", "GROUPS", "GroupedCommands"]

GROUPS = {
    "Start": ("init", "distill"),
    "Compress": ("teach", "sweep", "search", "export", "prune", "quantize"),
    "Measure": ("bench", "check", "report"),
    "Keep": ("baseline", "bundle", "cache"),
    "Look up": ("targets", "models", "devices", "doctor"),
}
"""The commands by what they are for, in the order of the help. Others come last."""

EXAMPLES = {
    "init": ("edgekd init --data parts/ --teacher teacher.onnx --target cpu-arm",),
    "distill": ("edgekd distill", "edgekd distill ./parts.toml --data parts/ --target cpu-arm"),
    "teach": ("edgekd teach ./parts.toml --data parts/",),
    "sweep": ("edgekd sweep digits --temperatures 1:8 --trials 12",),
    "search": ("edgekd search digits --target cpu-x86",),
    "bundle": ("edgekd bundle model.onnx --target cpu-arm --out bundle/",),
    "devices": ("edgekd devices", "edgekd devices ssh://pi@raspberrypi.local --write my-pi.toml"),
    "bench": ("edgekd bench model.onnx --target cpu-x86 --data set.npz",),
    "export": (
        "edgekd export mynets:small --weights small.pt --input 3,64,64 --classes 10 --target cpu-arm",
        "edgekd export teacher.safetensors --card ./parts.toml --data parts/ --target cpu-arm",
    ),
    "prune": ("edgekd prune mynets:small --weights small.pt --data images/ -t cpu-x86 --budget latency_p50_ms=2",),
    "quantize": ("edgekd quantize model.onnx --target cpu-x86 --data images/",),
    "check": (
        "edgekd check model.onnx --target cpu-x86 --budget latency_p95_ms=2",
        "edgekd check new.onnx --baseline old.onnx --target cpu-x86",
    ),
    "accept": ("edgekd baseline accept model.onnx --target cpu-x86",),
    "report": ("edgekd report runs/digits@cpu-x86", "edgekd report runs --html report.html"),
    "targets": ("edgekd targets cpu-arm > my-board.toml",),
    "models": ("edgekd models digits > mine.toml",),
    "cache": ("edgekd cache --clear",),
    "doctor": ("edgekd doctor --install openvino-cpu",),
}
"""Examples by command. The tests run those that need no data of the user's."""


def _example(command: str) -> str | None:
    """The end of the command's help, as typer's `epilog`. The mark `\\b` keeps the lines as they are."""
    lines = EXAMPLES.get(command, ())
    if not lines:
        return None
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


class GroupedCommands(TyperGroup):
    """Lists the commands in groups. Summaries are wrapped, not cut."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, with its examples at the end of its help."""
        command: Any = super().get_command(ctx, cmd_name)
        if command is not None and command.epilog is None:
            command.epilog = _example(cmd_name)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one list for each group."""
        known = [name for names in GROUPS.values() for name in names]
        others = tuple(name for name in self.commands if name not in known)
        # All lists have the same width of the first column.
        width = max(len(name) for name in self.commands)
        rest = "Others" if len(others) < len(self.commands) else "Commands"
        for title, names in (*GROUPS.items(), (rest, others)):
            found = [(name, self.commands[name]) for name in names if name in self.commands]
            rows = [(name.ljust(width), _summary(command)) for name, command in found if not command.hidden]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _summary(command: Any) -> str:
    """The first paragraph of the command's help."""
    text = inspect.cleandoc(command.short_help or command.help or "").partition("\n\n")[0]
    return " ".join(text.split())
