"""SHA-256 of what a teacher is: its weights themselves, or its file with all that belongs to it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.bench.external import external_files
from edgekd.bench.measure import file_sha256

if TYPE_CHECKING:  # the command line digests files before it loads torch
    from torch import Tensor

__all__ = ["file_digest", "state_digest"]


def file_digest(path: Path) -> str:
    """SHA-256 of a teacher's file, as hex; of an ONNX model whose tensors lie in other files, of those as well."""
    names = [] if path.suffix in (".safetensors", ".pt", ".pth") else _external_files(path)
    content = [file_sha256(path)]
    for beside in (path.parent / name for name in names):
        # One that is missing makes the model unusable, which whoever loads it says better.
        content.append(file_sha256(beside) if beside.is_file() else "missing")
    return hashlib.sha256(" ".join(content).encode()).hexdigest() if names else content[0]


def state_digest(state: "Mapping[str, Tensor]") -> str:
    """SHA-256 of a state dict's names, types, shapes and values, as hex; the order of the names does not matter."""
    import torch

    content = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        content.update(f"{name}\0{tensor.dtype} {tuple(tensor.shape)}\0".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _external_files(path: Path) -> list[str]:
    """Names of the files beside an ONNX model that hold its tensors; none where it is no ONNX model."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's errors have no common base; whoever loads the model says what is wrong with it
        return []
    return external_files(model)
