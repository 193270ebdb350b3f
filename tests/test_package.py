"""The package as it is installed: the wheel, the checkout, light imports, the public surface."""

import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import edgekd
from edgekd import interface
from edgekd.cli.main import app

SURFACE = Path(__file__).with_name("surface.txt")
ROOT = Path(edgekd.__file__).parent.parent
FUNCTIONS = ("bench", "check", "distill", "load_card", "load_result", "load_target")
FORMATS = {
    "artefacts.json": ("edgekd.artefacts", "SCHEMA_VERSION"),
    "bench.json": ("edgekd.result", "BENCH_VERSION"),
    "candidates.json": ("edgekd.search.found", "SCHEMA_VERSION"),
    "check history": ("edgekd.history", "SCHEMA_VERSION"),
    "check record": ("edgekd.check.record", "SCHEMA_VERSION"),
    "report --json": ("edgekd.report.run.export", "SCHEMA_VERSION"),
    "result.json": ("edgekd.result", "SCHEMA_VERSION"),
    "run.json": ("edgekd.run", "SCHEMA_VERSION"),
    "worker record": ("edgekd.bench.records", "RECORD_VERSION"),
}
"""By name of the file: where its version is told."""
MODULES = [m.name for m in pkgutil.walk_packages(edgekd.__path__, "edgekd.") if not m.name.endswith("__main__")]


def edgekd_at(place: Path, *arguments: str, cwd: Path) -> str:
    """Standard output of the edgekd that lies in `place`, with the other packages of this environment."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_wheel_brings_targets_and_cards(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    listed = edgekd_at(site, "targets", cwd=tmp_path)
    for file in (ROOT / "targets").glob("*.toml"):
        assert file.stem in listed
    assert str(site) in edgekd_at(site, "models", "digits", cwd=tmp_path).splitlines()[-1]
    assert (site / "edgekd" / "py.typed").exists()


def test_an_edited_target_of_a_checkout_is_seen(tmp_path: Path) -> None:
    for name in ("edgekd", "targets", "models"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path / "checkout" / "targets" / "cpu-x86.toml"
    target.write_text(target.read_text().replace("intra_op_threads = 1 ", "intra_op_threads = 2 "))
    shown = edgekd_at(tmp_path / "checkout", "targets", "cpu-x86", cwd=tmp_path)
    assert "intra_op_threads = 2 " in shown


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, edgekd.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "edgekd.errors" in loaded
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "matplotlib", "sklearn", "pyarrow", "edgekd.card"}
    assert heavy.isdisjoint(loaded)


def test_lists_of_names_are_true() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):  # packages are folders here, nothing more
            assert not hasattr(module, "__all__")
            continue
        assert all(hasattr(module, entry) for entry in module.__all__), name


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


def promised() -> list[str]:
    """What is promised to stay: the Python interface, commands with their options, and the versions of files."""
    functions = [f"{name}{inspect.signature(getattr(interface, name))}" for name in edgekd.__all__ if name in FUNCTIONS]
    names = [f"edgekd: {' '.join(edgekd.__all__)}", *(f"edgekd.{text}" for text in functions)]
    commands = [f"edgekd {line}" for line in surface(get_command(app))]
    formats = [f"{name} {getattr(importlib.import_module(module), key)}" for name, (module, key) in FORMATS.items()]
    return [*names, *commands, *formats]


def test_what_is_promised_is_as_frozen() -> None:
    """A change here is a change for every user; `python tests/test_package.py` writes the file anew."""
    assert promised() == SURFACE.read_text().splitlines()


def test_modules_and_public_names_are_documented() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        if hasattr(module, "__path__"):
            continue
        assert module.__doc__, name
        own = [e for e in module.__all__ if getattr(getattr(module, e), "__module__", "") == name]
        assert all(getattr(module, entry).__doc__ for entry in own if callable(getattr(module, entry))), name


if __name__ == "__main__":
    SURFACE.write_text("\n".join(promised()) + "\n")
