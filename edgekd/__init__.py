"""edgekd: from a teacher network to a proven ONNX file that meets a device's budget.

PYTEST_DONT_REWRITE: the plugin holds no assertions, and whoever imports edgekd before pytest should not be warned.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
