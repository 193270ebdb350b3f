"""`devices`: what a device is, whether it is a target, a target file for it, and what edgekd keeps there."""

from contextlib import closing
from pathlib import Path
from typing import Any

from edgekd.console import out, say
from edgekd.devices.environments import pip_download
from edgekd.devices.host import described
from edgekd.devices.local import describe_here
from edgekd.devices.ssh import Ssh
from edgekd.errors import ConfigError, ExitCode, InputError, UnavailableError, shown
from edgekd.files import atomic
from edgekd.machine import Machine
from edgekd.scratch import scratch
from edgekd.spec import bundled_names
from edgekd.target import load_target

__all__ = ["clean_device", "set_up_device", "show_device"]

PACKAGES = ("numpy>=1.22", "onnxruntime>=1.17")
"""What a worker needs; see edgekd/bench/worker.py."""


def show_device(place: str, targets: list[str], write: Path | None) -> int:
    """Print what a device is and which targets it is, and write a target file for it if `write` names one."""
    python = next((load_target(name).python for name in targets), "")
    told, here = _facts(place, python)
    for label, text in _lines(told, here):
        out(f"{label}: {text}")
    out("targets:")
    code = ExitCode.PASS
    for target in map(load_target, targets or bundled_names("targets")):
        if target.provider.name == "wasm":  # it runs in Node, which a device does not tell of
            continue
        offered = told["runtime"].get("providers", [])
        reasons = target.differences(here)
        if target.provider.name not in offered:
            reasons.append(f"onnxruntime there has no {target.provider.name}")
        out(f"  {target.name}: {'; '.join(reasons) or 'this device is the target'}")
        code = ExitCode.FAIL if reasons and targets else code
    if write:
        _write(write, place, told, here)
    return code


def _facts(place: str, python: str) -> tuple[dict[str, Any], Machine]:
    if place in ("", "local"):
        told = describe_here()
    else:
        with closing(_by_ssh(place, python)) as device:
            told = device.describe()
    return told, described(told["architecture"], told["system"], told["cpuinfo"])


def _by_ssh(place: str, python: str = "") -> Ssh:
    if not place.startswith("ssh://"):
        raise ConfigError(f"device {shown(place)}: it should be local or like ssh://pi@board")
    return Ssh(place, python)


def _lines(told: dict[str, Any], here: Machine) -> list[tuple[str, str]]:
    """Labels and values for the facts that the device reports."""
    state, runtime = told["state"], told["runtime"]
    cpu = here.model or "unnamed"
    part = f", part {here.cpu_part}" if here.cpu_part else ""
    mhz = [f"{state[key]:.0f} MHz{words}" for key, words in (("mhz", ""), ("max_mhz", " at most")) if state.get(key)]
    throttled, degrees = state.get("throttled"), state.get("temperature_c")
    lines = [
        ("device", told["board"] or (told["user"] and f"{here.architecture}, {here.system}")),
        ("architecture", here.architecture),
        ("CPU", f"{cpu}{part}, {told['cores']} logical"),
        ("features", " ".join(sorted(here.features)) or "not reported"),
        ("memory", f"{told['memory'] / 1e9:.1f} GB" if told["memory"] else "not reported"),
        ("governor", state.get("governor") or "not reported"),
        ("frequency", ", ".join(mhz) or "not reported"),
        ("temperature", "not reported" if degrees is None else f"{degrees:.0f} °C"),
        ("throttled", "not reported" if throttled is None else f"{throttled:#x}" if throttled else "no"),
        ("system", told["release"]),
        ("free disk", f"{told['free_disk'] / 1e9:.1f} GB at {told['folder']}"),
        ("python", f"{told['command']}, {runtime.get('python', 'unknown version')}"),
    ]
    if problem := runtime.get("problem"):
        return [*lines, ("onnxruntime", f"none that works: {problem}; `edgekd devices PLACE --setup` makes one")]
    found = f"{runtime['onnxruntime']}, numpy {runtime['numpy']}"
    return [*lines, ("onnxruntime", found), ("providers", ", ".join(runtime["providers"]))]


# --- a target file ---

TEMPLATE = """\
# {title}: written by `edgekd devices {place} --write`. Change what does not suit you.

title = "{title}"
about = \"\"\"
ONNX Runtime's CPU provider on this device, one thread.
\"\"\"

device = "{place}"{space}# where it is measured; --device PLACE takes another one
{python}
# Precisions edgekd may try; it measures them and ships the best that fits.
precisions = ["int8", "fp32"]

[hardware]
architecture = "{architecture}"   # as `uname -m` prints it
system = "{system}"
{features}{parts}
[provider]
name = "CPUExecutionProvider"

[session]
intra_op_threads = 1       # of {cores} logical CPUs; one leaves the device free for its other work
inter_op_threads = 1       # operators side by side
allow_spinning = true      # idle threads wait actively; irrelevant with one thread
graph_level = "all"        # graph optimisation; "all" brings the layout changes and int8 fusion

[opset]
min = 18                   # what the runtime on the device can load
max = 23
export = 20                # what edgekd writes

[limits]
# Ceilings of the device itself; budgets belong in the card.
{memory}
[quantization]
activation = "uint8"
weight = "int8"
per_channel = true         # one scale per output channel of a convolution
reduce_range = {reduce}       # 7-bit weights, where 8-bit ones saturate: x86 CPUs without VNNI
symmetric_activation = false
normalize_rows = true      # images by rows of pixels: the same values, in less time
calibration = "minmax"     # or "entropy", "percentile"
calibration_images = 256   # taken from the training images
schemes = {schemes} # what may be tried where the target is measured: the fastest accurate one
calibrations = ["minmax", "percentile"] # is taken by its time and its accuracy on validation data
forms = ["qdq", "qoperator"] # int8 operators make a smaller file
"""


def _write(path: Path, place: str, told: dict[str, Any], here: Machine) -> None:
    """Write a target file for the device. Raises InputError if the file exists."""
    if path.exists():
        raise InputError(f"--write {path}: is there already; name another file, or move it away")
    if path.suffix != ".toml":
        raise ConfigError(f"--write {path}: a target is a TOML file; give a name that ends in .toml")
    with atomic(path) as temporary:
        temporary.write_text(target_text(place, told, here), encoding="utf-8")
    load_target(str(path))
    out(f"wrote {path}; now: edgekd distill --target {path}")


def target_text(place: str, told: dict[str, Any], here: Machine) -> str:
    """The text of a target file for a device, from what it told."""
    names = ("asimddp", "i8mm", "asimd") if here.architecture == "aarch64" else ("avx512_vnni", "avx_vnni", "avx2")
    has = [name for name in names if name in here.features]
    lacks = [name for name in names if name not in here.features]
    features = (
        f"requires = {_list(has)}   # CPU features of /proc/cpuinfo; they choose the int8 kernels\n" if has else ""
    )
    features += f"lacks = {_list(lacks)}\n" if lacks else ""
    python = told["command"] if told["command"].startswith("/") and "/edgekd/venv/" not in told["command"] else ""
    memory = (
        f"peak_memory_mb = {int(0.7 * told['memory'] / 1e6)}       # 70 % of its memory\n" if told["memory"] else ""
    )
    title = (told["board"] or f"{here.model or here.architecture}").replace('"', "'").replace("\\", "/")
    return TEMPLATE.format(
        title=f"{title}, one thread",
        place=place or "local",
        space=" " * max(1, 15 - len(place)),
        python=f'python = "{python}"\n' if python else "",
        architecture=here.architecture,
        system=here.system,
        features=features,
        parts=f'cpu_part = ["{here.cpu_part}"]\n' if here.cpu_part else "",
        cores=told["cores"],
        memory=memory,
        reduce="true" if here.saturates_int8 else "false",
        schemes=_list(_schemes(here)),
    )


def _schemes(here: Machine) -> list[str]:
    """The int8 schemes to try on such a CPU, as the bundled targets of its kind list them."""
    if here.architecture == "aarch64":
        return ["u8s8", "s8s8"]
    return ["u8s8-7bit", "u8s8"] if here.saturates_int8 else ["u8s8", "u8s8-7bit"]


def _list(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


# --- what edgekd keeps there ---


def clean_device(place: str, everything: bool) -> int:
    """Remove the files that edgekd keeps on the device; with `everything` also its environment."""
    with closing(_by_ssh(place)) as device:
        done = device.ask({"do": "clean", "all": everything})
    out(f"{place}: {done['freed'] / 1e6:.1f} MB removed from {done['folder']}")
    return ExitCode.PASS


def set_up_device(place: str, offline: bool) -> int:
    """Make an environment with numpy and onnxruntime on the device; `offline` downloads the wheels here."""
    with closing(_by_ssh(place)) as device, scratch() as folder:
        told = device.describe()
        wheels: dict[str, str] = {}
        if offline:
            version = ".".join(told["runtime"].get("python", "3.11").split(".")[:2])
            machine = described(told["architecture"], told["system"], "")
            pip_download(folder, machine.architecture, version, PACKAGES)
            wheels = device.send(sorted(folder.glob("*.whl")))
        say(f"{place}: making {told['folder']}/venv, this may take minutes")
        done = device.ask({"do": "setup", "packages": PACKAGES, "wheels": wheels})
    if problem := done["runtime"].get("problem"):
        raise UnavailableError(f"device {place}: the new environment cannot run models ({problem})")
    out(f"{place}: {done['folder']} has onnxruntime {done['runtime']['onnxruntime']}; edgekd bench … --device {place}")
    return ExitCode.PASS
