"""This machine as a device: start workers here and interpret how they end."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekd.bench.records import Effort, Plan, Record
from edgekd.devices import host
from edgekd.devices.device import Device, OnProgress, Site
from edgekd.devices.environments import RECIPES, Runtime, available_providers, environment_folder, providers_of
from edgekd.devices.outcome import ending, last_line, record_of, timed_out
from edgekd.devices.shared import Shared
from edgekd.errors import ConfigError, EdgekdError, InputError, ModelError, UnavailableError, did_you_mean, shown
from edgekd.files import real
from edgekd.machine import Machine
from edgekd.scratch import scratch
from edgekd.spec import bundled_names
from edgekd.target import Target, load_target

__all__ = [
    "WORKERS",
    "Local",
    "connect",
    "connect_all",
    "describe_here",
    "fitting_target",
    "look_for_runtime",
    "require_runtime",
    "run_worker",
    "runtime_of",
]

NEEDS_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
WORKERS = Path(__file__).parents[1] / "bench"


@dataclass(frozen=True)
class Local:
    """The device that is this machine."""

    def facts(self) -> Machine:
        """Return the description of this machine."""
        return host.machine()

    def free_memory(self) -> int | None:
        """Return the bytes of memory that are available to programs; None if the system does not report them."""
        return host.free_memory()

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless this machine can run the target's provider."""
        require_runtime(target)

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh worker process of the target's runtime on this machine."""
        return run_worker(plan, model, runtime_of(target), timeout_s, on_progress)

    def close(self) -> None:
        """Do nothing, because this device holds no resources."""


def _by_ssh(target: Target, place: str, cool: bool) -> Device:
    from edgekd.devices.ssh import Ssh  # not needed for most commands

    return Ssh(place, target.python, cool)


def _emulated(target: Target, place: str, cool: bool) -> Device:
    from edgekd.devices.emulated import Emulated  # it imports this module

    return Emulated(place)


def _companion(target: Target) -> Device | None:
    from edgekd.devices.emulated import companion_of  # it imports this module

    return companion_of(target)


def _at_gateway(target: Target, place: str, cool: bool) -> Device:
    from edgekd.devices.gateway import Gateway  # it may import Ray

    return Gateway(place, target.python, cool)


def _brought(target: Target, place: str, cool: bool) -> Device:
    from edgekd.devices.bundle import Brought  # not needed for most commands

    return Brought(Path(place.partition("://")[2]))


SCHEMES = {"ssh": _by_ssh, "qemu": _emulated, "ray": _at_gateway, "results": _brought}
PLACES = ("ssh://[user@]host[:port]", "qemu://cortex-a72", "qemu://cortex-a76", "ray://NAME")
"""The forms of the names of devices other than this machine."""


def connect(
    target: Target,
    where: str = "",
    accuracy_on: str = "",
    cool: bool = True,
    shared: dict[str, Shared] | None = None,
) -> Site:
    """Connect the target with a device: `where`, or the one that the target's file names, or else the environment
    variable EDGEKD_DEVICE; without any of them, this machine.

    Unless `local` is named, an emulated board of the target's hardware goes with it, if there is one.

    `accuracy_on` ("device" or "host") replaces the target's. With `cool`, a hot device may cool down before times are
    measured. `shared` holds the devices of the command by place; a device that is among them serves this target, too,
    and one that is not is added. Raises ConfigError for an unknown device, UnavailableError if the device cannot run
    the target.
    """
    named = where or target.device or os.environ.get("EDGEKD_DEVICE", "")
    place = named or "local"
    if accuracy_on not in ("", "device", "host"):
        raise ConfigError(f"--accuracy-on {shown(accuracy_on)}: {did_you_mean(accuracy_on, ('device', 'host'))}")
    scheme, slashes, _ = place.partition("://")
    if place == "local":
        site = Site(target, Local(), None if named else _companion(target))
    elif slashes and scheme in SCHEMES:
        # The run folder keeps the target, and with it where its figures are from.
        answers = accuracy_on or target.accuracy_on
        target = dataclasses.replace(target, device=place, accuracy_on=answers)  # type: ignore[arg-type]
        site = Site(target, _opened(scheme, target, cool, shared), _companion(target))
    else:
        raise ConfigError(f"device {shown(place)}: {did_you_mean(place, ('local', *PLACES))}")
    try:
        site.device.require(target)
        if target.accuracy_on == "host":
            require_runtime(target)
    except EdgekdError:
        site.close()
        raise
    return site


def _opened(scheme: str, target: Target, cool: bool, shared: dict[str, Shared] | None) -> Device:
    """The device of the target: one that the command has opened already, or a further one."""
    place = target.device.rstrip("/")
    if shared is None:
        return SCHEMES[scheme](target, place, cool)
    # One that has no holder is closed.
    if place not in shared or not shared[place].holders:
        shared[place] = Shared(SCHEMES[scheme](target, place, cool), target)
    return shared[place].hold(target)


def connect_all(
    target: Target, places: Sequence[str], accuracy_on: str = "", shared: dict[str, Shared] | None = None
) -> Site:
    """Connect the target with the first of the places, and with the others as further devices that share the timing of
    candidates; without any place, as `connect` does, which also says what `shared` is.

    Raises ConfigError for a device that is not the target's hardware, that is named twice, or that is this machine.
    """
    with contextlib.ExitStack() as opened:
        sites = []
        for place in places or [""]:
            if places.count(place) > 1:
                raise ConfigError(f"--device {shown(place)}: is named twice; name each device once")
            if place == "local" and len(places) > 1:
                raise ConfigError(
                    "--device local: cannot share candidates with other devices, because this machine makes their "
                    "files while it would measure"
                )
            sites.append(opened.enter_context(contextlib.closing(connect(target, place, accuracy_on, shared=shared))))
        for site in sites if len(sites) > 1 else []:
            if not site.measurable:
                raise ConfigError(
                    f"--device {site.place}: cannot share candidates, because it is not target {target.name}: "
                    f"{site.elsewhere}"
                )
        opened.pop_all()
    return dataclasses.replace(sites[0], more=tuple(sites[1:]))


def describe_here() -> dict[str, Any]:
    """Describe this machine in the words of the agent, which describes devices: see `facts` in agent.py."""
    from edgekd.devices import agent

    session = agent.Session(None, None)
    return agent.facts(session, {"python": sys.executable})


def fitting_target(here: Machine) -> str:
    """The bundled target for the CPU provider that describes this machine most closely.

    Raises UnavailableError if none does.
    """
    known = [load_target(name) for name in bundled_names("targets")]
    fitting = [
        target for target in known if target.provider.name == "CPUExecutionProvider" and not target.differences(here)
    ]
    if not fitting:
        names = ", ".join(target.name for target in known)
        raise UnavailableError(f"no bundled target describes this machine; name one with --target: {names}")
    closest = max(fitting, key=lambda target: len(target.hardware.requires) + len(target.hardware.lacks))
    return closest.name


def runtime_of(target: Target) -> Runtime:
    """Return the command that starts workers for the target.

    The target's environment is used if it is installed. An environment that edgekd could create but that is not
    installed is replaced by edgekd's own Python if that has the target's provider; an environment of the user is never
    replaced. Otherwise, raises UnavailableError with the command that creates the environment.
    """
    own = Runtime("python", (sys.executable, "-P", str(WORKERS / "worker.py")))
    if not target.environment:
        if target.provider.name == "wasm":
            raise ConfigError(f"{target.file}: environment: provider wasm runs in Node; write environment = 'wasm'")
        return own
    folder = environment_folder(target.environment, target.file)
    python = next((p for p in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if p.exists()), None)
    if python:
        return Runtime("python", (str(python), "-I", str(WORKERS / "worker.py")))
    if (folder / "node_modules").is_dir():
        return Runtime("node", (_node(target), str(WORKERS / "worker.mjs"), "--modules", str(folder)))
    if target.environment in RECIPES:
        if target.provider.name in _own_providers():
            return own
        raise UnavailableError(
            f"target {target.name}: its environment {shown(target.environment)} is not installed; "
            f"edgekd doctor --install {target.option}"
        )
    known = did_you_mean(target.environment, RECIPES)
    raise UnavailableError(
        f"{target.file}: environment: got {shown(target.environment)}, which is neither a folder with bin/python or "
        f"node_modules nor one that edgekd can make; {known}"
    )


def _node(target: Target) -> str:
    node = shutil.which("node")
    if node is None:
        raise UnavailableError(f"target {target.name}: needs Node.js (the command `node`), 18 or newer; install it")
    return node


def require_runtime(target: Target) -> None:
    """Raise UnavailableError unless this machine has the target's device, environment, onnxruntime and provider.

    To list its providers, the Python of the target's environment is started.
    """
    target.require_provider(providers_of(_installed(target)))


def look_for_runtime(target: Target) -> str:
    """Return the command of the environment's Python if only starting it could tell more; otherwise an empty text.

    This only reads the disk and starts no process, because a target file may come from an untrusted source. Raises
    UnavailableError if the disk already shows that the target's provider cannot be used here.
    """
    runtime = _installed(target)
    if runtime.kind == "python" and runtime.command[0] != sys.executable:
        return runtime.command[0]
    target.require_provider(providers_of(runtime))
    return ""


def _installed(target: Target) -> Runtime:
    if target.provider.name in NEEDS_CUDA and not host.has_cuda_device():
        raise UnavailableError(f"target {target.name}: no CUDA device on this machine (no /dev/nvidia0 or the like)")
    return runtime_of(target)


def _own_providers() -> list[str]:
    try:
        return available_providers()
    except UnavailableError:
        return []


def run_worker(
    plan: Plan,
    model: Path,
    runtime: Runtime,
    timeout_s: float = Effort.timeout_s,
    on_progress: OnProgress | None = None,
) -> Record:
    """Run the plan in one fresh worker process; `on_progress(done, total)` is called with its progress.

    Raises InputError if the model or the plan's baseline cannot be loaded, ModelError if one of them crashes or hangs
    the worker.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such model file")
    if plan.baseline is not None and not Path(plan.baseline).is_file():
        raise InputError(f"baseline {plan.baseline}: no such model file")
    # If the process loaded two models and crashed, it is unknown which of them was the cause.
    culprit = f"{model}" if plan.baseline is None else f"{model} or baseline {plan.baseline}"
    with scratch() as folder:
        plan_file, out, errors = Path(folder, "plan.json"), Path(folder, "result.json"), Path(folder, "stderr")
        baseline = plan.baseline and _as_text(Path(plan.baseline), Path(folder, "baseline.onnx"))
        plan_file.write_text(json.dumps(plan.as_json() | {"baseline": baseline}), encoding="utf-8")
        file = _as_text(model, Path(folder, "model.onnx"))
        command = [*runtime.command, "--plan", str(plan_file), "--model", file, "--out", str(out)]
        if runtime.kind == "python":
            command.append("--die-with-parent")
        code = _wait(command, errors, timeout_s, on_progress)
        if code is None:
            raise timed_out(culprit, timeout_s)
        if not out.exists():
            last = last_line(errors.read_text(encoding="utf-8", errors="replace"))
            raise ModelError(f"{culprit}: the worker {ending(code, last)}")
        text = out.read_text(encoding="utf-8", errors="replace")
        return record_of(text, model, f"baseline {baseline}: ", f"baseline {plan.baseline}: ")


def _as_text(file: Path, link: Path) -> str:
    """Return a path that a runtime can open as UTF-8; a file whose name is not valid UTF-8 gets a symbolic link."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        link.symlink_to(real(file))
        return str(link)
    return str(file)


def _wait(command: list[str], errors: Path, timeout_s: float, on_progress: OnProgress | None) -> int | None:
    """Wait for the worker and return its exit code; None if it was stopped together with the processes it started."""
    worker: subprocess.Popen[bytes] | None = None
    try:
        with errors.open("wb") as stderr, _interrupts_held_back():
            worker = _start(command, stderr)
        reader = threading.Thread(target=_listen, args=(worker, on_progress), daemon=True)
        reader.start()
        code = worker.wait(timeout_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        if worker:  # also kill the worker's child processes, and do so after an interrupt
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    reader.join(timeout=5)
    return code


def _start(command: list[str], stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
    folder = str(Path(stderr.name).parent)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=os.environ | {"TMPDIR": folder},  # so that a stopped worker leaves no temporary files behind
        )
    except OSError as error:
        raise ModelError(f"{command[0]}: cannot be started: {error.strerror}") from error


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let an interrupt come only after the block, so that a process that was just started is known and can be ended.

    Python runs signal handlers in the main thread alone, so nothing is to be done in any other thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if caught:
            signal.raise_signal(caught[0])


def _listen(worker: "subprocess.Popen[bytes]", on_progress: OnProgress | None) -> None:
    assert worker.stdout is not None
    with worker.stdout as lines:
        for line in lines:
            words = line.split()
            if on_progress and len(words) == 3 and words[0] == b"done" and words[1].isdigit() and words[2].isdigit():
                on_progress(int(words[1]), int(words[2]))
