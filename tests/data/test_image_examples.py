"""Examples of images: the batches that the training loop gets."""

import dataclasses

import numpy as np
import torch

from edgekd.augmentation import Augment
from edgekd.card import Data
from edgekd.data.image_examples import examples
from edgekd.data.images import Split, in_memory
from edgekd.data.views import VIEWS_VERSION, mixed, view

DATA = Data(source="digits", size=8, channels=1, classes=("a", "b", "c"), mean=(0.5,), std=(0.5,))
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 12)
SOME = np.array([7, 0, 11])
MIXED = Augment(crop_padding=1, flip=True, policy="rand", mixup=0.4, cutmix=1.0, seed=5)


def test_without_a_view_a_batch_is_the_plain_images_and_labels() -> None:
    part = examples(in_memory(IMAGES, LABELS), DATA, MIXED)
    batch = part.batch(SOME, None)
    assert len(part) == 12
    assert part.labels.tolist() == LABELS.tolist()
    assert torch.equal(batch.inputs, torch.from_numpy(IMAGES[SOME]))
    assert batch.targets.tolist() == LABELS[SOME].tolist()


def test_a_batch_of_a_view_has_labels_where_nothing_is_mixed() -> None:
    augment = dataclasses.replace(MIXED, mixup=0.0, cutmix=0.0)
    batch = examples(in_memory(IMAGES, LABELS), DATA, augment).batch(SOME, 3)
    assert torch.equal(batch.inputs, view(torch.from_numpy(IMAGES[SOME]), SOME, 3, 5, augment))
    assert batch.targets.tolist() == LABELS[SOME].tolist()


def test_a_mixed_batch_has_shares_of_the_cards_classes_also_from_a_stream() -> None:
    inputs, targets = mixed(in_memory(IMAGES, LABELS), SOME, 3, 5, MIXED, 3)
    for split in (in_memory(IMAGES, LABELS), Split(LABELS, lambda indices: np.stack([IMAGES[i] for i in indices]))):
        batch = examples(split, DATA, MIXED).batch(SOME, 3)
        assert torch.equal(batch.inputs, inputs)
        assert torch.equal(batch.targets, targets)
        assert batch.targets.shape == (3, 3)


def test_the_key_tells_data_and_augmentation_apart() -> None:
    split = in_memory(IMAGES, LABELS)
    key = examples(split, DATA, MIXED).key
    assert key == examples(in_memory(IMAGES.copy(), LABELS), DATA, MIXED).key
    assert key != examples(in_memory(255 - IMAGES, LABELS), DATA, MIXED).key
    assert key != examples(split, DATA, dataclasses.replace(MIXED, seed=6)).key
    assert key["views"] == VIEWS_VERSION
    # As earlier versions wrote it, whatever settings other tasks add.
    plain = {"crop_padding": 0, "flip": False, "policy": "none", "rand_operations": 2, "rand_magnitude": 9}
    plain |= {"mixup": 0.0, "cutmix": 0.0, "word_dropout": 0.0, "seed": 0}
    assert examples(split, DATA, Augment()).key["augment"] == plain
    assert examples(split, DATA, Augment(cutout=2)).key["augment"] == plain | {"cutout": 2}
