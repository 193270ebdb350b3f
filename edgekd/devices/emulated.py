"""An emulated Arm board: workers of an aarch64 system run under qemu-user on this machine.

Answers are those of the emulated core's kernels, and they are repeatable. The instructions of calls are counted by a
plugin of qemu. Time is not reported, because an emulator needs far more time than the core.
"""

import dataclasses
import shutil
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgekd.bench.records import Plan, Record
from edgekd.devices.counter import COUNTER, make_counter, plugin_option, read_counts
from edgekd.devices.device import OnProgress
from edgekd.devices.environments import Runtime, environment_folder, pip_download
from edgekd.devices.host import described, machine
from edgekd.devices.local import WORKERS, run_worker
from edgekd.errors import ConfigError, UnavailableError, did_you_mean, shown
from edgekd.machine import Machine
from edgekd.scratch import scratch
from edgekd.target import Target

__all__ = ["CPUS", "ENVIRONMENT", "Emulated", "companion_of", "how_to_emulate", "install_counter", "install_system"]

ENVIRONMENT = "qemu-aarch64"
SLOWER = 20
"""Factor on the time limit of a worker, because an emulator is slower than the machine that it emulates."""
PACKAGES = ("python3-minimal", "python3", "libstdc++6", "libgomp1")
WHEELS = ("numpy>=1.26.4", "onnxruntime>=1.24.1")
INSTALL_LIMIT_S = 1_800


@dataclass(frozen=True)
class Cpu:
    """A core: the number of its part, and its features as /proc/cpuinfo lists them.

    ONNX Runtime chooses its kernels by that file, so it has to agree with what qemu emulates.
    """

    part: str
    features: str

    @property
    def cpuinfo(self) -> str:
        """The text of /proc/cpuinfo on a machine with one such core."""
        return (
            f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 3\n\n"
        )


CPUS = {
    "cortex-a72": Cpu("0xd08", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": Cpu(
        "0xd0b", "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    ),
}
"""The cores of a Raspberry Pi 4 and of a Raspberry Pi 5, by the names that qemu gives them."""


class Emulated:
    """The device `qemu://CPU`."""

    def __init__(self, place: str) -> None:
        """Raises ConfigError for a core that edgekd does not know."""
        self.cpu = place.partition("://")[2].rstrip("/")
        if self.cpu not in CPUS:
            raise ConfigError(f"device {shown(place)}: {did_you_mean(self.cpu, CPUS)}")

    def facts(self) -> Machine:
        """Return the description of the emulated board."""
        board = described("aarch64", "Linux", CPUS[self.cpu].cpuinfo)
        return Machine(board.architecture, "", board.features, board.cpu_part, "Linux", f"qemu-user ({self.cpu})")

    def free_memory(self) -> int | None:
        """Return None, because the emulator needs memory of its own."""
        return None

    def require(self, target: Target) -> None:
        """Raise UnavailableError unless the emulator and its system are here and can run the target's provider."""
        self.command()
        if target.provider.name != "CPUExecutionProvider":
            raise UnavailableError(
                f"device qemu://{self.cpu}: target {target.name} needs {target.provider.name}, and the emulated "
                "system has CPUExecutionProvider alone"
            )

    def command(self, *options: str) -> tuple[str, ...]:
        """Return the command that starts the emulated Python; `options` are qemu's. Raises UnavailableError if
        something is missing.
        """
        qemu, folder = emulator(), environment_folder(ENVIRONMENT)
        python = sorted((folder / "system" / "usr" / "bin").glob("python3.[0-9]*"))
        if not python or not (folder / self.cpu).is_dir():
            raise UnavailableError(
                f"device qemu://{self.cpu}: needs an aarch64 system; edgekd doctor --install {ENVIRONMENT}"
            )
        return (qemu, *options, "-L", str(folder / self.cpu), "-cpu", self.cpu, str(python[0]), "-I")

    def run(
        self, plan: Plan, model: Path, target: Target, timeout_s: float, on_progress: OnProgress | None = None
    ) -> Record:
        """Run the plan in one fresh emulated worker process; the instructions of mode count are added to its record."""
        if plan.mode != "count":
            return self._work(plan, model, timeout_s, on_progress)
        library = environment_folder(ENVIRONMENT) / COUNTER
        if not library.is_file():
            raise UnavailableError(
                f"instructions are counted by a plugin of qemu; `edgekd doctor --install {ENVIRONMENT}` makes it, or "
                "says what is missing"
            )
        with scratch() as folder:
            counts = folder / "counts"
            record = self._work(plan, model, timeout_s, on_progress, "-plugin", plugin_option(library, counts))
            return dataclasses.replace(record, counts=read_counts(counts, model))

    def _work(self, plan: Plan, model: Path, timeout_s: float, on_progress: OnProgress | None, *options: str) -> Record:
        runtime = Runtime("python", (*self.command(*options), str(WORKERS / "worker.py")))
        return run_worker(plan, model, runtime, SLOWER * timeout_s, on_progress)

    def close(self) -> None:
        """Do nothing, because this device holds no resources."""


def companion_of(target: Target) -> Emulated | None:
    """Return the emulated board whose core the target describes, if there is such a core and its system is installed;
    otherwise None.
    """
    for name in CPUS:
        board = Emulated(f"qemu://{name}")
        if not target.differences(board.facts()):
            try:
                board.require(target)
            except UnavailableError:
                return None
            return board
    return None


def how_to_emulate(target: Target) -> str:
    """Say how to get an emulated board of the target's hardware; the text is empty if no core that edgekd knows is that
    hardware, or if qemu-user cannot be had on this system.
    """
    known = any(not target.differences(Emulated(f"qemu://{name}").facts()) for name in CPUS)
    if not known or target.provider.name != "CPUExecutionProvider" or machine().system != "Linux":
        return ""
    first = "" if shutil.which("qemu-aarch64") else "`apt-get install qemu-user`, then "
    return f"an emulated board tells it: {first}`edgekd doctor --install {ENVIRONMENT}`"


def emulator() -> str:
    """Return the path of qemu-user for aarch64. Raises UnavailableError if it is not installed."""
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        raise UnavailableError("an emulated board needs qemu-user; `apt-get install qemu-user` or the like installs it")
    return found


def install_system() -> Path:
    """Make the aarch64 system of Debian or Ubuntu packages and of wheels, without root; returns its folder.

    Raises UnavailableError with the last line of output if a step fails; then no partial system remains.
    """
    emulator()
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        raise UnavailableError(f"--install {ENVIRONMENT}: needs {' and '.join(missing)}, of Debian or Ubuntu")
    folder = environment_folder(ENVIRONMENT)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{ENVIRONMENT}.") as scratch:
        made = Path(scratch, "made")
        system = made / "system"
        system.mkdir(parents=True)
        for package in _packages(Path(scratch, "apt")):
            _step(["dpkg-deb", "-x", str(package), str(system)])
        _wheels(system, Path(scratch, "wheels"))
        for name, cpu in CPUS.items():
            _board(made / name, cpu, system)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def install_counter() -> None:
    """Compile the plugin that counts instructions, and try it on an installed system.

    Raises UnavailableError, which says what is missing, in one line.
    """
    folder = environment_folder(ENVIRONMENT)
    make_counter(folder, Emulated(f"qemu://{next(iter(CPUS))}").command)


def _packages(folder: Path) -> list[Path]:
    """Download the packages and what they need, with apt's own resolver on lists and caches in `folder`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    own = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }
    options = [part for key, value in own.items() for part in ("-o", f"{key}={value}")]
    _step(["apt-get", *options, "update"])
    _step(["apt-get", *options, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES])
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _wheels(system: Path, folder: Path) -> None:
    python = min((system / "usr" / "bin").glob("python3.[0-9]*"))
    pip_download(folder, "aarch64", python.name.removeprefix("python"), WHEELS)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(system / "usr" / "lib" / "python3" / "dist-packages")


def _board(folder: Path, cpu: Cpu, system: Path) -> None:
    """Make the root folder of one board: the common system, with this core's description in /proc and /sys."""
    (folder / "proc").mkdir(parents=True)
    (folder / "proc" / "cpuinfo").write_text(cpu.cpuinfo, encoding="ascii")
    cpus = folder / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n", encoding="ascii")
    for entry in system.iterdir():
        if not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(Path("..", "system", entry.name))


def _step(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]}: still running after {INSTALL_LIMIT_S} s; stopped") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{command[0]}: {last[0][:300]}")
