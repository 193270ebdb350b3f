"""`export`: write a torch network as an ONNX file for a target, compare both, and say what to do next."""

import dataclasses
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import units
from edgekd.cli.quantizing import numbers
from edgekd.console import out
from edgekd.errors import ConfigError, ExitCode, InputError
from edgekd.files import real
from edgekd.imports import require
from edgekd.scratch import scratch
from edgekd.target import Target, load_target

if TYPE_CHECKING:
    from edgekd.card import Card
    from edgekd.draft.network import Network, Wanted
    from edgekd.export.brought import Brought, Examples
    from edgekd.export.onnx import Parity

__all__ = ["ExportOptions", "NetworkOptions", "card_of", "export_network", "require_training", "wanted_network"]

COMPARED = 64
"""Number of examples with which the file is compared with the network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The options that say what the network is."""

    card: str = ""
    family: str = ""
    shape: tuple[str, ...] = ()
    weights: Path | None = None
    size: str = ""
    classes: str = ""
    mean: str = ""
    std: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export`."""

    network: NetworkOptions
    data: Path | None = None
    outside: bool = False
    out: Path | None = None


def export_network(source: str, target: str, options: ExportOptions) -> int:
    """Write the ONNX file, print how closely it agrees with torch, and what to do next."""
    site = load_target(target)
    path = options.out or Path(f"{_stem(source)}.onnx")
    if options.out and real(path) == real(Path(source)):
        raise ConfigError(f"--out {path}: is the network's own file; name another file")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}; make it first")
    require_training("edgekd export")
    from edgekd.export.brought import write
    from edgekd.nets.deployed import count_params

    brought = _brought(source, options, site)
    with scratch() as folder:
        examples = lambda model: _examples(model, brought, options)  # noqa: E731 - it waits for the file
        agreement, words = write(brought, site, path, Path(folder), examples)
    params = units.count(count_params(brought.module))
    out(f"{path}: fp32, opset {site.opset.export}, {units.bytes_(path.stat().st_size)}, {params} parameters")
    out(f"  takes {_told(path, 'input')}; labels: {_labels(path)}")
    out(f"  {_agreement(agreement, words)}")
    for line in _next(path, site, options):
        out(line)
    return ExitCode.PASS


def require_training(purpose: str) -> None:
    """Raise UnavailableError, with the pip command, if a module is missing that torch networks need."""
    from edgekd.interface import TRAINING

    for module in (*TRAINING, "onnxruntime"):
        require(module, "train,cpu", purpose)


def _stem(source: str) -> str:
    from edgekd.draft.network import is_function

    return source.partition(":")[2] if is_function(source) else Path(source).stem


def _brought(source: str, options: ExportOptions, target: Target) -> "Brought":
    from edgekd.export.brought import bring, bring_by_card
    from edgekd.export.onnx import refuse_free_shapes
    from edgekd.tasks.known import task_of

    asked = options.network
    if asked.card:
        if options.outside:
            raise ConfigError("--outside: has no effect with --card, whose normalisation is in the graph")
        card, net = card_of(source, asked)
        if task_of(card.data).generates:
            raise ConfigError(f"--card {asked.card}: its model is two files; edgekd distill writes both")
        refuse_free_shapes(card, target)
        return bring_by_card(net, card)
    found = _found(wanted_network(source, asked))
    normalization = None
    if (asked.mean or asked.std) and not options.outside:
        normalization = _normalization(found.size, asked)
    return bring(found.net, found.size, found.classes, normalization)


def _found(wanted: "Wanted") -> "Network":
    from edgekd.draft.network import find_network

    found = find_network(wanted)
    if not found.size:
        raise ConfigError(f"{wanted.source}: give the shape of one example with --input, such as --input 3,224,224")
    return found


def card_of(source: str, asked: NetworkOptions) -> "tuple[Card, Any]":
    """The card, whose teacher is the network that `source` names, and this network with its weights."""
    from edgekd.card import Teacher
    from edgekd.draft.network import is_function
    from edgekd.nets.teachers import make_teacher_net
    from edgekd.nets.weights import load_file
    from edgekd.tasks.known import load_card

    for option in ("size", "classes", "mean", "std"):
        if getattr(asked, option):
            raise ConfigError(f"--{'input' if option == 'size' else option}: has no effect with --card, which says it")
    card, shape = load_card(asked.card), _shape(asked.shape)
    weights = asked.weights if is_function(source) else Path(source)
    if is_function(source):
        sys.path += [here for here in [str(Path.cwd())] if here not in sys.path]  # the card may lie elsewhere
        card = dataclasses.replace(card, teacher=Teacher(family="import", function=source, shape=shape))
    elif asked.weights:
        raise ConfigError(f"--weights {asked.weights}: is for module:function; {source} holds weights itself")
    elif asked.family or shape:
        family = asked.family or card.teacher.family
        card = dataclasses.replace(card, teacher=Teacher(family=family, shape=shape, function=card.teacher.function))
    if weights is not None and weights.suffix == ".onnx":
        raise InputError(f"{weights}: is an ONNX file, and has no torch network; edgekd quantize takes it as it is")
    net = make_teacher_net(card)
    if weights is not None:
        load_file(net, weights)
    return card, net.eval()


def wanted_network(source: str, asked: NetworkOptions) -> "Wanted":
    """What the options say of a network without a card."""
    from edgekd.draft.network import Wanted

    sizes = re.fullmatch(r"\d+(,\d+)*", asked.size)
    if asked.size and not sizes:
        raise ConfigError(
            f"--input {asked.size}: should be the sizes of one example with commas between, such as 3,32,32"
        )
    size = tuple(map(int, asked.size.split(","))) if sizes else ()
    if 0 in size:
        raise ConfigError(f"--input {asked.size}: sizes should be above 0")
    shape = _shape(asked.shape)
    return Wanted(
        source=source,
        family=asked.family,
        shape=shape,
        weights=asked.weights,
        size=size,
        classes=_classes(asked.classes),
    )


def _shape(given: tuple[str, ...]) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    for text in given:
        key, _, value = text.partition("=")
        try:
            shape[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, KeyError):
            raise ConfigError(f"--shape {text!r}: it should be KEY=VALUE, such as depth=8 or channels=[8,16]") from None
    return shape


def _classes(text: str) -> tuple[str, ...]:
    """The names of the classes, from their number, from names with commas between, or from a file with one a line."""
    if text.isdecimal():
        if not 2 <= int(text) <= 1_000_000:
            raise ConfigError(f"--classes {text}: should be at least 2 and at most 1,000,000")
        return tuple(map(str, range(int(text))))
    if text and Path(text).is_file():
        try:
            names = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise InputError(f"--classes {text}: is no text in UTF-8") from error
        text = ",".join(name for name in names if name)
    found = tuple(name.strip() for name in text.split(",")) if text else ()
    if found and (len(found) < 2 or "" in found or len(set(found)) < len(found)):
        raise ConfigError(
            f"--classes {text[:80]}: should be at least two different names, a number, or a file of names"
        )
    return found


def _normalization(size: tuple[int, ...], asked: NetworkOptions) -> Any:
    from edgekd.tasks.task import Normalization

    if len(size) != 3:
        raise ConfigError("--mean, --std: are for images (channels, height, width); leave them out for other inputs")
    mean, std = (numbers(f"--{name}", getattr(asked, name)) for name in ("mean", "std"))
    mean, std = mean or [0.0] * size[0], std or [1.0] * size[0]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != size[0]:
            raise ConfigError(f"--{name}: got {len(values)} numbers; the network takes {size[0]} channels")
    if min(std) <= 0:
        raise ConfigError("--std: should be numbers above 0")
    return Normalization(mean=tuple(mean), std=tuple(std), top=255, channels_last=True)


def _examples(model: Any, brought: "Brought", options: ExportOptions) -> "Examples":
    """Real inputs where there are some, else noise."""
    import numpy as np

    from edgekd.data.ready import ready_images, ready_npz
    from edgekd.distill.tasks.known import learning_of
    from edgekd.export.brought import Examples
    from edgekd.nets.deployed import noise_inputs

    card, data = brought.card, options.data
    if data is not None and not data.exists():
        raise InputError(f"--data {data}: no such folder or .npz file")
    if data is not None and data.is_file():
        ready = ready_npz(data, model, brought.task.targets_problem)
        some = next(iter(ready.inputs.values()))[:COMPARED]
        return Examples(inputs=some, words=f"{len(some)} examples of {data}")
    if card is not None and (data is not None or card.data.source in brought.task.embedded):
        _, validation = learning_of(card.data).examine(card, data)
        some = validation.read(np.arange(min(COMPARED, len(validation))))
        return Examples(inputs=some, words=f"{len(some)} {brought.task.units} of the validation data")
    if data is not None:
        mean, std = (numbers(f"--{name}", getattr(options.network, name)) for name in ("mean", "std"))
        ready = ready_images(data, model, mean, std, None, COMPARED)
        some = next(iter(ready.inputs.values()))
        return Examples(inputs=some, words=f"{len(some)} images of {data}")
    if card is not None:
        noise = noise_inputs(card.data, COMPARED).numpy()
    else:
        random = np.random.default_rng(0)
        shape = (COMPARED, *brought.example.shape[1:])
        pixels = not brought.example.dtype.is_floating_point
        noise = random.integers(0, 256, shape, dtype=np.uint8) if pixels else random.standard_normal(shape, np.float32)
    return Examples(inputs=noise, words=f"{COMPARED} inputs of noise (--data takes real ones)")


def _told(path: Path, key: str) -> str:
    import onnx

    from edgekd.external import metadata_of

    return metadata_of(onnx.load(path, load_external_data=False)).get(key, "")


def _labels(path: Path) -> str:
    import json

    names = json.loads(_told(path, "labels") or "[]")
    return f"{len(names)} ({names[0]} … {names[-1]}), in the metadata" if names else "none (--classes names them)"


def _agreement(found: "Parity", words: str) -> str:
    same = f"{found.same_words} {units.accuracy(found.same)}, " if found.same is not None else ""
    difference = f"largest difference {found.max_abs:.2g}, {found.relative:.1g} of the largest output"
    return f"agreement with torch on {words}: {same}{difference}"


def _next(path: Path, target: Target, options: ExportOptions) -> list[str]:
    data = str(options.data) if options.data else "DIR"
    normal = [f"--{n}={getattr(options.network, n)}" for n in ("mean", "std") if getattr(options.network, n)]
    quantize = ["edgekd", "quantize", str(path), "--target", target.option, "--data", data]
    lines = [quantize + (normal if options.outside else [])] if "int8" in target.precisions else []
    lines.append(["edgekd", "bench", str(path), "--target", target.option])
    if not options.network.card:  # a network of a card has a card already
        lines.append(["edgekd", "init", "--data", "DIR", "--teacher", str(path), "--target", target.option])
    return ["next:", *(f"  {shlex.join(line)}" for line in lines)]
