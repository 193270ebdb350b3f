"""The processes of one training that `torchrun` started; a single process is rank 0 of world size 1."""

import contextlib
import datetime
import inspect
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgekd.devices import host
from edgekd.errors import ConfigError, EdgekdError, UnavailableError, one_line

__all__ = [
    "World",
    "averaged",
    "barrier",
    "broadcast",
    "device",
    "fail_together",
    "join",
    "leave",
    "missed",
    "reaches_all",
    "receive",
    "summed",
    "world",
]

PATIENCE = datetime.timedelta(hours=12)
"""How long the other ranks wait in a collective operation while rank 0 searches, exports or measures alone."""

SAME_ERROR = datetime.timedelta(minutes=2)
"""How long a failing process waits for the others to raise the same error."""


_errors: Any = None
"""The gloo process group that only failing processes use; see `fail_together`."""


@dataclass(frozen=True)
class World:
    """The rank of this process, and the number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only process that writes files and prints messages."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The slice of `count` ordered items that this process handles."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


def world() -> World:
    """The rank of this process and the world size."""
    if not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def join() -> World:
    """Initialise the process group if torchrun started several processes: NCCL if there are GPUs, else gloo.

    Raises ConfigError if there are GPUs, but fewer than processes.
    """
    global _errors
    if host.processes() == 1 or dist.is_initialized():
        return world()
    if "RANK" in os.environ and host.number_of("RANK", default=0, least=0) >= host.processes():
        raise ConfigError(f"RANK: got {os.environ['RANK']!r}; it should be below WORLD_SIZE, {host.processes()}")
    local, gpus = host.number_of("LOCAL_RANK", default=0, least=0), torch.cuda.device_count()
    if 0 < gpus <= local:
        raise ConfigError(f"torchrun: process {local} of this machine has no GPU, there are {gpus}; start {gpus}")
    if gpus:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)
    except ValueError as error:  # an environment variable of torchrun is missing or not a number
        raise ConfigError(f"torchrun: {one_line(error, 160)}; start with torchrun, or unset WORLD_SIZE") from error
    _errors = dist.new_group(backend="gloo", timeout=SAME_ERROR)  # an NCCL barrier cannot be abandoned after a timeout
    return world()


def leave() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Run a block that every process runs, such as a training. If all processes raise an EdgekdError, they can continue
    with the next block afterwards; if only some raise one, the error is marked as `final`.

    If one process fails alone, the others wait in a collective operation of the training, and would mistake its next
    collective operation for that one. So a failing process waits for a limited time at a barrier of a separate group,
    `_errors`, which only failing processes enter. A block that does not fail costs nothing.
    """
    try:
        yield
    except EdgekdError as error:
        if dist.is_initialized():
            try:
                dist.barrier(_errors)
            except RuntimeError:  # another process did not fail
                error.final = True
        raise


@contextlib.contextmanager
def missed() -> Iterator[None]:
    """Turn the error of a collective operation that fails because another process has ended into an UnavailableError
    that is `final`.

    The other process has reported its own error, or was killed; the stack trace of this process would not help.
    """
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have their own class; gloo's are plain RuntimeErrors that begin with a path in gloo's source.
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        lost = UnavailableError("another process of this training ended; see its message")
        lost.final = True
        raise lost from error


def broadcast(task: Any) -> None:
    """On rank 0: send the next training to all other processes; None means that there are no more."""
    if dist.is_initialized():
        dist.broadcast_object_list([task], src=0, device=device())


def receive() -> Any:
    """On the other ranks: wait for the next training that rank 0 broadcasts; None means that there are no more."""
    task = [None]
    dist.broadcast_object_list(task, src=0, device=device())
    return task[0]


def barrier() -> None:
    """Wait until every process has called this function."""
    if dist.is_initialized():
        dist.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all processes."""
    if dist.is_initialized():
        values = values.to(device())
        dist.all_reduce(values)
    return values


def averaged(module: nn.Module, all_used: bool) -> nn.Module:
    """Wrap `module` in DistributedDataParallel, which averages gradients over the processes. Buffers, such as running
    statistics, are not synchronised.

    Set `all_used` to false if some parameters have no gradient in some steps: torch then searches for such parameters
    in every step, and warns if it finds none.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    # The parameter has a new name since torch 2.13.
    own_buffers = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(module, find_unused_parameters=not all_used, **own_buffers)  # type: ignore[arg-type]


def reaches_all(results: Iterable[Tensor], module: nn.Module) -> bool:
    """Whether every trainable parameter of `module` is in the autograd graph of at least one of the results."""
    left = {id(value) for value in module.parameters() if value.requires_grad}
    nodes = [result.grad_fn for result in results if result.grad_fn is not None]
    seen = set(nodes)
    while nodes and left:
        node = nodes.pop()
        left.discard(id(getattr(node, "variable", None)))  # only AccumulateGrad nodes have this attribute
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                nodes.append(before)
    return not left


def device() -> torch.device:
    """The device for training: the current GPU if torch finds one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
