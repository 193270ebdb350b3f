"""Loading what may be missing: optional packages, and the functions a card names."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.card import Card
from edgekd.devices.host import real
from edgekd.errors import ConfigError, UnavailableError, did_you_mean, one_line, shown

__all__ = ["import_function", "require"]


def require(module: str, extra: str, purpose: str) -> Any:
    """The module, or UnavailableError with the pip command of the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UnavailableError(f'{purpose} needs {module}; pip install "edgekd[{extra}]"') from None


def import_function(card: Card, path: str) -> Callable[..., Any]:
    """The function `package.module:function`, found from the card's folder, then among installed packages.

    This runs the user's own code: the one place where a card can. Raises ConfigError or UnavailableError.
    """
    module_name, _, name = path.partition(":")
    folder = str(real(Path(card.file).parent))
    sys.path[:] = [folder, *(place for place in sys.path if place != folder)]
    beside = Path(folder, *module_name.split(".")).with_suffix(".py")
    loaded = getattr(sys.modules.get(module_name), "__file__", None)
    if beside.is_file() and loaded and real(Path(loaded)) != beside:
        del sys.modules[module_name]  # another card's module of the same name
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnavailableError(
            f"{card.file}: function {shown(path)} cannot be imported: {one_line(error, 150)}"
        ) from error
    except Exception as error:  # the user's own code
        raise ConfigError(f"{card.file}: function {shown(path)} cannot be imported: {one_line(error, 150)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{card.file}: module {shown(module_name)} has no function {shown(name)}; {did_you_mean(name, known)}"
        )
    return function  # type: ignore[no-any-return]  # whatever the user wrote
