"""SHA-256 of a network's weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["state_digest"]


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict's names, types, shapes and values, as hex; the order of the names does not matter."""
    content = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        content.update(f"{name}\0{tensor.dtype} {tuple(tensor.shape)}\0".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
