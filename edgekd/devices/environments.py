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

from edgekd.devices import host
from edgekd.devices.host import user_folder
from edgekd.errors import ConfigError, UnavailableError, did_you_mean, shown
from edgekd.target import Target

__all__ = [
    "RECIPES",
    "Recipe",
    "Runtime",
    "available_providers",
    "environment_folder",
    "install",
    "look_for_runtime",
    "providers_of",
    "require_runtime",
    "runtime_of",
]

NEEDS_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
WORKERS = Path(__file__).parents[1] / "bench"
INSTALL_LIMIT_S = 1_800


@dataclass(frozen=True)
class Recipe:
    """How an environment is made."""

    kind: Literal["python", "node"]
    packages: tuple[str, ...]


RECIPES = {
    "openvino": Recipe("python", ("numpy>=1.26.4", "onnxruntime-openvino>=1.24")),
    "cuda": Recipe("python", ("numpy>=1.26.4", "onnxruntime-gpu[cuda,cudnn]>=1.24", "nvidia-ml-py")),
    "wasm": Recipe("node", ("onnxruntime-web@^1.24.0",)),
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


def runtime_of(target: Target) -> Runtime:
    """How to start workers for the target.

    Its environment where that is installed; else, if edgekd could make it, edgekd's own Python when that has the
    target's provider. An environment of the user's own is never replaced. Raises
    UnavailableError, with the command that makes the environment, if neither is so.
    """
    own = Runtime("python", (sys.executable, "-P", str(WORKERS / "worker.py")))
    if not target.environment:
        if target.provider.name == "wasm":
            raise ConfigError(f"{target.file}: environment: provider wasm runs in Node; write environment = 'wasm'")
        return own
    folder = environment_folder(target.environment, target.file)
    python = next((p for p in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if p.exists()), None)
    if python:
        return Runtime("python", (str(python), "-I", str(WORKERS / "worker.py")))
    if (folder / "node_modules").is_dir():
        return Runtime("node", (_node(target), str(WORKERS / "worker.mjs"), "--modules", str(folder)))
    if target.environment in RECIPES:
        if target.provider.name in _own_providers():
            return own
        raise UnavailableError(
            f"target {target.name}: its environment {shown(target.environment)} is not installed; "
            f"edgekd doctor --install {target.option}"
        )
    known = did_you_mean(target.environment, RECIPES)
    raise UnavailableError(
        f"{target.file}: environment: got {shown(target.environment)}, which is neither a folder with bin/python or "
        f"node_modules nor one that edgekd can make; {known}"
    )


def _node(target: Target) -> str:
    node = shutil.which("node")
    if node is None:
        raise UnavailableError(f"target {target.name}: needs Node.js (the command `node`), 18 or newer; install it")
    return node


def require_runtime(target: Target) -> None:
    """Raise UnavailableError unless the target's provider can be used here: device, environment, onnxruntime.

    A Python of an environment is started to ask it for its providers.
    """
    runtime = _installed(target)
    target.require_provider(providers_of(runtime))


def look_for_runtime(target: Target) -> str:
    """The command of an environment's Python that only a start could tell more of; else empty.

    This looks at the disk and starts nothing, for a target may be a stranger's file. Raises UnavailableError where
    that already shows that the target's provider cannot be used here.
    """
    runtime = _installed(target)
    if runtime.kind == "python" and runtime.command[0] != sys.executable:
        return runtime.command[0]
    target.require_provider(providers_of(runtime))
    return ""


def _installed(target: Target) -> Runtime:
    if target.provider.name in NEEDS_CUDA and not host.has_cuda_device():
        raise UnavailableError(f"target {target.name}: no CUDA device on this machine (no /dev/nvidia0 or the like)")
    return runtime_of(target)


def _own_providers() -> list[str]:
    try:
        return available_providers()
    except UnavailableError:
        return []


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
