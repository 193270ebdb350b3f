"""Estimate the latency on a target that is not this machine from published latencies of standard networks.

The model of the estimate is edgekd's own. Its data are the `[[reference]]` entries of the target's file, each with the
address of its source; without a reference there is no estimate. For one precision, on ONNX Runtime's CPU provider:

    p50 on the target = p50 here × Σ over kernel classes c of share(c) × ratio(c)
    ratio(c)          = published latency of c's reference network / its latency here × s

* "Here" is one thread of this machine: the median of the least disturbed worker process, because other load only adds
  time. A reference network is timed here once and its result is stored in the user's cache folder.
* share(c) is the share of time that ONNX Runtime's own profile gives to class c: dense or depthwise convolutions,
  gemm (matrix products, recurrent cells, attention), other. A class without a reference gets the ratio of dense, or
  of the first class that has a reference.
* s corrects a reference measured with k_ref threads for a target with k threads. How well the network scales is not
  published, so s lies between 1 and k_ref / k, and sqrt(k_ref / k) is the best guess.
* The interval covers both ends of s, the extremes of several references of one class, and a factor of MARGIN in both
  directions.

A reference represents its class with its whole time, although mobilenet_v2 (depthwise) spends four fifths of its time
in dense 1×1 convolutions. Timed on an AMD EPYC and with equal s, its own estimate is about two thirds of the latency
published for a Raspberry Pi 4 and half for a Pi 5: for networks with many depthwise convolutions, the estimated time is
too short.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any, NamedTuple

import onnx
import onnxruntime
import torch
import torchvision.models
from torchvision.models import get_model_weights

from edgekd import units
from edgekd.bench.measure import Subject
from edgekd.bench.records import Effort
from edgekd.bench.runner import make_plan, measure_latency
from edgekd.bench.sequences import generates_of
from edgekd.bench.worker import LEVELS, Feeds
from edgekd.console import say
from edgekd.devices.device import Site
from edgekd.devices.host import user_folder
from edgekd.devices.local import Local
from edgekd.errors import EdgekdError, one_line
from edgekd.export.onnx import quiet_export
from edgekd.export.precisions import make_variant
from edgekd.export.shrink import save_model
from edgekd.figures import Figure, ModelFigures
from edgekd.files import read_json, write_json
from edgekd.scratch import scratch
from edgekd.target import Hardware, Reference, Target

__all__ = ["with_estimates"]

# History of the format of references/*.json:
# 1 - p50_ms, and the keys on which it depends
SCHEMA_VERSION = 1
CLASSES = ("dense", "depthwise", "gemm")
GEMM = (
    "Gemm",
    "MatMul",
    "LSTM",
    "GRU",
    "RNN",
    "Einsum",
    "Attention",
)  # an operator whose name contains one of these computes matrix products
MARGIN = (
    2.0  # assumed error factor of the model in both directions; it covers the errors in the module's last paragraph
)
MAX_SILENT, MAX_OTHER = 0.2, 0.5  # limits for shares of the time: in CLASSES without a reference, in other kernels
MAX_FASTER = (
    100  # a network this many times faster (or smaller) than its references is refused: costs per call would dominate
)
SUBJECT_EFFORT = Effort(processes=2, warmup_s=0.1, min_calls=20, max_calls=500, max_s=0.2)
REFERENCE_EFFORT = Effort(processes=3, warmup_s=1.0, min_calls=20, max_calls=200, max_s=1.0)


class _NoEstimate(Exception):
    """The reason, as one line, why a latency remains unknown."""


class Range(NamedTuple):
    """A best guess and its interval."""

    low: float
    value: float
    high: float


def with_estimates(figures: Sequence[ModelFigures], subjects: Sequence[Subject], site: Site) -> list[ModelFigures]:
    """Add an estimate of `latency_p50_ms` if the device is not the target and the target has references for the model.

    Without suitable references the latency remains unknown, with the reason. Raises ModelError if a model crashes or
    hangs.
    """
    if site.measurable:
        return list(figures)
    pairs = zip(figures, subjects, strict=True)
    return [dataclasses.replace(model, latency_p50_ms=_estimate(subject, site)) for model, subject in pairs]


def _estimate(subject: Subject, site: Site) -> Figure:
    target, elsewhere, here = site.target, site.elsewhere, this_machine(site.target)
    try:
        if generates_of(subject.file):
            raise _NoEstimate("no published network generates, so its time cannot be estimated")
        references = usable_references(subject.precision, target)
        refuse_tiny(subject, references)
        file = _onnx_of(subject.file)
        local_ms = _local_p50_ms(file, here, SUBJECT_EFFORT)  # in a worker, so that a crash does not end this process
        weights = spoken_shares(profile_shares(file, here), {r.kernel_class for r in references})
        used = {r: reference_ms(r, here) for r in references if r.kernel_class in weights}
        if local_ms * MAX_FASTER < (fastest := min(used.values())):
            times = f"{units.milliseconds(local_ms)} here, the reference's {units.milliseconds(fastest)}"
            raise _NoEstimate(f"it is too small for its references to speak of, its time {times}")
    except _NoEstimate as reason:
        return Figure(why=f"{elsewhere}; {reason}")
    ratios = {kind: [ratio(r, used[r], target) for r in used if r.kernel_class == kind] for kind in weights}
    low, value, high = combine(local_ms, weights, ratios)
    why = f"{elsewhere}; {units.milliseconds(local_ms)} on one thread here × {_terms(weights, ratios, used)}"
    return Figure(value, "estimated", low, high, why)


def _onnx_of(file: Path) -> Path:
    """The ONNX file from which one in the ORT format was made, because that one lacks the layout that the references
    were timed with."""
    onnx_file = file.with_suffix(".onnx")
    if file.suffix == ".ort" and not onnx_file.exists():
        raise _NoEstimate(f"{onnx_file.name}, of which {file.name} was made, is not beside it")
    return onnx_file if file.suffix == ".ort" else file


def usable_references(precision: str, target: Target) -> list[Reference]:
    """Return the target's references of this precision. Raises _NoEstimate if there are none for its provider."""
    references = [reference for reference in target.reference if reference.precision == precision]
    if not references:
        known = ", ".join(sorted({reference.precision for reference in target.reference})) or "none at all"
        raise _NoEstimate(f"no published {precision} reference to estimate from; target {target.name} has {known}")
    if target.provider.name != "CPUExecutionProvider":
        raise _NoEstimate(f"estimates are made for CPUExecutionProvider only, not for {target.provider.name}")
    return references


def refuse_tiny(subject: Subject, references: Sequence[Reference]) -> None:
    """Raise _NoEstimate for a model with too few multiply-accumulates, if these are known, before any timing."""
    smallest = min(1e9 * get_model_weights(r.network).DEFAULT.meta["_ops"] for r in references)
    if subject.macs is not None and subject.macs * MAX_FASTER < smallest:
        counts = f"{units.count(subject.macs)} multiply-accumulates, the reference's {units.count(smallest)}"
        raise _NoEstimate(f"it is too small for its references to speak of, {counts}")


def this_machine(target: Target) -> Site:
    """Return the target as it can be timed here: this hardware, one thread, no pinning; the int8 scheme is kept."""
    local = Local()
    hardware = Hardware(architecture=local.facts().architecture)  # type: ignore[arg-type]  # checked when it runs
    session = dataclasses.replace(target.session, intra_op_threads=1, inter_op_threads=1, affinity=())
    return Site(dataclasses.replace(target, hardware=hardware, session=session), local)


def spoken_shares(shares: Mapping[str, float], known: set[str]) -> dict[str, float]:
    """Assign the shares of time by kernel class to the classes `known` from references; the result adds up to 1."""
    silent = {kind: share for kind, share in shares.items() if kind not in known}
    other = silent.get("other", 0.0)
    if sum(silent.values()) - other > MAX_SILENT or other > MAX_OTHER:
        parts = " and ".join(f"{100 * share:.0f} % of its time here in {kind}" for kind, share in silent.items())
        raise _NoEstimate(f"it spends {parts} kernels, for which there is no reference of this precision")
    stand_in = next(kind for kind in CLASSES if kind in known)
    weights: dict[str, float] = defaultdict(float)
    for kind, share in shares.items():
        weights[kind if kind in known else stand_in] += share
    return dict(weights)


def ratio(reference: Reference, local_ms: float, target: Target) -> Range:
    """Return the milliseconds on the target for one millisecond of this kernel class on one thread here."""
    slower, scaling = reference.latency_ms / local_ms, reference.threads / target.session.intra_op_threads
    return Range(slower * min(1.0, scaling), slower * math.sqrt(scaling), slower * max(1.0, scaling))


def combine(local_ms: float, weights: Mapping[str, float], ratios: Mapping[str, Sequence[Range]]) -> Range:
    """Return the estimate in ms: the sum over classes, with the geometric mean over the references of one class."""
    low = sum(weight * min(r.low for r in ratios[kind]) for kind, weight in weights.items())
    value = sum(weight * geometric_mean(r.value for r in ratios[kind]) for kind, weight in weights.items())
    high = sum(weight * max(r.high for r in ratios[kind]) for kind, weight in weights.items())
    return Range(local_ms * low / MARGIN, local_ms * value, local_ms * high * MARGIN)


def _terms(weights: dict[str, float], ratios: dict[str, list[Range]], used: Iterable[Reference]) -> str:
    terms = []
    for kind, weight in weights.items():
        sources = [f"{r.network} (threads: {r.threads}, {r.source})" for r in used if r.kernel_class == kind]
        times = geometric_mean(r.value for r in ratios[kind])
        terms.append(f"{100 * weight:.0f} % {kind} × {times:.3g} from {' and '.join(sources)}")
    return f"({' + '.join(terms)}); interval: threads, references, and {MARGIN} both ways for the model"


def profile_shares(file: Path, here: Site) -> dict[str, float]:
    """Return the share of time by kernel class from ONNX Runtime's profile of calls in this process; they add up to 1.

    The class of a node is read from the optimised graph, because weights that a kernel repacks, such as int8 weights,
    do not appear in the profile.
    """
    model = onnx.load(file)
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"  # node names in a file may be empty
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, LEVELS[here.target.session.graph_level]
    )
    options.enable_profiling, options.log_severity_level = True, 3  # log errors only
    with scratch() as folder:
        optimised = Path(folder, "optimised.onnx")
        options.optimized_model_filepath, options.profile_file_prefix = str(optimised), str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[here.target.provider.name]
        )
        feeds = Feeds(session, make_plan(here, mode="latency", inputs=None).as_json())
        for number in range(24):
            session.run(None, feeds.ready[number % len(feeds.ready)])
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return shares_of(events, kernel_classes(onnx.load(optimised).graph))


def kernel_classes(graph: onnx.GraphProto) -> dict[str, str]:
    """Map the name of each node to its class: dense, depthwise, gemm or other."""
    dims = {weights.name: list(weights.dims) for weights in graph.initializer}
    dims |= {n.output[0]: dims.get(n.input[0], []) for n in graph.node if n.op_type == "DequantizeLinear"}
    classes = {node.name: "gemm" if any(word in node.op_type for word in GEMM) else "other" for node in graph.node}
    for node in graph.node:
        if "Conv" in node.op_type:
            weights = dims.get(node.input[3 if node.op_type == "QLinearConv" else 1], [])
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            # The weights alone are not enough: a dense convolution of a grey image also has one input channel.
            classes[node.name] = "depthwise" if groups > 1 and weights[1:2] == [1] else "dense"
    return classes


def shares_of(events: Sequence[Mapping[str, Any]], classes: Mapping[str, str]) -> dict[str, float]:
    """Compute shares from profile events, without the slowest quarter of each node's calls (warm-up, interruptions)."""
    calls: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            calls[event["name"].removesuffix("_kernel_time")].append(
                event["dur"] + 0.5
            )  # durations are cut to whole µs
    spent: dict[str, float] = defaultdict(float)
    for name, durations in calls.items():
        spent[classes.get(name, "other")] += fmean(sorted(durations)[: math.ceil(0.75 * len(durations))])
    return {kind: time / sum(spent.values()) for kind, time in spent.items()}


def reference_ms(reference: Reference, here: Site) -> float:
    """Return the latency of a reference network on one thread of this machine, timed once and then read from the
    cache.
    """
    key: dict[str, Any] = {name: getattr(reference, name) for name in ("network", "input_size", "precision")}
    key |= {"opset": here.target.opset.export, "graph_level": here.target.session.graph_level}
    key |= {"onnxruntime": onnxruntime.__version__, "cpu": here.device.facts().model, "schema_version": SCHEMA_VERSION}
    key |= dataclasses.asdict(here.target.quantization) if reference.precision == "int8" else {}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    caches = user_folder(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    path = caches / "edgekd" / "references" / f"{reference.network}-{reference.precision}-{digest}.json"
    if path.exists():
        return float(read_json(path)["p50_ms"])
    say(f"estimate: timing {reference.network} {reference.precision} here, once, to compare with its published latency")
    try:
        with scratch() as folder:
            p50_ms = _local_p50_ms(_export(reference, here, Path(folder)), here, REFERENCE_EFFORT)
    except Exception as error:  # the exporter's many passes may raise any exception
        raise _NoEstimate(f"reference {reference.network} cannot be timed here: {one_line(error)}") from error
    with contextlib.suppress(
        OSError
    ):  # if the folder cannot be written, the only cost is that the network is timed again
        write_json(path, key | {"p50_ms": p50_ms})
    return p50_ms


def _export(reference: Reference, here: Site, folder: Path) -> Path:
    """Export the reference network in its precision with random weights, which take the same time as trained
    weights.
    """
    fp32, file, opset = folder / "fp32.onnx", folder / "reference.onnx", here.target.opset.export
    with torch.random.fork_rng(devices=[]), quiet_export():  # the run's own random number generator keeps its state
        net = torchvision.models.get_model(reference.network, weights=None).eval()
        x = torch.randn(1, 3, reference.input_size, reference.input_size)
        program = torch.onnx.export(net, (x,), dynamo=True, verbose=False, external_data=False, opset_version=opset)
    assert program is not None  # only the older exporter returns None
    save_model(program.model_proto, fp32)
    make_variant(fp32, reference.precision, here.target, x.numpy(), file)  # not uint8: this network takes floats
    return file


def _local_p50_ms(file: Path, here: Site, effort: Effort) -> float:
    records = measure_latency([file], here, None, effort)[0]
    if isinstance(records, EdgekdError):
        raise records
    return 1e3 * min(median(record.latency_s) for record in records)
