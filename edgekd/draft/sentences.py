"""Look at a folder of sentences: `train.tsv`, `test.tsv` and perhaps `dev.tsv`."""

import unicodedata
from pathlib import Path

import numpy as np

from edgekd.card import TextData
from edgekd.data.text import part_file, read_tsv, tokenizer_of_words
from edgekd.draft.facts import MAX_CLASSES, DataFacts
from edgekd.errors import InputError, one_line
from edgekd.units import natural

__all__ = ["look_at_sentences"]

MOST_WORDS = 10_000
"""Largest vocabulary that is proposed, with padding and `[UNK]`."""


def look_at_sentences(folder: Path) -> DataFacts:
    """Facts of a folder with `train.tsv` and `test.tsv`. Raises InputError, with file and line, for a wrong line."""
    train, test = part_file(folder, "train"), part_file(folder, "test")
    classes = _classes(train)
    sentences, labels = read_tsv(train, classes)
    tests, _ = read_tsv(test, classes)
    whole = TextData(source="tsv", classes=classes, max_length=65_536, vocabulary=10_000_000)
    tokenizer = tokenizer_of_words(sentences, whole)
    lengths = np.array([len(one.ids) for one in tokenizer.encode_batch(sentences)])
    longest = max(8, 8 * int(np.ceil(np.quantile(lengths, 0.995) / 8)))
    words = tokenizer.get_vocab_size()
    vocabulary = min(MOST_WORDS, words)
    guesses = (
        f"source: tsv, because {train} holds a sentence, a tab and a label in each line",
        f"max_length: {longest} tokens hold 99.5 % of the training sentences",
        f"vocabulary: {vocabulary:,} of the {words:,} words and signs of the training sentences",
    )
    return DataFacts(
        task="text-classification",
        keys={"source": "tsv", "max_length": longest, "vocabulary": vocabulary},
        classes=classes,
        examples=len(sentences),
        tests=len(tests),
        labels=tuple(int(one) for one in labels),
        guesses=guesses,
    )


def _classes(file: Path) -> tuple[str, ...]:
    """The labels of the file, whole numbers as all numbers from 0; InputError if they cannot be classes."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text: {one_line(error, 100)}") from error
    found = {unicodedata.normalize("NFC", line.rpartition("\t")[2].strip()) for line in lines if "\t" in line}
    if not 2 <= len(found) <= MAX_CLASSES:
        raise InputError(
            f"{file}: has {len(found):,} different labels; each line should be a sentence, one tab and the name or "
            "number of its class, of which there are at least two"
        )
    if all(one.isdecimal() and one.isascii() and int(one) <= MAX_CLASSES for one in found):
        return tuple(str(number) for number in range(max(map(int, found)) + 1))
    return tuple(sorted(found, key=natural))
