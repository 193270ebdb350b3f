"""Read facts about this machine from the system; values that the system does not report are not guessed."""

import os
import platform
import sys
from functools import cache
from pathlib import Path

from edgekd.errors import ConfigError, shown
from edgekd.machine import Machine

__all__ = [
    "described",
    "free_memory",
    "has_cuda_device",
    "machine",
    "number_of",
    "parse_cpuinfo",
    "processes",
    "use_threads",
    "user_folder",
]


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str], str]:
    """Parse the text of /proc/cpuinfo into model name, feature flags and Arm part number."""
    first: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip().lower(), value.strip())
    flags = first.get("flags") or first.get("features") or ""
    return first.get("model name", ""), frozenset(flags.split()), first.get("cpu part", "")


@cache
def machine() -> Machine:
    """Describe this machine; the features are empty if /proc/cpuinfo does not exist."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return described(platform.machine(), platform.system(), text, platform.processor())


def described(architecture: str, system: str, cpuinfo: str, processor: str = "") -> Machine:
    """Describe a machine by what `uname -m`, `uname -s` and /proc/cpuinfo say; `processor` replaces a missing model
    name.
    """
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    architecture = architecture.lower()
    model, features, part = parse_cpuinfo(cpuinfo)
    return Machine(names.get(architecture, architecture), model or processor, features, part, system)


def has_cuda_device(devices: Path = Path("/dev")) -> bool:
    """Whether an NVIDIA GPU is available, judged by its device files (Linux; nvhost on a Jetson, dxg under WSL)."""
    patterns = ("nvidia[0-9]*", "nvhost-gpu", "nvhost-ctrl-gpu", "dxg")
    return machine().system != "Linux" or any(any(devices.glob(pattern)) for pattern in patterns)


def free_memory() -> int | None:
    """Return the bytes of memory that are available to programs; None if /proc/meminfo does not report them."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def number_of(variable: str, default: int, least: int) -> int:
    """Read a whole number from an environment variable, such as torchrun sets. Raises ConfigError for another value."""
    text = os.environ.get(variable, "") or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < least:
        raise ConfigError(f"{variable}: got {shown(text)}; it should be a whole number of at least {least}, or not set")
    return int(text)


def processes() -> int:
    """Return the number of processes that torchrun started for this training; 1 without torchrun."""
    return number_of("WORLD_SIZE", default=1, least=1)


def use_threads(count: int | None) -> None:
    """Set the number of torch's threads in this process and in those that it starts; None changes nothing."""
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)  # torch reads it at its import
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(count)


def user_folder(text: str, variable: str) -> Path:
    """Expand `~` or `~user` at the start of a path. Raises ConfigError if no such home folder is known."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{variable}: no home folder is known here for {shown(text)}; set it to the whole path of a folder"
        ) from None
