"""Read everything that the reports show about a run folder. Missing data is reported, never guessed."""

import contextlib
import json
import re
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.artefacts import listed, refuse_changed
from edgekd.bench.statistics import Interval, wilson
from edgekd.card import Budget, caller_rule
from edgekd.errors import EdgekdError, InputError, one_line
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, real
from edgekd.judge import Line, verdict_words
from edgekd.result import read_bench, read_verdict
from edgekd.run import Run
from edgekd.runs import finished
from edgekd.spec import bundled_names
from edgekd.tasks.classification import confusion, recall
from edgekd.tasks.known import load_card

__all__ = ["MOST_CLASSES", "Column", "Story", "Untrained", "blamed", "gather", "interval_of"]

MOST_CLASSES = 100
"""Largest number of classes of a confusion matrix; a larger matrix is unreadable."""

Matrix = tuple[tuple[int, ...], ...]

_DAMAGE = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(EOFError, StopIteration, RecursionError, zipfile.BadZipFile),
)
"""Exceptions caused by files whose content edgekd did not write."""


@dataclass(frozen=True)
class Untrained:
    """A candidate shape, and the figures measured with it before training."""

    name: str
    params: int
    macs: int
    precisions: dict[str, dict[str, Figure]]
    """Maps each precision to its figures by budget key (latency_p50_ms, size_kb, peak_memory_mb)."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The measurements of the run's models on one target. The keys of the dictionaries are names of models."""

    target: str
    label: str
    """The target as a heading, which is unique among the columns of a run."""
    title: str
    provider: str
    command: str
    """Where the measurement comes from; empty for the run's own target."""
    models: tuple[ModelFigures, ...]
    split: str
    """The data on which accuracy was measured: `test` or `validation`."""
    images: int
    examples: str
    """The word for the examples, in the plural: images or sentences."""
    samples_ms: dict[str, tuple[tuple[float, ...], ...]]
    """Latency of every call, as one tuple per process."""
    confusion: dict[str, Matrix]
    """Number of images by true class (rows) and predicted class (columns), for at most MOST_CLASSES classes."""
    recall: dict[str, tuple[float | None, ...]]
    """Recall of each class; None for a class that does not occur in the data."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run as the reports show it."""

    name: str
    """Name of the run folder."""
    card: str
    target: str
    outcome: str
    """pass, fail or inconclusive."""
    verdict: str
    """The outcome in words, with remarks on what the verdict does not cover."""
    lines: tuple[Line, ...]
    """The judged budget."""
    chosen: str
    why_chosen: str
    shape: str
    input: str
    """How the caller must prepare an image; empty if this is unknown, or for sentences."""
    candidate_count: int
    candidates: tuple[Untrained, ...]
    classes: tuple[str, ...]
    columns: tuple[Column, ...]
    """The columns: the run's own target first, then the targets of `edgekd bench`."""
    test_reads: int
    parity: dict[str, Any]
    training: dict[str, Any]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    """The commands that repeat the run, in their order."""
    versions: dict[str, str]
    fingerprint: dict[str, Any]
    """The fingerprint of the shipped file's measurement."""
    missing: tuple[str, ...]
    """The files that the folder no longer contains, and what is not shown because of this."""

    @property
    def own(self) -> Column:
        """The column of the target for which the run was made."""
        return self.columns[0]

    @property
    def teacher(self) -> ModelFigures:
        """The teacher, on the run's own target."""
        return self.own.models[0]

    @property
    def shipped(self) -> ModelFigures:
        """The model that is `model.onnx`, on the run's own target."""
        return next(model for model in self.own.models if model.name == self.chosen)

    @property
    def sentence(self) -> str:
        """A summary: `The shipped file is 11 × smaller and 4.5 × faster than the teacher and loses 6.64 points of
        accuracy.`"""
        parts = [_times(self.teacher.size_bytes / self.shipped.size_bytes, "smaller", "larger")]
        ours, theirs = self.shipped.latency_p50_ms, self.teacher.latency_p50_ms
        if ours.value and theirs.value:
            guess = "an estimated " if "estimated" in (ours.provenance, theirs.provenance) else ""
            parts.append(guess + _times(theirs.value / ours.value, "faster", "slower"))
        text = f"The shipped file is {' and '.join(parts)} than the teacher"
        if self.shipped.accuracy.value is not None and self.teacher.accuracy.value is not None:
            points = round(100 * (self.teacher.accuracy.value - self.shipped.accuracy.value), 2)
            verb = "loses" if points > 0 else "gains"
            text += f" and {verb} {abs(points):.2f} points of accuracy" if points else ", at the same accuracy"
        return text + ("." if len(parts) == 2 else "; its latency is not known.")


def gather(folder: Path) -> Story:
    """Read the story of a finished run folder. Raises InputError if the folder is not a finished run or is damaged."""
    try:
        with blamed(folder):
            return _story(*finished(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {one_line(error)}") from error


@contextlib.contextmanager
def blamed(*folders: Path) -> Iterator[None]:
    """Convert errors caused by the content of run folders, while reading or formatting it, into one InputError."""
    named = ", ".join(map(str, folders))
    try:
        yield
    except _DAMAGE as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        begin = "holds" if len(folders) == 1 else "one of them holds"
        raise InputError(f"{named}: {begin} what edgekd did not write there: {what}") from error


def interval_of(figure: Figure, images: int) -> Interval | None:
    """The interval of a share of `images`: the stored interval, or else the 95 % Wilson interval; None if the share is
    unknown."""
    if figure.value is None or not images:
        return None
    if figure.low is not None and figure.high is not None:
        return Interval(figure.value, figure.low, figure.high)
    return wilson(round(figure.value * images), images)


def _story(run: Run, content: dict[str, Any], models: Sequence[ModelFigures]) -> Story:
    path = run.folder / "run.json"
    snapshot: dict[str, Any] = read_json(path) if path.exists() else {}
    missing = [] if snapshot else ["run.json: the settings of the run and the names of its classes"]
    own = _column(
        run,
        models,
        run.records,
        target=content["target"],
        label=content["target"],
        title="",
        provider=snapshot.get("target", {}).get("provider", {}).get("name", ""),
        command="",
        split="test",
        images=content["test_images"],
        examples=content.get("examples", "images"),
    )
    columns = (own, *(_benched(run, path, own) for path in sorted(run.folder.glob("bench/*/bench.json"))))
    candidates = _candidates(run.candidates)
    missing += [] if candidates else ["candidates.json: the candidates that were not trained"]
    missing += [] if any(own.samples_ms.values()) else [f"records: the latency of single calls on {own.target}"]
    missing += [] if own.recall else ["records, data: the answers on test data, and what each class gets right"]
    shipped = next(model for model in models if model.name == content["chosen"])
    judged = read_verdict(content, run.result)
    return Story(
        name=real(run.folder).name,
        card=content["card"],
        target=content["target"],
        outcome=judged.outcome,
        verdict=verdict_words(judged, shipped.latency_p50_ms),
        lines=judged.lines,
        chosen=content["chosen"],
        why_chosen=content["why_chosen"],
        shape=_shape(content["shape"]),
        input=caller_rule(snapshot.get("card", {}).get("data", {})),
        candidate_count=content["candidates"],
        candidates=candidates,
        classes=_classes(snapshot, own),
        columns=columns,
        test_reads=content["test_reads"],
        parity=content.get("parity", {}),
        training=content.get("training", {}),
        notes=tuple(content["notes"]),
        commands=_commands(run, content, snapshot, [column.command for column in columns[1:]]),
        versions=_versions(content, shipped.fingerprint),
        fingerprint=shipped.fingerprint,
        missing=tuple(missing),
    )


def _times(ratio: float, above: str, below: str) -> str:
    word, factor = (above, ratio) if ratio >= 1 else (below, 1 / ratio)
    return f"{factor:.1f} × {word}" if factor < 9.95 else f"{factor:.0f} × {word}"


def _shape(shape: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in shape.items()) or "the only shape"


def _candidates(path: Path) -> tuple[Untrained, ...]:
    """Read the candidates. `search.candidates` is not used for this, because it needs torch."""
    if not path.exists():
        return ()
    return tuple(
        Untrained(
            _shape(entry["shape"]),
            entry["params"],
            entry["macs"],
            {
                precision: {key: Figure(**figure) for key, figure in figures.items()}
                for precision, figures in entry["precisions"].items()
            },
        )
        for entry in read_json(path)["candidates"]
    )


def _benched(run: Run, path: Path, own: Column) -> Column:
    refuse_changed(path.parent, listed(path.parent) or {}, "measure it again with `edgekd bench`")
    content, models = read_bench(path)
    again = ["edgekd", "bench", _place(run), "--target", _name("targets", content["target"])]
    command = content.get("command") or again
    return _column(
        run,
        models,
        path.parent,
        target=content["target"],
        label=content["target"] + (", measured again" if content["target"] == own.target else ""),
        title=content["title"],
        provider=content["provider"],
        command=_hidden(command if isinstance(command, str) else shlex.join(command), run),
        split={"val": "validation"}.get(content.get("split") or "", content.get("split") or ""),
        images=content.get("images") or 0,
        examples=own.examples,
    )


def _column(
    run: Run, models: Sequence[ModelFigures], records: Path, *, target: str, split: str, **about: Any
) -> Column:
    samples: dict[str, tuple[tuple[float, ...], ...]] = {}
    matrices: dict[str, Matrix] = {}
    recalls: dict[str, tuple[float | None, ...]] = {}
    for model in models:
        stem = f"{model.name.replace(' ', '-')}@{target}"
        samples[model.name] = _samples(records / f"{stem}.latency.json", model)
        logits = records / f"{stem}.{split}.{model.sha256[:12]}.npy"
        matrix = _confusion(logits, run.data / f"{split}.labels.npy")
        shares = model.recall
        if matrix is not None:
            shares = tuple(recall(matrix))
            matrices[model.name] = tuple(tuple(map(int, row)) for row in matrix)
        if shares:
            recalls[model.name] = shares
    return Column(
        target=target,
        split=split,
        models=tuple(models),
        samples_ms=samples,
        confusion=matrices,
        recall=recalls,
        **about,
    )


def _samples(path: Path, model: ModelFigures) -> tuple[tuple[float, ...], ...]:
    """Milliseconds of every call, by process; empty if the records are missing or belong to another file."""
    if not path.exists():
        return ()
    content = read_json(path)
    if content.get("model_sha256", model.sha256) != model.sha256:
        return ()
    return tuple(tuple(1e3 * s for s in record["latency_s"]) for record in content["records"] if record["latency_s"])


def _confusion(logits: Path, labels: Path) -> NDArray[np.int64] | None:
    """Number of images by true and predicted class (C, C); None if there are no answers or too many classes."""
    if not logits.exists() or not labels.exists():
        return None
    scores, true = np.load(logits), np.load(labels)
    scores = scores.reshape(len(scores), -1)
    if len(scores) != len(true) or scores.shape[1] > MOST_CLASSES:
        return None
    return confusion(scores, true.astype(np.int64))


def _classes(snapshot: dict[str, Any], column: Column) -> tuple[str, ...]:
    count = max((len(shares) for shares in column.recall.values()), default=0)
    named = snapshot.get("card", {}).get("data", {}).get("classes", ())
    return tuple(named) if len(named) >= count else tuple(f"class {place}" for place in range(count))


def _commands(run: Run, content: dict[str, Any], snapshot: dict[str, Any], benches: list[str]) -> tuple[str, ...]:
    card, target = content["card"], content["target"]
    words = ["edgekd", "distill", _name("models", card), "--target", _name("targets", target)]
    source = snapshot.get("card", {})
    if snapshot.get("files", {}).get("teacher_sha256") and not source.get("teacher", {}).get("weights"):
        words += ["--teacher", "FILE"]
    if source.get("data", {}).get("source", "digits") != "digits" and not source["data"].get("path"):
        words += ["--data", "DIR"]
    words += _overridden(card, target, snapshot.get("budget", {}))
    if _place(run) != f"runs/{card}@{target}":
        words += ["--out", _place(run)]
    check = ["edgekd", "check", _place(run), "--target", _name("targets", target)]
    return (shlex.join(words), *dict.fromkeys(benches), shlex.join(check))


def _place(run: Run) -> str:
    """The default location of such a run folder. The real location on this machine is private and not shown."""
    return f"runs/{real(run.folder).name}"


def _hidden(command: str, run: Run) -> str:
    """The command without absolute paths: the run folder is shown by its default location, other files by their
    names."""
    try:
        words = shlex.split(command)
    except ValueError:  # an unclosed quote: a shell would refuse the command, but it is shown anyway
        return " ".join(_relative(word, run) for word in command.split())
    hidden = [_relative(word, run) for word in words]
    return command if hidden == words else shlex.join(hidden)


def _relative(word: str, run: Run) -> str:
    option, path = re.fullmatch(r"(--?[\w-]+=|-\w(?=/)|)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    if not path.startswith("/"):
        return word
    parts, name = PurePosixPath(path).parts, real(run.folder).name
    if name not in parts:
        return f"{option}{parts[-1]}"
    inside = parts[len(parts) - parts[::-1].index(name) :]
    return option + "/".join([_place(run), *inside])


def _name(kind: str, name: str) -> str:
    """The value for the command line: the name if it is bundled, the file if it is the user's own."""
    return name if name in bundled_names(kind) else f"{name}.toml"


def _overridden(card: str, target: str, budget: dict[str, Any]) -> list[str]:
    """The budget as options; empty if the card of that name already sets the same budget."""
    try:
        if card in bundled_names("models") and load_card(card).budget(target) == Budget(**budget):
            return []
    except (EdgekdError, TypeError):
        pass  # a card or budget from another version: then all limits are given as options
    return [word for key, value in budget.items() if value is not None for word in ("--budget", f"{key}={value:g}")]


def _versions(content: dict[str, Any], fingerprint: dict[str, Any]) -> dict[str, str]:
    keys = ("onnxruntime", "numpy", "python", "system", "architecture", "cpu")
    return {"edgekd": str(content.get("edgekd", "unknown"))} | {
        key: value if isinstance(value, str) else json.dumps(value)
        for key in keys
        if (value := fingerprint.get(key)) is not None
    }
