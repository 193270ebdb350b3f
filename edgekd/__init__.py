"""edgekd: from a teacher network to a proven ONNX file that meets a device's budget."""

__all__ = ["__version__"]

__version__ = "0.1.0"
