"""Translation: a model writes the sentence in another language that says the same as the given one."""

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgekd.errors import InputError, ModelError, one_line
from edgekd.external import GENERATION
from edgekd.imports import require
from edgekd.ranges import Seed
from edgekd.scores import ScoreKind
from edgekd.tasks.task import Outputs, Targets, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["END", "PADDING", "START", "TRANSLATION", "TranslationData", "ids_of", "texts_of", "tokenizer_from"]

PADDING, UNKNOWN, START, END = 0, 1, 2, 3
"""Ids of the special tokens `<pad>`, `<unk>`, `<s>` and `</s>`."""

SAMPLES = 12
"""Number of translations that result files keep."""

Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TranslationData:
    """Where the sentences and their translations come from, and how translations are generated."""

    source: Literal["pairs"] = "pairs"
    """pairs: for each part two text files, such as train.en and train.de, of equally many lines, UTF-8 and plain or
    compressed (train.en.gz); each line is a sentence."""
    path: str = ""
    """Folder of the data, relative to the card; `--data` overrides it."""
    source_language: Language
    """Ending of the files that hold the sentences to translate: `en`."""
    target_language: Language
    """Ending of the files that hold their translations: `de`."""
    validation: PartName = "val"
    """Name of the files of the validation part, without the language. If they do not exist, a share of the training
    part is used."""
    test: PartName = "test"
    """Name of the files of the test part, without the language."""
    max_length: Annotated[int, Field(ge=2, le=4096)] = 64
    """The largest number of tokens of a sentence with its end token; further tokens are cut off. A translation has at
    most as many."""
    vocabulary: Annotated[int, Field(ge=8, le=1_000_000)]
    """Number of tokens of both languages together, the four special tokens included."""
    tokenizer: str = ""
    """A `tokenizer.json` of the tokenizers library, relative to the card, or its content; it must number `<pad>`,
    `<unk>`, `<s>` and `</s>` 0 to 3. Without one, the tokens are made from the training sentences by byte pair
    encoding (Sennrich et al. 2016, arXiv 1508.07909)."""
    timed_length: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens of the sentences whose translation is timed, and of the translations then generated; the default
    is the median of the validation sentences."""
    beam: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of hypotheses of the beam search; 1 is greedy search."""
    length_penalty: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Hypotheses are compared by their log-probability / their number of tokens to the power of this."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the training part that is used for validation if there are no files for it."""
    validation_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "TranslationData":
        if self.timed_length is not None and self.timed_length > self.max_length:
            raise ValueError(f"timed_length: must be at most max_length, {self.max_length}, got {self.timed_length}")
        if self.source_language == self.target_language:
            raise ValueError(f"target_language: must differ from source_language, got {self.target_language!r} twice")
        return self


def _length(data: TranslationData) -> int:
    return data.timed_length or min(12, data.max_length)


def _describe(data: TranslationData) -> dict[str, str]:
    """Return the metadata of the encoder: all that is needed to generate, which the worker reads, and the tokenizer."""
    settings: dict[str, float] = {
        "start": START,
        "end": END,
        "padding": PADDING,
        "max_length": data.max_length,
        "beam": data.beam,
    }
    settings |= {"length_penalty": data.length_penalty}
    return {
        "input": f"int32 (batch, length), token ids of the tokenizer, at most {data.max_length}, padded with {PADDING}",
        "languages": f"{data.source_language} to {data.target_language}",
        "padding": str(PADDING),
        "sequence_length": str(_length(data)),
        GENERATION: json.dumps(settings),
        "tokenizer": data.tokenizer,
    }


def tokenizer_from(text: str, where: str) -> "Tokenizer":
    """A tokenizer from the JSON text of the tokenizers library. Raises InputError, which begins with `where`, if it is
    none, or if it numbers the special tokens differently."""
    tokenizers = require("tokenizers", "translation", "translation")
    try:
        made: Tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{where}: the tokenizers library cannot read it: {one_line(error, 120)}") from error
    special = {"<pad>": PADDING, "<unk>": UNKNOWN, "<s>": START, "</s>": END}
    for token, number in special.items():
        if made.token_to_id(token) != number:
            raise InputError(f"{where}: the id of {token} is {made.token_to_id(token)}; it should be {number}")
    return made


def ids_of(raw: NDArray[Any]) -> NDArray[np.int64]:
    """Return token ids (n, L) of what a worker wrote. Raises ModelError for other numbers."""
    ids = np.asarray(raw.reshape(len(raw), -1))
    whole: NDArray[np.int64] = ids.astype(np.int64)
    if not np.array_equal(whole, ids) or (whole.size and whole.min() < 0):
        raise ModelError("the outputs are no token ids; a model that translates gives whole numbers from 0")
    return whole


def texts_of(ids: NDArray[np.int64], tokenizer: "Tokenizer") -> NDArray[np.str_]:
    """The texts (n,) of token ids (n, L), up to the first end token of each row."""
    rows = []
    for row in ids.tolist():
        row = row[: row.index(END)] if END in row else row
        rows.append([token for token in row if token not in (PADDING, START)])
    return np.array([text.strip() for text in tokenizer.decode_batch(rows)] or [""], dtype=np.str_)[: len(ids)]


def _decode(ids: NDArray[np.int64], file: Path) -> NDArray[np.str_]:
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"{file}: its tokenizer cannot be read: {one_line(error, 100)}") from error
    return texts_of(ids, _tokenizer_in(file, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=8)
def _tokenizer_in(file: Path, changed: int, size: int) -> "Tokenizer":
    """The tokenizer in a model's metadata. Raises InputError if there is none."""
    import onnx

    try:
        entries = onnx.load(file, load_external_data=False).metadata_props
    except Exception as error:  # protobuf's errors have no common base
        raise InputError(f"{file}: is no ONNX model: {one_line(error, 100)}") from error
    text = next((entry.value for entry in entries if entry.key == "tokenizer"), "")
    if not text:
        raise InputError(f"{file}: its metadata hold no tokenizer, so its translations cannot be read")
    return tokenizer_from(text, f"{file}: metadata: tokenizer")


def _targets_problem(targets: Targets) -> str:
    if targets.ndim == 2 and targets.shape[1] == 2 and targets.dtype.kind == "U" and len(targets):
        return ""
    kind = f"{targets.dtype} {list(targets.shape)}"
    return f"labels should be a sentence and its translation for each input, as text (n, 2), got {kind}"


def _fit_problem(outputs: Outputs, targets: Targets, model: str) -> str:
    return "" if outputs.dtype.kind == "U" else f"{model} gives no text"


def _scores(outputs: Outputs, targets: Targets) -> dict[str, float]:
    """BLEU and chrF as sacreBLEU computes them (Post 2018, arXiv 1804.08771), from 0 to 100."""
    metrics = require("sacrebleu.metrics", "translation", "BLEU")
    texts, references = outputs.tolist(), targets[:, 1].tolist()
    found = {"bleu": metrics.BLEU(), "chrf": metrics.CHRF()}
    return {name: float(metric.corpus_score(texts, [references]).score) for name, metric in found.items()}


def _each(outputs: Outputs, targets: Targets) -> NDArray[np.float64]:
    """For each of n translations, n BLEU − (n − 1) BLEU of all others.

    BLEU is no mean over sentences. These pseudo-values (Tukey 1958) have nearly BLEU as their mean, and resampling them
    is nearly the paired bootstrap of Koehn (2004), which computes BLEU anew for each sample.
    """
    metrics = require("sacrebleu.metrics", "translation", "BLEU")
    bleu, one = metrics.BLEU(), metrics.BLEU(effective_order=True)
    pairs = zip(outputs.tolist(), targets[:, 1].tolist(), strict=True)
    rows = [one.sentence_score(text, [reference]) for text, reference in pairs]
    counts = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows])

    def score(sums: NDArray[np.int64]) -> float:
        values = sums.tolist()
        return float(bleu.compute_bleu(values[:4], values[4:8], values[8], values[9], smooth_method="exp").score)

    total, n = counts.sum(axis=0), len(rows)
    whole = score(total)
    return np.array([n * whole - (n - 1) * score(total - row) for row in counts])


def _same(outputs: Outputs, other: Outputs) -> float:
    """The share of equal translations, or for logits (n, C) of tokens, of equal most likely tokens."""
    if outputs.dtype.kind == "U":
        return float((outputs == other).mean())
    return float((outputs.argmax(axis=1) == other.argmax(axis=1)).mean())


def _answers(outputs: Outputs) -> NDArray[np.int64]:
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in outputs.tolist()]
    return np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], np.int64)


def _details(outputs: Outputs, targets: Targets) -> dict[str, Any]:
    """How sacreBLEU computed the scores, and some translations with source and reference."""
    bleu = require("sacrebleu.metrics", "translation", "BLEU").BLEU()
    bleu.corpus_score([""], [[""]])  # the signature is known after a call
    chosen = np.unique(np.linspace(0, len(outputs) - 1, min(SAMPLES, len(outputs))).astype(np.int64))
    rows = [[*map(str, targets[place]), str(outputs[place])] for place in chosen.tolist()]
    return {"signature": str(bleu.get_signature()), "translations": rows}


TRANSLATION = Task(
    name="translation",
    unit="sentence",
    units="sentences",
    data=TranslationData,
    augment=frozenset(),
    problem=lambda data, augment: "",
    input="ids",
    free={0: "batch", 1: "length"},
    generates=True,
    calibration="dynamic",
    outputs=lambda data: data.vocabulary,
    targets=lambda data: f"{data.vocabulary} tokens",
    example=lambda data, count: np.full((count, _length(data)), END + 1, dtype=np.int32),
    takes=lambda data: f"sentences of {_length(data)} tokens",
    sizes=lambda data: (data.vocabulary,),
    normalization=lambda data: None,
    describe=_describe,
    calls=lambda ids: [row[None, : max(1, int((row != PADDING).sum()))] for row in ids],  # padding is at the end
    read=ids_of,
    decode=_decode,
    targets_problem=_targets_problem,
    fit_problem=_fit_problem,
    scores=(
        ScoreKind(name="bleu", words="BLEU", unit="", tolerance=1.0),
        ScoreKind(name="chrf", words="chrF", unit=""),
    ),
    score=_scores,
    each=_each,
    paired="bootstrap",
    answers=_answers,
    same=_same,
    same_words="same translation",
    details=_details,
    charts=("translations",),
)
