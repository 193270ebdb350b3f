"""edgekd: from a teacher network to a proven ONNX file that meets a device's budget.

The names in `__all__` are loaded when they are first used, so that importing the package stays quick.

PYTEST_DONT_REWRITE: the pytest plugin contains no assertions, so pytest need not rewrite them. Without this mark,
pytest would warn a user who imports edgekd before pytest starts.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.errors import EdgekdError
    from edgekd.interface import bench, check, distill, load_card, load_result, load_target

__all__ = [
    "EdgekdError",
    "__version__",
    "bench",
    "check",
    "distill",
    "load_card",
    "load_result",
    "load_target",
]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
    import importlib

    if name in ("bench", "check", "distill"):  # packages, which can be called
        return importlib.import_module(f"edgekd.{name}")
    place = "edgekd.errors" if name == "EdgekdError" else "edgekd.interface"
    return getattr(importlib.import_module(place), name)


def __dir__() -> list[str]:
    return sorted(__all__)
