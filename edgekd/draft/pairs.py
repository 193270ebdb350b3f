"""Look at a folder of texts and their translations: two files of equally many lines for each part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.data.translation import read_pairs, tokenizer_of_pairs
from edgekd.draft.facts import DataFacts, Proposal
from edgekd.errors import InputError
from edgekd.tasks.translation import TranslationData, tokenizer_from

__all__ = ["languages_in", "look_at_pairs"]

LONGEST_NAME = 3
"""Letters of the longest ending of a file that is taken for a language, such as `en` or `deu`."""
FORMATS = frozenset("csv gif gz jpg log md npy npz pdf pkl png tar tgz tsv txt xml yml zip".split())
"""Endings of so few letters that name a format of files, and no language."""
VALIDATION, TEST = ("val", "valid", "validation", "dev"), ("test", "eval")
"""Beginnings of the names of the files of these parts."""
SMALL = 8_000
"""Fewer training sentences than this get a smaller teacher."""


def languages_in(folder: Path) -> dict[str, set[str]]:
    """The languages for which each part of a folder has a file, by the name of the part: {"train": {"de", "en"}}."""
    found: dict[str, set[str]] = {}
    for path in folder.iterdir():
        part, _, language = path.name.removesuffix(".gz").rpartition(".")
        named = 2 <= len(language) <= LONGEST_NAME and language.isalpha() and language.lower() not in FORMATS
        if part and named and path.is_file():
            found.setdefault(part, set()).add(language)
    return found


def look_at_pairs(folder: Path) -> DataFacts:
    """Facts of a folder of pairs of texts. Raises InputError for texts that are no pairs, and without a test part."""
    parts = languages_in(folder)
    source, target = _languages(folder, parts["train"])
    both = sorted(part for part, languages in parts.items() if {source, target} <= languages and part != "train")
    test = _named(both, TEST)
    if not test:
        raise InputError(
            f"--data {folder}: has pairs of texts for training and none for a test; add test.{source} and test.{target}"
        )
    validation = _named(both, VALIDATION)
    keys: dict[str, Any] = {"source": "pairs", "source_language": source, "target_language": target}
    keys |= ({"validation": validation} if validation not in ("", "val") else {}) | (
        {"test": test} if test != "test" else {}
    )
    texts = read_pairs(folder, "train", TranslationData(**keys, vocabulary=8))
    tests = len(read_pairs(folder, test, TranslationData(**keys, vocabulary=8)))
    vocabulary, longest = _tokens(folder, keys, texts)
    keys |= {"max_length": longest, "vocabulary": vocabulary, "beam": 1}
    return DataFacts(
        task="translation",
        keys=keys,
        classes=(),
        examples=len(texts),
        tests=tests,
        proposal=_proposal(len(texts)),
        guesses=(
            f"source: pairs, because {folder} holds train.{source} and train.{target} with {len(texts):,} sentences",
            f"languages: from {source} to {target}; exchange source_language and target_language for the other way",
            f"split: {test}.* for the test, "
            + (f"{validation}.* for validation" if validation else "a tenth of the training pairs for validation"),
            f"vocabulary: {vocabulary:,} tokens of both languages together",
            f"max_length: {longest} tokens hold 99.5 % of the training sentences",
            "beam: 1, which is greedy search; 4 is often a little better, and slower",
        ),
    )


def _languages(folder: Path, found: set[str]) -> tuple[str, str]:
    """The language to translate from, and the one to translate to."""
    if len(found) != 2:
        told = ", ".join(sorted(found))
        raise InputError(f"--data {folder}: holds train.* in {len(found)} languages ({told}); leave two of them there")
    first, second = sorted(found, key=lambda one: (not one.startswith("en"), one))
    return first, second


def _named(parts: list[str], beginnings: tuple[str, ...]) -> str:
    """The part that has one of these names, or whose name begins with one; empty if there is none."""
    exact = [part for part in parts if part in beginnings]
    return next(iter([*exact, *(part for part in parts if part.startswith(beginnings))]), "")


def _tokens(folder: Path, keys: Mapping[str, Any], texts: "np.ndarray[Any, Any]") -> tuple[int, int]:
    """Size of the vocabulary and largest length in tokens for a card."""
    wanted = int(np.clip(round(len(texts) / 5, -3), 1000, 16_000))
    made = tokenizer_from(
        tokenizer_of_pairs(folder, TranslationData(**keys, vocabulary=wanted)),
        "the tokenizer of the training sentences",
    )
    lengths = [len(one.ids) for side in range(2) for one in made.encode_batch(texts[:, side].tolist())]
    longest = max(8, 8 * int(np.ceil(np.quantile(lengths, 0.995) / 8)))
    if longest > 4096:
        raise InputError(f"--data {folder}: has lines of {longest:,} tokens; give one sentence in each line")
    return int(made.get_vocab_size()), longest


def _proposal(count: int) -> Proposal:
    width, layers = (128, 2) if count < SMALL else (192, 3)
    training = {"optimizer": "adamw", "weight_decay": 0.01, "warmup_epochs": 1.0, "clip_norm": 1.0}
    shape = {"width": width, "encoder_layers": layers, "decoder_layers": layers, "heads": 4, "feed": 2 * width}
    return Proposal(
        augment={},
        teacher={"family": "seq2seq", "shape": shape | {"dropout": 0.3}},
        student="seq2seq",
        knobs={"width": [64, 96], "encoder_layers": [4], "decoder_layers": [1], "feed": [192], "dropout": [0.1]},
        training=training | {"learning_rate": 0.002, "label_smoothing": 0.1},
        recipe=training | {"learning_rate": 0.003, "temperature": 1.0, "losses": {"kd": 1.0}},
        guesses=("student: seq2seq with one layer of decoder, because that runs once for each token",),
    )
