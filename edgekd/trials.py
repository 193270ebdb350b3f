"""Run independent trials at the same time, in processes of this machine or on a Ray cluster.

A trial is a call of a function of a module with arguments that can be pickled. It keeps what it has reached in files.
If its process dies, the call is repeated in another one, which goes on from these files.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from edgekd.console import say
from edgekd.errors import ConfigError, ModelError

__all__ = ["MOST_TRIES", "Call", "Crew", "crew_of", "outcome_of", "run_trials"]

MOST_TRIES = 3
"""A call whose process dies this often (perhaps for lack of memory) is not repeated."""
END_S = 10.0
"""Seconds in which an interrupted process may end by itself."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of a module, and its arguments."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many trials run at the same time, and where."""

    jobs: int | None = None
    """The largest number at the same time; None is one process, or as many as fit into the cluster."""
    ray: str = ""
    """The address of a Ray cluster, or `local` for one that is started on this machine; empty for no cluster."""
    cpus: float = 1.0
    gpus: float = 0.0
    """What one trial reserves on the cluster."""

    @property
    def alone(self) -> bool:
        """Whether all trials run one after the other in this process."""
        return not self.ray and (self.jobs or 1) == 1


def crew_of(jobs: int | None, ray: str, cpus: float, gpus: float) -> Crew:
    """The crew of the options `--jobs` and `--ray`, and of the card's `[trials]`. Raises ConfigError on a system where
    processes cannot be tied to this one."""
    crew = Crew(jobs=jobs, ray=ray, cpus=cpus, gpus=gpus)
    if not crew.alone and not crew.ray and not sys.platform.startswith("linux"):
        raise ConfigError(f"--jobs {jobs}: needs Linux; start the same command several times")
    return crew


def run_trials(calls: Iterable[Call], crew: Crew) -> Generator[tuple[Call, Any], None, None]:
    """Carry out the calls and yield each one with its result, in the order in which they end.

    A call is taken from `calls` only when it can begin, so that `calls` may depend on the results so far. Raises the
    first error of a call, and ModelError for a call whose process has died MOST_TRIES times; the others are then
    interrupted.
    """
    if crew.ray:
        from edgekd.cluster import run_on_ray  # which imports Ray

        return run_on_ray(iter(calls), crew)
    if crew.alone:
        return ((call, call[0](*call[1])) for call in calls)
    return _in_processes(iter(calls), crew.jobs or 1)


def outcome_of(call: Call) -> tuple[str, Any]:
    """Carry out a call; return "value" and its result, or "error" and the error."""
    function, arguments = call
    try:
        return "value", function(*arguments)
    except Exception as error:
        return "error", error


class _Child:
    """A process that carries out one call after the other."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a copy of a process that uses torch may hang
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid(), threads), daemon=True)
        self._process.start()
        theirs.close()
        self.call: Call | None = None
        self.tries = 0

    def begin(self, call: Call, tries: int = 0) -> None:
        self.call, self.tries = call, tries
        self.connection.send(call)

    def outcome(self) -> tuple[str, Any] | None:
        """The outcome of the call; None if the process died."""
        try:
            told: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.end()
            return None
        return told

    def end(self, interrupt: bool = False) -> None:
        """End the process; one that is interrupted may end by itself first."""
        if interrupt and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)
            self._process.join(END_S)
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, parent: int, threads: int) -> None:
    """Carry out the calls that arrive until the connection ends. The keyboard interrupts the parent alone, which then
    interrupts this process; if the parent is killed, the system kills this one, too."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torch reads it at its import
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            connection.send(outcome_of(connection.recv()))


def _in_processes(calls: Iterator[Call], jobs: int) -> Generator[tuple[Call, Any], None, None]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    idle: list[_Child] = []
    busy: list[_Child] = []
    try:
        while True:
            while len(busy) < jobs and (call := next(calls, None)) is not None:
                busy.append(_begun(call, idle, threads))
            if not busy:
                return
            ready = wait([child.connection for child in busy])
            for child in [child for child in busy if child.connection in ready]:
                call, outcome = child.call, child.outcome()
                assert call is not None
                busy.remove(child)
                if outcome is None:
                    tries = repeated(child.tries, "its process was killed")
                    again = _Child(threads)
                    busy.append(again)
                    again.begin(call, tries)
                    continue
                idle.append(child)
                yield call, value_of(outcome)
    finally:
        for child in idle:
            child.end()
        for child in busy:
            child.end(interrupt=True)


def _begun(call: Call, idle: list[_Child], threads: int) -> _Child:
    """The process that carries out the call: an idle one that still lives, or else a fresh one."""
    while idle:
        child = idle.pop()
        try:
            child.begin(call)
        except OSError:  # the system has killed it, perhaps for lack of memory
            child.end()
        else:
            return child
    child = _Child(threads)
    child.begin(call)
    return child


def repeated(tries: int, why: str) -> int:
    """Count one more loss of a call and say it. Raises ModelError if it was lost MOST_TRIES times."""
    if tries + 1 >= MOST_TRIES:
        raise ModelError(f"a trial was lost {MOST_TRIES} times ({why}); is there enough memory for several at a time?")
    say(f"a trial was lost ({why}); it is repeated from its last checkpoint")
    return tries + 1


def value_of(outcome: tuple[str, Any]) -> Any:
    """The result of a call; raises its error."""
    kind, value = outcome
    if kind == "error":
        raise value
    return value
