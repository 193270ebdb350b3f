"""Sentences: what is read from files and functions, the ids they become, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from edgekd.augmentation import Augment
from edgekd.card import Card, TextData
from edgekd.data.text import (
    keep_tokenizer,
    load_test_text,
    load_text,
    load_text_training,
    read_tsv,
    require_test_text,
    settled,
    without_words,
)
from edgekd.distill.tasks.known import examples_of
from edgekd.errors import ConfigError, InputError
from edgekd.tasks.known import load_card
from edgekd.tasks.text_classification import trimmed

TRAIN = [
    ("A good film , good fun", "positive"),
    ("good good !", "positive"),
    ("a bad film", "negative"),
    ("bad , a bore", "0"),
]


def write_tsv(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{sentence}\t{label}\n" for sentence, label in pairs), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tsv(tmp_path / "data" / "train.tsv", TRAIN)
    write_tsv(tmp_path / "data" / "test.tsv", [("good stuff", "positive")])
    return tmp_path / "data"


def card(**values: Any) -> Card:
    plain: dict[str, Any] = {
        "source": "tsv",
        "classes": ("negative", "positive"),
        "max_length": 8,
        "vocabulary": 7,
        "validation_fraction": 0.5,
    }
    return dataclasses.replace(load_card("sst2"), file="card.toml", data=TextData(**plain | values))


def test_words_are_numbered_by_how_often_they_come(folder: Path) -> None:
    counts = {"good": 4, ",": 2, "a": 3, "bad": 2, "film": 2, "fun": 1, "!": 1, "bore": 1}
    order = sorted(counts, key=lambda word: (-counts[word], word))
    keep_tokenizer(card(), folder, folder / "tokenizer.json")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary, key=vocabulary.get) == ["[PAD]", "[UNK]", *order[:5]]
    train, validation = load_text_training(card(), folder)
    number = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *order[:5]])}
    seen = sorted(tuple(row) for split in (train, validation) for row in split.read(np.arange(2)).tolist())
    by_hand = [
        [number["a"], number["good"], number["film"], number[","], number["good"], 1],
        [number["good"], number["good"], 1, 0, 0, 0],
        [number["a"], number["bad"], number["film"], 0, 0, 0],
        [number["bad"], number[","], number["a"], 1, 0, 0],
    ]
    assert seen == sorted(map(tuple, by_hand))
    assert train.read(np.arange(2)).dtype == np.int32
    assert [sorted(split.labels) for split in (train, validation)] == [[0, 1], [0, 1]]  # half of each class


def test_a_dev_file_is_the_validation_part(folder: Path) -> None:
    write_tsv(folder / "dev.tsv", [("film", "positive"), ("a a a", "negative"), ("bad", "negative")])
    train, validation = load_text_training(card(), folder)
    assert (len(train), validation.labels.tolist()) == (4, [1, 0, 0])


def test_the_kept_tokenizer_gives_the_same_ids_by_itself(folder: Path) -> None:
    keep_tokenizer(card(max_length=3), folder, folder / "tokenizer.json")
    before = (folder / "tokenizer.json").read_bytes()
    keep_tokenizer(card(max_length=3), folder, folder / "again.json")
    assert (folder / "again.json").read_bytes() == before
    kept = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # As a user calls it, who knows nothing of edgekd; cut off at three tokens.
    ids = kept.encode("Good FILM , good").ids
    write_tsv(folder / "test.tsv", [("Good FILM , good", "positive"), ("unheard", "negative")])
    test = load_test_text(card(max_length=3), folder, folder / "tokenizer.json")
    assert len(ids) == 3
    assert test.read(np.arange(2)).tolist() == [ids, [1, 0, 0]]


def test_a_tokenizer_of_ones_own_is_used(folder: Path) -> None:
    model = tokenizers.models.WordLevel({"<pad>": 0, "<unk>": 1, "film": 2}, unk_token="<unk>")
    own = tokenizers.Tokenizer(model)
    own.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    own.enable_padding(length=20)
    own.save(str(folder / "own.json"))
    asked = dataclasses.replace(card(tokenizer="own.json", vocabulary=3), file=str(folder / "card.toml"))
    train, validation = load_text_training(asked, folder)
    assert {2} == {int(i) for split in (train, validation) for i in split.read(np.arange(2)).flat} - {0, 1}
    with pytest.raises(ConfigError, match=r"data\.vocabulary: got 7; .*own\.json has 3 tokens, .+; set it to that$"):
        load_text_training(dataclasses.replace(asked, data=card(tokenizer="own.json").data), folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a film\tpositiv\n", r"train\.tsv:1: label 'positiv' is no class of the card; did you mean 'positive'.+"),
        ("fine\t1\nno tab\n", r"train\.tsv:2: has 0 tabs; each line is a sentence, one tab and a label"),
        ("a\tb\t1\n", r"train\.tsv:1: has 2 tabs; .+"),
        ("a\t1\n \t1\n", r"train\.tsv:2: has no sentence before the tab; remove the line"),
        ("a\t2\n", r"train\.tsv:1: label '2' is no class of the card; Known: negative, positive\."),
        ("", r"train\.tsv: holds no sentences"),
        ("\n\n", r"train\.tsv: holds no sentences"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, text: str, said: str) -> None:
    (folder / "train.tsv").write_text(text)
    with pytest.raises(InputError, match=said + "$"):
        load_text_training(card(), folder)


def test_a_line_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "train.tsv").write_bytes(b"fine\t1\n\xff\xfe\t0\n")
    with pytest.raises(InputError, match=r"train\.tsv:2: is not UTF-8 text; save the file as UTF-8$"):
        load_text_training(card(), folder)


def test_rare_line_ends_split_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes("\ufeffone\x85\u2028two\t1\r\nthree\t0".encode())
    sentences, labels = read_tsv(tmp_path / "x.tsv", ["no", "yes"])
    assert (sentences, labels.tolist()) == (["one\x85\u2028two", "three"], [1, 0])


def test_what_is_missing_is_said_before_training(folder: Path, tmp_path: Path) -> None:
    (folder / "test.tsv").unlink()
    with pytest.raises(InputError, match=r"test\.tsv: no such file; the data folder needs train\.tsv and test\.tsv$"):
        require_test_text(card(), folder)
    with pytest.raises(InputError, match=r"nowhere: no such data folder; give the folder with --data DIR$"):
        require_test_text(card(), tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data\.path: the card names no folder for its data; .+"):
        load_text_training(card(), None)


def test_a_tokenizer_that_is_missing_or_broken_is_said(folder: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json: no such tokenizer file; it is the tokenizer\.json of .+$"):
        load_test_text(card(), folder, folder / "gone.json")
    (folder / "broken.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken\.json: the tokenizers library cannot read it: .+$"):
        load_test_text(card(), folder, folder / "broken.json")


def test_more_tokens_than_there_are_is_said(folder: Path) -> None:
    said = r"card\.toml: data\.vocabulary: got 99; the tokenizer of the training sentences has 10 tokens, .+ or less$"
    with pytest.raises(ConfigError, match=said):
        load_text_training(card(vocabulary=99), folder)


def test_a_tokenizer_whose_padding_is_a_word_is_refused(folder: Path) -> None:
    model = tokenizers.models.WordLevel({"good": 0, "<unk>": 1, "film": 2}, unk_token="<unk>")
    own = tokenizers.Tokenizer(model)
    own.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    own.save(str(folder / "own.json"))
    with pytest.raises(InputError, match=r"test\.tsv: sentence 1: the tokenizer finds a token 'good' of id 0, .+"):
        load_test_text(card(vocabulary=3), folder, folder / "own.json")


def test_words_are_dropped_only_where_the_unknown_token_is_known(folder: Path) -> None:
    model = tokenizers.models.WordLevel({"<pad>": 0, "film": 1, "<unk>": 2}, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(folder / "own.json"))
    asked = dataclasses.replace(card(tokenizer="own.json", vocabulary=3), file=str(folder / "card.toml"))
    load_text_training(dataclasses.replace(asked, augment=Augment()), folder)
    said = r"card\.toml: augment\.word_dropout: makes words the token of id 1, which in .*own\.json is 'film', not .+"
    with pytest.raises(ConfigError, match=said):
        load_text_training(dataclasses.replace(asked, augment=Augment(word_dropout=0.1)), folder)


def test_words_are_dropped_with_tokenizers_that_number_the_unknown_token(folder: Path) -> None:
    words = [("<pad>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in "abcdefghijklmnopqrstuvwxyz ,.")]
    tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=1)).save(str(folder / "own.json"))
    asked = dataclasses.replace(card(tokenizer="own.json", vocabulary=len(words)), file=str(folder / "card.toml"))
    assert asked.augment.word_dropout
    load_text_training(asked, folder)


IMPORTED = """
def load(path, split):
    return {"train": (["good", "bad"] * 4, [1, 0] * 4), "test": WHAT}[split]
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("(['good'], [2])", r"gave labels 2 to 2; the card names 2 classes$"),
        ("(['good', 3], [1, 1])", r"gave 3 as sentence 1; text is needed$"),
        ("(['good'], [1, 0])", r"gave labels int64 \(2,\) for 1 sentences; .+$"),
        ("None", r"gave a NoneType; sentences and labels are needed$"),
        ("([], [])", r"gave labels float64 \(0,\) for 0 sentences; .+$"),
    ],
)
def test_what_a_function_gives_is_checked(tmp_path: Path, what: str, said: str) -> None:
    (tmp_path / "own_text.py").write_text(IMPORTED.replace("WHAT", what))
    given = card(source="import", function="own_text:load", path=".", vocabulary=4)
    given = dataclasses.replace(given, file=str(tmp_path / "card.toml"))
    train, validation = load_text_training(given, None)
    assert (len(train), len(validation)) == (4, 4)
    with pytest.raises(InputError, match=r"own_text:load: " + said):
        load_text(given, Path(), "test")


def test_the_timed_length_is_the_median_of_the_validation_sentences(folder: Path) -> None:
    lengths = [1, 2, 2, 5, 6, 6]
    write_tsv(folder / "dev.tsv", [(" ".join(["film"] * length), "positive") for length in lengths])
    _, validation = load_text_training(card(), folder)
    done = settled(card(), validation)
    assert isinstance(done.data, TextData)
    assert done.data.timed_length == 2  # the lower one of the two in the middle: a length that occurs
    stated = card(timed_length=4)
    assert settled(stated, validation) is stated


def test_examples_are_as_long_as_the_longest_of_the_batch(folder: Path) -> None:
    train, _ = load_text_training(card(validation_fraction=0.3), folder)
    examples = examples_of(card(), train)
    whole = train.read(np.arange(len(train)))
    for place in range(len(train)):
        batch = examples.batch(np.array([place]), None)
        used = int((whole[place] != 0).sum())
        assert batch.inputs.tolist() == [whole[place, :used].tolist()]
        assert batch.targets.tolist() == [int(train.labels[place])]
    assert trimmed(np.zeros((2, 5), dtype=np.int32)).shape == (2, 1)


def test_words_are_left_out_at_random_but_for_good() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 50, (400, 30)).astype(np.int32)
    ids[:, 20:] = 0
    places = np.arange(400)
    one = without_words(ids, places, 3, 7, 0.25)
    changed = one != ids
    assert set(one[changed].tolist()) == {1}
    assert not changed[:, 20:].any()
    share = changed[:, :20].mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 8000) ** 0.5  # four standard deviations
    assert np.array_equal(without_words(ids[50:60], places[50:60], 3, 7, 0.25), one[50:60])
    assert not np.array_equal(without_words(ids, places, 4, 7, 0.25), one)
    assert not np.array_equal(without_words(ids, places, 3, 8, 0.25), one)
