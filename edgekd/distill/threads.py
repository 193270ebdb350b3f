"""The number of threads of a training: threads of small networks can cost more time than they save, above all on a
machine that has other work, so a short trial compares a few numbers of threads."""

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.console import say
from edgekd.data.examples import Examples
from edgekd.distill.distributed import device, world
from edgekd.distill.optimise import autocast
from edgekd.recipe import Training

__all__ = ["VARIABLE", "fastest", "threads_for", "threads_of"]

VARIABLE = "OMP_NUM_THREADS"
"""The environment variable with which the user sets the number of threads. torch reads it at its import."""

GAIN = 1.15
"""How many times faster more threads have to be than fewer ones. What is gained by less than that is lost again when
other programs need the cores."""

SECONDS = 0.3
"""Length of the trial of each number of threads."""


@contextlib.contextmanager
def threads_for(name: str, net: nn.Module, examples: Examples, training: Training, checkpoint: Path) -> Iterator[None]:
    """Run a training's block with the number of threads that its checkpoint names, or that a trial chooses, and say it.

    The number stays as it is on a GPU, with several processes, and if the user has set OMP_NUM_THREADS. `net` maps
    inputs to logits; its tensors are unchanged afterwards.
    """
    before = torch.get_num_threads()
    alone = device().type == "cpu" and world().size == 1
    if alone and os.environ.get(VARIABLE):
        if not checkpoint.exists():
            say(f"{name}: {_words(before)}, as {VARIABLE} or --threads says")
    elif alone and before > 1:
        known = threads_of(checkpoint)
        if known is None:
            rates = _rates(net, examples, training, before)
            known = fastest(rates)
            tried = ", ".join(f"{count} → {rate:,.0f}" for count, rate in rates.items())
            say(f"{name}: {_words(known)}; a trial gave examples/s: {tried}; --threads N sets it")
        torch.set_num_threads(known)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_of(checkpoint: Path) -> int | None:
    """The number of threads that a checkpoint was written with; None if there is no readable checkpoint."""
    if not checkpoint.exists():
        return None
    try:
        found = torch.load(checkpoint, weights_only=True, map_location="cpu")["conditions"]["threads"]
    except Exception:  # a broken file, which is reported when it is loaded
        return None
    return found if isinstance(found, int) and found > 0 else None


def fastest(rates: dict[int, float]) -> int:
    """The number of threads to take, given the rate of each number, in ascending order: the first one that no larger
    number beats by the factor GAIN."""
    chosen = min(rates)
    for count, rate in rates.items():
        if rate > GAIN * rates[chosen]:
            chosen = count
    return chosen


def _rates(net: nn.Module, examples: Examples, training: Training, most: int) -> dict[int, float]:
    """Examples per second of forward and backward passes with 1, 2, 4, … and `most` threads, up to the first number
    that is half as fast as the fastest one: threads that wait for each other can be 30 times slower."""
    counts = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    kept = copy.deepcopy(net.state_dict())
    net.to(memory_format=torch.channels_last).train()
    step = _step(net, examples, training)
    try:
        with torch.random.fork_rng(devices=[]):
            once = _seconds(lambda: step(2), 1, 0)
            size = max(2, min(training.batch_size // training.accumulate, len(examples), int(2 * SECONDS / once)))
            rates: dict[int, float] = {}
            for count in counts:
                rates[count] = size / _seconds(lambda: step(size), count, SECONDS)
                if rates[count] < max(rates.values()) / 2:
                    break
            return rates
    finally:
        net.zero_grad()
        net.load_state_dict(kept)


def _step(net: nn.Module, examples: Examples, training: Training) -> Callable[[int], None]:
    """A function that makes a forward and a backward pass over so many examples."""

    def step(count: int) -> None:
        inputs = examples.batch(np.arange(count), 0).inputs
        with autocast(training.precision):
            logits = net(inputs)
        torch.as_tensor(logits).float().logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]

    return step


def _seconds(call: Callable[[], None], threads: int, least: float) -> float:
    """Median seconds of a call with so many threads, of calls that take `least` seconds together, after one call that
    does not count."""
    torch.set_num_threads(threads)
    call()
    spent: list[float] = []
    while not spent or sum(spent) < least:
        begin = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent))


def _words(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
