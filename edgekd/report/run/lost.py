"""What a run folder has lost since the run wrote it: files without which it is refused, and what is only said."""

import contextlib
import json
from pathlib import Path

from edgekd.artefacts import SHIPPED, damaged, listed
from edgekd.errors import InputError
from edgekd.files import read_json

__all__ = ["lost_epochs", "refuse_lost_model"]

LOG = "student/log/training.jsonl"


def refuse_lost_model(folder: Path) -> None:
    """Raise InputError if a file that the run has shipped is gone; `edgekd check` refuses such a run, too. A folder
    without a list of its files is not judged."""
    files = listed(folder) or {}
    for name in SHIPPED:
        for damage in damaged(folder, files, only=name):
            raise InputError(f"{folder / name}: {damage.what}; run its `edgekd distill` again, which makes it again")


def lost_epochs(folder: Path) -> list[str]:
    """What the log of the student's training does not tell of the epochs in its history; nothing if one of the two
    files is not there. No figure of a report comes from the log."""
    history, log = folder / "student" / "history.json", folder / LOG
    if not (history.is_file() and log.is_file()):
        return []
    epochs, told = len(read_json(history)["epochs"]), 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut
            told = max(told, int(json.loads(line)["epoch"]))
    return [] if told >= epochs else [f"{LOG}: the last {epochs - told} of {epochs} epochs"]
