"""Import optional packages and the functions that a card names, either of which may be missing."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekd.card import Card
from edgekd.errors import ConfigError, UnavailableError, did_you_mean, one_line, shown
from edgekd.files import file_sha256, real

__all__ = ["import_function", "require", "sources_of"]


def require(module: str, extra: str, purpose: str) -> Any:
    """Import the module, or raise UnavailableError with the pip command of the extra that provides it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UnavailableError(f'{purpose} needs {module}; pip install "edgekd[{extra}]"') from None


def import_function(card: Card, path: str) -> Callable[..., Any]:
    """Import the function `package.module:function` from the card's folder or else from an installed package.

    This is the only place where a card can run the user's own code. Raises ConfigError or UnavailableError.
    """
    module_name, _, name = path.partition(":")
    folder = str(real(Path(card.file).parent))
    sys.path[:] = [folder, *(place for place in sys.path if place != folder)]
    beside = Path(folder, *module_name.split(".")).with_suffix(".py")
    loaded = getattr(sys.modules.get(module_name), "__file__", None)
    if beside.is_file() and loaded and real(Path(loaded)) != beside:
        del sys.modules[module_name]  # this is a module of the same name that belongs to another card
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnavailableError(
            f"{card.file}: function {shown(path)} cannot be imported: {one_line(error, 150)}"
        ) from error
    except Exception as error:  # the user's own code can raise anything
        raise ConfigError(f"{card.file}: function {shown(path)} cannot be imported: {one_line(error, 150)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{card.file}: module {shown(module_name)} has no function {shown(name)}; {did_you_mean(name, known)}"
        )
    return function  # type: ignore[no-any-return]  # its type is the user's responsibility


def sources_of(card: Card) -> dict[str, str]:
    """SHA-256 of the source files of the functions that the card names, by relative path. The files are the modules of
    these functions and all modules that they import, directly or indirectly, from the card's folder or from their own
    package.

    Nothing is imported. A module that is not found is left out; importing it later reports the problem.
    """
    owners = (card.student, *card.student.families, card.teacher, *card.assistants, *card.more_teachers, card.data)
    found: dict[str, str] = {}
    named = {function for owner in owners if (function := getattr(owner, "function", None))}
    for path in sorted(named):
        module = path.partition(":")[0]
        folder = Path(card.file).parent.resolve()
        inside = ""  # include any module in the card's folder
        if not _files_of(folder, module):
            inside = module.partition(".")[0]
            folder = _folder_of(inside) or folder
        found |= {file.relative_to(folder).as_posix(): file_sha256(file) for file in _closure(folder, module, inside)}
    return found


def _folder_of(package: str) -> Path | None:
    """The folder that contains an installed package or module."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    file = Path(spec.origin)
    return file.parent.parent if file.name == "__init__.py" else file.parent


def _files_of(folder: Path, module: str) -> list[Path]:
    """The file of a module in the folder, and the `__init__.py` files of the packages that contain it; empty if there
    is no such module."""
    parts = module.split(".")
    packages = [Path(folder, *parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
    own = Path(folder, *parts).with_suffix(".py") if all(parts) else folder
    files = [file for file in (*packages, own) if file.is_file()]
    return files if own in files or packages[-1] in files else []


def _closure(folder: Path, module: str, inside: str) -> set[Path]:
    """The files of the module and of all modules that it imports, directly or indirectly. Only files in the folder
    count and, if `inside` is not empty, only those in this package."""
    found = set[Path]()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if inside and name.partition(".")[0] != inside:
            continue
        for file in _files_of(folder, name):
            if file not in found:
                found.add(file)
                waiting += _imported_by(file, ".".join(file.relative_to(folder).with_suffix("").parts))
    return found


def _imported_by(file: Path, name: str) -> Iterator[str]:
    """Names of the modules that a file may import; none if Python cannot parse the file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name.split(".")[:-1]  # for a package, the last part is `__init__`
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names))
