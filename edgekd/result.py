"""The result of a run: the verdict, and every figure with its provenance. It is stored in `result.json`, which has a
schema version."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, get_args

from edgekd import __version__
from edgekd.errors import InputError
from edgekd.figures import FIGURES, RARE, Figure, ModelFigures, Placement
from edgekd.files import read_json, write_json
from edgekd.judge import Line, Outcome, Verdict
from edgekd.scores import ACCURACY, CLASSIFICATION, ScoreKind
from edgekd.target import Target

__all__ = [
    "Result",
    "model_json",
    "read_bench",
    "read_models",
    "read_result",
    "read_verdict",
    "write_bench",
    "write_result",
]

# result.json history:
# 1 - card, target, verdict, reasons, budget, test_reads, chosen, models with provenance, intervals and notes
# 2 - models: top5, ece, torch_agreement, max_logit_diff, first_call_ms, energy_mj, batches, placement, recall, remarks
# 3 - models: scores (name, words, unit, better, value, provenance, low, high, why …; the first decides) and details
#     in place of accuracy, top5, macro_f1, ece and recall
#     budget: score, the name of the score that decides
#     test_examples in place of test_images; examples is always there; later also parity: outputs, what was compared
#     parity: examples, same and same_words in place of images and argmax_agreement
SCHEMA_VERSION = 3
READABLE = (1, 2, 3)

# bench.json history:
# 1 - target, split, images, models as in result.json 2
# 2 - target, split, examples (their number), models as in result.json 3
BENCH_VERSION = 2
BENCH_READABLE = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one run, from which the reports are made."""

    card: str
    target: str
    verdict: Verdict
    chosen: str
    """Name of the model that was shipped as `shipped_file`."""
    why_chosen: str
    models: tuple[ModelFigures, ...]
    """All models; the teacher is the first."""
    shape: dict[str, Any]
    candidates: int
    test_examples: int
    test_reads: int
    parity: dict[str, Any]
    """How closely the exported file agrees with torch; see `edgekd.export.onnx.Parity`."""
    examples: str = "images"
    """The word for the examples, in the plural: images or sentences."""
    notes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    int8: dict[str, Any] = field(default_factory=dict)
    """How the student was quantised: what was tried, the reason, and the layers that stay in float. Empty if nothing
    was tried."""

    @property
    def shipped(self) -> ModelFigures:
        """The model that was shipped."""
        return next(model for model in self.models if model.name == self.chosen)

    @property
    def shipped_file(self) -> str:
        """The name of the shipped file in the run folder: `model.onnx`, or `model.ort` in the ORT format."""
        return f"model{PurePath(self.shipped.file).suffix}"


def write_result(result: Result, path: Path) -> None:
    """Write `result.json`."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "edgekd": __version__,
        "card": result.card,
        "target": result.target,
        "verdict": result.verdict.outcome,
        "reasons": result.verdict.reasons,
        "budget": [
            {
                "key": line.key,
                "score": line.kind.name,
                "limit": line.limit,
                "value": line.figure.value,
                "low": line.figure.low,
                "high": line.figure.high,
                "outcome": line.outcome,
                "provenance": line.figure.provenance,
                "reason": line.reason,
                "text": line.text,
            }
            for line in result.verdict.lines
        ],
        "chosen": result.chosen,
        "why_chosen": result.why_chosen,
        "shape": result.shape,
        "candidates": result.candidates,
        "test_examples": result.test_examples,
        "examples": result.examples,
        "test_reads": result.test_reads,
        "parity": result.parity,
        "training": result.training,
        "notes": list(result.notes),
        "int8": result.int8,
        "models": [model_json(model) for model in result.models],
    }
    write_json(path, content)


def model_json(model: ModelFigures) -> dict[str, Any]:
    """Convert a model to its form in `result.json`: scores, then flat figures, followed by the provenance of each."""
    figures: dict[str, Figure] = {name: getattr(model, name) for name in FIGURES}
    figures = {name: figure for name, figure in figures.items() if name not in RARE or figure.value is not None}
    plain = {"name": model.name, "file": model.file, "sha256": model.sha256, "precision": model.precision}
    numbers = {"size_bytes": model.size_bytes, "params": model.params, "macs": model.macs}
    return {
        **plain,
        **numbers,
        "scores": [dataclasses.asdict(kind) | _known(model.scores.get(kind.name)) for kind in model.kinds],
        **{name: figure.value for name, figure in figures.items()},
        "provenance": {
            "size_bytes": "exact",
            **{name: figure.provenance for name, figure in figures.items()},
        },
        "intervals": {name: [f.low, f.high] for name, f in figures.items() if f.low is not None},
        "notes": {name: figure.why for name, figure in figures.items() if figure.why},
        "batches": {name: dataclasses.asdict(figure) for name, figure in model.batches.items()},
        "placement": dataclasses.asdict(model.placement) if model.placement else None,
        "details": model.details,
        "remarks": list(model.notes),
        "fingerprint": model.fingerprint,
    }


def _known(figure: Figure | None) -> dict[str, Any]:
    return {} if figure is None else dataclasses.asdict(figure)


def read_models(path: Path) -> tuple[dict[str, Any], list[ModelFigures]]:
    """Read the content of a `result.json` and its models; InputError for another schema."""
    return _read(path, READABLE)


def read_result(path: Path) -> Result:
    """Read the result from a `result.json` of any version; InputError for anything else."""
    content, models = read_models(path)
    try:
        return Result(
            card=content["card"],
            target=content["target"],
            verdict=read_verdict(content, path),
            chosen=content["chosen"],
            why_chosen=content["why_chosen"],
            models=tuple(models),
            shape=content["shape"],
            candidates=content["candidates"],
            test_examples=content["test_examples"],
            test_reads=content["test_reads"],
            parity=content["parity"],
            examples=content["examples"],
            notes=tuple(content["notes"]),
            training=content.get("training", {}),
            int8=content.get("int8", {}),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); was it edited?") from error


def read_verdict(content: dict[str, Any], path: Path) -> Verdict:
    """Take the verdict from the content of the `result.json` at `path`, which may be of any version.

    Raises InputError if the stored outcome does not follow from the lines. If an earlier edgekd left a budget «not
    judged» in a pass, the verdict becomes inconclusive.
    """
    try:
        kinds = {kind.name: kind for entry in content["models"] for kind in _kinds(entry)}
        verdict = Verdict(tuple(_read_line(entry, kinds) for entry in content["budget"]))
        for line in verdict.lines:
            _ = line.text  # raises an error if the key or the value is not valid
        told = content["verdict"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its budget cannot be read ({error!r}); was it edited?") from error
    left_open = any(line.outcome == "not judged" for line in verdict.lines)
    if told != verdict.outcome and not (left_open and told == "pass"):
        raise InputError(
            f"{path}: its verdict is {told!r:.40}, but its budget lines give {verdict.outcome!r}; was it edited? "
            "distill --fresh makes the run again"
        )
    return verdict


def _read_line(entry: dict[str, Any], kinds: Mapping[str, ScoreKind]) -> Line:
    figure = Figure(entry["value"], entry["provenance"], entry.get("low"), entry.get("high"))
    if entry["outcome"] not in get_args(Outcome):
        raise ValueError(f"outcome {entry['outcome']!r}")
    kind = kinds[entry["score"]] if "score" in entry else ACCURACY
    return Line(entry["key"], entry["limit"], figure, entry["outcome"], entry["reason"], kind=kind)


def write_bench(path: Path, target: Target, models: Sequence[ModelFigures], **about: Any) -> None:
    """Write `bench.json`: the figures that `edgekd bench` measured for a run's models on one target. `about` describes
    the data."""
    plain = {"target": target.name, "title": target.title, "provider": target.provider.name}
    content = {"schema_version": BENCH_VERSION, "edgekd": __version__, **plain, **about}
    write_json(path, content | {"models": [model_json(model) for model in models]})


def read_bench(path: Path) -> tuple[dict[str, Any], list[ModelFigures]]:
    """Read the content of a `bench.json` and its models; InputError for another schema."""
    return _read(path, BENCH_READABLE)


def _read(path: Path, readable: Sequence[int]) -> tuple[dict[str, Any], list[ModelFigures]]:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") not in readable:
        version = content.get("schema_version") if isinstance(content, dict) else None
        known = f"{', '.join(map(str, readable[:-1]))} and {readable[-1]}"
        raise InputError(f"{path}: schema_version is {version!r}; this edgekd reads {known}")
    try:
        _rename(content)
        models = [_read_model(entry) for entry in content["models"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its models cannot be read ({error!r}); was it edited?") from error
    if not models:
        raise InputError(f"{path}: holds no model; was it edited?")
    return content, models


_RENAMED = {"test_images": "test_examples", "images": "examples", "argmax_agreement": "same"}
"""Keys of earlier versions, and their present names."""


def _rename(content: dict[str, Any]) -> None:
    """Give the content of an earlier version the present keys."""
    if "split" in content or "test_images" in content:  # only there `images` is a number
        for table in (content, content.get("parity", {})):
            for old, new in _RENAMED.items():
                if old in table:
                    table[new] = table.pop(old)
    if "test_examples" in content:
        content.setdefault("examples", "images")
    if "same" in content.get("parity", {}):
        content["parity"].setdefault("same_words", "same class")


def _read_model(entry: dict[str, Any]) -> ModelFigures:
    figures: dict[str, Any] = {name: _flat_figure(entry, name) for name in FIGURES if name in entry}
    plain = ("name", "file", "sha256", "size_bytes", "precision", "params", "macs", "fingerprint")
    placement = entry.get("placement")
    if placement:
        placement = Placement(**placement | {"costliest": tuple(placement["costliest"])})
    return ModelFigures(
        **{key: entry[key] for key in plain},
        **figures,
        scores=_scores(entry),
        kinds=_kinds(entry),
        details=entry.get("details", {"recall": entry["recall"]} if entry.get("recall") else {}),
        batches={name: Figure(**figure) for name, figure in entry.get("batches", {}).items()},
        placement=placement or None,
        notes=tuple(entry.get("remarks", ())),
    )


def _flat_figure(entry: dict[str, Any], name: str) -> Figure:
    low, high = entry["intervals"].get(name, (None, None))
    return Figure(entry[name], entry["provenance"][name], low, high, entry["notes"].get(name, ""))


def _scores(entry: dict[str, Any]) -> dict[str, Figure]:
    if "scores" not in entry:
        return {kind.name: _flat_figure(entry, kind.name) for kind in CLASSIFICATION if kind.name in entry}
    keys = [field.name for field in dataclasses.fields(Figure)]
    found = {score["name"]: score for score in entry["scores"] if "provenance" in score}
    return {name: Figure(**{key: score[key] for key in keys}) for name, score in found.items()}


def _kinds(entry: dict[str, Any]) -> tuple[ScoreKind, ...]:
    """What the scores of a model's entry are; earlier versions know those of classification only."""
    if "scores" not in entry:
        return CLASSIFICATION
    keys = [field.name for field in dataclasses.fields(ScoreKind)]
    return tuple(ScoreKind(**{key: score[key] for key in keys if key in score}) for score in entry["scores"])
