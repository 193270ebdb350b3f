"""Reads sentences and their translations, and converts them to token ids (n, L) padded with 0."""

import dataclasses
import functools
import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.card import Card
from edgekd.data.arrays import digest
from edgekd.data.examples import Batch, Examples
from edgekd.data.images import Split
from edgekd.data.sources import place_of
from edgekd.errors import ConfigError, InputError, one_line, shown
from edgekd.files import atomic
from edgekd.imports import require
from edgekd.tasks.text_classification import trimmed
from edgekd.tasks.translation import END, PADDING, START, TranslationData, tokenizer_from

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "PairExamples",
    "Pairs",
    "examine_pairs",
    "keep_pair_tokenizer",
    "load_pairs_training",
    "load_test_pairs",
    "pair_examples",
    "pairs_of",
    "read_pairs",
    "require_test_pairs",
    "retargeted",
    "settled_pairs",
    "tokenizer_of_pairs",
]

Texts = list[str]


class Pairs(Split):
    """Sentences and their translations. `labels` (n, 2) are the texts, `read` gives the ids of the sentences (n, S)."""

    def __init__(self, texts: NDArray[np.str_], ids: tuple[NDArray[np.int32], NDArray[np.int32]], tokenizer: str):
        super().__init__(texts, lambda chosen: ids[0][chosen])  # type: ignore[arg-type,return-value]
        self.targets = ids[1]
        """The ids of the translations (n, T)."""
        self.tokenizer = tokenizer
        """The tokenizer as JSON text."""

    def subset(self, indices: NDArray[np.int64]) -> "Pairs":
        """The pairs at `indices`, which are numbered from 0 in it."""
        texts: NDArray[Any] = self.labels
        return Pairs(texts[indices], (self.read(indices), self.targets[indices]), self.tokenizer)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class PairExamples(Examples):
    """Examples of translation, whose scoring needs the tokenizer."""

    tokenizer: str = ""
    sources: NDArray[np.int32] = dataclasses.field(default_factory=lambda: np.zeros((0, 1), np.int32))
    """The ids of the sentences (n, S)."""
    longest: int = 1
    """Number of tokens of the longest translation, with its end token."""


def load_pairs_training(card: Card, folder: Path | None) -> tuple[Pairs, Pairs]:
    """The training and the validation part of the card. Raises InputError for anything wrong with the data."""
    data: TranslationData = card.data
    require("sacrebleu", "translation", "scoring translations")  # before anything is trained
    place = place_of(card, folder) or Path()
    texts = read_pairs(place, "train", data)
    tokenizer = _tokenizer_text(card, place)
    if _exists(place, data.validation, data.source_language) or _exists(place, data.validation, data.target_language):
        parts = texts, read_pairs(place, data.validation, data)
    else:
        parts = _set_apart(texts, data, place)
    train, validation = (_encoded(part, data, tokenizer, f"{place}") for part in parts)
    return train, validation


def examine_pairs(card: Card, folder: Path | None) -> tuple[Pairs, Pairs]:
    """The training and the validation part; also reads the test part, so that its errors are reported early."""
    parts = load_pairs_training(card, folder)
    place = place_of(card, folder) or Path()
    _encoded(read_pairs(place, card.data.test, card.data), card.data, parts[0].tokenizer, f"{place}")
    return parts


def require_test_pairs(card: Card, folder: Path | None) -> None:
    """Raise InputError if a file of the test part does not exist; do not read it."""
    place = place_of(card, folder) or Path()
    for language in (card.data.source_language, card.data.target_language):
        _file(place, card.data.test, language)


def load_test_pairs(card: Card, folder: Path | None, tokenizer: Path) -> Pairs:
    """The test part, with the tokenizer that the run has saved. Load it only once, for the final figures."""
    place, data = place_of(card, folder) or Path(), card.data
    text = _text_of(tokenizer)
    return _encoded(read_pairs(place, data.test, data), data, text, f"{place}")


def keep_pair_tokenizer(card: Card, folder: Path | None, path: Path) -> None:
    """Write the card's tokenizer to `path`, in the format of the tokenizers library, unless the file exists."""
    if not path.exists():
        text = _tokenizer_text(card, place_of(card, folder) or Path())
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def settled_pairs(card: Card, validation: Split) -> Card:
    """The card with the content of its tokenizer, and with the median length of the validation sentences as
    `timed_length` if it does not set that itself."""
    assert isinstance(validation, Pairs)  # this module loads no others
    data: TranslationData = dataclasses.replace(card.data, tokenizer=validation.tokenizer)
    if data.timed_length is None:
        lengths = (validation.read(np.arange(len(validation))) != PADDING).sum(axis=1)
        data = dataclasses.replace(data, timed_length=int(np.sort(lengths)[(len(lengths) - 1) // 2]))
    return dataclasses.replace(card, data=data)


def read_pairs(folder: Path, part: str, data: TranslationData) -> NDArray[np.str_]:
    """The sentences of a part and their translations, (n, 2); lines that are empty in both files are left out.

    Raises InputError, which names file and line, if a file is missing or is no text, or if a translation is missing.
    """
    files = [_file(folder, part, language) for language in (data.source_language, data.target_language)]
    sources, targets = (_lines(file) for file in files)
    for number, (one, other) in enumerate(zip(sources, targets, strict=False), start=1):
        if bool(one) != bool(other):
            empty, full = files if not one else files[::-1]
            raise InputError(f"{empty}:{number}: is empty, and {full.name}:{number} is not; remove both lines")
    if len(sources) != len(targets):
        shorter = min(len(sources), len(targets))
        few, many = files if len(sources) < len(targets) else files[::-1]
        raise InputError(
            f"{few}: has {shorter} lines, and {many.name} has {max(len(sources), len(targets))}; each line needs its "
            "translation in the same line of the other file"
        )
    pairs = [pair for pair in zip(sources, targets, strict=True) if pair[0]]
    if not pairs:
        raise InputError(f"{files[0]}: holds no sentences")
    return np.array(pairs, dtype=np.str_)


def _exists(folder: Path, part: str, language: str) -> bool:
    return any((folder / f"{part}.{language}{end}").is_file() for end in ("", ".gz"))


def _file(folder: Path, part: str, language: str) -> Path:
    """The file of a part in a language, plain or compressed. Raises InputError if neither exists."""
    plain = folder / f"{part}.{language}"
    packed = folder / f"{part}.{language}.gz"
    if not plain.is_file() and not packed.is_file():
        raise InputError(f"{plain}: no such file, nor {packed.name}; each part needs a file for each language")
    return plain if plain.is_file() else packed


def _lines(file: Path) -> Texts:
    """The lines of a text file without surrounding white space; those at the end that are empty are left out."""
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{number}: is not UTF-8 text; save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read: {one_line(error, 100)}") from error
    lines = [line.strip() for line in text.split("\n")]  # splitlines() would also split at other characters
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _set_apart(
    texts: NDArray[np.str_], data: TranslationData, place: Path
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Training and validation pairs, chosen by the card's seed."""
    held = max(1, round(len(texts) * data.validation_fraction))
    if held >= len(texts):
        raise InputError(f"{place}: one pair of sentences is too few; two are needed, one of them to validate on")
    order = np.random.Generator(np.random.Philox(key=data.validation_seed)).permutation(len(texts))
    return texts[np.sort(order[held:])], texts[np.sort(order[:held])]


def _tokenizer_text(card: Card, place: Path) -> str:
    """The card's tokenizer as JSON text: its content, read from its file, or made from the training sentences."""
    data: TranslationData = card.data
    if not data.tokenizer:
        text, where = tokenizer_of_pairs(place, data), "the tokenizer of the training sentences"
    elif data.tokenizer.startswith("{"):
        text, where = data.tokenizer, "its tokenizer"
    else:
        file = card.resolve(data.tokenizer)
        if not file.is_file():
            raise InputError(f"{file}: no such tokenizer file; it is the tokenizer.json of the tokenizers library")
        text, where = _text_of(file), str(file)
    count = tokenizer_from(text, where).get_vocab_size()
    if count != data.vocabulary:
        less = "" if data.tokenizer else " or less"
        raise ConfigError(
            f"{card.file}: data.vocabulary: got {data.vocabulary}; {where} has {count} tokens; set it to that{less}"
        )
    return text


def tokenizer_of_pairs(folder: Path, data: TranslationData) -> str:
    """A tokenizer by byte pair encoding of the training sentences in `folder`, as JSON text, with `vocabulary` tokens,
    or fewer if the sentences hold no more."""
    files = [_file(folder, "train", language) for language in (data.source_language, data.target_language)]
    return _byte_pairs(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files), data.vocabulary)


def _text_of(tokenizer: Path) -> str:
    """The content of a tokenizer's file. Raises InputError if it cannot be read."""
    try:
        return tokenizer.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{tokenizer}: is no tokenizer.json of the tokenizers library: it is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{tokenizer}: the tokenizer cannot be read: {one_line(error, 100)}") from error


@functools.lru_cache(maxsize=4)
def _byte_pairs(marks: tuple[tuple[Path, int, int], ...], vocabulary: int) -> str:
    """A tokenizer by byte pair encoding of the sentences in both files, as JSON text. Equal files give equal text."""
    tokenizers = require("tokenizers", "train", "translation")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Metaspace(), tokenizers.pre_tokenizers.Punctuation()]
    )
    made.decoder = tokenizers.decoders.Metaspace()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    made.train_from_iterator([line for file, *_ in marks for line in _lines(file)], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    text: str = made.to_str()
    return text


def _encoded(texts: NDArray[np.str_], data: TranslationData, tokenizer: str, where: str) -> Pairs:
    made = tokenizer_from(tokenizer, where)
    made.no_padding()
    made.enable_truncation(data.max_length)
    sources = _ids(made, texts[:, 0].tolist(), f"{where}: {data.source_language}", data.max_length)
    targets = _ids(made, texts[:, 1].tolist(), f"{where}: {data.target_language}", data.max_length)
    return Pairs(texts, (sources, targets), tokenizer)


def _ids(tokenizer: "Tokenizer", texts: Texts, where: str, longest: int) -> NDArray[np.int32]:
    """Token ids (n, L), at most `longest` with the end token, padded with PADDING. Raises InputError for a sentence
    with the text of the padding token."""
    rows = [encoded.ids for encoded in tokenizer.encode_batch(texts)]
    # A tokenizer of the user's may add no end token.
    rows = [row if row[-1:] == [END] else [*row[: longest - 1], END] for row in rows]
    for text, row in zip(texts, rows, strict=True):
        if PADDING in row:
            raise InputError(f"{where}: the padding token {tokenizer.id_to_token(PADDING)} is in {shown(text)}")
    ids = np.full((len(rows), max(map(len, rows))), PADDING, dtype=np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return ids


def pair_examples(card: Card, split: Split) -> PairExamples:
    """Convert `split` for the training loop; see `pairs_of`."""
    assert isinstance(split, Pairs)  # this module loads no others
    mark = hashlib.sha256(split.tokenizer.encode()).hexdigest()
    key = {"data": digest(split), "tokenizer": mark, "max_length": card.data.max_length}
    return pairs_of(split.read(np.arange(len(split))), split.targets, split.labels, split.tokenizer, key)


def pairs_of(
    sources: NDArray[Any], targets: NDArray[np.int32], texts: NDArray[Any], tokenizer: str, key: Mapping[str, Any]
) -> PairExamples:
    """Examples of sources (n, S) and targets (n, T).

    A batch's inputs (B, 2, L) are the ids of the sentence, and those of the translation after a start token without
    their last; its targets (N,) are the ids of all N tokens of the translations, row after row.
    """

    def batch(indices: NDArray[np.int64], k: int | None) -> Batch:
        given, right = trimmed(sources[indices]), trimmed(targets[indices])
        inputs = np.full((len(indices), 2, max(given.shape[1], right.shape[1])), PADDING, np.int32)
        inputs[:, 0, : given.shape[1]] = given
        before = np.pad(right[:, :-1], ((0, 0), (1, 0)), constant_values=START)
        inputs[:, 1, : right.shape[1]] = np.where(right != PADDING, before, PADDING)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(right[right != PADDING].astype(np.int64)))

    return PairExamples(texts, batch, key, tokenizer, sources, targets.shape[1])


def retargeted(examples: PairExamples, written: NDArray[np.int64], both: bool) -> PairExamples:
    """The examples with translations `written` (n, T) by a network as their targets; with `both`, each sentence is
    there twice, with its own translation and with the written one.

    `written` are padded and have no end token, or one in the last place; it is added where it is missing.
    """
    lengths = (written != PADDING).sum(axis=1)
    targets = np.pad(written, ((0, 0), (0, 1)), constant_values=PADDING).astype(np.int32)
    ends = targets[np.arange(len(targets)), np.maximum(lengths - 1, 0)] == END
    targets[np.arange(len(targets))[~ends], lengths[~ends]] = END
    targets = trimmed(targets)
    key = dict(examples.key) | {"written": hashlib.sha256(targets.tobytes()).hexdigest(), "both": both}
    sources, texts = examples.sources, np.asarray(examples.labels)
    if both:
        own = _targets_of(examples)
        wide = max(own.shape[1], targets.shape[1])
        targets = np.concatenate([np.pad(one, ((0, 0), (0, wide - one.shape[1]))) for one in (own, targets)])
        sources, texts = np.concatenate([sources] * 2), np.concatenate([texts] * 2)
    return pairs_of(sources, targets, texts, examples.tokenizer, key)


def _targets_of(examples: PairExamples) -> NDArray[np.int32]:
    """The targets (n, T) of examples."""
    rows = np.full((len(examples), examples.longest), PADDING, np.int32)
    for place in range(len(examples)):
        row = examples.batch(np.array([place]), None).targets.numpy()
        rows[place, : len(row)] = row
    return rows
