"""Reads sentences, and converts them to token ids (n, L) padded with 0."""

import dataclasses
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.card import Card, TextData
from edgekd.data.arrays import digest
from edgekd.data.examples import Batch, Examples
from edgekd.data.images import Split, in_memory
from edgekd.data.sources import place_of, require_classes, set_apart
from edgekd.data.views import VIEWS_VERSION, draws
from edgekd.errors import ConfigError, InputError, did_you_mean, one_line, shown
from edgekd.files import atomic
from edgekd.imports import import_function, require
from edgekd.tasks.text_classification import PADDING, trimmed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "UNKNOWN",
    "examine_text",
    "keep_tokenizer",
    "load_test_text",
    "load_text",
    "load_text_training",
    "part_file",
    "read_tsv",
    "require_test_text",
    "settled",
    "text_examples",
    "tokenizer_of_words",
    "without_words",
]

UNKNOWN = 1
"""Token id of unknown words."""

Sentences = list[str]
Labels = NDArray[np.int64]


def part_file(folder: Path, part: str) -> Path:
    """The path of a part's file; the part is `train`, `dev` or `test`."""
    return folder / f"{part}.tsv"


def load_text(card: Card, folder: Path, part: str, tokenizer: Path | None = None) -> Split:
    """The sentences of a part as token ids (n, L) int32, where L is the length of the longest sentence.

    The tokenizer is the file `tokenizer`, which a run has saved; else the card's; else one trained on the training
    sentences. Raises InputError, with file and line, for anything wrong in the data, and ConfigError for the tokenizer.
    """
    data: TextData = card.data
    made = _read_tokenizer(tokenizer, data.max_length) if tokenizer else _tokenizer(card, folder)
    sentences, labels = _read(card, folder, part)
    ids = _encode(made, sentences, f"{part_file(folder, part) if data.source == 'tsv' else data.function}")
    return in_memory(ids, labels)  # type: ignore[arg-type]  # a Split can hold any array: images or token ids


def load_text_training(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation sentences of the card. The validation part is dev.tsv if it exists; otherwise a
    share of each class is split off the training part. Raises InputError for anything wrong with the data."""
    place = place_of(card, folder) or Path()
    whole = load_text(card, place, "train")
    if part_file(place, "dev").is_file():
        require_classes(card, whole.labels, 1, "one is needed, or drop the class")
        return whole, load_text(card, place, "dev")
    return set_apart(card, whole)


def examine_text(card: Card, folder: Path | None) -> tuple[Split, Split]:
    """The training and the validation sentences; also reads the test part, so that its errors are reported early."""
    parts = load_text_training(card, folder)
    _read(card, place_of(card, folder) or Path(), "test")
    return parts


def require_test_text(card: Card, folder: Path | None) -> None:
    """Raise InputError if the test part does not exist or is empty; do not read it."""
    place = place_of(card, folder)
    if card.data.source == "tsv" and place:
        file = part_file(place, "test")
        if not file.is_file():
            raise InputError(f"{file}: no such file; the data folder needs train.tsv and test.tsv")
        if not file.stat().st_size:
            raise InputError(f"{file}: holds no sentences")


def load_test_text(card: Card, folder: Path | None, tokenizer: Path) -> Split:
    """The test sentences, with the tokenizer that the run has saved. Load them only once, for the final figures."""
    return load_text(card, place_of(card, folder) or Path(), "test", tokenizer)


def keep_tokenizer(card: Card, folder: Path | None, path: Path) -> None:
    """Write the card's tokenizer to `path`, in the format of the tokenizers library, unless the file exists."""
    if not path.exists():
        text = _tokenizer(card, place_of(card, folder) or Path()).to_str(pretty=True)
        with atomic(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def settled(card: Card, validation: Split) -> Card:
    """The card, with the median length of the validation sentences as `timed_length` if it does not set that itself."""
    if card.data.timed_length is not None:
        return card
    lengths = (validation.read(np.arange(len(validation))) != PADDING).sum(axis=1)
    median = int(np.sort(lengths)[(len(lengths) - 1) // 2])  # the lower median, which is the length of some sentence
    return dataclasses.replace(card, data=dataclasses.replace(card.data, timed_length=median))


def read_tsv(path: Path, classes: Sequence[str]) -> tuple[Sentences, Labels]:
    """The sentences and labels of a file in which each line is a sentence, a tab and a label.

    Raises InputError, which names file and line, for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the data folder needs train.tsv and test.tsv") from None
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{number}: is not UTF-8 text; save the file as UTF-8") from None
    places = range(len(classes))
    known = {str(place): place for place in places} | {classes[place]: place for place in places}
    sentences, labels = Sentences(), list[int]()
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at other characters
        if not (line := line.removesuffix("\r")).strip():
            continue
        sentence, *rest = line.split("\t")
        if len(rest) != 1:
            raise InputError(f"{path}:{number}: has {len(rest)} tabs; each line is a sentence, one tab and a label")
        if not sentence.strip():
            raise InputError(f"{path}:{number}: has no sentence before the tab; remove the line")
        if (label := unicodedata.normalize("NFC", rest[0].strip())) not in known:
            raise InputError(
                f"{path}:{number}: label {shown(label)} is no class of the card; {did_you_mean(label, classes)}"
            )
        sentences.append(sentence)
        labels.append(known[label])
    if not sentences:
        raise InputError(f"{path}: holds no sentences")
    return sentences, np.array(labels, dtype=np.int64)


def _read(card: Card, folder: Path, part: str) -> tuple[Sentences, Labels]:
    data: TextData = card.data
    if data.source == "tsv":
        return read_tsv(part_file(folder, part), data.classes)
    assert data.function is not None  # checked when the card was read
    given = import_function(card, data.function)(folder, part)
    try:
        sentences, labels = list(given[0]), np.asarray(given[1])
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{data.function}: gave a {type(given).__name__}; sentences and labels are needed") from error
    wrong = next((place for place, one in enumerate(sentences) if not (isinstance(one, str) and one.strip())), None)
    if wrong is not None:
        raise InputError(f"{data.function}: gave {shown(sentences[wrong])} as sentence {wrong}; text is needed")
    if labels.shape != (len(sentences),) or labels.dtype.kind not in "iu" or not len(labels):
        raise InputError(
            f"{data.function}: gave labels {labels.dtype} {labels.shape} for {len(sentences)} sentences; "
            "one whole number a sentence is needed"
        )
    if labels.min() < 0 or labels.max() >= len(data.classes):
        raise InputError(
            f"{data.function}: gave labels {labels.min()} to {labels.max()}; the card names {len(data.classes)} classes"
        )
    return sentences, labels.astype(np.int64)


def _tokenizer(card: Card, folder: Path) -> "Tokenizer":
    """The card's tokenizer: read from its file, or trained on the training sentences, which is reproducible."""
    data: TextData = card.data
    if data.tokenizer:
        made, where = _read_tokenizer(card.resolve(data.tokenizer), data.max_length), f"{card.resolve(data.tokenizer)}"
    else:
        made, where = (
            tokenizer_of_words(_read(card, folder, "train")[0], data),
            "the tokenizer of the training sentences",
        )
    if made.get_vocab_size() != data.vocabulary:
        raise ConfigError(
            f"{card.file}: data.vocabulary: got {data.vocabulary}; {where} has {made.get_vocab_size()} tokens, "
            "padding and [UNK] included; set it to that" + ("" if data.tokenizer else " or less")
        )
    if card.augment.word_dropout and _unknown(made) != UNKNOWN:
        raise ConfigError(
            f"{card.file}: augment.word_dropout: makes words the token of id {UNKNOWN}, which in {where} is "
            f"{made.id_to_token(UNKNOWN)!r}, not the unknown token; drop it, or number the unknown token {UNKNOWN}"
        )
    return made


def _unknown(tokenizer: "Tokenizer") -> int | None:
    """The id of the unknown token: some models of the library store the token, others its id."""
    model = json.loads(tokenizer.to_str())["model"]
    token = model.get("unk_token")
    found: int | None = model.get("unk_id") if token is None else tokenizer.token_to_id(token)
    return found


def tokenizer_of_words(sentences: Sentences, data: TextData) -> "Tokenizer":
    """A tokenizer of words and punctuation in lower case; ids go from frequent to rare words, ties alphabetically.

    It uses whole words, because the library's trainers for subwords do not give the same vocabulary each time.
    """
    tokenizers = require("tokenizers", "train", "text")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=data.vocabulary, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    made.train_from_iterator(sentences, trainer)
    made.enable_truncation(data.max_length)
    result: Tokenizer = made
    return result


def _read_tokenizer(path: Path, max_length: int) -> "Tokenizer":
    tokenizers = require("tokenizers", "train", "text")
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer file; it is the tokenizer.json of the tokenizers library")
    try:
        made: Tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path}: the tokenizers library cannot read it: {one_line(error, 120)}") from error
    made.no_padding()
    made.enable_truncation(max_length)
    return made


def _encode(tokenizer: "Tokenizer", sentences: Sentences, where: str) -> NDArray[np.int32]:
    """Token ids (n, L), padded with PADDING; InputError for a sentence without tokens, or with the padding id in it."""
    rows = [encoded.ids for encoded in tokenizer.encode_batch(sentences)]
    for number, row in enumerate(rows, start=1):
        if not row or PADDING in row:
            what = "no tokens" if not row else f"a token {tokenizer.id_to_token(PADDING)!r} of id 0, which is padding"
            raise InputError(
                f"{where}: sentence {number}: the tokenizer finds {what} in {sentences[number - 1][:60]!r}"
            )
    ids = np.full((len(rows), max(map(len, rows))), PADDING, dtype=np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return ids


def text_examples(card: Card, split: Split) -> Examples:
    """Convert `split` for the training loop: token ids (B, L) int32, where L is the length of the batch's longest
    sentence."""
    augment = card.augment

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        ids: NDArray[np.int32] = split.read(indices)  # type: ignore[assignment]  # a Split can hold any array
        if k is not None:
            ids = without_words(ids, indices, k, augment.seed, augment.word_dropout)
        return Batch(torch.from_numpy(trimmed(ids)), torch.from_numpy(split.labels[indices]))

    # Only these settings of [augment] affect sentences.
    augmented = {"seed": augment.seed, "word_dropout": augment.word_dropout}
    key = {"data": digest(split), "augment": augmented, "views": VIEWS_VERSION}
    return Examples(split.labels, batch, key)


def without_words(
    ids: NDArray[np.int32], indices: NDArray[np.int64], k: int, seed: int, share: float
) -> NDArray[np.int32]:
    """View k of token ids (B, L): each token is replaced by `[UNK]` with probability `share`, as a pure function of
    (seed, index, k). Iyyer et al. 2015, section 3.1, drop the token instead."""
    if not share:
        return ids
    unknown = draws(seed, indices, k, ids.shape[1]) < share
    return np.where(unknown & (ids != PADDING), np.int32(UNKNOWN), ids)
