"""Folders as people have them: hidden files, links, validation folders, broken images and duplicates."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgekd.card import Card, Data, TextData
from edgekd.data import images
from edgekd.data.arrays import digest
from edgekd.data.folders import class_files, validation_folder
from edgekd.data.sources import load_and_examine, load_test, load_train_and_validation
from edgekd.data.text import examine_text
from edgekd.errors import InputError
from edgekd.tasks.known import load_card

CLASSES = ("ant", "bee")


@pytest.fixture(autouse=True)
def _untold() -> Iterator[None]:
    images._report_skipped.cache_clear()
    yield


def card(folder: Path, classes: tuple[str, ...] = CLASSES, **more: Any) -> Card:
    base = load_card("cifar10")
    plain = (0.5, 0.5, 0.5)
    data = Data(source="image-folder", size=8, classes=classes, mean=plain, std=plain, validation_fraction=0.25, **more)
    return Card(**{**vars(base), "data": data, "file": str(folder / "card.toml")})


def image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image(seed)).save(path)
    return path


def write_parts(root: Path, *parts: str, count: int = 4) -> Path:
    seeds = iter(range(1000))
    for part in parts:
        for name in CLASSES:
            for number in range(count):
                write(root / part / name / f"{number}.png", next(seeds))
    return root


def names_below(root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in class_files(root, CLASSES)[0]]


def test_what_systems_leave_in_folders_is_left_out_at_every_level(tmp_path: Path) -> None:
    write_parts(tmp_path, "", count=1)
    expected = names_below(tmp_path)
    for hidden in (".ipynb_checkpoints", "__MACOSX", ".git/deep"):
        write(tmp_path / hidden / "ant" / "0.png", 1)
        write(tmp_path / "ant" / hidden / "0.png", 1)
        write(tmp_path / "ant" / "inner" / hidden / "0.png", 1)
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (tmp_path / litter).touch()
        (tmp_path / "ant" / litter).touch()
        (tmp_path / "ant" / "inner" / litter).touch()
    assert names_below(tmp_path) == expected


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere" / "more.png", 5).parent
    write_parts(tmp_path / "set", "", count=1)
    root = tmp_path / "set"
    (root / "ant" / "a").symlink_to(elsewhere)
    (root / "ant" / "b").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    (root / "ant" / "up").symlink_to(root)
    (root / "ant" / "same").symlink_to(root / "ant")
    write(root / "ant" / "deep" / "inside" / "x.png", 6)
    (root / "ant" / "0link").symlink_to(root / "ant" / "deep" / "inside")
    (root / "ant" / "dangling").symlink_to(tmp_path / "nowhere")
    assert names_below(root) == ["ant/0.png", "ant/a/more.png", "ant/deep/inside/x.png", "bee/0.png"]


def test_a_linked_class_is_a_class(tmp_path: Path) -> None:
    write_parts(tmp_path / "set", "", count=1)
    (tmp_path / "set" / "bee").rename(tmp_path / "far")
    (tmp_path / "set" / "bee").symlink_to(tmp_path / "far")
    assert names_below(tmp_path / "set") == ["ant/0.png", "bee/0.png"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_beside_train_and_test_is_the_validation_part(tmp_path: Path, name: str) -> None:
    write_parts(tmp_path, "train", "test", name)
    train, validation = load_train_and_validation(card(tmp_path), tmp_path)
    assert (len(train), len(validation), len(load_test(card(tmp_path), tmp_path))) == (8, 8, 8)
    assert (validation.read(np.arange(1))[0] == image(16)).all()
    assert [len(part) for part in load_and_examine(card(tmp_path), tmp_path)] == [8, 8]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_without_test_it_is_the_test_part(tmp_path: Path, name: str) -> None:
    write_parts(tmp_path, "train", name)
    assert validation_folder(tmp_path) is None
    train, validation = load_train_and_validation(card(tmp_path), tmp_path)
    assert (len(train), len(validation), len(load_test(card(tmp_path), tmp_path))) == (6, 2, 8)


@pytest.mark.parametrize("kept", ["NFC", "NFD"])
def test_class_names_are_the_same_in_every_form_of_unicode(tmp_path: Path, kept: str) -> None:
    for form, name in (("NFC", "café"), ("NFD", "thé")):
        write(tmp_path / unicodedata.normalize(form, name) / "0.png", 1)  # type: ignore[arg-type]
    classes = tuple(unicodedata.normalize(kept, name) for name in ("café", "thé"))  # type: ignore[arg-type]
    assert class_files(tmp_path, card(tmp_path, classes).data.classes)[1] == [0, 1]


def test_all_broken_images_of_all_parts_are_told_at_once(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "test", "val", count=5)
    for part in ("train", "test", "val"):
        for number in range(4):
            (tmp_path / part / "bee" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        load_and_examine(card(tmp_path), tmp_path)
    told = str(caught.value)
    assert told.startswith(f"12 images cannot be used: {tmp_path}/train/bee/0.png: the image does not decode: no known")
    assert told.count("no known format") == 10 and "; and 2 more; mend or remove them; `skip_broken = true`" in told
    assert "\n" not in told and f"{tmp_path}/test/bee/1.png" in told


def test_a_single_broken_image_is_told_by_its_own_problem(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "test")
    file = tmp_path / "test" / "ant" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(InputError, match=rf"^{file}: the image does not decode: .*; mend or remove it; `skip_broken"):
        load_and_examine(card(tmp_path), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_a_broken_one(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "test")
    (tmp_path / "test" / "ant" / "2.png").chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        load_and_examine(card(tmp_path), tmp_path)


@pytest.mark.parametrize("streamed", [False, True])
def test_broken_images_are_left_out_where_the_card_says_so(
    tmp_path: Path, streamed: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if streamed:
        monkeypatch.setattr(images, "MEMORY_LIMIT_BYTES", 0)
    write_parts(tmp_path, "train", "test")
    (tmp_path / "train" / "bee" / "1.png").write_bytes(b"no image")
    (tmp_path / "test" / "ant" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^2 images cannot be used"):
        load_and_examine(card(tmp_path), tmp_path)
    skipping = card(tmp_path, skip_broken=True)
    train, validation = load_and_examine(skipping, tmp_path)
    test = load_test(skipping, tmp_path)
    assert len(train) + len(validation) == 7 and test.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (test.read(np.arange(1))[0] == image(9)).all()
    told = capfd.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in told] == ["left out 1 of 8 images"] * 2
    assert f"train part in {tmp_path}/train" in told[0] and "test/ant/0.png" in told[1]


def test_a_part_of_broken_images_alone_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "test", count=2)
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^4 images cannot be used"):
        load_and_examine(card(tmp_path, skip_broken=True), tmp_path)


def test_streamed_images_that_decode_as_before_are_known_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MEMORY_LIMIT_BYTES", 0)
    write_parts(tmp_path, "train", "test", count=2)
    test = load_test(card(tmp_path), tmp_path)
    assert test.origin is not None
    stat = (tmp_path / "test" / "ant" / "0.png").stat()
    assert test.origin(0) == f"ant/0.png\0{stat.st_size}\0{stat.st_mtime_ns}".encode()
    before = digest(test)
    wide = tmp_path / "test" / "ant" / "0.png"
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(wide)
    os.utime(wide, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other = load_test(card(tmp_path), tmp_path)
    assert other.origin is not None
    assert other.origin(0).endswith(b"\0upright, 8 bits") and digest(other) != before


def test_the_same_images_in_several_parts_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parts(tmp_path, "train", "test", "val")
    load_and_examine(card(tmp_path), tmp_path)
    assert not capfd.readouterr().err
    write(tmp_path / "test" / "ant" / "0.png", 0)
    write(tmp_path / "test" / "ant" / "again.png", 0)
    write(tmp_path / "test" / "bee" / "0.png", 16)
    write(tmp_path / "val" / "bee" / "1.png", 3)
    load_and_examine(card(tmp_path), tmp_path)
    assert capfd.readouterr().err.splitlines() == [
        "data: the same images are in several parts: 2 of the test part are also in the training part, 1 of the test "
        "part are also in the validation part, 1 of the validation part are also in the training part; accuracy on "
        "them says little"
    ]


def test_wrong_test_labels_are_told_before_training(tmp_path: Path) -> None:
    write_parts(tmp_path, "train", "test")
    write(tmp_path / "test" / "cat" / "0.png", 1)
    with pytest.raises(InputError, match="/test/cat: is no class of the card"):
        load_and_examine(card(tmp_path), tmp_path)


def test_wrong_labels_of_test_sentences_are_told_before_training(tmp_path: Path) -> None:
    base = load_card("sst2")
    assert isinstance(base.data, TextData)
    text = Card(**{**vars(base), "file": str(tmp_path / "card.toml")})
    pairs = [f"word{n} fine\t{base.data.classes[n % 2]}" for n in range(20)]
    (tmp_path / "train.tsv").write_text("\n".join(pairs), encoding="utf-8")
    (tmp_path / "test.tsv").write_text("fine\tsplendid\n", encoding="utf-8")
    data = {**vars(base.data), "vocabulary": 22}
    text = Card(**{**vars(text), "data": TextData(**data)})
    with pytest.raises(InputError, match=r"test\.tsv:1: label 'splendid' is no class of the card"):
        examine_text(text, tmp_path)
