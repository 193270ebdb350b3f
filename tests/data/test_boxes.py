"""Images with boxes: what is read of Pascal VOC and COCO, letterboxing, views, and bad data of each kind."""

import dataclasses
import io
import json
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.augmentation import Augment
from edgekd.card import Card
from edgekd.data.annotations import coco_names, coco_parts, voc_classes, voc_part, voc_parts
from edgekd.data.boxes import box_examples, letterboxed, load_boxed_test, load_boxed_training, load_boxed_whole, placing
from edgekd.data.frames import Frame, framed_boxes
from edgekd.errors import InputError
from edgekd.tasks.known import build_card


@pytest.fixture
def card(things: Any) -> Callable[..., Card]:
    """Makes the card, with changes of its `[data]`."""

    def make(**changes: Any) -> Card:
        tables = tomllib.loads(things.CARD)
        budgets = {"": tables.pop("budget")}
        return build_card(tables | {"budgets": budgets, "data": tables["data"] | changes}, "things.toml")

    return make


def test_lists_divide_the_images(things: Any, card: Any, tmp_path: Path) -> None:
    train, validation = load_boxed_whole(card(), things.write_voc(tmp_path, 20, parts=True))
    test = load_boxed_test(card(), tmp_path)
    assert (len(train), len(validation), len(test)) == (12, 4, 4)
    image, objects = things.drawn(12)
    assert np.array_equal(validation.read(np.arange(1))[0, ..., 0], image)
    assert [(things.CLASSES[int(row[0])], tuple(row[1:5])) for row in validation.labels[0][: len(objects)]] == objects
    assert (validation.labels[0][len(objects) :, 0] == -1).all()
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()  # then val is for the test, and a share for validation
    train, validation = load_boxed_training(card(), tmp_path)
    assert len(train) + len(validation) == 12 and len(validation) > 0
    assert np.array_equal(load_boxed_test(card(), tmp_path).read(np.arange(1))[0, ..., 0], image)


def test_trainval_teaches_without_the_images_of_val(things: Any, tmp_path: Path) -> None:
    lists = things.write_voc(tmp_path, 20, parts=True) / "ImageSets" / "Main"
    names = voc_parts(tmp_path)
    both = [*names["train"], *names["validation"]]
    (lists / "trainval.txt").write_text("\n".join(both))
    assert voc_parts(tmp_path) == names
    (lists / "train.txt").unlink()
    assert voc_parts(tmp_path) == names
    (lists / "trainval.txt").write_text("\n".join(names["validation"]))
    with pytest.raises(InputError, match=r"trainval\.txt: names no images besides those of the validation list"):
        voc_parts(tmp_path)
    (lists / "trainval.txt").write_text("\n".join(both))
    (lists / "val.txt").unlink()
    assert voc_parts(tmp_path) == {"train": both, "test": names["test"]}


def test_too_few_images_are_told(things: Any, card: Any, tmp_path: Path) -> None:
    things.write_voc(tmp_path, 2)
    for folder, end in (("JPEGImages", "png"), ("Annotations", "xml")):
        (tmp_path / folder / f"thing-1.{end}").unlink()
    with pytest.raises(InputError, match="because the test takes all 1 of them; add images, or give the data a test"):
        load_boxed_training(card(), tmp_path)
    things.write_voc(tmp_path, 2)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "train.txt").write_text("thing-0")
    (lists / "test.txt").write_text("thing-1")
    with pytest.raises(InputError, match="because validation takes all 1 of them; add images, or lower data"):
        load_boxed_training(card(), tmp_path)


def test_without_lists_names_divide_the_images(things: Any, card: Any, tmp_path: Path) -> None:
    things.write_voc(tmp_path, 40)
    train, validation = load_boxed_training(card(), tmp_path)
    test = load_boxed_test(card(), tmp_path)
    assert len(train) + len(validation) + len(test) == 40
    assert 3 <= len(test) <= 14 and len(validation) >= 3
    before = [one.tobytes() for one in test.read(np.arange(len(test)))]
    things.write_voc(tmp_path, 44)  # further files move no other one
    after = load_boxed_test(card(), tmp_path)
    assert set(before) <= {one.tobytes() for one in after.read(np.arange(len(after)))}


@pytest.mark.parametrize("beside", [False, True])
def test_both_layouts_of_coco_are_read(things: Any, card: Any, tmp_path: Path, beside: bool) -> None:
    things.write_coco(tmp_path, 5, beside)
    train, validation = load_boxed_training(card(source="coco"), tmp_path)
    test = load_boxed_test(card(source="coco"), tmp_path)
    assert (len(train), len(validation), len(test)) == (5, 5, 5)
    for split, start in ((train, 0), (validation, 5), (test, 10)):
        order = sorted(range(start, start + 5), key=lambda seed: f"thing-{seed}.png")
        image, objects = things.drawn(order[0])
        assert np.array_equal(split.read(np.arange(1))[0, ..., 0], image)
        found = [(things.CLASSES[int(row[0])], tuple(row[1:5])) for row in split.labels[0] if row[0] >= 0]
        assert found == objects


def test_a_crowd_of_coco_is_not_judged(things: Any, card: Any, tmp_path: Path) -> None:
    things.write_coco(tmp_path, 3)
    file = tmp_path / "annotations" / "instances_train2017.json"
    told = json.loads(file.read_text())
    told["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(told))
    train, _ = load_boxed_training(card(source="coco"), tmp_path)
    assert train.labels[..., 5].sum() == 1 and train.labels[0, 0, 5] == 1


def test_the_official_files_of_coco_are_told_apart(things: Any, card: Any, tmp_path: Path) -> None:
    folder = things.write_coco(tmp_path, 3) / "annotations"
    for part in ("train", "val", "test"):
        for name in ("captions", "image_info", "panoptic", "person_keypoints", "stuff"):
            (folder / f"{name}_{part}2017.json").write_text("{}")
    assert {part: file.name for part, file in coco_parts(tmp_path).items()} == {
        "train": "instances_train2017.json",
        "validation": "instances_val2017.json",
        "test": "instances_test2017.json",
    }
    assert len(load_boxed_training(card(source="coco"), tmp_path)[0]) == 3
    (folder / "instances_test2017.json").unlink()  # then what has no boxes is no test part
    (folder / "person_keypoints_test2017.json").unlink()
    assert set(coco_parts(tmp_path)) == {"train", "validation"}


def test_rounding_of_a_box_at_the_edge_is_no_error(things: Any, card: Any, tmp_path: Path) -> None:
    file = things.write_coco(tmp_path, 3) / "annotations" / "instances_train2017.json"
    told = json.loads(file.read_text())
    told["annotations"][0]["bbox"] = [-0.01, 3, 64.02, 45.01]
    file.write_text(json.dumps(told))
    train, _ = load_boxed_training(card(source="coco"), tmp_path)
    assert train.labels[0, 0, 1:5].tolist() == [0, 3, 64, 48]


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_images_are_scaled_to_fit_and_boxes_with_them(card: Any, tmp_path: Path, things: Any) -> None:
    data = card().data
    assert placing((640, 480), data) == ((64, 48), (0, 0))
    assert placing((100, 200), data) == ((24, 48), (20, 0))
    assert placing((200, 20), data) == ((64, 6), (0, 21))
    tall = np.full((200, 100), 200, np.uint8)
    found = letterboxed(png(tall), data, "tall.png")
    assert found.shape == (48, 64, 1)
    assert (found[:, 20:44] == 200).all() and (found[:, :20] == 114).all() and (found[:, 44:] == 114).all()
    things.write_voc(tmp_path, 6)
    Image.fromarray(tall).save(tmp_path / "JPEGImages" / "thing-0.png")
    (tmp_path / "Annotations" / "thing-0.xml").write_text(things.voc_text([("disc", (0, 0, 100, 200))]))
    parts = (*load_boxed_training(card(), tmp_path), load_boxed_test(card(), tmp_path))
    boxes = np.concatenate([one.labels.reshape(-1, 6) for one in parts])
    assert (boxes == [0, 20, 0, 44, 48, 0]).all(axis=1).any()


def text_of(things: Any, name: str = "disc", box: tuple[Any, ...] = (1, 1, 20, 20)) -> str:
    return str(things.voc_text([(name, box)]))


BAD: dict[str, tuple[Callable[[Path, Any], object], str]] = {
    "outside": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text(text_of(things, box=(1, 1, 65, 20))),
        r"thing-3.xml: object 1 \('disc'\) has the corners 1, 1, 65, 20, and its image has 64×48 pixels",
    ),
    "reversed": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text(text_of(things, box=(9, 1, 5, 20))),
        r"thing-3.xml: object 1 \('disc'\) has the corners 9, 1, 5, 20",
    ),
    "class": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text(text_of(things, "dsic\x1b[31m")),
        r"thing-3.xml: (object 1: is of class|is no valid XML)",
    ),
    "near": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text(text_of(things, "dics")),
        r"thing-3.xml: object 1: is of class 'dics', which is not in the card; did you mean 'disc'",
    ),
    "number": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text(text_of(things, box=(1, 1, "x", 20))),
        r"thing-3.xml: object 1: bndbox should give xmin",
    ),
    "nan": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text(text_of(things, box=(1, 1, "nan", 20))),
        r"thing-3.xml: object 1: a corner of the box is not finite",
    ),
    "xml": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text("<annotation>"),
        r"thing-3.xml: is no valid XML",
    ),
    "other xml": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").write_text("<svg></svg>"),
        r"thing-3.xml: its first element should be annotation, got 'svg'",
    ),
    "no annotation": (
        lambda folder, things: (folder / "Annotations/thing-3.xml").unlink(),
        r"thing-3.png: has no annotation; .*Annotations should hold 'thing-3.xml'",
    ),
    "no image": (
        lambda folder, things: (folder / "JPEGImages/thing-3.png").unlink(),
        r"thing-3.xml: has no image",
    ),
    "broken image": (
        lambda folder, things: (folder / "JPEGImages/thing-3.png").write_bytes(b"no image"),
        r"thing-3.png: the image does not decode",
    ),
    "no folder": (
        lambda folder, things: (folder / "Annotations").rename(folder / "annotated"),
        r"has no folder 'Annotations'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_annotations_are_told_in_one_line(kind: str, things: Any, card: Any, tmp_path: Path) -> None:
    change, told = BAD[kind]
    change(things.write_voc(tmp_path, 8), things)
    with pytest.raises(InputError, match=told) as raised:
        load_boxed_whole(card(), tmp_path)
    assert "\n" not in str(raised.value) and "\x1b" not in str(raised.value)


BAD_COCO: dict[str, tuple[Callable[[Any], object], str]] = {
    "box": (lambda told: told["annotations"][0].update(bbox=[1, 2, 3]), r"annotation '0': bbox should be"),
    "category": (lambda told: told["annotations"][0].update(category_id=99), "has a category that the file does not"),
    "class": (lambda told: told["categories"][0].update(name="rectangle"), "is of class 'rectangle'"),
    "image": (lambda told: told["annotations"][0].update(image_id=1), "is for an image that the file does not name"),
    "file": (lambda told: told["images"][0].update(file_name="gone.png"), "names the image 'gone.png', which is not"),
    "path": (lambda told: told["images"][0].update(file_name="../x.png"), "a name below the folder of the data"),
    "keys": (lambda told: told.pop("categories"), "categories should be a list"),
    "id": (lambda told: told["images"][0].update(id=[1]), r"images: entry 1: id should be a whole number, got \[1\]"),
    "no id": (lambda told: told["images"][1].pop("id"), "images: entry 2: id should be a whole number, got None"),
    "twice": (lambda told: told["images"][1].update(id=100), "images: entry 2 has the id 100 of an entry before it"),
    "two classes": (lambda told: told["categories"][1].update(id=3), "categories: entry 2 has the id 3"),
    "image id": (lambda told: told["annotations"][0].update(image_id=[1]), r"'0': image_id should be a whole number"),
    "category id": (lambda told: told["annotations"][0].update(category_id={}), "category_id should be a whole number"),
    "crowd": (lambda told: told["annotations"][0].update(iscrowd="0"), "iscrowd should be 0 or 1, got '0'"),
    "large": (lambda told: told["annotations"][0].update(bbox=[1, 2, 3, 10**400]), "a number of bbox is too large"),
    "long name": (lambda told: told["images"][0].update(file_name="x" * 400), "names the image 'xxx.*cannot be read"),
}


@pytest.mark.parametrize("kind", BAD_COCO)
def test_bad_coco_files_are_told_in_one_line(kind: str, things: Any, card: Any, tmp_path: Path) -> None:
    file = things.write_coco(tmp_path, 3) / "annotations" / "instances_train2017.json"
    told = json.loads(file.read_text())
    BAD_COCO[kind][0](told)
    file.write_text(json.dumps(told))
    with pytest.raises(InputError, match=BAD_COCO[kind][1]) as raised:
        load_boxed_training(card(source="coco"), tmp_path)
    assert str(file) in str(raised.value)
    for text in ("{", "[" * 200_000):
        file.write_text(text)
        with pytest.raises(InputError, match="is no valid JSON"):
            load_boxed_training(card(source="coco"), tmp_path)
    with pytest.raises(InputError, match=r"has neither annotations/\*.json nor"):
        load_boxed_training(card(source="coco"), tmp_path / "images")


def test_the_names_of_coco_need_whole_numbers(things: Any, tmp_path: Path) -> None:
    file = things.write_coco(tmp_path, 3) / "annotations" / "instances_train2017.json"
    assert coco_names(file) == ["square", "disc"]
    told = json.loads(file.read_text())
    told["annotations"][0]["category_id"] = [1]
    file.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"category_id should be a whole number, got \[1\]"):
        coco_names(file)


@pytest.mark.parametrize("content", [b"no image", "half"])
def test_broken_images_are_left_out_if_the_card_says_so(
    things: Any, card: Any, tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = things.write_voc(tmp_path, 20, parts=True) / "JPEGImages" / "thing-3.png"
    file.write_bytes(file.read_bytes()[:400] if content == "half" else content)
    with pytest.raises(InputError, match=r"thing-3\.png: the image does not decode.*`skip_broken = true`"):
        load_boxed_training(card(), tmp_path)
    train, _ = load_boxed_training(card(skip_broken=True), tmp_path)
    assert len(train) == len(train.labels) == 11
    image, objects = things.drawn(4)
    assert np.array_equal(train.read(np.arange(3, 4))[0, ..., 0], image)
    assert [tuple(row[1:5]) for row in train.labels[3][: len(objects)]] == [box for _, box in objects]
    told = capsys.readouterr()
    assert "left out 1 of 12 images" in told.out + told.err


def test_boxes_without_area_are_left_out_and_told(
    things: Any, card: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    things.write_voc(tmp_path, 10)
    for name in ("thing-1", "thing-2"):
        boxes = [("disc", (5, 5, 5, 9)), ("disc", (5, 5, 9, 9))]
        (tmp_path / "Annotations" / f"{name}.xml").write_text(things.voc_text(boxes))
    parts = (*load_boxed_training(card(), tmp_path), load_boxed_test(card(), tmp_path))
    assert all((one.labels[..., 3] > one.labels[..., 1])[one.labels[..., 0] >= 0].all() for one in parts)
    told = capsys.readouterr()
    assert "without area" in told.out + told.err and "thing-" in told.out + told.err


def test_views_are_a_pure_function_and_move_boxes(things: Any, card: Any, tmp_path: Path) -> None:
    """A disc is where its box is: the pixels inside are bright, also after scaling, mirroring and turning."""
    things.write_voc(tmp_path, 20)
    made = card()
    train, _ = load_boxed_training(made, tmp_path)
    examples = box_examples(made, train)
    some = np.arange(6)
    batch = examples.batch(some, 3)
    assert torch.equal(examples.batch(some[2:3], 3).inputs[0], batch.inputs[2])
    assert torch.equal(examples.batch(some[2:3], 3).targets[0], batch.targets[2])
    assert not torch.equal(examples.batch(some, 4).inputs, batch.inputs)
    assert (batch.targets[:, 0] == torch.tensor([-1.0, 0, 0, 64, 48, 0])).all()
    seen = 0
    for k in range(4):
        batch = examples.batch(some, k)
        for image, targets in zip(batch.inputs, batch.targets, strict=True):
            for label, x1, y1, x2, y2, aside in targets[1:].tolist():
                if label == 0 and not aside and min(x2 - x1, y2 - y1) > 6:
                    middle = image[int((y1 + y2) / 2), int((x1 + x2) / 2), 0]
                    seen += 1
                    assert middle > 150
    assert seen > 10
    plain = examples.batch(some, None)
    assert torch.equal(plain.targets[:, 1:], torch.from_numpy(train.labels[some]))
    assert plain.inputs.shape == (6, 48, 64, 1)
    squares = box_examples(dataclasses.replace(made, augment=Augment(crop=32, turn=True)), train).batch(some, 0)
    assert squares.inputs.shape == (6, 32, 32, 1) and squares.targets[0, 0].tolist() == [-1, 0, 0, 32, 32, 0]


def test_boxes_in_frames_by_hand() -> None:
    box = torch.tensor([[1.0, 2, 1, 6, 3, 0], [0.0, 30, 30, 40, 40, 0], [-1.0, 0, 0, 0, 0, 0]])
    same = framed_boxes(box, Frame(0, 0, 8, 8, (8, 8)))
    assert same.tolist() == [[1, 2, 1, 6, 3, 0], [-1, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]]
    assert framed_boxes(box, Frame(0, 0, 8, 8, (8, 8), mirror=True))[0].tolist() == [1, 2, 1, 6, 3, 0]
    assert framed_boxes(box, Frame(0, 0, 8, 8, (16, 8)))[0].tolist() == [1, 2, 2, 6, 6, 0]
    assert framed_boxes(box, Frame(1, 4, 4, 4, (4, 4)))[0].tolist() == [1, 0, 0, 2, 2, 0]  # half of it is shown
    assert framed_boxes(box, Frame(1, 5, 4, 3, (4, 3)))[0].tolist() == [1, 0, 0, 1, 2, 1]  # a quarter
    assert framed_boxes(box, Frame(0, 0, 4, 8, (4, 8), turns=2))[0].tolist() == [1, 2, 1, 6, 3, 0]


@pytest.mark.parametrize("turns", range(4))
def test_boxes_turn_with_the_pixels(turns: int) -> None:
    image = torch.zeros(8, 8, dtype=torch.uint8)
    image[1:3, 2:7] = 1
    turned = torch.rot90(image.flip(1), turns, (0, 1))
    rows, columns = (torch.nonzero(turned.any(dim=axis)).flatten() for axis in (1, 0))
    (moved,) = framed_boxes(torch.tensor([[0.0, 2, 1, 7, 3, 0]]), Frame(0, 0, 8, 8, (8, 8), mirror=True, turns=turns))
    assert moved[1:5].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_the_boxes_of_bccd_are_all_read(data_folder: Path) -> None:
    """The numbers of boxes that its authors publish (Shenggan/BCCD_Dataset)."""
    place, classes = data_folder / "bccd", ("RBC", "WBC", "Platelets")
    parts = voc_parts(place)
    assert {part: len(names) for part, names in parts.items()} == {"train": 205, "validation": 87, "test": 72}
    counts = Counter(
        classes[thing.label]
        for names in parts.values()
        for one in voc_part(place, names, classes)
        for thing in one.objects
    )
    assert counts == {"RBC": 4155, "WBC": 372, "Platelets": 361}
    assert voc_classes(place, parts["test"]) == tuple(sorted(classes))
