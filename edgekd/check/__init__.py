"""The judging of models in CI. The package object is callable: `edgekd.check(…)` runs the function of the Python
interface.

The package is callable because `edgekd` cannot have both a function and a subpackage as its attribute `check`.
"""

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("edgekd.interface").check(*args, **options)


sys.modules[__name__].__class__ = _Callable
