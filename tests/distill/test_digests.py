"""Digests: of the weights and the data themselves, every bit of them, and of nothing else."""

import hashlib

import numpy as np
import torch

from edgekd.distill.digests import data_digest, state_digest


def test_a_state_is_known_by_its_values_and_names() -> None:
    state = {
        "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "batches": torch.tensor(7),
    }
    content = b"batches\0torch.int64 ()\0" + (7).to_bytes(8, "little")
    content += b"half\0torch.bfloat16 (2,)\0" + bytes([0xC0, 0x3F, 0x00, 0xC0])
    content += b"weight\0torch.float32 (2, 3)\0" + np.arange(6, dtype="<f4").tobytes()
    same = state_digest(state)
    assert same == hashlib.sha256(content).hexdigest()
    assert state_digest(dict(reversed(state.items()))) == same
    transposed = state["weight"].t().contiguous().t()  # the same values, another order in memory
    assert state_digest(state | {"weight": transposed}) == same
    others = [
        state | {"weight": state["weight"] + 1e-6},
        state | {"weight": state["weight"].reshape(3, 2)},
        state | {"weight": state["weight"].double()},
        {"w" if name == "weight" else name: tensor for name, tensor in state.items()},
        {name: tensor for name, tensor in state.items() if name != "batches"},
    ]
    assert len({same, *map(state_digest, others)}) == 6


def test_data_are_known_by_every_label_and_pixel() -> None:
    labels = np.arange(1_203) % 10
    images = np.random.default_rng(0).integers(0, 256, (1_203, 4, 4, 1), dtype=np.uint8)

    def digest(some_labels: np.ndarray, some_images: np.ndarray) -> str:
        return data_digest(some_labels, lambda indices: some_images[indices])

    other_labels, other_images = labels.copy(), images.copy()
    other_labels[700] = 9
    other_images[1_202, 3, 3, 0] ^= 1  # the last bit of the last pixel
    same = digest(labels, images)
    assert digest(labels.copy(), images.copy()) == same
    others = [
        digest(other_labels, images),
        digest(labels, other_images),
        digest(labels, images.reshape(1_203, 2, 8, 1)),
    ]
    assert len({same, *others}) == 4
