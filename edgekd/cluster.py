"""Run trials as tasks of a Ray cluster. Ray is imported here alone, when `--ray` asks for it.

Each node must see the working folder under the same path, for example by NFS: checkpoints and results lie there. A
task whose node is lost is started again, on another node, and goes on from its checkpoint.
"""

import contextlib
import os
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from edgekd import __version__
from edgekd.console import say
from edgekd.errors import ConfigError, UnavailableError, one_line, shown
from edgekd.imports import require
from edgekd.trials import Call, Crew, outcome_of, repeated, value_of

__all__ = ["SETTINGS", "joined", "run_on_ray"]

ASK_S = 2.0
"""Seconds between two looks at how many trials the cluster has room for."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables of Ray, unless the user has set them."""


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """Join the cluster at the address, or start one on this machine for `local`; yield the module `ray`.

    A cluster that this process has joined before is used again. Raises UnavailableError if it cannot be reached.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ray = require("ray", "ray", "--ray")
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, on settings that edgekd does not use
            ray.init(address=address, configure_logging=False, log_to_driver=True, **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UnavailableError(f"Ray cluster {shown(address)}: cannot be joined: {one_line(error, 160)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def run_on_ray(calls: Iterator[Call], crew: Crew) -> Generator[tuple[Call, Any], None, None]:
    """Carry out the calls as tasks of the cluster, as `edgekd.trials.run_trials` describes."""
    with joined(crew.ray) as ray:
        task = ray.remote(num_cpus=crew.cpus, num_gpus=crew.gpus, max_retries=0)(_there)
        running: dict[Any, tuple[Call, int]] = {}
        _refuse_too_much(ray, crew)
        try:
            while True:
                while len(running) < _room(ray, crew) and (call := next(calls, None)) is not None:
                    running[task.remote(call, str(Path.cwd()), __version__)] = (call, 0)
                if not running:
                    return
                for done in ray.wait(list(running), num_returns=1, timeout=ASK_S)[0]:
                    call, tries = running.pop(done)
                    try:
                        outcome = ray.get(done)
                    except ray.exceptions.RayTaskError:  # an error of the task itself
                        raise
                    except ray.exceptions.RayError as error:  # its node or its process is lost
                        tries = repeated(tries, one_line(error, 100))
                        running[task.remote(call, str(Path.cwd()), __version__)] = (call, tries)
                        continue
                    yield call, value_of(outcome)
        finally:
            for ref in running:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=True)


def _room(ray: Any, crew: Crew) -> int:
    """How many trials may run at the same time on the nodes that are alive."""
    there = ray.cluster_resources()
    room = int(there.get("CPU", 0) // crew.cpus) if crew.cpus else len(ray.nodes())
    if crew.gpus:
        room = min(room, int(there.get("GPU", 0) // crew.gpus))
    return max(1, min(room, crew.jobs or room))


def _refuse_too_much(ray: Any, crew: Crew) -> None:
    """Raise ConfigError if no node has what one trial needs, because it would wait forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(one.get("CPU", 0) >= crew.cpus and one.get("GPU", 0) >= crew.gpus for one in nodes):
        most = {kind: max((one.get(kind, 0) for one in nodes), default=0) for kind in ("CPU", "GPU")}
        raise ConfigError(
            f"--ray {crew.ray}: a trial needs {crew.cpus:g} CPUs and {crew.gpus:g} GPUs of one node ([trials] of the "
            f"card), and the largest node has {most['CPU']:g} and {most['GPU']:g}"
        )
    say(f"ray: {len(nodes)} node{'s' if len(nodes) > 1 else ''}, room for {_room(ray, crew)} trials at the same time")


def _there(call: Call, folder: str, version: str) -> tuple[str, Any]:
    """Carry out a call on a node of the cluster, in the folder of the command."""
    if version != __version__:
        return "error", ConfigError(f"--ray: a node has edgekd {__version__}, and this command is of {version}")
    try:
        os.chdir(folder)
    except OSError:
        name = os.uname().nodename
        return "error", ConfigError(f"--ray: node {name} does not see {folder}; begin in a folder that all nodes share")
    return outcome_of(call)
