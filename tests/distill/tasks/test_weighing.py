"""Weights of classes by hand, and as scikit-learn has them."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from edgekd.card import Training
from edgekd.distill.tasks.detection import BOXES
from edgekd.distill.tasks.learning import Learning
from edgekd.distill.tasks.segmentation import MAPS
from edgekd.distill.tasks.weighing import class_weights
from edgekd.errors import ConfigError

NAMES = ("cat", "dog", "car")
LABELS = np.array([0, 0, 0, 1, 2, 2, 0, 2])


def test_none() -> None:
    assert class_weights(Training(epochs=1), LABELS, NAMES, "my.toml: recipe.class_weights") is None


def test_balanced_is_scikit_learns() -> None:
    given = class_weights(Training(epochs=1, class_weights="balanced"), LABELS, NAMES, "my.toml: recipe.class_weights")
    assert given is not None
    assert given.tolist() == pytest.approx([8 / (3 * 4), 8 / (3 * 1), 8 / (3 * 3)])
    assert given.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=LABELS).tolist())
    # So each class counts the same in all.
    assert [given[c].item() * (LABELS == c).sum() for c in range(3)] == pytest.approx([8 / 3] * 3)


def test_a_class_without_images_has_a_finite_weight() -> None:
    given = class_weights(Training(epochs=1, class_weights="balanced"), LABELS, (*NAMES, "bus"), "")
    assert given is not None
    assert given.tolist() == pytest.approx([0.5, 2.0, 8 / 12, 2.0])


def test_weights_of_the_card() -> None:
    given = class_weights(
        Training(epochs=1, class_weights=(1.0, 2.5, 0.5)), LABELS, NAMES, "my.toml: recipe.class_weights"
    )
    assert given is not None
    assert given.tolist() == [1.0, 2.5, 0.5]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0), (1.0, 2.0, 3.0, 4.0)])
def test_another_number_of_weights_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        class_weights(Training(epochs=1, class_weights=weights), LABELS, NAMES, "my.toml: recipe.class_weights")
    given = "1 weight" if len(weights) == 1 else f"{len(weights)} weights"
    assert str(caught.value) == (
        f"my.toml: recipe.class_weights: got {given}; the data has 3 classes (cat, dog, car), and each needs one"
    )


@pytest.mark.parametrize(
    ("learning", "things", "weights"),
    [(BOXES, "objects", [4 / (3 * 2), 4 / 3, 4 / 3]), (MAPS, "pixels", [6 / (3 * 2), 6 / (3 * 2), 6 / (3 * 2)])],
)
def test_no_balance_with_a_class_that_objects_or_pixels_lack(
    learning: Learning, things: str, weights: list[float]
) -> None:
    """A box and a pixel each are unused or not judged."""
    if learning is BOXES:
        labels = np.array([[[0, 1, 1, 9, 9, 0], [2, 1, 1, 9, 9, 0], [-1, 0, 0, 0, 0, 0]]], np.float32)
    else:
        labels = np.array([[[0, 2], [2, 255]]], np.uint8)
    data, balanced = SimpleNamespace(classes=NAMES), Training(epochs=1, class_weights="balanced")
    with pytest.raises(ConfigError) as caught:
        learning.weights(balanced, labels, data, "my.toml: recipe.class_weights")
    assert str(caught.value) == (
        f'my.toml: recipe.class_weights: "balanced" divides by the number of {things} of each class, and the training '
        "data have none of the class 'dog'; give a number for each class, or remove the class"
    )
    given = learning.weights(balanced, np.concatenate([labels, np.where(labels == 2, 1, labels)]), data, "")
    assert given is not None and given.tolist() == pytest.approx(weights)
