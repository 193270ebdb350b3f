"""Training. The package itself can be called: `edgekd.distill(…)` is the function of the Python interface.

A function and a package with the same name cannot both be attributes of `edgekd`, so the package is made callable.
"""

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("edgekd.interface").distill(*args, **options)


sys.modules[__name__].__class__ = _Callable
