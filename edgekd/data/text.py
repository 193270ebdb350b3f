"""Sentences: where they come from, and how they become token ids (n, L) padded with 0."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekd.card import Card, TextData
from edgekd.data.images import Split, in_memory
from edgekd.errors import ConfigError, InputError, did_you_mean, one_line, shown
from edgekd.files import atomic
from edgekd.imports import import_function, require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PADDING", "UNKNOWN", "keep_tokenizer", "load_text", "part_file", "read_tsv", "settled", "trimmed"]

PADDING, UNKNOWN = 0, 1
"""Token ids: of what fills a sentence up, and of what the tokenizer does not know."""

Sentences = list[str]
Labels = NDArray[np.int64]


def part_file(folder: Path, part: str) -> Path:
    """The file of a part, `train`, `dev` or `test`."""
    return folder / f"{part}.tsv"


def load_text(card: Card, folder: Path, part: str, tokenizer: Path | None = None) -> Split:
    """The sentences of a part as token ids (n, L) int32; L is the longest one's length.

    The tokenizer is that of `tokenizer`, which a run kept, else the card's, else made of the training sentences.
    Raises InputError (file and line) for anything wrong in the data, ConfigError for the tokenizer.
    """
    data = _text(card)
    made = _read_tokenizer(tokenizer, data.max_length) if tokenizer else _tokenizer(card, folder)
    sentences, labels = _read(card, folder, part)
    ids = _encode(made, sentences, f"{part_file(folder, part) if data.source == 'tsv' else data.function}")
    return in_memory(ids, labels)  # type: ignore[arg-type]  # a Split holds any array, images or ids


def keep_tokenizer(card: Card, folder: Path, path: Path) -> None:
    """Write the card's tokenizer to `path` (the format of the tokenizers library), unless it is there."""
    if not path.exists():
        text = _tokenizer(card, folder).to_str(pretty=True)
        with atomic(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def settled(card: Card, validation: Split) -> Card:
    """The card with `timed_length`: as it says, else the median length of the validation sentences."""
    if not isinstance(card.data, TextData) or card.data.timed_length is not None:
        return card
    lengths = (validation.read(np.arange(len(validation))) != PADDING).sum(axis=1)
    median = int(np.sort(lengths)[(len(lengths) - 1) // 2])  # one that occurs
    return dataclasses.replace(card, data=dataclasses.replace(card.data, timed_length=median))


def trimmed(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Token ids (B, L) without the places that are padding in every row."""
    used = np.flatnonzero((ids != PADDING).any(axis=0))
    return ids[:, : used[-1] + 1 if len(used) else 1]


def read_tsv(path: Path, classes: Sequence[str]) -> tuple[Sentences, Labels]:
    """Sentences and labels of a file whose lines are a sentence, a tab and a label.

    Raises InputError naming file and line.
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
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at rarer characters
        if not (line := line.removesuffix("\r")).strip():
            continue
        sentence, *rest = line.split("\t")
        if len(rest) != 1:
            raise InputError(f"{path}:{number}: has {len(rest)} tabs; each line is a sentence, one tab and a label")
        if not sentence.strip():
            raise InputError(f"{path}:{number}: has no sentence before the tab; remove the line")
        if (label := rest[0].strip()) not in known:
            raise InputError(
                f"{path}:{number}: label {shown(label)} is no class of the card; {did_you_mean(label, classes)}"
            )
        sentences.append(sentence)
        labels.append(known[label])
    if not sentences:
        raise InputError(f"{path}: holds no sentences")
    return sentences, np.array(labels, dtype=np.int64)


def _text(card: Card) -> TextData:
    assert isinstance(card.data, TextData)  # the card's own check
    return card.data


def _read(card: Card, folder: Path, part: str) -> tuple[Sentences, Labels]:
    data = _text(card)
    if data.source == "tsv":
        return read_tsv(part_file(folder, part), data.classes)
    assert data.function is not None  # the card's own check
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
    """The card's tokenizer: its file, or made of the training sentences; a pure function of either."""
    data = _text(card)
    if data.tokenizer:
        made, where = _read_tokenizer(card.resolve(data.tokenizer), data.max_length), f"{card.resolve(data.tokenizer)}"
    else:
        made, where = _of_words(_read(card, folder, "train")[0], data), "the tokenizer of the training sentences"
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
    """The id of the unknown token; of the library's models some name the token, others its id."""
    model = json.loads(tokenizer.to_str())["model"]
    token = model.get("unk_token")
    found: int | None = model.get("unk_id") if token is None else tokenizer.token_to_id(token)
    return found


def _of_words(sentences: Sentences, data: TextData) -> "Tokenizer":
    """Words and signs in lower case, the most frequent first, those of equal number in alphabetical order.

    Whole words: the library's trainers of word parts give another vocabulary each time.
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
    """Token ids (n, L), padded with PADDING; InputError for a sentence that has none, or the padding's id in it."""
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
