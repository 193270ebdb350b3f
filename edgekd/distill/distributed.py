"""The processes of one training, as `torchrun` starts them; a process on its own is rank 0 of 1."""

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
"""How long the others wait while rank 0 searches, exports or measures alone."""

SAME_ERROR = datetime.timedelta(minutes=2)
"""How far apart processes may meet the same error."""


_errors: Any = None
"""Where processes look for one another after an error."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` things in order."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


def world() -> World:
    """This process's place."""
    if not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def join() -> World:
    """Meet the other processes where torchrun started several: NCCL with a GPU for each, gloo without.

    Raises ConfigError where there are GPUs, but fewer than processes.
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
    except ValueError as error:  # a variable that torchrun sets is not there or no number
        raise ConfigError(f"torchrun: {one_line(error, 160)}; start with torchrun, or unset WORLD_SIZE") from error
    _errors = dist.new_group(backend="gloo", timeout=SAME_ERROR)  # NCCL's barrier cannot be left
    return world()


def leave() -> None:
    """Part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Run a block that every process runs alike, such as a training. If all of them raise an EdgekdError, they can go
    on afterwards; if only some raise one, it becomes `final`.

    A process that fails alone leaves the others waiting in a collective operation of the training, and its next
    message would be taken for a part of that operation. So a failing process waits for a limited time at a barrier of
    a separate group, `_errors`, which only failing processes enter. A block that does not fail costs nothing.
    """
    try:
        yield
    except EdgekdError as error:
        if dist.is_initialized():
            try:
                dist.barrier(_errors)
            except RuntimeError:  # somebody did not come
                error.final = True
        raise


@contextlib.contextmanager
def missed() -> Iterator[None]:
    """An UnavailableError, which is `final`, where something cannot be done together for another process is gone.

    Whatever ended that one it has said itself, or whoever killed it knows; this one's stack says nothing of it.
    """
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a class of their own; gloo's are known by the place in its source that they begin with.
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        lost = UnavailableError("another process of this training ended; see its message")
        lost.final = True
        raise lost from error


def broadcast(task: Any) -> None:
    """Send from rank 0 to all other processes which training comes next; None is the end."""
    if dist.is_initialized():
        dist.broadcast_object_list([task], src=0, device=device())


def receive() -> Any:
    """The training that rank 0 broadcasts; None is the end."""
    task = [None]
    dist.broadcast_object_list(task, src=0, device=device())
    return task[0]


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum over the processes."""
    if dist.is_initialized():
        values = values.to(device())
        dist.all_reduce(values)
    return values


def averaged(module: nn.Module, all_used: bool) -> nn.Module:
    """`module` with gradients that are the mean of all processes'; its buffers stay each process's own.

    Where not every parameter has a gradient in every step (`all_used` is false), torch looks for those without one
    each time, which it complains of where there are none.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    own_buffers = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}  # 2.13
    return DistributedDataParallel(module, find_unused_parameters=not all_used, **own_buffers)  # type: ignore[arg-type]


def reaches_all(results: Iterable[Tensor], module: nn.Module) -> bool:
    """Whether every parameter of `module` that is trained has its part in one of the results: what torch looks for."""
    left = {id(value) for value in module.parameters() if value.requires_grad}
    nodes = [result.grad_fn for result in results if result.grad_fn is not None]
    seen = set(nodes)
    while nodes and left:
        node = nodes.pop()
        left.discard(id(getattr(node, "variable", None)))  # where a gradient is accumulated
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                nodes.append(before)
    return not left


def device() -> torch.device:
    """Where training runs: the GPU if torch has one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
