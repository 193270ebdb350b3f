"""Environments: runtimes for targets that cannot use the Python in which edgekd runs.

ONNX Runtime's wheels exclude each other, and onnxruntime-web is not a Python package. A target may therefore name an
environment (`environment = "openvino"`), which `edgekd doctor --install TARGET` creates in the user's data folder. It
may also give the path of an environment that the user created: a folder with `bin/python` or `node_modules`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
    "pip_download",
    "providers_of",
]

INSTALL_LIMIT_S = 1_800


@dataclass(frozen=True)
class EnvironmentRecipe:
    """The kind of an environment and the packages to install in it."""

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
    """Return the environment's folder: a path is relative to the target's file, a name is a folder in the data
    folder.
    """
    if "/" in name or os.sep in name:
        return Path(beside).parent / user_folder(name, f"{beside}: environment")
    data = user_folder(os.environ.get("XDG_DATA_HOME") or "~/.local/share", "XDG_DATA_HOME")
    return data / "edgekd" / "environments" / name


def available_providers() -> list[str]:
    """List the execution providers of edgekd's own onnxruntime. Raises UnavailableError if it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UnavailableError('measuring needs onnxruntime; pip install "edgekd[cpu]"') from None
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def providers_of(runtime: Runtime) -> list[str]:
    """Ask a runtime for its execution providers. Raises UnavailableError if it has no working onnxruntime."""
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
    """Create the target's environment and return its folder; after an error no partial environment remains.

    Raises UnavailableError with the last line of output if a step fails.
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
            # Install scripts are disabled: one of onnxruntime's dependencies would download binaries that are not
            # needed.
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *recipe.packages]
            _step(command, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def pip_download(folder: Path, architecture: str, version: str, packages: Sequence[str]) -> None:
    """Download wheels for another machine: Linux on `architecture` with CPython `version`, such as 3.11.

    Raises UnavailableError with pip's last line if there are none.
    """
    platforms = [f"manylinux_2_{minor}_{architecture}" for minor in range(17, 36)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", version, "--implementation", "cp"]
    command += [part for name in (*platforms, f"manylinux2014_{architecture}") for part in ("--platform", name)]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(f"no wheels for {architecture} and Python {version}: {last[:300]}")


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
