"""The command `edgekd-check-files`: check the size and opset of ONNX files before a commit, without running them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd import units
from edgekd.console import open_streams, out, say
from edgekd.errors import ConfigError, EdgekdError, ExitCode, InputError, one_line, worst
from edgekd.external import decoder_of, encoder_of, generates, model_bytes
from edgekd.units import flat

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["file_problems", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per problem; return 1 if there is any, 2 if a file cannot be read."""
    open_streams()
    options = _parser().parse_args(arguments)
    try:
        return _check_files(options)
    except InputError as error:  # stdout cannot be written
        return _complain(error)


def _check_files(options: argparse.Namespace) -> int:
    low, high = options.min_opset, options.max_opset
    if low is not None and high is not None and low > high:
        return _complain(ConfigError(f"--min-opset {low}: should be at most --max-opset, which is {high}"))
    codes = [ExitCode.PASS]
    for file in dict.fromkeys(map(encoder_of, options.files)):
        try:
            problems = file_problems(file, options.max_size_kb, low, high)
        except EdgekdError as error:
            codes.append(_complain(error))
            continue
        for problem in problems:
            out(flat(problem))
        codes.append(ExitCode.FAIL if problems else ExitCode.PASS)
    return worst(codes)


def _complain(error: EdgekdError) -> ExitCode:
    say(f"edgekd-check-files: {error}")
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("edgekd-check-files", description="Check size and opset of ONNX files.")
    parser.add_argument("--max-size-kb", type=_positive, metavar="N", help="of the file and its weights; kB = 1,000 B")
    parser.add_argument("--min-opset", type=int, metavar="N", help="oldest opset of the default domain")
    parser.add_argument("--max-opset", type=int, metavar="N", help="newest opset of the default domain")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}; it should be a number above 0")
    return value


def file_problems(
    file: Path, max_size_kb: float | None = None, min_opset: int | None = None, max_opset: int | None = None
) -> list[str]:
    """Return the problems of `file`, one line each. The decoder of a model that generates is part of it.

    Raises InputError if the file, its decoder, or a file with its external weights, cannot be read.
    """
    model = _load(file)
    size = model_bytes(file, model)
    problems = []
    if max_size_kb is not None and size > max_size_kb * 1_000:
        limit = units.bytes_(max_size_kb * 1_000)
        problems.append(
            f"{file}: size {units.bytes_(size)} ({size:,} B) > {limit}; quantize it, or raise --max-size-kb"
        )
    parts = {file: model} | ({decoder_of(file): _load(decoder_of(file))} if generates(model) else {})
    for part, loaded in parts.items():
        problems += [f"{part}: {problem}" for problem in _opset_problems(loaded, min_opset, max_opset)]
    return problems


def _opset_problems(model: "ModelProto", min_opset: int | None, max_opset: int | None) -> list[str]:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None)
    problems = []
    if opset is None and (min_opset is not None or max_opset is not None):
        problems.append("declares no opset of the default domain, so its limits cannot be checked; export it again")
    if opset is not None and min_opset is not None and opset < min_opset:
        problems.append(f"opset {opset} < {min_opset}; export it with opset {min_opset}, or lower --min-opset")
    if opset is not None and max_opset is not None and opset > max_opset:
        problems.append(f"opset {opset} > {max_opset}; export it with opset {max_opset}, or raise --max-opset")
    return problems


def _load(file: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    if content.startswith(b"version https://git-lfs.github.com/"):
        raise InputError(f"{file}: is a Git LFS pointer, not the model; git lfs pull fetches it")
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise InputError(f"{file}: is not an ONNX file ({one_line(error)})") from error
    if not model.HasField("graph") or not model.opset_import:
        raise InputError(f"{file}: is not an ONNX file (it has no graph or no opset)")
    return model


if __name__ == "__main__":
    sys.exit(main())
