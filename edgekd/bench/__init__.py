"""Measuring model files. The package itself can be called: `edgekd.bench(…)` is the function of the Python interface.

A function and a package of one name could not both be an attribute of `edgekd`.
"""

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("edgekd.interface").bench(*args, **options)


sys.modules[__name__].__class__ = _Callable
