"""Digits that the tests of training share."""

import numpy as np
import pytest

from edgekd.augmentation import Augment
from edgekd.data.examples import Examples
from edgekd.data.sources import load_train_and_validation
from edgekd.distill.tasks.known import examples_of
from edgekd.tasks.known import load_card


@pytest.fixture(scope="session")
def digits() -> tuple[Examples, Examples]:
    """200 images to train on, shifted by up to one pixel in each view, and 60 to validate on."""
    card = load_card("digits")
    assert card.augment == Augment(crop_padding=1)
    train, validation = load_train_and_validation(card, None)
    return examples_of(card, train.subset(np.arange(200))), examples_of(card, validation.subset(np.arange(60)))
