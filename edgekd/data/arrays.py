"""A Split written as .npy files, which workers map into memory."""

from pathlib import Path

import numpy as np

from edgekd.data.images import Split
from edgekd.run import atomic

__all__ = ["keep_split"]


def keep_split(split: Split, stem: Path) -> Path:
    """Write `STEM.labels.npy` and `STEM.npy` (n, H, W, C uint8), unless both are there; returns the latter."""
    inputs, labels = stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}.labels.npy")
    if inputs.exists() and labels.exists():
        return inputs
    with atomic(labels) as temporary:
        np.save(temporary, split.labels)
    with atomic(inputs) as temporary:
        shape = (len(split), *split.read(np.arange(1)).shape[1:])
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(split), 500):
            chosen = np.arange(start, min(start + 500, len(split)))
            array[chosen] = split.read(chosen)
        array.flush()
    return inputs
