"""Measure one ONNX model in this process. This file is a stand-alone program that can be copied to a device.

    python worker.py --plan plan.json --model model.onnx --out result.json

It needs Python 3.9, numpy and onnxruntime 1.17, and it does not import edgekd. The plan is a JSON object; keys that
it omits have the values of DEFAULTS below:

    mode      "latency": time single calls; "pair": time the model and `baseline` by turns, in short blocks;
              "throughput": time many calls, in one session or several parallel ones; "memory": measure peak memory
              without a data set; "profile": find which kernels ran where, and for how long; "predict": write the
              outputs for all inputs to `outputs` (.npy); "load": create the session without a call; "count": make
              blocks of equally many calls and mark their ends, for an emulator that counts instructions; "generate":
              like "latency", for a model that generates, with the time to the first token
    provider, provider_options, intra_op_threads, inter_op_threads, allow_spinning, graph_level, arena,
    affinity, precise_int8, binding          settings of the session; all of them are part of the fingerprint;
              binding "run": session.run with numpy arrays; "io": inputs and outputs are bound before the call
    baseline  pair: the other model file, which gets the same inputs
    baseline_first                           pair: whether the baseline's session is created first, which gives it the
              better memory
    block_s   pair: approximate duration of a block of one model's calls; only whole blocks are timed
    inputs    a .npy file with inputs along the first axis, which is memory-mapped; or a .npz file with one array for
              each of the model's inputs, which holds examples along the batch axis or one example for all calls;
              null: seeded random inputs
    packed    whether `inputs` holds examples of different shapes, one after another, in a .npy file of bytes with one
              axis: first the number of examples and of their axes, and then all shapes, as 64-bit integers; then the
              uint8 values. They are for "predict", one example per call
    shapes    sizes by input name, such as {"x": [1, 3, 224, 224]}; a dynamic dimension, except the batch, is an
              error if its size is given neither here nor by data nor by a value
    values    constants by input name, such as {"sr": 16000}: a number, true, a text, or lists of them
    batch_axes                               batch axis by input name, or null for none; the name "" applies to all
              inputs; for inputs that are not listed it is derived from the names of dimensions, see `batch_axis`
    output    predict: the output to write; null: the first one
    answers   predict: "rows": write one row of numbers for each example, as float32; "classes": of an output with one
              number for each class and pixel (n, C, …), write the largest one's class (n, …), as uint8; "boxes": of
              decoded boxes and scores (n, 4 + C, L), write those that non-maximum suppression leaves, see `detections`
    custom_ops                               libraries to load before the model; they run with this process's rights
    steered   whether the time of a call depends on the values of the inputs: inner loops then repeat a call with the
              same inputs
    sequence_length, padding                 for models that take sequences of dynamic length: the length of random
              inputs; with data, whose rows are filled up with `padding`, only rows of that length (or the nearest
              length in the data) are timed, without the padding, and "predict" leaves out columns that are padding
              in all rows of a batch
    memory_limit_bytes                       address space that this process may use (RLIMIT_AS)
    optimized                                profile: where to write the graph as ONNX Runtime optimized it
    batch_size, sessions, warmup_s, min_calls, max_calls, max_s      bounds of the measurement

A model that generates consists of two files: NAME.onnx, the encoder, whose metadata have `generation`, and
NAME.decoder.onnx. A call then is the generation of all tokens: of `sequence_length` tokens where time is measured, so
that models are comparable, and up to the end token for "predict". See `Generating`.

The program is deliberately one file, so that only one file has to be copied to a device.

The result is one JSON object: raw seconds per call and a fingerprint, or `error` with one line. An error that concerns
the baseline begins with "baseline FILE: ". The reader of the result computes the statistics. The exit code is 0, or 1
if the result is an error. `predict` prints the number of finished rows to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

__all__ = [
    "DEFAULTS",
    "FIRST",
    "KEPT",
    "LOWEST",
    "OVERLAP",
    "Feeds",
    "Generating",
    "WorkerError",
    "detections",
    "energy_counter",
    "main",
    "measure",
    "opened",
    "suppressed",
]

# History of the format of results:
# 1 - latency_s, first_call_s, load_s, memory, fingerprint
# 2 - binding, arena, inner_calls, warm, disturbance, energy_j, throughput, nodes; DEFAULTS fill missing plan keys
# 3 - mode pair: baseline, block_calls, later also mode load, without calls
# 4 - fingerprint: shapes, input_types, batch_axes, values, custom_ops; predict: class labels, which have one axis;
#     later also mode count: calls, block_calls, elapsed_s; mode generate: first_token_s, tokens
SCHEMA_VERSION = 4

DEFAULTS: dict[str, Any] = {
    "mode": "latency",
    "provider": "CPUExecutionProvider",
    "provider_options": {},
    "intra_op_threads": 1,
    "inter_op_threads": 1,
    "allow_spinning": True,
    "graph_level": "all",
    "arena": True,
    "affinity": [],
    "precise_int8": False,
    "binding": "run",
    "baseline": None,
    "baseline_first": True,
    "block_s": 0.005,
    "inputs": None,
    "packed": False,
    "outputs": None,
    "optimized": None,
    "shapes": {},
    "values": {},
    "batch_axes": {},
    "output": None,
    "answers": "rows",
    "custom_ops": [],
    "steered": False,
    "sequence_length": None,
    "padding": None,
    "memory_limit_bytes": None,
    "batch_size": 1,
    "sessions": 1,
    "warmup_s": 0.5,
    "min_calls": 100,
    "max_calls": 1_000,
    "max_s": 1.0,
}
SESSION_KEYS = (
    "provider",
    "provider_options",
    "intra_op_threads",
    "inter_op_threads",
    "allow_spinning",
    "graph_level",
    "arena",
    "affinity",
    "precise_int8",
    "binding",
)
LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
CHOICES = {
    "mode": ("latency", "pair", "throughput", "memory", "profile", "predict", "load", "count", "generate"),
    "binding": ("run", "io"),
    "answers": ("rows", "classes", "boxes"),
    "graph_level": tuple(LEVELS),
}
DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
BATCH_NAMES = ("n", "b", "bs", "batchsize", "num_batches")
"""Names of dimensions that mean the batch, in addition to all names that begin with "batch"."""
OTHER_NAMES = ("seq", "len", "time", "height", "width", "token", "frame", "point", "sample", "word")
"""A dimension whose name contains one of these is not the batch, even if inputs and outputs share it as first size."""
ESCAPE = re.compile("\x1b\\[[0-9;?]*[ -/]*[@-~]")
LONGEST = 600
ON_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
SHORTEST_S = (
    50e-6  # shorter calls are timed in inner loops, because the overhead of the clock and of Python would matter
)
LOADS = 5  # pair: number of timed loads of each model
SLOW_LOAD_S = 0.5
MARK = (
    0x45444B44  # count: closing this file descriptor, which is not open, marks a moment; see edgekd/devices/counter.c
)
BLOCKS = 5  # count: number of blocks
UNCOUNTED = 20  # count: calls before the first block
LOWEST = 0.01  # boxes: detections with a lower score are left out
OVERLAP = 0.6  # boxes: the largest intersection over union of two detections of a class
FIRST = 1_000  # boxes: as many detections with the highest scores are compared
KEPT = 100  # boxes: the largest number of detections of an image
ROTATED = 64  # rows that are prepared for the timed calls (at least two batches)
Clock = Callable[[], float]


class WorkerError(Exception):
    """An error whose text becomes the one line in the result's `error`."""


def main(argv: list[str] | None = None) -> int:
    """Run the plan and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure one ONNX model in this process.")
    parser.add_argument("--plan", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--die-with-parent", action="store_true", help="end when the starting process is killed (Linux)"
    )
    args = parser.parse_args(argv)
    plan: dict[str, Any] = {}
    if args.die_with_parent:
        die_with_parent()
    try:
        with open(args.plan, encoding="utf-8") as file:  # noqa: PTH123 - runs where pathlib costs start-up time
            plan = read_plan(file.read(), args.plan)
        result, code = measure(plan, args.model), 0
    except (WorkerError, OSError, ValueError, ImportError, MemoryError) as error:
        text = out_of_memory(plan) if wants_memory(error) else str(error)
        result, code = {"schema_version": SCHEMA_VERSION, "error": text}, 1
        print("worker: " + text, file=sys.stderr)
    temporary = args.out + ".part"
    with open(temporary, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(result, file)
    os.replace(temporary, args.out)  # noqa: PTH105
    return code


def measure(plan: dict[str, Any], model: str, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Run a plan on one model file and return the result; `clock` returns seconds."""
    plan = complete(plan)
    confine(plan)
    import onnxruntime

    require(onnxruntime, plan["provider"])
    memory = {"import_bytes": peak_memory()}
    before = counters()
    if plan["mode"] == "pair":
        (session, load_s), baseline = load_pair(onnxruntime, plan, model, clock)
    else:
        (session, load_s), baseline = loaded(onnxruntime, plan, model, clock), None
    memory["load_bytes"] = peak_memory()
    if plan["mode"] == "load":
        mark = fingerprint(onnxruntime, session, plan, sha256_of(model), None)
        return {
            "schema_version": SCHEMA_VERSION,
            "mode": "load",
            "load_s": load_s,
            "memory": memory,
            "fingerprint": mark,
        }
    feeds = Feeds(session, plan)
    call = Caller(onnxruntime, session, feeds, plan)
    result = {"schema_version": SCHEMA_VERSION, "mode": plan["mode"], "load_s": load_s, "batch_size": feeds.batch}
    if plan["mode"] == "predict":
        result["outputs_shape"] = predict(call, feeds, plan)
    elif plan["mode"] == "profile":
        result.update(profile(onnxruntime, session, call, plan, model))
    elif plan["mode"] == "throughput":
        others = [make_session(onnxruntime, plan, model) for _ in range(plan["sessions"] - 1)]
        callers = [call, *(Caller(onnxruntime, other, feeds, plan) for other in others)]
        result.update(throughput(callers, plan, clock))
    elif plan["mode"] == "count":
        result.update(count(call, plan, clock))
    elif baseline is not None:
        result.update(pair(onnxruntime, call, baseline, plan, clock))
    elif plan["mode"] == "generate":
        result.update(generate(session, call, plan, clock))
    else:
        result.update(time_calls(call, plan, clock))
    memory["run_bytes"] = peak_memory()
    result["memory"] = memory
    result["disturbance"] = disturbance(before, counters())
    if plan["mode"] in ("latency", "pair", "memory", "generate"):
        call.check_outputs()
    result["fingerprint"] = fingerprint(onnxruntime, session, plan, sha256_of(model), feeds)
    return result


def loaded(onnxruntime: Any, plan: dict[str, Any], model: str, clock: Clock) -> tuple[Any, float]:
    """Return a session and the seconds it took to create it."""
    begin = clock()
    session = make_session(onnxruntime, plan, model)
    if isinstance(session, Generating):
        session.clock = clock
    return session, clock() - begin


def load_pair(onnxruntime: Any, plan: dict[str, Any], model: str, clock: Clock) -> list[tuple[Any, float]]:
    """Return the sessions of the model and its baseline, each with the median seconds of its loads.

    Each file is loaded LOADS times, but a slow one only once. Loads are timed one at a time, by turns: a second session
    in the same process would have to find new memory. The very first load pays for the start of the process and is not
    counted. The sessions are then created in the order that the plan asks for.
    """
    files, names = [model, plan["baseline"]], ["", blame(plan)]
    order = [1, 0] if plan["baseline_first"] else [0, 1]

    def load(place: int) -> tuple[Any, float]:
        with blaming(names[place]):
            return loaded(onnxruntime, plan, files[place], clock)

    load(order[0])
    spent: list[list[float]] = [[], []]
    while len(spent[0]) < LOADS and sum(map(sum, spent)) < SLOW_LOAD_S:
        for place in order if len(spent[0]) % 2 == 0 else order[::-1]:
            spent[place].append(load(place)[1])
    sessions: list[Any] = [None, None]
    for place in order:
        sessions[place] = load(place)[0]
    return [(session, float(np.median(seconds))) for session, seconds in zip(sessions, spent)]


def blame(plan: dict[str, Any]) -> str:
    """Return the prefix of error messages about the baseline."""
    return "baseline " + str(plan["baseline"]) + ": "


@contextlib.contextmanager
def blaming(name: str) -> Iterator[None]:
    """Prepend `name` to the message of any WorkerError inside; it is empty for the model itself."""
    try:
        yield
    except WorkerError as error:
        raise WorkerError(name + str(error)) from error


def sha256_of(model: str) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with open(model, "rb") as file:  # noqa: PTH123
        return hashlib.sha256(file.read()).hexdigest()


def read_plan(text: str, name: str) -> Any:
    """Parse the JSON text of a plan. Raises WorkerError with the file name if it is not valid JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise WorkerError(name + ": not valid JSON: " + str(error)) from error


def complete(plan: Any) -> dict[str, Any]:
    """Return the plan with defaults for missing keys. Raises WorkerError if a key or value is wrong."""
    if not isinstance(plan, dict):
        raise WorkerError("the plan should be a JSON object, got " + json.dumps(plan)[:100])
    unknown = sorted(set(plan) - set(DEFAULTS))
    if unknown:
        raise WorkerError("the plan has unknown keys: " + ", ".join(unknown) + "; known: " + ", ".join(DEFAULTS))
    for key, value in plan.items():
        default = DEFAULTS[key]
        kinds = {float: (int, float), list: (list, tuple)}.get(type(default), (type(default),))
        if default is not None and not isinstance(value, kinds):
            raise WorkerError("the plan's " + key + " is " + repr(value) + "; it should be like " + repr(default))
        if value not in CHOICES.get(key, (value,)):
            raise WorkerError("the plan's " + key + " is " + repr(value) + "; known: " + ", ".join(CHOICES[key]))
    whole = {**DEFAULTS, **plan}
    if whole["mode"] == "pair" and not (whole["baseline"] and isinstance(whole["baseline"], str)):
        raise WorkerError("mode pair needs `baseline`")
    return whole


def confine(plan: dict[str, Any]) -> None:
    """Pin this process, limit its memory, and make the system kill it before others when memory runs out."""
    if plan["affinity"]:
        try:
            os.sched_setaffinity(0, plan["affinity"])
        except (OSError, TypeError) as error:
            here = sorted(os.sched_getaffinity(0))
            raise WorkerError("affinity " + str(plan["affinity"]) + ": this process has CPUs " + str(here)) from error
    if plan["memory_limit_bytes"]:
        import resource  # not available on Windows

        hard = hard_limit()
        limit = plan["memory_limit_bytes"] if hard is None else min(plan["memory_limit_bytes"], hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY if hard is None else hard))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("1000")
    except OSError:
        pass  # this file exists only on Linux


def die_with_parent() -> None:
    """On Linux, make the system kill this process when its parent is killed, because its result would not be used.

    This is not the default: a person may start a worker on a device and log out.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def out_of_memory(plan: dict[str, Any]) -> str:
    """Return one line for a model that needs more memory than is available."""
    limit, hard = plan.get("memory_limit_bytes"), hard_limit()
    if hard is not None and (not limit or hard <= limit):
        return "out of memory, with a limit of %.0f MB (`ulimit -v` where edgekd was started)" % (hard / 1e6)
    return "out of memory" + (", with a limit of %.0f MB" % (limit / 1e6) if limit else "")


def hard_limit() -> int | None:
    """Return the hard limit of this process's address space in bytes; None if there is no limit."""
    try:
        import resource  # not available on Windows
    except ImportError:
        return None
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def wants_memory(error: Exception) -> bool:
    """Whether the error means too little memory for Python, onnxruntime or the loader of its libraries."""
    signs = ("bad_alloc", "Failed to allocate memory", "failed to map segment", "Cannot allocate memory")
    return isinstance(error, MemoryError) or (
        not isinstance(error, WorkerError) and any(sign in str(error) for sign in signs)
    )


def explain(error: Exception, plan: dict[str, Any], what: str) -> WorkerError:
    """Convert an onnxruntime error to one line; its exceptions have no common base below Exception."""
    if wants_memory(error):
        return WorkerError(out_of_memory(plan) + " (" + what + ")")
    text = " ".join(ESCAPE.sub("", str(error)).split())
    return WorkerError(what + ": " + without_signature(text, LONGEST))


def without_signature(text: str, limit: int = 300) -> str:
    """Remove the source location and the C++ signature from onnxruntime's message, because the cause comes last.

    If the message is still too long, its middle is removed.
    """
    place = re.search(r"/\S+\.(?:cc|cpp|h|hpp):\d+ ", text)
    if place:
        end = end_of_signature(text, place.end())
        text = text[: place.start()].rstrip(" :") + ": " + text[end:].lstrip()
    if len(text) <= limit:
        return text
    return text[: limit // 2] + " … " + text[len(text) - limit // 2 :]


def end_of_signature(text: str, begin: int) -> int:
    """Return the position after the parentheses of the signature at `begin`; `begin` if there are no balanced ones."""
    depth = 0
    for place in range(max(text.find("(", begin), begin), len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1 if text[place] == ")" else begin
    return begin


def one_row_each(answer: Any, rows: int, which: str = "the first output", others: str = "") -> Any:
    """Return an output as logits (rows, C) or class labels (rows,). Raises WorkerError for any other output."""
    needs = "; accuracy needs one row of logits per input, or one class label" + others
    if not isinstance(answer, np.ndarray):
        raise WorkerError(which + " is no tensor" + needs)
    wide = answer.ndim >= 2 and all(size == 1 for size in answer.shape[2:])
    labels = answer.dtype in (np.int32, np.int64) and answer.size == rows and answer.ndim <= 2
    if not (wide or labels) or answer.shape[0] != rows or answer.dtype.kind not in "fiub":
        raise WorkerError(which + " is " + str(answer.dtype) + " " + str(list(answer.shape)) + needs)
    if labels and answer.size and answer.min() < 0:
        raise WorkerError(which + " is taken for class labels, and holds " + str(int(answer.min())) + others)
    return answer.reshape(rows) if labels else answer.reshape(rows, -1)


def class_maps(answer: Any, rows: int, which: str = "the first output", others: str = "") -> Any:
    """Return the most likely class of each place (rows, …) as uint8, for an output (rows, C, …); an output of whole
    numbers holds the classes already. Raises WorkerError for any other output, and for NaN or infinite numbers."""
    needs = "; a class map needs one number for each class of each pixel, and at most 256 classes" + others
    if not isinstance(answer, np.ndarray):
        raise WorkerError(which + " is no tensor" + needs)
    whole = answer.dtype.kind in "iu" and answer.ndim >= 2
    numbers = answer.dtype.kind == "f" and answer.ndim >= 3 and answer.shape[1] <= 256
    if not (whole or numbers) or answer.shape[0] != rows:
        raise WorkerError(which + " is " + str(answer.dtype) + " " + str(list(answer.shape)) + needs)
    if whole and answer.size and not 0 <= answer.min() <= answer.max() < 256:
        raise WorkerError(which + " holds classes from " + str(answer.min()) + " to " + str(answer.max()) + needs)
    if numbers and not np.isfinite(answer).all():
        raise WorkerError("gives NaN or infinite outputs")
    return (answer if whole else answer.argmax(axis=1)).astype(np.uint8)


def detections(answer: Any, rows: int, which: str = "the first output", others: str = "") -> Any:
    """Return what non-maximum suppression leaves of an output of decoded boxes and scores (rows, 4 + C, L), as float32
    (rows, KEPT, 6): corners x1, y1, x2, y2, score and class, with the highest score first; rows of class −1 are unused.

    An output (rows, K, 6) with K up to KEPT, whose classes are whole numbers from −1, comes from a file with the
    suppression in its graph, and is only filled up with unused rows. Raises WorkerError for any other output, and for
    NaN or infinite numbers.
    """
    if not isinstance(answer, np.ndarray) or answer.ndim != 3 or answer.dtype.kind != "f" or answer.shape[0] != rows:
        got = str(answer.dtype) + " " + str(list(answer.shape)) if isinstance(answer, np.ndarray) else "no tensor"
        raise WorkerError(which + " is " + got + "; detection needs corners and scores (batch, 4 + C, L)" + others)
    if not np.isfinite(answer).all():
        raise WorkerError("gives NaN or infinite outputs")
    if finished(answer):
        found = np.zeros((rows, KEPT, 6), np.float32)
        found[..., 5] = -1
        found[:, : answer.shape[1]] = answer
        return found
    if answer.shape[1] < 5:
        raise WorkerError(which + " is " + str(list(answer.shape)) + "; it has no scores behind four corners" + others)
    return np.stack([suppressed(one) for one in answer.astype(np.float32)])


def finished(answer: Any) -> bool:
    """Whether an output (rows, K, 6) holds detections rather than scores at six places: its classes are whole."""
    if answer.shape[2] != 6 or not 0 < answer.shape[1] <= KEPT:
        return False
    labels = answer[..., 5]
    return bool(((labels == np.floor(labels)) & (labels >= -1)).all())


def suppressed(raw: Any, lowest: float = LOWEST, overlap: float = OVERLAP, most: int = KEPT) -> Any:
    """Return the detections (KEPT, 6) of one image from corners and scores (4 + C, L); see `detections`.

    Greedy non-maximum suppression: of the detections of a class with a score above `lowest`, in order of their scores,
    one is kept if it overlaps with none that was kept before by more than `overlap`; `most` are kept of an image.
    """
    classes, places = np.nonzero(raw[4:] > np.float32(lowest))
    order = np.argsort(-raw[4 + classes, places], kind="stable")[:FIRST]
    classes, places = classes[order], places[order]
    x1, y1, x2, y2 = raw[:4, places]
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    left = np.ones(len(order), bool)
    kept = np.zeros((KEPT, 6), np.float32)
    kept[:, 5] = -1
    for row in range(most):
        if not left.any():
            break
        k = int(left.argmax())
        kept[row] = (x1[k], y1[k], x2[k], y2[k], raw[4 + classes[k], places[k]], classes[k])
        width = np.maximum(np.minimum(x2, x2[k]) - np.maximum(x1, x1[k]), 0)
        height = np.maximum(np.minimum(y2, y2[k]) - np.maximum(y1, y1[k]), 0)
        both = width * height
        left &= (classes != classes[k]) | (both <= np.float32(overlap) * (areas + areas[k] - both))
        left[k] = False
    return kept


def require(onnxruntime: Any, provider: str) -> None:
    """Raise WorkerError if this onnxruntime does not have the provider."""
    offered = onnxruntime.get_available_providers()
    if provider not in offered:
        raise WorkerError("this onnxruntime offers " + ", ".join(offered) + "; " + provider + " is not among them")


def make_session(onnxruntime: Any, plan: dict[str, Any], model: str, profile_prefix: str = "") -> Any:
    """Create a session on the plan's provider, or `Generating` for the two files of a model that generates.

    Raises WorkerError if the model cannot be loaded or runs elsewhere.
    """
    session = one_session(onnxruntime, plan, model, profile_prefix)
    settings = settings_of(session)
    if settings is None:
        return session
    if plan["binding"] == "io":
        raise WorkerError("it generates, so its inputs cannot be bound before the call; set binding to run")
    prefix = profile_prefix + "-decoder" if profile_prefix else ""
    decoder = one_session(onnxruntime, plan, decoder_of(model), prefix)
    length = None if plan["mode"] == "predict" else plan["sequence_length"]
    return Generating(session, decoder, settings, length)


def settings_of(session: Any) -> dict[str, Any] | None:
    """Return the settings of generation in the metadata of a model that edgekd exported; None for other models."""
    known = session.get_modelmeta().custom_metadata_map
    return json.loads(known["generation"]) if "edgekd" in known and "generation" in known else None


def decoder_of(model: str) -> str:
    """Return the file of the decoder, which belongs to the file of the encoder: NAME.decoder.onnx for NAME.onnx."""
    return os.path.splitext(model)[0] + ".decoder.onnx"  # noqa: PTH122


def opened(model: str) -> Generating:
    """Open both files of a model that generates, on the CPU, to generate up to the end token. Raises WorkerError if it
    does not generate.
    """
    import onnxruntime

    session = make_session(onnxruntime, {**DEFAULTS, "mode": "predict"}, model)
    if not isinstance(session, Generating):
        raise WorkerError("its metadata have no settings of generation")
    return session


class Generating:
    """The encoder and the decoder of a model that generates, as one session, which maps source ids to target ids.

    The encoder's outputs are inputs of the decoder under the same names: keys and values of the cross-attention, and
    the mask of the padding. The decoder takes one token per row and `past_NAME`, and gives `logits` and `present_NAME`,
    which is the next call's `past_NAME`; at first its third axis, the number of earlier tokens, is 0.
    """

    def __init__(self, encoder: Any, decoder: Any, settings: dict[str, Any], length: int | None) -> None:
        self.encoder, self.decoder, self.settings, self.length = encoder, decoder, settings, length
        self.memory_names = [spec.name for spec in encoder.get_outputs()]
        self.past = [spec for spec in decoder.get_inputs() if spec.name.startswith("past_")]
        self.names = [spec.name for spec in decoder.get_outputs()]
        self.clock = time.perf_counter
        self.first_token_s: list[float] = []
        self.steps = 0

    def begin(self, ids: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the decoder is fed for sources (B, S) at every step, and the empty past."""
        name = self.encoder.get_inputs()[0].name
        memory = dict(zip(self.memory_names, self.encoder.run(None, {name: ids})))
        past = {spec.name: np.zeros((len(ids), spec.shape[1], 0, spec.shape[3]), np.float32) for spec in self.past}
        return memory, past

    def step(self, tokens: Any, memory: dict[str, Any], past: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the logits (B, V) after the tokens (B,), and the past that includes these tokens.

        Raises WorkerError for NaN or infinite logits, which the generated tokens would not show.
        """
        fed = {"token": np.asarray(tokens, np.int32)[:, None], **memory, **past}
        found = dict(zip(self.names, self.decoder.run(None, fed)))
        logits = found.pop("logits")
        if not np.isfinite(logits.max(axis=1)).all():
            raise WorkerError("gives NaN or infinite outputs")
        return logits, {"past_" + name[len("present_") :]: array for name, array in found.items()}

    def greedy(self, ids: Any) -> Any:
        """Return the most likely next token at every step, (B, T), for sources (B, S)."""
        start, end, padding = (self.settings[key] for key in ("start", "end", "padding"))
        memory, past = self.begin(ids)
        tokens, done, found = np.full(len(ids), start), np.zeros(len(ids), bool), []
        for _ in range(self.limit()):
            logits, past = self.step(tokens, memory, past)
            logits[:, padding] = -np.inf
            tokens = np.where(done, padding, logits.argmax(axis=1))
            self.mark()
            done |= (tokens == end) & (self.length is None)
            found.append(np.where(done, padding, tokens))
            if done.all():
                break
        return np.stack(found, axis=1)

    def beam(self, ids: Any) -> Any:
        """Return the best of `beam` hypotheses, (1, T), for one source (1, S).

        A hypothesis is scored by its log-probability / its number of tokens ** `length_penalty` (Wu et al. 2016, arXiv
        1609.08144, section 7, has another form of that divisor).
        """
        start, end, width = (self.settings[key] for key in ("start", "end", "beam"))
        memory, past = self.begin(ids)
        alive, scores, tokens = [[]], np.zeros(1), np.array([start])  # type: ignore[var-annotated]
        ended: list[tuple[float, list[int]]] = []
        for number in range(1, self.limit() + 1):
            logits, past = self.step(tokens, memory, past)
            logits[:, [self.settings["padding"], *([] if self.length is None else [end])]] = -np.inf
            total = scores[:, None] + log_softmax(logits)
            rows, choices = np.divmod(largest(total.ravel(), 2 * width), logits.shape[1])
            self.mark()
            divisor = number ** self.settings["length_penalty"]
            found = zip(rows.tolist(), choices.tolist())
            best = [(row, token) for row, token in found if np.isfinite(total[row, token])]
            ended += [(total[row, end] / divisor, alive[row]) for row, token in best[:width] if token == end]
            kept = [(row, token) for row, token in best if token != end][:width]
            if len(ended) >= width or number == self.limit():
                if not ended:
                    ended = [(total[row, token] / divisor, [*alive[row], token]) for row, token in kept[:1]]
                break
            rows, tokens = np.array([row for row, _ in kept]), np.array([token for _, token in kept])
            alive = [[*alive[row], token] for row, token in kept]
            scores, past = total[rows, tokens], {name: array[rows] for name, array in past.items()}
            if number == 1:
                memory = {name: np.repeat(array, len(rows), axis=0) for name, array in memory.items()}
        return np.array([max(ended)[1]], np.int64).reshape(1, -1)

    def limit(self) -> int:
        """Return the largest number of steps."""
        return int(self.length or self.settings["max_length"])

    def mark(self) -> None:
        """Note the time of the first token, and count the tokens."""
        if self.steps == 0:
            self.first_token_s.append(self.clock() - self.begun)
        self.steps += 1

    def run(self, names: Any, feed: dict[str, Any]) -> list[Any]:
        """Generate target ids (B, T) for the only input; if nothing limits T, they are padded to `max_length`."""
        (ids,) = feed.values()
        self.begun, self.steps = self.clock(), 0
        if self.settings["beam"] == 1:
            found = self.greedy(ids)
        else:
            rows = [self.beam(ids[row : row + 1]) for row in range(len(ids))]
            wide = max(row.shape[1] for row in rows)
            found = np.concatenate([self.filled(row, wide) for row in rows])
        return [self.filled(found, self.limit())]

    def filled(self, ids: Any, length: int) -> Any:
        """Return ids (B, T), padded to the length."""
        return np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=self.settings["padding"])

    def get_inputs(self) -> Any:
        """Return the inputs of the encoder."""
        return self.encoder.get_inputs()

    def get_outputs(self) -> Any:
        """Return the only output, the target ids."""
        return [Spec("tokens", ["batch", "tokens"], "tensor(int64)")]

    def get_providers(self) -> Any:
        """Return the providers of the decoder, which are those of the encoder."""
        return self.decoder.get_providers()

    def get_provider_graph_assignment_info(self) -> Any:
        """Return which provider runs which nodes of both graphs; empty if this build does not report it."""
        asked = "get_provider_graph_assignment_info"
        sessions = [session for session in (self.encoder, self.decoder) if hasattr(session, asked)]
        return [graph for session in sessions for graph in getattr(session, asked)()]

    def end_profiling(self) -> str:
        """Write the events of both profiles to one file; a node of the decoder gets the time of all its calls."""
        files = [str(session.end_profiling()) for session in (self.encoder, self.decoder)]
        events = []
        for number, path in enumerate(files):
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                events.append(json.load(file))
            for event in events[number] if number else ():
                event["name"] = "decoder/" + event["name"]
                event["dur"] = event.get("dur", 0) * self.steps
        with open(files[0], "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(events[0] + events[1], file)
        return files[0]


class Spec:
    """Name, shape and type of an output, as onnxruntime describes them."""

    def __init__(self, name: str, shape: list[Any], type: str) -> None:
        self.name, self.shape, self.type = name, shape, type


def largest(values: Any, count: int) -> Any:
    """Return the places of the largest values, the largest first."""
    places = np.argpartition(-values, min(count, len(values)) - 1)[:count]
    return places[np.argsort(-values[places], kind="stable")]


def log_softmax(logits: Any) -> Any:
    """Return the logarithms of the softmax of logits (B, V)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def one_session(onnxruntime: Any, plan: dict[str, Any], model: str, profile_prefix: str = "") -> Any:
    """Create the session of one file on the plan's provider. Raises WorkerError as `make_session` does."""
    provider = plan["provider"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = plan["intra_op_threads"]
    options.inter_op_num_threads = plan["inter_op_threads"]
    options.enable_cpu_mem_arena = plan["arena"]
    options.log_severity_level = 3  # errors only, because warnings would mix with other programs' output
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[plan["graph_level"]])
    spinning = "1" if plan["allow_spinning"] else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    if plan["precise_int8"]:  # x86 without VNNI: use slower kernels that do not saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile_prefix:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
        if plan["optimized"]:
            options.optimized_model_filepath = plan["optimized"]
    try:
        for library in plan["custom_ops"]:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(
            model, options, providers=[(provider, plan["provider_options"])], enable_fallback=False
        )
    except Exception as error:
        raise explain(error, plan, "onnxruntime cannot load it") from error
    if session.get_providers()[0] != provider:
        raise WorkerError(provider + " was asked for, onnxruntime assigned " + ", ".join(session.get_providers()))
    return session


def batch_axis(spec: Any, inputs: Iterable[Any], outputs: Iterable[Any]) -> int | None:
    """Return the batch axis of an input, derived from the names of its dimensions; None for an unbatched input.

    A first dimension is the batch if its name means batch; otherwise another dimension with such a name is the batch. A
    first dimension is also the batch if all inputs and outputs share its name (or have no name there), unless the name
    means something else. A fixed first dimension is the batch if it is 1 or also the first dimension of an output.
    """
    shape = list(spec.shape or ())
    if not shape:
        return None
    firsts = [other.shape[0] for other in (*inputs, *outputs) if other.shape]
    elsewhere = [axis for axis, size in enumerate(shape) if axis and str(size).lower().startswith("batch")]
    first = shape[0]
    if means_batch(first):
        return 0
    if elsewhere:
        return elsewhere[0]
    if is_size(first):
        taken = [other.shape[0] for other in outputs if other.shape]
        return 0 if len(shape) > 1 and (first == 1 or first in taken or not taken) else None
    if nameless(first):
        return 0 if all(nameless(size) for size in firsts) else None
    other = any(word in first.lower() for word in OTHER_NAMES) or len(first) == 1
    return 0 if not other and all(size == first for size in firsts) else None


def means_batch(size: Any) -> bool:
    """Whether the name of a dimension means the batch."""
    return isinstance(size, str) and (size.lower() in BATCH_NAMES or size.lower().startswith("batch"))


def nameless(size: Any) -> bool:
    """Whether a dimension is dynamic and has no name, or only a name that a converter generated."""
    return not is_size(size) and (
        not isinstance(size, str) or re.fullmatch(r"(unk__\d+|unk|\?|None|)", size) is not None
    )


def is_size(size: Any) -> bool:
    """Whether a dimension is fixed; a dynamic one is a name, None or below 0."""
    return isinstance(size, int) and size >= 0


def type_name(spec: Any) -> str:
    """Return the short type name: `float` for tensor(float)."""
    text = str(spec.type)
    return text[len("tensor(") : -1] if text.startswith("tensor(") else text


def listed(shape: Iterable[Any]) -> str:
    """Return a shape as the model declares it: `[batch,3,height,width]`."""
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"


class Feeds:
    """The inputs for the calls: rows of the plan's data in turn, constants, or seeded random arrays."""

    def __init__(self, session: Any, plan: dict[str, Any]) -> None:
        self.inputs, outputs = session.get_inputs(), session.get_outputs()
        if not self.inputs:
            raise WorkerError("the model has no inputs")
        self.plan, self.length, self.padding = plan, plan["sequence_length"], plan["padding"]
        self.known_names()
        self.axes = {spec.name: self.axis_of(spec, outputs) for spec in self.inputs}
        self.axes = {name: axis for name, axis in self.axes.items() if axis is not None}
        sizes = [spec.shape[self.axes[spec.name]] for spec in self.inputs if spec.name in self.axes]
        self.fixed = bool(sizes) and is_size(sizes[0])
        self.batch = (sizes[0] if self.fixed else self.batch_size()) if sizes else 1
        self.bound = self.sizes_by_name()
        self.random, self.count = False, 0
        self.rows: dict[str, Any] = {}
        self.same: dict[str, Any] = {}
        self.ready: list[dict[str, Any]] = []
        data = self.read_data() if plan["inputs"] is not None else {}
        for spec in self.inputs:
            if spec.name in plan["values"]:
                self.same[spec.name] = self.constant(spec, plan["values"][spec.name])
            elif spec.name in data:
                self.sort(spec, data[spec.name])
        if plan["inputs"] is not None:
            self.take_data()
        else:
            self.draw()

    def known_names(self) -> None:
        """Raise WorkerError if the plan names an input that the model does not have."""
        names = [spec.name for spec in self.inputs]
        for key in ("shapes", "values", "batch_axes"):
            for name in self.plan[key]:
                if name and name not in names:
                    raise WorkerError("it has no input " + repr(name) + "; its inputs are " + ", ".join(names))

    def axis_of(self, spec: Any, outputs: Any) -> int | None:
        """Return the batch axis of an input: the plan's value, or else the one derived from the names of dimensions."""
        said = self.plan["batch_axes"]
        if spec.name not in said and "" not in said:
            return batch_axis(spec, self.inputs, outputs)
        axis = said.get(spec.name, said.get(""))
        if axis is not None and not 0 <= axis < len(spec.shape):
            what = "axis " + str(axis) + " of " + spec.name + " cannot be its batch"
            raise WorkerError(what + "; it has the axes " + listed(spec.shape))
        return None if axis is None else int(axis)

    def batch_size(self) -> int:
        """Return the number of inputs per call: from a given shape, or else the plan's batch size."""
        if self.plan["mode"] not in ("throughput", "predict"):
            for name, axis in self.axes.items():
                if axis is not None and len(self.plan["shapes"].get(name, ())) > axis:
                    return int(self.plan["shapes"][name][axis])
        return int(self.plan["batch_size"])

    def sizes_by_name(self) -> dict[str, int]:
        """Return the sizes of named dynamic dimensions from the given shapes. Raises WorkerError if a shape does not
        fit.
        """
        bound: dict[str, int] = {}
        for spec in self.inputs:
            given, declared = self.plan["shapes"].get(spec.name), list(spec.shape or ())
            if given is None:
                continue
            fits = not declared or len(given) == len(declared)
            if not fits or any(is_size(size) and size != got for size, got in zip(declared, given)):
                what = "input " + spec.name + " takes " + listed(declared)
                raise WorkerError(what + "; the shape given is " + listed(given))
            bound.update({size: got for size, got in zip(declared, given) if isinstance(size, str) and size})
        return bound

    def sizes(self, spec: Any) -> list[int]:
        """Return the shape to feed to an input. Raises WorkerError that lists free dimensions of unknown size."""
        given, sizes, free = self.plan["shapes"].get(spec.name), [], []
        declared = list(spec.shape or ()) or [None] * len(given or ())
        for axis, size in enumerate(declared):
            if is_size(size):
                sizes.append(size)
            elif self.axes.get(spec.name) == axis:
                sizes.append(self.batch)
            elif given is not None:
                sizes.append(int(given[axis]))
            elif size in self.bound:
                sizes.append(self.bound[size])
            else:
                sizes.append(self.length or 0)
                free += [] if self.length else [str(axis) + (" (" + size + ")" if isinstance(size, str) else "")]
        if free:
            raise WorkerError(self.wanted(spec, free))
        return sizes

    def wanted(self, spec: Any, free: list[str]) -> str:
        """Return the error text for free dimensions: which ones they are, and how to set them."""
        one = len(free) == 1
        which = "the size of axis " + free[0] + " is" if one else "the sizes of axes " + ", ".join(free) + " are"
        axis = self.axes.get(spec.name)
        words = [
            str(size if is_size(size) else 1 if place == axis else size or "SIZE").upper()
            for place, size in enumerate(spec.shape)
        ]
        how = "give its shape, as --shape " + spec.name + "=" + ",".join(words) + ", or real inputs, by --data"
        said = ", or say with --batch-axis which one is the batch" if axis is None else ""
        what = "input " + spec.name + " is " + type_name(spec) + " " + listed(spec.shape)
        return str(what + ", and " + which + " free; " + how + said)

    def constant(self, spec: Any, value: Any) -> Any:
        """Return an array of the input's type with a value that is used for all calls."""
        dtype = DTYPES.get(spec.type)
        if dtype is None:
            raise WorkerError("input " + spec.name + " is " + spec.type + ", which cannot be given a value")
        try:
            array = np.asarray(value)
            array = array.astype(str).astype(object) if dtype is np.object_ else cast(array, np.dtype(dtype))
        except (ValueError, TypeError, OverflowError) as error:
            what = "input " + spec.name + " is " + type_name(spec)
            raise WorkerError(what + "; it cannot be " + json.dumps(value)[:100]) from error
        declared = list(spec.shape or ())
        if array.ndim == len(declared) and array.ndim:
            self.fits(spec, array.shape)
            return array
        sizes = self.sizes(spec)
        try:
            return np.ascontiguousarray(np.broadcast_to(array, sizes)).reshape(sizes)
        except ValueError as error:
            what = "input " + spec.name + " takes " + listed(declared) + "; the value given is " + listed(array.shape)
            raise WorkerError(what) from error

    def fits(self, spec: Any, shape: Any, batch: int | None = None) -> None:
        """Raise WorkerError if this shape does not fit the input; its axis `batch` may have any size."""
        wanted = list(spec.shape or ())
        alike = len(wanted) == len(shape) and all(
            axis == batch or not is_size(size) or size == got for axis, (size, got) in enumerate(zip(wanted, shape))
        )
        if not alike:
            what = "input " + spec.name + " takes " + listed(wanted)
            raise WorkerError(what + "; what is given for it is " + listed(shape))

    def read_data(self) -> dict[str, Any]:
        """Read the plan's data file as arrays by input name, in the input's type. Raises WorkerError if they do not
        fit.
        """
        if str(self.plan["inputs"]).endswith(".npz"):
            with np.load(self.plan["inputs"], allow_pickle=False) as arrays:
                data = {name: arrays[name] for name in arrays.files}
            self.complete_data(data)
        else:
            rows = np.load(self.plan["inputs"], mmap_mode="r")
            rows = Packed(rows) if self.plan["packed"] else rows
            open_ = [spec for spec in self.inputs if spec.name not in self.plan["values"]]
            if len(open_) != 1 or not self.suits(open_[0], rows):
                takes = ", ".join(spec.type + " " + str(list(spec.shape)) for spec in self.inputs)
                got = str(rows.dtype) + " " + str(list(rows.shape))
                raise WorkerError("the model takes " + takes + "; the data is " + got)
            data = {open_[0].name: rows}
        for spec in self.inputs:
            if spec.type == "tensor(string)" and spec.name in data:
                data[spec.name] = data[spec.name].astype(str).astype(object)
            elif spec.name in data and DTYPES.get(spec.type) != data[spec.name].dtype:
                what = "input " + spec.name + " is " + type_name(spec)
                raise WorkerError(what + "; the data's is " + str(data[spec.name].dtype))
        return data

    def suits(self, spec: Any, rows: Any) -> bool:
        """Whether the rows are inputs stacked along the first axis."""
        axis = self.axes.get(spec.name)
        wanted = [size for place, size in enumerate(spec.shape) if place != axis]
        alike = len(wanted) == rows.ndim - 1 and all(
            not is_size(size) or size == got for size, got in zip(wanted, rows.shape[1:])
        )
        return alike and (DTYPES.get(spec.type) == rows.dtype or spec.type == "tensor(string)")

    def complete_data(self, data: dict[str, Any]) -> None:
        """Raise WorkerError if an array belongs to no input or if an input has no array."""
        names = [spec.name for spec in self.inputs]
        for name in data:
            if name not in names:
                raise WorkerError("the data hold an array " + repr(name) + "; its inputs are " + ", ".join(names))
        for name in names:
            if name not in data and name not in self.plan["values"]:
                raise WorkerError("the data hold no array for input " + repr(name) + "; add it, or give it by --input")

    def sort(self, spec: Any, array: Any) -> None:
        """Store an array either as rows, one per example, or as one constant input for all calls."""
        axis, rank = self.axes.get(spec.name), len(spec.shape or ())
        in_file = not str(self.plan["inputs"]).endswith(".npz")
        if in_file or (axis is None and array.ndim == rank + 1):
            self.rows[spec.name] = array
        elif axis is not None and array.ndim == rank:
            self.fits(spec, array.shape, axis)
            self.rows[spec.name] = np.moveaxis(array, axis, 0)
        elif axis is not None and array.ndim == rank - 1:
            whole = np.expand_dims(array, axis)
            self.fits(spec, whole.shape, axis)
            self.same[spec.name] = whole
        else:
            self.fits(spec, array.shape)
            self.same[spec.name] = array

    def take_data(self) -> None:
        """Prepare the inputs of the timed calls from the data."""
        counts = {name: len(array) for name, array in self.rows.items()}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            told = ", ".join(name + " " + str(count) for name, count in counts.items())
            raise WorkerError("the data should have equally many examples for all inputs, at least one; got " + told)
        self.count = next(iter(counts.values()), 1)
        if any(name not in self.axes for name in self.rows):
            self.batch = 1
        if self.plan["mode"] != "predict":
            timed = self.timed_rows()
            different = math.ceil(len(timed) / self.batch)
            count = min(max(2, ROTATED // max(self.batch, 1)), different)
            self.ready = [self.take(timed, number) for number in range(count)]

    def draw(self) -> None:
        """Make random inputs for all inputs that have no value."""
        drawn = [spec for spec in self.inputs if spec.name not in self.same]
        self.random = bool(drawn)
        rng = np.random.Generator(np.random.PCG64(0))
        shapes = {spec.name: self.sizes(spec) for spec in drawn}
        for _ in range(8 if drawn else 1):
            feed = {spec.name: random_input(spec, shapes[spec.name], rng) for spec in drawn}
            self.ready.append({spec.name: feed.get(spec.name, self.same.get(spec.name)) for spec in self.inputs})

    def timed_rows(self) -> Any:
        """Return the indices of the rows to time: all rows, or the sequences whose length is nearest to the plan's."""
        rows = next(iter(self.rows.values())) if len(self.rows) == 1 else None
        if self.length is None or self.padding is None or rows is None or rows.ndim != 2:
            return np.arange(self.count)
        filled = rows[:, ::-1] != self.padding
        lengths = np.where(filled.any(axis=1), filled.shape[1] - filled.argmax(axis=1), 1)
        self.length = int(lengths[np.abs(lengths - self.length).argmin()])
        return np.flatnonzero(lengths == self.length)

    def take(self, places: Any, number: int) -> dict[str, Any]:
        """Return the inputs of batch `number` from the rows at `places`; after the last row it starts again."""
        chosen = np.arange(number * self.batch, (number + 1) * self.batch) % len(places)
        return self.feed(places[chosen])

    def feed(self, places: Any) -> dict[str, Any]:
        """Return the inputs of one call with the rows at these indices."""
        feed = {}
        for spec in self.inputs:
            axis = self.axes.get(spec.name)
            if spec.name not in self.rows:
                array = self.same[spec.name]
                widened = axis is not None and array.shape[axis] == 1 and not is_size(spec.shape[axis])
                feed[spec.name] = np.repeat(array, len(places), axis=axis) if widened else array
            elif axis is None:
                feed[spec.name] = contiguous(self.rows[spec.name][places[0]])
            else:
                rows = self.cut(self.rows[spec.name][places]) if len(self.rows) == 1 else self.rows[spec.name][places]
                feed[spec.name] = contiguous(np.moveaxis(rows, 0, axis))
        return feed

    def cut(self, rows: Any) -> Any:
        """Remove the columns that are padding in all rows."""
        if self.padding is not None and rows.ndim == 2:
            used = np.flatnonzero((rows != self.padding).any(axis=0))
            rows = rows[:, : used[-1] + 1 if len(used) else 1]
        return np.ascontiguousarray(rows)

    def fed(self) -> str:
        """Return the inputs of a call as text: `x float 1×3×224×224`; empty if they differ from call to call."""
        if not self.ready:
            return ""
        return ", ".join(
            spec.name + " " + type_name(spec) + " " + ("×".join(map(str, self.ready[0][spec.name].shape)) or "scalar")
            for spec in self.inputs
        )


class Packed:
    """Examples of different shapes from a plan's `packed` file; it has what Feeds uses of an array."""

    def __init__(self, content: Any) -> None:
        count, axes = (int(size) for size in content[:16].view("<i8"))
        self.shapes = content[16 : 16 + 8 * count * axes].view("<i8").reshape(count, axes)
        self.begins = 16 + 8 * count * axes + np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1))])
        self.content, self.dtype, self.ndim = content, np.dtype(np.uint8), axes + 1
        alike = [int(sizes[0]) if (sizes == sizes[0]).all() else None for sizes in self.shapes.T]
        self.shape = (count, *alike)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, places: Any) -> Any:
        (place,) = places
        return self.content[self.begins[place] : self.begins[place + 1]].reshape(1, *self.shapes[place])


def contiguous(array: Any) -> Any:
    """Return the array in C order; a scalar remains a scalar."""
    return np.asarray(array, order="C")


def cast(array: Any, dtype: Any) -> Any:
    """Convert the array to another type. Raises ValueError if that would change a value."""
    if array.dtype.kind not in "biuf" or (dtype.kind == "b" and not np.isin(array, (0, 1)).all()):
        raise ValueError("no such value")
    result = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(result, array):
        raise ValueError("no such value")
    return result


def random_input(spec: Any, shape: list[int], rng: np.random.Generator) -> Any:
    """Return a random array of the input's type. Raises WorkerError for types that cannot be random."""
    if spec.type not in DTYPES or spec.type == "tensor(string)":
        how = ", by --input or --data" if spec.type in DTYPES else ""
        raise WorkerError("input " + spec.name + " is " + spec.type + "; give real inputs for it" + how)
    dtype = np.dtype(DTYPES[spec.type])
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    high = 256 if dtype == np.uint8 else 128 if dtype == np.int8 else 2  # wide integers are often indices
    return rng.integers(0, high, shape).astype(dtype)


class Caller:
    """One session with its prepared inputs, which are used in turn."""

    def __init__(self, onnxruntime: Any, session: Any, feeds: Feeds, plan: dict[str, Any]) -> None:
        self.session, self.feeds, self.batch, self.plan = session, feeds.ready, feeds.batch, plan
        self.fed, self.random = feeds.fed(), feeds.random
        self.bound = []
        for feed in self.feeds if plan["binding"] == "io" else []:
            binding = session.io_binding()
            for name, array in feed.items():
                binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            for output in session.get_outputs():
                binding.bind_output(output.name)
            self.bound.append(binding)

    def __call__(self, number: int) -> None:
        """Call the model with the prepared inputs of this number."""
        try:
            if self.bound:
                self.session.run_with_iobinding(self.bound[number % len(self.bound)])
            else:
                self.session.run(None, self.feeds[number % len(self.feeds)])
        except Exception as error:
            raise self.failed(error) from error

    def answer(self, feed: dict[str, Any], place: int = 0) -> Any:
        """Run the model and return the output at index `place`."""
        try:
            return self.session.run(None, feed)[place]
        except Exception as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> WorkerError:
        """Return the error of a failed call, with the inputs that the model was fed; a WorkerError as it is."""
        if isinstance(error, WorkerError):
            return error
        told = explain(error, self.plan, "the model fails when it runs")
        return WorkerError(str(told) + "; it was fed " + self.fed) if self.fed and not wants_memory(error) else told

    def check_outputs(self) -> None:
        """Raise WorkerError for outputs that are NaN or infinite; this makes one call that is not timed."""
        try:
            if self.bound:
                self.session.run_with_iobinding(self.bound[0])
                outputs = self.bound[0].copy_outputs_to_cpu()
            else:
                outputs = self.session.run(None, self.feeds[0])
        except Exception as error:
            raise self.failed(error) from error
        for spec, array in zip(self.session.get_outputs(), outputs):
            if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
                drawn = " for seeded random inputs; give it real ones, by --data or --input" if self.random else ""
                raise WorkerError("gives NaN or infinite outputs (" + spec.name + ")" + drawn)


def time_calls(call: Caller, plan: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Time the first call, warm up until stable (bounded), then time each call; very short calls are timed in inner
    loops.
    """

    def once(number: int) -> float:
        begin = clock()
        call(number)
        return clock() - begin

    first = once(0)
    warmup, warm = warm_up(once, plan["warmup_s"])
    typical = float(np.median(warmup[-10:])) if warmup else first
    inner = math.ceil(SHORTEST_S / typical) if 0 < typical < SHORTEST_S else 1
    energy = energy_counter(plan["provider"], plan["provider_options"].get("device_id", "0"))
    spent_before = energy() if energy else None
    latency: list[float] = []
    begin = clock()
    while len(latency) < plan["max_calls"]:
        start = clock()
        if len(latency) >= plan["min_calls"] and start - begin >= plan["max_s"]:
            break
        number = len(latency) * inner
        start = clock()
        for offset in range(inner):
            call(len(latency) if plan["steered"] else number + offset)
        latency.append((clock() - start) / inner)
    spent = energy() - spent_before if energy and spent_before is not None else None
    return {
        "first_call_s": first,
        "warmup_s": warmup,
        "warm": warm,
        "inner_calls": inner,
        "latency_s": [round(seconds, 9) for seconds in latency],
        "energy_j": spent if spent is not None and spent >= 0 else None,  # the counter restarts at 0 after its maximum
    }


def generate(session: Any, call: Caller, plan: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Time the generation of whole sequences, and the time to the first token of each."""
    if not isinstance(session, Generating) or session.length is None:
        raise WorkerError("mode generate needs a model that generates, and `sequence_length`")
    found = time_calls(call, plan, clock)
    timed = len(found["latency_s"]) * found["inner_calls"]
    found["first_token_s"] = [round(seconds, 9) for seconds in session.first_token_s[-timed:]]
    return {**found, "tokens": session.length * call.batch}


def pair(
    onnxruntime: Any, call: Caller, baseline: tuple[Any, float], plan: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    """Time the model and the baseline by turns in short blocks, so that a slow machine slows down both.

    The order of blocks is baseline, model, model, baseline, …; each block has the same number of calls.
    """
    session, load_s = baseline
    names = (blame(plan), "")
    with blaming(names[0]):
        feeds = Feeds(session, plan)
        callers = (Caller(onnxruntime, session, feeds, plan), call)
    if feeds.batch != call.batch:
        raise WorkerError(names[0] + "it takes " + str(feeds.batch) + " inputs a call, the model " + str(call.batch))
    if [array.shape for array in feeds.ready[0].values()] != [array.shape for array in call.feeds[0].values()]:
        raise WorkerError(names[0] + "it is fed " + feeds.fed() + ", the model " + call.fed + "; give both the same")
    firsts, typical = _warm_pair(callers, names, plan, clock)
    inner = math.ceil(SHORTEST_S / min(typical)) if 0 < min(typical) < SHORTEST_S else 1
    size = max(3, math.ceil(min(plan["max_calls"], plan["block_s"] / (inner * max(*typical, 1e-9)))))
    spent: tuple[list[float], list[float]] = ([], [])
    begin = clock()
    while len(spent[1]) < plan["max_calls"]:
        if len(spent[1]) >= plan["min_calls"] and clock() - begin >= plan["max_s"]:
            break
        turn = len(spent[1])
        for place in (0, 1) if turn // size % 2 == 0 else (1, 0):
            with blaming(names[place]):
                numbers = range(turn, turn + size)
                spent[place].extend(_block(callers[place], numbers, inner, clock, plan["steered"]))
    with blaming(names[0]):
        callers[0].check_outputs()
    return {
        "first_call_s": firsts[1],
        "inner_calls": inner,
        "block_calls": size,
        "latency_s": [round(seconds, 9) for seconds in spent[1]],
        "baseline": {
            "load_s": load_s,
            "first_call_s": firsts[0],
            "latency_s": [round(seconds, 9) for seconds in spent[0]],
            "fingerprint": fingerprint(onnxruntime, session, plan, sha256_of(plan["baseline"]), feeds),
        },
    }


def _warm_pair(
    callers: tuple[Caller, Caller], names: tuple[str, str], plan: dict[str, Any], clock: Clock
) -> tuple[list[float], list[float]]:
    """Return the seconds of each model's first call, and of a typical call after warm-up."""
    firsts, typical = [], []
    for caller, name in zip(callers, names):
        with blaming(name):
            firsts.append(_timed(caller, 0, clock))
            warmup, _ = warm_up(lambda number, caller=caller: _timed(caller, number, clock), plan["warmup_s"])  # type: ignore[misc]
        typical.append(float(np.median(warmup[-10:])) if warmup else firsts[-1])
    return firsts, typical


def _block(caller: Caller, numbers: Iterable[int], inner: int, clock: Clock, steered: bool = False) -> list[float]:
    """Return seconds per call, each the mean of `inner` calls; if `steered`, these calls all use the same inputs."""
    spent = []
    for number in numbers:
        start = clock()
        for offset in range(inner):
            caller(number if steered else number * inner + offset)
        spent.append((clock() - start) / inner)
    return spent


def warm_up(once: Callable[[int], float], limit_s: float) -> tuple[list[float], bool]:
    """Call until three blocks have medians within 2 %, or until `limit_s` of calls have passed.

    A block has ten calls. If three such blocks do not fit into the limit, blocks are shorter and 5 % is enough.
    """
    if limit_s <= 0:
        return [], False
    spent = [once(0)]
    medians: list[float] = []
    size, tolerance = (10, 1.02) if 30 * spent[0] <= limit_s else (max(1, int(limit_s / (4 * spent[0]))), 1.05)
    while sum(spent) < limit_s:
        block: list[float] = []
        while len(block) < size and (not block or sum(spent) + sum(block) < limit_s):
            block.append(once(len(spent) + len(block)))
        spent += block
        medians = [*medians[-2:], float(np.median(block))]
        if len(medians) == 3 and max(medians) <= tolerance * min(medians):
            return spent, True
    return spent, size < 10 and len(spent) > 1 and max(spent[-3:]) <= 1.1 * min(spent[-3:])


def throughput(callers: list[Caller], plan: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Count the calls that all sessions, each in its own thread, finish together in `max_s`."""
    for caller in callers:
        warm_up(lambda number, caller=caller: _timed(caller, number, clock), plan["warmup_s"])  # type: ignore[misc]
    counts = [0] * len(callers)
    failures: list[Exception] = []

    def work(place: int) -> None:
        try:
            while counts[place] < plan["min_calls"] or clock() < end:
                callers[place](counts[place])
                counts[place] += 1
        except WorkerError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(callers))]
    begin = clock()
    end = begin + plan["max_s"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {"calls": sum(counts), "elapsed_s": clock() - begin, "sessions": len(callers)}


def count(call: Caller, plan: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Make BLOCKS blocks of equally many calls, and mark the begin of the first block and the end of each.

    A block has `max_calls` calls, or fewer if all blocks would take longer than `max_s`.
    """
    begin, first = clock(), 0
    while first < UNCOUNTED and (first < 2 or clock() - begin < plan["max_s"] / BLOCKS):
        call(first)
        first += 1
    each = max((clock() - begin) / first, 1e-9)
    size = max(1, min(plan["max_calls"], int(plan["max_s"] / (BLOCKS * each))))
    begin = clock()
    mark()
    for _ in range(BLOCKS):
        for number in range(size):
            call(number)
        mark()
    return {"calls": BLOCKS * size, "block_calls": size, "elapsed_s": clock() - begin}


def mark() -> None:
    """Close a file descriptor that is not open, which an emulator sees and which has no other effect."""
    try:
        os.close(MARK)
    except OSError:
        pass  # this is what always happens


def _timed(caller: Caller, number: int, clock: Clock) -> float:
    begin = clock()
    caller(number)
    return clock() - begin


def profile(onnxruntime: Any, session: Any, call: Caller, plan: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the kernels from ONNX Runtime's profile and, if this build reports them, the nodes as assigned.

    This uses a separate session: profiling slows calls down, so no latency is measured in it.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        profiled = make_session(onnxruntime, plan, model, os.path.join(folder, "profile"))  # noqa: PTH118
        call.session = profiled
        if plan["binding"] == "io":
            call.bound = []
        for number in range(plan["min_calls"]):
            call(number)
        with open(profiled.end_profiling(), encoding="utf-8") as file:  # noqa: PTH123
            kernels = kernels_of(json.load(file))
    return {"kernels": kernels, "assigned": assigned_nodes(session)}


def assigned_nodes(session: Any) -> list[list[str]]:
    """Return provider, op type and name of each node before fusion; empty if this build does not report it."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    graphs = session.get_provider_graph_assignment_info()
    return [[graph.ep_name, node.op_type, node.name] for graph in graphs for node in graph.get_nodes()]


def kernels_of(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return provider, op type, node and µs per call of each kernel, without the first call, which includes set-up."""
    kernels: dict[tuple[str, ...], dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        args, node = event["args"], event["name"][: -len("_kernel_time")]
        key = (node, args.get("node_index", ""))
        kernel = kernels.setdefault(
            key, {"provider": args.get("provider", ""), "op_type": args["op_name"], "node": node, "us": []}
        )
        kernel["us"].append(event["dur"])
    for kernel in kernels.values():
        kernel["us"] = kernel["us"][1:] or kernel["us"]
    return list(kernels.values())


def predict(call: Caller, feeds: Feeds, plan: dict[str, Any]) -> list[int]:
    """Write the chosen output for every row to plan["outputs"] (.npy: float32, or uint8 for classes); return its
    shape."""
    if feeds.random:
        raise WorkerError("mode predict needs `inputs`")
    names = [spec.name for spec in call.session.get_outputs()]
    name = plan["output"] or names[0]
    if name not in names:
        raise WorkerError("it has no output " + repr(name) + "; its outputs are " + ", ".join(names))
    which = "output " + name if plan["output"] else "the first output"
    others = "; --output chooses another one: " + ", ".join(names) if len(names) > 1 else ""
    size, rows = feeds.batch, feeds.count
    kinds = {"rows": (one_row_each, "<f4"), "classes": (class_maps, "|u1"), "boxes": (detections, "<f4")}
    as_rows, dtype = kinds[plan["answers"]]
    shape: list[int] = []
    told = 0.0
    with open(plan["outputs"], "wb") as file:  # noqa: PTH123
        for start in range(0, rows, size):
            places = np.arange(start, min(start + size, rows))
            some = len(places)
            if feeds.fixed and some < size:  # a fixed batch: repeat the last row, and drop the surplus answers
                places = np.concatenate([places, np.repeat(places[-1:], size - some)])
            answer = call.answer(feeds.feed(places), names.index(name))
            if not feeds.axes and isinstance(answer, np.ndarray) and answer.shape[:1] != (1,):
                answer = answer[None]  # an unbatched model returns only one row
            answer = as_rows(answer, len(places), which, others)[:some]
            if not shape:
                shape = [rows, *answer.shape[1:]]
                header = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
                np.lib.format.write_array_header_1_0(file, header)
            # Write to the file and not to a memory map: on a full disk, a write fails with a reason, but a map kills
            # the process.
            file.write(np.ascontiguousarray(answer, dtype=dtype).tobytes())
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                print("done", start + some, rows, flush=True)
    return shape


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes (VmHWM); None if /proc does not report it.

    ru_maxrss is not suitable, because a child process inherits its parent's value.
    """
    for line in read_text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def read_text(path: str) -> str:
    """Return the text of a system file; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def counters() -> dict[str, Any]:
    """Read the system's counters that show whether other programs used the machine; None where one is missing."""
    wait = read_text("/proc/self/schedstat").split()
    cpu = read_text("/proc/stat").split("\n", 1)[0].split()[1:]
    mhz = read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").strip()
    load = read_text("/proc/loadavg").split()
    return {
        "time_s": time.perf_counter(),
        "waited_s": int(wait[1]) / 1e9
        if len(wait) == 3
        else None,  # time when this process was ready to run but had no core
        "busy_ticks": sum(map(int, cpu[:3] + cpu[5:7])) if len(cpu) >= 8 else None,
        "own_s": time.process_time(),
        "ticks": sum(map(int, cpu[:8])) if len(cpu) >= 8 else None,
        "steal_ticks": int(cpu[7]) if len(cpu) >= 8 else None,  # time when the hypervisor gave the core to others
        "mhz": int(mhz) / 1000 if mhz.isdigit() else None,
        "load_1min": float(load[0]) if load else None,
    }


def disturbance(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    """Return how much other load there was between two readings of the counters.

    waited: share of the time in which this process was ready and had no core; steal: share of the time for which the
    hypervisor gave cores to others; others_cores: number of cores that other programs kept busy.
    """
    elapsed = max(after["time_s"] - before["time_s"], 1e-9)
    waited = None if before["waited_s"] is None else (after["waited_s"] - before["waited_s"]) / elapsed
    steal = others = None
    if before["ticks"] is not None and after["ticks"] > before["ticks"]:
        steal = (after["steal_ticks"] - before["steal_ticks"]) / (after["ticks"] - before["ticks"])
        busy_s = (after["busy_ticks"] - before["busy_ticks"]) / os.sysconf("SC_CLK_TCK")
        others = max(0.0, (busy_s - (after["own_s"] - before["own_s"])) / elapsed)
    return {
        "waited": waited,
        "steal": steal,
        "others_cores": others,
        "mhz": after["mhz"],
        "load_1min": before["load_1min"],
    }


def energy_counter(
    provider: str = "CPUExecutionProvider", device: str = "0", powercap: str = "/sys/class/powercap"
) -> Callable[[], float] | None:
    """Return a function that reads joules: from NVML for a GPU provider, or from powercap for the CPU package."""
    if provider in ON_NVIDIA:
        return gpu_energy(int(device))
    path = powercap + "/intel-rapl:0/energy_uj"  # AMD's counter has the same name
    if provider != "CPUExecutionProvider" or not read_text(path).strip().isdigit():
        return None
    return lambda: int(read_text(path)) / 1e6


def gpu_energy(device: int) -> Callable[[], float] | None:
    """Return a function that reads an NVIDIA GPU's joules; None without NVML or without a counter."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(device)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except Exception:  # a missing package, GPU or counter each raises a different exception
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3


def gpu_names(provider: str) -> str:
    """Return names and driver of this machine's NVIDIA GPUs if the provider uses them; otherwise empty."""
    if provider not in ON_NVIDIA:
        return ""
    import subprocess

    try:
        ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return "; ".join(subprocess.run(ask, capture_output=True, text=True, timeout=30).stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired):
        return ""


def fingerprint(
    onnxruntime: Any, session: Any, plan: dict[str, Any], digest: str, feeds: Feeds | None
) -> dict[str, Any]:
    """Return the values that must be equal for two records to be comparable."""
    assignment: dict[str, int] = {}
    elsewhere: dict[str, int] = {}
    for provider, op_type, _ in assigned_nodes(session):
        assignment[provider] = assignment.get(provider, 0) + 1
        if provider != plan["provider"]:
            elsewhere[op_type] = elsewhere.get(op_type, 0) + 1
    mark = {key: plan[key] for key in SESSION_KEYS}
    mark.update(
        model_sha256=digest,
        providers_assigned=session.get_providers(),
        nodes_by_provider=assignment,
        ops_elsewhere=elsewhere,
        onnxruntime=onnxruntime.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        system=platform.system(),
        architecture=platform.machine(),
        cpu=cpu_model(),
        gpu=gpu_names(plan["provider"]),
        inputs="none" if feeds is None else "random" if feeds.random else "data",
    )
    if plan["values"]:
        mark["values"] = plan["values"]
    if plan["custom_ops"]:
        mark["custom_ops"] = {os.path.basename(path): sha256_of(path) for path in plan["custom_ops"]}  # noqa: PTH119
    if feeds is not None and feeds.ready:
        mark["shapes"] = {name: list(array.shape) for name, array in feeds.ready[0].items()}
        mark["input_types"] = {spec.name: type_name(spec) for spec in feeds.inputs}
        mark["batch_axes"] = feeds.axes
    if feeds is not None and plan["sequence_length"] is not None:
        mark["sequence_length"] = feeds.length
    if isinstance(session, Generating):
        mark["generation"] = {key: session.settings[key] for key in ("beam", "length_penalty")}
    return mark


def cpu_model() -> str:
    """Return the name of the CPU that the system reports."""
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware"):
            return value.strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
