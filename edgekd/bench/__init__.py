"""The measurement of model files. The package object is callable: `edgekd.bench(…)` runs the function of the Python
interface.

The package is callable because `edgekd` cannot have both a function and a subpackage as its attribute `bench`.
"""

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("edgekd.interface").bench(*args, **options)


sys.modules[__name__].__class__ = _Callable
