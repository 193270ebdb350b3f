"""Environments: runtimes that a target names, apart from the Python edgekd itself runs in.

ONNX Runtime's wheels exclude one another, and onnxruntime-web is no Python package at all; so a target may name an
environment (`environment = "openvino"`), made by `edgekd doctor --install TARGET` in the user's data folder, or the
path of one that the user made: a folder with `bin/python` or `node_modules`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from edgekd.devices.host import user_folder
from edgekd.errors import ConfigError, UnavailableError, did_you_mean, shown
from edgekd.target import Target

__all__ = [
    "RECIPES",
    "EnvironmentRecipe",
    "Runtime",
    "available_providers",
    "environment_folder",
    "install",
    "providers_of",
]

INSTALL_LIMIT_S = 1_800


@dataclass(frozen=True)
class EnvironmentRecipe:
    """How an environment is made."""

    kind: Literal["python", "node"]
    packages: tuple[str, ...]


RECIPES = {
    "openvino": EnvironmentRecipe("python", ("numpy>=1.26.4", "onnxruntime-openvino>=1.24")),
    "cuda": EnvironmentRecipe("python", ("numpy>=1.26.4", "onnxruntime-gpu[cuda,cudnn]>=1.24", "nvidia-ml-py")),
    "wasm": EnvironmentRecipe("node", ("onnxruntime-web@^1.24.0",)),
}


@dataclass(frozen=True)
class Runtime:
    """The command that starts a worker, without the worker's own arguments."""

    kind: Literal["python", "node"]
    command: tuple[str, ...]


def environment_folder(name: str, beside: str = "") -> Path:
    """Where the environment is: a path as it stands (relative to the target's file), a name in the data folder."""
    if "/" in name or os.sep in name:
        return Path(beside).parent / user_folder(name, f"{beside}: environment")
    data = user_folder(os.environ.get("XDG_DATA_HOME") or "~/.local/share", "XDG_DATA_HOME")
    return data / "edgekd" / "environments" / name


def available_providers() -> list[str]:
    """Execution providers of the onnxruntime installed beside edgekd; UnavailableError if there is none."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UnavailableError('measuring needs onnxruntime; pip install "edgekd[cpu]"') from None
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def providers_of(runtime: Runtime) -> list[str]:
    """Execution providers of a runtime, asked of the runtime itself; UnavailableError if it has no onnxruntime."""
    if runtime.kind == "node":
        return ["wasm"]
    if runtime.command[0] == sys.executable:
        return available_providers()
    return list(_ask(runtime.command[0]))


@cache
def _ask(python: str) -> tuple[str, ...]:
    ask = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
    try:
        done = subprocess.run(
            [python, "-I", "-c", ask], capture_output=True, text=True, errors="replace", timeout=120
        )  # fmt: skip
        names = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        last = done.stderr.strip().splitlines()[-1:] if isinstance(error, (ValueError, IndexError)) else []
        raise UnavailableError(f"{python}: has no onnxruntime that works: {(last or [str(error)])[0][:200]}") from None
    return tuple(str(name) for name in names)


def install(target: Target) -> Path:
    """Make the target's environment, whole or not at all, and return its folder.

    Raises UnavailableError if a step fails, with the last line of its output.
    """
    name = target.environment
    if name not in RECIPES:
        what = f"names {shown(name)}, which edgekd cannot make" if name else "needs no environment of its own"
        raise ConfigError(f"target {target.name}: {what}; {did_you_mean(name, RECIPES)}")
    recipe, folder = RECIPES[name], environment_folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as scratch:
        made = Path(scratch, name)
        if recipe.kind == "python":
            _step([sys.executable, "-m", "venv", "--copies", str(made)])
            _step([str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", *recipe.packages])
        else:
            if shutil.which("npm") is None:
                raise UnavailableError(f"target {target.name}: needs Node.js and npm; install them")
            made.mkdir()
            (made / "package.json").write_text('{"private": true}\n', encoding="utf-8")
            # No package runs a script of its own: one of onnxruntime's fetches binaries, and none is needed.
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *recipe.packages]
            _step(command, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def _step(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=INSTALL_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{' '.join(command)}: still running after {INSTALL_LIMIT_S} s; stopped") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{' '.join(command)}: {last[0][:300]}")
