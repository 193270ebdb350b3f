"""Figures of boxes, against pycocotools, against leaving images out, and by hand."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekd.augmentation import Augment
from edgekd.data.examples import Batch, Examples
from edgekd.distill.tasks.detection import mean_average_precision
from edgekd.errors import ConfigError, ModelError
from edgekd.tasks.boxes import average_precision, influence, matches, overlaps
from edgekd.tasks.detection import DETECTION
from edgekd.tasks.known import build_card

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]


def some_boxes(seed: int, count: int = 25, classes: int = 3, crowds: bool = True) -> Arrays:
    """Detections (n, 100, 6) and truth (n, 12, 6): most objects are found, some twice, with uneven overlap."""
    rng = np.random.default_rng(seed)
    found, truth = np.zeros((count, 100, 6), np.float32), np.zeros((count, 12, 6), np.float32)
    found[..., 5], truth[..., 0] = -1, -1
    for i in range(count):
        objects, rows = int(rng.integers(0, 10)), list[Any]()
        for j in range(objects):
            corner, side = rng.uniform(0, 200, 2), rng.uniform(10, 60, 2)
            label, aside = int(rng.integers(0, classes)), float(crowds and rng.random() < 0.15)
            truth[i, j] = (label, *corner, *(corner + side), aside)
            for _ in range(int(rng.integers(0, 3))):
                moved = np.concatenate([corner, corner + side]) + rng.normal(0, 5, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                rows.append((*moved, rng.random(), label if rng.random() < 0.9 else rng.integers(0, classes)))
        for _ in range(int(rng.integers(0, 4))):
            corner = rng.uniform(0, 200, 2)
            rows.append((*corner, *(corner + rng.uniform(10, 60, 2)), 0.6 * rng.random(), rng.integers(0, classes)))
        if rows:
            found[i, : len(rows)] = sorted(rows, key=lambda row: -row[4])
    return found, truth


def by_pycocotools(found: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """AP by threshold and class (10, C) of COCO's own evaluation."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    number = iter(range(1, 1_000_000))
    boxes = [(i, row) for i, rows in enumerate(truth) for row in rows.astype(float) if row[0] >= 0]
    told: dict[str, Any] = {
        "info": {},
        "images": [{"id": i} for i in range(len(truth))],
        "categories": [{"id": k} for k in range(1 + int(truth[..., 0].max()))],
        "annotations": [
            {"id": next(number), "image_id": i, "category_id": int(k), "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": (x2 - x1) * (y2 - y1), "iscrowd": int(aside)}
            for i, (k, x1, y1, x2, y2, aside) in boxes
        ],
    }  # fmt: skip
    answers = [
        {"image_id": i, "category_id": int(k), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for i, rows in enumerate(found)
        for x1, y1, x2, y2, score, k in rows.astype(float)
        if k >= 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = told
        known.createIndex()
        judged = evaluation.COCOeval(known, known.loadRes(answers), "bbox")
        judged.evaluate()
        judged.accumulate()
    precision: NDArray[np.float64] = judged.eval["precision"][:, :, :, 0, 2]  # all areas, 100 detections
    return np.asarray(precision.mean(axis=1))


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_pycocotools(seed: int) -> None:
    found, truth = some_boxes(seed)
    expected = by_pycocotools(found, truth)
    scores, details = DETECTION.score(found, truth), DETECTION.details(found, truth)
    assert details["ap50"] == pytest.approx(expected[0], abs=1e-6)
    assert details["ap"] == pytest.approx(expected.mean(axis=0), abs=1e-6)
    assert scores["map50"] == pytest.approx(expected[0].mean(), abs=1e-6)
    assert scores["map"] == pytest.approx(expected.mean(), abs=1e-6)
    assert scores["worst_ap50"] == pytest.approx(expected[0].min(), abs=1e-6)
    assert 0.05 < scores["map"] < scores["map50"] < 0.9


def boxes(*rows: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array([rows], np.float32)


def test_scores_by_hand() -> None:
    truth = boxes((0, 0, 0, 10, 10, 0), (0, 20, 0, 30, 10, 0))
    hit, miss = (0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.95, 0)
    one = matches(np.array([[hit]], np.float32), truth, 0)
    assert average_precision(one) == pytest.approx(np.full(10, 51 / 101))  # recalls 0, 0.01, … 0.5
    both = matches(np.array([[hit, miss]], np.float32), truth, 0)
    assert average_precision(both) == pytest.approx(np.full(10, 0.5 * 51 / 101))
    assert average_precision(matches(np.array([[hit]], np.float32), truth, 1)) is None
    nothing = matches(np.array([[(0, 0, 0, 0, 0, -1)]], np.float32), truth, 0)
    assert average_precision(nothing) == pytest.approx(np.zeros(10)) and influence(nothing).tolist() == [0]
    twice = matches(np.array([[hit, hit]], np.float32), truth, 0)
    assert twice.hit[0].tolist() == [1, 0]  # the second one finds nothing free
    assert overlaps(np.array([[0, 0, 2, 2]]), np.array([[1, 1, 3, 3], [4, 4, 5, 5], [0, 0, 2, 2]]))[0].tolist() == [
        pytest.approx(1 / 7),
        0,
        1,
    ]


def test_what_lies_in_a_crowd_is_not_judged() -> None:
    truth = boxes((0, 0, 0, 100, 100, 1), (0, 200, 0, 210, 10, 0))
    inside, hit = (10, 10, 20, 20, 0.9, 0), (200, 0, 210, 10, 0.5, 0)
    found = matches(np.array([[inside, hit]], np.float32), truth, 0)
    assert found.hit[0].tolist() == [-1, 1]
    assert average_precision(found) == pytest.approx(np.ones(10))


@pytest.mark.parametrize("seed", range(3))
def test_the_influence_of_an_image_is_what_happens_without_it(seed: int) -> None:
    found, truth = some_boxes(seed, 120, 1, crowds=False)
    own = matches(found, truth, 0, (0.5,))
    whole = average_precision(own)
    assert whole is not None
    without = []
    for left_out in range(len(truth)):
        others = np.arange(len(truth)) != left_out
        rest = average_precision(matches(found[others], truth[others], 0, (0.5,)))
        assert rest is not None
        without.append(float(whole[0] - rest[0]))
    change = influence(own)
    assert change.sum() == pytest.approx(0, abs=1e-9)
    assert np.corrcoef(change, without)[0, 1] > 0.85
    assert change.std() == pytest.approx(np.std(without), rel=0.25)


def test_the_figures_of_images_have_the_mean_and_the_spread_of_the_score() -> None:
    found, truth = some_boxes(7, 150)
    each = DETECTION.each(found, truth)
    assert each.shape == (150,)
    assert each.mean() == pytest.approx(DETECTION.score(found, truth)["map50"])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(60):
        chosen = rng.integers(0, len(truth), len(truth))
        drawn.append(DETECTION.score(found[chosen], truth[chosen])["map50"])
    assert each.std() / np.sqrt(len(each)) == pytest.approx(np.std(drawn), rel=0.35)


def test_raw_outputs_and_detections_score_the_same() -> None:
    rng = np.random.default_rng(0)
    found, truth = some_boxes(1)
    raw = np.zeros((len(truth), 7, 40), np.float32)
    for i, rows in enumerate(truth):
        for place in range(40):
            known = rows[rows[:, 0] >= 0]
            if len(known):
                row = known[place % len(known)]
                raw[i, :4, place] = row[1:5] + rng.normal(0, 3, 4)
                raw[i, 4 + int(row[0]), place] = rng.random()
    read = DETECTION.read(raw)
    assert read.shape == (len(truth), 100, 6) and read.dtype == np.float32
    assert np.array_equal(DETECTION.read(read), read)
    assert DETECTION.score(read, truth) == DETECTION.score(raw, truth)
    assert DETECTION.same is not None
    assert DETECTION.same(raw, read) == 1
    assert DETECTION.same(read, found) < 0.9
    with pytest.raises(ModelError, match="corners and scores"):
        DETECTION.read(np.zeros((3, 7), np.float32))
    with pytest.raises(ModelError, match=r"^the model gives NaN"):
        DETECTION.read(np.full((3, 7, 8), np.nan, np.float32))


def test_six_places_of_96_classes_are_no_detections() -> None:
    raw = np.random.default_rng(0).random((2, 100, 6)).astype(np.float32)
    read = DETECTION.read(raw)
    assert not np.array_equal(read, raw) and set(np.unique(read[..., 5])) <= {-1.0, *map(float, range(96))}
    assert np.array_equal(DETECTION.read(read), read)


def test_networks_whose_numbers_are_not_finite_are_told() -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 6, 48), torch.nan)

    examples = Examples(
        boxes((0, 0, 0, 9, 9, 0)), lambda i, k: Batch(torch.zeros(1, 8, 8, 1), torch.zeros(1, 2, 6)), {}
    )
    with pytest.raises(ModelError, match=r"^the model gives NaN"):
        mean_average_precision(Broken(), examples, "fp32")


def test_wrong_labels_are_described() -> None:
    _, truth = some_boxes(0)
    problem = DETECTION.targets_problem
    assert problem(truth) == ""
    assert "(images, boxes, 6)" in problem(truth[..., :5])
    assert "no image has a box" in problem(np.full((3, 2, 6), -1.0))
    assert "no area" in problem(boxes((0, 5, 5, 5, 9, 0)))
    for label in (0.5, -2, 10_000, 3e9):
        assert "a whole number from 0 to 9,999" in problem(boxes((label, 0, 0, 5, 5, 0), (0, 0, 0, 5, 5, 0)))
    assert problem(boxes((9_999, 0, 0, 5, 5, 0), (-1, 0, 0, 0, 0, -1))) == ""
    for number in (np.nan, np.inf):
        assert "not finite" in problem(boxes((0, 0, 0, number, 5, 0)))
    assert "neither 0 nor 1" in problem(boxes((0, 0, 0, 5, 5, 2), (0, 0, 0, 5, 5, 0)))


def test_pictures_show_sure_boxes_and_count_hits() -> None:
    found, truth = some_boxes(2)
    images = np.zeros((len(truth), 8, 8, 3), np.uint8)
    assert DETECTION.pictured is not None
    shown = DETECTION.pictured(found.copy(), truth, images)
    assert len(shown["examples"]) == len(shown["images"]) == len(shown["hits"]) == 6
    assert (shown["found"][..., 4][shown["found"][..., 5] >= 0] >= 0.3).all()
    counts = (shown["truth"][..., 0] >= 0).sum(axis=1)
    assert (np.array(shown["hits"]) <= counts).all() and sum(shown["hits"]) > 0


def test_a_card_of_detection_says_what_is_wrong(things: Any) -> None:
    import tomllib

    tables = tomllib.loads(things.CARD)
    tables |= {"budgets": {"": tables.pop("budget")}}
    card = build_card(tables, "things.toml")
    assert card.augment == Augment(scale=(1.0, 1.3), flip=True, turn=True)
    for change, told in (
        ({"height": 20}, "height"),
        ({"mean": [0.1, 0.2]}, "mean"),
        ({"size": 48}, "size"),
        ({"classes": ["a", "a"]}, "each class once"),
    ):
        with pytest.raises(ConfigError, match=told):
            build_card(tables | {"data": tables["data"] | change}, "things.toml")
    with pytest.raises(ConfigError, match=r"augment\.crop: got 50; it should be at most 48"):
        build_card(tables | {"augment": {"crop": 50}}, "things.toml")
