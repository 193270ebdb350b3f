"""Weights of classes by hand, and as scikit-learn has them."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from edgekd.card import Training
from edgekd.distill.tasks.weighing import class_weights
from edgekd.errors import ConfigError

LABELS = np.array([0, 0, 0, 1, 2, 2, 0, 2])


def test_none() -> None:
    assert class_weights(Training(epochs=1), LABELS, 3, "my.toml: recipe.class_weights") is None


def test_balanced_is_scikit_learns() -> None:
    given = class_weights(Training(epochs=1, class_weights="balanced"), LABELS, 3, "my.toml: recipe.class_weights")
    assert given is not None
    assert given.tolist() == pytest.approx([8 / (3 * 4), 8 / (3 * 1), 8 / (3 * 3)])
    assert given.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=LABELS).tolist())
    # So each class counts the same in all.
    assert [given[c].item() * (LABELS == c).sum() for c in range(3)] == pytest.approx([8 / 3] * 3)


def test_a_class_without_images_has_a_finite_weight() -> None:
    given = class_weights(Training(epochs=1, class_weights="balanced"), LABELS, 4, "")
    assert given is not None
    assert given.tolist() == pytest.approx([0.5, 2.0, 8 / 12, 2.0])


def test_weights_of_the_card() -> None:
    given = class_weights(Training(epochs=1, class_weights=(1.0, 2.5, 0.5)), LABELS, 3, "my.toml: recipe.class_weights")
    assert given is not None
    assert given.tolist() == [1.0, 2.5, 0.5]


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 2.0, 3.0, 4.0)])
def test_another_number_of_weights_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        class_weights(Training(epochs=1, class_weights=weights), LABELS, 3, "my.toml: recipe.class_weights")
    assert str(caught.value) == f"my.toml: recipe.class_weights: got {len(weights)} weights; the data has 3 classes"
