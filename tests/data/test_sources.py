"""Every source of images: what it reads, and what it says when the data is wrong."""

import dataclasses
import io
import os
import random
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Card, TextData
from edgekd.data import images as images_module
from edgekd.data.arrays import digest
from edgekd.data.images import Split
from edgekd.data.sources import balanced_split, load_and_examine, load_test, load_train_and_validation
from edgekd.data.text import load_text_training, require_test_text
from edgekd.errors import ConfigError, InputError, UnavailableError
from edgekd.tasks.known import load_card

CLASSES = ("ant", "bee", "cat")


def make_card(folder: Path, **data: Any) -> Card:
    """A card in `folder` for colour images of 8×8 pixels in three classes."""
    base = load_card("cifar10")
    given: dict[str, Any] = {"size": 8, "classes": CLASSES, "path": "", "validation_fraction": 0.25} | data
    channels = given.get("channels", 3)
    given |= {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return dataclasses.replace(base, data=dataclasses.replace(base.data, **given), file=str(folder / "card.toml"))


def pixels(count: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (8, 8, 3))), dtype=np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def everything(split: Split) -> NDArray[np.uint8]:
    return split.read(np.arange(len(split)))


def key_of(image: NDArray[np.uint8]) -> bytes:
    return image.tobytes()


# --- the split ---


def test_a_balanced_split_takes_the_same_share_of_each_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 10]))
    rest, held = balanced_split(labels, 0.2, seed=0)
    assert np.bincount(labels[held]).tolist() == [20, 8, 2]
    assert np.bincount(labels[rest]).tolist() == [80, 32, 8]
    assert sorted([*rest, *held]) == list(range(150))
    assert held.tolist() == sorted(held)
    assert rest.tolist() == sorted(rest)


def test_a_balanced_split_is_decided_by_its_seed() -> None:
    labels = np.repeat([0, 1], 50)
    first, again, other = (balanced_split(labels, 0.3, seed)[1] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_balanced_split_holds_out_at_least_one_of_each_class() -> None:
    labels = np.repeat([0, 1], [3, 200])
    rest, held = balanced_split(labels, 0.01, seed=0)
    assert np.bincount(labels[held]).tolist() == [1, 2]
    assert np.bincount(labels[rest]).tolist() == [2, 198]


# --- digits ---


def test_digits_come_in_three_disjoint_parts() -> None:
    card = load_card("digits")
    train, validation = load_train_and_validation(card, None)
    test = load_test(card, None)
    # 1,797 images: a fifth of each class is test data, 15 % of each class's rest validation data.
    counts = np.bincount(sklearn.datasets.load_digits().target)
    test_counts = np.array([round(0.2 * n) for n in counts])
    validation_counts = np.array([round(0.15 * n) for n in counts - test_counts])
    assert np.bincount(test.labels).tolist() == test_counts.tolist()
    assert np.bincount(validation.labels).tolist() == validation_counts.tolist()
    assert len(train) + len(validation) + len(test) == 1_797
    assert everything(train).shape == (len(train), 8, 8, 1)


def test_digits_keep_pixels_and_labels_of_scikit_learn() -> None:
    card = load_card("digits")
    bunch = sklearn.datasets.load_digits()
    # Several digits may be drawn alike; those that are have one label in this set.
    known = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    seen: list[bytes] = []
    for split in (*load_train_and_validation(card, None), load_test(card, None)):
        for image, label in zip(everything(split), split.labels, strict=True):
            assert known[image.tobytes()] == label
            seen.append(image.tobytes())
    assert len(seen) == 1_797
    assert set(seen) == set(known)


# --- parquet ---


def write_parquet(
    path: Path, contents: list[bytes | None], labels: list[Any], column: str = "image", label_column: str = "label"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)]
    pyarrow.parquet.write_table(pyarrow.table({column: images, label_column: labels}), path)


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("place", ["", "data"])
def test_parquet_in_the_hugging_face_layout(tmp_path: Path, column: str, place: str) -> None:
    images = pixels(12)
    labels = [0, 1, 2] * 4
    for number in range(2):
        part = slice(6 * number, 6 * number + 6)
        write_parquet(
            tmp_path / place / f"train-{number:05d}-of-00002.parquet",
            [png(i) for i in images[part]],
            labels[part],
            column,
        )
    tests = pixels(3, seed=1)
    write_parquet(tmp_path / place / "test-00000-of-00001.parquet", [png(i) for i in tests], [2, 1, 0], column)

    card = make_card(tmp_path)
    train, validation = load_train_and_validation(card, tmp_path)
    known = {key_of(image): label for image, label in zip(images, labels, strict=True)}
    seen = [(key_of(i), int(n)) for s in (train, validation) for i, n in zip(everything(s), s.labels, strict=True)]
    assert len(seen) == 12
    assert dict(seen) == known
    assert np.bincount(validation.labels).tolist() == [1, 1, 1]
    test = load_test(card, tmp_path)
    assert np.array_equal(everything(test), tests)
    assert test.labels.tolist() == [2, 1, 0]


def test_the_folder_of_the_card_is_used_unless_another_is_given(tmp_path: Path) -> None:
    for name, value in (("mine", 10), ("other", 20)):
        write_parquet(tmp_path / name / "test.parquet", [png(np.full((8, 8, 3), value, np.uint8))], [0])
    card = make_card(tmp_path, path="mine")
    assert everything(load_test(card, None)).max() == 10
    assert everything(load_test(card, tmp_path / "other")).max() == 20


def test_a_card_without_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"card\.toml: data\.path: .+ give one with --data DIR$"):
        load_test(make_card(tmp_path), None)


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_test(make_card(tmp_path), tmp_path / "gone")
    assert str(caught.value) == f"{tmp_path / 'gone'}: no such data folder; give the folder with --data DIR"
    with pytest.raises(InputError) as caught:
        load_test(make_card(tmp_path), tmp_path)
    assert str(caught.value) == f"{tmp_path}: holds no test*.parquet file"


@pytest.mark.parametrize(("column", "label_column"), [("picture", "label"), ("image", "labels")])
def test_a_missing_column_is_named(tmp_path: Path, column: str, label_column: str) -> None:
    file = tmp_path / "test.parquet"
    write_parquet(file, [png(pixels(1)[0])], [0], column, label_column)
    with pytest.raises(InputError) as caught:
        load_test(make_card(tmp_path), tmp_path)
    assert str(caught.value) == (
        f"{file}: has columns {column}, {label_column}; 'image' and 'label' are needed; "
        "image_column and label_column in the card's [data] name others"
    )


def test_an_image_that_does_not_decode_is_named_with_file_and_row(tmp_path: Path) -> None:
    good = png(pixels(1)[0])
    write_parquet(tmp_path / "test-0.parquet", [good, good, good], [0, 1, 2])
    write_parquet(tmp_path / "test-1.parquet", [good, good[:40]], [0, 1])
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(tmp_path / 'test-1.parquet'))} row 1: the image does not decode"
    ):
        load_test(make_card(tmp_path), tmp_path)


@pytest.mark.parametrize("wrong", [3, -1, -(2**63), 2**63 - 1])
def test_a_label_out_of_range_is_named(tmp_path: Path, wrong: int) -> None:
    write_parquet(tmp_path / "test.parquet", [png(i) for i in pixels(3)], [0, wrong, 2])
    with pytest.raises(
        InputError, match=rf"test.parquet row 1: label is {wrong}; the card names 3 classes, so labels go from 0 to 2$"
    ):
        load_test(make_card(tmp_path), tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    write_parquet(file, [png(i) for i in pixels(3)], [0, 1, 2])
    content = file.read_bytes()
    for size in (len(content) // 2, 3, 0):
        file.write_bytes(content[:size])
        with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: not a readable parquet file"):
            load_test(make_card(tmp_path), tmp_path)


def test_an_empty_parquet_file_holds_no_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [png(pixels(1)[0])], [0])
    table = pyarrow.parquet.read_table(tmp_path / "test.parquet").slice(0, 0)
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"holds no images"):
        load_test(make_card(tmp_path), tmp_path)


@pytest.mark.parametrize("labels", [[0, None, 2], ["ant", "bee", "cow"]], ids=["null", "names"])
def test_a_label_that_is_no_number_is_told(tmp_path: Path, labels: list[Any]) -> None:
    write_parquet(tmp_path / "test.parquet", [png(i) for i in pixels(3)], labels)
    with pytest.raises(InputError, match=r"test\.parquet.*label"):
        load_test(make_card(tmp_path), tmp_path)


def refusal_of(table: pyarrow.Table, tmp_path: Path) -> str:
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(InputError) as caught:
        load_test(make_card(tmp_path), tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'test.parquet'}")
    assert "\n" not in text
    return text.removeprefix(f"{tmp_path / 'test.parquet'}").removeprefix(": ")


def test_a_column_or_a_row_that_is_no_image_or_label_is_told(tmp_path: Path) -> None:
    images: list[Any] = [{"bytes": png(i), "path": "a"} for i in pixels(3)]
    good = pyarrow.array(images)
    large = pyarrow.array([0, 2**63 + 5, 2], pyarrow.uint64())
    assert refusal_of(pyarrow.table({"image": good, "label": large}), tmp_path) == (
        " row 1: label is 9223372036854775813; the card names 3 classes, so labels go from 0 to 2"
    )
    assert refusal_of(pyarrow.table({"image": good, "label": [0, None, 2]}), tmp_path).startswith(
        " row 1: label is null; the card names 3 classes"
    )
    for labels, kind in (([0.0, 1.0, 2.0], "double"), ([True, False, True], "bool")):
        said = refusal_of(pyarrow.table({"image": good, "label": labels}), tmp_path)
        assert said == f"label is {kind}; whole numbers or class names are needed"
    said = refusal_of(pyarrow.table({"image": good, "label": ["ant", "cow", None]}), tmp_path)
    assert said.startswith(" row 1: label is 'cow'; it is no class of the card; ") and said.endswith(
        " (and 1 more rows)"
    )
    skips = "; `skip_broken = true` in the card's [data] leaves it out"
    for row in (None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}):
        assert refusal_of(pyarrow.table({"image": [images[0], row, images[2]], "label": [0, 1, 2]}), tmp_path) == (
            f" row 1: the image is null; put the image's file into it or remove the row{skips}"
        )
    row = {"bytes": None, "path": "a.png"}
    assert refusal_of(pyarrow.table({"image": [images[0], row, images[2]], "label": [0, 1, 2]}), tmp_path) == (
        f" row 1: there is no image file {tmp_path}/a.png; paths start at the parquet file's folder{skips}"
    )
    for content, kind in (
        ([{"bytes": "text"}] * 3, "struct<bytes: string>"),
        ([{"bytes": 7}] * 3, "struct<bytes: int64>"),
        ([{"file": b"x"}] * 3, "struct<file: binary>"),
        ([7] * 3, "int64"),
    ):
        assert refusal_of(pyarrow.table({"image": content, "label": [0, 1, 2]}), tmp_path) == (
            f"image is {kind}; bytes of type binary, a path of type string, or a struct with 'bytes' or 'path' is "
            "needed"
        )
    (tmp_path / "test.parquet").unlink()
    os.mkfifo(tmp_path / "test.parquet")  # reading it would wait for ever
    with pytest.raises(InputError, match=r"test.parquet: not a readable parquet file: it is no file$"):
        load_test(make_card(tmp_path), tmp_path)


@pytest.mark.parametrize("layout", ["struct", "path struct", "paths", "categories", "bytes", "large", "mixed"])
@pytest.mark.parametrize("place", ["", "data"])
@pytest.mark.parametrize("streamed", [False, True])
def test_images_in_other_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, place: str, streamed: bool
) -> None:
    if streamed:
        monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    arrays, folder = pixels(3), tmp_path / place
    (folder / "in").mkdir(parents=True)
    names = [f"in/{number}.png" for number in range(3)]
    for name, array in zip(names, arrays, strict=True):
        (folder / name).write_bytes(png(array))
    contents = [png(array) for array in arrays]
    column: Any = {
        "struct": [{"bytes": None, "path": name} for name in names],
        "path struct": [{"path": name} for name in names],
        "paths": names,
        "categories": pyarrow.array(names).dictionary_encode(),
        "bytes": contents,
        "large": pyarrow.array(contents, pyarrow.large_binary()),
        "mixed": [{"bytes": contents[0], "path": "gone"}, *({"bytes": None, "path": name} for name in names[1:])],
    }[layout]
    pyarrow.parquet.write_table(pyarrow.table({"image": column, "label": [2, 1, 0]}), folder / "test.parquet")
    test = load_test(make_card(tmp_path), tmp_path)
    assert np.array_equal(everything(test), arrays) and test.labels.tolist() == [2, 1, 0]
    assert len(digest(test)) == 64


def test_columns_of_other_names(tmp_path: Path) -> None:
    arrays = pixels(3)
    columns = {"photo": [png(array) for array in arrays], "fine": [2, 1, 0], "label": [0, 0, 0], "image": [None] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    test = load_test(make_card(tmp_path, image_column="photo", label_column="fine"), tmp_path)
    assert np.array_equal(everything(test), arrays) and test.labels.tolist() == [2, 1, 0]
    with pytest.raises(InputError, match="has columns photo, fine, label, image; 'foto' and 'label' are needed"):
        load_test(make_card(tmp_path, image_column="foto"), tmp_path)


@pytest.mark.parametrize("labels", [["cat", "bee", "ant"], ["2", "1", "0"], ["cat", "1", "ant"]])
@pytest.mark.parametrize("categories", [False, True])
def test_labels_that_are_names(tmp_path: Path, labels: list[str], categories: bool) -> None:
    column: Any = pyarrow.array(labels).dictionary_encode() if categories else labels
    table = pyarrow.table({"image": [png(array) for array in pixels(3)], "label": column})
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    assert load_test(make_card(tmp_path), tmp_path).labels.tolist() == [2, 1, 0]


def test_class_names_of_parquet_are_the_same_in_every_form_of_unicode(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [png(array) for array in pixels(2)], ["the\u0301", "caf\u00e9"])
    card = make_card(tmp_path, classes=("caf\u00e9", "th\u00e9"))
    assert load_test(card, tmp_path).labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["validation-00000-of-00001", "val-0", "validation", "dev", "valid_1"])
def test_a_validation_part_of_parquet(tmp_path: Path, name: str) -> None:
    seeds = {"train-0": 0, name: 1, "values": 2, "device": 3}
    for stem, seed in seeds.items():
        write_parquet(tmp_path / f"{stem}.parquet", [png(array) for array in pixels(6, seed=seed)], [0, 1, 2] * 2)
    card = make_card(tmp_path)
    train, validation = load_train_and_validation(card, tmp_path)
    assert (len(train), len(validation)) == (3, 3)
    assert np.array_equal(everything(load_test(card, tmp_path)), pixels(6, seed=1))
    write_parquet(tmp_path / "test.parquet", [png(array) for array in pixels(3, seed=4)], [0, 1, 2])
    train, validation = load_and_examine(card, tmp_path)
    assert (len(train), len(validation)) == (6, 6)
    assert np.array_equal(everything(validation), pixels(6, seed=1))
    assert np.array_equal(everything(load_test(card, tmp_path)), pixels(3, seed=4))


def test_rows_without_an_image_are_named_together_or_left_out(tmp_path: Path) -> None:
    good: list[bytes | None] = [png(array) for array in pixels(6)]
    write_parquet(tmp_path / "train.parquet", good, [0, 1, 2] * 2)
    table = pyarrow.table({"image": [{"bytes": good[0]}, None, {"bytes": None}], "label": [0, 1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"^2 images .*test.parquet row 1: the image is null; .*parquet row 2: "):
        load_and_examine(make_card(tmp_path), tmp_path)
    load_and_examine(skipping := make_card(tmp_path, skip_broken=True), tmp_path)
    assert load_test(skipping, tmp_path).labels.tolist() == [0]


def test_a_damaged_parquet_file_is_taken_or_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [png(i) for i in pixels(3)], [0, 1, 2])
    whole, draw, refused = (tmp_path / "test.parquet").read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / "test.parquet").write_bytes(damaged)
        try:
            load_test(make_card(tmp_path), tmp_path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_a_label_that_is_a_fraction_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [png(i) for i in pixels(3)], [0.0, 1.7, 2.0])
    with pytest.raises(InputError, match=r"label"):
        load_test(make_card(tmp_path), tmp_path)


# --- image folders ---


def write_folder(root: Path, images: dict[str, list[NDArray[np.uint8]]]) -> None:
    for name, arrays in images.items():
        (root / name).mkdir(parents=True)
        for number, array in enumerate(arrays):
            (root / name / f"{number:03d}.png").write_bytes(png(array))


def folder_card(folder: Path, **data: Any) -> Card:
    return make_card(folder, source="image-folder", **data)


@pytest.mark.parametrize("source", ["image-folder", "parquet", "torchvision"])
def test_images_decoded_as_they_are_read_are_told_apart_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)

    def digests(arrays: NDArray[np.uint8]) -> list[str]:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        if source == "image-folder":
            write_folder(
                tmp_path / "data" / "train", {n: list(arrays[5 * i : 5 * i + 5]) for i, n in enumerate(CLASSES)}
            )
        elif source == "parquet":
            labels = list(np.repeat([0, 1, 2], 5).tolist())
            write_parquet(tmp_path / "data" / "train.parquet", [png(array) for array in arrays], labels)
        else:
            pairs = [(Image.fromarray(array), i // 5) for i, array in enumerate(arrays)]
            monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda *_, **__: pairs)
        card = make_card(tmp_path, source=source, name="CIFAR10")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgekd.data.sources.decode", None)
            patch.setattr("edgekd.data.sources.fit", None)
            return [digest(split) for split in load_train_and_validation(card, tmp_path / "data")]

    arrays = pixels(15)
    first = digests(arrays)
    if source != "image-folder":  # files that are written anew have another time
        assert digests(arrays) == first
    other = digests(255 - arrays)
    assert other[0] != first[0] and other[1] != first[1]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_an_image_folder_with_its_parts(tmp_path: Path, held_out: str) -> None:
    train = {name: list(pixels(4, seed=n)) for n, name in enumerate(CLASSES)}
    test = {name: list(pixels(2, seed=10 + n)) for n, name in enumerate(CLASSES)}
    write_folder(tmp_path / "train", train)
    write_folder(tmp_path / held_out, test)
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"not an image")
    rest, held = load_train_and_validation(folder_card(tmp_path), tmp_path)
    known = {key_of(array): label for label, name in enumerate(CLASSES) for array in train[name]}
    seen = {key_of(i): int(n) for s in (rest, held) for i, n in zip(everything(s), s.labels, strict=True)}
    assert (len(rest), len(held)) == (9, 3)
    assert seen == known
    read = load_test(folder_card(tmp_path), tmp_path)
    assert read.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(everything(read), np.concatenate([test[name] for name in CLASSES]))


def test_test_is_preferred_to_val(tmp_path: Path) -> None:
    for part, value in (("train", 1), ("val", 2), ("test", 3)):
        write_folder(tmp_path / part, {name: [np.full((8, 8, 3), value, np.uint8)] for name in CLASSES})
    assert set(everything(load_test(folder_card(tmp_path), tmp_path)).ravel()) == {3}


def test_a_folder_without_parts_is_split(tmp_path: Path) -> None:
    images = {name: list(pixels(10, seed=n)) for n, name in enumerate(CLASSES)}
    write_folder(tmp_path, images)
    test = load_test(folder_card(tmp_path), tmp_path)
    rest, held = load_train_and_validation(folder_card(tmp_path), tmp_path)
    assert all(np.bincount(split.labels, minlength=3).min() >= 1 for split in (test, rest, held))
    seen = [key_of(image) for split in (test, rest, held) for image in everything(split)]
    assert len(seen) == len(set(seen)) == 30
    again = load_test(folder_card(tmp_path), tmp_path)
    assert np.array_equal(everything(again), everything(test))
    next((tmp_path / CLASSES[0]).iterdir()).unlink()  # one image less moves no other into the test part or out of it
    fewer = {key_of(image) for image in everything(load_test(folder_card(tmp_path), tmp_path))}
    before = {key_of(image) for image in everything(test)}
    assert len(before ^ fewer) <= 1


def test_images_of_a_folder_are_resized_and_cut(tmp_path: Path) -> None:
    array = pixels(1, 30, 40, 3)[0]
    write_folder(tmp_path / "train", {name: [array] for name in CLASSES})
    write_folder(tmp_path / "val", {name: [array] for name in CLASSES})
    seen = everything(load_test(folder_card(tmp_path, resize=10), tmp_path))
    small = Image.fromarray(array).resize((13, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(seen[0], np.asarray(small)[1:9, 2:10])


def test_a_train_folder_alone_gives_no_test_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {name: list(pixels(2)) for name in CLASSES})
    with pytest.raises(InputError) as caught:
        load_test(folder_card(tmp_path), tmp_path)
    assert str(caught.value) == f"{tmp_path}: has a folder 'train' but neither 'test' nor 'val'"


def test_an_unknown_class_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    write_folder(tmp_path, {name: list(pixels(5)) for name in ("ant", "bee", "cats")})
    with pytest.raises(
        InputError, match=r"/cats: is no class of the card; did you mean 'cat'.+Known: ant, bee, cat\.$"
    ):
        load_test(folder_card(tmp_path), tmp_path)


def test_a_class_without_images_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": list(pixels(5)), "bee": [], "cat": list(pixels(5))})
    with pytest.raises(InputError, match=r"bee: the card's class 'bee' has no images there$"):
        load_test(folder_card(tmp_path), tmp_path)
    (tmp_path / "bee").rmdir()
    with pytest.raises(InputError, match=r"bee: the card's class 'bee' has no images there$"):
        load_test(folder_card(tmp_path), tmp_path)


def test_a_folder_that_is_not_the_datas_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": list(pixels(5))})
    with pytest.raises(InputError, match=r"/ant: holds no folders; it should hold one for each class"):
        load_test(folder_card(tmp_path), tmp_path / "ant")


def test_a_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {name: list(pixels(5)) for name in CLASSES})
    for path in (tmp_path / "bee").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"bee/\d\d\d\.png: the image does not decode"):
        load_test(folder_card(tmp_path), tmp_path)


def test_a_class_needs_two_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": list(pixels(5)), "bee": list(pixels(5)), "cat": list(pixels(1))})
    with pytest.raises(InputError, match=r"'cat'"):
        load_train_and_validation(folder_card(tmp_path), tmp_path)


# --- torchvision ---


def write_mnist(root: Path, train: NDArray[np.uint8], test: NDArray[np.uint8], classes: int) -> None:
    """Idx files as torchvision's MNIST reads them; labels count round."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, images in (("train", train), ("t10k", test)):
        labels = np.arange(len(images), dtype=np.uint8) % classes
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())


def torchvision_card(folder: Path, name: str = "MNIST", **data: Any) -> Card:
    return make_card(folder, **{"source": "torchvision", "name": name, "channels": 1, "size": 28} | data)


def test_a_torchvision_set(tmp_path: Path) -> None:
    images, tests = pixels(12, 28, 28), pixels(3, 28, 28, seed=1)
    write_mnist(tmp_path, images, tests, classes=3)
    card = torchvision_card(tmp_path)
    train, validation = load_train_and_validation(card, tmp_path)
    assert (len(train), len(validation)) == (9, 3)
    known = {key_of(image): n % 3 for n, image in enumerate(images)}
    assert {
        key_of(i): int(n) for s in (train, validation) for i, n in zip(everything(s), s.labels, strict=True)
    } == known
    test = load_test(card, tmp_path)
    assert np.array_equal(everything(test)[..., 0], tests)
    assert test.labels.tolist() == [0, 1, 2]


def test_an_unknown_torchvision_set_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.name: torchvision has no data set 'MNITS'; did you mean .*'MNIST'"):
        load_test(torchvision_card(tmp_path, "MNITS"), tmp_path)


def test_missing_torchvision_files_are_not_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MNIST cannot be read: .+; set `download = true` in the card's \[data\]"):
        load_test(torchvision_card(tmp_path), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_a_torchvision_set_must_be_the_cards(tmp_path: Path) -> None:
    write_mnist(tmp_path, pixels(12, 28, 28), pixels(4, 28, 28), classes=4)
    with pytest.raises(InputError, match=r"image 3 has label 3; the card names 3 classes"):
        load_test(torchvision_card(tmp_path), tmp_path)


# --- the user's own function ---


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def own_card(folder: Path, code: str, function: str = "my_data:load") -> Card:
    module = function.partition(":")[0]
    (folder / f"{module}.py").write_text("import numpy as np\n" + code)
    return make_card(folder, source="import", function=function)


def test_a_function_beside_the_card(tmp_path: Path) -> None:
    card = own_card(
        tmp_path,
        "def load(path, split):\n"
        "    assert (path / 'here').exists()\n"
        "    count = {'train': 12, 'test': 3}[split]\n"
        "    return np.full((count, 8, 8, 3), count, np.uint8), [i % 3 for i in range(count)]\n",
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here").touch()
    train, validation = load_train_and_validation(card, tmp_path / "data")
    assert (len(train), len(validation)) == (9, 3)
    assert set(everything(train).ravel()) == {12}
    test = load_test(card, tmp_path / "data")
    assert set(everything(test).ravel()) == {3}
    assert test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("images", "got"),
    [
        ("np.zeros((2, 8, 8, 3), np.float32)", "float32 (2, 8, 8, 3)"),
        ("np.zeros((2, 3, 8, 8), np.uint8)", "uint8 (2, 3, 8, 8)"),
        ("np.zeros((3, 8, 8, 3), np.uint8)", "uint8 (3, 8, 8, 3)"),
        ("np.zeros((2, 8, 8), np.uint8)", "uint8 (2, 8, 8)"),
    ],
)
def test_what_the_function_gives_is_checked(tmp_path: Path, images: str, got: str) -> None:
    card = own_card(tmp_path, f"def load(path, split):\n    return {images}, [0, 1]\n")
    with pytest.raises(InputError) as caught:
        load_test(card, tmp_path)
    assert str(caught.value) == f"my_data:load: gave images {got}; uint8 (2, 8, 8, 3) (N, H, W, C) is needed"


def test_labels_of_the_function_are_checked(tmp_path: Path) -> None:
    card = own_card(tmp_path, "def load(path, split):\n    return np.zeros((2, 8, 8, 3), np.uint8), [0, 3]\n")
    with pytest.raises(InputError, match=r"^my_data:load: image 1 has label 3; the card names 3 classes"):
        load_test(card, tmp_path)


def test_a_missing_function_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    card = own_card(tmp_path, "def load_all(path, split): ...\n")
    with pytest.raises(ConfigError, match=r"module 'my_data' has no function 'load'; did you mean 'load_all'\?"):
        load_test(card, tmp_path)


def test_a_missing_module_is_told(tmp_path: Path) -> None:
    card = make_card(tmp_path, source="import", function="my_absent:load")
    with pytest.raises(UnavailableError, match=r"card\.toml: function 'my_absent:load' cannot be imported: No module"):
        load_test(card, tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        "None",
        "np.zeros((2, 8, 8, 3), np.uint8)",
        "np.zeros((2, 8, 8, 3), np.uint8), None",
        "np.zeros((2, 8, 8, 3), np.uint8), ['ant', 'bee']",
        "np.zeros((2, 8, 8, 3), np.uint8), [[0], [1]]",
        "np.zeros((2, 8, 8, 3), np.uint8), [0.0, 1.5]",
    ],
)
def test_what_is_no_pair_of_images_and_labels_is_told(tmp_path: Path, given: str) -> None:
    card = own_card(tmp_path, f"def load(path, split):\n    return {given}\n")
    with pytest.raises(InputError, match=r"my_data:load"):
        load_test(card, tmp_path)


def test_a_module_with_a_mistake_is_told(tmp_path: Path) -> None:
    card = own_card(tmp_path, "def load(path, split:\n")
    with pytest.raises((UnavailableError, ConfigError), match=r"my_data"):
        load_test(card, tmp_path)


def test_two_cards_with_modules_of_one_name_keep_their_own(tmp_path: Path) -> None:
    answers = []
    for value in (1, 2):
        folder = tmp_path / str(value)
        folder.mkdir()
        code = f"def load(path, split):\n    return np.full((3, 8, 8, 3), {value}, np.uint8), [0, 1, 2]\n"
        answers.append(everything(load_test(own_card(folder, code), tmp_path)).max())
    assert answers == [1, 2]


# --- real data ---


def test_cifar10_test_split(data_folder: Path) -> None:
    test = load_test(load_card("cifar10"), data_folder / "cifar10")
    images = everything(test)
    assert images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    # Per-channel means of CIFAR-10's test split, on the scale 0–1, as widely published.
    assert np.allclose(images.mean((0, 1, 2)) / 255, [0.4942, 0.4851, 0.4504], atol=5e-4)


def test_mnist_test_split(data_folder: Path) -> None:
    test = load_test(load_card("mnist-mlp"), data_folder / "mnist")
    assert everything(test).shape == (10_000, 28, 28, 1)
    # http://yann.lecun.com/exdb/mnist: the digits of the test set, counted.
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("dev", [False, True])
def test_a_class_without_training_sentences_and_an_empty_test_part(tmp_path: Path, dev: bool) -> None:
    text = Path(load_card("sst2").file).read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    card = load_card(str(tmp_path / "mine.toml"))
    assert isinstance(card.data, TextData)
    card = dataclasses.replace(card, data=dataclasses.replace(card.data, vocabulary=3))
    label = card.data.classes[0]
    for part in ("train", "dev") if dev else ("train",):
        (tmp_path / f"{part}.tsv").write_text(f"fine\t{label}\nfine\t{label}\n", encoding="utf-8")
    missing = card.data.classes[1]
    with pytest.raises(InputError, match=f"mine\\.toml: class '{missing}' has no training sentence; "):
        load_text_training(card, tmp_path)
    (tmp_path / "test.tsv").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"test\.tsv: holds no sentences"):
        require_test_text(card, tmp_path)
