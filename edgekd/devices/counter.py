"""The plugin of qemu that counts instructions: compile it from counter.c, and read what it counted."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekd.errors import ModelError, UnavailableError

__all__ = ["COUNTER", "MARK", "make_counter", "plugin_option", "read_counts"]

COUNTER = "libcounter.so"
"""The name of the compiled plugin."""
SOURCE = Path(__file__).with_name("counter.c")
VERSIONS = (1, 2, 3, 4, 5, 6)
"""The versions of qemu's interface for plugins. A qemu refuses those that it does not know: 7.2 takes 1, and from 9.0
on it needs 2 or more. Only 7.2 was tried."""
MARK = 0x45444B44
"""The file descriptor whose closing marks a moment; counter.c and the worker have it, too."""
TRIAL = f"import contextlib, os\nwith contextlib.suppress(OSError): os.close({MARK})"
LIMIT_S = 120


def make_counter(folder: Path, start: Callable[..., Sequence[str]]) -> None:
    """Compile the plugin into `folder`, for the qemu that is here.

    `start(*options)` returns a command that starts the emulated Python; `options` are qemu's. Raises UnavailableError,
    in one line, if there is no C compiler, or if this qemu takes no plugins.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise UnavailableError("instructions cannot be counted: needs a C compiler; `apt-get install gcc` or the like")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".counter.") as scratch:
        library, last = Path(scratch, COUNTER), ""
        for version in VERSIONS:
            options = ["-O2", "-shared", "-fPIC", f"-DVERSION={version}", "-o", str(library), str(SOURCE)]
            if last := _problem([compiler, *options]):
                raise UnavailableError(f"instructions cannot be counted: {SOURCE.name}: {last}")
            counts = Path(scratch, "counts")
            last = _problem([*start("-plugin", plugin_option(library, counts)), "-c", TRIAL])
            if not last and counts.is_file():
                library.replace(folder / COUNTER)
                return
    raise UnavailableError(f"instructions cannot be counted: this qemu takes no plugins: {last}")


def plugin_option(library: Path, counts: Path) -> str:
    """Return the value of qemu's option `-plugin`, in which a comma in a path is written twice."""
    return f"{str(library).replace(',', ',,')},out={str(counts).replace(',', ',,')}"


def _problem(command: Sequence[str]) -> str:
    """Run a command; return the last line of what it printed, or an empty text if it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"{command[0]}: still running after {LIMIT_S} s; stopped"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return (
        ((done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"])[0][:300] if done.returncode else ""
    )


def read_counts(file: Path, model: Path) -> tuple[int, ...]:
    """Read the instructions counted until each mark. Raises ModelError if there are none, or no two of them."""
    text = file.read_text(encoding="ascii").split() if file.is_file() else []
    if len(text) < 2 or not all(word.isdecimal() for word in text):
        raise ModelError(f"{model}: its instructions were not counted, for the plugin of qemu told nothing")
    return tuple(map(int, text))
