"""Read everything that the reports show about a run folder. Missing data is reported, never guessed."""

import contextlib
import json
import re
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edgekd.artefacts import listed, refuse_changed
from edgekd.budget import read_budget
from edgekd.card import Card, caller_rule
from edgekd.errors import EdgekdError, InputError, one_line
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, real
from edgekd.judge import verdict_words
from edgekd.report.run.lost import lost_epochs, refuse_lost_model
from edgekd.report.run.story import Column, Story, Untrained
from edgekd.result import read_bench, read_verdict
from edgekd.run import Run
from edgekd.runs import finished
from edgekd.spec import bundled_names
from edgekd.tasks.known import TASKS, load_card
from edgekd.tasks.task import Task
from edgekd.units import visible

__all__ = ["blamed", "gather"]

_DAMAGE = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(EOFError, StopIteration, RecursionError, zipfile.BadZipFile),
)
"""Exceptions caused by files whose content edgekd did not write."""


def gather(folder: Path) -> Story:
    """Read the story of a finished run folder. Raises InputError if the folder is not a finished run or is damaged."""
    try:
        with blamed(folder):
            refuse_lost_model(folder)
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


def _story(run: Run, content: dict[str, Any], models: Sequence[ModelFigures]) -> Story:
    path = run.folder / "run.json"
    snapshot: dict[str, Any] = read_json(path) if path.exists() else {}
    missing = [] if snapshot else ["run.json: the settings of the run and of its data"]
    task = _task(snapshot)
    own = _column(
        run,
        models,
        run.records,
        task,
        target=content["target"],
        label=content["target"],
        title="",
        provider=snapshot.get("target", {}).get("provider", {}).get("name", ""),
        command="",
        split="test",
        count=content["test_examples"],
        examples=content["examples"],
    )
    columns = (own, *(_benched(run, path, own, task) for path in sorted(run.folder.glob("bench/*/bench.json"))))
    candidates = _candidates(run.candidates)
    missing += [] if candidates else ["candidates.json: the candidates that were not trained"]
    missing += [] if any(own.samples_ms.values()) else [f"records: the latency of single calls on {own.target}"]
    if task.charts and not own.details:
        missing.append("records, data: the answers on test data, and what their charts show")
    missing += lost_epochs(run.folder)
    shipped = next(model for model in models if model.name == content["chosen"])
    judged = read_verdict(content, run.result)
    return Story(
        name=real(run.folder).name,
        card=content["card"],
        target=content["target"],
        outcome=judged.outcome,
        verdict=verdict_words(judged, shipped),
        lines=judged.lines,
        chosen=content["chosen"],
        why_chosen=content["why_chosen"],
        shape=_shape(content["shape"]),
        input=caller_rule(snapshot.get("card", {})),
        candidate_count=content["candidates"],
        candidates=candidates,
        data=snapshot.get("card", {}).get("data", {}),
        charts=task.charts,
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


def _task(snapshot: dict[str, Any]) -> Task:
    """The task of the run's card; the default one if the run does not say it, or names one from a later edgekd."""
    return TASKS.get(snapshot.get("card", {}).get("task", ""), TASKS[Card.task])


def _shape(shape: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in shape.items()) or "the only shape"


def _candidates(path: Path) -> tuple[Untrained, ...]:
    """The candidates of the file, the predicted ones included."""
    if not path.exists():
        return ()
    return tuple(
        Untrained(
            f"{_shape(entry['shape'])}{', predicted' if entry.get('predicted') else ''}"
            + (f", timed on {visible(str(entry['timed_on']))}" if entry.get("timed_on") else "")
            + (f", times from {visible(str(entry['brought']))}" if entry.get("brought") else ""),
            entry["params"],
            entry["macs"],
            {
                precision: {key: Figure(**figure) for key, figure in figures.items()}
                for precision, figures in entry["precisions"].items()
            },
        )
        for entry in read_json(path)["candidates"]
    )


def _benched(run: Run, path: Path, own: Column, task: Task) -> Column:
    refuse_changed(path.parent, listed(path.parent) or {}, "measure it again with `edgekd bench`")
    content, models = read_bench(path)
    again = ["edgekd", "bench", _place(run), "--target", _name("targets", content["target"])]
    command = content.get("command") or again
    return _column(
        run,
        models,
        path.parent,
        task,
        target=content["target"],
        label=content["target"] + (", measured again" if content["target"] == own.target else ""),
        title=content["title"],
        provider=content["provider"],
        command=_hidden(command if isinstance(command, str) else shlex.join(command), run),
        split={"val": "validation"}.get(content.get("split") or "", content.get("split") or ""),
        count=content.get("examples") or 0,
        examples=own.examples,
    )


def _column(
    run: Run, models: Sequence[ModelFigures], records: Path, task: Task, *, target: str, split: str, **about: Any
) -> Column:
    samples: dict[str, tuple[tuple[float, ...], ...]] = {}
    details: dict[str, dict[str, Any]] = {}
    pictures: dict[str, dict[str, Any]] = {}
    for model in models:
        stem = f"{model.name.replace(' ', '-')}@{target}"
        samples[model.name] = _samples(records / f"{stem}.latency.json", model)
        ending = f"{split}.{model.sha256[:12]}.npy"
        answers = records / f"{model.name.replace(' ', '-')}-emulated@{target}.{ending}"
        if not answers.exists():  # on the emulated core, which takes precedence in the scores, too
            answers = records / f"{stem}.{ending}"
        known = model.details | _charted(task, answers, run.data / f"{split}.labels.npy", run.exported / model.file)
        if known:
            details[model.name] = known
        if shown := _pictured(task, answers, run.data / f"{split}.npy", run.data / f"{split}.labels.npy"):
            pictures[model.name] = shown
    return Column(
        target=target,
        split=split,
        models=tuple(models),
        samples_ms=samples,
        details=details,
        pictures=pictures,
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


def _charted(task: Task, answers: Path, targets: Path, model: Path) -> dict[str, Any]:
    """What the charts of the task show of a model's answers; empty if the answers are not kept."""
    if not task.charts or not answers.exists() or not targets.exists():
        return {}
    if task.decode and not model.exists():  # the answers can only be read with the model's metadata
        return {}
    outputs, known = task.read_from(np.load(answers), model), np.load(targets)
    return task.charted(outputs, known) if len(outputs) == len(known) else {}


def _pictured(task: Task, answers: Path, inputs: Path, targets: Path) -> dict[str, Any]:
    """What the task shows of single examples; empty if the answers or the data are not kept."""
    if task.pictured is None or not (answers.exists() and inputs.exists() and targets.exists()):
        return {}
    outputs, known, given = task.read(np.load(answers)), np.load(targets), np.load(inputs, mmap_mode="r")
    return task.pictured(outputs, known, given) if len(outputs) == len(known) == len(given) else {}


def _commands(run: Run, content: dict[str, Any], snapshot: dict[str, Any], benches: list[str]) -> tuple[str, ...]:
    card, target = content["card"], content["target"]
    words = ["edgekd", "distill", _name("models", card), "--target", _name("targets", target)]
    source = snapshot.get("card", {})
    if snapshot.get("files", {}).get("teacher_sha256") and not source.get("teacher", {}).get("weights"):
        words += ["--teacher", "FILE"]
    known = {*_task(snapshot).embedded, ""}
    if source.get("data", {}).get("source", "") not in known and not source["data"].get("path"):
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
        if card in bundled_names("models"):
            own = load_card(card).budget(target)
            if own.limits() == read_budget(budget, "budget", [own.kind]).limits():
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
