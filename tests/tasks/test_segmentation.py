"""Figures of class maps, against scikit-learn, against drawing examples anew, and by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, jaccard_score

from edgekd.augmentation import Augment
from edgekd.tasks.known import build_card
from edgekd.tasks.segmentation import IGNORED, SEGMENTATION, counts, ious

TRUTH = np.array([[[0, 0], [1, 1]], [[0, 2], [IGNORED, 1]]], np.uint8)
MAPS = np.array([[[0, 1], [1, 1]], [[0, 2], [0, 0]]], np.uint8)


def some_maps(seed: int, count: int = 30) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits (n, 4, 6, 5) and truth (n, 6, 5): about two thirds of the pixels right, images of uneven quality, some
    pixels not judged, and class 3 rare."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, (count, 6, 5), p=[0.6, 0.25, 0.14, 0.01]).astype(np.uint8)
    logits = rng.standard_normal((count, 4, 6, 5)).astype(np.float32)
    good = rng.uniform(0, 4, count)
    logits += good[:, None, None, None].astype(np.float32) * (truth[:, None] == np.arange(4)[None, :, None, None])
    truth[rng.random(truth.shape) < 0.1] = IGNORED
    return logits, truth


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    logits, truth = some_maps(seed)
    judged = truth != IGNORED
    answers = logits.argmax(1)[judged]
    expected = jaccard_score(truth[judged], answers, labels=range(4), average=None)
    found = SEGMENTATION.score(logits, truth)
    assert SEGMENTATION.details(logits, truth)["iou"] == pytest.approx(expected)
    assert found["miou"] == pytest.approx(np.mean(expected))
    assert found["worst_iou"] == pytest.approx(min(expected))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(truth[judged], answers))
    assert 0.02 < found["worst_iou"] < found["miou"] < found["pixel_accuracy"] < 0.95


def test_scores_by_hand() -> None:
    # Class 0: 2 hits of a union of 4; class 1: 2 of 4; class 2: 1 of 1.
    assert ious(counts(MAPS, TRUTH, 3).sum(axis=0)) == [0.5, 0.5, 1.0]
    assert SEGMENTATION.score(MAPS, TRUTH)["miou"] == pytest.approx(2 / 3)
    assert SEGMENTATION.score(MAPS, TRUTH)["pixel_accuracy"] == pytest.approx(5 / 7)
    assert ious(np.diag([3, 0, 1])) == [1.0, None, 1.0]  # a class that neither occurs nor is answered


def test_logits_and_the_maps_that_a_worker_writes_score_the_same() -> None:
    logits, truth = some_maps(0)
    maps = SEGMENTATION.read(logits)
    assert maps.dtype == np.uint8 and maps.shape == truth.shape
    assert SEGMENTATION.score(maps, truth) == SEGMENTATION.score(logits, truth)
    assert np.array_equal(SEGMENTATION.each(maps, truth), SEGMENTATION.each(logits, truth))
    assert SEGMENTATION.same is not None and SEGMENTATION.answers is not None
    changed = maps.copy()
    changed[3, 0, 0] = 3 - changed[3, 0, 0]
    assert SEGMENTATION.same(maps, changed) == pytest.approx(1 - 1 / maps.size)
    equal = SEGMENTATION.answers(maps) == SEGMENTATION.answers(changed)
    assert np.flatnonzero(~equal).tolist() == [3]


@pytest.mark.parametrize("seed", range(3))
def test_the_figure_of_each_image_spreads_like_the_mean_iou(seed: int) -> None:
    logits, truth = some_maps(seed, count=120)
    logits, truth = np.delete(logits, 3, axis=1), np.where(truth == 3, 0, truth)  # a rare class spreads unevenly
    each, whole = SEGMENTATION.each(logits, truth), SEGMENTATION.score(logits, truth)["miou"]
    assert each.mean() == pytest.approx(whole, rel=1e-12)
    matrices = counts(logits.argmax(1).astype(np.uint8), truth, 3)
    rng = np.random.default_rng(seed)
    drawn = [np.mean(ious(matrices[rng.integers(0, 120, 120)].sum(axis=0))) for _ in range(600)]  # type: ignore[arg-type]
    assert each.std() / np.sqrt(120) == pytest.approx(np.std(drawn), rel=0.12)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (np.zeros(4, np.int64), "labels should be one class map (height, width) for each input, got int64 [4]"),
        (np.zeros((4, 2, 2), np.float32), "labels should be one class map (height, width) for each input, got float32"),
        (np.where(TRUTH > 0, 255, 0), "class maps hold only class 0; at least two are needed (255 is not judged;"),
        (np.full((4, 2, 2), 255), "class maps hold no class; at least two are needed"),
        (np.full((4, 2, 2), 256), "class maps hold numbers from 256 to 256, beyond 0 to 255"),
    ],
)
def test_targets_that_are_no_class_maps(targets: NDArray[Any], told: str) -> None:
    assert SEGMENTATION.targets_problem(targets).startswith(told)
    assert SEGMENTATION.targets_problem(TRUTH) == ""


def test_maps_of_another_size() -> None:
    assert SEGMENTATION.fit_problem(MAPS, TRUTH, "m.onnx") == ""
    told = SEGMENTATION.fit_problem(np.zeros((2, 3, 4, 4), np.float32), TRUTH, "m.onnx")
    assert told == "class maps are [2, 2], and m.onnx gives [4, 4]"


def card_of(data: dict[str, Any], **tables: Any) -> Any:
    given = {"source": "mask-folder", "size": 16, "channels": 1, "classes": ["a", "b"], "mean": [0.5], "std": [0.5]}
    empty: dict[str, Any] = {"teacher": {"family": "unet"}, "student": {"family": "unet"}, "recipe": {"epochs": 1}}
    known = {"title": "t", "task": "segmentation", "budgets": {"": {}}, "name": "c", "file": "c.toml"}
    return build_card(known | empty | {"data": given | data} | tables, "c.toml")


@pytest.mark.parametrize(
    ("data", "tables", "told"),
    [
        ({"values": [0]}, {}, "values: must give one number for each of 2 classes"),
        ({"values": [0, 255], "ignored": [255]}, {}, "must name each number once, got 255 twice"),
        ({"values": [0, 0]}, {}, "must name each number once, got 0 twice"),
        ({"ignored": [0]}, {}, "must name each number once, got 0 twice"),
        ({"mean": [0.5, 0.5]}, {}, "must give mean as 1 numbers, one per channel, got 2"),
        ({}, {"augment": {"crop": 32}}, "augment.crop: got 32; it should be at most data.size, 16"),
        ({}, {"augment": {"scale": [2.0, 1.0]}}, "scale: should give the smaller factor first"),
        ({}, {"augment": {"mixup": 1.0}}, "augment.mixup: is for images, the task is segmentation; drop it"),
    ],
)
def test_a_wrong_card_is_told(data: dict[str, Any], tables: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=r"c\.toml") as error:
        card_of(data, **tables)
    assert told in str(error.value)
    assert card_of({"values": [0, 255]}, augment={"crop": 8}).augment == Augment(crop=8)
