"""Pairs of text files become token ids, and every mistake in them is told in one line."""

import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.card import Card, Student, Teacher
from edgekd.data.translation import (
    examine_pairs,
    keep_pair_tokenizer,
    load_pairs_training,
    load_test_pairs,
    pair_examples,
    read_pairs,
    require_test_pairs,
    retargeted,
    settled_pairs,
)
from edgekd.errors import ConfigError, InputError
from edgekd.recipe import Recipe
from edgekd.tasks.translation import END, PADDING, START, TranslationData, texts_of, tokenizer_from

SOURCES = ["a dog runs", "the cat sees a dog", "", "a man (old) sees the cat."]
TARGETS = ["ein hund läuft", "die katze sieht einen hund", "", "ein mann (alt) sieht die katze."]


def card_of(**data: Any) -> Card:
    values: dict[str, Any] = {
        "source_language": "en",
        "target_language": "de",
        "vocabulary": 40,
        "max_length": 64,
    } | data
    nets: dict[str, Any] = {"teacher": Teacher(family="seq2seq"), "student": Student(family="seq2seq")}
    return Card(title="t", task="translation", data=TranslationData(**values), recipe=Recipe(epochs=1), budgets={},
                name="t", file="t.toml", **nets)  # fmt: skip


def write(folder: Path, part: str, sources: list[str] = SOURCES, targets: list[str] = TARGETS) -> None:
    (folder / f"{part}.en").write_text("\n".join(sources) + "\n", encoding="utf-8")
    (folder / f"{part}.de").write_text("\n".join(targets) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "val", "test"):
        write(tmp_path, part)
    return tmp_path


def test_lines_become_pairs_also_from_compressed_files(folder: Path) -> None:
    plain = read_pairs(folder, "train", card_of().data)
    assert plain.tolist() == [list(pair) for pair in zip(SOURCES, TARGETS, strict=True) if pair[0]]
    (folder / "train.de.gz").write_bytes(gzip.compress((folder / "train.de").read_bytes()))
    (folder / "train.de").unlink()
    assert (read_pairs(folder, "train", card_of().data) == plain).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.de", b"ein hund\n", "train.de: has 1 lines, and train.en has 4; each line needs its translation"),
        ("train.de", b"x\n\n\nx\n", "train.de:2: is empty, and train.en:2 is not; remove both lines"),
        ("train.en", b"x\nx\nx\n\xff\n", "train.en:4: is not UTF-8 text"),
        ("val.en", None, "val.en: no such file, nor val.en.gz"),
        ("test.de", None, "test.de: no such file, nor test.de.gz"),
    ],
)
def test_wrong_files_are_told_with_their_line(folder: Path, name: str, content: bytes | None, words: str) -> None:
    (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
    with pytest.raises(InputError, match=re.escape(words)):
        examine_pairs(card_of(), folder)
    if name.startswith("test"):
        with pytest.raises(InputError, match=re.escape(words)):
            require_test_pairs(card_of(), folder)


def test_a_damaged_archive_and_an_empty_file_are_told(folder: Path) -> None:
    (folder / "val.en").unlink()
    (folder / "val.en.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"val\.en\.gz: cannot be read"):
        load_pairs_training(card_of(), folder)
    write(folder, "train", [""], [""])
    with pytest.raises(InputError, match=r"train\.en: holds no sentences"):
        load_pairs_training(card_of(), folder)


def test_a_tokenizer_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "own.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"own\.json: is no tokenizer\.json .*: it is not UTF-8 text"):
        load_pairs_training(card_of(tokenizer=str(folder / "own.json")), folder)
    with pytest.raises(InputError, match=r"lost\.json: the tokenizer cannot be read: .*No such file"):
        load_test_pairs(card_of(), folder, folder / "lost.json")


def test_the_padding_token_in_a_test_sentence_is_told_early(folder: Path) -> None:
    write(folder, "test", ["a <pad> dog"], ["ein hund"])
    with pytest.raises(InputError, match="en: the padding token <pad> is in 'a <pad> dog'"):
        examine_pairs(card_of(), folder)


def test_sentences_of_a_tokenizer_without_end_token_are_no_longer_than_allowed(folder: Path) -> None:
    keep_pair_tokenizer(card_of(), folder, folder / "kept.json")
    content = json.loads((folder / "kept.json").read_text(encoding="utf-8"))
    (folder / "own.json").write_text(json.dumps(content | {"post_processor": None}), encoding="utf-8")
    texts = dataclasses.replace(card_of(), data=dataclasses.replace(card_of().data, max_length=4))
    own = dataclasses.replace(texts, data=dataclasses.replace(texts.data, tokenizer=str(folder / "own.json")))
    for one, other in zip(load_pairs_training(own, folder), load_pairs_training(texts, folder), strict=True):
        assert one.targets.shape[1] == 4 and (one.targets == other.targets).all()
        assert (one.targets[:, 3] == END).any()


def test_a_vocabulary_larger_than_the_sentences_give_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.vocabulary: got 5000; .* set it to that or less"):
        load_pairs_training(card_of(vocabulary=5000), folder)


def test_a_share_of_the_pairs_is_set_apart_without_validation_files(folder: Path) -> None:
    for language in ("en", "de"):
        (folder / f"val.{language}").unlink()
    train, validation = load_pairs_training(card_of(validation_fraction=0.4), folder)
    assert len(train) == 2 and len(validation) == 1
    assert {*train.labels[:, 0].tolist(), *validation.labels[:, 0].tolist()} == {*SOURCES} - {""}


def test_ids_are_those_of_the_texts_and_the_tokenizer_is_kept(folder: Path, tmp_path: Path) -> None:
    train, validation = load_pairs_training(card_of(), folder)
    card = settled_pairs(card_of(), validation)
    assert card.data.timed_length == sorted((validation.read(np.arange(3)) != PADDING).sum(1))[1]
    keep_pair_tokenizer(card, folder, tmp_path / "kept.json")
    made = tokenizer_from((tmp_path / "kept.json").read_text(encoding="utf-8"), "kept")
    assert texts_of(train.targets.astype(np.int64), made).tolist() == train.labels[:, 1].tolist()
    test = load_test_pairs(card_of(), folder, tmp_path / "kept.json")
    assert (test.read(np.arange(3)) == train.read(np.arange(3))).all()
    given = dataclasses.replace(
        card_of(), data=dataclasses.replace(card_of().data, tokenizer=str(tmp_path / "kept.json"))
    )
    assert (load_pairs_training(given, folder)[0].targets == train.targets).all()


def test_a_batch_gives_each_token_what_follows(folder: Path) -> None:
    train, _ = load_pairs_training(card_of(), folder)
    batch = pair_examples(card_of(), train).batch(np.array([2, 0]), 0)
    inputs, targets, used = batch.inputs.numpy(), batch.targets.numpy(), 0
    for row, place in enumerate((2, 0)):
        right = train.targets[place][train.targets[place] != PADDING]
        assert inputs[row, 1][inputs[row, 1] != PADDING].tolist() == [START, *right[:-1]]
        assert targets[used : used + len(right)].tolist() == right.tolist() and right[-1] == END
        used += len(right)
        given = train.read(np.array([place]))[0]
        assert inputs[row, 0][inputs[row, 0] != PADDING].tolist() == given[given != PADDING].tolist()
    assert used == len(targets)


@pytest.mark.parametrize("both", [False, True])
def test_written_translations_become_the_targets(folder: Path, both: bool) -> None:
    examples = pair_examples(card_of(), load_pairs_training(card_of(), folder)[0])
    written = np.array([[7, 8, PADDING], [9, END, PADDING], [9, 9, 9]])
    found = retargeted(examples, written, both)
    assert len(found) == (6 if both else 3) and found.key != examples.key
    last = found.batch(np.arange(len(found))[-3:], 0)
    assert last.targets.tolist() == [7, 8, END, 9, END, 9, 9, 9, END]
    if both:
        assert (found.batch(np.arange(3), 0).targets == examples.batch(np.arange(3), 0).targets).all()
