"""The ORT format of ONNX Runtime: files that its minimal builds load, with the graph already optimised.

A session that loads such a file optimises nothing any more, so the optimisations are in the file. The layout of blocked
channels (NCHWc) is left out: the size of its blocks is that of the CPU that writes the file, and a CPU with other
vectors would read it wrongly. Float convolutions on x86 therefore run without it. int8 kernels do not use it. This
module needs no torch.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from edgekd.bench.kept import Subject
from edgekd.bench.worker import LEVELS
from edgekd.card import Card
from edgekd.errors import ConfigError, ModelError, one_line
from edgekd.files import atomic, file_sha256, read_json, write_json
from edgekd.target import Target
from edgekd.tasks.known import task_of

__all__ = ["as_deployed", "deployed_file", "refuse_two_files", "write_ort"]

# NAME.ort.json history:
# 1 - the SHA-256 of the ONNX file and of the file in the ORT format that was made of it
SCHEMA_VERSION = 1

OF_THE_CPU = ["NchwcTransformer"]
"""Optimisations whose result only CPUs like the one that makes it can run."""


def refuse_two_files(card: Card, target: Target) -> None:
    """Raise ConfigError if the card's model has two files, and the target wants the ORT format."""
    if target.format == "ort" and task_of(card.data).generates:
        raise ConfigError(
            f'{card.file}: task {card.task}: its model is two files, and target {target.name} has format = "ort"; '
            'take format = "onnx"'
        )


def as_deployed(subjects: Sequence[Subject], target: Target) -> list[Subject]:
    """The teacher, which comes first, and the other models as the files that the target loads."""
    first, *others = subjects
    return [first, *(dataclasses.replace(one, file=deployed_file(one.file, target)) for one in others)]


def deployed_file(file: Path, target: Target) -> Path:
    """The file that the target loads: the ONNX `file` or, where the target wants it, NAME.ort beside it.

    ONNX Runtime does not write the same bytes twice, so the file is kept for as long as it belongs to `file`. Raises
    ModelError if ONNX Runtime cannot convert it.
    """
    if target.format == "onnx":
        return file
    made, record = file.with_suffix(".ort"), file.with_suffix(".ort.json")
    digest = file_sha256(file)
    if made.exists() and record.exists():
        known = read_json(record)
        if (known.get("onnx_sha256"), known.get("sha256")) == (digest, file_sha256(made)):
            return made
    write_ort(file, target, made)
    write_json(record, {"schema_version": SCHEMA_VERSION, "onnx_sha256": digest, "sha256": file_sha256(made)})
    return made


def write_ort(file: Path, target: Target, path: Path) -> None:
    """Write the ONNX `file` in the ORT format, with the optimisations of the target's session. Raises ModelError if
    ONNX Runtime cannot convert it."""
    with atomic(path) as temporary:
        _convert(file, target, temporary)


def _convert(file: Path, target: Target, path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[target.session.graph_level])
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    arm = target.hardware.architecture in ("aarch64", "arm64")
    # ONNX Runtime decides by the CPU on which it runs whether int8 activations may stay signed; only Arm is fast so.
    options.add_session_config_entry("session.qdqisint8allowed", "1" if arm else "0")
    try:
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"], disabled_optimizers=OF_THE_CPU)
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(f"{file}: ONNX Runtime cannot write it in the ORT format: {one_line(error)}") from error
