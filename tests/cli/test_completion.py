"""Completion in a shell: the script that edgekd gives, run by bash itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("edgekd")

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here"),
    pytest.mark.skipif(not COMMAND.exists(), reason="edgekd is not installed as a command"),
]


def completed(words: str, place: int) -> list[str]:
    """What bash offers for the word at `place` after the script of edgekd was read."""
    script = f"""
        eval "$(_EDGEKD_COMPLETE=source_bash edgekd)"
        COMP_WORDS=({words}); COMP_CWORD={place}; _edgekd_completion edgekd
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = os.environ | {"PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True).stdout.split()


def test_commands_and_options_are_completed() -> None:
    assert {"bench", "baseline", "bundle"} == set(completed("edgekd b", 1))
    assert completed("edgekd distill --targ", 2) == ["--target"]
